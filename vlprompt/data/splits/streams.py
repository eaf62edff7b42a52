"""Order, stages and replay memory of continual streams; pure functions of a seed."""

from collections.abc import Sequence

import torch

from vlprompt.core.batch import Split
from vlprompt.runtime.seeding import derive_seed, make_generator


def resolve_order(ids: Sequence[str], order: str | Sequence[str], seed: int, what: str) -> list[int]:
    """Return the indices of classes or domains in stream order.

    Args:
        ids: the ids of the classes or domains.
        order: "natural", "seeded", or all ids as a list.
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
        raise ValueError(
            f"task.order: expected natural, seeded or a list of {what}, got {order!r}. Set task.order=natural."
        )
    if sorted(order) != sorted(ids):
        invalid = [i for i in order if i not in ids] or [i for i in ids if i not in order]
        fault = f"{invalid[0]!r} is {'missing' if invalid[0] in ids else 'unknown'}" if invalid else "one is repeated"
        raise ValueError(
            f"task.order: expected each of the {len(ids)} {what} once, got a list where {fault}. Correct the list."
        )
    return [list(ids).index(i) for i in order]


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
    ids: Sequence[str], stages: int | Sequence[Sequence[str]], order: Sequence[int], what: str
) -> list[list[int]]:
    """Return the indices of the classes or domains of each stage.

    Args:
        ids: the ids of the classes or domains.
        stages: the number of stages, whose sizes differ by one at most, the larger first, or the ids of each stage.
        order: the indices in stream order; only used with a number of stages.
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


def update_memory(memory: Split | None, lesson: Split, capacity: int, seed: int) -> Split:
    """Add a lesson to a replay memory of at most `capacity` items, equally many per class seen so far.

    Every item has a random rank derived from its name; the items of the lowest ranks in each class remain.
    """
    candidates = lesson if memory is None else memory.concat(lesson)
    ranked_by_label: dict[int, list[tuple[int, int]]] = {
        label: [] for label in range(0 if memory is None else len(memory.names))
    }
    for i, (item, label) in enumerate(zip(candidates.items, candidates.labels, strict=True)):
        ranked_by_label.setdefault(label, []).append((derive_seed(seed, "memory", item.name), i))
    n_per_class = capacity // len(ranked_by_label)
    updated = candidates.select([i for ranked in ranked_by_label.values() for _, i in sorted(ranked)[:n_per_class]])
    return updated.select_classes(list(ranked_by_label))
