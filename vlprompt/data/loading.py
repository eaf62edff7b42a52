"""Open a dataset by its name or path: find its source, read it, build its splits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.templates import PromptTemplate
from vlprompt.data.dataset import Data, RawDataset, build_dataset
from vlprompt.data.images.decoding import AUGMENTATIONS
from vlprompt.data.locations import dataset_folder
from vlprompt.data.readers.card import note_missing_classes, read_card
from vlprompt.data.readers.folder_layout import require_layout
from vlprompt.data.readers.hub import read_hub_name
from vlprompt.data.readers.user_path import read_user_path
from vlprompt.data.sources import (
    DatasetSource,
    HubName,
    UserPath,
    find_shadowed_path,
    require_folder,
    resolve_source,
)

if TYPE_CHECKING:
    from vlprompt.data.card_schema import ImageCard

    ImageSource = ImageCard | HubName | UserPath


def open_data(
    dataset: str,
    augment: str | None = None,
    skip_broken: bool = False,
    root: str | Path | None = None,
    allow_missing_classes: bool = False,
    template: str | None = None,
    layout: str | None = None,
) -> Data:
    """Open a dataset of images or texts.

    Args:
        dataset: the name of a card, a card .yaml, a folder of images, a file (.csv, .tsv, .jsonl, .npz, a split .json),
            a name that a library knows (torchvision:CIFAR10, huggingface:OWNER/NAME), or texts (data/text/files.py). A
            folder has a sub-folder per class, with or without train/ and test/ above, or a sub-folder per domain or
            group of classes with the classes in it.
        augment: an augmentation (one of AUGMENTATIONS) instead of the card's; texts have none.
        skip_broken: leave out files that cannot be decoded.
        root: the folder of datasets with a card (default: the environment's VLPROMPT_DATA, else ./data).
        allow_missing_classes: take the classes that have images instead of raising for those that have none.
        template: a prompt template with {name} instead of the card's; for texts one with {mask}.
        layout: of a folder (classes, groups, domains or splits), instead of the one that is recognised.

    Raises:
        ValueError: for what is none of these and for what is wrong in it.
        OSError: for files that are not on this machine.
    """
    require_augmentation(augment)
    source = resolve_source(dataset)
    return open_source(source, augment, skip_broken, root, allow_missing_classes, template, layout)


def open_source(
    source: DatasetSource,
    augment: str | None = None,
    skip_broken: bool = False,
    root: str | Path | None = None,
    allow_missing_classes: bool = False,
    template: str | None = None,
    layout: str | None = None,
) -> Data:
    """Open a source as `open_data` does, which explains the arguments; data that are open are returned as they are."""
    from vlprompt.data.text.card import check_text_use, is_text_source, open_text_source

    require_layout(layout)
    if isinstance(source, Data):
        return source
    require_folder(layout, source.dataset)
    if is_text_source(source):
        with _name_shadowed_path(source, root):
            data = open_text_source(source, root, template, skip_broken, allow_missing_classes)
        return _describe_source(check_text_use(data, augment), source, root)
    if template is not None and "{name}" not in template:
        raise ValueError(
            f"template: expected a text with {{name}} where the class stands, got {template!r}, which has no {{name}}"
        )
    if template is not None:
        PromptTemplate.parse(template).require_fields(f"template {template!r}", ("name",))
    source = cast("ImageSource", source)
    with _name_shadowed_path(source, root):
        raw = read_source(source, root, layout)
    if not isinstance(source, HubName | UserPath):
        raw = note_missing_classes(raw, source, allow_missing_classes)
    raw = raw if augment is None else replace(raw, augment=augment)
    data = build_dataset(raw, skip_broken=skip_broken, allow_missing_classes=allow_missing_classes)
    return _describe_source(data if template is None else with_template(data, template), source, root)


def _card_folder(source: DatasetSource, root: str | Path | None) -> Path | None:
    """Return the folder of a card's data, if it has one."""
    folder = getattr(source, "folder", None)
    return None if folder is None else dataset_folder(folder, root)


@contextmanager
def _name_shadowed_path(source: DatasetSource, root: str | Path | None) -> Iterator[None]:
    """Where the data of a card are missing, say that a folder or file of its name is here."""
    try:
        yield
    except FileNotFoundError as error:
        path = None if isinstance(source, Data) else find_shadowed_path(source.dataset, _card_folder(source, root))
        if path is None:
            raise
        kind = "folder" if path.is_dir() else "file"
        raise FileNotFoundError(
            f"{error} For the {kind} {str(path)!r} that is here, write ./{path} instead."
        ) from error


def _describe_source(data: Data, source: DatasetSource, root: str | Path | None) -> Data:
    """Add what was taken for the dataset, and what of the same name was not."""
    if isinstance(source, Data):
        return data
    if isinstance(source, HubName | UserPath):
        return replace(data, origin=source.describe() if isinstance(source, UserPath) else source.dataset)
    folder = _card_folder(source, root)
    data = replace(data, origin=f"the card {source.name}" + (f" in {str(folder)!r}" if folder is not None else ""))
    if (path := find_shadowed_path(source.dataset, folder)) is None:
        return data
    kind = "folder" if path.is_dir() else "file"
    remark = f"the dataset is the card {source.dataset}, not the {kind} {str(path)!r} here; write ./{path} for that"
    return replace(data, remarks=(*data.remarks, remark))


def read_source(source: "ImageSource", root: str | Path | None = None, layout: str | None = None) -> RawDataset:
    """Read images by the reader of the source's kind; `layout` is that of a user's own folder."""
    if isinstance(source, HubName):
        return read_hub_name(source, root)
    if isinstance(source, UserPath):
        return read_user_path(source, layout)
    return read_card(source, root, layout)


def identify_dataset(dataset: str | Data) -> str:
    """Return how a configuration names a dataset: by what opens it again, or by name and hash where only Python can."""
    return f"{dataset.name}#{dataset.hash()}" if isinstance(dataset, Data) else dataset


def resolve_dataset(
    dataset: str | Data,
    augment: str | None,
    skip_broken: bool,
    allow_texts: bool = False,
    layout: str | None = None,
    allow_label_sets: bool = False,
) -> Data:
    """Open a dataset, or take data that are open, perhaps with another augmentation.

    Raises:
        ValueError: for texts unless `allow_texts`, for items with several labels unless `allow_label_sets`, and
            for the layout of what is no folder.
    """
    from vlprompt.data.text.card import check_text_use

    if isinstance(dataset, Data):
        require_folder(layout, dataset)
    data = dataset if isinstance(dataset, Data) else open_data(dataset, augment, skip_broken, layout=layout)
    require_augmentation(augment)
    if data.test.has_several_labels and not allow_label_sets:
        raise ValueError(
            f"dataset: expected items with one label each, got {data.name!r}, where an item may have several. Run it "
            "by --task multi_label."
        )
    if "answer" in data.test.info:
        return check_text_use(data, augment, allow_texts)
    if augment is None or data is not dataset:
        return data
    return _replace_splits(data, lambda split: replace(split, augment=augment))


def require_augmentation(augment: str | None) -> None:
    """Raise ValueError for an augmentation that there is not."""
    if augment not in (None, *AUGMENTATIONS):
        raise ValueError(f"augment: there is no augmentation {augment!r}; the choices are {', '.join(AUGMENTATIONS)}")


def with_template(data: Data, template: str) -> Data:
    """Return the same data with another prompt template."""
    names = tuple(
        ClassName(str(n), key, template) for n, key in zip(data.test.names, class_ids(data.test.names), strict=True)
    )
    return replace(_replace_splits(data, lambda split: replace(split, names=names)), template=template)


def _replace_splits(data: Data, change: Callable[[Split], Split]) -> Data:
    val = None if data.val is None else change(data.val)
    return replace(data, train=change(data.train), val=val, test=change(data.test))
