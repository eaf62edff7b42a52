"""What the processes of a run compute for each other: shares of the work, and frozen features, each of them once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vlprompt.runtime import distributed

T = TypeVar("T")
R = TypeVar("R")
_state = {"alike": False}


class _Some(NamedTuple):
    """Features of one shape, stacked (n, ...) on the CPU; device: the kind that they were computed on."""

    keys: list[str]
    tensors: Tensor
    device: str


Fresh = list[list[_Some]]  # of each store


def share(many: int) -> tuple[int, int]:
    """Where the share of this process of so many things begins and ends."""
    return many * distributed.rank() // distributed.size(), many * (distributed.rank() + 1) // distributed.size()


def shared(items: Iterable[T], work: Callable[[T], R], kept: Sequence[Any] = ()) -> Iterator[R]:
    """The work on each item, in order, each done by one process and told to all.

    kept: stores of features; what one process computes on the way is kept by all.
    """
    if distributed.size() == 1:
        yield from map(work, items)
        return
    left = iter(items)
    fresh(kept)  # from here on a store notes what is new
    while some := list(islice(left, distributed.size())):
        mine = [work(item) for item in some[distributed.rank() : distributed.rank() + 1]]
        told = distributed.gather((mine, fresh(kept)))
        hear(kept, [new for _, new in told])
        yield from (done for few, _ in told for done in few)


def fresh(kept: Sequence[Any]) -> Fresh:
    """What was computed here since this was last asked, to be told to the others."""
    found: Fresh = []
    for one in kept:
        new, one.fresh, by = one.fresh or {}, {}, dict[Any, list[str]]()
        for key, tensor in new.items():
            by.setdefault((tensor.shape, tensor.dtype, tensor.device.type), []).append(key)
        found.append([_Some(keys, torch.stack([new[k] for k in keys]).cpu(), of[2]) for of, keys in by.items()])
    return found


def hear(kept: Sequence[Any], told: Sequence[Fresh]) -> None:
    """Keep what the other processes have computed."""
    for k, every in enumerate(told):
        for one, new in zip(kept, every, strict=True) if k != distributed.rank() else ():
            for keys, tensors, device in new:
                for key, tensor in zip(keys, tensors.to(device), strict=True):
                    if one.get(key) is None:
                        one.hold(key, tensor.clone())


@contextmanager
def alike() -> Iterator[None]:
    """While all processes do the very same, in step: features that none of them has are shared out (see `divided`)."""
    was, _state["alike"] = _state["alike"], distributed.size() > 1
    try:
        yield
    finally:
        _state["alike"] = was


def divided(kept: Any, keys: Iterable[str | None], compute: Callable[[list[str]], object]) -> None:
    """Within `alike`: of the features that are asked for and that somebody lacks, each process computes a part.

    compute: computes and keeps those of some keys.
    """
    if not _state["alike"]:
        return
    lacking = distributed.gather([key for key in dict.fromkeys(keys) if key is not None and kept.get(key) is None])
    if every := list(dict.fromkeys(key for some in lacking for key in some)):
        begin, end = share(len(every))
        fresh([kept])
        compute([key for key in every[begin:end] if kept.get(key) is None])
        hear([kept], distributed.gather(fresh([kept])))


@contextmanager
def as_one(module: nn.Module) -> Iterator[None]:
    """`alike`, and then all have the state that the first process has made, to the last bit."""
    with alike():
        yield
    if distributed.size() > 1 and (state := module.state_dict()):
        told = distributed.of_first(lambda: {name: tensor.cpu() for name, tensor in state.items()})
        for name, tensor in state.items() if not distributed.first() else ():
            tensor.copy_(told[name])


def check_same(state: dict[str, Tensor], what: str) -> None:
    """ValueError where the processes do not hold the same, to the last bit."""
    if distributed.size() == 1:
        return
    import hashlib

    def told(tensor: Tensor) -> str:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.blake2b(raw.numpy().tobytes(), digest_size=8).hexdigest()

    every = distributed.gather({name: told(tensor) for name, tensor in state.items()})
    if other := [name for name in every[0] if any(one.get(name) != every[0][name] for one in every)]:
        raise ValueError(
            f"the {distributed.size()} processes hold different {', '.join(other[:3])} {what}: the method keeps "
            "something of the images that each process has seen; train it with one process"
        )
