"""A prompt as tensors and a description of all else in it, from which it is built anew around other tensors."""

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlprompt.core.prompt import AdapterFn, Prompt
from vlprompt.layers.frozen_maps import FrozenLinear

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # those that every module has, which torch keeps
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN_TYPES = bool | int | float | str | torch.dtype | torch.device | None


class _UnnamedPartError(Exception):
    """Raised for a part of an adapter that may hold what a pass reads, where no tensor of it can be named."""


class _ModuleForm(NamedTuple):
    """An adapter that is a module; it is called with other tensors in place of those that it trains.

    The others are read where they lie, as frozen weights are: a replay sees what is written there.
    """

    module: nn.Module
    names: tuple[str, ...]
    fixed: tuple[Tensor, ...]

    def build(self, tensors: Sequence[Tensor]) -> AdapterFn:
        return _CalledModule(self.module, dict(zip(self.names, tensors, strict=True)))


class _CalledModule:
    """A module with other parameters and buffers."""

    def __init__(self, module: nn.Module, tensors: dict[str, Tensor]):
        self.module, self.tensors = module, tensors
        self.mixes_rows = getattr(module, "mixes_rows", False)

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        return functional_call(self.module, self.tensors, (given, made))


class _MethodCall(nn.Module):
    """A method of a module, with its first arguments, as a module."""

    def __init__(self, call: partial[Any]):
        super().__init__()
        method: Any = call.func
        self.owner, self.function, self.first = method.__self__, method.__func__, call.args

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return self.function(self.owner, *self.first, given, made)


class _TupleForm(NamedTuple):
    """An adapter that is a NamedTuple of tensors and settings, such as a low-rank update that one pass computes."""

    cls: Any
    settings: tuple[tuple[int, Any], ...]
    n_fields: int
    fixed: tuple[Tensor, ...] = ()

    @property
    def names(self) -> tuple[int, ...]:
        taken = {i for i, _ in self.settings}
        return tuple(i for i in range(self.n_fields) if i not in taken)

    def build(self, tensors: Sequence[Tensor]) -> AdapterFn:
        fields = dict(zip(self.names, tensors, strict=True)) | dict(self.settings)
        return self.cls._make(fields[i] for i in range(self.n_fields))


class PromptForm(NamedTuple):
    """A prompt without its tensors: the layers of its tokens, prefixes and of what they carry, numbers, and adapters.

    It holds no tensor of the pass that it was taken from, but the modules of its adapters and their fixed tensors.
    """

    tokens: tuple[int, ...]
    prefix: tuple[int | str, ...]
    carry: tuple[int, ...]
    carried_numbers: tuple[tuple[int, float], ...]
    is_embedded: bool
    n_contexts: int
    adapters: tuple[tuple[str, _ModuleForm | _TupleForm], ...]

    def build(self, tensors: Sequence[Tensor]) -> Prompt:
        """Return the prompt of these tensors."""
        rest = iter(tensors)
        tokens = {i: next(rest) for i in self.tokens}
        carry = {i: next(rest) for i in self.carry} | dict(self.carried_numbers)
        prefix = {i: (next(rest), next(rest)) for i in self.prefix}
        adapters = {site: form.build([next(rest) for _ in form.names]) for site, form in self.adapters}
        return Prompt(tokens, prefix, adapters, carry, self.is_embedded, self.n_contexts)


class TakenPrompt(NamedTuple):
    """A prompt taken apart.

    Args:
        form: builds a prompt of other tensors.
        description: equal for prompts that differ in the values of tensors alone, if tensors have the same shapes.
        tensors: of the prompt, in the order that `form` takes them.
    """

    form: PromptForm
    description: Hashable
    tensors: list[Tensor]

    @property
    def versions(self) -> list[int]:
        """How often each of its tensors was written into."""
        fixed = (t for _, form in self.form.adapters for t in form.fixed)
        return [t._version for t in (*self.tensors, *fixed)]


def take_apart(prompt: Prompt) -> TakenPrompt | None:
    """Take a prompt apart; None if an adapter has parts that can't be named.

    Adapters can be taken apart that are a module, whose attributes other than parameters, buffers and modules are
    settings; a method of one with its first arguments; or a NamedTuple of tensors and settings. A setting is a number,
    a text, a function without a closure, a fixed module or linear map in a tuple (a frozen norm), or a tuple or list of
    such.
    """
    carry = {i: value for i, value in prompt.carry.items() if isinstance(value, Tensor)}
    numbers = tuple((i, value) for i, value in prompt.carry.items() if not isinstance(value, Tensor))
    tensors = [*prompt.tokens.values(), *carry.values(), *(t for kv in prompt.prefix.values() for t in kv)]
    adapters, descriptions = list[tuple[str, _ModuleForm | _TupleForm]](), list[Hashable]()
    try:
        for site in prompt.adapters:
            form, description, parts = _take_adapter_apart(prompt.adapters[site])
            adapters.append((site, form))
            descriptions.append((site, description))
            tensors += parts
    except _UnnamedPartError:
        return None
    layers = tuple(prompt.tokens), tuple(prompt.prefix), tuple(carry), numbers, prompt.is_embedded, prompt.n_contexts
    return TakenPrompt(PromptForm(*layers, tuple(adapters)), (layers, *descriptions), tensors)


def _take_adapter_apart(adapter: object) -> tuple[_ModuleForm | _TupleForm, Hashable, list[Tensor]]:
    """Return form, description and tensors of an adapter."""
    if isinstance(adapter, partial) and isinstance(getattr(adapter.func, "__self__", None), nn.Module):
        adapter = adapter if adapter.keywords else _MethodCall(adapter)
    if isinstance(adapter, nn.Module):
        named = [*adapter.named_parameters(), *adapter.named_buffers()]
        trained = {name: t for name, t in named if t.requires_grad}
        fixed = tuple(t for _, t in named if not t.requires_grad)
        description = *((id(t), t.data_ptr(), t.shape, t.dtype) for t in fixed), *_iter_descriptions(adapter)
        return _ModuleForm(adapter, tuple(trained), fixed), (tuple(trained), *description), list(trained.values())
    if isinstance(adapter, tuple) and hasattr(adapter, "_fields"):
        settings = tuple((i, value) for i, value in enumerate(adapter) if not isinstance(value, Tensor))
        form = _TupleForm(type(adapter), settings, len(adapter))
        description = type(adapter), tuple((i, _describe(value)) for i, value in settings)
        return form, description, [value for value in adapter if isinstance(value, Tensor)]
    raise _UnnamedPartError


def _iter_descriptions(module: nn.Module) -> Iterator[Hashable]:
    """Yield what decides the passes of a module and its submodules besides their tensors."""
    for name, part in module.named_modules():
        attributes = vars(part)
        if any(attributes[hooks] for hooks in _HOOKS):
            raise _UnnamedPartError
        settings = ((key, _describe(attributes[key])) for key in attributes.keys() - _MODULE_ATTRIBUTES)
        yield name, type(part), part.training, frozenset(settings)


def _describe(setting: object) -> Hashable:
    """Describe a setting, such that equal descriptions have equal results."""
    if isinstance(setting, _PLAIN_TYPES):
        return type(setting), setting  # 1, 1.0 and True are equal
    if isinstance(setting, tuple | list):
        return type(setting), tuple(map(_describe, setting))
    if isinstance(setting, BuiltinFunctionType) or (isinstance(setting, FunctionType) and setting.__closure__ is None):
        return setting
    if isinstance(setting, nn.Module):
        tensors = [*setting.parameters(), *setting.buffers()]
        if not any(t.requires_grad for t in tensors):  # itself compared as an object, which the description keeps
            return setting, *((t.data_ptr(), t._version) for t in tensors), *_iter_descriptions(setting)
    if isinstance(setting, FrozenLinear) and not setting.weight.requires_grad:
        return FrozenLinear, id(setting)  # which the module keeps
    raise _UnnamedPartError
