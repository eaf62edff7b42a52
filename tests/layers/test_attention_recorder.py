"""Attention on request: the tower's numbers stay, weights and rollout are those of a written-out ViT."""

import pytest
import timm
import torch
from random_twins import PLAIN, shaken, walked
from shared import images
from written_out import library

from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.prompt import Prompt
from vlprompt.layers.blocks.attention_recorder import AttentionRecorder

P, N, S, H, D, DEPTH = 4, 16, 1, 4, 64, 3


@pytest.fixture(scope="module")
def tower():
    model, tokenizer = library({})
    return wrap_clip(model.double(), tokenizer, "x").image


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def prompts():
    keys = draw(1, H, 3, D // H, seed=5), draw(1, H, 3, D // H, seed=6)
    return {
        "none": Prompt(),
        "shallow": Prompt(tokens={0: draw(1, P, D)}),
        "deep": Prompt(tokens={i: draw(1, P, D, seed=i) for i in range(DEPTH)}),
        "two layers, one set per image": Prompt(tokens={i: draw(2, P, D, seed=i) for i in range(2)}),
        "later": Prompt(tokens={1: draw(1, P, D)}),
        "mixed": Prompt(tokens={i: draw(1, P, D, seed=i) for i in range(DEPTH)}, carry={1: 0.3, 2: 0.6}),
        "mixed, with a prefix": Prompt({i: draw(1, P, D) for i in range(DEPTH)}, {2: keys}, carry={2: 0.6}),
        "prefix": Prompt(prefix={1: keys}),
        "prefix and deep": Prompt(tokens={i: draw(1, P, D, seed=i) for i in range(DEPTH)}, prefix={0: keys, 2: keys}),
    }


def write_out(tower, pixels, prompt):
    """Of every row: attention (B, r, front + r) by layer, mean over heads, and rollout (B, r, S + N + 1)."""
    x, prompt = tower.embed_pixels(pixels, prompt)
    n_images = len(x)
    share = torch.eye(S + N, S + N + 1, dtype=x.dtype).expand(n_images, -1, -1)
    sink = torch.zeros(S + N + 1, dtype=x.dtype)
    sink[-1] = 1
    attention = []
    for i, block in enumerate(tower.blocks):
        if i in prompt.tokens:
            tokens = prompt.tokens[i].expand(n_images, -1, -1)
            n_before = x.shape[1] - S - N
            entered, carry = sink.expand(n_images, P, -1), prompt.carry.get(i, 0.0)
            if n_before:
                tokens = carry * x[:, S : S + P] + (1 - carry) * tokens
                entered = carry * share[:, S : S + P] + (1 - carry) * entered
            x = torch.cat([x[:, :S], tokens, x[:, S + n_before :]], 1)
            share = torch.cat([share[:, :S], entered, share[:, S + n_before :]], 1)
        y = block.norm1(x)
        q, k, v = (f(y).unflatten(-1, (H, -1)).transpose(1, 2) for f in (block.q, block.k, block.v))
        if i in prompt.prefix:
            k, v = (
                torch.cat([p.expand(n_images, -1, -1, -1), t], 2) for p, t in zip(prompt.prefix[i], (k, v), strict=True)
            )
        scores = q @ k.mT / (D // H) ** 0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        x = x + block.layer_scale1(block.out((weights @ v).transpose(1, 2).flatten(2)))
        x = x + block.layer_scale2(block.down(block.act(block.up(block.norm2(x)))))
        mean, n_front = weights.mean(1), k.shape[2] - q.shape[2]
        attention.append(mean)
        passed = mean[..., :n_front].sum(-1, keepdim=True) * sink + mean[..., n_front:] @ share
        share = passed / 2 + share / 2
    return attention, share


@pytest.mark.parametrize("name", prompts())
def test_attention_is_a_written_out_softmax(tower, pixels, name):
    prompt = prompts()[name]
    attention, rollout = write_out(tower, pixels, prompt)
    n_front = attention[-1].shape[2] - attention[-1].shape[1]
    outputs = {"pooled": [0]} | ({"prompts": list(range(S, S + P))} if prompt.tokens else {})
    for output, rows in outputs.items():
        recorder = AttentionRecorder()
        inputs = images(pixels, f"{name}{output}")
        recorded = tower.with_recorder(recorder)(inputs, prompt, output)
        assert torch.equal(recorded, tower(inputs, prompt, output))
        (made,) = recorder.passes
        for layer in made.layers:
            assert (layer.weights.sum(-1) - 1).abs().max() < 1e-12
        over_patches, rolled, on_prompts = made.attention_over_image()
        expected = attention[-1][:, rows]
        assert (over_patches - expected[..., -N:]).abs().max() < 1e-12
        expected_on_prompts = expected[..., :n_front].sum(-1) + expected[..., n_front + S : -N].sum(-1)
        assert (on_prompts - expected_on_prompts).abs().max() < 1e-12
        assert (rolled - rollout[:, rows][..., S : S + N]).abs().max() < 1e-12
        assert rolled.shape == (2, len(rows), N)


def test_rotary_and_register_tokens_of_timm():
    """Rotary attention is recorded with its angles; features have the bits of before; rows add up to 1."""
    torch.manual_seed(0)
    trunk = timm.models.eva.Eva(**PLAIN | {"use_rot_pos_emb": True, "num_reg_tokens": 2, "class_token": True})
    tower = walked(shaken(trunk))
    recorder, inputs = AttentionRecorder(), images(torch.randn(2, 3, 32, 32), "rotary")
    prompt = Prompt(tokens={0: torch.randn(1, P, D)})
    assert torch.equal(tower.with_recorder(recorder)(inputs, prompt), tower(inputs, prompt))
    weights = recorder.passes[0].layers[0].weights
    assert weights.shape[-1] == tower.n_special_tokens + P + N
    assert (weights.sum(-1) - 1).abs().max() < 1e-5
    # without its rotation the same queries and keys would give others
    plain = AttentionRecorder()
    unrotated = tower.with_recorder(plain)
    unrotated.attention = lambda q, k, v, prefix, positions: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    unrotated(inputs, prompt)
    assert (plain.passes[0].layers[0].weights - weights).abs().max() > 1e-3
