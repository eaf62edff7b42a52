"""Apply compute options to the towers of a method, and list their feature caches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS, ComputeOptions
from vlprompt.core.images import Preprocessing
from vlprompt.core.towers import Clip, FeatureStore, LanguageTower, Tower, VisionTower
from vlprompt.runtime.memory import return_freed_memory


@runtime_checkable
class ConfigurableTower(Protocol):
    """A block-wise tower, whose compute options may be set."""

    compute_options: ComputeOptions
    depth: int


class RecordingTower(Protocol):
    """A tower whose passes are recorded as CUDA graphs."""

    cuda_graphs: Any


@contextmanager
def apply_compute_options(method: nn.Module, options: ComputeOptions) -> Iterator[None]:
    """Apply compute options to the method's towers inside the with-block.

    Raises:
        ValueError: if an option is set that no tower of the method supports.
    """
    towers = [] if options == DEFAULT_COMPUTE_OPTIONS else _unique_towers(method)
    language = [t for t in towers if isinstance(t, LanguageTower)]
    blockwise = [t for t in towers if t not in language and isinstance(t, ConfigurableTower) and t.depth]
    _require_support(method, options, language, blockwise)
    if options.activation_checkpointing or options.text_micro_batch:
        return_freed_memory()
    try:
        _set_options(language, blockwise, options)
        yield
    finally:
        _set_options(language, blockwise, DEFAULT_COMPUTE_OPTIONS)


def feature_caches(method: nn.Module) -> list[FeatureStore]:
    """The feature caches of a method's towers, each once, in an order that is the same in every process."""
    owners = (
        value for value in _iter_towers(method) if getattr(value, "__dict__", {}).get("feature_cache") is not None
    )
    caches = (vars(owner)["feature_cache"] for owner in owners if isinstance(owner, Tower))  # slow, so asked last
    return list({id(cache): cache for cache in caches}.values())


def recording_towers(method: nn.Module) -> list[RecordingTower]:
    """The towers of a method that record passes as CUDA graphs, each once."""
    owners = (value for value in _iter_towers(method) if getattr(value, "__dict__", {}).get("cuda_graphs") is not None)
    return list({id(tower): cast(RecordingTower, tower) for tower in owners}.values())


def find_preprocessings(method: nn.Module) -> list[Preprocessing]:
    """The preprocessings of a method's image towers, each once."""
    values = (getattr(tower, "__dict__", {}).get("preprocessing") for tower in _iter_towers(method))
    return list(dict.fromkeys(value for value in values if isinstance(value, Preprocessing)))


def _require_support(
    method: nn.Module,
    options: ComputeOptions,
    language: Sequence[LanguageTower],
    blockwise: Sequence[ConfigurableTower],
) -> None:
    texts = [tower for tower in blockwise if not isinstance(tower, VisionTower)]
    for option, value, towers in (
        ("activation_checkpointing", options.activation_checkpointing, [*blockwise, *language]),
        ("text_micro_batch", options.text_micro_batch, texts),
    ):
        if value and not towers:
            needed = "a CLIP's text tower" if option == "text_micro_batch" else "a block-wise tower"
            raise ValueError(
                f"train.{option}: expected a method on {needed}, got {type(method).__name__}. Leave {option} out."
            )


def _set_options(
    language: Sequence[LanguageTower], blockwise: Sequence[ConfigurableTower], options: ComputeOptions
) -> None:
    for tower in blockwise:
        tower.compute_options = options
    for tower in language:
        tower.activation_checkpointing = options.activation_checkpointing


def _unique_towers(method: nn.Module) -> list[object]:
    """Towers that take compute options, each once."""
    towers = (t for t in _iter_towers(method) if isinstance(t, LanguageTower | ConfigurableTower))
    return list({id(tower): tower for tower in towers}.values())


def _iter_towers(method: nn.Module) -> Iterator[object]:
    """All values that a method and its parts store, with both towers in place of a Clip."""
    for part in method.modules():
        for value in vars(part).values():
            yield from (value.image, value.text) if isinstance(value, Clip) else (value,)
