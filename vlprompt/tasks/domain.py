"""Domains: what is learned on one (or several) is used on another, whose labels nobody has.

Unsupervised adaptation sees the target's images without labels (Ganin et al., JMLR 2016, arXiv:1505.07818),
source-free adaptation sees them only after the source is gone (Liang et al., ICML 2020, arXiv:2002.08546), and domain
generalisation never sees them (Gulrajani and Lopez-Paz, ICLR 2021, arXiv:2007.01434).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, ids
from vlprompt.core.stage import Lesson, Stage
from vlprompt.data.dataset import Data
from vlprompt.data.loading import given, named
from vlprompt.data.splits.domains import Place, domains_in, merged, place_of, same_classes, whole_of
from vlprompt.data.splits.label_hiding import hidden, unlabelled
from vlprompt.metrics import OF_DOMAINS, of_domains
from vlprompt.runtime.errors import nearest
from vlprompt.tasks.few_shot import split_of

Setting = Literal["adapt", "source_free", "generalise"]
One = str | Data


class Domain:
    """From a source to a target.

    dataset: whose domains source and target are; without it they are datasets themselves, and the classes of both are
    matched by name. source: one, several as a list, or "rest" for all others. target: one. setting: "adapt" (the
    target's images are there without labels), "source_free" (they are, but no longer the source's; without any source
    the method begins with the target) or "generalise" (they are not there). transductive: whether the target's test
    images are those that were adapted to (None: as the benchmark has it). val: of a source without validation images
    the share of each class that is held out, for train.select=val and to see how well the source is kept; 0 trains on
    all. classes: ids of the target's classes, or "shared": those that the sources have too; None: all, and the sources
    must have them. shots: images per class and source, None for all; seed: draws them; track: tell after each epoch
    what every rule of selection says, the pseudo-labels' precision, and the test accuracy; augment, skip_broken: as in
    FewShot.
    """

    def __init__(
        self,
        dataset: One | None = None,
        source: One | list[One] | None = None,
        target: One | None = None,
        setting: Setting = "adapt",
        transductive: bool | None = None,
        val: float = 0.1,
        classes: str | list[str] | None = None,
        shots: int | None = None,
        seed: int = 1,
        track: bool = True,
        augment: str | None = None,
        skip_broken: bool = False,
    ):
        if setting not in ("adapt", "source_free", "generalise"):
            raise ValueError(f"setting is adapt, source_free or generalise, not {setting!r}")
        if not 0 <= val < 1:
            raise ValueError(f"task.val is the share of a source that is held out, from 0 to below 1, not {val}")
        if isinstance(classes, str) and classes != "shared":
            raise ValueError(f"task.classes is 'shared' or a list of ids of the target's classes, not {classes!r}")
        self.given = dataset, source, target
        self.dataset, self.target = dataset and named(dataset), target and named(target)
        self.source = [named(one) for one in source] if isinstance(source, list) else source and named(source)
        self.setting, self.transductive, self.val, self.classes = setting, transductive, val, classes
        self.shots, self.seed, self.track, self.augment, self.skip_broken = shots, seed, track, augment, skip_broken

    @cached_property
    def data(self) -> Data | None:
        """The dataset whose domains these are, if there is one."""
        return None if self.given[0] is None else given(self.given[0], self.augment, self.skip_broken)

    def _place(self, one: One) -> tuple[Place, Data]:
        if self.data is not None:
            return place_of(self.data, named(one)), self.data
        data = given(one, self.augment, self.skip_broken)
        return whole_of(data), data

    @cached_property
    def _target(self) -> tuple[Place, Data]:
        data, target = self.data, self.given[2]
        known = [] if data is None else domains_in(data)
        if data is not None and len(known) < 2:
            many = f"has only the domain {known[0]!r}" if known else "tells no domains"
            raise ValueError(
                f"{data.name} {many}, and from one to another needs two: a folder of domain/class/image, a card "
                "with domains (vlprompt list datasets), or two datasets by --source and --target"
            )
        if target is None:
            told = f"; {data.name} has {', '.join(known)}" if data is not None else ""
            raise ValueError(f"there is no target: name one by --target{told}")
        return self._place(target)

    @cached_property
    def _sources(self) -> list[tuple[Place, Data]]:
        source, target = self.given[1], self._target[0].name
        known = [] if self.data is None else domains_in(self.data)
        if source == "rest" or (source is None and self.setting == "generalise"):
            if not known:
                raise ValueError("source=rest is all other domains of a dataset, and no dataset was named")
            source = [name for name in known if name != target]
        if not source and self.setting != "source_free":
            told = f"; {self.data.name} has {', '.join(known)}" if self.data is not None else ""
            raise ValueError(f"there is no source: name one by --source{told}; task.setting=source_free needs none")
        wanted = [] if source is None else source if isinstance(source, list) else [source]
        found = [self._place(one) for one in wanted]
        names = [place.name for place, _ in found]
        if twice := [name for i, name in enumerate([*names, target]) if name in [*names, target][:i]]:
            raise ValueError(f"source and target are both {twice[0]!r}; from one domain to another needs two")
        return found

    @cached_property
    def _places(self) -> tuple[list[Place], Place, str]:
        """Sources and target with the same classes, and how these were matched."""
        target, sources = self._target[0], [place for place, _ in self._sources]
        known, there = target.test.names, target.every.count()
        same = [*range(len(known))], "they are of one dataset"
        matches = [same if self.data else same_classes(source.test.names, known) for source in sources]
        images = [source.seen.count() for source in sources]
        mine = [{i: p for i, p in enumerate(places) if p is not None and count[p]}
                for count, (places, _) in zip(images, matches, strict=True)]  # fmt: skip
        has = [not sources or any(i in found for found in mine) for i in range(len(known))]
        chosen = (
            [i for i in range(len(known)) if has[i] and there[i]] if self.classes == "shared" else self._asked(known)
        )
        if unknown := [i for i in chosen if there[i] and not has[i]]:
            more = f" and {len(unknown) - 1} more" * (len(unknown) > 1)
            raise ValueError(
                f"the target {target.name} has the class {str(known[unknown[0]])!r}{more}, of which "
                f"{' and '.join(source.name for source in sources)} has no images to learn from: take the classes "
                "that both have by task.classes=shared, or name some"
            )
        if len(chosen) < 2:
            raise ValueError(
                f"source and target have {len(chosen)} class{'es' * (len(chosen) != 1)} in common, and two are the "
                "least; are they called alike?"
            )
        names = tuple(known[i] for i in chosen)
        ours = [source.taking({found[i]: k for k, i in enumerate(chosen) if i in found}, names)
                for source, found in zip(sources, mine, strict=True)]  # fmt: skip
        how = ", ".join(dict.fromkeys(by for _, by in matches))
        return ours, target.taking({i: k for k, i in enumerate(chosen)}, names), how

    def _asked(self, known: Names) -> list[int]:
        """The places of the target's classes that were asked for."""
        if self.classes is None:
            return list(range(len(known)))
        if strange := [i for i in self.classes if i not in ids(known)]:
            raise ValueError(
                f"task.classes names {strange[0]!r}, which the target has not; {nearest(strange[0], ids(known))}"
            )
        return [ids(known).index(i) for i in dict.fromkeys(self.classes)]

    @cached_property
    def _source(self) -> tuple[Split, Split | None, Split | None]:
        """What is taught, for validation, and what tells how well the sources are kept."""
        parts = [place.teaching(self.val, self.shots, self.seed) for place in self._places[0]]
        if not parts:
            return Split((), (), self._places[1].test.names), None, None
        train, val, test = (None if None in of else merged([s for s in of if s is not None])
                            for of in zip(*parts, strict=True))  # fmt: skip
        assert train is not None, "teaching gives one"
        several = {"domains": [place.name for place in self._places[0]]} if len(parts) > 1 else {}
        return train, val, None if test is None else replace(test, info=several)

    @cached_property
    def _seen(self) -> tuple[Split, Split]:
        """Of the target what is adapted to, with the labels that only the evaluator knows, and the test."""
        place = self._places[1]
        whole = place.whole if self.transductive is None else self.transductive
        if whole:
            every = hidden(place.every)
            return every, every
        if not len(place.test):
            raise ValueError(
                f"the target {place.name} has no test images: add some, or say task.transductive=true to test on "
                "those that are adapted to"
            )
        if not len(place.train) and self.setting != "generalise":
            raise ValueError(
                f"the target {place.name} is a test only and has no images to adapt to: say task.transductive=true to "
                "adapt to the test images themselves"
            )
        return hidden(replace(place, test=place.test.of([])).every), hidden(place.test)

    @property
    def names_of_domains(self) -> tuple[str, ...]:
        """Those of the sources, and that of a target that is there to adapt to, as texts call them."""
        places = [*self._places[0], *([] if self.setting == "generalise" else [self._places[1]])]
        words = [place.word for place in places]
        return tuple(place.name if words.count(place.word) > 1 else place.word for place in places)

    @property
    def template(self) -> str:
        return self._target[1].template

    def stages(self) -> Iterator[Stage]:
        train, val, kept = self._source
        truth, test = self._seen
        tests = {"target": test} | ({} if kept is None or not len(kept) else {"source": kept})
        lesson = Lesson(train, val, domains=self.names_of_domains)
        if self.setting == "generalise":
            yield Stage(lesson, tests, track=self.track, compared=True)
            return
        unseen = unlabelled(truth)
        if self.setting == "adapt":
            yield Stage(replace(lesson, unlabelled=unseen), tests, truth=truth, track=self.track, compared=True)
            return
        alone = replace(lesson, train=train.of([]), val=None, unlabelled=unseen)
        if len(train):
            yield Stage(replace(lesson, total=2), tests, compared=True)
            alone = replace(alone, index=1, total=2)
        yield Stage(alone, tests, truth=truth, track=self.track, compared=True)

    @property
    def protocol(self) -> dict[str, Any]:
        (sources, target, how), (train, val, kept), (truth, test) = self._places, self._source, self._seen
        names, adapts = [place.name for place in sources], self.setting != "generalise"
        data = [self._target[1], *(one for _, one in self._sources)]
        return {
            "dataset": self.data.name
            if self.data is not None
            else " -> ".join(filter(None, ("+".join(names), target.name))),
            "sources": names,
            "target": target.name,
            "setting": self.setting,
            "transductive": adapts and truth is test,
            "train": train.hash(),
            "test": test.hash(),
            "source_test": None if kept is None else kept.hash(),
            "unlabelled": unlabelled(truth).hash() if adapts else None,
            "images": len(train),
            "val_images": 0 if val is None else len(val),
            "unlabelled_images": len(truth) if adapts else 0,
            "test_images": len(test),
            "short": train.info.get("short", []),
            "classes": [str(name) for name in train.names],
            "matched": how,
            "augment": truth.augment,
            "template": self.template,
            "zero_shot_template": self.template,
            "split": split_of(self._target[1]),
            "note": "; ".join(dict.fromkeys(one.note for one in data if one.note)),
            "metrics": OF_DOMAINS,
        }

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return of_domains(scores[-1])
