"""Methods that change a CLIP's weights, or its blocks, against numbers that their authors' own code computed."""

import pytest
import torch
from conftest import golden, golden_cases, images, relative
from written_out import library

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson

KINDS = ("clipsvd", "mma")
MAPS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "out", "c_fc": "up", "c_proj": "down"}


def named(text):
    return text.replace("{}", "{name}")


def clip_svd(clip, h):
    sides = [side for side, key in (("image", "image"), ("text", "text")) if h[f"train_{key}_encoder"]]
    flags = {"q": "q", "k": "k", "v": "v", "out": "o_proj", "up": "mlp", "down": "mlp"}
    sites = [site for site, flag in flags.items() if h[f"train_{flag}"]]
    return m.CLIPSVD(clip, sides, sites, logit_scale=float(h["logit_scale"]), template=named(h["template"]))


def mma(clip, h):
    layers = tuple(range(h["ADAPTER_START"] - 1, h["ADAPTER_END"]))
    return m.MMA(clip, h["ADAPTER_DIM"], layers, h["ADAPTER_SCALE"], h["TEXT_CTX_INIT"] + " {name}.")


MAKE = {"clipsvd": clip_svd, "mma": mma}


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`."""
    parts = theirs.split(".")
    if "adapter_learner" in parts:
        tower, index = {"visual": "image", "text": "text"}.get(parts[1].split("_")[0]), int(parts[2]) - 1
        maps = method.shared if tower is None else getattr(method, parts[3])[tower]
        return getattr(maps[method.tower_layers["image"].index(index)], parts[-1])
    tower = "image" if parts[0] == "visual" else "text"
    layer = parts[parts.index("resblocks") + 1]
    return method.adapters[tower][f"{layer}/{MAPS[parts[-2]]}"].values


def begun(case, clip):
    told, arrays = golden(case)
    names = tuple(told["classnames"])
    method = MAKE[case.partition("-")[0]](clip, told["hyperparameters"])
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    parts = {k.removeprefix("param."): ours(method, k.removeprefix("param.")) for k in arrays if k.startswith("param.")}
    assert {id(p) for p in parts.values()} == {id(p) for p in method.parameters()}
    return method, parts, Batch(images(arrays["images"], case), arrays["labels"], names), arrays, told


def answer(method, batch):
    with torch.no_grad():
        return method.eval()(batch.inputs, method.prepare(batch.names, method.precompute(batch.names)))


def step(method, batch):
    """The loss and the answer, with the gradients that the training loop makes."""
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    parameters = list(method.parameters())
    grads = {
        name: list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
        for name, (value, _) in terms.items()
    }
    for p, g in zip(parameters, method.merge_gradients(grads), strict=True):
        p.grad = g
    return sum(value for value, _ in terms.values()), out


def compare_step(method, parts, batch, arrays, told):
    """The errors of a step that begins with the authors' values."""
    with torch.no_grad():
        for name, p in parts.items():
            p.copy_(arrays[f"param.{name}"])
    loss, out = step(method, batch)
    errors = {"loss": relative(loss, arrays["loss"]), "logits": relative(out.logits, arrays["logits"])}
    errors["image"] = relative(out.image_features, arrays["image_features_raw"])
    is_unit = out.text_features.norm(dim=1).allclose(torch.ones(()))  # frozen texts
    texts = arrays["text_features_raw"]
    errors["text"] = relative(out.text_features, method.clip.unit(texts) if is_unit else texts)
    errors |= {f"grad {name}": relative(p.grad, arrays[f"grad.{name}"]) for name, p in parts.items()}
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in parts.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    return errors


def hold(case, errors):
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases(*KINDS))
def test_the_authors_numbers(authors_clip, case):
    method, parts, batch, arrays, told = begun(case, authors_clip)
    errors = {f"start {name}": relative(p, arrays[f"param.{name}"]) for name, p in parts.items() if "svd" in case}
    hold(case, errors | compare_step(method, parts, batch, arrays, told))


def begin(method, names=("cat", "dog"), index=0):
    method.begin_lesson(Lesson(Split((), (), names), index=index), torch.Generator().manual_seed(0))
    return method


# --- CLIP-SVD ---


def test_trained_singular_values_merge_exactly(authors_clip):
    method, _, batch, _, _ = begun("clipsvd-both", authors_clip)
    with torch.no_grad():
        for p in method.parameters():
            p *= 1 + 0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(0))
    out, merged = answer(method, batch), method.merge_backbone()
    found = merged.image(batch.inputs), merged.text(method.precompute(batch.names)[0])[0]
    assert torch.equal(out.image_features, found[0])
    assert relative(out.text_features, found[1]) < 1e-6
    assert relative(found[0], authors_clip.image(batch.inputs)) > 1e-2


def test_the_state_has_the_singular_values_alone(tiny):
    method = begin(m.CLIPSVD(tiny))
    assert sum(t.numel() for t in method.state_dict().values()) == sum(p.numel() for p in method.parameters())
    saved = {key: value * 1.1 for key, value in method.state_dict().items()}
    fresh = m.CLIPSVD(tiny)
    fresh.restore([Lesson(Split((), (), ("cat", "dog")))], saved)
    part, again = method.adapters["image"]["0/q"], fresh.adapters["image"]["0/q"]
    torch.testing.assert_close(again.merge(part.u * 0, None)[0], part.u * (0.1 * part.start) @ part.vh)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.MMA(clip, 0), r"method.bottleneck_dim: expected at least 1, got 0"),
        (lambda clip: m.MMA(clip, scale=0.0), r"method.scale: expected a value above 0, got 0.0"),
        (lambda clip: m.MMA(clip, layers=(3,)), r"method.layers: expected layers 0 to 2 of the tower, got \[3\]"),
        (lambda clip: m.MMA(clip, layers=0), r"method.layers: expected at least 1, got 0"),
        (lambda clip: m.CLIPSVD(clip, sites=("norm1",)), r"method.sites: expected linear maps .*, got 'norm1'"),
        (lambda clip: m.CLIPSVD(clip, sites=()), r"method.sites: expected one linear map at least, got none"),
        (
            lambda clip: m.CLIPSVD(clip, layers=(7,)),
            r"method.layers: expected layers 0 to 2 of the image tower, got \[7\]",
        ),
    ],
)
def test_settings_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))


# --- MMA ---


def test_the_last_blocks_of_towers_of_different_depths():
    model, tokenizer = library({"vision_cfg": {"layers": 4}, "text_cfg": {"layers": 2}})
    method = begin(m.MMA(wrap_clip(model, tokenizer, "x"), 8, 3))
    assert {name: list(layers) for name, layers in method.tower_layers.items()} == {"text": [0, 1], "image": [2, 3]}
    assert method.clipped_settings == {"layers": "clipped from 3 to 2 (the tower has 2 layers)"}


def test_a_bottleneck_as_wide_as_a_tower(tiny):
    """It breaks in the authors' code."""
    method = begin(m.MMA(tiny, tiny.text.dim, 1))
    batch = Batch(images(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]), ("cat", "dog"))
    loss, _ = step(method, batch)
    assert loss.isfinite()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
