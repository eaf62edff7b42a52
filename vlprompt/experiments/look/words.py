"""The words of a vocabulary that are nearest to learned tokens, as CoOp's authors print them."""

from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.towers import Clip
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.look.subject import PictureUnavailableError, name_method, record_prompt, sample_evenly
from vlprompt.results.plots.learned.words import WORDS_WARNING, NearestWords

MAX_CLASSES = 10


def find_nearest_words(prompt: LearnedPrompt, n_words: int = 5, split: Split | None = None) -> NearestWords:
    """Find the words nearest to each learned token of a text tower's first layer, by Euclidean distance.

    Tokens of later layers are no embeddings of words, and are left out.

    Args:
        prompt: on a CLIP.
        n_words: words of each token.
        split: images of which one is answered, to name methods whose tokens depend on the image.

    Raises:
        PictureUnavailableError: for a method without tokens in a text tower, or whose tokens depend on the image.
    """
    recorded = record_prompt(prompt)
    clip = recorded.prompt.method.backbone
    if not isinstance(clip, Clip) or not hasattr(clip.text, "token_embeddings"):
        raise PictureUnavailableError(_explain(prompt, "no text tower that takes tokens"))
    prepared = recorded.prompt.prepare()
    tokens = [p.tokens[0] for p in recorded.text_prompts if 0 in p.tokens]
    if not tokens and split is not None and len(split):
        [batch] = split.select([0]).batches(1)
        with torch.no_grad():
            recorded.prompt.method(batch.inputs, prepared)
        if any(0 in p.tokens for p in recorded.text_prompts):
            raise PictureUnavailableError(_explain(prompt, "tokens that depend on the image"))
    if not tokens:
        raise PictureUnavailableError(_explain(prompt, "none there"))
    names, rows, note = _name_tokens(tokens[-1], prompt)
    text: Any = cast(Any, clip.text)
    # by differences, as the expanded form of the squared distance loses digits
    distances = torch.cdist(rows.float(), text.token_embeddings.float(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(n_words, largest=False)
    words = tuple(tuple(text.tokenizer.decode(i) for i in ids) for ids in nearest.indices.tolist())
    n_later = len([i for i in recorded.text_prompts[-1].tokens if i])
    later = f" Tokens of {n_later} later layers are no embeddings of words and are left out." if n_later else ""
    return NearestWords(names, words, tuple(map(tuple, nearest.values.tolist())), f"{WORDS_WARNING}{note}{later}")


def _explain(prompt: LearnedPrompt, got: str) -> str:
    return (
        f"words: expected learned tokens in the first layer of a text tower, got {got} ({name_method(prompt)}). "
        "Look at a run of coop, or leave words out."
    )


def _name_tokens(tokens: Tensor, prompt: LearnedPrompt) -> tuple[tuple[str, ...], Tensor, str]:
    """Return what each token is called, its row, and a note; tokens are (1, P, D) or (1, C, P, D)."""
    if tokens.ndim == 3:
        return tuple(map(str, range(1, tokens.shape[1] + 1))), tokens[0], ""
    classes = sample_evenly(tokens.shape[1], MAX_CLASSES)
    names = tuple(f"{prompt.names[c]} {p + 1}" for c in classes for p in range(tokens.shape[2]))
    note = f" {len(classes)} of {tokens.shape[1]:,} classes, evenly spaced." if len(classes) < tokens.shape[1] else ""
    return names, tokens[0, classes].flatten(0, 1), note
