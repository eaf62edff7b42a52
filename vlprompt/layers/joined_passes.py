"""Passes of a frozen tower for several trainings at once: the prompts of all are rows of one pass.

Rows of one pass do not see each other, so that each training has the features that it would have alone. What differs by
training is cut out by rows: tokens, images, and adapters, each of which sees the rows of its own training.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from vlprompt.core.images import Images, PixelBatch, Preprocessing
from vlprompt.core.prompt import NOTHING, AdapterFn, Prompt
from vlprompt.core.towers import Backbone, Clip, Tower, VisionTower
from vlprompt.layers.adapters import LowRankAdapter

# a block in which random numbers are those of one training
RandomTurn: TypeAlias = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TowerPass:
    """A pass of a tower with something trained, for one training.

    Args:
        tower: the frozen tower.
        inputs: texts, or pixels (B, 3, h, w).
        prompt: of the training, with its graph.
        output: of the tower.
        autocast: the precision under which it is asked for; None for that of the tensors.
    """

    tower: Any
    inputs: tuple[str, ...] | Tensor
    prompt: Prompt
    output: str
    autocast: torch.dtype | None

    @property
    def takes_images(self) -> bool:
        """Whether its inputs are pixels."""
        return isinstance(self.inputs, Tensor)

    @property
    def n_rows(self) -> int:
        """Rows of features: images, or contexts of texts."""
        if self.takes_images:
            return len(self.inputs)
        return max((len(t) for t in self.prompt.tokens.values()), default=1)

    @property
    def n_tokens(self) -> int:
        """Tokens of an image, with those of the prompt."""
        return len(self.tower.position_embeddings) + self.prompt.length

    @property
    def key(self) -> object:
        """What passes have in common that can be one."""
        prompt = self.prompt
        inputs = (self.inputs.shape, self.inputs.dtype) if isinstance(self.inputs, Tensor) else self.inputs
        tokens = tuple((i, t.shape, t.dtype, t.requires_grad) for i, t in prompt.tokens.items())
        structure = tokens, tuple(prompt.carry.items()), prompt.is_embedded, tuple(prompt.adapters)
        return id(self.tower), inputs, self.output, structure, self.autocast


def can_join(prompt: Prompt, output: str, takes_texts: bool) -> bool:
    """Whether a pass can be joined with others: its prompt is trained tokens and adapters that keep rows apart."""
    adapters = [prompt.adapters[site] for site in prompt.adapters]
    modules = [adapter for adapter in adapters if isinstance(adapter, nn.Module)]
    tensors = chain(prompt.tokens.values(), (p for module in modules for p in module.parameters()))
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return False
    has_apart_rows = len(modules) == len(adapters) and not prompt.mixes_rows and not len(prompt.prefix)
    carries_tensors = any(isinstance(carry, Tensor) for carry in prompt.carry.values())
    return has_apart_rows and not carries_tensors and (output == "pooled" or not takes_texts)


RunPass: TypeAlias = Callable[[TowerPass], Tensor]
Decode: TypeAlias = Callable[[Images, Preprocessing], Tensor]


class _WatchedTower:
    """A tower that hands passes which can be joined to a function; all else is the tower's own."""

    def __init__(self, tower: Tower, run_pass: RunPass, decode: Decode):
        self.tower, self.run_pass, self.decode = tower, run_pass, decode

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["tower"], name)

    def __call__(self, inputs: Any, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        tower: Any = self.tower
        takes_texts = not hasattr(tower, "preprocessing")
        if not can_join(prompt, output, takes_texts):
            return tower(inputs, prompt, output)
        device = tower.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        inputs = tuple(inputs) if takes_texts else self.decode(inputs, tower.preprocessing).to(tower.device)
        return self.run_pass(TowerPass(tower, inputs, prompt, output, autocast))


def watch_passes(backbone: Backbone, run_pass: RunPass, decode: Decode = Images.pixels) -> Any:
    """Return the backbone with towers that hand their passes which can be joined to a function.

    Args:
        backbone: the backbone.
        run_pass: computes the features of a pass.
        decode: gives the pixels of its images.
    """
    if isinstance(backbone, Clip):
        image: Any = _WatchedTower(backbone.image, run_pass, decode)
        text: Any = _WatchedTower(backbone.text, run_pass, decode)
        return replace(backbone, image=image, text=text)
    return _WatchedTower(backbone, run_pass, decode) if isinstance(backbone, VisionTower) else backbone


def run_joined(passes: Sequence[TowerPass], turns: Sequence[RandomTurn]) -> Sequence[Tensor]:
    """Run passes of one key as one, and return the features of each with their graph.

    Args:
        passes: of the trainings.
        turns: the random numbers of each training, for its adapters' dropout.
    """
    first, n = passes[0], len(passes)
    tokens = {i: torch.cat([_expand_tokens(p, i) for p in passes]) for i in first.prompt.tokens}
    adapters = join_adapters({site: [p.prompt.adapters[site] for p in passes] for site in first.prompt.adapters}, turns)
    prompt = replace(first.prompt, tokens=tokens, adapters=adapters, n_contexts=n)
    inputs: Any = first.inputs
    if isinstance(inputs, Tensor):
        inputs = PixelBatch(torch.cat([p.inputs for p in passes if isinstance(p.inputs, Tensor)]))
    # an autocast that the caller is in belongs to one of the trainings
    autocast = torch.autocast(first.tower.device.type, first.autocast, enabled=first.autocast is not None)
    with torch.enable_grad(), autocast:
        return first.tower(inputs, prompt, first.output).chunk(n)


def run_alone(one: TowerPass) -> Tensor:
    """Run a pass for its training alone."""
    inputs: Any = PixelBatch(one.inputs) if isinstance(one.inputs, Tensor) else one.inputs
    return one.tower(inputs, one.prompt, one.output)


def _expand_tokens(one: TowerPass, layer: int) -> Tensor:
    """Tokens of a layer: with a row for each context of texts, or as many as they have, 1 or one for each image."""
    t = one.prompt.tokens[layer]
    return t if isinstance(one.inputs, Tensor) or len(t) == one.n_rows else t.expand(one.n_rows, *t.shape[1:])


class _JoinedAdapter:
    """The adapters of several trainings at one site, each of which changes the rows of its own."""

    def __init__(self, adapters: Sequence[AdapterFn], turns: Sequence[RandomTurn]):
        self.adapters, self.turns = adapters, turns

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        rows = zip(given.chunk(len(self.adapters)), made.chunk(len(self.adapters)), strict=True)
        parts = list[Tensor]()
        for adapter, turn, (given_rows, made_rows) in zip(self.adapters, self.turns, rows, strict=True):
            with turn():
                parts.append(adapter(given_rows, made_rows))
        return torch.cat(parts)


class _JoinedUpdate(NamedTuple):
    """Low-rank updates of several trainings at one site, as products of stacks."""

    down: Tensor  # (M, r, in)
    up: Tensor  # (M, out, r)
    scale: float

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        n = len(self.down)
        low = given.reshape(n, -1, given.shape[-1]) @ self.down.mT
        updated = torch.baddbmm(made.reshape(n, -1, made.shape[-1]), low, self.up.mT, alpha=self.scale)
        return updated.view_as(made)


class _DroppedInput:
    """Low-rank updates of inputs with dropout, each by the random numbers of its training."""

    def __init__(self, update: _JoinedUpdate, dropout: nn.Dropout, turns: Sequence[RandomTurn]):
        self.update, self.dropout, self.turns = update, dropout, turns

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        return self.update(_drop_by_turns(self.dropout, given, self.turns), made)


def _drop_by_turns(dropout: nn.Dropout, rows: Tensor, turns: Sequence[RandomTurn]) -> Tensor:
    """Drop entries of the rows of each training with its own random numbers."""
    if rows.device.type != "cpu" or dropout.p == 1:  # elsewhere one operation draws and multiplies
        parts = list[Tensor]()
        for turn, part in zip(turns, rows.chunk(len(turns)), strict=True):
            with turn():
                parts.append(dropout(part))
        return torch.cat(parts)
    kept = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for turn, part in zip(turns, kept.chunk(len(turns)), strict=True):
        with turn():
            part.bernoulli_(1 - dropout.p)  # as torch's dropout draws
    return rows * kept.div_(1 - dropout.p)


def join_adapters(by_site: Mapping[str, Sequence[Any]], turns: Sequence[RandomTurn]) -> dict[str, AdapterFn]:
    """Return the adapters of several trainings at each site as one."""
    low_rank = {site: adapters for site, adapters in by_site.items() if _are_alike(adapters)}
    downs = _stack_by_shape({site: [adapter.down for adapter in adapters] for site, adapters in low_rank.items()})
    ups = _stack_by_shape({site: [adapter.up for adapter in adapters] for site, adapters in low_rank.items()})
    return {
        site: _join_low_rank(adapters[0], downs[site], ups[site], turns)
        if site in low_rank
        else _JoinedAdapter(adapters, turns)
        for site, adapters in by_site.items()
    }


def _are_alike(adapters: Sequence[Any]) -> bool:
    """Whether adapters are low-rank updates that differ in the values of their tensors alone."""
    if not all(type(adapter) is LowRankAdapter for adapter in adapters):
        return False
    kinds = {(one.scale, one.dropout.p, one.dropout.training, one.down.shape, one.up.shape) for one in adapters}
    return len(kinds) == 1


def _join_low_rank(first: LowRankAdapter, down: Tensor, up: Tensor, turns: Sequence[RandomTurn]) -> AdapterFn:
    """Return the update of the stacked factors; first: an adapter, whose settings are those of all."""
    update, dropout = _JoinedUpdate(down, up, first.scale), first.dropout
    return _DroppedInput(update, dropout, turns) if dropout.p and dropout.training else update


def _stack_by_shape(by_site: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of each site; all those of one shape by one operation, forward and backward."""
    sites: dict[torch.Size, list[str]] = defaultdict(list)
    for site, tensors in by_site.items():
        sites[tensors[0].shape].append(site)
    stacks = dict[str, Tensor]()
    for alike in sites.values():
        together = torch.stack([tensor for site in alike for tensor in by_site[site]])
        stacks |= zip(alike, together.unflatten(0, (len(alike), -1)).unbind(), strict=True)
    return stacks
