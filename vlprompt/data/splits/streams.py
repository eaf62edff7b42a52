"""Streams: which classes or domains come when, in what order images come, what is kept; pure functions of a seed."""

from collections.abc import Sequence

import torch

from vlprompt.core.batch import Split
from vlprompt.runtime.seeding import generator, number


def ordered(every: Sequence[str], order: str | Sequence[str], seed: int, what: str) -> list[int]:
    """Places of classes or domains in the order asked for: "natural", "seeded", or all of them by their ids."""
    if order == "natural":
        return list(range(len(every)))
    if order == "seeded":
        return torch.randperm(len(every), generator=generator(seed, "order of the stream")).tolist()
    if isinstance(order, str):
        raise ValueError(f"task.order is natural, seeded or a list of {what}, not {order!r}")
    if sorted(order) != sorted(every):
        strange = [i for i in order if i not in every] or [i for i in every if i not in order]
        wrong = (
            f"{strange[0]!r} is {'missing' if strange[0] in every else 'none of them'}" if strange else "one is twice"
        )
        raise ValueError(f"task.order must name each of the {len(every)} {what} once; {wrong}")
    return [list(every).index(i) for i in order]


def domains_of(train: Split, dataset: str) -> list[str]:
    """The names of the domains of a split, in its own order; ValueError for data that can't be a stream of domains."""
    names = train.info.get("domains")
    if train.domains is None or not isinstance(names, list | tuple):
        raise ValueError(
            f"{dataset} has no domains, which task.kind=domain_incremental needs: take digit_domains, a .csv "
            "with a column domain, or a folder domain/class/image"
        )
    found = [str(names[k]) for k in sorted(set(train.domains))]
    if len(found) < 2:
        raise ValueError(f"{dataset} has the domain {found[0]} only; two are the least")
    if len(set(zip(train.labels, train.domains, strict=True))) == len(set(train.labels)):
        raise ValueError(f"no class of {dataset} is in two of its domains: leave out task.kind=domain_incremental")
    return found


def grouped(every: Sequence[str], stages: int | Sequence[Sequence[str]], order: Sequence[int],
            what: str) -> list[list[int]]:  # fmt: skip
    """Places of classes (or domains) of each stage: `stages` parts as even as they can be, or the parts named by ids.

    Where it doesn't come out even the first parts have one more. ValueError for more stages than classes, an empty
    stage, one in two stages, and an id that there is not.
    """
    if isinstance(stages, int):
        if not 1 <= stages <= len(every):
            raise ValueError(
                f"task.stages is {stages}, but there are {len(every)} {what}: 1 to {len(every)} are possible"
            )
        size, more = divmod(len(every), stages)
        sizes = [size + (k < more) for k in range(stages)]
        return [list(order[sum(sizes[:k]) : sum(sizes[: k + 1])]) for k in range(stages)]
    if not stages:
        raise ValueError(f"task.stages is an empty list; name the {what} of each stage, or how many stages there are")
    met = dict[str, int]()
    for k, part in enumerate(stages, 1):
        if not part:
            raise ValueError(f"stage {k} of task.stages is empty; name its {what}, or leave the stage out")
        for i in part:
            if i not in every:
                raise ValueError(f"stage {k} of task.stages names {i!r}, which is none of the {what}: {_some(every)}")
            if i in met:
                raise ValueError(f"task.stages has {i!r} in stage {met[i]} and in stage {k}; each comes once")
            met[i] = k
    return [[list(every).index(i) for i in part] for part in stages]


def _some(every: Sequence[str]) -> str:
    return ", ".join(every[:10]) + " ..." * (len(every) > 10)


def blurred(groups: Sequence[int], blur: float, seed: int) -> list[int]:
    """Places of items in the order in which they come: a bump in time for each part, one after another.

    groups: the part of each item. Items of a part come at times that are normal around its middle with `blur` lengths
    of a part as deviation (the Gaussian schedule of arXiv:2112.08654); 0 keeps the parts apart.
    """
    spread = torch.randn if blur else torch.rand  # without a blur the images of a part come at random within it
    times = torch.tensor(groups) + (blur or 1) * spread(len(groups), generator=generator(seed, "blurred stream"))
    return times.argsort(stable=True).tolist()


def kept(before: Split | None, lesson: Split, most: int, seed: int) -> Split:
    """What a memory of at most `most` items holds after one more lesson: equally many of each class that it has met.

    Every item has a random rank of its own, and of each class those of the least ranks are kept.
    """
    whole = lesson if before is None else before.plus(lesson)
    places: dict[int, list[tuple[int, int]]] = {
        label: [] for label in range(0 if before is None else len(before.names))
    }
    for place, (item, label) in enumerate(zip(whole.items, whole.labels, strict=True)):
        places.setdefault(label, []).append((number(seed, "memory", item.name), place))
    each = most // len(places)
    chosen = whole.of([place for found in places.values() for _, place in sorted(found)[:each]])
    return chosen.classes(list(places))
