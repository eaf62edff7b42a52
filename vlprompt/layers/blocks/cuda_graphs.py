"""Passes on a GPU that are recorded once and replayed (CUDA graphs): one launch instead of thousands of small ones."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vlprompt.core.prompt import Prompt
from vlprompt.runtime.memory import TensorMemoryTracker

MAX_RECORDED_PASSES = 4  # each keeps the memory of one pass
MAX_KNOWN_KINDS = 64  # kinds of pass that are remembered; one that occurs again is recorded


class Replayable(Protocol):
    """A pass that can be replayed with other inputs, and its derivative."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor: ...
    def backward(self, grad_output: Tensor) -> list[Tensor | None]: ...


class RecordedPass:
    """fn(*inputs) and its derivative as two graphs, with memory of their own that each replay overwrites.

    Whatever else fn reads must be referenced by fn, which is referenced here.
    """

    def __init__(self, fn: Callable[..., Tensor], inputs: Sequence[Tensor]):
        self.fn, self.inputs = fn, [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        trained, stream = [t for t in self.inputs if t.requires_grad], torch.cuda.Stream()
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # a recording can't use the memory of passes before it
        stream.wait_stream(torch.cuda.current_stream())
        # replays would overwrite the casts of weights that autocast caches
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            with torch.cuda.stream(stream):  # libraries initialise in the first pass, which no graph can record
                out = fn(*self.inputs)
                torch.autograd.grad(out, trained, torch.ones_like(out), allow_unused=True)
                del out
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # nor that of this first pass
            with torch.cuda.graph(self.forward_graph, stream=stream):
                out = fn(*self.inputs)
            self.grad_output = torch.zeros_like(out)
            with torch.cuda.graph(self.backward_graph, pool=self.forward_graph.pool(), stream=stream):
                # retained, or the graph would overwrite what it reads, and could be replayed for one loss only
                grads = torch.autograd.grad(out, trained, self.grad_output, retain_graph=True, allow_unused=True)
        remaining = iter(grads)
        self.output = out.detach()
        self.input_grads = [next(remaining) if t.requires_grad else None for t in self.inputs]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        for static_input, t in zip(self.inputs, inputs, strict=True):
            static_input.copy_(t)
        self.forward_graph.replay()
        return self.output.clone()

    def backward(self, grad_output: Tensor) -> list[Tensor | None]:
        self.grad_output.copy_(grad_output)
        self.backward_graph.replay()
        return [None if grad is None else grad.clone() for grad in self.input_grads]


class _PassSlot:
    """A recorded pass and its last run, whose gradient may still be needed."""

    def __init__(self, recorded: Replayable):
        self.recorded_pass, self.is_awaiting_backward = recorded, False
        self.last_run: weakref.ref[_ReplayContext] | None = None

    @property
    def is_free(self) -> bool:
        return not self.is_awaiting_backward or self.last_run is None or self.last_run() is None


class _ReplayContext(Protocol):
    """What a replay saves for its backward pass."""

    slot: _PassSlot


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _ReplayContext, slot: _PassSlot, *inputs: Tensor):
        ctx.slot, slot.last_run, slot.is_awaiting_backward = slot, weakref.ref(ctx), True
        return slot.recorded_pass.forward(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ReplayContext, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        slot = ctx.slot
        if slot.last_run is None or slot.last_run() is not ctx:
            raise RuntimeError(
                "CUDA graphs: expected one backward pass of these texts before their next forward pass, got another "
                "after it, when what it needs is gone. Take all gradients of a step before the next, or set "
                "train.cuda_graphs=false."
            )
        slot.is_awaiting_backward = False
        return None, *slot.recorded_pass.backward(g)


class CudaGraphCache:
    """Passes of a tower by their kind: run plainly the first time, then recorded, then replayed.

    A pass whose last run still waits for its gradient is run plainly, as a replay would overwrite what that needs. So
    nothing differs but time, and the memory that recorded passes keep.
    """

    def __init__(self, record_fn: Callable[..., Replayable] = RecordedPass):
        self.record_fn, self.slots_by_kind = record_fn, dict[Hashable, _PassSlot | None]()

    def __call__(self, fn: Callable[[Prompt], Tensor], kind: Hashable, prompt: Prompt) -> Tensor:
        """Compute fn(prompt).

        Args:
            fn: the pass.
            kind: all that the pass depends on besides the prompt.
            prompt: tensors only; a prompt with adapters is run plainly.
        """
        structure, inputs = _take_apart(prompt)
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        is_traced = _get_current_dispatch_mode() is not None  # a mode that counts operations must see them
        if not needs_grad or is_traced or len(prompt.adapters):
            return fn(prompt)
        kind = self._describe_pass((kind, structure), inputs)
        if kind not in self.slots_by_kind:
            self._remember(kind)
            return fn(prompt)
        slot = self.slots_by_kind.pop(kind) or self._record(partial(_call_with_tensors, fn, structure), inputs)
        self.slots_by_kind[kind] = slot  # at the end: the last one used is dropped last
        return _Replay.apply(slot, *inputs) if slot.is_free else fn(prompt)  # pyright: ignore[reportReturnType]

    @staticmethod
    def _describe_pass(kind: Hashable, inputs: Sequence[Tensor]) -> Hashable:
        device = inputs[0].device.type
        autocast_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        shapes = tuple((t.shape, t.dtype, t.requires_grad) for t in inputs)
        return kind, shapes, autocast_dtype

    def _remember(self, kind: Hashable) -> None:
        self.slots_by_kind[kind] = None
        while len(self.slots_by_kind) > MAX_KNOWN_KINDS:
            del self.slots_by_kind[next(iter(self.slots_by_kind))]

    def _record(self, call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> _PassSlot:
        recorded = [kind for kind, slot in self.slots_by_kind.items() if slot is not None]
        if len(recorded) >= MAX_RECORDED_PASSES:
            del self.slots_by_kind[recorded[0]]
        return _PassSlot(self.record_fn(call, inputs))


class MeteredPass(NamedTuple):
    """The tensors of a pass and its derivative, in bytes: as it is recorded, which stay, and as it is run plainly."""

    recorded_bytes: int
    plain_bytes: int
    n_texts: int  # over all contexts


class RecordedPassMeter:
    """Stands in the place of a CudaGraphCache: runs every pass plainly, and measures once what recording it takes."""

    def __init__(self) -> None:
        self._passes = dict[Hashable, MeteredPass]()

    @property
    def passes(self) -> list[MeteredPass]:
        return list(self._passes.values())

    def __call__(self, fn: Callable[[Prompt], Tensor], kind: Hashable, prompt: Prompt) -> Tensor:
        """Compute fn(prompt); arguments as in CudaGraphCache."""
        structure, inputs = _take_apart(prompt)
        is_recorded = torch.is_grad_enabled() and any(t.requires_grad for t in inputs) and not prompt.adapters
        if is_recorded and _get_current_dispatch_mode() is None:
            kind = (kind, structure, tuple(t.shape for t in inputs))
            if kind not in self._passes:
                call = partial(_call_with_tensors, fn, structure)
                (recorded, n_texts), (plain, _) = (_measure_pass(call, inputs, keeps) for keeps in (True, False))
                self._passes[kind] = MeteredPass(recorded, plain, n_texts)
        return fn(prompt)


def _measure_pass(call: Callable[..., Tensor], inputs: Sequence[Tensor], keeps_graph: bool) -> tuple[int, int]:
    """Return the most bytes of tensors at once, and the texts of the output (R, C, E)."""
    with TensorMemoryTracker() as tracker:
        inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        trained = [t for t in inputs if t.requires_grad]
        out = call(*inputs)
        torch.autograd.grad(out, trained, torch.ones_like(out), retain_graph=keeps_graph, allow_unused=True)
    return tracker.peak_bytes, out.shape[0] * out.shape[1]


class _Structure(NamedTuple):
    """A prompt without its tensors: the layers of its tokens, prefixes and of what they carry, and its numbers."""

    tokens: tuple[int, ...]
    prefix: tuple[int | str, ...]
    carry: tuple[int, ...]
    carried_numbers: tuple[tuple[int, float], ...]
    is_embedded: bool


def _take_apart(prompt: Prompt) -> tuple[_Structure, list[Tensor]]:
    """Return the structure of a prompt and its tensors."""
    carry = {i: value for i, value in prompt.carry.items() if isinstance(value, Tensor)}
    numbers = tuple((i, value) for i, value in prompt.carry.items() if not isinstance(value, Tensor))
    structure = _Structure(tuple(prompt.tokens), tuple(prompt.prefix), tuple(carry), numbers, prompt.is_embedded)
    return structure, [*prompt.tokens.values(), *carry.values(), *(t for kv in prompt.prefix.values() for t in kv)]


def _call_with_tensors(fn: Callable[[Prompt], Tensor], structure: _Structure, *tensors: Tensor) -> Tensor:
    """Call fn with the prompt of these tensors."""
    n = len(structure.tokens)
    m = n + len(structure.carry)
    carry = dict(zip(structure.carry, tensors[n:m], strict=True)) | dict(structure.carried_numbers)
    pairs = zip(tensors[m::2], tensors[m + 1 :: 2], strict=True)
    tokens, prefix = (
        dict(zip(structure.tokens, tensors[:n], strict=True)),
        dict(zip(structure.prefix, pairs, strict=True)),
    )
    return fn(Prompt(tokens, prefix, carry=carry, is_embedded=structure.is_embedded))
