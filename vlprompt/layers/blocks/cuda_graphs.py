"""Passes on a GPU that are recorded once and replayed (CUDA graphs): one launch instead of thousands of small ones."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingModuleSource]
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from vlprompt.core.prompt import Prompt
from vlprompt.layers.blocks.prompt_tensors import PromptForm, TakenPrompt, take_apart
from vlprompt.runtime.memory import TensorMemoryTracker

MAX_RECORDED_PASSES = 4  # each keeps the memory of one pass
MAX_KNOWN_KINDS = 64  # kinds of pass that are remembered; one that occurs again is recorded
INDEXING = "aten::index", "aten::index_put", "aten::index_put_"
DECOMPOSITIONS = "aten::_linalg_", "aten::linalg_matrix_exp"  # ask the device whether they succeeded, or how to go on

PassFn: TypeAlias = Callable[..., tuple[Tensor, ...]]  # fn(prompt, *tensors)


class Replayable(Protocol):
    """A pass that can be replayed with other inputs, and its derivative."""

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]: ...
    def backward(self, grad_outputs: Sequence[Tensor]) -> Sequence[Tensor | None]: ...


class RecordedPass:
    """fn(*inputs) and its derivative as two graphs, with memory of their own that each replay overwrites.

    Whatever else fn reads must be referenced by fn, which is referenced here.
    """

    def __init__(self, fn: PassFn, inputs: Sequence[Tensor]):
        self.fn, self.inputs = fn, [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        self.input_values = [t.detach() for t in self.inputs]
        trained, stream = [t for t in self.inputs if t.requires_grad], torch.cuda.Stream()
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # a recording can't use the memory of passes before it
        stream.wait_stream(torch.cuda.current_stream())
        # replays would overwrite the casts of weights that autocast caches
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), False):
            with torch.cuda.stream(stream):  # libraries initialise in the first pass, which no graph can record
                outputs = fn(*self.inputs)
                torch.autograd.grad(outputs, trained, [torch.ones_like(t) for t in outputs], allow_unused=True)
                del outputs
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # nor that of this first pass
            with torch.cuda.graph(self.forward_graph, stream=stream):
                outputs = fn(*self.inputs)
            self.grad_outputs = [torch.zeros_like(t) for t in outputs]
            with torch.cuda.graph(self.backward_graph, pool=self.forward_graph.pool(), stream=stream):
                # retained, or the graph would overwrite what it reads, and could be replayed for one loss only
                grads = torch.autograd.grad(outputs, trained, self.grad_outputs, retain_graph=True, allow_unused=True)
        remaining = iter(grads)
        self.outputs = [t.detach() for t in outputs]
        self.input_grads = [next(remaining) if t.requires_grad else None for t in self.inputs]

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        copy_all(self.input_values, inputs)
        self.forward_graph.replay()
        return clone_all(self.outputs)

    def backward(self, grad_outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
        copy_all(self.grad_outputs, grad_outputs)
        self.backward_graph.replay()
        cloned = iter(clone_all([grad for grad in self.input_grads if grad is not None]))
        return [None if grad is None else next(cloned) for grad in self.input_grads]


def copy_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into targets of their shapes, those of one type and layout by one operation.

    One tensor that is laid out otherwise (an expanded one) would have all copied one by one.
    """
    groups = defaultdict[object, tuple[list[Tensor], list[Tensor]]](lambda: ([], []))
    for target, value in zip(targets, values, strict=True):
        is_alike = target.dtype == value.dtype and target.stride() == value.stride()
        copied_to, copied = groups[target.dtype if is_alike else None]
        copied_to.append(target)
        copied.append(value)
    for copied_to, copied in groups.values():
        torch._foreach_copy_(copied_to, copied)  # pyright: ignore[reportPrivateImportUsage]


def clone_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Clone tensors by few operations, however many they are."""
    clones = [torch.empty_like(t) for t in tensors]
    copy_all(clones, tensors)
    return clones


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
        return tuple(slot.recorded_pass.forward(inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: _ReplayContext, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        slot = ctx.slot
        if slot.last_run is None or slot.last_run() is not ctx:
            raise RuntimeError(
                "CUDA graphs: expected one backward pass of these texts or images before their next forward pass, got "
                "another after it, when what it needs is gone. Take all gradients of a step before the next, or set "
                "train.cuda_graphs=false."
            )
        slot.is_awaiting_backward = False
        return None, *slot.recorded_pass.backward(grad_outputs)


class CudaGraphCache:
    """Passes of a tower by their kind: run plainly the first time, then recorded, then replayed.

    A pass whose last run still waits for its gradient is run plainly, as a replay would overwrite what that needs. So
    nothing differs but time, and the memory that recorded passes keep.
    """

    def __init__(self, record_fn: Callable[..., Replayable] = RecordedPass):
        self.record_fn, self.slots_by_kind = record_fn, dict[Hashable, _PassSlot | None]()
        self.plain_kinds = dict[Hashable, None]()  # of passes that another run would not repeat

    def __call__(
        self, fn: PassFn, kind: Hashable, prompt: Prompt, *tensors: Tensor, size: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Compute fn(prompt, *tensors).

        Args:
            fn: the pass.
            kind: all that the pass depends on besides the prompt and the tensors.
            prompt: one whose adapters can't be taken apart, or draw random numbers, is run plainly.
            tensors: more inputs, with or without gradient.
            size: of the pass, as a share of the largest that is recorded.
        """
        call = _describe_call(fn, kind, prompt, tensors) if size <= 1 else None
        if call is None or call.kind in self.plain_kinds:
            return fn(prompt, *tensors)
        if call.kind not in self.slots_by_kind:
            outputs, is_repeatable = _run_watched(call, fn, prompt, tensors)
            _remember(self.slots_by_kind if is_repeatable else self.plain_kinds, call.kind)
            return outputs
        slot = self.slots_by_kind.pop(call.kind) or self._record(call)
        self.slots_by_kind[call.kind] = slot  # at the end: the last one used is dropped last
        return _Replay.apply(slot, *call.inputs) if slot.is_free else fn(prompt, *tensors)  # pyright: ignore[reportReturnType]

    def _record(self, call: "_Call") -> _PassSlot:
        recorded = [kind for kind, slot in self.slots_by_kind.items() if slot is not None]
        if len(recorded) >= MAX_RECORDED_PASSES:
            del self.slots_by_kind[recorded[0]]
        return _PassSlot(self.record_fn(call.fn, call.inputs))


def _remember(kinds: dict[Hashable, Any], kind: Hashable) -> None:
    kinds[kind] = None
    while len(kinds) > MAX_KNOWN_KINDS:
        del kinds[next(iter(kinds))]


class _Call(NamedTuple):
    """A pass that may be recorded."""

    kind: Hashable
    prompt: TakenPrompt
    fn: PassFn  # of the inputs
    inputs: list[Tensor]


def _describe_call(fn: PassFn, kind: Hashable, prompt: Prompt, tensors: Sequence[Tensor]) -> _Call | None:
    """Describe a pass; None if it is run plainly: it makes no gradient, is traced, or has parts that can't be named."""
    # a mode that counts operations must see them, and a transform (vmap) has tensors of its own
    is_traced = _get_current_dispatch_mode() is not None or peek_interpreter_stack() is not None
    if is_traced or not torch.is_grad_enabled() or (taken := take_apart(prompt)) is None:
        return None
    inputs = [*taken.tensors, *tensors]
    if not any(t.requires_grad for t in inputs):
        return None
    device = inputs[0].device.type
    autocast_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    shapes = tuple((t.shape, t.dtype, t.requires_grad) for t in inputs)
    call = partial(_call_with_tensors, fn, taken.form, len(taken.tensors))
    return _Call((kind, taken.description, shapes, autocast_dtype), taken, call, inputs)


def _call_with_tensors(fn: PassFn, form: PromptForm, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call fn with the prompt of the first n tensors and with the others."""
    return fn(form.build(tensors[:n]), *tensors[n:])


def _run_watched(call: _Call, fn: PassFn, prompt: Prompt, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
    """Run a pass plainly, and return its outputs and whether a replay would make what another plain pass would.

    It does not if an adapter draws random numbers (dropout, whose masks a replay would not draw as the run does) or
    reads numbers from the device, if a pass changes its inputs or the settings of an adapter, or if an output has no
    gradient.
    """
    versions, watcher = call.prompt.versions, _Watcher()
    if len(prompt.adapters):
        with watcher:
            outputs = fn(prompt, *tensors)
    else:
        outputs = fn(prompt, *tensors)
    after, has_gradients = take_apart(prompt), all(t.requires_grad for t in outputs)
    is_unchanged = after is not None and after.description == call.prompt.description and after.versions == versions
    return outputs, is_unchanged and has_gradients and watcher.is_replayable


class _Watcher(TorchDispatchMode):
    """Tells whether an operation in the with-block can't be replayed."""

    is_replayable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)}
        varies = _draws(func, args, kwargs or {}) or _reads_values(func, args)
        self.is_replayable = self.is_replayable and not varies and len(devices) < 2
        return made


def _draws(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers; attention does with dropout alone."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.name == "dropout_p"}
    return "dropout_p" not in defaults or bool((defaults | given)["dropout_p"])


def _reads_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation reads values from the device: for Python as a number or a shape, or by itself."""
    name = func._schema.name
    if name in INDEXING:  # which finds the places of a mask, and has a shape of its own for masks alone
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
    return any(tag in func.tags for tag in tags) or name.startswith(DECOMPOSITIONS)


class MeteredPass(NamedTuple):
    """The tensors of a pass and its derivative, in bytes: as it is recorded, which stay, and as it is run plainly."""

    recorded_bytes: int
    plain_bytes: int
    size: float  # a share of the largest that is recorded


class RecordedPassMeter:
    """Stands in the place of a CudaGraphCache: runs every pass plainly, and measures once what recording it takes."""

    def __init__(self) -> None:
        self._passes = dict[Hashable, MeteredPass | None]()

    @property
    def passes(self) -> list[MeteredPass]:
        return [metered for metered in self._passes.values() if metered is not None]

    def __call__(
        self, fn: PassFn, kind: Hashable, prompt: Prompt, *tensors: Tensor, size: float = 0.0
    ) -> tuple[Tensor, ...]:
        """Compute fn(prompt, *tensors); arguments as in CudaGraphCache."""
        call = _describe_call(fn, kind, prompt, tensors) if size <= 1 else None
        if call is None or call.kind in self._passes:
            return fn(prompt, *tensors)
        outputs, is_repeatable = _run_watched(call, fn, prompt, tensors)
        self._passes[call.kind] = (
            MeteredPass(_measure_pass(call, True), _measure_pass(call, False), size) if is_repeatable else None
        )
        return outputs


def _measure_pass(call: _Call, keeps_graph: bool) -> int:
    """Return the most bytes of tensors at once."""
    with TensorMemoryTracker() as tracker:
        inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in call.inputs]
        trained = [t for t in inputs if t.requires_grad]
        outputs = call.fn(*inputs)
        ones = [torch.ones_like(t) for t in outputs]
        torch.autograd.grad(outputs, trained, ones, retain_graph=keeps_graph, allow_unused=True)
    return tracker.peak_bytes
