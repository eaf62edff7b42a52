"""Prompt methods of 2024 to 2026 against numbers that their authors' own code computed: values, gradients, a step."""

import pytest
import torch
from shared import golden, golden_cases, images, relative
from written_out import library

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson

KINDS = ("tcp", "mmrl", "mmrlpp")


def named(text):
    return text.replace("{}", "{name}")


def tcp(clip, h):
    words = h["template"].split()
    template = " ".join(["{ctx}", *words[h["N_CTX"] :]])
    return m.TCP(clip, h["N_CTX"], h["insert_layer"], h["kg_weight"], 4, named(template), named(h["template_frozen"]))


def shared_settings(h):
    layers = tuple(i - 1 for i in h["REP_LAYERS"])
    return h["N_REP_TOKENS"], h["REP_DIM"], layers, h["ALPHA"], h["REG_WEIGHT"]


def mmrl(clip, h):
    return m.MMRL(clip, *shared_settings(h), named(h["template"]), 100.0)


def mmrlpp(clip, h):
    ranks = h["RES_LORA_DIM"], h["PROJ_LORA_DIM"]
    return m.MMRLpp(clip, *shared_settings(h), h["BETA"], *ranks, named(h["template"]), 100.0)


MAKE = {"tcp": tcp, "mmrl": mmrl, "mmrlpp": mmrlpp}


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`, or the row of it."""
    parts = theirs.split(".")
    if parts[0] == "prompt_learner":
        return (
            method.ctx
            if parts[1] == "ctx"
            else getattr({"linear1": method.down, "linear2": method.up}[parts[2]], parts[3])
        )
    if parts[0] == "image_encoder":
        return {"proj_rep": "projection", "A": "projection_down", "B": "projection_up"}[parts[1]]
    if parts[1] == "compound_rep_tokens":
        return method.vectors
    tower = "image" if "r2v" in parts[1] else "text"
    if "srra" not in parts[1]:
        return getattr(method.maps[tower][int(parts[2])], parts[3])
    if parts[2] == "weight":
        return method.shared[tower]
    return {"A": method.downs, "B": method.ups, "bias": method.biases}[parts[4]][tower], int(parts[3])


def resolve(method, theirs):
    """A parameter of ours, and which row of it is meant (None: all)."""
    found = ours(method, theirs)
    found = getattr(method, found) if isinstance(found, str) else found
    return found if isinstance(found, tuple) else (found, None)


def part_of(tensor, row):
    return tensor if row is None else tensor[row]


def begun(case, clip):
    told, arrays = golden(case)
    names = tuple(told["classnames"])
    method = MAKE[case.partition("-")[0]](clip, told["hyperparameters"])
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    theirs = [key.removeprefix("param.") for key in arrays if key.startswith("param.")]
    parts = {name: resolve(method, name) for name in theirs}
    with torch.no_grad():
        for name, (parameter, row) in parts.items():
            part_of(parameter, row).copy_(arrays[f"param.{name}"])
    assert {id(p) for p, _ in parts.values()} == {id(p) for p in method.parameters()}
    assert sum(arrays[f"param.{name}"].numel() for name in theirs) == sum(p.numel() for p in method.parameters())
    return method, parts, Batch(images(arrays["images"], case), arrays["labels"], names), arrays, told


def answer(method, batch):
    with torch.no_grad():
        return method.eval()(batch.inputs, method.prepare(batch.names, method.precompute(batch.names)))


def renamed(method, batch):
    """The same images for classes of the same names that were not trained on."""
    method.class_ids = ()
    return answer(method, batch)


TERMS = {"ce": "loss_ce", "ce_tokens": "loss_ce_rep", "image": "loss_image", "text": "loss_text", "near": "loss_kg"}


def term_weights(case, h):
    if case.startswith("tcp"):
        return {"ce": 1.0, "near": h["kg_weight"]}
    alpha, weight = h["ALPHA"], h["REG_WEIGHT"]
    return {"ce": alpha, "ce_tokens": 1 - alpha, "image": weight, "text": weight}


@pytest.mark.parametrize("case", golden_cases(*KINDS))
def test_the_authors_numbers(authors_clip, case):
    method, parts, batch, arrays, told = begun(case, authors_clip)
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    loss = sum(value for value, _ in terms.values())
    loss.backward()
    fused = "logits_fusion" if "logits_fusion" in arrays else "logits"
    errors = {"loss": relative(loss, arrays["loss"]), "logits": relative(out.logits, arrays[fused])}
    for name, weight in term_weights(case, told["hyperparameters"]).items():
        errors[name] = relative(terms[name][0] / weight, arrays[TERMS[name]])
    assert terms.keys() == term_weights(case, told["hyperparameters"]).keys()
    errors["text"] = relative(out.text_features, arrays["text_features_raw"])
    errors["image"] = relative(out.image_features, arrays["image_features_raw"])
    for name, (p, row) in parts.items():
        errors[f"grad {name}"] = relative(part_of(p.grad, row), arrays[f"grad.{name}"])
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(part_of(p, row), arrays[f"after.{name}"]) for name, (p, row) in parts.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays[f"{fused}_after"])
    if fused != "logits":
        errors["new classes"] = relative(renamed(method, batch).logits, arrays["logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases("mmrl", "mmrlpp"))
def test_each_class_gets_the_answer_that_it_is_trained_for(authors_clip, case):
    """Of a list of old and new classes too."""
    method, _, batch, arrays, _ = begun(case, authors_clip)
    method.class_ids = method.class_ids[:2]
    found = answer(method, batch).logits
    assert relative(found[:, :2], arrays["logits_fusion"][:, :2]) < 1e-4
    assert relative(found[:, 2:], arrays["logits"][:, 2:]) < 1e-4


# --- bad input, and towers of other shapes ---


def begin(method, names=("cat", "dog"), index=0):
    method.begin_lesson(Lesson(Split((), (), names), index=index), torch.Generator().manual_seed(0))
    return method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.MMRL(clip, alpha=1.5), r"method.alpha: expected at most 1, got 1.5"),
        (lambda clip: m.MMRL(clip, n_tokens=0), r"method.n_tokens: expected at least 1, got 0"),
        (lambda clip: m.MMRL(clip, layers=()), r"method.layers: expected layers 0 to 2 of the tower, got \[\]"),
        (lambda clip: m.MMRL(clip, layers=(5, 6)), r"method.layers: expected layers 0 to 2 of the tower, got \[5, 6\]"),
        (lambda clip: m.MMRL(clip, layers=0), r"method.layers: expected at least 1, got 0"),
        (lambda clip: m.MMRLpp(clip, beta=-0.1), r"method.beta: expected at least 0, got -0.1"),
        (lambda clip: m.MMRLpp(clip, beta=1.1), r"method.beta: expected at most 1, got 1.1"),
        (lambda clip: m.MMRLpp(clip, rank=0), r"method.rank: expected at least 1, got 0"),
        (lambda clip: m.TCP(clip, n_ctx=0), r"method.n_ctx: expected at least 1 prompt token, got 0"),
        (lambda clip: m.TCP(clip, depth=0), r"method.depth: expected at least 1, got 0"),
        (lambda clip: m.TCP(clip, reduction=0), r"method.reduction: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))


def test_layers_are_clipped_and_the_result_says_so(tiny):
    method = begin(m.TCP(tiny, depth=8))
    assert method.layer == 2
    assert method.clipped_settings == {"depth": "clipped from 8 to 2 (the tower has 3 layers)"}
    method = begin(m.MMRL(tiny, layers=7))
    assert [list(layers) for layers in method.tower_layers.values()] == [[0, 1, 2], [0, 1, 2]]
    assert method.clipped_settings == {"layers": "clipped from 7 to 3 (the tower has 3 layers)"}
    method = begin(m.MMRL(tiny, layers=(2, 1, 1, 9)))
    assert list(method.tower_layers["text"]) == [1, 2]


def test_the_last_layers_of_towers_of_different_depths():
    model, tokenizer = library({"vision_cfg": {"layers": 4}, "text_cfg": {"layers": 2}})
    method = begin(m.MMRLpp(wrap_clip(model, tokenizer, "x"), layers=2))
    assert [list(layers) for layers in method.tower_layers.values()] == [[0, 1], [2, 3]]
    batch = Batch(images(torch.randn(3, 3, 32, 32)), torch.tensor([0, 1, 1]), ("cat", "dog"))
    terms, _ = method.loss_terms(batch, method.precompute(batch.names))
    sum(value for value, _ in terms.values()).backward()
    assert all(p.grad is not None for p in method.parameters())


def test_a_tower_that_pools_all_tokens_has_no_projection_of_single_rows():
    model, tokenizer = library({"vision_cfg": {"pool_type": "avg"}})
    clip = wrap_clip(model, tokenizer, "open_clip:avg/x")
    begin(m.MMRL(clip, layers=2))
    with pytest.raises(ValueError, match="open_clip:avg/x: expected features that are read from the class token alone"):
        begin(m.MMRLpp(clip, layers=2))


@pytest.mark.parametrize("make", [m.MMRL, m.MMRLpp])
def test_opaque_towers_are_refused_before_the_training(make):
    model, tokenizer = library({"vision_cfg": {"qk_norm": True}})
    with pytest.raises(ValueError, match="expected a block-wise tower"):
        begin(make(wrap_clip(model, tokenizer, "x"), layers=2))


def test_classes_of_later_lessons_are_known_too(tiny):
    method = begin(m.MMRL(tiny, layers=2))
    begin(method, ("fox",), 1)
    assert method.precompute(("ox", "fox", "cat"))[2].tolist() == [False, True, True]
    begin(method, ("ox",))
    assert method.precompute(("ox", "fox", "cat"))[2].tolist() == [True, False, False]
