"""Recognise what the sub-folders of a user's folder are: classes, groups of classes, domains or splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlprompt.data.dataset import normalize_name, shorten_list
from vlprompt.data.images.files import contains_images, has_images, list_folders
from vlprompt.data.readers.domain_folders import find_domain_folders, list_class_roots
from vlprompt.data.splits.names import assign_splits, is_fold_name, mentions_split, parse_split_name

FOLDER_LAYOUTS = {  # what `task.layout` may be
    "classes": "each sub-folder is a class",
    "groups": "each sub-folder is a group of classes, which are the folders in it",
    "domains": "each sub-folder is a domain with a folder for each class",
    "splits": "the sub-folders are train, test and perhaps val, with a folder for each class",
}


@dataclass(frozen=True)
class FolderLayout:
    """What the sub-folders of a folder are.

    Args:
        name: one of FOLDER_LAYOUTS.
        rule: why they were taken for that.
        folders: {split: folder of its classes}, {domain: folder of its classes} or {class: folder}.
        ignored: names of sub-folders that are none of these.
    """

    name: str
    rule: str
    folders: dict[str, Path] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tops:
    """The sub-folders of a folder by what lies in them: images, folders only, or no image at all."""

    root: Path
    folders: list[Path]
    flat: list[Path]
    nested: list[Path]

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.folders]


def require_layout(layout: str | None) -> None:
    """Raise ValueError for a layout that there is not."""
    if layout is not None and layout not in FOLDER_LAYOUTS:
        choices = "; ".join(f"{name} ({meaning})" for name, meaning in FOLDER_LAYOUTS.items())
        raise ValueError(f"task.layout: expected one of {choices}, got {layout!r}. Set one of these.")


def recognize_folder(root: Path, layout: str | None = None) -> FolderLayout:
    """Recognise the layout of a folder, or take the one that is named.

    Raises:
        ValueError: for a folder that can be read in two ways, with both and the option that chooses, and for one that
            does not have the named layout.
    """
    require_layout(layout)
    folders = list_folders(root)
    flat = [path for path in folders if has_images(path)]
    nested = [path for path in folders if path not in flat and contains_images(path)]
    tops = _Tops(root, folders, flat, nested)
    name, rule = _choose_layout(tops) if layout is None else (layout, f"task.layout={layout}")
    match name:
        case "splits":
            return _read_splits(tops, rule)
        case "domains":
            domains = find_domain_folders(root) if layout is None else list_class_roots(root)
            if len(domains) < 2:
                raise _wrong_layout(
                    tops, name, "two or more sub-folders with a folder for each class, none with images"
                )
            return FolderLayout(name, rule, domains)
        case "groups":
            return FolderLayout(name, rule, _list_grouped_classes(tops))
    return FolderLayout("classes", rule, {path.name: path for path in folders})


def _choose_layout(tops: _Tops) -> tuple[str, str]:
    """Return the layout and the rule that recognised it; ValueError for a folder that can be read in two ways."""
    _refuse_unclear_names(tops)
    if splits := assign_splits(tops.names, repr(str(tops.root))):
        return _choose_with_splits(tops, splits)
    if tops.flat or not tops.nested:
        return "classes", "images lie straight in its sub-folders"
    lower_names = {path.name: {normalize_name(p.name) for p in list_folders(path)} for path in tops.nested}
    if all(sum(map(is_split, names)) > len(names) / 2 for names in lower_names.values()):
        raise ValueError(
            f"{str(tops.root)!r}: expected train/ and test/ above the class folders, got them inside the folders "
            f"{_name_some(tops.names)}. Move them up (train/CLASS, test/CLASS), or cut all images of each class by "
            f"{_option('classes')}."
        )
    if find_domain_folders(tops.root):
        return "domains", f"folders in them have the same names; else {_option('classes')}"
    inner = {name for top, names in lower_names.items() for name in names - {normalize_name(top)}}
    if len(inner) < 2 or len(tops.folders) < 2:  # cat/images, dog/images or cat/cat, dog/dog
        return "classes", "each of its sub-folders has images of its own"
    raise _ambiguous(
        tops,
        ("classes", f"the classes {_name_some(tops.names)}"),
        ("groups", f"the classes {_name_some(inner)} in them"),
    )


def is_split(name: str) -> bool:
    """Whether a name is that of a split."""
    return parse_split_name(name) is not None


def _refuse_unclear_names(tops: _Tops) -> None:
    """Raise ValueError where all names count folds, or have words of splits without being names of splits."""
    names = tops.names
    if len(names) < 2:
        return
    if all(map(is_fold_name, names)):
        raise ValueError(
            f"{str(tops.root)!r}: expected classes, domains, or train/ and test/, got the folds {_name_some(names)}, "
            "which are no such thing. Put the images of some folds into train/ and of the others into test/, or say "
            f"what they are by {_option('domains')} or {_option('classes')}."
        )
    if all(map(mentions_split, names)) and not all(map(is_split, names)):
        raise ValueError(
            f"{str(tops.root)!r}: expected classes, domains, or train/ and test/, got {_name_some(names)}, which look "
            "like parts of splits. Rename them to train, val and test, or say what they are by "
            f"{_option('classes')} or {_option('domains')}."
        )


def _choose_with_splits(tops: _Tops, splits: Mapping[str, str]) -> tuple[str, str]:
    """Choose where a sub-folder has the name of a split, which may be that of a class or a domain, too."""
    others = [path.name for path in (*tops.flat, *tops.nested) if path.name not in splits.values()]
    flat = [path.name for path in tops.flat]
    listed = ", ".join(f"{name}/" for name in splits.values())
    has_flat_split = any(name in flat for name in splits.values())
    if {"train", "test"} <= set(splits) and not has_flat_split:
        return "splits", f"{listed} have the names of splits"
    if not others:  # no class folders below, or the other split is missing
        return "splits", ""
    has_pair = {"train", "test"} <= set(splits)
    if (has_flat_split or any(name in flat for name in others)) and not has_pair:
        return "classes", f"images lie straight in its sub-folders, so {listed} is a class"
    other_layout = "classes" if flat else "domains"
    missing = "" if has_pair else f", of which {'test' if 'train' in splits else 'train'}/ is missing"
    raise _ambiguous(
        tops,
        (other_layout, f"the {other_layout} {_name_some(tops.names)}"),
        ("splits", f"the splits {listed[:-1]}{missing}"),
    )


def _read_splits(tops: _Tops, rule: str) -> FolderLayout:
    """Return the folders of classes of each split; ValueError where train or test is missing."""
    splits = assign_splits(tops.names, repr(str(tops.root)))
    if not {"train", "test"} <= set(splits):
        shown = ", ".join(f"{name}/" for name in sorted(splits.values())) or _name_some(tops.names)
        raise ValueError(
            f"{str(tops.root)!r}: expected both train/ and test/, got {shown}. Add the other, or rename one to test, "
            f"or put the class folders at the top. Where they are classes: {_option('classes')}."
        )
    ignored = tuple(path.name for path in tops.folders if path.name not in splits.values())
    roots = {part: _find_split_root(tops.root / name) for part, name in splits.items()}
    if not rule.startswith("task.layout"):
        _refuse_groups_in_splits(tops, roots["train"])
    return FolderLayout("splits", rule, roots, ignored)


def _refuse_groups_in_splits(tops: _Tops, train: Path) -> None:
    """Raise ValueError where the folders of a split hold images in several sub-folders only: domains, or groups."""
    folders = [path for path in list_folders(train) if not has_images(path)]
    inner = {path.name for folder in folders for path in list_folders(folder) if contains_images(path)}
    if len(folders) > 1 and all(len(list_folders(folder)) > 1 for folder in folders):
        raise ValueError(
            f"{str(tops.root)!r}: expected images in the class folders of {train.name}/, got {_name_some(inner)} in "
            f"{_name_some([path.name for path in folders])}, which may be domains or groups of classes. Set "
            f"{_option('splits')} to take these as the classes, else write a table with the columns path, class, "
            "domain and split."
        )


def _find_split_root(path: Path) -> Path:
    """Return where the class folders of a split are: in it, or in the only folder in it (seg_train/seg_train/)."""
    inner = list_folders(path)
    if len(inner) == 1 and not has_images(path) and not has_images(inner[0]) and len(list_folders(inner[0])) > 1:
        return inner[0]
    return path


def _list_grouped_classes(tops: _Tops) -> dict[str, Path]:
    """Return {class: folder} of the classes in all groups, sorted; ValueError for one that two groups have."""
    if tops.flat or not tops.nested:
        raise _wrong_layout(tops, "groups", "sub-folders with class folders in them, none with images straight in it")
    classes: dict[str, Path] = {}
    for group in tops.nested:
        for path in list_folders(group):
            if path.name in classes:
                raise ValueError(
                    f"{str(tops.root)!r}: expected each class in one group, got {path.name!r} in "
                    f"{classes[path.name].parent.name}/ and in {group.name}/. Rename one, or set {_option('domains')}."
                )
            classes[path.name] = path
    return dict(sorted(classes.items()))


def _wrong_layout(tops: _Tops, layout: str, expected: str) -> ValueError:
    return ValueError(
        f"task.layout={layout}: expected {expected}, got {_name_some(tops.names) or 'no sub-folders'} in "
        f"{str(tops.root)!r}. Choose another layout ({', '.join(FOLDER_LAYOUTS)}), or leave it out."
    )


def _ambiguous(tops: _Tops, *readings: tuple[str, str]) -> ValueError:
    (first, one), (second, other) = readings
    return ValueError(
        f"{str(tops.root)!r}: expected a folder that can be read in one way, got one that can be {one} or {other}. "
        f"Choose by {_option(first)} or {_option(second)} (--layout of `vlprompt data` and `vlprompt eval`)."
    )


def _option(layout: str) -> str:
    return f"task.layout={layout}"


def _name_some(names: Sequence[str] | set[str]) -> str:
    return shorten_list(sorted(names), 5)
