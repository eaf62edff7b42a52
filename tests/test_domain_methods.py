"""Methods that learn from a target's images without labels: the authors' numbers, naive twins, odd batches."""

import pytest
import torch
from conftest import golden, images, relative

from vlprompt import methods as m
from vlprompt.stage import Batch, Lesson, Split, generator

NONE = torch.empty(0, dtype=torch.long)
DAPL = {"prompt_learner.ctx": "ctx", "prompt_learner.domain_vectors": "domain"}


def beside(pixels, names, tag):
    return Batch(images(pixels, tag), NONE, names)


def total(method, batch, fixed):
    return sum(value for value, _ in method.train().terms(batch, fixed)[0].values())


def gradient(method, batch, fixed=None):
    """As the training loop makes it: sums over the rows of each term, divided by them."""
    fixed = method.fixed(batch.names) if fixed is None else fixed
    parameters = [p for p in method.parameters() if p.requires_grad]
    found = {}
    for name, (value, _) in method.train().terms(batch, fixed)[0].items():
        found[name] = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
    return [sum(parts) for parts in zip(*found.values(), strict=True)]


def dapl(clip, case):
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    method = m.DAPL(
        clip, h["N_CTX"], h["N_DMX"], h["U"], h["TAU"], h["T"], h["CSC"], text="{ctx} {name} , a {domain} image.."
    )
    domains = (*h["source_domains"], *h["target_domains"])
    method.begin(Lesson(Split((), (), names), domains=domains), generator(0))
    with torch.no_grad():
        for theirs, ours in DAPL.items():
            getattr(method, ours).copy_(arrays[f"param.{theirs}"])
    source, target = images(arrays["images_x"], f"{case} x"), beside(arrays["images_u"], names, f"{case} u")
    return method, Batch(source, arrays["labels_x"], names, unlabelled=target), arrays


def blocks(method, inputs, fixed):
    """Logits by the source's texts, by the target's and by the frozen ones, side by side as the authors have them."""
    texts = [method.encoded(0, fixed), method.encoded(1, fixed), fixed.plain]
    return method.clip.logits(method.clip.image(inputs), torch.cat(texts)), torch.cat(texts)


@pytest.mark.parametrize("case", ["dapl-csc", "dapl-unified"])
def test_the_authors_dapl(golden_clip, case):
    method, batch, arrays = dapl(golden_clip, case)
    fixed, target = method.fixed(batch.names), batch.unlabelled.inputs
    terms, out = method.train().terms(batch, fixed)
    sum(value for value, _ in terms.values()).backward()
    p, sure = method.guess(target, fixed)
    assert torch.equal(sure.float(), arrays["mask"])
    assert 0 < sure.sum() < len(sure)
    assert torch.equal(p.argmax(1), arrays["pseudo_label"])
    assert terms["target"][1] == float(sure.sum())
    logits, texts = blocks(method, batch.inputs, fixed)
    classes = len(batch.names)
    errors = {
        "text": relative(texts, arrays["text_features_raw"]),
        "image": relative(out.image, arrays["image_features_raw"]),
        "source": relative(out.logits, arrays["logits_x_all"][:, :classes]),
        "logits_x": relative(logits, arrays["logits_x_all"]),
        "logits_u": relative(blocks(method, target, fixed)[0], arrays["logits_u_all"]),
        "sure": relative(p.max(1).values, arrays["pseudo_prob_max"]),
        "loss_x": relative(terms["ce"][0], arrays["loss_x"]),
        "loss_u": relative(terms["target"][0], arrays["loss_u"] * method.weight),
        "loss": relative(terms["ce"][0] + terms["target"][0], arrays["loss"]),
    }
    errors |= {f"grad {k}": relative(getattr(method, v).grad, arrays[f"grad.{k}"]) for k, v in DAPL.items()}
    torch.optim.SGD(method.parameters(), 0.1).step()
    errors |= {f"after {k}": relative(getattr(method, v), arrays[f"after.{k}"]) for k, v in DAPL.items()}
    for name, inputs in (("x", batch.inputs), ("u", target)):
        errors[f"{name} after"] = relative(blocks(method, inputs, fixed)[0], arrays[f"logits_{name}_all_after"])
    answer = method.eval()(target, method.prepare(batch.names, fixed)).logits
    errors["eval"] = relative(answer, arrays["logits_eval_target"])
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}
