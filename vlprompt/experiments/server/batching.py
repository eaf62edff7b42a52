"""Dynamic batching: one thread runs the model, and joins images of several requests to a batch."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import torch

from vlprompt.core.batch import Item
from vlprompt.core.class_names import Names, class_ids
from vlprompt.experiments.learned.prompt import Answers, LearnedPrompt

T = TypeVar("T")
MAX_QUEUED_IMAGES = 4096


class QueueFullError(Exception):
    """More images wait than the queue may hold."""


class ClassNamesError(ValueError):
    """Class names that a prompt can't answer about."""


@dataclass(eq=False)
class _Job:
    """A request's images for a prompt, or a function to call between two batches.

    Jobs are compared by a digest of their classes, since each is compared with all that wait.
    """

    future: Future[Any]
    prompt: LearnedPrompt | None = None
    names: Names | None = None
    items: Sequence[Item] = ()
    function: Callable[[], Any] | None = None
    arrival: float = field(default_factory=time.monotonic)
    names_digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.names_digest = b"" if self.names is None else _hash_names(self.names)

    def can_join(self, other: "_Job") -> bool:
        """Return whether both are for one prompt and one list of classes."""
        return self.function is None and self.prompt is other.prompt and self.names_digest == other.names_digest


class BatchingWorker:
    """A thread that answers images in batches, each of one prompt and one list of classes.

    Args:
        batch_size: images up to which requests are joined; a request of more is a batch of its own.
        wait_seconds: how long the first request of a batch waits for others.
        on_batch: called with the number of images of each batch.
        threads: of torch in this thread; None for as many as torch has.
    """

    def __init__(
        self, batch_size: int, wait_seconds: float, on_batch: Callable[[int], None], threads: int | None = None
    ):
        self.batch_size, self.wait_seconds, self.on_batch = batch_size, wait_seconds, on_batch
        self._jobs, self._changed, self._is_closing = deque[_Job](), threading.Condition(), False
        self._threads = threads
        self._thread = threading.Thread(target=self._run, name="vlprompt-model")
        self._thread.start()

    @property
    def n_queued(self) -> int:
        """How many images wait."""
        with self._changed:
            return sum(len(job.items) for job in self._jobs)

    def submit(self, prompt: LearnedPrompt, names: Names | None, items: Sequence[Item]) -> Future[Answers]:
        """Answer at least one item among these classes.

        Args:
            prompt: answers.
            names: the classes; None for those it was trained on.
            items: images.

        Raises:
            QueueFullError: when too many images wait.
        """
        return self._add(_Job(Future(), prompt, names, items))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a function in the thread of the model, between two batches."""
        return self._add(_Job(Future(), function=function))

    def close(self) -> None:
        """Answer all that waits, then end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _add(self, job: _Job) -> Future[Any]:
        with self._changed:
            n_queued = sum(len(other.items) for other in self._jobs)
            if self._is_closing or (n_queued and n_queued + len(job.items) > MAX_QUEUED_IMAGES):
                raise QueueFullError
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while batch := self._take_batch():
            running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _take_batch(self) -> list[_Job]:
        """Wait for the next batch; [] when the worker is closed and nothing waits."""
        with self._changed:
            while not self._jobs:
                if self._is_closing:
                    return []
                self._changed.wait()
            first = self._jobs[0]
            while first.function is None and not self._is_closing:
                n_images = sum(len(job.items) for job in self._jobs if job.can_join(first))
                left = first.arrival + self.wait_seconds - time.monotonic()
                if n_images >= self.batch_size or left <= 0:
                    break
                self._changed.wait(left)
            batch, n_images = [self._jobs.popleft()], len(first.items)
            for job in list(self._jobs) if first.function is None else ():
                if job.can_join(first) and n_images + len(job.items) <= self.batch_size:
                    batch.append(job)
                    self._jobs.remove(job)
                    n_images += len(job.items)
            return batch

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer jobs together; where that fails each alone, so that one request never breaks another."""
        try:
            results = [jobs[0].function()] if jobs[0].function is not None else self._answer_items(jobs)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)

    def _answer_items(self, jobs: list[_Job]) -> list[Answers]:
        prompt, names = jobs[0].prompt, jobs[0].names
        assert prompt is not None
        require_answerable(prompt, names)
        items = [item for job in jobs for item in job.items]
        answers = prompt.answer(items, names)
        self.on_batch(len(items))
        sizes = [len(job.items) for job in jobs]
        parts = zip(*(tensor.split(sizes) for tensor in answers), strict=True)
        return [Answers(*tensors) for tensors in parts]


def _hash_names(names: Names) -> bytes:
    """Return a digest of what a prompt tells classes apart by: their names and ids."""
    return blake2b(repr((tuple(map(str, names)), class_ids(names))).encode(), digest_size=16).digest()


def require_answerable(prompt: LearnedPrompt, names: Names | None) -> None:
    """Raise ClassNamesError unless a prompt can answer about these classes; None for those it was trained on."""
    try:
        prompt.prepare(names)
    except ValueError as error:
        raise ClassNamesError(str(error)) from error
