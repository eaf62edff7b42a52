"""PEFT and the language models here: each the other's reference, its own files, and the frozen base left alone."""

import copy
import random

import pytest
import small_models
import torch

import vlprompt
from vlprompt import methods, readers, words
from vlprompt.data.found import Data
from vlprompt.passages import Passage, Passages
from vlprompt.runner import run
from vlprompt.stage import Name, Split
from vlprompt.tasks import Text
from vlprompt.train import Train

LEFT = ("llama", "gpt2", "bert", "t5")
AUTO = dict.fromkeys(("llama", "qwen2", "gpt2"), "AutoModelForCausalLM") | {"t5": "AutoModelForSeq2SeqLM"}
GOOD, BAD = "good great warm funny well fast clean won".split(), "bad terrible boring long slow fell lost oil".split()
NAMES = (Name("negative", words=("terrible",)), Name("positive", words=("great",)))
MAPS = {  # query and value, what feeds forward, norms
    **dict.fromkeys(("llama", "qwen2"), (["q_proj", "v_proj"], ["down_proj"], ["input_layernorm"])),
    "gpt2": (["c_attn"], ["mlp.c_proj"], ["ln_1"]),
    **dict.fromkeys(("bert", "roberta"), (["query", "value"], ["intermediate.dense"], ["output.LayerNorm"])),
    "t5": (["q", "v"], ["wo"], ["layer_norm"]),
}
KINDS = {
    "LORA": {"r": 4},
    "DORA": {"peft_type": "LORA", "r": 4, "use_dora": True, "lora_dropout": 0.1},
    "PISSA": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa", "use_rslora": True},
    "BIASES": {"peft_type": "LORA", "r": 4, "bias": "all"},
    "ADALORA": {"init_r": 4, "target_r": 2, "tfinal": 0},
    "VERA": {"r": 8},
    "IA3": {},
    "LN_TUNING": {},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "OFT": {"oft_block_size": 4},
    "BOFT": {"boft_block_size": 4},
    "FOURIERFT": {"n_frequency": 20},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 16},
}
REFUSED = {  # and why
    ("gpt2", "LOHA"): "Conv1D", ("gpt2", "LOKR"): "Conv1D", ("gpt2", "OFT"): "Conv1D", ("gpt2", "BOFT"): "Conv1D",
    ("t5", "PREFIX_TUNING"): "only the decoder's own attention",
}  # fmt: skip


def config(family, kind):
    some, feed, norms = MAPS[family]
    about = {"peft_type": kind, **copy.deepcopy(KINDS[kind])}
    if kind == "LN_TUNING":
        return about | {"target_modules": norms}
    if "num_virtual_tokens" in about:
        return about
    if kind == "IA3":
        return about | {"target_modules": some + feed, "feedforward_modules": feed}
    return about | {"target_modules": some}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root, done = tmp_path_factory.mktemp("models"), {}

    def given(family):
        if family not in done:
            done[family] = small_models.written(family, root / family)
        return done[family]

    return given


@pytest.fixture
def load(folder):
    return lambda family, base="hf": vlprompt.load(f"{base}:{folder(family)}")


def split(n, seed):
    draw, found = random.Random(seed), []
    for i in range(n):
        text = " ".join(draw.choice((BAD, GOOD)[i % 2] + ["the", "module"] * 2) for _ in range(draw.randint(3, 9)))
        found.append(Passage(f"{seed}/{i}", {"text": text}, "{text} It was {mask}", "{text}"))
    return Split(tuple(found), tuple(i % 2 for i in range(n)), NAMES)


def task(n=16):
    return Text(Data("toy", split(n, 1), split(4, 2), split(8, 3), "{text} It was {mask}", ""), seed=1)


def lesson():
    return next(iter(task().stages())).lesson


def texts(n=4):
    return Passages(split(n, 9).items)


def answer(method):
    method.eval()
    with torch.no_grad():
        return method(texts(), method.prepare(NAMES, method.fixed(NAMES))).logits


def trained(method, steps=2, **train):
    how = {"lr": 0.01, "batch": 8, "optimizer": "adamw"} | train
    return run(method, task(), Train(epochs=-(-steps // 2), iterations=steps, warmup=0, **how))


def bits(lm):
    return {name: tensor.clone() for name, tensor in lm.net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# every type of PEFT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_a_type_of_peft_trains_on_a_frozen_family(family, kind, load):
    lm = load(family)
    method = methods.Peft(lm, words.Words(lm), config(family, kind))
    if (family, kind) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[family, kind]):
            trained(method)
        return
    asked, before, first = copy.deepcopy(method.config), bits(lm), trained(method, 1)
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    trained(method, 4)
    assert method.config == asked
    assert same(bits(lm), before)
    assert not any(p.requires_grad or p.grad is not None for p in lm.net.parameters())
    moved = [name for name, p in method.named_parameters() if not torch.equal(p, start[name])]
    assert {name for name, _ in method.named_parameters()} == set(moved)
    assert first.cost["trained_parameters"] < lm.size / 2
    again = methods.Peft(lm, words.Words(lm), config(family, kind))
    again.restore([lesson()], method.state_dict())
    assert torch.equal(answer(again), answer(method))
