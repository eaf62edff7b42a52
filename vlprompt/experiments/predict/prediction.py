"""Predict a stream of inputs batch by batch, each path once, with memory that does not grow by their results."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from vlprompt.backbones.schemes import choose_threads
from vlprompt.experiments.events import Listener, PredictionProgress, ignore_event
from vlprompt.experiments.predict.prediction_input import PredictionInput, describe_stamp
from vlprompt.experiments.predict.prompts import Ensemble
from vlprompt.experiments.predict.read_ahead import OpenedInput, iter_opened_batches
from vlprompt.experiments.predict.rows import Row, RowLayout, predict_batch

DEFAULT_BATCH_SIZE = 100
MAX_NAMED_ERRORS = 5
Sink = Callable[[Sequence[OpenedInput], Sequence[Row]], None]


@dataclass
class PredictionCounts:
    """How the inputs of a prediction ended.

    Args:
        n_before: done before by the same command.
        n_new: done now.
        n_failed: of both, those that could not be read.
        n_repeated: named more than once, and done once.
        first_errors: of those that could not be read, the first few.
    """

    n_before: int = 0
    n_new: int = 0
    n_failed: int = 0
    n_repeated: int = 0
    first_errors: list[str] = field(default_factory=list)

    @property
    def n_inputs(self) -> int:
        """All inputs, each once."""
        return self.n_before + self.n_new

    def add_row(self, row: Row, is_new: bool) -> None:
        """Count a row."""
        self.n_new, self.n_before = self.n_new + is_new, self.n_before + (not is_new)
        if "error" in row:
            self.n_failed += 1
            if len(self.first_errors) < MAX_NAMED_ERRORS:
                self.first_errors.append(row["error"])


@dataclass
class SeenPaths:
    """Paths that have a row, as 16 bytes each.

    Args:
        before: done by the same command before, with the stamp of a file that was read then.
        now: met by this command.
    """

    before: dict[bytes, str | None] = field(default_factory=dict)
    now: set[bytes] = field(default_factory=set)


def predict_inputs(
    ensemble: Ensemble,
    inputs: Iterable[PredictionInput],
    write: Sink,
    layout: RowLayout,
    batch_size: int = DEFAULT_BATCH_SIZE,
    before: tuple[SeenPaths, PredictionCounts] | None = None,
    total: int | None = None,
    on_event: Listener = ignore_event,
) -> PredictionCounts:
    """Predict inputs, and pass each batch of rows on.

    Args:
        ensemble: of the prompts.
        inputs: are read as far as they are needed.
        write: receives a batch and its rows.
        layout: what stands in a row.
        batch_size: inputs in a batch.
        before: what the same command did before.
        total: how many inputs there are, where that is known.
        on_event: receives the progress.
    """
    seen, counts = before or (SeenPaths(), PredictionCounts())
    new = _iter_new(inputs, seen, counts)
    with _use_threads(ensemble):
        for batch in iter_opened_batches(new, ensemble.build_items, batch_size):
            rows = predict_batch(ensemble, batch, layout)
            for row in rows:
                counts.add_row(row, is_new=True)
            write(batch, rows)
            on_event(PredictionProgress(counts.n_inputs, total))
    return counts


@contextmanager
def _use_threads(ensemble: Ensemble) -> Iterator[None]:
    """Compute with one thread where more only slow the backbones of all prompts."""
    choices = {choose_threads(prompt.state.config["backbone"]) for prompt in ensemble.prompts.values()}
    before = torch.get_num_threads()
    torch.set_num_threads(before if None in choices else max(n for n in choices if n is not None))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _iter_new(
    inputs: Iterable[PredictionInput], seen: SeenPaths, counts: PredictionCounts
) -> Iterator[PredictionInput]:
    """Yield the inputs that have no row yet, each path once."""
    for one in inputs:
        digest = one.digest
        counts.n_repeated += digest in seen.now
        is_new = digest not in seen.now
        seen.now.add(digest)
        if is_new and digest in seen.before:
            _require_unchanged(one, seen.before[digest])
        elif is_new:
            yield one


def _require_unchanged(one: PredictionInput, stamp: str | None) -> None:
    """ValueError where a file is another than when its row was written."""
    if stamp is not None and describe_stamp(one.path) != stamp:
        raise ValueError(
            f"{one.path!r}: expected the file that its row was made of, got another one (by size, times or inode). "
            "Put the old one back, or begin anew by --fresh."
        )
