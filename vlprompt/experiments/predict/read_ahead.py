"""Open the inputs of the next batches in other threads while the current one is predicted."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from vlprompt.core.batch import Item
from vlprompt.data.images.decoding import SKIP_REMEDY
from vlprompt.experiments.predict.prediction_input import PredictionInput, describe_stamp
from vlprompt.runtime import threads

INPUTS_PER_JOB = 16  # fewer cost more in handing over than in opening, for small images
BATCHES_AHEAD = 1
MAX_ERROR = 1000  # characters of an error, which else may hold a path of any length


class OpenedInput(NamedTuple):
    """An input with its item for each prompt, or with its error; and the stamp that its file had before."""

    source: PredictionInput
    items: tuple[Item, ...] = ()
    error: str | None = None
    stamp: str | None = None


Opener = Callable[[PredictionInput], tuple[Item, ...]]


def iter_opened_batches(
    inputs: Iterable[PredictionInput], build_items: Opener, batch_size: int
) -> Iterator[list[OpenedInput]]:
    """Yield opened inputs in order, batch by batch; at most two batches are in memory.

    Args:
        inputs: are read as far as they are needed.
        build_items: opens an input, in a thread of its own; its error goes with the input.
        batch_size: inputs in a batch.
    """
    iterator = iter(inputs)
    pending = deque[list[_Job]]()
    try:
        while batch := list(itertools.islice(iterator, batch_size)):
            pending.append(
                [_Job(batch[k : k + INPUTS_PER_JOB], build_items) for k in range(0, len(batch), INPUTS_PER_JOB)]
            )
            if len(pending) > BATCHES_AHEAD:
                yield [opened for job in pending.popleft() for opened in job.wait()]
        while pending:
            yield [opened for job in pending.popleft() for opened in job.wait()]
    finally:  # a consumer that stops early leaves no thread running
        for jobs in pending:
            for job in jobs:
                job.cancel()


class _Job:
    """Some inputs that one thread opens."""

    def __init__(self, inputs: Sequence[PredictionInput], build_items: Opener):
        self.inputs, self.build_items = inputs, build_items
        self._future: Future[list[OpenedInput]] | None = threads.submit(self._open_all)

    def wait(self) -> list[OpenedInput]:
        return self._open_all() if self._future is None else self._future.result()

    def cancel(self) -> None:
        if self._future is not None:
            self._future.cancel()

    def _open_all(self) -> list[OpenedInput]:
        return [_open_input(one, self.build_items) for one in self.inputs]


def _open_input(one: PredictionInput, build_items: Opener) -> OpenedInput:
    stamp = describe_stamp(one.path) if one.is_file else None  # of before: a change meanwhile is seen later
    try:
        return OpenedInput(one, build_items(one), stamp=stamp)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).replace(SKIP_REMEDY, "").split())
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        message = f"{one.path!r}: expected an input that can be read, got {error!r}."
    return OpenedInput(one, error=message if len(message) <= MAX_ERROR else f"{message[:MAX_ERROR]} ...")
