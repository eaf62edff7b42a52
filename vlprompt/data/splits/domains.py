"""Select the images of a domain, and match the classes of two datasets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, as_class_name
from vlprompt.data.dataset import Data, normalize_name
from vlprompt.data.splits.sampling import hold_out, sample_few_shot
from vlprompt.runtime.errors import suggest_nearest


@dataclass(frozen=True)
class DomainData:
    """The images of one domain.

    Args:
        name: the name of the domain, or of a dataset that is a single domain.
        word: the name of the domain in texts.
        train: training images.
        val: validation images, if any.
        test: test images.
        is_transductive: whether the benchmark adapts to and tests on all images, so that the splits are not its own.
    """

    name: str
    word: str
    train: Split
    val: Split | None
    test: Split
    is_transductive: bool

    def select_classes(self, label_map: Mapping[int, int], names: Names) -> "DomainData":
        """Return the domain restricted to the classes of `label_map`, {label: index in names}."""

        def restrict(split: Split) -> Split:
            subset = split.select([i for i, label in enumerate(split.labels) if label in label_map])
            return replace(subset, labels=tuple(label_map[label] for label in subset.labels), names=names)

        val = None if self.val is None else restrict(self.val)
        return replace(self, train=restrict(self.train), val=val, test=restrict(self.test))

    @cached_property
    def all_images(self) -> Split:
        """The images of all splits."""
        return reduce(Split.concat, [split for split in (self.train, self.val, self.test) if split is not None])

    @cached_property
    def images_before_test(self) -> Split:
        """The images of train and val."""
        return replace(self, test=self.test.select([])).all_images

    @cached_property
    def training_images(self) -> Split:
        """The images to learn from: all of a transductive domain, train and val otherwise."""
        return self.all_images if self.is_transductive else self.images_before_test

    def source_splits(
        self, val_fraction: float, shots: int | None, seed: int
    ) -> tuple[Split, Split | None, Split | None]:
        """Return (train, val, test) for use as a source domain; test measures how well the source is retained.

        A transductive domain trains on all images but a held-out fraction, which serves as val and test. Other domains
        use their own splits, and hold out a fraction of train if they have no val.

        Args:
            val_fraction: the fraction of each class to hold out; 0 trains on val too.
            shots: images per class, None for all.
            seed: draws the shots.
        """
        train, val, test = (
            (self.all_images, None, None) if self.is_transductive else (self.train, self.val or None, self.test)
        )
        if not val_fraction and val is not None:
            train, val = train.concat(val), None
        elif val_fraction and val is None:
            train, val = hold_out(train, val_fraction)
        if shots is not None:
            # a class without images here may have some in another source
            present = [label for label, count in enumerate(train.count_per_class()) if count]
            sample = sample_few_shot(train.select_classes(present), None, shots, seed)[0]
            train = replace(sample, labels=tuple(present[label] for label in sample.labels), names=train.names)
        return train, val, val if test is None else test


def list_domains(data: Data) -> list[str]:
    """Return the names of a dataset's domains in its order; empty for a dataset without domains."""
    names = data.test.info.get("domains")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def list_domain_pairs(data: Data) -> list[tuple[str, str]]:
    """Return a benchmark's (source, target) pairs: those that its card lists, else all ordered pairs."""
    pairs, domains = data.test.info.get("pairs"), list_domains(data)
    if isinstance(pairs, list):
        return [(source, target) for source, target in pairs]
    return [(source, target) for target in domains for source in domains if source != target]


def select_domain(data: Data, name: str) -> DomainData:
    """Return one domain of a dataset; ValueError for an unknown name."""
    domains = list_domains(data)
    if name not in domains:
        remedy = (
            suggest_nearest(name, domains)
            if domains
            else "it has no domains, so it can be a source or target only as a whole. Leave the domain out."
        )
        raise ValueError(f"{data.name}: expected one of its domains, got {name!r}; {remedy}")
    index = domains.index(name)

    def select(split: Split) -> Split:
        return split.select([i for i, domain in enumerate(split.domains or ()) if domain == index])

    return _build_domain(data, name, name, select)


def as_single_domain(data: Data) -> DomainData:
    """Return a whole dataset as one domain."""
    return _build_domain(data, data.name, str(data.test.info.get("domain", data.name)), lambda split: split)


def _build_domain(data: Data, name: str, word: str, select: Callable[[Split], Split]) -> DomainData:
    def select_plain(split: Split) -> Split:
        return replace(select(split), domains=None, info={})

    val = None if data.val is None else select_plain(data.val)
    is_transductive = bool(data.test.info.get("transductive", False))
    return DomainData(name, word, select_plain(data.train), val, select_plain(data.test), is_transductive)


def _normalize_caption(name: str) -> str:
    template = as_class_name(name).template
    return normalize_name((template or "{name}").replace("{name}", name))


def match_classes(source_names: Names, target_names: Names) -> tuple[list[int | None], str]:
    """Match the classes of two datasets by name, else by their filled-in templates.

    For example, "digit zero" in "a photo of the {name}." matches "zero" in "a photo of the digit {name}.".

    Returns:
        For each target class the index of its source class, None where there is none; and the criterion.

    Raises:
        ValueError: if two classes of one dataset are called alike.
    """
    best: tuple[list[int | None], str] = [None] * len(target_names), "by name"
    for criterion, normalize in (("by name", normalize_name), ("by their captions", _normalize_caption)):
        source_indices = _index_by_key([normalize(name) for name in source_names], source_names)
        target_keys = _index_by_key([normalize(name) for name in target_names], target_names)
        matches = [source_indices.get(key) for key in target_keys]
        if sum(match is not None for match in matches) > sum(match is not None for match in best[0]):
            best = matches, criterion
    return best


def _index_by_key(keys: Sequence[str], names: Names) -> dict[str, int]:
    if repeated := [i for i, key in enumerate(keys) if key in keys[:i]]:
        first = keys.index(keys[repeated[0]])
        raise ValueError(
            "classes: expected names that differ in more than case, spaces, _ and -, to match them with another "
            f"dataset's, got {str(names[first])!r} and {str(names[repeated[0]])!r}. Rename one."
        )
    return {key: i for i, key in enumerate(keys)}


def merge_sources(splits: Sequence[Split]) -> Split:
    """Concatenate source splits; an item's domain is the index of its split. A single split has no domains."""
    merged = reduce(Split.concat, splits)
    domains = None if len(splits) == 1 else tuple(k for k, split in enumerate(splits) for _ in range(len(split)))
    names_by_split: list[Any] = [split.info.get("undersized_classes", []) for split in splits]
    undersized = list(dict.fromkeys(name for names in names_by_split for name in names))
    info = merged.info | ({"undersized_classes": undersized} if undersized else {})
    return replace(merged, domains=domains, info=info)
