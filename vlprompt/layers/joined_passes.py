"""Passes of a frozen tower for several trainings at once: the prompts of all are rows of one pass.

Rows of one pass do not see each other, so that each training has the features that it would have alone. What differs by
training is cut out by rows: tokens, images, and adapters, each of which sees the rows of its own training.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from vlprompt.core.images import PixelBatch
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
    trained = [*prompt.tokens.values(), *(p for module in modules for p in module.parameters())]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in trained):
        return False
    has_apart_rows = len(modules) == len(adapters) and not prompt.mixes_rows and not len(prompt.prefix)
    carries_tensors = any(isinstance(carry, Tensor) for carry in prompt.carry.values())
    return has_apart_rows and not carries_tensors and (output == "pooled" or not takes_texts)


class _WatchedTower:
    """A tower that hands passes which can be joined to a function; all else is the tower's own."""

    def __init__(self, tower: Tower, run_pass: Callable[[TowerPass], Tensor]):
        self.tower, self.run_pass = tower, run_pass

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["tower"], name)

    def __call__(self, inputs: Any, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        tower: Any = self.tower
        takes_texts = not hasattr(tower, "preprocessing")
        if not can_join(prompt, output, takes_texts):
            return tower(inputs, prompt, output)
        device = tower.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        inputs = tuple(inputs) if takes_texts else inputs.pixels(tower.preprocessing).to(tower.device)
        return self.run_pass(TowerPass(tower, inputs, prompt, output, autocast))


def watch_passes(backbone: Backbone, run_pass: Callable[[TowerPass], Tensor]) -> Any:
    """Return the backbone with towers that hand their passes which can be joined to a function."""
    if isinstance(backbone, Clip):
        image: Any = _WatchedTower(backbone.image, run_pass)
        text: Any = _WatchedTower(backbone.text, run_pass)
        return replace(backbone, image=image, text=text)
    return _WatchedTower(backbone, run_pass) if isinstance(backbone, VisionTower) else backbone


def run_joined(passes: Sequence[TowerPass], turns: Sequence[RandomTurn]) -> Sequence[Tensor]:
    """Run passes of one key as one, and return the features of each with their graph.

    Args:
        passes: of the trainings.
        turns: the random numbers of each training, for its adapters' dropout.
    """
    first, n = passes[0], len(passes)
    tokens = {i: torch.cat([_expand_tokens(p, i) for p in passes]) for i in first.prompt.tokens}
    adapters = {site: join_adapters([p.prompt.adapters[site] for p in passes], turns) for site in first.prompt.adapters}
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

    down: Tensor  # (n, rank, fan_in)
    up: Tensor  # (n, fan_out, rank)
    scale: float

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        update = given.reshape(len(self.down), -1, given.shape[-1]) @ self.down.mT @ self.up.mT
        return made + self.scale * update.view_as(made)


class _DroppedInput:
    """Low-rank updates of inputs with dropout, each by the random numbers of its training."""

    def __init__(self, adapters: Sequence[LowRankAdapter], turns: Sequence[RandomTurn], update: _JoinedUpdate):
        self.adapters, self.turns, self.update = adapters, turns, update

    def __call__(self, given: Tensor, made: Tensor) -> Tensor:
        dropped = list[Tensor]()
        for adapter, turn, part in zip(self.adapters, self.turns, given.chunk(len(self.adapters)), strict=True):
            with turn():
                dropped.append(adapter.dropout(part))
        return self.update(torch.cat(dropped), made)


def join_adapters(adapters: Sequence[Any], turns: Sequence[RandomTurn]) -> AdapterFn:
    """Return the adapters of several trainings at one site as one."""
    if not all(type(adapter) is LowRankAdapter for adapter in adapters):
        return _JoinedAdapter(adapters, turns)
    first = adapters[0]
    stacks = torch.stack([a.down for a in adapters]), torch.stack([a.up for a in adapters])
    update = _JoinedUpdate(*stacks, first.scale)
    return _DroppedInput(adapters, turns, update) if first.dropout.p and first.training else update
