"""Evaluate texts that are answered by a response or tagged word by word. No gradients are computed."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vlprompt.core.batch import Batch, Split
from vlprompt.core.head import Prepared
from vlprompt.core.introspection import feature_caches
from vlprompt.core.method import Method
from vlprompt.core.texts import TextBatch, find_answer_kind, head_mismatch_message
from vlprompt.metrics import classification_scores
from vlprompt.runtime import collectives

ProgressCallback = Callable[[int, int], None]


class _TextOutputs(NamedTuple):
    """Outputs of some texts: logits and targets of tagged words; of responses sums over tokens, and generated texts."""

    n_texts: int
    logits: torch.Tensor | None
    targets: torch.Tensor | None
    loss: float = 0.0
    n_correct: int = 0
    n_tokens: int = 0
    generated: Sequence[str] = ()


@torch.no_grad()
def evaluate_texts(
    method: Method, split: Split, batch_size: int, micro_batch_size: int | None, on_progress: ProgressCallback | None
) -> dict[str, float]:
    """Evaluate texts with tags or responses.

    Returns:
        Of tags: accuracy, class_mean, macro_f1 and calibration_error in percent, over all words. Of responses:
        perplexity (per token, the end of the response included) and token_accuracy (percent of tokens that are the
        likeliest given those before), for methods that score them; with task.max_new_tokens also exact_match and
        token_f1 of the generated texts, as in SQuAD's script except that articles and punctuation stay.
    """
    prepared = method.prepare(split.names, method.precompute(split.names))
    kind, limit = find_answer_kind(split.items), int(split.info.get("max_new_tokens", 0))  # type: ignore[call-overload]

    def compute(batch: Batch) -> list[_TextOutputs]:
        parts = batch.micro_batches(micro_batch_size)
        return [_compute_text_outputs(method, part, prepared, kind, limit) for part in parts]

    outputs, n_done = list[_TextOutputs](), 0
    for computed in collectives.map_distributed(split.batches(batch_size), compute, feature_caches(method)):
        outputs += computed
        n_done += sum(one.n_texts for one in computed)
        if on_progress:
            on_progress(n_done, len(split))
    if kind == "tags":
        logits = torch.cat([one.logits for one in outputs if one.logits is not None])
        labels = torch.cat([one.targets for one in outputs if one.targets is not None])
        return classification_scores(logits.argmax(1), logits.softmax(1), labels, len(split.names))
    return _score_responses(method, split, outputs, limit)


def _compute_text_outputs(method: Method, batch: Batch, prepared: Prepared, kind: str, limit: int) -> _TextOutputs:
    """The outputs of one micro-batch, on the CPU."""
    output = method(batch.inputs, prepared)
    if output.targets is None:
        raise ValueError(head_mismatch_message(kind))
    logits, targets = output.logits.float(), output.targets.to(output.logits.device)
    if kind == "tags":
        return _TextOutputs(len(batch.inputs), logits.cpu(), targets.cpu())
    loss = float(F.cross_entropy(logits, targets, reduction="sum"))
    n_correct = int((logits.argmax(1) == targets).sum())
    generated = []
    if limit:
        generated = generate_texts(method, batch.inputs, f"task.max_new_tokens={limit}", max_new_tokens=limit)
    return _TextOutputs(len(batch.inputs), None, None, loss, n_correct, len(targets), generated)


def _score_responses(method: Method, split: Split, outputs: Sequence[_TextOutputs], limit: int) -> dict[str, float]:
    n_tokens = sum(one.n_tokens for one in outputs)
    metrics = dict[str, float]()
    if n_tokens:
        loss = 0.0
        for one in outputs:  # not sum(), which compensates rounding from Python 3.12 on: the bits would differ
            loss += one.loss
        metrics["perplexity"] = math.exp(min(loss / n_tokens, 700.0))
        metrics["token_accuracy"] = 100 * sum(one.n_correct for one in outputs) / n_tokens
    elif not limit:
        raise ValueError(
            f"task.max_new_tokens: expected more than 0 for {type(method).__name__}, which generates responses and "
            "doesn't score them, got 0. Set task.max_new_tokens to the longest response in tokens."
        )
    if limit:
        generated = [text for one in outputs for text in one.generated]
        pairs = list(zip(generated, [str(item.response) for item in split.items], strict=True))
        metrics["exact_match"] = 100 * sum(normalize_text(a) == normalize_text(b) for a, b in pairs) / len(pairs)
        metrics["token_f1"] = 100 * sum(compute_token_f1(a, b) for a, b in pairs) / len(pairs)
    return metrics


def generate_texts(method: Method, inputs: TextBatch, context: str, **settings: object) -> list[str]:
    """Generate responses with a method that can.

    Args:
        method: the method.
        inputs: a TextBatch.
        context: what needs the texts (a setting or a run), for the error.
        **settings: as the method's `generate` takes them, such as max_new_tokens.

    Raises:
        ValueError: if the method does not generate text.
    """
    generate = getattr(method, "generate", None)
    if generate is None:
        raise ValueError(
            f"{context}: expected a method that generates text, got {type(method).__name__}. "
            "Choose a method on a language model, or set task.max_new_tokens=0."
        )
    return generate(inputs, **settings)


def normalize_text(text: str) -> str:
    """Lower the case and collapse white space."""
    return " ".join(text.lower().split())


def compute_token_f1(prediction: str, reference: str) -> float:
    """Compute the F1 between the words of two texts, as bags of words."""
    a, b = normalize_text(prediction).split(), normalize_text(reference).split()
    both = sum((Counter(a) & Counter(b)).values())
    return 2 * both / (len(a) + len(b)) if both else float(a == b)
