"""Domain adaptation and generalisation: learn on one or several source domains, test on an unlabelled target.

Unsupervised adaptation sees the target's images without labels (Ganin et al., JMLR 2016, arXiv:1505.07818),
source-free adaptation sees them only after the source is gone (Liang et al., ICML 2020, arXiv:2002.08546), and domain
generalisation never sees them (Gulrajani and Lopez-Paz, ICLR 2021, arXiv:2007.01434).
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.stage import Lesson, Stage, UnknownTest
from vlprompt.data.dataset import Data
from vlprompt.data.loading import identify_dataset, resolve_dataset
from vlprompt.data.sources import require_folder, select_layout
from vlprompt.data.splits.domains import (
    DomainData,
    as_single_domain,
    list_domains,
    match_classes,
    merge_sources,
    select_domain,
)
from vlprompt.data.splits.label_hiding import anonymize_items, drop_labels
from vlprompt.metrics import DOMAIN_METRICS, domain_summary
from vlprompt.tasks._domain_classes import ClassChoice, add_unknown
from vlprompt.tasks._domain_search import Criterion, Phase, describe_choice, iter_search_stages, require_criterion
from vlprompt.tasks.few_shot import get_split_origin

DomainSetting = Literal["adapt", "source_free", "generalise"]
DatasetLike = str | Data
UNKNOWN_TARGET_METRICS = {
    "known": "mean over the known classes of the share of target images that are answered, and right",
    "unknown": "share of images of unknown classes that are refused, at a threshold that 5 % of source images miss",
    "h_score": "harmonic mean of known and unknown",
}


class Domain:
    """Learn on source domains, and test on a target domain.

    Args:
        dataset: the dataset with the domains; None if source and target are datasets, whose classes are matched by
            name.
        source: one source, a list, "rest" for all other domains, or "none".
        target: the target.
        setting: "adapt" (unlabelled target images during training), "source_free" (unlabelled target images, but only
            after the source; without a source the method starts from the target) or "generalise" (no target images;
            without a source no images at all, for methods that learn from class names).
        transductive: whether to test on the target images that were adapted to; None follows the benchmark.
        val_fraction: the fraction of each class to hold out of a source without validation images, for
            train.model_selection=val and for the accuracy on the source; 0 trains on all images.
        classes: ids of the target's classes, or "shared" for those that the sources have too; None for all, which the
            sources must have.
        target_classes: ids of the classes that the target has images of (partial adaptation); None for all.
        unknown_classes: ids of classes that the target has images of and the sources have not (open-set adaptation):
            among what is adapted to, and to be refused in the test.
        criterion: by which the settings are searched: "training-domain" (held-out images of the sources),
            "leave-one-domain-out" (each source in turn, after training on the others) or "test-domain" (labelled images
            of the target, an oracle); None where they are given.
        phase: "search" trains and judges by the criterion alone, without a test; "final" tests on the target.
        shots: images per class and source, None for all.
        seed: draws the shots.
        epoch_metrics: after each epoch, record the score of every model selection rule, the precision of the
            pseudo-labels and the test accuracy.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot, of those that are folders.
    """

    def __init__(
        self,
        dataset: DatasetLike | None = None,
        source: DatasetLike | list[DatasetLike] | None = None,
        target: DatasetLike | None = None,
        setting: DomainSetting = "adapt",
        transductive: bool | None = None,
        val_fraction: float = 0.1,
        classes: str | list[str] | None = None,
        shots: int | None = None,
        seed: int = 1,
        epoch_metrics: bool = True,
        target_classes: list[str] | None = None,
        unknown_classes: list[str] | None = None,
        criterion: Criterion | None = None,
        phase: Phase = "final",
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
    ):
        if setting not in ("adapt", "source_free", "generalise"):
            raise ValueError(
                f"task.setting: expected adapt, source_free or generalise, got {setting!r}. Set one of these."
            )
        if not 0 <= val_fraction < 1:
            raise ValueError(
                f"task.val_fraction: expected a fraction of the source from 0 to below 1, got {val_fraction}. "
                "Set task.val_fraction=0.1, or 0 to train on all images."
            )
        if isinstance(classes, str) and classes != "shared":
            raise ValueError(
                f"task.classes: expected 'shared' or a list of ids of the target's classes, got {classes!r}. "
                "Set one of these."
            )
        self.arguments = dataset, source, target
        self.dataset, self.target = dataset and identify_dataset(dataset), target and identify_dataset(target)
        if isinstance(source, list):
            self.source = [identify_dataset(one) for one in source]
        else:
            self.source = source and identify_dataset(source)
        self.setting, self.transductive, self.val_fraction, self.classes = setting, transductive, val_fraction, classes
        self.shots, self.seed, self.epoch_metrics = shots, seed, epoch_metrics
        self.target_classes, self.unknown_classes = target_classes, unknown_classes
        require_criterion(criterion, phase, setting)
        self.criterion: Criterion | None = criterion
        self.phase = phase
        self.augment, self.skip_broken, self.layout = augment, skip_broken, layout
        sources = source if isinstance(source, list) else [source]
        require_folder(layout, *([*sources, target] if dataset is None else [dataset]))

    @cached_property
    def data(self) -> Data | None:
        """The dataset with the domains, None if source and target are datasets."""
        return None if self.arguments[0] is None else self._open(self.arguments[0])

    def _open(self, dataset: DatasetLike) -> Data:
        layout = select_layout(self.layout, dataset)
        return resolve_dataset(dataset, self.augment, self.skip_broken, layout=layout)

    @property
    def opened_data(self) -> list[Data]:
        """The dataset with the domains, or the sources and the target."""
        if self.data is not None:
            return [self.data]
        return [*(data for _, data in self._sources), self._target[1]]

    def _open_domain(self, dataset: DatasetLike) -> tuple[DomainData, Data]:
        if self.data is not None:
            return select_domain(self.data, identify_dataset(dataset)), self.data
        data = self._open(dataset)
        return as_single_domain(data), data

    @cached_property
    def _target(self) -> tuple[DomainData, Data]:
        data, target = self.data, self.arguments[2]
        domains = [] if data is None else list_domains(data)
        if data is not None and len(domains) < 2:
            present = f"only the domain {domains[0]!r}" if domains else "no domains"
            raise ValueError(
                f"task.dataset: expected at least two domains, got {data.name} with {present}. Use a folder of "
                "domain/class/image, a card with domains (vlprompt list datasets), or two datasets by --source and "
                "--target."
            )
        if target is None:
            choices = f" ({data.name} has {', '.join(domains)})" if data is not None else ""
            raise ValueError(f"task.target: expected a domain, got none. Name one by --target{choices}.")
        return self._open_domain(target)

    @cached_property
    def _sources(self) -> list[tuple[DomainData, Data]]:
        source, target = self.arguments[1], self._target[0].name
        domains = [] if self.data is None else list_domains(self.data)
        if source == "rest" or (source is None and self.setting == "generalise"):
            if not domains:
                raise ValueError(
                    "task.source: expected a dataset to take all other domains from, got source=rest without one. "
                    "Name a dataset, or name the sources by --source."
                )
            source = [name for name in domains if name != target]
        if source == "none" and self.setting != "adapt":
            return []
        if source in (None, [], "none") and self.setting != "source_free":
            choices = f" ({self.data.name} has {', '.join(domains)})" if self.data is not None else ""
            raise ValueError(
                f"task.source: expected a domain, got none. Name one by --source{choices}, or set "
                "task.setting=source_free, which needs none."
            )
        source_list = [] if source is None else source if isinstance(source, list) else [source]
        sources = [self._open_domain(one) for one in source_list]
        names = [*(domain.name for domain, _ in sources), target]
        if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(
                f"task.source, task.target: expected different domains, got {repeated[0]!r} twice. Name it once."
            )
        return sources

    @cached_property
    def _matched_domains(self) -> tuple[list[DomainData], DomainData, str]:
        """The sources and the target with the same classes, and the criterion that matched them."""
        target, sources = self._target[0], [domain for domain, _ in self._sources]
        names = target.test.names
        identity = [*range(len(names))], "they are of one dataset"
        matches = [identity if self.data else match_classes(source.test.names, names) for source in sources]
        label_maps: list[dict[int, int]] = []  # {target label: source label} of the classes that a source has images of
        for source, (source_labels, _) in zip(sources, matches, strict=True):
            counts = source.training_images.count_per_class()
            label_maps.append(
                {i: label for i, label in enumerate(source_labels) if label is not None and counts[label]}
            )
        chosen = self._class_choice.choose(target, sources, label_maps)
        chosen_names = tuple(names[i] for i in chosen)
        matched_sources = [
            source.select_classes({labels[i]: k for k, i in enumerate(chosen) if i in labels}, chosen_names)
            for source, labels in zip(sources, label_maps, strict=True)
        ]
        present = {i for i in chosen if self.target_classes is None or class_ids(names)[i] in self.target_classes}
        matched_target = target.select_classes({i: k for k, i in enumerate(chosen) if i in present}, chosen_names)
        return matched_sources, matched_target, ", ".join(dict.fromkeys(criterion for _, criterion in matches))

    @property
    def _class_choice(self) -> ClassChoice:
        return ClassChoice(self.classes, self.target_classes, self.unknown_classes)

    @cached_property
    def _source_splits(self) -> tuple[Split, Split | None, Split | None]:
        """The sources' (train, val, test); test measures how well the sources are retained."""
        return self._split_sources(self._matched_domains[0])

    def _split_sources(self, sources: Sequence[DomainData]) -> tuple[Split, Split | None, Split | None]:
        splits = [source.source_splits(self.val_fraction, self.shots, self.seed) for source in sources]
        if not splits:
            return Split((), (), self._matched_domains[1].test.names), None, None
        train, val, test = (
            None if None in same_name else merge_sources([split for split in same_name if split is not None])
            for same_name in zip(*splits, strict=True)
        )
        assert train is not None, "every source has a train split"
        info: dict[str, object] = {"domains": [source.name for source in sources]} if len(sources) > 1 else {}
        return train, val, None if test is None else replace(test, info=info)

    @cached_property
    def _is_transductive(self) -> bool:
        return self._target[0].is_transductive if self.transductive is None else self.transductive

    @cached_property
    def _target_splits(self) -> tuple[Split, Split]:
        """The target's images to adapt to, with labels for the evaluator only (-1: unknown), and its test."""
        target = self._matched_domains[1]
        if self._is_transductive:
            images = anonymize_items(add_unknown(target, self._unknown_target, "all_images"))
            return images, images if self._unknown_target is None else anonymize_items(target.all_images)
        if not len(target.test):
            raise ValueError(
                f"task.target: expected test images, got {target.name} without any. Add some, or set "
                "task.transductive=true to test on the images that are adapted to."
            )
        if not len(target.train) and self.setting != "generalise":
            raise ValueError(
                f"task.target: expected images to adapt to, got {target.name} with a test split only. Set "
                "task.transductive=true to adapt to the test images themselves."
            )
        images = add_unknown(target, self._unknown_target, "images_before_test")
        return anonymize_items(images), anonymize_items(target.test)

    @cached_property
    def _unknown_target(self) -> DomainData | None:
        """The target's images of unknown classes, whose labels mean nothing."""
        if not self.unknown_classes:
            return None
        target, names = self._target[0], self._matched_domains[1].test.names
        hidden = self._class_choice.find("unknown_classes", target.test.names)
        return target.select_classes(dict.fromkeys(hidden, 0), names)

    @cached_property
    def _unknown_test(self) -> UnknownTest | None:
        if (unknown := self._unknown_target) is None:
            return None
        if (val := self._source_splits[1]) is None or not len(val):
            raise ValueError(
                "task.unknown_classes: expected held-out images of a source, by which answers are refused, got none. "
                "Name a source by --source, and set task.val_fraction=0.1."
            )
        images = unknown.all_images if self._is_transductive else unknown.test
        if not len(images):
            raise ValueError(
                f"task.unknown_classes: expected test images of {self.unknown_classes}, got none. Name other classes."
            )
        return UnknownTest(anonymize_items(images), replace(val, domains=None))

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The names of the sources, and of a target to adapt to, as texts use them."""
        sources, target, _ = self._matched_domains
        return _name_domains(sources if self.setting == "generalise" else [*sources, target])

    @property
    def template(self) -> str:
        return self._target[1].template

    def stages(self) -> Iterator[Stage]:
        if self.phase == "search" and self.criterion is not None:
            (sources, target, _), splits = self._matched_domains, self._split_sources
            yield from iter_search_stages(self.criterion, sources, target, self._is_transductive, splits, _name_domains)
            return
        train, val, source_test = self._source_splits
        truth, test = self._target_splits
        judged: dict[str, Any] = {"needs_epoch_metrics": self.epoch_metrics, "unknown_test": self._unknown_test}
        judged["needs_zero_shot"] = True
        tests = {"target": test} | ({} if source_test is None or not len(source_test) else {"source": source_test})
        lesson = Lesson(train, val, domains=self.domain_names)
        if self.setting == "generalise":
            yield Stage(lesson, tests, **judged)
            return
        unlabelled = drop_labels(truth)
        if self.setting == "adapt":
            yield Stage(replace(lesson, unlabelled=unlabelled), tests, labelled_target=truth, **judged)
            return
        adaptation = replace(lesson, train=train.select([]), val=None, unlabelled=unlabelled)
        if len(train):
            yield Stage(replace(lesson, total=2), tests, needs_zero_shot=True)
            adaptation = replace(adaptation, index=1, total=2)
        yield Stage(adaptation, tests, labelled_target=truth, **judged)

    @property
    def protocol(self) -> dict[str, Any]:
        sources, target, criterion = self._matched_domains
        train, val, source_test = self._source_splits
        truth, test = self._target_splits
        names, adapts = [source.name for source in sources], self.setting != "generalise"
        datasets = [self._target[1], *(data for _, data in self._sources)]
        name = " -> ".join(filter(None, ("+".join(names), target.name))) if self.data is None else self.data.name
        return {
            "dataset": name,
            "sources": names,
            "target": target.name,
            "setting": self.setting,
            "transductive": adapts and self._is_transductive,
            "train": train.hash(),
            "test": test.hash(),
            "source_test": None if source_test is None else source_test.hash(),
            "unlabelled": drop_labels(truth).hash() if adapts else None,
            "train_images": len(train),
            "val_images": 0 if val is None else len(val),
            "unlabelled_images": len(truth) if adapts else 0,
            "test_images": len(test),
            "undersized_classes": train.info.get("undersized_classes", []),
            "classes": [str(name) for name in train.names],
            "class_matching": criterion,
            "augment": truth.augment,
            "template": self.template,
            "zero_shot_template": self.template,
            "split": get_split_origin(self._target[1]),
            "note": "; ".join(dict.fromkeys(data.note for data in datasets if data.note)),
            "settings_chosen": describe_choice(self.criterion),
            "metrics": DOMAIN_METRICS,
        } | self._class_protocol

    @property
    def _class_protocol(self) -> dict[str, Any]:
        """What partial and open-set adaptation add to the protocol."""
        protocol: dict[str, Any] = (
            {} if self.target_classes is None else {"target_classes": sorted(self.target_classes)}
        )
        if (test := self._unknown_test) is None:
            return protocol
        protocol |= {"unknown_classes": sorted(self.unknown_classes or ()), "unknown_images": len(test.images)}
        return protocol | {"unknown_test": test.images.hash(), "metrics": DOMAIN_METRICS | UNKNOWN_TARGET_METRICS}

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        if self.phase == "search":
            return {"accuracy": statistics.fmean(stage["val"]["accuracy"] for stage in scores)}
        return domain_summary(scores[-1]) | scores[-1].get("open_set", {})


def _name_domains(domains: Sequence[DomainData]) -> tuple[str, ...]:
    """Return the words of domains in texts; their names where two have the same word."""
    words = [domain.word for domain in domains]
    return tuple(domain.name if words.count(domain.word) > 1 else domain.word for domain in domains)
