"""Find and load dataset cards, and the class names that they list."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.paths import cards_folder

if TYPE_CHECKING:
    from vlprompt.data.card_schema import ImageCard
    from vlprompt.data.text_card_schema import TextCard

    Card = ImageCard | TextCard

TYPED_KEYS = ("sizes", "downloads", "words", "domains")  # of a card; in all other lists and mappings stand names


def list_cards() -> list[str]:
    """Return the names of the cards that come with the package."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def find_card(dataset: str) -> Path | None:
    """Return the file of a card by its name, or a user's own YAML file; None for anything else."""
    if dataset in list_cards():
        return cards_folder() / f"{dataset}.yaml"
    path = Path(dataset).expanduser()
    return path if path.suffix in (".yaml", ".yml") and path.is_file() else None


def is_card(dataset: str) -> bool:
    """Whether a dataset is the name of a card or a YAML file."""
    return find_card(dataset) is not None


def load_card(dataset: str) -> "Card":
    """Load and check a dataset card; its names are strings as they are written (yes, 010, 1.0), ids of classes too.

    Args:
        dataset: the name of a card, or a YAML file.

    Raises:
        ValueError: for a name without a card, for unknown and missing keys and wrong values; it names file and key.
    """
    from vlprompt.data.validation import load_yaml_mapping, validate

    if (path := find_card(dataset)) is None:
        raise ValueError(f"dataset: expected the name of a card or a YAML file, got {dataset!r}; "
                         f"{suggest_nearest(dataset, list_cards())}")  # fmt: skip
    values = load_yaml_mapping(path, typed_keys=TYPED_KEYS)
    model = _select_model(values, path)
    if isinstance(name := values.get("classes"), str) and "members" not in values:
        if not is_card(name):
            raise ValueError(
                f"{path}: classes: expected a number, names or the name of a card, got {name!r}; "
                f"{suggest_nearest(name, list_cards())}"
            )
        other = load_card(name)
        values["classes"] = other.classes
        if (names := getattr(other, "names", None)) is not None and "text" not in values:
            values["names"] = names
    card = validate(model, values, path)
    card.locate(dataset, path)
    return card


def load_card_classes(card: "Card") -> dict[str, str]:
    """Return {class id: name} in label order; with `names: imagenet` WordNet ids get the names of CLIP's authors."""
    if getattr(card, "names", None) != "imagenet":
        return card.listed_classes()
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    all_names = dict(zip(load_card("imagenet").listed_classes(), IMAGENET_CLASSNAMES, strict=True))
    if unknown := [key for key in card.listed_classes() if key not in all_names]:
        raise ValueError(
            f"{card.path}: classes: expected ImageNet's 1000 WordNet ids, got {unknown[0]!r}. Correct the id."
        )
    return {key: all_names[key] for key in card.listed_classes()}


def _select_model(values: Mapping[object, object], path: Path) -> "type[Card]":
    """Return the schema of a card by the source that it names; a card without one is read as folders."""
    from vlprompt.data.card_schema import HubCard, LayoutCard, LoaderCard, MembersCard
    from vlprompt.data.text_card_schema import TextCard

    if "text" in values:
        return TextCard
    models = {model.kind: model for model in (LoaderCard, HubCard, MembersCard, LayoutCard)}
    kinds = [kind for kind in models if kind in values] or ["layout"]
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: expected one of the keys {', '.join(models)}, got {' and '.join(kinds)}. Remove one."
        )
    return models[kinds[0]]
