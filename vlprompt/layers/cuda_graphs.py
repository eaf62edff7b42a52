"""Passes on a GPU that are recorded once and replayed (CUDA graphs): one start instead of thousands of small ones."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vlprompt.core.prompt import Prompt

MOST = 4  # recorded passes that are kept; what one makes stays in memory
NOTED = 64  # kinds of pass that are remembered; one that comes again is recorded


class Recorded:
    """make(*given) and its derivative as two graphs, with memory of their own that each replay writes over.

    What make reads beside that must be held by make, which is held here.
    """

    def __init__(self, make: Callable[..., Tensor], given: Sequence[Tensor]):
        self.make, self.given = make, [t.detach().clone().requires_grad_(t.requires_grad) for t in given]
        learned, stream = [t for t in self.given if t.requires_grad], torch.cuda.Stream()
        self.forth, self.back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # what passes before it held can't be used in a recording
        stream.wait_stream(torch.cuda.current_stream())
        # casts of weights that autocast keeps would be written over by replays
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            with torch.cuda.stream(stream):  # libraries set themselves up in the first pass, which no graph can record
                out = make(*self.given)
                torch.autograd.grad(out, learned, torch.ones_like(out), allow_unused=True)
                del out
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.forth, stream=stream):
                out = make(*self.given)
            self.g = torch.zeros_like(out)
            with torch.cuda.graph(self.back, pool=self.forth.pool(), stream=stream):
                # retained, or the graph would write over what it reads, and could be replayed for one loss only
                found = torch.autograd.grad(out, learned, self.g, retain_graph=True, allow_unused=True)
            grads = iter(found)
        self.out, self.grads = out.detach(), [next(grads) if t.requires_grad else None for t in self.given]

    def forward(self, given: Sequence[Tensor]) -> Tensor:
        for mine, t in zip(self.given, given, strict=True):
            mine.copy_(t)
        self.forth.replay()
        return self.out.clone()

    def backward(self, g: Tensor) -> list[Tensor | None]:
        self.g.copy_(g)
        self.back.replay()
        return [None if grad is None else grad.clone() for grad in self.grads]


class _Kept:
    """A recorded pass and the one run of it whose gradient may still be asked for."""

    def __init__(self, recorded: Any):
        self.recorded, self.waits = recorded, False
        self.run: weakref.ref[Any] | None = None

    @property
    def free(self) -> bool:
        return not self.waits or self.run is None or self.run() is None


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: _Kept, *given: Tensor):
        ctx.kept, kept.run, kept.waits = kept, weakref.ref(ctx), True
        return kept.recorded.forward(given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        kept: _Kept = ctx.kept
        if kept.run is None or kept.run() is not ctx:
            raise RuntimeError(
                "a gradient of texts was asked for again, after these texts had been passed again: what it needs is "
                "gone; take all gradients of a step before the next, or train with train.graphs=false"
            )
        kept.waits = False
        return None, *kept.recorded.backward(g)


class Graphs:
    """Passes of a tower, by their kind: made as they are the first time, then recorded, then replayed.

    A pass whose run before is still waiting for its gradient is made as it is: a replay would write over what that
    needs. So nothing differs but the time, and the memory that recorded passes keep.
    """

    def __init__(self, record: Callable[..., Any] = Recorded):
        self.record, self.kinds = record, dict[Hashable, _Kept | None]()

    def __call__(self, make: Callable[[Prompt], Tensor], kind: Hashable, prompt: Prompt) -> Tensor:
        """make(prompt), for a prompt of tensors only; kind: what else it depends on."""
        given = [*prompt.tokens.values(), *(t for kv in prompt.prefix.values() for t in kv)]
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        counted = _get_current_dispatch_mode() is not None  # who counts operations wants to see them
        if not learns or counted or len(prompt.beside):
            return make(prompt)
        cast = given[0].device.type
        cast = torch.get_autocast_dtype(cast) if torch.is_autocast_enabled(cast) else None
        shapes = tuple((t.shape, t.dtype, t.requires_grad) for t in given)
        kind = kind, tuple(prompt.tokens), tuple(prompt.prefix), shapes, cast
        if kind not in self.kinds:
            self.kinds[kind] = None
            while len(self.kinds) > NOTED:
                del self.kinds[next(iter(self.kinds))]
            return make(prompt)
        kept = self.kinds.pop(kind)
        if kept is None:
            recorded = [k for k, v in self.kinds.items() if v is not None]
            if len(recorded) >= MOST:
                del self.kinds[recorded[0]]
            kept = _Kept(self.record(partial(_made, make, tuple(prompt.tokens), tuple(prompt.prefix)), given))
        self.kinds[kind] = kept  # the last one used is dropped last
        return _Replay.apply(kept, *given) if kept.free else make(prompt)  # pyright: ignore[reportReturnType]


def _made(
    make: Callable[[Prompt], Tensor], tokens: Sequence[int], prefix: Sequence[int | str], *given: Tensor
) -> Tensor:
    """make of the prompt of these tensors."""
    n = len(tokens)
    pairs = zip(given[n::2], given[n + 1 :: 2], strict=True)
    return make(Prompt(dict(zip(tokens, given[:n], strict=True)), dict(zip(prefix, pairs, strict=True))))
