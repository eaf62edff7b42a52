"""Several trainings in lockstep: what all of them ask a frozen tower for is one pass, forward and backward.

Each training runs as it would alone, in a thread of its own, but only one thread runs at a time. Where a training asks
for features that its trained tensors take part in, it waits; when all wait, the tower runs once for all, and each goes
on with its rows. Where it asks for gradients it waits again, and one backward pass goes through all losses. Random
states and cache counts belong to each training.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.towers import Backbone, find_feature_cache, find_input_tower
from vlprompt.layers.joined_passes import RandomTurn, TowerPass, run_joined, watch_passes
from vlprompt.runtime.seeding import capture_random_states, restore_random_states


@dataclass(frozen=True)
class _Backward:
    """A member waits for the gradients of its loss."""

    loss: Tensor
    parameters: Sequence[Tensor]
    retain_graph: bool


_Request: TypeAlias = TowerPass | _Backward


class GroupMember:
    """One of several trainings in lockstep.

    Gradients of features that its towers give with something trained are taken by `differentiate` alone: another
    backward pass would free what the other trainings still need.

    Args:
        group: the trainings.
        index: which of them this is.
        backbone: to build the method on; its towers wait for the other trainings.

    Attributes:
        n_joined: most trainings that a pass of this one was joined with, itself among them; 0 before the first pass.
    """

    def __init__(self, group: "TrainingGroup", index: int, backbone: Backbone):
        self.group, self.index = group, index
        self.backbone = watch_passes(backbone, self.encode, group.decode)
        self.has_passes = False  # whose gradients were not taken yet
        self.seconds, self.turn_start = 0.0, 0.0
        self.n_joined = 0

    def clock(self) -> float:
        """Return the seconds that this training has used: its own turns, and its share of joined passes."""
        return self.seconds + time.monotonic() - self.turn_start

    def require_running(self) -> None:
        """Raise the error by which the group ends, if it does."""
        self.group.require_running(self)

    def encode(self, one: TowerPass) -> Tensor:
        """Return the features of this training's rows of a joined pass."""
        self.has_passes = True
        return self.group.wait_for(self, one)

    def differentiate(
        self, loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False, **_: bool
    ) -> tuple[Tensor, ...]:
        """Return the gradient of a loss for each parameter, zeros where it takes no part in it.

        All trainings that share passes take theirs in one backward pass.
        """
        request = _Backward(loss, parameters, retain_graph)
        if not self.has_passes:
            return _differentiate_together([request])[0]
        self.has_passes = retain_graph
        return self.group.wait_for(self, request)


class _RandomStream:
    """The random numbers of one training: where its stream stands while others run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.capture()

    def capture(self) -> None:
        self.states = capture_random_states(self.device)

    def restore(self) -> None:
        restore_random_states(self.states, self.device)

    @contextmanager
    def take_turn(self) -> Iterator[None]:
        self.restore()
        yield
        self.capture()


@dataclass
class _Thread:
    """A training as a thread that runs in turns."""

    member: GroupMember
    random: _RandomStream
    counts: tuple[int, int]
    may_run: SimpleQueue[None] = field(default_factory=SimpleQueue)
    request: _Request | None = None
    answer: Any = None
    error: BaseException | None = None  # to be raised where it waits
    outcome: Any = None
    is_done: bool = False

    @property
    def aborts(self) -> bool:
        """Whether it ended by what is no Exception, such as Ctrl-C, which is for all."""
        return isinstance(self.outcome, BaseException) and not isinstance(self.outcome, Exception)


class TrainingGroup:
    """Trainings on one backbone that run in lockstep.

    Args:
        backbone: that all share.
        n_members: number of trainings.

    Attributes:
        members: one for each training; its `backbone` is what the training's method is built on.
    """

    def __init__(self, backbone: Backbone, n_members: int):
        self.backbone = backbone
        self.device = find_input_tower(backbone).device
        self.members = [GroupMember(self, i, backbone) for i in range(n_members)]
        self._scheduler_may_run = SimpleQueue[None]()
        self._threads: list[_Thread] = []
        self._turns = deque[_Thread]()  # of those that run before requests are answered
        self._pixels: dict[object, Tensor] = {}

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Do a job for each member in lockstep.

        Returns:
            What each job returns, or the Exception that it raises; the others go on.
        """
        random, counts = _RandomStream(self.device), self._get_counts()
        self._threads = [_Thread(member, _RandomStream(self.device), counts) for member in self.members]
        n_torch_threads = torch.get_num_threads()
        workers = [
            threading.Thread(target=self._do_job, args=(t, job, n_torch_threads), daemon=True)
            for t, job in zip(self._threads, jobs, strict=True)
        ]
        for worker in workers:
            worker.start()
        try:
            while alive := [t for t in self._threads if not t.is_done]:
                self._turns.extend(thread for thread in alive if thread.request is None)
                self._begin_turn()
                self._scheduler_may_run.get()
                self._raise_abort()
                self.serve([t for t in alive if t.request is not None])
        except BaseException as error:  # Ctrl-C, or a signal: each ends where it waits and closes its files
            for thread in self._threads:
                thread.error = error
                thread.may_run.put(None)
            for worker in workers:
                worker.join()
            raise
        finally:
            random.restore()
            self._add_counts(counts)
        return [t.outcome for t in self._threads]

    def wait_for(self, member: GroupMember, request: _Request) -> Any:
        """Let the other trainings go on until a request is answered; called from a member's thread."""
        self.require_running(member)
        thread = self._threads[member.index]
        thread.request = request
        self._end_turn(thread)
        thread.may_run.get()
        self.require_running(member)
        answer, thread.answer = thread.answer, None
        return answer

    def require_running(self, member: GroupMember) -> None:
        """Raise the error by which a member is to end, if there is one."""
        if (error := self._threads[member.index].error) is not None:
            raise error

    def _do_job(self, thread: _Thread, job: Callable[[], Any], n_torch_threads: int) -> None:
        thread.may_run.get()
        torch.set_num_threads(n_torch_threads)
        try:
            if thread.error is not None:
                raise thread.error
            thread.outcome = job()
        except BaseException as error:
            thread.outcome = error
        thread.is_done, thread.request = True, None
        if thread.aborts:
            self._turns.clear()
        self._end_turn(thread)

    def _begin_turn(self) -> None:
        """Let the next thread run until it waits or ends, with its own random state and cache counts.

        After the last one the scheduler does. A thread gives the turn to the next one itself: each change of threads
        takes as long as several small operations.
        """
        if not self._turns:
            self._scheduler_may_run.put(None)
            return
        thread = self._turns.popleft()
        thread.random.restore()
        self._set_counts(thread.counts)
        thread.member.turn_start = time.monotonic()
        thread.may_run.put(None)

    def _end_turn(self, thread: _Thread) -> None:
        thread.member.seconds += time.monotonic() - thread.member.turn_start
        thread.random.capture()
        thread.counts = self._get_counts()
        self._begin_turn()

    def _raise_abort(self) -> None:
        """Raise what ends a thread and all others with it."""
        for thread in self._threads:
            if thread.aborts:
                raise thread.outcome

    def decode(self, images: Images, preprocessing: Preprocessing) -> Tensor:
        """Return the pixels of images; trainings of one seed see the same ones, which are decoded once."""
        if not images.keys or None in images.keys:
            return images.pixels(preprocessing)
        key = images.keys, preprocessing
        if key not in self._pixels:
            self._pixels[key] = images.pixels(preprocessing)
        return self._pixels[key]

    def serve(self, waiting: Sequence[_Thread]) -> None:
        """Answer the requests for features, those of one kind in one pass; where there are none, those for gradients.

        Gradients wait for all: what a pass saved is needed until each of its trainings has taken its own, and
        parameters that a step has changed no longer fit to it.
        """
        groups: dict[object, list[_Thread]] = defaultdict(list)
        self._pixels.clear()
        for thread in waiting:
            if isinstance(thread.request, TowerPass):
                groups[thread.request.key].append(thread)
        for threads in filter(None, groups.values() or [waiting]):  # none waits where all have ended
            start = time.monotonic()
            self._answer_or_fail(threads)
            for thread in threads:
                thread.request = None
                thread.member.seconds += (time.monotonic() - start) / len(threads)

    def _answer_or_fail(self, threads: Sequence[_Thread]) -> None:
        """Set the answers, or the error by which a training ends; a pass that fails for all is tried for each alone.

        So an adapter that raises ends its own training only, and passes that have no memory together may have it apart.
        """
        streams = [copy(thread.random) for thread in threads]
        try:
            answers = self._answer(threads)
        except Exception as error:
            if len(threads) == 1 or isinstance(threads[0].request, _Backward):
                for thread in threads:
                    thread.error = error
                return
        else:
            for thread, answer in zip(threads, answers, strict=True):
                thread.answer = answer
                thread.member.n_joined = max(thread.member.n_joined, len(threads))
            return
        for thread, stream in zip(threads, streams, strict=True):
            thread.random = stream  # as it was before what the failed pass has drawn
            self._answer_or_fail([thread])

    def _answer(self, threads: Sequence[_Thread]) -> Sequence[Any]:
        passes = [t.request for t in threads if isinstance(t.request, TowerPass)]
        if not passes:
            return _differentiate_together([t.request for t in threads if isinstance(t.request, _Backward)])
        turns: list[RandomTurn] = [t.random.take_turn for t in threads]
        return run_joined(passes, turns)

    def _get_counts(self) -> tuple[int, int]:
        cache = find_feature_cache(self.backbone)
        return (0, 0) if cache is None else (cache.counts.hits, cache.counts.misses)

    def _set_counts(self, counts: tuple[int, int]) -> None:
        if (cache := find_feature_cache(self.backbone)) is not None:
            cache.counts.hits, cache.counts.misses = counts

    def _add_counts(self, before: tuple[int, int]) -> None:
        """Set the counts of the cache to those of all members together."""
        hits, misses = (before[i] + sum(t.counts[i] - before[i] for t in self._threads) for i in (0, 1))
        self._set_counts((hits, misses))


def _differentiate_together(requests: Sequence[_Backward]) -> list[tuple[Tensor, ...]]:
    """Take the gradients of all losses in one backward pass: no parameter takes part in the loss of another."""
    grads = torch.autograd.grad(
        [r.loss for r in requests],
        [p for r in requests for p in r.parameters],
        retain_graph=any(r.retain_graph for r in requests),
        allow_unused=True,
        materialize_grads=True,
    )
    remaining = iter(grads)
    return [tuple(next(remaining) for _ in r.parameters) for r in requests]
