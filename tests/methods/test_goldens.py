"""vlprompt against numbers that the authors' own code computed (tests/golden): values, gradients, and a step of SGD."""

import math

import pytest
import torch
from shared import GOLDEN, golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import load_templates

CTX = "prompt_learner.ctx"
TEXTS = {"end": "{ctx} {name}.", "middle": "{ctx} {name} {ctx}.", "front": "{name} {ctx}."}


def hand_written(text):
    return text.replace("{}", "{name}")


def coop(clip, h, told):
    text = TEXTS[h.get("CLASS_TOKEN_POSITION", "end")]
    return m.CoOp(
        clip,
        h.get("n_ctx_effective", h.get("N_CTX")),
        context_template=text,
        class_specific=bool(h.get("CSC")) and not h.get("CTX_INIT"),
    )


def maple(clip, h, told):
    fixed = h["CTX_INIT"].split()[h["N_CTX"] :]
    return m.MaPLe(clip, h["N_CTX"], h["PROMPT_DEPTH"], None, " ".join(["{ctx}", *fixed, "{name}."]))


def promptsrc(clip, h, told):
    inner = m.IVLP(clip, h["N_CTX_TEXT"], h["N_CTX_VISION"], h["PROMPT_DEPTH_TEXT"], h["PROMPT_DEPTH_VISION"], None)
    return m.PromptSRC(inner, h["TEXT_LOSS_WEIGHT"], h["IMAGE_LOSS_WEIGHT"], h["GPA_MEAN"], h["GPA_STD"])


def clip_lora(clip, h, told):
    sides = ("image", "text") if h["encoder"] == "both" else ("image",)
    sites = tuple("out" if p == "o" else p for p in h["params"])
    return m.CLIPLoRA(clip, sides, sites, rank=h["r"], alpha=h["alpha"], dropout=0.0, logit_scale=100.0)


MAKE = {
    "coop": coop,
    "cocoop": lambda clip, h, told: m.CoCoOp(clip, h["n_ctx_effective"]),
    "kgcoop": lambda clip, h, told: m.KgCoOp(coop(clip, h, told), h["W"], hand_written(h["template"])),
    "prograd": lambda clip, h, told: m.ProGrad(coop(clip, h, told), h["LAMBDA"], h["T"], hand_written(h["template"])),
    "maple": maple,
    "promptsrc": promptsrc,
    "clipadapter": lambda clip, h, told: m.CLIPAdapter(clip, h["ratio"], h["reduction"], hand_written(h["template"])),
    "cliplora": clip_lora,
}


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`."""
    inner = getattr(method, "method", method)
    parts = theirs.split(".")
    if theirs == CTX:
        return inner.ctx if isinstance(inner.ctx, torch.Tensor) else inner.ctx[0]
    if "meta_net" in parts:
        return getattr(method.meta[{"linear1": 0, "linear2": 2}[parts[2]]], parts[3])
    if parts[0] == "adapter":
        return method.net[int(parts[2])].weight
    if theirs.endswith(("w_lora_A", "w_lora_B")):
        layer, site = parts[parts.index("resblocks") + 1], parts[-2]
        site = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "out"}[site]
        part = method.adapters["image" if parts[0] == "visual" else "text"][f"{layer}/{site}"]
        return part.down if theirs.endswith("A") else part.up
    if "compound_prompts_text" in parts:
        return method.ctx[int(parts[-1]) + 1]
    if "proj" in parts:
        return getattr(method.projections[0], parts[-1])
    if "compound_prompt_projections" in parts:
        return getattr(method.projections[int(parts[2]) + 1], parts[-1])
    if theirs == "image_encoder.VPT":
        return inner.image_tokens[0]
    if parts[-1] == "VPT_shallow":
        return (inner.image_tokens if parts[0] == "image_encoder" else inner.ctx)[
            int(parts[parts.index("resblocks") + 1])
        ]
    raise KeyError(theirs)


def begun(case, clip, make=None, find=None):
    """The method of a golden vector with the authors' initial values in it, its parameters by their names, a batch.

    make, find: what builds a method by its kind, and finds a parameter by the authors' name; by default those below.
    """
    make, find = make or MAKE, find or ours
    told, arrays = golden(case)
    names = tuple(told["classnames"])
    method = make[case.partition("-")[0]](clip, told["hyperparameters"], told)
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    pairs = {k.removeprefix("param."): find(method, k.removeprefix("param.")) for k in arrays if k.startswith("param.")}
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(arrays[f"param.{name}"])
    assert {id(p) for p in pairs.values()} == {id(p) for p in method.parameters()}
    return method, pairs, Batch(images(arrays["images"], case), arrays["labels"], names), arrays, told


def answer(method, batch):
    return method.eval()(batch.inputs, method.prepare(batch.names, method.precompute(batch.names)))


def merged(method, batch):
    """Terms, the answer, and the gradient as the training loop makes it."""
    found, out = method.train().loss_terms(batch, method.precompute(batch.names))
    parameters = list(method.parameters())
    grads = {
        name: list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))
        for name, (value, _) in found.items()
    }
    for p, g in zip(parameters, method.merge_gradients(grads), strict=True):
        p.grad = g
    return {name: float(value.detach()) for name, (value, _) in found.items()}, out


AVERAGED = golden_cases("promptsrc", suits=lambda told: "MAX_EPOCH" in told["hyperparameters"])
CASES = golden_cases(*MAKE, suits=lambda told: "MAX_EPOCH" not in told["hyperparameters"])
KINDS = {*MAKE, "tipadapter", "clip", "vit", "dapl", "vpt", "ssf", "l2p", "dualprompt", "coda", "codarepo"}
KINDS |= {"zero", "mta", "ctpt", "tps", "tda"}  # of test_goldens_test_time.py
KINDS |= {"locoop", "metrics"}  # of test_unknown_scores.py and test_calibration.py
KINDS |= {"nlprompt", "decoop"}  # of test_goldens_openset.py
KINDS |= {"ape", "gda", "lpplus", "proker"}  # of test_goldens_heads.py
KINDS |= {"tcp", "mmrl", "mmrlpp"}  # of test_goldens_prompts.py
KINDS |= {"dept", "atprompt", "coprompt"}  # of test_goldens_plug.py
KINDS |= {"ease", "mos", "tuna"}  # of test_goldens_adapters.py
KINDS |= {"rapf", "proof", "engine"}  # of test_goldens_clip_streams.py
KINDS |= {"clipsvd", "mma", "twostage"}  # of test_goldens_weights.py
KINDS |= {"descriptions"}  # of test_goldens_descriptions.py
KINDS |= {"promptkd"}  # of test_goldens_teacher.py
KINDS |= {"plot", "plotpp"}  # of test_goldens_plot.py
KINDS |= {"dualcoop", "taidpt"}  # of test_goldens_labels.py and test_attention_pool.py
KINDS |= {"sdlora", "inflora", "lae", "hideprompt"}  # of test_goldens_lowrank.py
KINDS |= {"simplecil", "aper", "fecam", "slca", "slcapp"}  # of test_goldens_prototypes.py
KINDS |= {"pda", "promptstyler", "damp"}  # of test_goldens_domains.py


def test_no_vector_is_left_out():
    """Each is of a kind that a test takes from the folder, which the environment variable VLPROMPT_GOLDEN names."""
    names = {path.stem for path in GOLDEN.glob("*.npz")}
    assert {name.partition("-")[0] for name in names} <= KINDS
    assert {name for name in names if name.partition("-")[0] in MAKE} == {*CASES, *AVERAGED}


@pytest.mark.parametrize("case", CASES)
def test_the_authors_numbers(authors_clip, case):
    method, pairs, batch, arrays, told = begun(case, authors_clip)
    terms, out = merged(method, batch)
    projected = "grad_projected" in arrays
    loss = torch.tensor(terms["ce"] if projected else sum(terms.values()))
    errors = {
        "loss": relative(loss, arrays["loss_ce" if projected else "loss"]),
        "logits": relative(out.logits, arrays["logits"]),
    }
    for key, value in (("text_features_raw", out.text_features), ("image_features_raw", out.image_features)):
        if key in arrays and not (key[0] == "i" and "adapter_out" in arrays):
            errors[key] = relative(value, arrays[key])
    for name, p in pairs.items():
        errors[f"grad {name}"] = relative(p.grad, arrays["grad_projected" if projected else f"grad.{name}"])
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in pairs.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases("prograd"))
def test_the_projection_of_prograd_depends_on_the_angle(authors_clip, case):
    method, pairs, batch, arrays, _ = begun(case, authors_clip)
    terms, _ = merged(method, batch)
    opposed = case == "prograd-conflict"
    assert (float(arrays["cosine"]) < 0) == opposed
    assert relative(torch.tensor(terms["kl"]), arrays["loss_kl"]) < 1e-4
    free = m.ProGrad(method.method, 0.0, method.temperature, method.template)
    merged(free, batch)
    unprojected = pairs[CTX].grad.clone()
    merged(method, batch)
    assert torch.allclose(pairs[CTX].grad, unprojected) != opposed


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("promptsrc")])
def test_the_terms_of_promptsrc(authors_clip, case):
    method, _, batch, arrays, told = begun(case, authors_clip)
    assert {hand_written(t) for t in told["templates"]} == set(load_templates("imagenet-60"))
    terms, _ = merged(method, batch)
    theirs = {k: float(v) for k, v in arrays.items() if k.startswith("loss") and v.ndim == 0}
    for value in terms.values():
        assert any(math.isclose(value, other, rel_tol=1e-4) for other in theirs.values()), (terms, theirs)


@pytest.mark.parametrize("case", AVERAGED)
def test_the_averaging_of_promptsrc(authors_clip, case):
    method, pairs, batch, arrays, told = begun(case, authors_clip)
    for epoch in range(told["hyperparameters"]["MAX_EPOCH"]):
        terms, _ = merged(method, batch)
        assert math.isclose(sum(terms.values()), float(arrays["losses"][epoch]), rel_tol=1e-4)
        torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
        for name, p in pairs.items():
            assert relative(p, arrays[f"epoch{epoch + 1}.{name}"]) < 1e-4
        method.end_epoch(epoch, told["hyperparameters"]["MAX_EPOCH"])
    for name, p in pairs.items():
        assert relative(p, arrays[f"gpa.{name}"]) < 1e-4
    assert relative(answer(method, batch).logits, arrays["logits_gpa"]) < 1e-4


def test_tip_adapter(authors_clip):
    from vlprompt.core.images import ImageItem

    told, arrays = golden("tipadapter")
    h, names = told["hyperparameters"], tuple(ClassName(n) for n in told["classnames"])
    views = [arrays[f"cache_images_view{k}"] for k in range(1, h["augment_epoch"] + 1)]
    counts = {}

    def item(i):  # its views in turn
        def pixels(look, view):
            counts[i] = counts.get(i, -1) + 1
            return views[counts[i]][i]

        return ImageItem(f"tip/{i}", pixels)

    labels = tuple(arrays["cache_labels"].tolist())
    train = Split(tuple(item(i) for i in range(len(labels))), labels, names, augment="crop")
    method = m.TipAdapter(
        authors_clip,
        h["alpha"],
        h["beta"],
        True,
        h["augment_epoch"],
        None,
        100.0,
        [hand_written(t) for t in h["templates"]],
    )
    method.begin_lesson(Lesson(train), torch.Generator().manual_seed(0))
    assert relative(method.keys, arrays["cache_keys"].T) < 1e-4
    text, values = method.precompute(names)
    assert torch.equal(values, arrays["cache_values"])
    assert relative(authors_clip.unit(text), arrays["clip_weights"].T) < 1e-4
    test = Batch(images(arrays["images"], "tip test"), arrays["labels"], names)
    assert relative(answer(method, test).logits, arrays["logits_tip"]) < 1e-4
    n = len(arrays["train_logits"])  # the first images of the cache, with the labels 0 to n - 1
    batch = Batch(images(views[0][:n], "tip train"), torch.arange(n), names)
    terms, out = merged(method, batch)
    assert relative(out.logits, arrays["train_logits"]) < 1e-4
    assert math.isclose(terms["ce"], float(arrays["loss"]), rel_tol=1e-4)
    assert relative(method.keys.grad, arrays["grad.cache_keys_T"]) < 1e-4
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    assert relative(method.keys, arrays["after.cache_keys_T"]) < 1e-4
    assert relative(answer(method, test).logits, arrays["logits_tipF_after"]) < 1e-4


def test_initial_words_are_the_authors(authors_clip):
    told, arrays = golden("coop-ctxinit")
    method = m.CoOp(authors_clip, init_text=told["hyperparameters"]["CTX_INIT"])
    method.begin_lesson(Lesson(Split((), (), tuple(told["classnames"]))), torch.Generator())
    assert torch.equal(method.ctx.detach(), arrays[f"param.{CTX}"])


def test_zero_shot(authors_clip):
    told, arrays = golden("clip-zeroshot")
    names = tuple(told["classnames"])
    batch = Batch(images(arrays["images"], "zero"), torch.zeros(len(arrays["images"])).long(), names)
    out = answer(m.ZeroShot(authors_clip, hand_written(told["template"])), batch)
    text = authors_clip.text([told["template"].format(n.replace("_", " ")) for n in names])[0]
    assert relative(text, arrays["text_features_raw"]) < 1e-4
    assert relative(out.image_features, arrays["image_features_raw"]) < 1e-4
    assert relative(out.logits, arrays["logits"]) < 1e-4
