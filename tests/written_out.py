"""Forms written out on open_clip's own model, that walks and prompts are held against."""

import functools

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from vlprompt.backbones.glyph import TINY_CONFIG
from vlprompt.backbones.open_clip.towers import wrap_clip


@functools.cache
def clip_tokenizer(context_length=77):
    """open_clip's own, which takes longer to build than a tiny CLIP."""
    return SimpleTokenizer(context_length=context_length)


def config(changes):
    merged = {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in TINY_CONFIG.items()}
    return merged | {k: v for k, v in changes.items() if k not in TINY_CONFIG}


def library(changes, cls=CLIP, seed=0, **more):
    torch.manual_seed(seed)
    model = cls(**config(changes), **more).eval()
    for p in model.parameters():  # norms and biases at 1 and 0 would hide a map that was left out
        if p.ndim == 1:
            p.data += 0.1 * torch.randn_like(p)
    return model, clip_tokenizer(40)


def near(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max(), float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def double():
    model, tokenizer = library({})
    return model.double(), wrap_clip(model, tokenizer, "x")


# --- the shared prefix of the text tower against every text by itself ---

NAMES = [
    "cat",
    "golden retriever",
    "forget-me-not",
    "Boeing 737-200",
    "Queen Anne's lace",
    "a",
    "U.S. dollar",
    "dog",
    "ox",
    "C++",
]
TEMPLATES = ["{ctx} {name}.", "{ctx} {name} {ctx}.", "{name} {ctx}.", "{ctx} of a {name}.", "a {name} {ctx} b"]


class Whole:
    """A part that changes nothing but forbids every short cut."""

    mixes_rows = True

    def __call__(self, given, made):
        return made
