"""The walk against open_clip's forward, prompts against written-out forms, the shared prefix against the full pass."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.model import CustomTextCLIP
from shared import images
from written_out import NAMES, TEMPLATES, Whole, library, near

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.images import Images
from vlprompt.core.prompt import Prompt
from vlprompt.core.templates import as_templated_text
from vlprompt.layers.blocks.shared_prefix import PackingRule

TEXTS = ["a photo of a dog.", "cat", "the U.S. flag, in colour", "C++", "a", "Queen Anne's lace and a {{curly}} brace"]
VARIANTS = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision_cfg": {"ls_init_value": 0.3}, "text_cfg": {"ls_init_value": 0.3}},
    "no pre-norm": {"vision_cfg": {"no_ln_pre": True}},
    "average": {"vision_cfg": {"pool_type": "avg"}},
    "average, norm last": {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}},
    "sine positions": {"vision_cfg": {"pos_embed_type": "sin_cos_2d"}},
    "wide image": {"vision_cfg": {"image_size": (32, 48)}},
    "projection with bias": {"text_cfg": {"proj_type": "linear", "proj_bias": True}},
    "no projection": {"text_cfg": {"proj_type": "none", "width": 64, "heads": 4}},
}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}


@contextmanager
def packed(clip, rule):
    """Texts by groups, padded, or under one mask."""
    usual, clip.text.packing_rule = clip.text.packing_rule, PackingRule(*rule)
    try:
        yield
    finally:
        clip.text.packing_rule = usual


@pytest.mark.parametrize("name", VARIANTS)
def test_the_walk_is_open_clips_forward(name):
    model, tokenizer = library(VARIANTS[name])
    clip = wrap_clip(model, tokenizer, "x")
    pixels = torch.randn(3, 3, *clip.image.preprocessing.size)
    assert clip.image.depth == clip.text.depth == 3
    with torch.no_grad():
        near(clip.image(images(pixels, name)), model.encode_image(pixels))
        near(clip.text(TEXTS)[0], model.encode_text(tokenizer([as_templated_text(t).words for t in TEXTS])))
        assert math.isclose(clip.scale, float(model.logit_scale.exp()), rel_tol=1e-6)
        text = clip.text(TEXTS)[0]
        unit = text.div(text.norm(dim=-1, keepdim=True))
        near(
            clip.logits(clip.image(images(pixels, name)), text),
            clip.scale * model.encode_image(pixels, normalize=True) @ unit.T,
        )


@pytest.mark.parametrize(
    "changes", [{}, SIGLIP, {"no_causal_mask": True, "pool_type": "first"}], ids=["causal", "siglip", "first"]
)
def test_text_towers_apart_from_the_model(changes):
    model, tokenizer = library({"text_cfg": changes}, CustomTextCLIP)
    clip = wrap_clip(model, tokenizer, "x")
    with torch.no_grad():
        near(clip.text(TEXTS)[0], model.encode_text(tokenizer([as_templated_text(t).words for t in TEXTS])))
    ctx = torch.randn(2, 4, clip.text.dim, requires_grad=True)
    found = clip.text(TEXTS, Prompt(tokens={0: ctx}))
    assert found.shape == (2, len(TEXTS), 64)
    words = clip.text.token_embeddings[torch.tensor(clip.text.tokenizer.encode("a photo of a"))][
        None
    ]  # soft tokens that are words are those words
    near(clip.text(["{4} dog."], Prompt(tokens={0: words})).detach(), clip.text(["a photo of a dog."]).detach())


def opaque_models():
    resnet = {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
    yield "resnet", library(resnet)
    timm = {
        "vision_cfg": {
            "timm_model_name": "resnet10t",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        }
    }
    yield "timm", library(timm)
    yield (
        "attention pool of two kinds",
        library({"vision_cfg": {"attentional_pool": "parallel", "attn_pooler_heads": 4, "output_tokens": True}}),
    )
    yield "norm of queries", library({"vision_cfg": {"qk_norm": True}})


@pytest.mark.parametrize("name", ["resnet", "timm", "attention pool of two kinds", "norm of queries"])
def test_other_image_towers_are_used_as_they_are(name):
    model, tokenizer = dict(opaque_models())[name]
    clip = wrap_clip(model, tokenizer, "open_clip:RN50/x")
    pixels = torch.randn(3, 3, *clip.image.preprocessing.size)
    with torch.no_grad():
        found = model.encode_image(pixels)
        near(clip.image(images(pixels, name)), found[0] if isinstance(found, tuple) else found)
    for refused in (
        lambda: clip.image(images(pixels), Prompt(tokens={0: torch.zeros(1, 2, 64)})),
        lambda: clip.image.sites("q"),
    ):
        with pytest.raises(ValueError, match=r"open_clip:RN50/x: expected a block-wise tower.*Use a ViT"):
            refused()
    ctx = torch.randn(1, 3, clip.text.dim, requires_grad=True)
    clip.text(["a dog"], Prompt(tokens={0: ctx})).sum().backward()
    assert ctx.grad.abs().sum() > 0


# --- prompts in an image tower, against the forms written out with open_clip's own modules ---


def written_out(model, pixels, tokens=None, beside=None, prefix=None):
    """VPT as its authors' fork of a ViT has it: cat, run all rows, cut the old prompt out, cat the next one in."""
    v, tokens, beside, prefix = model.visual, tokens or {}, beside or {}, prefix or {}
    x, inside = v.conv1(pixels).flatten(2).transpose(1, 2), 0
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    for i, block in enumerate(v.transformer.resblocks):
        if i in tokens:
            t = tokens[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], t, x[:, 1 + inside :]], 1)
            inside = t.shape[1]
        x = v.ln_pre(x) if i == 0 else x
        y = block.ln_1(x)
        q, k, w = (
            (y @ a.T + b)
            for a, b in zip(block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True)
        )
        q = beside[f"{i}/q"](y, q) if f"{i}/q" in beside else q
        k = beside[f"{i}/k"](y, k) if f"{i}/k" in beside else k
        q, k, w = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, w))
        if i in prefix:
            k, w = (torch.cat([p.expand(len(x), -1, -1, -1), t], 2) for p, t in zip(prefix[i], (k, w), strict=True))
        a = ((q @ k.mT / 4).softmax(-1) @ w).transpose(1, 2).flatten(2)
        x = x + block.attn.out_proj(a)
        y = block.ln_2(x)
        m = block.mlp(y)
        x = x + (beside[f"{i}/mlp"](y, m) if f"{i}/mlp" in beside else m)
    return v.ln_post(x), v


CASES = {
    "shallow": ([0], [], []),
    "deep": ([0, 1, 2], [], []),
    "deep behind prefixes": ([0, 1, 2], [0, 2], []),
    "deep with a map of its own": ([0, 1, 2], [], ["1/k"]),
    "deep from the second layer": ([1, 2], [], []),
    "last layer": ([2], [], []),
    "prefix": ([], [0, 2], []),
    "parts": ([], [], ["0/q", "2/mlp"]),
    "all": ([0, 1], [1], ["1/q", "2/mlp"]),
}


@pytest.mark.parametrize("each", [1, 5], ids=["one for all", "one per image"])
@pytest.mark.parametrize("case", CASES)
def test_prompts_in_an_image_tower(double, case, each):
    model, clip = double
    layers, prefixes, sites = CASES[case]
    torch.manual_seed(1)
    pixels = torch.randn(5, 3, 32, 32).double()
    tokens = {i: torch.randn(each, 3, 64).double().requires_grad_() for i in layers}
    prefix = {i: tuple(torch.randn(each, 4, 2, 16).double().requires_grad_() for _ in "kv") for i in prefixes}
    w = torch.randn(64, 64).double().requires_grad_()
    beside = {site: lambda given, made: made + 0.1 * given @ w for site in sites}
    leaves = [*tokens.values(), *(t for kv in prefix.values() for t in kv), *([w] if sites else [])]
    prompt = Prompt(tokens, prefix, beside)
    found = clip.image(images(pixels), prompt)
    rows, v = written_out(model, pixels, tokens, beside, prefix)
    near(found, rows[:, 0] @ v.proj, 1e-12)
    direction = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad((found * direction).sum(), leaves),
        torch.autograd.grad((rows[:, 0] @ v.proj * direction).sum(), leaves),
        strict=True,
    ):
        near(a, b, 1e-11)
    if layers:
        near(clip.image(images(pixels), prompt, output="prompts"), rows[:, 1:4], 1e-12)
    near(
        clip.image(images(pixels), prompt, output="tokens"),
        rows[:, 1 + 3 * bool(layers) :] if layers else rows[:, 1:],
        1e-12,
    )


def test_prompt_rows_do_not_count_in_an_average():
    model, tokenizer = library({"vision_cfg": {"pool_type": "avg"}})
    clip = wrap_clip(model.double(), tokenizer, "x")
    pixels, t = torch.randn(2, 3, 32, 32).double(), torch.randn(1, 3, 64).double()
    rows, v = written_out(model, pixels, {0: t})
    near(clip.image(images(pixels), Prompt(tokens={0: t})), rows[:, 4:].mean(1) @ v.proj, 1e-12)


def test_a_part_that_mixes_rows_sees_all_of_them(double):
    _, clip = double
    seen = []

    class Mix(torch.nn.Module):
        mixes_rows = True

        def forward(self, given, made):
            seen.append(given.shape[1])
            return made + given.mean(1, keepdim=True)

    tokens = {i: torch.randn(1, 3, 64).double() for i in range(3)}
    clip.image(
        images(torch.randn(2, 3, 32, 32).double()), Prompt(tokens, adapters={f"{i}/mlp": Mix() for i in range(3)})
    )
    assert seen == [20, 20, 20]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=7),
    template=st.sampled_from(TEMPLATES),
    p=st.integers(1, 6),
    contexts=st.integers(1, 3),
    deep=st.integers(0, 2),
    own=st.booleans(),
    prefix=st.booleans(),
    rule=st.sampled_from([(0, 0), (3, 0), (10**6, 0), (0, 10**6)]),
    seed=st.integers(0, 99),
)
def test_shared_prefix_is_exact(double, names, template, p, contexts, deep, own, prefix, rule, seed):
    from vlprompt.layers.class_texts import fill_class_texts

    _, clip = double
    torch.manual_seed(seed)
    shape = (contexts, len(names), p, 48) if own else (contexts, p, 48)
    tokens = {i: torch.randn(shape).double().requires_grad_() for i in range(deep + 1)}
    kv = {1: tuple(torch.randn(contexts, 3, 2, 16).double().requires_grad_() for _ in "kv")} if prefix else {}
    leaves = [*tokens.values(), *(t for pair in kv.values() for t in pair)]
    texts = fill_class_texts(template, names, p)
    with packed(clip, rule):
        fast, slow = clip.text(texts, Prompt(tokens, kv)), clip.text(texts, Prompt(tokens, kv, {"0/q": Whole()}))
    assert fast.shape == (contexts, len(names), 64)
    near(fast, slow, 1e-12)
    direction = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad((f * direction).sum(), leaves) for f in (fast, slow)), strict=True):
        near(a, b, 1e-11)


@pytest.mark.parametrize("rule", [(0, 0), (0, 10**6)])
def test_several_contexts_of_prefixes_alone(double, rule):
    """Texts without soft tokens, whose queries, keys and values below the prefix are those of one context."""
    _, clip = double
    torch.manual_seed(1)
    kv = {1: tuple(torch.randn(2, 3, 2, 16).double() for _ in "kv")}
    with packed(clip, rule):
        fast = clip.text(TEXTS[:3], Prompt(prefix=kv))
    near(fast, clip.text(TEXTS[:3], Prompt(prefix=kv, adapters={"0/q": Whole()})), 1e-12)
    assert fast.shape == (2, 3, 64)


def test_a_prefix_of_words_is_run_once(double):
    _, clip = double
    seen = []

    def count(given, made):
        seen.append(given.shape[1])
        return made

    clip.text(
        [f"a photo of the {n}." for n in ("dog", "cat", "golden retriever")],
        Prompt(adapters={"0/up": count, "2/up": count}),
    )
    assert seen == [
        5 + 3 + 3 + 4,
        3,
    ]  # start and four words once, then each name with "." and the end; the last block: ends only


# --- features are looked up ---


def test_a_bare_tower_computes_a_feature_once(tiny):
    decoded = []

    def decode(look, places):
        decoded.extend(places)
        return torch.zeros(len(places), 3, 32, 32)

    for _ in range(3):
        tiny.image(Images(decode, ["a", "b", "a", None]))
    assert decoded == [0, 1, 3, 3, 3]  # the third is the first again; one without a key is drawn anew each time


def test_a_features_bits_do_not_depend_on_its_neighbours():
    x = torch.randn(9, 3, 32, 32)
    whole = build_tiny_clip().image(images(x))
    other = build_tiny_clip().image
    alone = torch.cat([other(Images(lambda look, places, i=i: x[i : i + 1], [f"image/{i}"])) for i in (4, 0, 8)])
    assert torch.equal(whole[[4, 0, 8]], alone)


def test_tokens_reach_the_pixels_not_the_store(tiny):
    x = torch.randn(2, 3, 32, 32)
    bare_features = tiny.image(images(x))
    t = torch.zeros(1, 2, 64, requires_grad=True)
    assert not torch.allclose(tiny.image(images(x), Prompt(tokens={0: t})).detach(), bare_features)
    assert torch.equal(tiny.image(images(x)), bare_features)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            Prompt(tokens={0: torch.zeros(1, 2, 64), 1: torch.zeros(1, 3, 64)}),
            r"one length for all layers, got \[2, 3\]",
        ),
        (Prompt(tokens={3: torch.zeros(1, 2, 64)}), "expected layers 0..2 of this tower, got layer 3"),
        (Prompt(adapters={"7/q": lambda g, m: m}), "layer 7"),
        (Prompt(tokens={0: torch.zeros(1, 4, 2, 64)}), "one set per class"),
    ],
)
def test_prompts_that_do_not_fit(tiny, prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny.image(images(torch.zeros(1, 3, 32, 32)), prompt)


def test_texts_that_do_not_fit(tiny):
    t = torch.zeros(1, 38, 48)
    with pytest.raises(
        ValueError, match=r"expected at most 40 tokens, got 42 .*Use at most 36 prompt tokens \(n_ctx\)"
    ):
        tiny.text(["big dog"], Prompt(tokens={0: t}))
    with pytest.raises(ValueError, match="expected places for 4 prompt tokens, got 3"):
        tiny.text(["{3} dog"], Prompt(tokens={0: torch.zeros(1, 4, 48)}))
    with pytest.raises(ValueError, match="expected tokens for 2 texts, got tokens for 5 classes"):
        tiny.text(["a", "b"], Prompt(tokens={0: torch.zeros(1, 5, 4, 48)}))
    with pytest.raises(ValueError, match=r"expected one of norm, norm1.*, got 'queries'"):
        tiny.text.sites("queries")


def test_sites_tell_widths(tiny):
    assert tiny.image.sites("patch", "q") == {"patch": (192, 64), "0/q": (64, 64), "1/q": (64, 64), "2/q": (64, 64)}
    assert tiny.text.sites("up")["2/up"] == (48, 192)


def test_sites_without_kinds_are_all_sites():
    clip = build_tiny_clip()
    for tower in (clip.image, clip.text):
        kinds = {site.split("/")[-1] for site in tower.sites()}
        assert {"q", "k", "v", "out", "up", "down", "norm1", "norm2"} <= kinds
        assert tower.sites() == tower.sites(*kinds)
