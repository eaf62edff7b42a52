"""Inspect a dataset: compare it with its card, decode its images, sample a few of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.images import Preprocessing
from vlprompt.data.cards import is_card, load_card, load_card_classes
from vlprompt.data.dataset import PROBE_PREPROCESSING, Data, shorten_list
from vlprompt.data.images.files import UNREAD_SUFFIXES, list_image_files
from vlprompt.data.loading import open_source
from vlprompt.data.locations import data_root, dataset_folder
from vlprompt.data.readers.card_folder import find_classes
from vlprompt.data.report import DatasetReport, find_duplicates, nonempty_splits
from vlprompt.data.sources import HubName, UserPath, resolve_source
from vlprompt.data.splits.names import SPLIT_NAMES
from vlprompt.runtime.file_index import get_file_index

if TYPE_CHECKING:
    from vlprompt.data.card_schema import ImageCard
    from vlprompt.data.cards import Card

ProgressCallback = Callable[[int, int], None]  # images done, images in all


def inspect_dataset(
    dataset: str,
    root: str | Path | None = None,
    allow_missing_classes: bool = False,
    decode: bool = True,
    on_progress: ProgressCallback | None = None,
    layout: str | None = None,
) -> DatasetReport:
    """Open a dataset with the classes that have images and compare it with its card.

    Args:
        dataset: as `open_data` takes it.
        root: the folder of all datasets.
        allow_missing_classes: missing classes are a remark and not a problem.
        decode: decode every image.
        on_progress: called while images are decoded.
        layout: as `open_data` takes it.

    Raises:
        ValueError: as `open_data` does.
        OSError: as `open_data` does.
    """
    source = resolve_source(dataset)
    data = open_source(source, root=root, allow_missing_classes=True, layout=layout)
    card = None if isinstance(source, HubName | UserPath | Data) else source
    if "answer" in data.test.info:
        from vlprompt.data.text.inspection import inspect_texts

        return inspect_texts(card if card is not None and card.kind == "text" else None, data, allow_missing_classes)
    problems, remarks = list[str](), list[str]()
    missing, n_classes = ((), 0) if card is None else _find_missing_classes(cast("ImageCard", card), data, root)
    if missing:
        line = f"{len(missing)} of {n_classes} classes have no images: {shorten_list(missing, 20)}"
        (remarks if allow_missing_classes else problems).append(line)
    expected = {} if card is None else card.sizes
    if expected and not missing and (line := _compare_sizes(data, expected)):
        is_expected = "not the literature's split" in data.note
        (remarks if is_expected else problems).append(line)
    if repeated := sorted({str(name) for name in data.test.names if data.test.names.count(name) > 1}):
        remarks.append(f"several classes are called {', '.join(repeated)}; they are told apart by their ids")
    splits = nonempty_splits(data)
    broken = _find_broken_files(splits, on_progress) if decode else ()
    if decode:
        clashes, repeats = find_duplicates(splits, lambda item: item.content_hash(), "images")
        get_file_index().flush()
        (problems if card is None else remarks).extend(clashes)  # published sets are what they are
        remarks += repeats
    if broken:
        problems.append(
            f"{len(broken)} images can't be decoded: {shorten_list(broken, 20)}; replace them, or run without them by "
            "--skip-broken"
        )
    counts = {part: len(split) for part, split in splits.items()}
    if isinstance(source, UserPath) and source.path.is_dir():
        remarks += _describe_other_images(source.path)
    remarks = [*data.remarks, *remarks, *describe_stream(data)]
    return DatasetReport(data, counts, expected, missing, broken, problems, remarks)


def _describe_other_images(folder: Path) -> list[str]:
    """Return a remark on images of formats that are not read; nothing where there are none."""
    counts = Counter(file.suffix.lower() for file in list_image_files(folder, UNREAD_SUFFIXES))
    formats = ", ".join(f"{suffix} {n:,}" for suffix, n in sorted(counts.items()))
    return [f"images of formats that are not read are left out: {formats}; convert them to take them"] * bool(counts)


def _find_missing_classes(card: "ImageCard", data: Data, root: str | Path | None) -> tuple[tuple[str, ...], int]:
    """Return the names of a card's classes that have no images, and the number of its classes."""
    present = class_ids(data.test.names)
    if card.kind == "members":
        classes = dict(zip(present, map(str, data.test.names), strict=True))
    else:
        classes = find_classes(card, root) if card.kind == "layout" else load_card_classes(card)
    missing = tuple(name for key, name in classes.items() if key not in present)
    n_classes = max(len(classes), len(card.listed_classes()))
    return missing + ("of unknown name",) * (n_classes - len(classes)), n_classes  # that only the data name


def _compare_sizes(data: Data, expected: dict[str, int]) -> str:
    """Say how many items the card has and how many are here; "" where they are equal."""
    splits = nonempty_splits(data)
    counts = {part: len(split) for part, split in splits.items()}
    if "val" not in expected and {"train", "val"} <= counts.keys():  # our val is a fraction of the train that it counts
        counts = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    if not set(expected) & set(SPLIT_NAMES):  # the card counts the images of each domain
        domains = cast(list[str], data.test.info.get("domains", []))
        by_domain = Counter(domains[k] for split in splits.values() for k in split.domains or ())
        counts = {domain: by_domain[domain] for domain in expected}
    if counts == expected:
        return ""
    return f"the card has {_format_sizes(expected)} images in {'/'.join(expected)}, here are {_format_sizes(counts)}"


def describe_stream(data: Data) -> list[str]:
    """Return lines on stages, on domains with their images, and on transductive use, where the data have them."""
    lines, info = list[str](), data.test.info
    stages, domains = info.get("stages"), info.get("domains")
    if isinstance(stages, list):
        lines.append(f"stages: {len(stages)}, of {', '.join(str(len(stage)) for stage in stages)} classes")
    elif stages is not None:
        lines.append(f"stages: {stages}, of {len(data.test.names)} classes in all")
    if isinstance(domains, list):
        counts = {part: Counter(split.domains) for part, split in nonempty_splits(data).items()}
        sizes = (f"{name} {_format_sizes({p: c[k] for p, c in counts.items()})}" for k, name in enumerate(domains))
        lines.append(f"domains: {', '.join(sizes)} in {'/'.join(counts)}")
    if info.get("transductive"):
        lines.append(
            "transductive: all images of a domain are adapted to and tested on; only other tasks take the parts"
        )
    return lines


def _format_sizes(counts: dict[str, int]) -> str:
    return "/".join(f"{n:,}" for n in counts.values())


def _find_broken_files(splits: dict[str, Split], on_progress: ProgressCallback | None) -> tuple[str, ...]:
    items = [item for split in splits.values() for item in split.items]
    broken = []
    for n_done, item in enumerate(items, 1):
        try:
            item.decode_once(PROBE_PREPROCESSING, None)
        except (ValueError, OSError):
            broken.append(item.name)
        if on_progress is not None and (n_done % 50 == 0 or n_done == len(items)):
            on_progress(n_done, len(items))
    return tuple(broken)


def sample_images(data: Data, max_images: int = 40) -> tuple[list[Any], list[str]]:
    """Return images (h, w, 3) of 0..1 from as many classes as fit, spread over all of them, and their captions.

    A few from each where there are few classes. The items come from train, or from test where there is no train.
    """
    split = data.train if len(data.train) else data.test
    n = len(split.names)
    labels = range(n) if n <= max_images else [i * n // max_images for i in range(max_images)]
    images_per_class = max(1, min(4, max_images // n))
    indices_by_label: dict[int, list[int]] = {}
    for index, label in enumerate(split.labels):
        present = [k for k, value in enumerate(label) if value == 1] if split.has_several_labels else [label]
        for k in present:
            indices_by_label.setdefault(k, []).append(index)
    images, captions = [], []
    for label in labels:
        indices = indices_by_label.get(label, [])
        for index in indices[:: max(1, len(indices) // images_per_class)][:images_per_class]:
            pixels = split.items[index].pixels(Preprocessing((96, 96)), None)
            images.append(pixels.clamp(0, 1).permute(1, 2, 0).numpy())
            captions.append(f"{label} {str(split.names[label]).replace('_', ' ')}")
    return images, captions


def is_available(card: "Card", root: str | Path | None = None) -> bool:
    """Whether the data of a card lie on this machine. Members that a library reads count as available."""
    match card.kind:
        case "text":
            from vlprompt.data.text.card import is_text_card_available

            return is_text_card_available(card, root)
        case "members":
            return all(_is_member_available(member, root) for member in card.members.values())
        case "hub":
            return dataset_folder(card.folder, root).exists()
        case "layout":
            return (dataset_folder(card.folder, root) / card.images).is_dir()
    return True


def _is_member_available(member: str, root: str | Path | None) -> bool:
    if is_card(member):
        return (card := load_card(member)).kind != "members" and is_available(card, root)
    return member.startswith("torchvision:") or Path(member).exists() or (data_root(root) / member).exists()
