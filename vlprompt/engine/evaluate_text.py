"""Scores of texts that are answered by text or word by word; nothing here is differentiated."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vlprompt.core.batch import Batch, Split
from vlprompt.core.introspection import kept_of
from vlprompt.core.method import Method
from vlprompt.core.texts import answered, other_reader
from vlprompt.metrics import classified
from vlprompt.runtime import collectives

Watch = Callable[[int, int], None]


class _Answered(NamedTuple):
    """What came of some texts: of words their logits and tags, of responses sums over tokens and what was written."""

    texts: int
    logits: torch.Tensor | None
    target: torch.Tensor | None
    loss: float = 0.0
    hits: int = 0
    tokens: int = 0
    said: Sequence[str] = ()


@torch.no_grad()
def numbers(method: Method, split: Split, batch: int, micro_batch: int | None, watch: Watch | None) -> dict[str, float]:
    """Of words: accuracy, class_mean, macro_f1 and calibration_error in percent, over all words.

    Of responses: perplexity (per token, the end of the response among them) and token_accuracy (percent of tokens that
    are the likeliest, given those before), of methods that rate them; with `write` tokens also exact_match and token_f1
    of what is written, as SQuAD's script has them but for articles and punctuation, which stay.
    """
    found, right, losses, done = list[torch.Tensor](), list[torch.Tensor](), 0.0, 0
    said = list[str]()
    hits = tokens = 0
    ready = method.prepare(split.names, method.fixed(split.names))
    kind, limit = answered(split.items), int(split.info.get("write", 0))  # type: ignore[call-overload]

    def answer(whole: Batch) -> list[_Answered]:
        made = list[_Answered]()
        for part in whole.split(micro_batch):
            out = method(part.inputs, ready)
            if out.target is None:
                raise ValueError(other_reader(kind))
            logits, target = out.logits.float(), out.target.to(out.logits.device)
            if kind == "tags":
                made.append(_Answered(len(part.inputs), logits.cpu(), target.cpu()))
                continue
            loss = float(F.cross_entropy(logits, target, reduction="sum"))
            hits = int((logits.argmax(1) == target).sum())
            texts = _written(method, part.inputs, limit) if limit else []
            made.append(_Answered(len(part.inputs), None, None, loss, hits, len(target), texts))
        return made

    for some in collectives.shared(split.batches(batch), answer, kept_of(method)):
        for one in some:
            if one.logits is not None and one.target is not None:
                found.append(one.logits)
                right.append(one.target)
            losses, hits, tokens, said = losses + one.loss, hits + one.hits, tokens + one.tokens, [*said, *one.said]
        done += sum(one.texts for one in some)
        if watch:
            watch(done, len(split))
    if kind == "tags":
        logits, labels, classes = torch.cat(found), torch.cat(right), len(split.names)
        return classified(logits.argmax(1), logits.softmax(1), labels, classes)
    scores = dict[str, float]()
    if tokens:
        scores |= {"perplexity": math.exp(min(losses / tokens, 700.0)), "token_accuracy": 100 * hits / tokens}
    elif not limit:
        raise ValueError(
            f"{type(method).__name__} writes answers and rates none: set task.write, the tokens that each may take"
        )
    if limit:
        pairs = list(zip(said, [str(item.response) for item in split.items], strict=True))
        scores["exact_match"] = 100 * sum(plain(a) == plain(b) for a, b in pairs) / len(pairs)
        scores["token_f1"] = 100 * sum(overlap(a, b) for a, b in pairs) / len(pairs)
    return scores


def _written(method: Method, inputs: Any, limit: int) -> list[str]:
    write = getattr(method, "write", None)
    if write is None:
        raise ValueError(
            f"{type(method).__name__} writes nothing: set task.write=0, or take a method on a language model"
        )
    return write(inputs, max_new_tokens=limit)


def plain(text: str) -> str:
    """In lower case, with single spaces."""
    return " ".join(text.lower().split())


def overlap(said: str, wanted: str) -> float:
    """The F1 of the words of two texts, as bags."""
    a, b = plain(said).split(), plain(wanted).split()
    both = sum((Counter(a) & Counter(b)).values())
    return 2 * both / (len(a) + len(b)) if both else float(a == b)
