"""The frozen maps of a tower, read by their sites and with other weights in their place, against the library's own."""

import pytest
import torch
from random_twins import PLAIN, shaken, walked
from shared import images
from timm.models.vision_transformer import VisionTransformer
from written_out import library, near

from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.prompt import Prompt
from vlprompt.layers.weight_merging import replace_weights

WORDS = ["a photo of a cat.", "golden retriever", "a photo of the U.S. flag, in colour"]
# our site -> the library's map; of q, k and v the rows of the joint one
SITES = {
    "1/norm1": "ln_1",
    "0/q": "attn.in_proj_",
    "1/k": "attn.in_proj_",
    "2/v": "attn.in_proj_",
    "1/out": "attn.out_proj.",
    "2/norm2": "ln_2",
    "0/up": "mlp.c_fc.",
    "2/down": "mlp.c_proj.",
    "norm": "ln_",
}


class Replacing:
    """Merges other weights."""

    def __init__(self, *weights):
        self.weights = weights

    def merge(self, weight, bias):
        return self.weights


def library_names(site, tower):
    """The library's names of weight and bias, and the rows of them."""
    root, (layer, _, kind) = "visual." if tower == "image" else "", site.rpartition("/")
    prefix = f"{root}transformer.resblocks.{layer}." if layer else root
    name = (
        "ln_pre" if kind == "pre_norm" else SITES[site] + {"image": "post", "text": "final"}[tower] * (site == "norm")
    )
    name += "." * (name[-1] not in "._")
    n = {"q": 0, "k": 1, "v": 2}.get(kind)
    return [f"{prefix}{name}{part}" for part in ("weight", "bias")], n


@pytest.mark.parametrize(
    ("site", "tower"), [*((site, tower) for site in SITES for tower in ("image", "text")), ("pre_norm", "image")]
)
def test_weights_are_read_and_replaced(double, site, tower):
    model, clip = double
    torch.manual_seed(1)
    names, place = library_names(site, tower)
    theirs = {name: dict(model.named_parameters())[name] for name in names}
    rows = [t if place is None else t.chunk(3)[place] for t in theirs.values()]
    frozen = getattr(clip, tower).frozen_map(site)
    assert torch.equal(frozen.weight, rows[0])
    assert torch.equal(frozen.bias, rows[1])
    new = [(t * (1 + 0.3 * torch.rand_like(t))).detach().requires_grad_() for t in rows]
    pixels = torch.randn(2, 3, 32, 32).double()
    prompt = Prompt(adapters={site: lambda given, made: replace_weights(frozen, *new)(given)})
    mine = clip.image(images(pixels), prompt) if tower == "image" else clip.text(WORDS, prompt)[0]

    def put(t, value):
        return value if place is None else torch.cat([*t.chunk(3)[:place], value, *t.chunk(3)[place + 1 :]])

    changed = {name: put(t.detach(), value) for (name, t), value in zip(theirs.items(), new, strict=True)}
    method = "encode_image" if tower == "image" else "encode_text"
    given = pixels if tower == "image" else library({})[1](WORDS)
    forward, model.forward = model.forward, getattr(model, method)
    want = torch.func.functional_call(model, changed, (given,))
    model.forward = forward
    near(mine, want, 1e-12)
    merged = getattr(clip, tower).merged(Prompt(adapters={site: Replacing(*new)}))
    near(merged(images(pixels)) if tower == "image" else merged(WORDS)[0], want.detach(), 1e-12)
    direction = torch.randn_like(want)
    found, expected = (torch.autograd.grad((x * direction).sum(), new) for x in (mine, want))
    for a, b in zip(found, expected, strict=True):
        near(a, b, 1e-11) if b.abs().max() > 1e-12 else near(a + 1, b + 1, 1e-12)  # k's bias has none


def test_patches_and_other_libraries():
    trunk = shaken(VisionTransformer(**PLAIN))
    tower = walked(trunk)
    assert torch.equal(tower.frozen_map("patch").weight, trunk.patch_embed.proj.weight.flatten(1))
    assert torch.equal(tower.frozen_map("2/k").weight, trunk.blocks[2].attn.qkv.weight.chunk(3)[1])
    assert torch.equal(tower.frozen_map("norm").bias, trunk.norm.bias)


def test_maps_of_a_merged_tower_have_the_merged_weights(double):
    """And other weights may be merged into them again."""

    class Shift(torch.nn.Module):
        def merge(self, weight, bias):
            return 2 * weight, bias + 1

    _, clip = double
    prompt = Prompt(adapters={"1/norm1": Shift(), "0/q": Shift()})
    once = clip.image.merged(prompt)
    twice = once.merged(prompt)
    for site in ("1/norm1", "0/q"):
        first, second, third = (tower.frozen_map(site) for tower in (clip.image, once, twice))
        assert torch.equal(second.weight, 2 * first.weight)
        assert torch.equal(third.bias, first.bias + 2)
    pixels = images(torch.randn(2, 3, 32, 32).double())
    again = {
        site: Replacing(once.frozen_map(site).weight * 2, once.frozen_map(site).bias + 1) for site in prompt.adapters
    }
    near(twice(pixels), clip.image.merged(Prompt(adapters=again))(pixels), 1e-12)


@pytest.mark.parametrize("site", ["attn", "1/mlp", "0/gate", "3/q", "-1/q", "q", "enc/0/q", "patches", ""])
def test_other_places_have_no_weights(tiny, site):
    for tower in (tiny.image, tiny.text):
        with pytest.raises(ValueError, match=f"site: expected a linear map or a norm of this tower, got '{site}'"):
            tower.frozen_map(site)


def test_opaque_towers_have_none():
    model, tokenizer = library({"vision_cfg": {"qk_norm": True}, "text_cfg": {"qk_norm": True}})
    clip = wrap_clip(model, tokenizer, "x")
    for tower in (clip.image, clip.text):
        with pytest.raises(ValueError, match="expected a block-wise tower"):
            tower.frozen_map("0/q")


def test_the_first_norm_is_of_soft_tokens_too(double):
    _, clip = double
    norm, tokens = clip.image.frozen_map("pre_norm"), torch.randn(1, 2, clip.image.dim).double()
    weights = 2 * norm.weight, norm.bias + 1
    prompt = Prompt({0: tokens}, adapters={"pre_norm": lambda given, made: replace_weights(norm, *weights)(given)})
    pixels = images(torch.randn(2, 3, 32, 32).double())
    merged = clip.image.merged(Prompt(adapters={"pre_norm": Replacing(*weights)}))
    near(clip.image(pixels, prompt), merged(pixels, Prompt({0: tokens})), 1e-12)
    assert "pre_norm" not in walked(shaken(VisionTransformer(**PLAIN))).sites()
