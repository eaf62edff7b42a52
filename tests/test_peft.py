"""PEFT and the language models here: each the other's reference, its own files, and the frozen base left alone."""

import copy
import random

import pytest
import small_models
import torch

import vlprompt
from vlprompt import methods, words
from vlprompt.data.found import Data
from vlprompt.passages import Passage, Passages
from vlprompt.runner import run
from vlprompt.stage import Name, Split
from vlprompt.tasks import Text
from vlprompt.train import Train

LEFT = ("llama", "gpt2", "bert", "t5")
AUTO = dict.fromkeys(("llama", "qwen2", "gpt2"), "AutoModelForCausalLM") | {"t5": "AutoModelForSeq2SeqLM"}
GOOD = ("good", "great", "warm", "funny", "well", "fast", "clean", "won")
BAD = ("bad", "terrible", "boring", "long", "slow", "fell", "lost", "oil")
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
        text = " ".join(draw.choice((BAD, GOOD)[i % 2] + ("the", "module") * 2) for _ in range(draw.randint(3, 9)))
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
    masked = {name for name, _ in method.named_parameters() if "lora_E" in name}  # of AdaLoRA, from its start at zero
    assert {name for name, _ in method.named_parameters()} - masked == set(moved) - masked
    assert first.cost["trained_parameters"] < lm.size / 2
    again = methods.Peft(lm, words.Words(lm), config(family, kind))
    again.restore([lesson()], method.state_dict())
    assert torch.equal(answer(again), answer(method))


# each is the other's reference


def plain(folder, family):
    """The model as transformers loads it."""
    import transformers

    return getattr(transformers, AUTO.get(family, "AutoModelForMaskedLM")).from_pretrained(folder(family)).eval()


def tokens(family):
    """Rows of like length (2, N), and what the decoder is given."""
    ids = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(3))
    more = {"decoder_input_ids": ids[:, :4]} if family == "t5" else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def theirs(model, family):
    with torch.no_grad():
        logits = model(**tokens(family)).logits
    return logits if family == "t5" else logits[:, -9:]


def ours(lm, prompt, family):
    """Logits of the same rows by our passes."""
    from vlprompt.backbones.hf.rows import Row

    ids = tokens(family)["input_ids"].tolist()
    p = prompt.length
    if family == "t5":
        rows = [Row([5] * p + row, list(range(p)), [0] * (9 + p), answer=[*row[1:4], 7]) for row in ids]
        lm.net.config.decoder_start_token_id = ids[0][0]
        found = []
        for row in rows:
            lm.net.config.decoder_start_token_id = row.ids[p]
            found.append(lm.read([row], prompt, "response")[0])
        return lm.vocabulary(torch.stack(found))
    rows = [Row([5] * p + row, list(range(p)), [0] * (9 + p), begin=p) for row in ids]
    states = lm._hidden(rows, prompt)[:, p:]
    return lm.vocabulary(lm.family.ready(lm.net)(states))


def shaken(method, by=0.1):
    """A method that has begun, away from its start."""
    method.begin(lesson(), torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(by * torch.randn(p.shape, generator=draw))
    return method.eval()


OWN = {
    "lora": lambda lm: methods.LoRA(lm, words.Words(lm), 3, 5.0, tuple(MAP_KINDS[lm.net.config.model_type])),
    "lora_fa": lambda lm: methods.LoRAFA(lm, words.Words(lm), 3),
    "prompt_tuning": lambda lm: methods.PromptTuning(lm, words.Words(lm), 4, init="random"),
    "p_tuning": lambda lm: methods.PTuning(lm, words.Words(lm), 4, hidden=8),
    "prefix_tuning": lambda lm: methods.PrefixTuning(lm, words.Words(lm), 4, hidden=16),
}
MAP_KINDS = dict.fromkeys(("llama", "qwen2"), ("q", "v", "gate")) | dict.fromkeys(("bert", "roberta"), ("k", "down"))
MAP_KINDS |= {"gpt2": ("q", "v", "up"), "t5": ("q", "v", "down")}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("family", LEFT)
@torch.no_grad()
def test_an_adapter_from_here_gives_the_same_logits_in_plain_peft(family, name, load, folder, tmp_path):
    from peft import PeftModel

    lm = load(family)
    method = shaken(OWN[name](lm))
    prompt = method.prompt(1)
    if (family, name) == ("t5", "prefix_tuning"):
        with pytest.raises(ValueError, match="only the decoder's own attention"):
            lm.save(prompt, tmp_path, {})
        return
    lm.save(prompt, tmp_path, {})
    net = plain(folder, family)
    bare = theirs(net, family)
    model = PeftModel.from_pretrained(net, tmp_path).eval()
    assert torch.allclose(theirs(model, family), ours(lm, prompt, family), atol=1e-5, rtol=1e-5)
    assert (theirs(model, family) - bare).abs().max() > 0.01
    again = methods.Peft(lm, words.Words(lm), {"path": str(tmp_path)})
    again.begin(lesson(), torch.Generator())
    assert torch.allclose(answer(again), answer(method), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", ["LORA", "DORA", "PISSA", "ADALORA", "VERA", "IA3", "LOKR", "P_TUNING", "PREFIX_TUNING"]
)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_peft_trained_here_loads_in_plain_peft(family, kind, load, folder, tmp_path):
    from peft import PeftModel

    lm = load(family)
    method = methods.Peft(lm, words.Words(lm), config(family, kind))
    trained(method, 4, lr=0.05)
    method.eval()
    method.adapted.save(tmp_path, {"weights": lm.key.partition("#")[2]})
    model = PeftModel.from_pretrained(plain(folder, family), tmp_path).eval()
    with torch.no_grad():
        mine = ours(method.tower, method.prompt(1), family)
    assert torch.allclose(theirs(model, family), mine, atol=1e-5, rtol=1e-5)
    again = methods.Peft(lm, words.Words(lm), {"path": str(tmp_path)})
    again.begin(lesson(), torch.Generator())
    assert torch.allclose(answer(again), answer(method), atol=1e-5)
