"""Tokens that come in above layer 0, mix with what stands there or replace a part of it, and two reads of one pass."""

from copy import copy
from dataclasses import replace

import pytest
import torch
from open_clip.model import CustomTextCLIP
from random_twins import PLAIN, shaken, walked
from shared import images
from timm.models.vision_transformer import VisionTransformer
from written_out import Whole, library, near

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.compute_options import ComputeOptions
from vlprompt.core.prompt import Prompt

WORDS = ["a photo of a cat.", "golden retriever", "a photo of the U.S. flag, in colour", "dog"]
# layers with tokens, whether they are embedded, the first layer with tokens of each text, what each layer carries
CASES = {
    "from layer 1": ([1], False, None, {}),
    "from layer 1, each layer": ([1, 2], False, None, {}),
    "from layer 0, without positions": ([0, 2], False, None, {}),
    "last layer": ([2], False, None, {}),
    "mixed": ([1, 2], False, None, {2: 0.3}),
    "mixed from layer 0": ([0, 1, 2], False, None, {1: 0.7, 2: 0.7}),
    "embedded and mixed": ([0, 1, 2], True, None, {1: 0.4}),
    "a part replaced": ([0, 1, 2], True, None, {1: "part", 2: "part"}),
    "of each text, above shared ones": ([0, 2], True, 2, {}),
    "of each text, mixed with shared ones": ([0, 1, 2], True, 1, {1: 0.6, 2: "part"}),
    "of each text, from layer 1": ([1, 2], False, 1, {}),
    "of each text above shared new rows": ([1, 2], False, 2, {2: 0.5}),
    "of each text, without positions": ([0, 1], False, 0, {1: "part"}),
}
PART = torch.tensor([1.0, 0.0, 0.25], dtype=torch.double)


def draw(layers, specific, carry, contexts, dim, n_texts, n_tokens=3):
    tokens = {}
    for i in layers:
        own = specific is not None and i >= specific
        shape = (contexts, n_texts, n_tokens, dim) if own else (contexts, n_tokens, dim)
        tokens[i] = torch.randn(shape, dtype=torch.double).requires_grad_()
    part = PART.clone().requires_grad_()
    return tokens, {i: part if value == "part" else value for i, value in carry.items()}, part


def mixed(row, token, carry):
    weight = carry[:, None] if isinstance(carry, torch.Tensor) else carry
    return weight * row + (1 - weight) * token


def written_texts(model, tokenizer, texts, tokens, carry, is_embedded, context, place=1):
    """Every text by itself through the library's blocks: tokens as rows at `place`, words at their own positions."""
    features = []
    for c, text in enumerate(texts):
        ids, first = tokenizer([text]), min(tokens)
        of = {i: t[context, c] if t.ndim == 4 else t[context] for i, t in tokens.items()}
        p, end = len(of[first]), int(ids.argmax())
        x = model.token_embedding(ids)[0]
        if is_embedded:
            x = torch.cat([x[:place], of[0], x[place:]])[: len(x)]
        x = x + model.positional_embedding
        for i, block in enumerate(model.transformer.resblocks):
            if i == first and not is_embedded:
                x = torch.cat([x[:place], of[i], x[place:]])
            elif i in of and i > first:
                row = mixed(x[place : place + p], of[i], carry.get(i, 0.0))
                x = torch.cat([x[:place], row, x[place + p :]])
            mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1)
            x = block(x[None], attn_mask=mask)[0]
        features.append(model.ln_final(x)[end + p] @ model.text_projection)
    return torch.stack(features)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_tokens_of_a_text_tower(double, case, contexts):
    model, clip = double
    layers, is_embedded, specific, carried = CASES[case]
    torch.manual_seed(3)
    tokens, carry, part = draw(layers, specific, carried, contexts, clip.text.dim, len(WORDS))
    prompt = Prompt(tokens, carry=carry, is_embedded=is_embedded)
    packed = clip.text(WORDS, prompt)
    padded = clip.text(WORDS, replace(prompt, adapters={"0/q": Whole()}))
    tokenizer = library({})[1]
    slow = torch.stack([written_texts(model, tokenizer, WORDS, tokens, carry, is_embedded, r) for r in range(contexts)])
    leaves = [*tokens.values(), *([part] if "part" in carried.values() else [])]
    direction = torch.randn_like(packed)
    want = torch.autograd.grad((slow * direction).sum(), leaves)
    for found in (packed, padded):
        near(found, slow, 1e-12)
        for a, b in zip(torch.autograd.grad((found * direction).sum(), leaves), want, strict=True):
            near(a, b, 1e-11)


@pytest.mark.parametrize("case", ["from layer 1, each layer", "mixed from layer 0", "of each text, from layer 1"])
def test_the_place_of_new_rows(double, case):
    """A text says where they stand; without a place they follow its beginning."""
    model, clip = double
    layers, is_embedded, specific, carried = CASES[case]
    tokens, carry, _ = draw(layers, specific, carried, 1, clip.text.dim, 2)
    found = clip.text(["a photo {3} of a cat.", "a photo {3} dog"], Prompt(tokens, carry=carry, is_embedded=False))[0]
    plain = ["a photo of a cat.", "a photo dog"]
    near(found, written_texts(model, library({})[1], plain, tokens, carry, is_embedded, 0, place=3), 1e-12)


def test_a_prefix_and_adapters_below_the_tokens(double):
    _, clip = double
    torch.manual_seed(0)
    kv = tuple(torch.randn(1, 3, 2, 16).double().requires_grad_() for _ in "kv")
    w = (0.1 * torch.randn(48, 48).double()).requires_grad_()
    tokens = {2: torch.randn(1, 3, 48).double().requires_grad_()}
    prompt = Prompt(tokens, {0: kv}, {"1/q": lambda given, made: made + given @ w})
    found = clip.text(WORDS, prompt)
    slow = clip.text(WORDS, replace(prompt, adapters={**prompt.adapters, "0/k": Whole()}))
    near(found, slow, 1e-12)
    leaves = [*kv, w, tokens[2]]
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), leaves) for x in (found, slow)), strict=True):
        near(a, b, 1e-11)


def test_micro_batches_of_texts(double):
    _, clip = double
    layers, is_embedded, specific, carried = CASES["of each text above shared new rows"]
    tokens, carry, _ = draw(layers, specific, carried, 1, clip.text.dim, len(WORDS))
    prompt, text = Prompt(tokens, carry=carry, is_embedded=is_embedded), copy(clip.text)
    text.compute_options = ComputeOptions(text_micro_batch=3)  # the last one has a single text
    found, slow = text(WORDS, prompt), clip.text(WORDS, prompt)
    near(found, slow, 1e-12)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), [*tokens.values()]) for x in (found, slow)), strict=True):
        near(a, b, 1e-11)


def count_rows(text):
    """A copy of a text tower, and the rows that its first norm of each block is given, call by call."""
    tower, seen = text.merged(Prompt()), []

    def counting(i, norm):
        def count(x):
            seen.append((i, x.shape[1]))
            return norm(x)

        return count

    tower.blocks = [replace(block, norm1=counting(i, block.norm1)) for i, block in enumerate(tower.blocks)]
    return tower, seen


def test_blocks_below_the_first_tokens_run_once_and_share_the_beginning():
    tower, seen = count_rows(build_tiny_clip().text)
    texts = [f"a photo of a {name}." for name in ("dog", "cat", "golden retriever")]
    n_own = 3 + 3 + 4  # the name, the full stop and the end
    t = torch.randn(1, 2, 48)
    for _ in range(3):
        tower(texts, Prompt({2: t}))
    assert seen[:3] == [(0, 5 + n_own), (1, 5 + n_own), (2, 5 + 2 + n_own)]  # words alone, then two new rows
    assert {i for i, _ in seen[3:]} == {2}
    seen.clear()
    own = torch.randn(1, 3, 2, 48)
    tower([f"{{2}} of a {name}." for name in ("dog", "cat", "golden retriever")], Prompt({0: t, 2: own}))
    rows = {i: n for i, n in seen if n > 2}  # beside those of the tokens that the known words are completed with
    assert rows == {0: 5 + n_own, 1: 5 + n_own, 2: 1 + 3 * 4 + n_own}  # shared up to the name, then from the beginning


VARIANTS = {
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "first": {"no_causal_mask": True, "pool_type": "first"},
    "class token": {"embed_cls": True, "pad_id": 0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_towers_without_packed_texts(name):
    """New rows are seen by every word, and only words take positions, so that the context does not end earlier."""
    model, tokenizer = library({"text_cfg": VARIANTS[name]}, CustomTextCLIP)
    text = wrap_clip(model.double(), tokenizer, "x").text
    torch.manual_seed(2)
    t = {i: torch.randn(1, 3, 48).double() for i in (1, 2)}
    carry = {2: 0.2}
    found = text(WORDS, Prompt(t, carry=carry))[0]
    inner, ids = model.text, tokenizer(WORDS)
    x = inner.token_embedding(ids)
    n = x.shape[1]
    if name == "class token":
        x = torch.cat([x, inner.cls_emb.expand(len(x), 1, -1)], 1)
    x = x + inner.positional_embedding[: x.shape[1]]
    hidden = torch.zeros(len(x), x.shape[1], dtype=torch.bool)
    if name == "class token":  # its padding mask stands one row late
        hidden[:, 1:] = ids == 0
    for i, block in enumerate(inner.transformer.resblocks):
        if i == 1:
            x = torch.cat([x[:, :1], t[1].expand(len(x), -1, -1), x[:, 1:]], 1)
            hidden = torch.cat([hidden[:, :1], hidden.new_zeros(len(x), 3), hidden[:, 1:]], 1)
        if i == 2:
            x = torch.cat([x[:, :1], 0.2 * x[:, 1:4] + 0.8 * t[2], x[:, 4:]], 1)
        mask = torch.zeros(len(x), x.shape[1], x.shape[1]).double().masked_fill(hidden[:, None], float("-inf"))
        if name == "class token":
            mask = mask + torch.full(mask.shape[1:], float("-inf")).triu(1)
        x = block(x, attn_mask=mask.repeat_interleave(inner.transformer.resblocks[0].attn.num_heads, 0))
    x = inner.ln_final(x)
    row = x[:, 0] if name == "first" else x[:, -1]
    assert n == 40
    near(found, inner.text_projection(row) if callable(inner.text_projection) else row @ inner.text_projection, 1e-12)


def test_words_alone_fill_the_context(tiny):
    name, t = "dog " * 38, torch.zeros(1, 5, 48)
    assert tiny.text([name], Prompt({1: t})).shape == (1, 1, 64)
    with pytest.raises(ValueError, match=r"expected at most 40 tokens, got 41 .* which take no positions"):
        tiny.text([name + "cat"], Prompt({1: t}))
    with pytest.raises(ValueError, match="expected at most 40 tokens, got 45"):
        tiny.text([name], Prompt({0: t}))


# --- image towers ---

IMAGE_CASES = {
    "without the norm before the first block": ([0], False, {}),
    "mixed from layer 0": ([0, 1, 2], False, {1: 0.7, 2: 0.7}),
    "mixed": ([1, 2], True, {2: 0.3}),
    "a part replaced": ([0, 1, 2], True, {1: "part", 2: "part"}),
    "a layer left out": ([0, 2], True, {2: 0.5}),
}


def written_images(model, pixels, tokens, carry, is_embedded):
    """All rows through the library's blocks, tokens behind the class token."""
    v, first = model.visual, min(tokens)
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    x = v.ln_pre(x)
    p = tokens[first].shape[1]
    for i, block in enumerate(v.transformer.resblocks):
        if i in tokens:
            t = tokens[i].expand(len(x), -1, -1)
            t = v.ln_pre(t) if i == 0 and is_embedded else t
            row = t if i == first else mixed(x[:, 1 : 1 + p], t, carry.get(i, 0.0))
            x = torch.cat([x[:, :1], row, x[:, 1 + p * (i > first) :]], 1)
        x = block(x)
    return v.ln_post(x)


@pytest.mark.parametrize("each", [1, 4], ids=["one for all", "one per image"])
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_tokens_of_an_image_tower(double, case, each):
    model, clip = double
    layers, is_embedded, carried = IMAGE_CASES[case]
    torch.manual_seed(5)
    pixels = torch.randn(4, 3, 32, 32).double()
    tokens, carry, part = draw(layers, None, carried, each, 64, 1)
    prompt = Prompt(tokens, carry=carry, is_embedded=is_embedded)
    rows = written_images(model, pixels, tokens, carry, is_embedded)
    pooled, prompts = clip.image.read(images(pixels), prompt, ("pooled", "prompts"))
    near(clip.image(images(pixels), prompt), rows[:, 0] @ model.visual.proj, 1e-12)
    near(pooled, rows[:, 0] @ model.visual.proj, 1e-12)
    near(prompts, rows[:, 1:4], 1e-12)
    near(clip.image.project_rows(prompts), rows[:, 1:4] @ model.visual.proj, 1e-12)
    leaves = [*tokens.values(), *([part] if "part" in carried.values() else [])]
    slow = (rows[:, 0] @ model.visual.proj).square().sum() + rows[:, 1:4].pow(3).sum()
    fast = pooled.square().sum() + prompts.pow(3).sum()
    for a, b in zip(*(torch.autograd.grad(x, leaves) for x in (fast, slow)), strict=True):
        near(a, b, 1e-11)


def test_several_outputs_are_those_of_several_passes(double):
    _, clip = double
    pixels = images(torch.randn(2, 3, 32, 32).double())
    prompt = Prompt({1: torch.randn(1, 3, 64).double()})
    outputs = ("tokens", "pooled", "prompts")
    for found, output in zip(clip.image.read(pixels, prompt, outputs), outputs, strict=True):
        near(found, clip.image(pixels, prompt, output), 1e-12)
    with pytest.raises(ValueError, match=r"expected 'local' alone, got \('local', 'pooled'\)"):
        clip.image.read(pixels, prompt, ("local", "pooled"))


def test_tokens_mix_in_timms_towers():
    torch.manual_seed(6)
    trunk = shaken(VisionTransformer(**PLAIN)).double()
    tokens = {i: torch.randn(1, 3, 64).double() for i in (1, 2)}
    pixels = torch.randn(2, 3, 32, 32).double()
    x = trunk._pos_embed(trunk.patch_embed(pixels))
    for i, block in enumerate(trunk.blocks):
        if i == 1:
            x = torch.cat([x[:, :1], tokens[1].expand(2, -1, -1), x[:, 1:]], 1)
        if i == 2:
            x = torch.cat([x[:, :1], 0.3 * x[:, 1:4] + 0.7 * tokens[2], x[:, 4:]], 1)
        x = block(x)
    x = trunk.norm(x)
    pooled, prompts = walked(trunk).read(images(pixels), Prompt(tokens, carry={2: 0.3}), ("pooled", "prompts"))
    near(pooled, trunk.head(x[:, 0]), 1e-12)
    near(prompts, x[:, 1:4], 1e-12)


@pytest.mark.parametrize("changes", [{"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_two_reads_of_a_tower_that_pools_all_tokens(changes):
    model, tokenizer = library({"vision_cfg": changes})
    clip = wrap_clip(model.double(), tokenizer, "x")
    pixels, prompt = images(torch.randn(2, 3, 32, 32).double()), Prompt({1: torch.randn(1, 3, 64).double()})
    pooled, prompts = clip.image.read(pixels, prompt, ("pooled", "prompts"))
    near(pooled, clip.image(pixels, prompt), 1e-12)
    near(prompts, clip.image(pixels, prompt, "prompts"), 1e-12)
    with pytest.raises(ValueError, match="expected features that are read from the class token alone for a projection"):
        clip.image.project_rows(torch.zeros(2, 3, 64))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt({0: torch.zeros(1, 2, 64)}, carry={0: 0.5}), r"above the first one, got layer 0 with tokens at \[0\]"),
        (Prompt({0: torch.zeros(1, 2, 64)}, carry={1: 0.5}), r"got layer 1 with tokens at \[0\]"),
        (
            Prompt({i: torch.zeros(1, 2, 64) for i in (0, 1)}, carry={1: torch.zeros(3)}),
            r"expected a number or \(2,\) of the tokens at layer 1, got \(3,\)",
        ),
    ],
)
def test_what_can_not_be_carried(tiny, prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny.image(images(torch.zeros(1, 3, 32, 32)), prompt)


def test_opaque_towers_refuse_two_reads():
    model, tokenizer = library({"vision_cfg": {"qk_norm": True}})
    clip = wrap_clip(model, tokenizer, "open_clip:RN50/x")
    for refused in (
        lambda: clip.image.read(images(torch.zeros(1, 3, 32, 32)), Prompt(), ("pooled", "prompts")),
        lambda: clip.image.project_rows(torch.zeros(1, 64)),
    ):
        with pytest.raises(ValueError, match="expected a block-wise tower"):
            refused()
