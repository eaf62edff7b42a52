"""Which classes a domain task has: those of the target that the sources share, fewer, or with unknown ones beside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.data.splits.domains import DomainData
from vlprompt.runtime.errors import suggest_nearest


@dataclass(frozen=True)
class ClassChoice:
    """The classes that a domain task names; arguments as in `Domain`."""

    classes: str | list[str] | None = None
    target_classes: list[str] | None = None
    unknown_classes: list[str] | None = None

    def find(self, setting: str, names: Names) -> list[int]:
        """Return the labels of the target's classes that a setting lists; all where it lists none."""
        ids, requested = class_ids(names), getattr(self, setting)
        if requested is None:
            return list(range(len(ids)))
        if not requested:
            raise ValueError(f"task.{setting}: expected at least one class, got none. Leave it out, or list some.")
        if unknown := [class_id for class_id in requested if class_id not in ids]:
            raise ValueError(
                f"task.{setting}: expected the target's classes, got {unknown[0]!r}; {suggest_nearest(unknown[0], ids)}"
            )
        return [ids.index(class_id) for class_id in dict.fromkeys(requested)]

    def choose(
        self, target: DomainData, sources: Sequence[DomainData], label_maps: Sequence[dict[int, int]]
    ) -> list[int]:
        """Return the target's labels to use; ValueError if a source has no images of them, or for fewer than two.

        Args:
            target: on its own classes.
            sources: likewise.
            label_maps: of each source, {target label: source label} of the classes that it has images of.
        """
        names, counts = target.test.names, target.all_images.count_per_class()
        has_source = [not sources or any(i in labels for labels in label_maps) for i in range(len(names))]
        if self.classes == "shared":
            chosen = [i for i in range(len(names)) if has_source[i] and counts[i]]
        else:
            chosen = self.find("classes", names)
        chosen = self._without_unknown(chosen, names)
        if unknown := [i for i in chosen if counts[i] and not has_source[i]]:
            more = f" and {len(unknown) - 1} more" * (len(unknown) > 1)
            raise ValueError(
                f"task.classes: expected classes with images in {' and '.join(source.name for source in sources)}, got "
                f"{str(names[unknown[0]])!r}{more} of the target {target.name}. Set task.classes=shared for the "
                "classes that both have, or list some."
            )
        if len(chosen) < 2:
            raise ValueError(
                f"task.classes: expected at least two classes that source and target share, got {len(chosen)}. "
                "Check that they have the same names."
            )
        return chosen

    def _without_unknown(self, chosen: list[int], names: Names) -> list[int]:
        """Leave out the unknown classes; ValueError for one that is listed as known too."""
        hidden = self.find("unknown_classes", names) if self.unknown_classes else []
        present = chosen if self.target_classes is None else self.find("target_classes", names)
        has_list = bool(self.target_classes) or self.classes not in (None, "shared")
        if clashing := [i for i in hidden if i in present and has_list]:
            raise ValueError(
                f"task.unknown_classes: expected classes that are not known, got {str(names[clashing[0]])!r}, which "
                "task.classes or task.target_classes lists too. Leave it out of one of them."
            )
        return [i for i in chosen if i not in hidden]


def add_unknown(known: DomainData, unknown: DomainData | None, part: str) -> Split:
    """Return a part of the known images with that of the unknown ones, whose label is -1."""
    images: Split = getattr(known, part)
    if unknown is None:
        return images
    items = getattr(unknown, part).items
    return replace(images, items=images.items + items, labels=images.labels + (-1,) * len(items))
