"""PEFT and the language models here: each the other's reference, its own files, and the frozen base left alone."""

import copy
import random
from dataclasses import replace

import pytest
import small_models
import torch

import vlprompt
from vlprompt import methods
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.data.dataset import Data
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.runner import run
from vlprompt.layers import verbalizers
from vlprompt.tasks import Text

pytestmark = [
    pytest.mark.filterwarnings("ignore:hf-nf4.*4 bits"),  # the tiny models are 48 wide
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
LEFT = ("llama", "gpt2", "bert", "t5")
AUTO = dict.fromkeys(("llama", "qwen2", "gpt2"), "AutoModelForCausalLM") | {"t5": "AutoModelForSeq2SeqLM"}
GOOD = ("good", "great", "warm", "funny", "well", "fast", "clean", "won")
BAD = ("bad", "terrible", "boring", "long", "slow", "fell", "lost", "oil")
NAMES = (ClassName("negative", words=("terrible",)), ClassName("positive", words=("great",)))
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
            done[family] = small_models.written("llama" if family == "wide" else family, root / family)
            if family == "wide":  # by 64, as NF4's blocks are
                wide(done[family])
        return done[family]

    return given


def wide(path):
    """The model in a folder anew, wider."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(5)
    net = transformers.LlamaForCausalLM(config)
    for p in net.parameters():
        p.data.mul_(2.0) if p.ndim > 1 else None
    net.save_pretrained(path)


@pytest.fixture
def load(folder):
    return lambda family, base="hf": vlprompt.load(f"{base}:{folder(family)}")


def split(n, seed):
    draw, found = random.Random(seed), []
    for i in range(n):
        text = " ".join(draw.choice((BAD, GOOD)[i % 2] + ("the", "module") * 2) for _ in range(draw.randint(3, 9)))
        found.append(TextItem(f"{seed}/{i}", {"text": text}, "{text} It was {mask}", "{text}"))
    return Split(tuple(found), tuple(i % 2 for i in range(n)), NAMES)


def task(n=16):
    return Text(Data("toy", split(n, 1), split(4, 2), split(8, 3), "{text} It was {mask}", ""), seed=1)


def lesson():
    return next(iter(task().stages())).lesson


def texts(n=4):
    return TextBatch(split(n, 9).items)


def answer(method):
    method.eval()
    with torch.no_grad():
        return method(texts(), method.prepare(NAMES, method.precompute(NAMES))).logits


def trained(method, steps=2, **train):
    how = {"lr": 0.01, "batch_size": 8, "optimizer": "adamw"} | train
    return run(method, task(), TrainConfig(epochs=-(-steps // 2), iterations=steps, warmup=0, **how))


def bits(lm):
    return {name: tensor.clone() for name, tensor in lm.net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# every type of PEFT


def cells():
    """Every type on every family; near twins of other cells are slow.

    All types are quick on llama. Bert has the same nn.Linear maps, and takes one of them and what names its own parts;
    the others take one type of each kind, and gpt2 those that its maps refuse.
    """
    kinds = {"LORA", "PROMPT_TUNING", "PREFIX_TUNING"}
    quick = dict.fromkeys(small_models.FAMILIES, kinds) | {"llama": {*KINDS}}
    quick |= {"bert": kinds | {"IA3", "LN_TUNING", "P_TUNING"}, "gpt2": kinds | {"LOHA", "LOKR", "OFT", "BOFT"}}
    for family in small_models.FAMILIES:
        for kind in KINDS:
            yield pytest.param(family, kind, marks=[] if kind in quick[family] else pytest.mark.slow)


@pytest.mark.parametrize(("family", "kind"), cells())
def test_a_type_of_peft_trains_on_a_frozen_family(family, kind, load):
    lm = load(family)
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config(family, kind))
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
    assert first.cost["trained_parameters"] < lm.n_parameters / 2
    again = methods.Peft(lm, verbalizers.Verbalizer(lm), config(family, kind))
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
    from vlprompt.backbones.hf.tokenization import TokenizedText

    ids = tokens(family)["input_ids"].tolist()
    p = prompt.length
    if family == "t5":
        rows = [TokenizedText([5] * p + row, list(range(p)), [0] * (9 + p), answer_ids=[*row[1:4], 7]) for row in ids]
        lm.net.config.decoder_start_token_id = ids[0][0]
        found = []
        for row in rows:
            lm.net.config.decoder_start_token_id = row.ids[p]
            found.append(lm.compute_pass([row], prompt, "response")[0])
        return lm.vocabulary_logits(torch.stack(found))
    rows = [TokenizedText([5] * p + row, list(range(p)), [0] * (9 + p), answer_start=p) for row in ids]
    states = lm._compute_hidden(rows, prompt)[:, p:]
    return lm.vocabulary_logits(lm.architecture.head_transform(lm.net)(states))


def shaken(method, by=0.1):
    """A method that has begun, away from its start."""
    method.begin_lesson(lesson(), torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(by * torch.randn(p.shape, generator=draw))
    return method.eval()


OWN = {
    "lora": lambda lm: methods.LoRA(lm, verbalizers.Verbalizer(lm), 3, 5.0, tuple(MAP_KINDS[lm.net.config.model_type])),
    "lora_fa": lambda lm: methods.LoRAFA(lm, verbalizers.Verbalizer(lm), 3),
    "prompt_tuning": lambda lm: methods.PromptTuning(lm, verbalizers.Verbalizer(lm), 4, init="random"),
    "p_tuning": lambda lm: methods.PTuning(lm, verbalizers.Verbalizer(lm), 4, hidden_dim=8),
    "prefix_tuning": lambda lm: methods.PrefixTuning(lm, verbalizers.Verbalizer(lm), 4, hidden_dim=16),
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
            lm.save_as_peft(prompt, tmp_path, {})
        return
    lm.save_as_peft(prompt, tmp_path, {})
    net = plain(folder, family)
    bare = theirs(net, family)
    model = PeftModel.from_pretrained(net, tmp_path).eval()
    assert torch.allclose(theirs(model, family), ours(lm, prompt, family), atol=1e-5, rtol=1e-5)
    assert (theirs(model, family) - bare).abs().max() > 0.01
    again = methods.Peft(lm, verbalizers.Verbalizer(lm), {"path": str(tmp_path)})
    again.begin_lesson(lesson(), torch.Generator())
    assert torch.allclose(answer(again), answer(method), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", ["LORA", "DORA", "PISSA", "ADALORA", "VERA", "IA3", "LOKR", "P_TUNING", "PREFIX_TUNING"]
)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_peft_trained_here_loads_in_plain_peft(family, kind, load, folder, tmp_path):
    from peft import PeftModel

    lm = load(family)
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config(family, kind))
    trained(method, 4, lr=0.05)
    method.eval()
    method.adapter.save(tmp_path, {"weights": lm.key.partition("#")[2]})
    model = PeftModel.from_pretrained(plain(folder, family), tmp_path).eval()
    with torch.no_grad():
        mine = ours(method.tower, method.prompt(1), family)
    assert torch.allclose(theirs(model, family), mine, atol=1e-5, rtol=1e-5)
    again = methods.Peft(lm, verbalizers.Verbalizer(lm), {"path": str(tmp_path)})
    again.begin_lesson(lesson(), torch.Generator())
    assert torch.allclose(answer(again), answer(method), atol=1e-5)


# whole models


def reloaded(path, family):
    import transformers

    return getattr(transformers, AUTO.get(family, "AutoModelForMaskedLM")).from_pretrained(path).eval()


def close(a, b, by=1e-4):
    return bool(((a - b).abs().max() / b.abs().max()) < by)


@pytest.mark.parametrize("base", ["hf", "hf-bf16", "hf-nf4", "hf-int8"])
@torch.no_grad()
def test_a_merged_model_has_the_weight_and_the_update_in_it(base, load, tmp_path):
    lm = load("wide", base)
    method = shaken(methods.LoRA(lm, verbalizers.Verbalizer(lm), 3, 6.0, ("q", "down")))
    lm(texts(), method.prompt(4), output="mask")  # a pass changes what bitsandbytes holds
    before = bits(lm)
    lm.save_merged(method.prompt(1), tmp_path)
    assert same(bits(lm), before)
    net = reloaded(tmp_path, "llama")
    layer, mine = net.model.layers[1].mlp.down_proj, lm.net.model.layers[1].mlp.down_proj
    part = method.adapters["1/down"]
    wanted = in_full(mine) + 2.0 * part.up @ part.down
    assert layer.weight.dtype == torch.float32
    assert close(layer.weight, wanted, 1e-6)
    assert close(net.model.layers[1].self_attn.v_proj.weight, in_full(lm.net.model.layers[1].self_attn.v_proj), 1e-6)
    assert close(theirs(net, "llama"), ours(lm, method.prompt(1), "llama"), {"hf": 1e-5}.get(base, 0.05))
    assert vlprompt.load(f"hf:{tmp_path}").weight_precision == "fp32"


def in_full(module):
    """A weight in float32, of NF4 by its table."""
    import bitsandbytes

    if hasattr(module.weight, "quant_state"):
        state, packed = module.weight.quant_state, module.weight.data.flatten()
        codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
        sizes = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        return (state.code[codes].view(-1, state.blocksize) * sizes[:, None]).view(state.shape)
    if hasattr(module, "state"):
        return module.weight.data.float() * module.state.SCB[:, None] / 127
    return module.weight.float()


MERGED = ("LORA", "DORA", "PISSA", "ADALORA", "VERA", "IA3", "LN_TUNING", "OFT", "FOURIERFT")


@pytest.mark.parametrize(
    ("family", "base", "kind"),
    [
        pytest.param(family, base, kind, marks=pytest.mark.slow if family == "t5" and kind not in MERGED[:2] else [])
        for family, base in (("llama", "hf"), ("llama", "hf-nf4"), ("t5", "hf"))
        for kind in MERGED
    ],
)
def test_an_adapter_of_peft_merges_exactly_or_is_refused(family, base, kind, load, tmp_path):
    lm = load(family, base)
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config(family, kind))
    if (base, kind) == ("hf-nf4", "PISSA"):
        with pytest.raises(ValueError, match="initialize PiSSA under float32"):
            trained(method)
        return
    trained(method, 2, lr=0.02)
    method.eval()
    before = bits(lm)
    method.adapter.save_merged(tmp_path)
    assert same(bits(lm), before)
    with torch.no_grad():
        mine = ours(method.tower, method.prompt(1), family)
    assert close(theirs(reloaded(tmp_path, family), family), mine, 1e-4 if base == "hf" else 0.05)


def test_a_merge_that_is_not_exact_is_refused_and_not_written(load, tmp_path, monkeypatch):
    lm = load("llama")
    method = shaken(methods.LoRA(lm, verbalizers.Verbalizer(lm), 3))
    monkeypatch.setattr(
        type(method.adapters["0/q"]), "merge", lambda part, weight, bias: (weight + part.up @ part.down, bias)
    )
    for part in method.adapters.values():
        part.scale = 2.0
    with pytest.raises(ValueError, match="not written"):
        lm.save_merged(method.prompt(1), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        ValueError, match=r"got tokens or prefixes, which can't be merged into weights. Write --to peft"
    ):
        lm.save_merged(shaken(OWN["prompt_tuning"](lm)).prompt(1), tmp_path / "new")


# 4 bits


def losses(method, steps=24, **train):
    from vlprompt.engine.loop import fit

    method.begin_lesson(lesson(), torch.Generator().manual_seed(1))
    how = {"lr": 0.01, "batch_size": 8, "optimizer": "adamw", "warmup": 0, "schedule": "constant"} | train
    return [step.loss for step in fit(method, lesson(), TrainConfig(epochs=100, iterations=steps, **how))]


@pytest.mark.parametrize("family", ["llama", "gpt2", pytest.param("bert", marks=pytest.mark.slow)])
def test_qlora_learns_on_a_cpu_as_lora_does(family, load):
    lm, full = load(family, "hf-nf4"), load(family)
    kinds = {site.split("/")[-1] for site in full.sites()} & {"q", "k", "v", "out", "up", "gate", "down"}
    four = methods.QLoRA(lm, verbalizers.Verbalizer(lm), 4, 8.0)
    before = bits(lm)
    mine, theirs = losses(four), losses(methods.LoRA(full, verbalizers.Verbalizer(full), 4, 8.0, tuple(sorted(kinds))))
    assert sum(mine[-4:]) < 0.7 * sum(mine[:4])
    assert abs(sum(mine[-4:]) - sum(theirs[-4:])) < 0.3 * sum(theirs[:4])
    assert same(bits(lm), before)
    assert {site.split("/")[-1] for site in four.adapters} == kinds


def test_gradients_in_4_bits_are_the_same_after_a_test(load):
    lm = load("wide", "hf-nf4")
    method = shaken(methods.QLoRA(lm, verbalizers.Verbalizer(lm), 4))

    def gradient():
        fixed = method.precompute(NAMES)
        loss = method(texts(), method.prepare(NAMES, fixed)).logits.square().sum()
        return torch.autograd.grad(loss, list(method.parameters()))

    first = gradient()
    answer(method)
    assert all(torch.equal(a, b) for a, b in zip(first, gradient(), strict=True))


def test_4_bits_in_odd_widths_are_told_on_a_cpu(folder):
    with pytest.warns(UserWarning, match="48 wide"):
        vlprompt.load(f"hf-nf4:{folder('llama')}")
    assert not vlprompt.backbones.load_backbone(f"hf-nf4:{folder('wide')}").notes


def test_qlora_wants_a_quantised_base(load):
    lm = load("llama")
    with pytest.raises(ValueError, match="hf-nf4:"):
        methods.QLoRA(lm, verbalizers.Verbalizer(lm)).begin_lesson(lesson(), torch.Generator())


def test_lora_fa_keeps_its_first_factor(load):
    lm = load("llama")
    method = methods.LoRAFA(lm, verbalizers.Verbalizer(lm), 4)
    found = losses(method)
    first = methods.LoRAFA(lm, verbalizers.Verbalizer(lm), 4)
    first.begin_lesson(lesson(), torch.Generator().manual_seed(1))
    assert all(
        torch.equal(a.down, b.down) for a, b in zip(method.adapters.values(), first.adapters.values(), strict=True)
    )
    assert all("down" in name for name in method.state_dict().keys() - dict(method.named_parameters()).keys())
    whole = methods.LoRA(lm, verbalizers.Verbalizer(lm), 4, 16.0)
    assert sum(found[-4:]) < 0.8 * sum(found[:4])
    assert losses(whole, 1)[0] == pytest.approx(found[0])


def test_the_optimizer_of_paged_adamw_is_adamw_and_can_be_resumed(load, monkeypatch):
    from bitsandbytes.optim.adamw import PagedAdamW32bit  # on a CPU it has no pages

    from vlprompt.engine import optimizers
    from vlprompt.engine.loop import fit

    make = lambda g, t, d: PagedAdamW32bit(g, t.lr, t.betas, t.eps, t.weight_decay)  # noqa: E731
    monkeypatch.setattr(optimizers, "build_paged_adamw", make)
    lm = load("llama")
    paged, plain = (methods.LoRA(lm, verbalizers.Verbalizer(lm), 4) for _ in range(2))
    assert losses(paged, 8, optimizer="paged_adamw") == pytest.approx(losses(plain, 8), rel=1e-4)
    how = TrainConfig(
        epochs=100, iterations=8, lr=0.01, batch_size=8, optimizer="paged_adamw", warmup=0, schedule="constant"
    )
    half = methods.LoRA(lm, verbalizers.Verbalizer(lm), 4)
    half.begin_lesson(lesson(), torch.Generator().manual_seed(1))
    stopped = next(step.loop.state() for step in fit(half, lesson(), how) if step.step == 4)
    list(fit(half, lesson(), how, resume=stopped))
    assert same(dict(half.state_dict()), dict(paged.state_dict()))


def test_paged_adamw_says_where_it_is_not():
    from vlprompt.engine.optimizers import build_paged_adamw

    with pytest.raises(ValueError, match=r"got cpu\. Set train\.optimizer=adamw"):
        build_paged_adamw([], TrainConfig(optimizer="paged_adamw"), torch.device("cpu"))


# AdaLoRA


def test_adalora_ends_at_its_budget_and_goes_on_where_it_was(load, tmp_path):
    from vlprompt.engine.loop import fit

    about = config("llama", "ADALORA") | {"tinit": 2, "tfinal": 3, "orth_reg_weight": 0.1}
    how = TrainConfig(epochs=6, iterations=12, batch_size=8, lr=0.02, optimizer="adamw", warmup=0)

    def begun():
        lm = load("llama")
        method = methods.Peft(lm, verbalizers.Verbalizer(lm), about)
        method.begin_lesson(lesson(), torch.Generator().manual_seed(1))
        return method

    method = begun()
    steps = list(fit(method, lesson(), how))
    kept = [p for name, p in method.named_parameters() if "lora_E" in name]
    assert sum(int((p != 0).sum()) for p in kept) == 2 * len(kept)
    assert steps[0].terms["orthogonality"] > 0
    half, stopped = begun(), None
    for step in fit(half, lesson(), how):
        if step.step == 6:
            stopped = step.loop.state()
            break
    again = begun()
    list(fit(again, lesson(), how, resume=stopped))
    assert same(dict(again.state_dict()), dict(method.state_dict()))


def test_adalora_is_told_how_long_the_training_is(load):
    lm = load("llama")
    with pytest.raises(ValueError, match=r"expected the 2 steps of this training, got 99. Leave total_step out"):
        trained(methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", "ADALORA") | {"total_step": 99}))
    with pytest.raises(ValueError, match="train longer"):
        trained(methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", "ADALORA") | {"tinit": 5}))


# several on one base, and bad input


def test_two_adapters_live_on_one_base(load):
    lm = load("llama")
    alone = [methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", kind)) for kind in ("LORA", "PISSA", "IA3")]
    for method in alone:
        trained(method, 3)
    wanted = [answer(method) for method in alone]
    both = [methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", kind)) for kind in ("LORA", "PISSA", "IA3")]
    for method in both:
        method.begin_lesson(lesson(), torch.Generator())
    for method, state in zip(both, alone, strict=True):
        method.restore([lesson()], state.state_dict())
    assert all(torch.equal(answer(m), x) for m, x in zip(both, wanted, strict=True))
    assert all(torch.equal(answer(m), x) for m, x in zip(alone, wanted, strict=True))
    assert not torch.equal(wanted[0], wanted[1])


def test_dropout_is_the_adapters_alone(load):
    lm = load("bert")
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config("bert", "DORA") | {"lora_dropout": 0.5})
    method.begin_lesson(lesson(), torch.Generator())
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.1)
    ask = lambda: method(texts(), method.prepare(NAMES, method.precompute(NAMES))).logits  # noqa: E731
    method.train()
    assert not torch.equal(ask(), ask())
    method.eval()
    assert torch.equal(ask(), ask())
    plain = methods.Peft(lm, verbalizers.Verbalizer(lm), config("bert", "LORA"))
    plain.begin_lesson(lesson(), torch.Generator())
    plain.train()
    assert not any(m.training for m in plain.tower.net.modules() if type(m).__name__ == "Dropout")


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"peft_type": "LORA"}, "q_proj"),
        (
            {"peft_type": "LORA", "target_modules": "all-linear"},
            "got 'all-linear', which PEFT would have to guess. Name those that you want .*q_proj",
        ),
        ({"peft_type": "LORA", "target_modules": ["query"]}, r"down_proj \(down\)"),
        ({"peft_type": "LORRA"}, "did you mean 'LORA'"),
        ({}, "peft_type: expected a type of PEFT, got none; the choices are"),
        (
            {"peft_type": "LORA", "target_modules": ["q_proj"], "rank": 3},
            "expected settings of PEFT's LORA, got 'rank'; ",
        ),
        ({"peft_type": "IA3", "target_modules": ["q_proj"]}, "feedforward_modules"),
        (
            {"peft_type": "ADAPTION_PROMPT"},
            "expected a type that runs in a frozen model, got ADAPTION_PROMPT: .*Use another type",
        ),
        (
            {"peft_type": "ADALORA", "target_modules": ["q_proj"], "init_r": 4, "target_r": 4},
            "got init_r=4 and target_r=4. Set a higher init_r",
        ),
        ({"path": "nowhere"}, "'nowhere': expected an adapter, got no adapter_config.json .*Name the folder"),
    ],
)
def test_a_wrong_configuration_is_told(about, told, load):
    lm = load("llama")
    with pytest.raises((ValueError, OSError), match=told):
        methods.Peft(lm, verbalizers.Verbalizer(lm), about).begin_lesson(lesson(), torch.Generator())


def test_an_adapter_of_another_base_is_told(load, folder, tmp_path):
    import json

    lm, other = load("llama"), load("qwen2")
    shaken(OWN["lora"](lm)).eval()
    lm.save_as_peft(shaken(OWN["lora"](lm)).prompt(1), tmp_path, {"weights": lm.key.partition("#")[2]})

    def start(on, **more):
        methods.Peft(on, verbalizers.Verbalizer(on), {"path": str(tmp_path), **more}).begin_lesson(
            lesson(), torch.Generator()
        )

    start(lm)
    with pytest.raises(
        ValueError, match=r"expected an adapter of the backbone .*, got one of .*Name the right one by --backbone"
    ):
        start(other)
    (tmp_path / "vlprompt.json").unlink()  # as one made elsewhere
    with pytest.raises(
        ValueError, match=r"expected an adapter of the backbone .*, got one of .*Name the right one by --backbone"
    ):
        start(other)
    bert = load("bert")
    with pytest.raises(ValueError, match="CAUSAL_LM"):
        start(bert, base_model_name_or_path=str(folder("bert")))
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(about | {"r": 5}))
    with pytest.raises(ValueError, match=r"expected an adapter that fits .*, got other tensors .*Name the model"):
        start(lm)


def test_without_peft_it_says_so(load, monkeypatch):
    import sys

    lm = load("llama")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"vlprompt\[lm\]"):
        methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", "LORA")).begin_lesson(lesson(), torch.Generator())


def test_without_bitsandbytes_it_says_what_instead(folder, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(ValueError, match="hf-bf16"):
        vlprompt.load(f"hf-nf4:{folder('llama')}")


# the command


@pytest.mark.parametrize("reader", ["linear", "verbalizer"])
def test_a_run_is_exported_by_the_command(reader, load, folder, tmp_path, capsys):
    import transformers
    from peft import PeftModel

    from vlprompt.cli.app import main
    from vlprompt.config.build import build_method
    from vlprompt.config.resolve import complete_arguments
    from vlprompt.config.sources import LayeredConfig
    from vlprompt.results.tensor_files import read_tensors

    lm = load("llama")
    given = {"rank": 3, "sites": ["q", "v", "gate"], "head": {"name": reader}}
    about = {"name": "lora", **complete_arguments("method", methods.LoRA, given, LayeredConfig([]))}
    method = build_method(about, lm)
    run(method, task(), TrainConfig(epochs=2, batch_size=8, lr=0.05, optimizer="adamw", warmup=0), tmp_path / "run")

    def command(*words, status=0):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(tmp_path / "run"), *map(str, words)])
        assert ended.value.code == status
        seen = capsys.readouterr()
        return " ".join((seen.out + seen.err).split())

    told = command(tmp_path / "adapter", "--to", "peft")
    model = PeftModel.from_pretrained(plain(folder, "llama"), tmp_path / "adapter").eval()
    mine = ours(lm, method.eval().prompt(1), "llama")
    assert torch.allclose(theirs(model, "llama"), mine, atol=1e-5)
    head = tmp_path / "adapter" / "head.safetensors"
    assert head.exists() == (reader == "linear") == ("head.safetensors" in told)
    if head.exists():
        assert torch.equal(read_tensors(head)[0]["weight"], method.head.state_dict()["weight"])
    command(tmp_path / "whole", "--to", "transformers")
    assert torch.allclose(theirs(reloaded(tmp_path / "whole", "llama"), "llama"), mine, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "whole")("the team")["input_ids"]
    assert "expected a new or empty folder, got" in (
        told := command(tmp_path / "whole", "--to", "transformers", status=2)
    )
    assert "Name another folder." in told
    assert "other weights" in command(tmp_path / "x", "--to", "peft", "--backbone", f"hf:{folder('qwen2')}", status=2)


def test_tokens_inside_the_text_have_no_form_in_peft(load, tmp_path):
    from vlprompt.experiments.export.formats import export_prompt

    lm = load("llama")
    method = methods.PTuning(lm, verbalizers.Verbalizer(lm), 4, "{ctx} {text} {ctx} It was {mask}", hidden_dim=8)
    run(method, task(), TrainConfig(epochs=1, batch_size=8, lr=0.01, warmup=0), tmp_path / "run")
    with pytest.raises(ValueError, match="template: expected soft tokens before the text"):
        export_prompt(tmp_path / "run", tmp_path / "adapter", "peft")
    method = methods.Adapter(lm, verbalizers.Verbalizer(lm))
    run(method, task(), TrainConfig(epochs=1, batch_size=8, lr=0.01, warmup=0), tmp_path / "other")
    with pytest.raises(ValueError, match=r"got .* at .*Export lora, .* a whole model by --to transformers"):
        export_prompt(tmp_path / "other", tmp_path / "adapter", "peft")


def test_a_head_on_the_feature_sees_the_adapter_learn(load):
    from vlprompt.layers.heads import LinearHead

    lm = load("bert")
    lm(texts())  # the frozen features are kept
    method = methods.Peft(lm, LinearHead(), config("bert", "LORA"))
    trained(method, 4)
    ups = [p for name, p in method.named_parameters() if "lora_B" in name]
    assert all(bool(p.any()) for p in ups)
    with torch.no_grad():
        assert not torch.allclose(method.eval().compute_features(texts(), method.tower), lm(texts()), atol=1e-3)


def test_an_adapter_in_the_head_is_read_through(load):
    lm = load("llama")
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), {"peft_type": "LORA", "r": 4, "target_modules": ["lm_head"]})
    assert losses(method)[-1] < 0.9 * losses(method, 1)[0]
    response = methods.Peft(
        lm, verbalizers.ResponseHead(lm), {"peft_type": "LORA", "r": 4, "target_modules": ["lm_head"]}
    )
    one = lesson()
    said = tuple(replace(item, response="great") for item in one.train.items)
    response.begin_lesson(replace(one, train=replace(one.train, items=said)), torch.Generator())
    assert response.head(torch.ones(2, lm.feature_dim), None).requires_grad
    said = response.generate(texts(2), max_new_tokens=3)
    assert len(said) == 2


def test_the_sensitivity_of_adalora_is_of_the_step_just_taken(load):
    lm = load("llama")
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", "ADALORA") | {"tinit": 3})
    losses(method, 8)
    method.begin_lesson(lesson(), torch.Generator())
    for p in method.parameters():
        p.grad = torch.full_like(p, 0.1)
    method.end_step(1, 8)
    name, p = next((name, p) for name, p in method.adapter.adalora_parameters.items() if "lora_A" in name)
    now = (p * p.grad).abs()
    assert torch.allclose(method.adapter.extra_state[f"{name}.mean"], 0.15 * now)
    assert torch.allclose(method.adapter.extra_state[f"{name}.spread"], 0.15 * (now - 0.15 * now))


def test_checkpoints_change_no_gradient(load):
    found = []
    for again in (False, True):
        lm = load("llama")
        lm.activation_checkpointing = again
        method = shaken(methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", "LORA")))
        loss = method(texts(), method.prepare(NAMES, method.precompute(NAMES))).logits.square().sum()
        found.append(torch.autograd.grad(loss, list(method.parameters())))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["ADALORA", "P_TUNING"])
def test_a_run_of_peft_is_taken_up_and_exported(kind, load, folder, tmp_path):
    from peft import PeftModel

    from vlprompt.experiments.export.formats import export_prompt
    from vlprompt.experiments.learned.prompt import load_prompt

    lm = load("llama")
    method = methods.Peft(lm, verbalizers.Verbalizer(lm), config("llama", kind))
    run(method, task(), TrainConfig(epochs=4, batch_size=8, lr=0.05, optimizer="adamw", warmup=0), tmp_path / "run")
    assert torch.equal(answer(load_prompt(tmp_path / "run").method), answer(method))
    export_prompt(tmp_path / "run", tmp_path / "adapter", "peft")
    model = PeftModel.from_pretrained(plain(folder, "llama"), tmp_path / "adapter").eval()
    with torch.no_grad():
        mine = ours(method.tower, method.prompt(1), "llama")
    assert torch.allclose(theirs(model, "llama"), mine, atol=1e-5)


def test_a_model_without_its_head_is_merged_without_it(folder, tmp_path):
    """As sentence encoders are kept: the merged trunk gives the adapter's features, pooled alike, and has no head."""
    import transformers

    net = transformers.AutoModelForMaskedLM.from_pretrained(folder("bert"))
    net.bert.save_pretrained(tmp_path / "trunk")
    transformers.AutoTokenizer.from_pretrained(folder("bert")).save_pretrained(tmp_path / "trunk")
    (tmp_path / "trunk" / "1_Pooling").mkdir()
    (tmp_path / "trunk" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    lm = vlprompt.load(f"hf:{tmp_path / 'trunk'}", "cpu")
    method = methods.LoRA(lm, verbalizers.SentenceHead(lm), rank=4)
    losses(method)
    lm.save_merged(method.prompt(1), tmp_path / "merged")
    again = vlprompt.load(f"hf:{tmp_path / 'merged'}", "cpu")
    method.eval()
    with torch.no_grad():
        assert torch.allclose(again(texts()), lm(texts(), method.prompt(1)), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected a head over the vocabulary .*, got none. Set method.head=linear"):
        again(texts().with_template(), output="mask")
