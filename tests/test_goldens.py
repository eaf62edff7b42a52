"""vlprompt against numbers that the authors' own code computed (tests/golden): values, gradients, and a step of SGD."""

import pytest
import torch
from conftest import golden, images, relative

from vlprompt.methods import CoCoOp, CoOp, ZeroShot
from vlprompt.stage import Batch, Lesson, Split

TEXTS = {"end": "{ctx} {name}.", "middle": "{ctx} {name} {ctx}.", "front": "{name} {ctx}."}
META = {"linear1": 0, "linear2": 2}


def placed(method, told, arrays):
    """The method with the authors' initial values in it, and {their name: our parameter}."""
    names = tuple(told["classnames"])
    method.begin(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    ours = {"prompt_learner.ctx": method.ctx}
    if hasattr(method, "meta"):
        for theirs, i in META.items():
            ours |= {f"prompt_learner.meta_net.{theirs}.{k}": getattr(method.meta[i], k) for k in ("weight", "bias")}
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(arrays[f"param.{name}"])
    return method, ours


def answer(method, batch):
    return method(batch.inputs, method.prepare(batch.names, method.fixed(batch.names)))


@pytest.mark.parametrize(
    "case",
    [
        "coop-end",
        "coop-middle",
        "coop-front",
        "coop-csc-end",
        "coop-csc-middle",
        "coop-ctxinit",
        "cocoop-random",
        "cocoop-ctxinit",
    ],
)
def test_the_authors_numbers(golden_clip, case):
    told, arrays = golden(case)
    h = told["hyperparameters"]
    if case.startswith("coop"):
        text = TEXTS[h.get("CLASS_TOKEN_POSITION", "end")]
        method = CoOp(golden_clip, h["n_ctx_effective"], text=text, own=h.get("CSC", False) and not h.get("CTX_INIT"))
    else:
        method = CoCoOp(golden_clip, h["n_ctx_effective"])
    method, ours = placed(method, told, arrays)
    batch = Batch(images(arrays["images"], case), arrays["labels"], tuple(told["classnames"]))
    terms, out = method.terms(batch, method.fixed(batch.names))
    loss = sum(value for value, _ in terms.values())
    loss.backward()
    errors = {
        "loss": relative(loss, arrays["loss"]),
        "logits": relative(out.logits, arrays["logits"]),
        "text": relative(out.text, arrays["text_features_raw"]),
        "image": relative(out.image, arrays["image_features_raw"]),
    }
    errors |= {f"grad {name}": relative(p.grad, arrays[f"grad.{name}"]) for name, p in ours.items()}
    torch.optim.SGD(method.parameters(), 0.1).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in ours.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    assert max(errors.values()) < 1e-4, errors


def test_initial_words_are_the_authors(golden_clip):
    told, arrays = golden("coop-ctxinit")
    method = CoOp(golden_clip, init="a photo of a")
    method.begin(Lesson(Split((), (), tuple(told["classnames"]))), torch.Generator())
    assert torch.equal(method.ctx.detach(), arrays["param.prompt_learner.ctx"])


def test_zero_shot(golden_clip):
    told, arrays = golden("clip-zeroshot")
    names = tuple(told["classnames"])
    batch = Batch(images(arrays["images"], "zero"), torch.zeros(4).long(), names)
    out = answer(ZeroShot(golden_clip), batch)
    text = golden_clip.text([f"a photo of a {n.replace('_', ' ')}." for n in names])[0]
    assert relative(text, arrays["text_features_raw"]) < 1e-4
    assert relative(out.image, arrays["image_features_raw"]) < 1e-4
    assert relative(out.logits, arrays["logits"]) < 1e-4
