"""Work that the processes of a run divide: items, and frozen features, each computed once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vlprompt.runtime import distributed

T = TypeVar("T")
R = TypeVar("R")
_state = {"lockstep": False}


class SharedCache(Protocol):
    """A feature cache that notes what it computed since the last exchange, once `unshared` is no longer None."""

    unshared: dict[str, Tensor] | None

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]: ...

    def add(self, key: str, tensor: Tensor) -> None: ...


class _FeatureBlock(NamedTuple):
    """Features of one shape, stacked (N, ...) on the CPU; device: the type of the one that computed them."""

    keys: list[str]
    tensors: Tensor
    device: str


NewFeatures = list[list[_FeatureBlock]]  # of each cache


def get_rank_slice(n_items: int) -> tuple[int, int]:
    """Return where this rank's slice of a list begins and ends."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    return n_items * rank // world_size, n_items * (rank + 1) // world_size


def map_distributed(items: Iterable[T], compute: Callable[[T], R], caches: Sequence[SharedCache] = ()) -> Iterator[R]:
    """Compute each item in one of the processes; all processes get all results, in order.

    Args:
        items: the same in all processes.
        compute: the work on an item.
        caches: feature caches; what one process adds on the way, all add.
    """
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    if world_size == 1:
        yield from map(compute, items)
        return
    remaining = iter(items)
    collect_new_features(caches)  # from here on the caches note what is new
    while group := list(islice(remaining, world_size)):
        results = [compute(item) for item in group[rank : rank + 1]]
        gathered = distributed.all_gather((results, collect_new_features(caches)))
        add_remote_features(caches, [features for _, features in gathered])
        yield from (result for rank_results, _ in gathered for result in rank_results)


def collect_new_features(caches: Sequence[SharedCache]) -> NewFeatures:
    """Return what this process has computed since the last call, to be sent to the others."""
    features: NewFeatures = []
    for cache in caches:
        new, cache.unshared = cache.unshared or {}, {}
        keys_by_kind = dict[tuple[torch.Size, torch.dtype, str], list[str]]()
        for key, tensor in new.items():
            keys_by_kind.setdefault((tensor.shape, tensor.dtype, tensor.device.type), []).append(key)
        features.append(
            [
                _FeatureBlock(keys, torch.stack([new[key] for key in keys]).cpu(), device)
                for (_, _, device), keys in keys_by_kind.items()
            ]
        )
    return features


def add_remote_features(caches: Sequence[SharedCache], new_features: Sequence[NewFeatures]) -> None:
    """Add what the other processes have computed.

    Args:
        caches: in the order of `collect_new_features`.
        new_features: of each rank.
    """
    for rank, rank_features in enumerate(new_features):
        if rank == distributed.get_rank():
            continue
        for cache, blocks in zip(caches, rank_features, strict=True):
            for keys, tensors, device in blocks:
                known = cache.get_many(keys)
                for key, tensor in zip(keys, tensors.to(device), strict=True):
                    if key not in known:
                        cache.add(key, tensor.clone())


@contextmanager
def in_lockstep() -> Iterator[None]:
    """Declare that all processes do the same within the with-block, so that they divide missing features.

    See `compute_missing_features`.
    """
    previous, _state["lockstep"] = _state["lockstep"], distributed.get_world_size() > 1
    try:
        yield
    finally:
        _state["lockstep"] = previous


def compute_missing_features(
    cache: SharedCache, keys: Iterable[str | None], compute: Callable[[list[str]], object]
) -> None:
    """Within `in_lockstep`, compute a slice of the features that any process lacks in each; else do nothing.

    Args:
        cache: of this process.
        keys: the features that are needed; None for images without a key.
        compute: computes the features of some keys and adds them to the cache.
    """
    if not _state["lockstep"]:
        return
    needed = [key for key in dict.fromkeys(keys) if key is not None]
    known = cache.get_many(needed)
    local = [key for key in needed if key not in known]
    if missing := list(dict.fromkeys(key for rank_keys in distributed.all_gather(local) for key in rank_keys)):
        begin, end = get_rank_slice(len(missing))
        collect_new_features([cache])
        mine = missing[begin:end]
        known = cache.get_many(mine)
        compute([key for key in mine if key not in known])
        add_remote_features([cache], distributed.all_gather(collect_new_features([cache])))


@contextmanager
def synchronize_state(module: nn.Module) -> Iterator[None]:
    """Run the with-block `in_lockstep`, then copy the state of the first process to all, bit for bit."""
    with in_lockstep():
        yield
    if distributed.get_world_size() > 1 and (state := module.state_dict()):
        main_state = distributed.broadcast_from_main(lambda: {name: tensor.cpu() for name, tensor in state.items()})
        if not distributed.is_main_process():
            for name, tensor in state.items():
                tensor.copy_(main_state[name])


def require_same_state(state: dict[str, Tensor], description: str) -> None:
    """ValueError where the processes do not have the same state, bit for bit."""
    if distributed.get_world_size() == 1:
        return
    digests = distributed.all_gather({name: _hash_tensor(tensor) for name, tensor in state.items()})
    main = digests[0]
    if different := [name for name in main if any(other.get(name) != main[name] for other in digests)]:
        raise ValueError(
            f"--processes: expected the same state in all {distributed.get_world_size()} processes, got different "
            f"{', '.join(different[:3])} {description}, because the method stores something of the images of its own "
            "process. Train it with one process."
        )


def _hash_tensor(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=8).hexdigest()
