"""Order, stages and replay memory of continual streams; pure functions of a seed."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vlprompt.core.batch import Split
from vlprompt.runtime.seeding import derive_seed, make_generator

PILOT_SEED = 1993  # of the class orders of PILOT, and of iCaRL's followers
# the order of iCaRL's own code for CIFAR-100 (arXiv:1611.07725), of its classes in alphabetical order
ICARL_ORDER = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32,
    45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73,
    1, 28, 6, 46, 62, 82, 53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89,
    43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39,
)  # fmt: skip


class BlurryClasses(NamedTuple):
    """The classes of a stochastic blurry stream.

    Args:
        groups: indices of the classes of each stage, where most or all of their images come.
        blurry: those of which a share of the images comes in other stages.
    """

    groups: list[list[int]]
    blurry: frozenset[int]


def resolve_order(ids: Sequence[str], order: str | Sequence[str], seed: int, what: str) -> list[int]:
    """Return the indices of classes or domains in stream order.

    Args:
        ids: the ids of the classes or domains.
        order: "natural", "seeded", "numpy-1993" and other seeds of NumPy's permutation, "pilot" (numpy-1993), "icarl"
            (iCaRL's for CIFAR-100), or all ids as a list.
        seed: shuffles the "seeded" order.
        what: "classes", "domains" or "stages", for error messages.

    Raises:
        ValueError: for another order, and a list that does not name each id once.
    """
    if order == "natural":
        return list(range(len(ids)))
    if order == "seeded":
        return torch.randperm(len(ids), generator=make_generator(seed, "order of the stream")).tolist()
    if isinstance(order, str):
        return _resolve_named_order(ids, order, what)
    if sorted(order) != sorted(ids):
        invalid = [i for i in order if i not in ids] or [i for i in ids if i not in order]
        fault = f"{invalid[0]!r} is {'missing' if invalid[0] in ids else 'unknown'}" if invalid else "one is repeated"
        raise ValueError(
            f"task.order: expected each of the {len(ids)} {what} once, got a list where {fault}. Correct the list."
        )
    return [list(ids).index(i) for i in order]


def _resolve_named_order(ids: Sequence[str], order: str, what: str) -> list[int]:
    """Return an order of the literature."""
    if order == "icarl":
        if len(ids) != len(ICARL_ORDER) or list(ids) != sorted(ids):
            raise ValueError(
                f"task.order=icarl: expected the 100 classes of CIFAR-100 in alphabetical order, got "
                f"{len(ids)} {what}. Use cifar100, or another order."
            )
        return list(ICARL_ORDER)
    match = re.fullmatch(r"numpy-(\d+)", f"numpy-{PILOT_SEED}" if order == "pilot" else order)
    if match is None or int(match[1]) >= 2**32:
        raise ValueError(
            f"task.order: expected natural, seeded, pilot, icarl, numpy-SEED or a list of {what}, got {order!r}. Set "
            "task.order=natural."
        )
    return np.random.RandomState(int(match[1])).permutation(len(ids)).tolist()


def list_stream_domains(train: Split, dataset: str) -> list[str]:
    """Return the names of a split's domains in their order.

    Raises:
        ValueError: without domains, with only one, and if no class is in two domains.
    """
    names = train.info.get("domains")
    if train.domains is None or not isinstance(names, list | tuple):
        raise ValueError(
            f"dataset: expected domains for task.kind=domain_incremental, got {dataset} without domains. Use "
            "digit_domains, a .csv with a column domain, or a folder domain/class/image."
        )
    domains = [str(names[k]) for k in sorted(set(train.domains))]
    if len(domains) < 2:
        raise ValueError(
            f"dataset: expected at least two domains, got only {domains[0]} in {dataset}. Add another, or leave out "
            "task.kind=domain_incremental."
        )
    if len(set(zip(train.labels, train.domains, strict=True))) == len(set(train.labels)):
        raise ValueError(
            f"dataset: expected a class in two domains for task.kind=domain_incremental, got none in {dataset}. Leave "
            "out task.kind=domain_incremental."
        )
    return domains


def group_into_stages(
    ids: Sequence[str], stages: int | str | Sequence[Sequence[str]], order: Sequence[int], what: str
) -> list[list[int]]:
    """Return the indices of the classes or domains of each stage.

    Args:
        ids: the ids of the classes or domains.
        stages: the number of stages, whose sizes differ by one at most, the larger first; the sizes as PILOT names
            them, "B50-10" for 50 and then 10 each ("B0-10": 10 each, "Bhalf-10": half of them first; the last stage
            has what is left); or the ids of each stage.
        order: the indices in stream order; not used with the ids of each stage.
        what: "classes" or "domains", for error messages.

    Raises:
        ValueError: for more stages than classes, an empty stage, an id in two stages and an unknown id.
    """
    if isinstance(stages, int):
        if not 1 <= stages <= len(ids):
            raise ValueError(
                f"task.stages: expected 1 to {len(ids)}, as there are {len(ids)} {what}, got {stages}. Set a number "
                "in this range."
            )
        size, remainder = divmod(len(ids), stages)
        sizes = [size + (k < remainder) for k in range(stages)]
        return [list(order[sum(sizes[:k]) : sum(sizes[: k + 1])]) for k in range(stages)]
    if isinstance(stages, str):
        ends = np.cumsum(_parse_stage_sizes(stages, len(ids), what)).tolist()
        return [list(order[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
    if not stages:
        raise ValueError(
            f"task.stages: expected the {what} of each stage, got an empty list. Name them, or set the number of "
            "stages."
        )
    stage_by_id = dict[str, int]()
    for k, stage in enumerate(stages, 1):
        if not stage:
            raise ValueError(
                f"task.stages: expected {what} in each stage, got none in stage {k}. Name its {what}, or leave the "
                "stage out."
            )
        for i in stage:
            if i not in ids:
                raise ValueError(
                    f"task.stages: expected the {what} {_preview_ids(ids)}, got {i!r} in stage {k}. Correct the name."
                )
            if i in stage_by_id:
                raise ValueError(
                    f"task.stages: expected each of the {what} once, got {i!r} in stage {stage_by_id[i]} and in stage "
                    f"{k}. Remove one."
                )
            stage_by_id[i] = k
    return [[list(ids).index(i) for i in stage] for stage in stages]


def _parse_stage_sizes(stages: str, n: int, what: str) -> list[int]:
    match = re.fullmatch(r"B(\d+|half)-(?:Inc)?(\d+)", stages)
    increment = int(match[2]) if match else 0
    first = 0 if match is None else n // 2 if match[1] == "half" else int(match[1])
    if not increment or (first or increment) > n:
        raise ValueError(
            f"task.stages: expected a number of stages, or their sizes such as B0-10, B50-10 or Bhalf-10 of "
            f"{n} {what}, got {stages!r}. Set one of these."
        )
    sizes = [first or increment]
    while sum(sizes) < n:
        sizes.append(min(increment, n - sum(sizes)))
    return sizes


def draw_blurry_classes(order: Sequence[int], n_stages: int, disjoint_share: float, seed: int) -> BlurryClasses:
    """Draw the classes of a stochastic blurry stream (Si-Blurry; Moon et al., ICCV 2023, arXiv:2308.09303).

    Every stage has one class or more; how many more of the disjoint and of the blurry ones is drawn.

    Args:
        order: the classes.
        n_stages: how many stages.
        disjoint_share: share of the classes that come in one stage only.
        seed: of all draws.
    """
    generator = make_generator(seed, "blurry classes")
    n_disjoint = round(disjoint_share * len(order))
    is_disjoint = torch.zeros(len(order), dtype=torch.bool)
    is_disjoint[torch.randperm(len(order), generator=generator)[:n_disjoint]] = True
    groups = [[order[k]] for k in range(n_stages)]
    for kind in (True, False):
        rest = [order[i] for i in range(n_stages, len(order)) if bool(is_disjoint[i]) == kind]
        ends = torch.randint(len(rest) + 1, (n_stages - 1,), generator=generator).sort().values.tolist()
        for group, begin, end in zip(groups, [0, *ends], [*ends, len(rest)], strict=True):
            group.extend(rest[begin:end])
    return BlurryClasses(groups, frozenset(order[i] for i in range(len(order)) if not is_disjoint[i]))


def blur_stages(
    indices: Sequence[Sequence[int]], labels: Sequence[int], blurry: frozenset[int], share: float, seed: int
) -> list[list[int]]:
    """Deal a share of the items of each blurry class out to all stages, evenly and at random, and shuffle each stage.

    Args:
        indices: of the items of each stage.
        labels: of all items.
        blurry: the blurry classes.
        share: of the items of a class, rounded down, so that some remain unless it is 1.
        seed: draws the items, where they go, and the order of each stage.
    """
    generator = make_generator(seed, "blurred items")
    stages, moved = list[list[int]](), list[int]()
    for group in indices:
        by_class = dict[int, list[int]]()
        for i in group:
            by_class.setdefault(labels[i], []).append(i)
        for label, items in by_class.items():
            if label in blurry:
                chosen = torch.randperm(len(items), generator=generator)[: int(share * len(items))].tolist()
                moved += [items[c] for c in chosen]
        stages.append(list(group))
    is_moved = set(moved)
    stages = [[i for i in group if i not in is_moved] for group in stages]
    for position, i in enumerate(torch.randperm(len(moved), generator=generator).tolist()):
        stages[position % len(stages)].append(moved[i])
    return [[group[i] for i in torch.randperm(len(group), generator=generator).tolist()] for group in stages]


def _preview_ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:10]) + " ..." * (len(ids) > 10)


def blur_order(groups: Sequence[int], blur: float, seed: int) -> list[int]:
    """Return item indices in stream order, with overlapping tasks (the Gaussian schedule of arXiv:2112.08654).

    Args:
        groups: the task of each item.
        blur: the standard deviation of an item's time around its task, in task lengths; 0 separates the tasks.
        seed: draws the times.
    """
    sample_noise = torch.randn if blur else torch.rand  # without blur, items are shuffled within their task
    times = torch.tensor(groups) + (blur or 1) * sample_noise(
        len(groups), generator=make_generator(seed, "blurred stream")
    )
    return times.argsort(stable=True).tolist()


def update_memory(memory: Split | None, lesson: Split, capacity: int, seed: int, per_class: int = 0) -> Split:
    """Add a lesson to a replay memory of at most `capacity` items, equally many per class seen so far.

    Every item has a random rank derived from its name; the items of the lowest ranks in each class remain. With
    `per_class` that many of each class remain, however many classes there are.
    """
    candidates = lesson if memory is None else memory.concat(lesson)
    ranked_by_label: dict[int, list[tuple[int, int]]] = {
        label: [] for label in range(0 if memory is None else len(memory.names))
    }
    for i, (item, label) in enumerate(zip(candidates.items, candidates.labels, strict=True)):
        ranked_by_label.setdefault(label, []).append((derive_seed(seed, "memory", item.name), i))
    n_per_class = per_class or capacity // len(ranked_by_label)
    updated = candidates.select([i for ranked in ranked_by_label.values() for _, i in sorted(ranked)[:n_per_class]])
    return updated.select_classes(list(ranked_by_label))
