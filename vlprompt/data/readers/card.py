"""Read the images of a card: by its loader, in its folder, by a library or from its members."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.images import ImageItem
from vlprompt.data.builtin.image_loaders import IMAGE_LOADERS
from vlprompt.data.cards import is_card, load_card, load_card_classes
from vlprompt.data.dataset import ImageRecord, RawDataset, build_class_names, join_notes, warn_duplicate_names
from vlprompt.data.locations import ROOT_HELP, data_root
from vlprompt.data.readers.card_folder import read_card_folder
from vlprompt.data.readers.hub import read_torchvision
from vlprompt.data.readers.user_path import read_user_path
from vlprompt.data.sources import HubName, UserPath
from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    from vlprompt.data.card_schema import ImageCard, MembersCard


def read_card(card: "ImageCard", root: str | Path | None = None, layout: str | None = None) -> RawDataset:
    """Read the images of a card, which lie below `root`; `layout` is that of its members that are folders.

    Raises:
        ValueError: for data that differ from the card.
        OSError: for data that are not on this machine.
    """
    raw = replace(_read_images(card, root, layout), name=card.name, where=card.name, hint=_missing_hint(card))
    return replace(
        raw,
        note=join_notes(card.note, raw.note),
        info=raw.info | _card_info(card),
        domains=tuple(card.domain_words) or raw.domains,
        incomplete_splits=card.incomplete_splits,
        stages=raw.stages if card.stages is None else parse_stages(card, class_ids(raw.names)),
        template=card.template,
        augment=card.augment,
    )


def note_missing_classes(raw: RawDataset, card: "ImageCard", allow_missing_classes: bool) -> RawDataset:
    """Add to the note that the data name fewer classes than the card counts; ValueError unless that is allowed."""
    n_classes = len(card.listed_classes())
    if len(raw.names) >= n_classes:
        return raw
    missing = f"only {len(raw.names)} of {n_classes} classes"
    if not allow_missing_classes:
        raise ValueError(f"{card.name}: expected all {n_classes} classes, got {missing}. {raw.hint}")
    return replace(raw, note=join_notes(raw.note, f"{missing} are there"))


def _read_images(card: "ImageCard", root: str | Path | None, layout: str | None) -> RawDataset:
    """Read by the kind of the card."""
    if card.kind == "members":
        return read_members(card, root, layout)
    names = build_class_names(load_card_classes(card), f"the card {card.name}", card.template)
    if card.kind == "layout":
        return read_card_folder(card, names, root)
    if card.kind == "hub":
        return read_torchvision(HubName("torchvision", card.hub.partition(":")[2]), root, names)
    return IMAGE_LOADERS[card.loader](names)


def _card_info(card: "ImageCard") -> dict[str, object]:
    """Return what a card says of its data that goes into `Split.info`."""
    return {key: getattr(card, key) for key in ("domain", "transductive", "pairs") if key in card.model_fields_set}


def _missing_hint(card: "ImageCard") -> str:
    by_hand = card.kind != "hub" and not getattr(card, "downloads", [])
    get = f"prepare {card.dataset}`, by hand" if by_hand else f"prepare {card.dataset} --download`"
    return (
        f"Get the rest (`vlprompt data {get}), or take only the classes that are there: "
        "`vlprompt data check --allow-missing-classes`, in Python open_data(..., allow_missing_classes=True), "
        "which a task takes."
    )


def parse_stages(card: "ImageCard", ids: Sequence[str]) -> int | list[list[str]]:
    """Return the number of stages of a card, or the class ids of each.

    Raises:
        ValueError: for a number out of range, an unknown class, a class in two stages and an empty stage.
    """
    stages, where = card.stages, f"{card.name}: the card's stages"
    if isinstance(stages, int) and not isinstance(stages, bool):
        n_classes = max(len(ids), len(card.listed_classes()))
        if not 1 <= stages <= n_classes:
            raise ValueError(
                f"{where}: expected from 1 stage up to one for each of its {n_classes} classes, got {stages}. Correct "
                "the card."
            )
        return stages
    if not isinstance(stages, list) or not all(isinstance(stage, list) for stage in stages) or not stages:
        raise ValueError(
            f"{where}: expected a number, or a list with a list of class ids for each stage, got {stages!r}. Correct "
            "the card."
        )
    parsed, stage_of = [[str(key) for key in stage] for stage in stages], dict[str, int]()
    for index, stage in enumerate(parsed):
        if not stage:
            raise ValueError(
                f"{where}: expected classes in each stage, got none in number {index}. Give it some or leave it out."
            )
        for key in stage:
            if key not in ids:
                raise ValueError(f"{where}: expected ids of its classes, got {key!r}; {suggest_nearest(key, ids)}")
            if key in stage_of:
                raise ValueError(
                    f"{where}: expected each class once, got {key!r} in number {stage_of[key]} and {index}. Keep one "
                    "of them."
                )
            stage_of[key] = index
    return parsed


def read_members(card: "MembersCard", root: str | Path | None, layout: str | None = None) -> RawDataset:
    """Read all members of a card; `layout` is that of those that are folders.

    Class ids and paths begin with the member's name, which is the domain of its images; the stages are the members in
    turn. Errors name the member.
    """
    members = {
        name: _read_member(f"{card.name}, member {name}", one, root, layout) for name, one in card.members.items()
    }
    names = tuple(
        ClassName(str(text), f"{member}/{key}", getattr(text, "template", None) or card.template)
        for member, raw in members.items()
        for text, key in zip(raw.names, class_ids(raw.names), strict=True)
    )
    warn_duplicate_names(names, card.name)
    if len(names) > card.classes:
        raise ValueError(
            f"{card.name}: expected {card.classes} classes as on the card, got {len(names)} of the members. Correct "
            "the card."
        )
    records: dict[str, list[ImageRecord]] = {}
    for member, raw in members.items():
        for part, part_records in raw.records.items():
            records.setdefault(part, []).extend(
                ImageRecord(f"{member}/{r.path}", f"{member}/{r.class_id}", member) for r in part_records
            )
    return RawDataset(
        names,
        records,
        partial(_build_member_item, {member: raw.build_item for member, raw in members.items()}),
        join_notes(*(f"{member}: {raw.note}" for member, raw in members.items() if raw.note)),
        domains=tuple(members),
        stages=[[f"{member}/{key}" for key in class_ids(raw.names)] for member, raw in members.items()],
        layout="members",
        rule=join_notes(*(f"{member}: {raw.layout}" for member, raw in members.items() if raw.layout)),
        remarks=tuple(f"{member}: {remark}" for member, raw in members.items() for remark in raw.remarks),
    )


def _read_member(where: str, dataset: str, root: str | Path | None, layout: str | None) -> RawDataset:
    """Read one member: a card, torchvision:NAME, or a folder here or below the data root."""
    local, below_root = Path(dataset).expanduser(), data_root(root) / dataset
    try:
        if is_card(dataset):
            card = load_card(dataset)
            if card.kind == "members" or card.kind == "text":
                raise ValueError(
                    f"expected a card of images, got {dataset!r}, which has {card.kind} itself. Name cards of images."
                )
            return read_card(card, root)
        if dataset.startswith("torchvision:"):
            return read_torchvision(HubName("torchvision", dataset.partition(":")[2]), root)
        if local.exists() or below_root.exists():
            path = local if local.exists() else below_root
            return read_user_path(UserPath(str(path)), layout if path.is_dir() else None)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    raise FileNotFoundError(
        f"{where}: expected a card, torchvision:NAME or a folder here or at {str(below_root)!r}, got {dataset!r}. "
        f"{ROOT_HELP}."
    )


def _build_member_item(item_builders: dict[str, Callable[[str], ImageItem]], path: str) -> ImageItem:
    member, _, rest = path.partition("/")
    return replace(item_builders[member](rest), name=path)
