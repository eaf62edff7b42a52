"""Adapters beside whole blocks, against the blocks of open_clip's own model written out."""

import pytest
import torch
from shared import images
from written_out import Whole, library, near

from vlprompt.core.prompt import Prompt

WORDS = ["a photo of a cat.", "golden retriever", "a photo of the U.S. flag, in colour", "dog"]
LAYERS = (1, 2)


def draw(width):
    torch.manual_seed(2)
    return {i: (0.3 * torch.randn(width, width).double()).requires_grad_() for i in LAYERS}


def beside(maps):
    """An adapter that is not linear."""
    return {f"{i}/block": lambda given, made, w=w: made + (given @ w).relu() for i, w in maps.items()}


def written(blocks, x, maps, mask, tokens):
    for i, block in enumerate(blocks):
        if i in tokens:
            x = torch.cat(
                [x[:, :1], tokens[i].expand(len(x), -1, -1), x[:, 1 + len(tokens[i]) * (i > min(tokens)) :]], 1
            )
        y = (block.ln_1(x) @ maps[i]).relu() if i in maps else 0
        x = block(x, attn_mask=mask) + y
    return x


def written_text(model, tokenizer, maps):
    features = []
    for text in WORDS:
        ids = tokenizer([text])
        end = int(ids.argmax())
        x = (model.token_embedding(ids) + model.positional_embedding)[:, : end + 1]
        mask = torch.full((end + 1, end + 1), float("-inf"), dtype=x.dtype).triu(1)
        features.append(model.ln_final(written(model.transformer.resblocks, x, maps, mask, {}))[0, end])
    return torch.stack(features) @ model.text_projection


def written_image(model, pixels, maps, tokens):
    visual = model.visual
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = written(visual.transformer.resblocks, visual.ln_pre(x), maps, None, tokens)
    return visual.ln_post(x[:, 0]) @ visual.proj


def compare(found, want, leaves):
    near(found, want, 1e-12)
    direction = torch.randn_like(want)
    mine, theirs = (torch.autograd.grad((x * direction).sum(), leaves, retain_graph=True) for x in (found, want))
    for a, b in zip(mine, theirs, strict=True):
        near(a, b, 1e-11)


def test_texts(double):
    model, clip = double
    maps = draw(clip.text.dim)
    want = written_text(model, library({})[1], maps)
    compare(clip.text(WORDS, Prompt(adapters=beside(maps)))[0], want, [*maps.values()])
    compare(clip.text(WORDS, Prompt(adapters={**beside(maps), "0/q": Whole()}))[0], want, [*maps.values()])


@pytest.mark.parametrize("token_layers", [(), (1,), (1, 2)])
def test_images(double, token_layers):
    model, clip = double
    maps, pixels = draw(clip.image.dim), torch.randn(2, 3, 32, 32).double()
    tokens = {i: torch.randn(3, clip.image.dim).double().requires_grad_() for i in token_layers}
    found = clip.image(images(pixels), Prompt({i: t[None] for i, t in tokens.items()}, adapters=beside(maps)))
    compare(found, written_image(model, pixels, maps, tokens), [*maps.values(), *tokens.values()])


def test_it_is_computed_on_the_rows_that_are_read_alone(double):
    _, clip = double
    rows = []

    def count(given, made):
        assert given.shape == made.shape
        rows.append(given.shape[1])
        return made

    prompt = Prompt(adapters={f"{i}/block": count for i in LAYERS})
    clip.image(images(torch.randn(2, 3, 32, 32).double()), prompt)
    assert rows[1] == 1 < rows[0]
    rows.clear()
    clip.text(WORDS, prompt)
    assert rows[1] == len(WORDS) < rows[0]


def test_it_has_no_weights_to_merge_into(tiny):
    with pytest.raises(ValueError, match=r"can't be merged into weights \(site 1/block\)"):
        tiny.image.merged(Prompt(adapters={"1/block": Whole()}))
