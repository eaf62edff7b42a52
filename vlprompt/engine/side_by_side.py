"""Several trainings in lockstep: the prompts of all of them are the rows of one pass of the text tower.

Each training runs as it would alone, in a thread of its own, but only one thread runs at a time. Where a training asks
for the features of its class texts it waits; when all wait, the tower runs once on the tokens of all, and each goes on
with its rows. The backward pass meets at the same place. Random states and cache counts belong to each training.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import Clip, TextTower, find_feature_cache


@dataclass
class _JoinedPass:
    """One pass of the text tower: the tokens of all rows as leaves, and the features that they give."""

    tokens: list[dict[int, Tensor]]  # of each member
    features: Tensor  # (R, C, E), over all members
    row_counts: list[int]  # rows of each member


@dataclass
class _MemberPass:
    """What one member has of a joined pass: its own tokens with their graph, and its features as a leaf."""

    joined: _JoinedPass
    index: int
    tokens: dict[int, Tensor]
    features: Tensor


@dataclass(frozen=True)
class _Forward:
    """A member waits for the features of texts."""

    texts: tuple[str, ...]
    prompt: Prompt
    autocast: torch.dtype | None

    @property
    def key(self) -> object:
        shapes = [(layer, tuple(t.shape[1:]), t.dtype, t.requires_grad) for layer, t in self.prompt.tokens.items()]
        return self.texts, tuple(shapes), tuple(self.prompt.carry.items()), self.prompt.is_embedded, self.autocast


@dataclass(frozen=True)
class _Backward:
    """A member waits for the gradients of its tokens."""

    member_pass: _MemberPass
    gradient: Tensor  # (R, C, E)
    retain_graph: bool

    @property
    def key(self) -> object:
        return id(self.member_pass.joined)


_Request: TypeAlias = _Forward | _Backward


class GroupMember:
    """One of several trainings in lockstep.

    Args:
        group: the trainings.
        index: which of them this is.
        clip: the CLIP to build the method on; its text tower waits for the other trainings.

    Attributes:
        n_joined: most trainings that a pass of this one was joined with, itself among them; 0 before the first pass.
    """

    def __init__(self, group: "TrainingGroup", index: int, clip: Clip):
        self.group, self.index = group, index
        self.clip = replace(clip, text=_JoiningTextTower(clip.text, self))
        self.passes: list[_MemberPass] = []
        self.seconds, self.turn_start = 0.0, 0.0
        self.n_joined = 0

    def clock(self) -> float:
        """Return the seconds that this training has used: its own turns, and its share of joined passes."""
        return self.seconds + time.monotonic() - self.turn_start

    def require_running(self) -> None:
        """Raise the error by which the group ends, if it does."""
        self.group.require_running(self)

    def encode_texts(self, texts: tuple[str, ...], prompt: Prompt) -> Tensor:
        """Return the features (R, C, E) of this training's rows of a joined pass."""
        device = self.clip.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        member_pass: _MemberPass = self.group.wait_for(self, _Forward(texts, prompt, autocast))
        self.passes.append(member_pass)
        return member_pass.features

    def differentiate(
        self, loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False, **_: bool
    ) -> tuple[Tensor, ...]:
        """Return the gradient of a loss for each parameter, zeros where it takes no part in it.

        The part behind the texts' features is taken in one pass with the other trainings.
        """
        passes, leaves = self.passes, [p.features for p in self.passes]
        grad = partial(torch.autograd.grad, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
        grads = grad(loss, [*leaves, *parameters])
        total = list(grads[len(leaves) :])
        for member_pass, gradient in zip(passes, grads, strict=False):
            token_grads = self.group.wait_for(self, _Backward(member_pass, gradient, retain_graph))
            outputs = {member_pass.tokens[layer]: g for layer, g in token_grads.items()}
            through_texts = grad(_weigh(outputs), parameters)
            total = [a + b for a, b in zip(total, through_texts, strict=True)]
        if not retain_graph:
            self.passes = []
        return tuple(total)


class _JoiningTextTower:
    """A text tower whose passes with trained tokens wait for the other trainings; all else is the tower's own."""

    def __init__(self, tower: TextTower, member: GroupMember):
        self.tower, self.member = tower, member

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["tower"], name)

    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        if can_join(prompt, output):
            return self.member.encode_texts(tuple(texts), prompt)
        return self.tower(texts, prompt, output)


def can_join(prompt: Prompt, output: str) -> bool:
    """Whether a pass of the text tower can be joined with others: its prompt is trained tokens alone."""
    has_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in prompt.tokens.values())
    is_tokens_only = not len(prompt.adapters) and not len(prompt.prefix) and not _carries_tensors(prompt)
    return has_gradient and output == "pooled" and is_tokens_only


@dataclass(frozen=True)
class TextPass:
    """The size of a pass of the text tower that can be joined: rows, and texts in each."""

    n_rows: int
    n_texts: int


class TextPassRecorder:
    """Records which passes of the text tower a training could join with others.

    Args:
        clip: the CLIP.

    Attributes:
        clip: the CLIP to build the method on.
        passes: those that can be joined, as they come.
    """

    def __init__(self, clip: Clip):
        self.passes: list[TextPass] = []
        self.clip = replace(clip, text=_RecordingTextTower(clip.text, self.passes))


class _RecordingTextTower:
    """A text tower that writes down its passes that can be joined."""

    def __init__(self, tower: TextTower, passes: list[TextPass]):
        self.tower, self.passes = tower, passes

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["tower"], name)

    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        if can_join(prompt, output):
            self.passes.append(TextPass(max(len(t) for t in prompt.tokens.values()), len(texts)))
        return self.tower(texts, prompt, output)


@dataclass
class _Thread:
    """A training as a thread that runs in turns."""

    member: GroupMember
    random_state: dict[str, Tensor]
    counts: tuple[int, int]
    may_run: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    request: _Request | None = None
    answer: Any = None
    error: BaseException | None = None  # to be raised where it waits
    outcome: Any = None
    is_done: bool = False


class TrainingGroup:
    """Trainings on one CLIP that run in lockstep.

    Args:
        clip: the CLIP that all share.
        n_members: number of trainings.

    Attributes:
        members: one for each training; its `clip` is what the training's method is built on.
    """

    def __init__(self, clip: Clip, n_members: int):
        self.clip, self.n_members = clip, n_members
        self.members = [GroupMember(self, i, clip) for i in range(n_members)]
        self._scheduler_may_run = threading.Semaphore(0)
        self._threads: list[_Thread] = []

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Do a job for each member in lockstep.

        Returns:
            What each job returns, or the Exception that it raises; the others go on.
        """
        before = self._capture_random_state(), self._get_counts()
        self._threads = [_Thread(member, dict(before[0]), before[1]) for member in self.members]
        n_torch_threads = torch.get_num_threads()
        workers = [
            threading.Thread(target=self._do_job, args=(t, job, n_torch_threads), daemon=True)
            for t, job in zip(self._threads, jobs, strict=True)
        ]
        for worker in workers:
            worker.start()
        try:
            while alive := [t for t in self._threads if not t.is_done]:
                for thread in alive:
                    self._give_turn(thread)
                self._serve([t for t in alive if t.request is not None])
        except BaseException as error:  # Ctrl-C, or a signal: each ends where it waits and closes its files
            for thread in self._threads:
                thread.error = error
                thread.may_run.release()
            for worker in workers:
                worker.join()
            raise
        finally:
            self._restore_random_state(before[0])
            self._add_counts(before[1])
        return [t.outcome for t in self._threads]

    def wait_for(self, member: GroupMember, request: _Request) -> Any:
        """Let the other trainings go on until a request is answered; called from a member's thread."""
        self.require_running(member)
        thread = self._threads[member.index]
        thread.request = request
        self._scheduler_may_run.release()
        thread.may_run.acquire()
        self.require_running(member)
        return thread.answer

    def require_running(self, member: GroupMember) -> None:
        """Raise the error by which a member is to end, if there is one."""
        if (error := self._threads[member.index].error) is not None:
            raise error

    def _do_job(self, thread: _Thread, job: Callable[[], Any], n_torch_threads: int) -> None:
        thread.may_run.acquire()
        torch.set_num_threads(n_torch_threads)
        try:
            if thread.error is not None:
                raise thread.error
            thread.outcome = job()
        except BaseException as error:
            thread.outcome = error
        thread.is_done, thread.request = True, None
        self._scheduler_may_run.release()

    def _give_turn(self, thread: _Thread) -> None:
        """Let a thread run until it waits or ends, with its own random state and cache counts."""
        self._restore_random_state(thread.random_state)
        self._set_counts(thread.counts)
        thread.request, thread.member.turn_start = None, time.monotonic()
        thread.may_run.release()
        self._scheduler_may_run.acquire()
        thread.member.seconds += time.monotonic() - thread.member.turn_start
        thread.random_state, thread.counts = self._capture_random_state(), self._get_counts()
        if thread.is_done and isinstance(thread.outcome, BaseException) and not isinstance(thread.outcome, Exception):
            raise thread.outcome

    def _serve(self, waiting: Sequence[_Thread]) -> None:
        """Answer all requests, those of one kind in one pass."""
        groups: dict[object, list[_Thread]] = defaultdict(list)
        for thread in waiting:
            assert thread.request is not None
            groups[thread.request.key].append(thread)
        for threads in groups.values():
            start, requests = time.monotonic(), [t.request for t in threads]
            try:
                answers = self._answer(requests)
            except Exception as error:
                for thread in threads:
                    thread.error = error
            else:
                for thread, answer in zip(threads, answers, strict=True):
                    thread.answer = answer
            for thread in threads:
                thread.member.seconds += (time.monotonic() - start) / len(threads)
                thread.member.n_joined = max(thread.member.n_joined, len(threads))

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        return self._join_forward(requests) if isinstance(requests[0], _Forward) else _join_backward(requests)

    def _join_forward(self, requests: Sequence[_Forward]) -> list[_MemberPass]:
        """Run the text tower once on the rows of all requests."""
        leaves = [
            {i: t.detach().requires_grad_(t.requires_grad) for i, t in _expand_rows(r.prompt.tokens).items()}
            for r in requests
        ]
        tokens = {i: torch.cat([mine[i] for mine in leaves]) for i in leaves[0]}
        dtype = requests[0].autocast
        autocast = torch.autocast(self.clip.device.type, dtype) if dtype else nullcontext()
        with torch.enable_grad(), autocast:
            features = self.clip.text(requests[0].texts, replace(requests[0].prompt, tokens=tokens))
        joined = _JoinedPass(leaves, features, [len(next(iter(mine.values()))) for mine in leaves])
        rows = [part.detach().requires_grad_() for part in features.split(joined.row_counts)]
        return [
            _MemberPass(joined, i, _expand_rows(request.prompt.tokens), rows[i]) for i, request in enumerate(requests)
        ]

    def _capture_random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        device = self.clip.device
        return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})

    def _restore_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.clip.device)

    def _get_counts(self) -> tuple[int, int]:
        cache = find_feature_cache(self.clip)
        return (0, 0) if cache is None else (cache.counts.hits, cache.counts.misses)

    def _set_counts(self, counts: tuple[int, int]) -> None:
        if (cache := find_feature_cache(self.clip)) is not None:
            cache.counts.hits, cache.counts.misses = counts

    def _add_counts(self, before: tuple[int, int]) -> None:
        """Set the counts of the cache to those of all members together."""
        hits, misses = (before[i] + sum(t.counts[i] - before[i] for t in self._threads) for i in (0, 1))
        self._set_counts((hits, misses))


def _carries_tensors(prompt: Prompt) -> bool:
    return any(isinstance(carry, Tensor) for carry in prompt.carry.values())


def _expand_rows(tokens: Any) -> dict[int, Tensor]:
    """Tokens of all layers with as many rows, as layers may share one."""
    n_rows = max(len(t) for t in tokens.values())
    return {i: t if len(t) == n_rows else t.expand(n_rows, *t.shape[1:]) for i, t in tokens.items()}


def _join_backward(requests: Sequence[_Backward]) -> list[dict[int, Tensor]]:
    """Take the gradients of the tokens of all requests in one pass; rows that nobody asks for get zeros."""
    joined = requests[0].member_pass.joined
    gradient_of = {r.member_pass.index: r.gradient for r in requests}
    rows = joined.features.split(joined.row_counts)
    gradient = torch.cat([gradient_of.get(i, torch.zeros_like(row)) for i, row in enumerate(rows)])
    places = [(m, layer) for m, mine in enumerate(joined.tokens) for layer, t in mine.items() if t.requires_grad]
    # a pass of which some rows are asked for later is needed again
    retain_graph = len(requests) < len(rows) or any(r.retain_graph for r in requests)
    leaves = [joined.tokens[m][layer] for m, layer in places]
    grads = torch.autograd.grad(_weigh({joined.features: gradient}), leaves, retain_graph=retain_graph)
    by_member: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for (m, layer), grad in zip(places, grads, strict=True):
        by_member[m][layer] = grad
    return [by_member[r.member_pass.index] for r in requests]


def _weigh(gradients: dict[Tensor, Tensor]) -> Tensor:
    """The scalar whose gradient for each tensor is the one given; torch loads a second of libraries for the others."""
    return torch.stack([(x * gradient).sum() for x, gradient in gradients.items()]).sum()
