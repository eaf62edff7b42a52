"""The page of datasets: one section per card."""

from typing import Any

from docs.markdown_text import code, escape, page_title, table
from vlprompt.data.cards import list_cards, load_card, load_card_classes

KINDS = {
    "loader": "Images that come with the package",
    "layout": "Images in their authors' folders",
    "hub": "Images that torchvision reads",
    "members": "Several datasets as one",
    "text": "Texts",
}


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Datasets",
        "Every card that comes with vlprompt. A card says where a dataset comes from, how its folder is laid out and "
        "how its classes are shown; it holds no data. Your own files need none: [your own data](../guides/own_data.md)."
        " How to get published sets: [published datasets](../guides/benchmark_data.md).",
    )
    cards = {name: load_card(name) for name in list_cards()}
    for kind, title in KINDS.items():
        names = [name for name, card in cards.items() if card.kind == kind]
        lines += [f"## {title}", ""]
        rows = [
            [f"[{code(name)}](#{name})", escape(cards[name].title), _count_classes(cards[name]), _needs(cards[name])]
            for name in names
        ]
        lines += table(["dataset", "what it shows", "classes", "what it needs"], rows)
        for name in names:
            lines += _describe_card(name, cards[name])
    return "\n".join(lines)


def _count_classes(card: Any) -> str:
    if card.kind == "text" and card.text.answer not in ("class", "tags"):
        return "free text"
    return str(card.classes if isinstance(card.classes, int) else len(load_card_classes(card)))


def _needs(card: Any) -> str:
    """Return what must be there before the dataset can be used, in a few words."""
    if getattr(card, "loader", None):
        return "nothing"
    if card.kind == "members":
        return "its members"
    if card.kind == "hub":
        return "`vlprompt data prepare`, or its files"
    if card.kind == "text":
        return "`vlprompt data prepare`, or its files" if card.hub else "its files"
    parts = ["`vlprompt data prepare`"] if card.downloads else []
    return ", ".join([*parts, "a download by hand"] if card.manual_download else parts) or "its files"


def _describe_card(name: str, card: Any) -> list[str]:
    facts = [("source", escape(card.source)), ("licence", escape(card.licence)), ("classes", _count_classes(card))]
    templates = card.templates if card.kind == "text" else (card.template,)
    facts.append(("template", "<br>".join(code(template) for template in templates)))
    if getattr(card, "plain", None):
        facts.append(("template for a head on the features", code(card.plain)))
    facts.append(("items", ", ".join(f"{part} {size:,}" for part, size in card.sizes.items()) or "see the note"))
    for key, label in (("split", "split file of the literature"), ("folder", "folder below the data root")):
        if value := getattr(card, key, None):
            facts.append((label, code(value)))
    facts += _describe_stream(card)
    if getattr(card, "augment", "none") != "none":
        facts.append(("augmentation", code(card.augment)))
    if getattr(card, "metric", None):
        facts.append(("metric of the literature", code(card.metric)))
    if getattr(card, "manual_download", None):
        facts.append(("to be fetched by hand", escape(card.manual_download)))
    facts += [("note", escape(card.note))] if card.note else []
    link = f"[datasets/{name}.yaml](../../datasets/{name}.yaml)"
    return [
        f"### `{name}` {{ #{name} }}",
        "",
        escape(card.title),
        "",
        *table(["key", "value"], [*map(list, facts), ["card", link]]),
    ]


def _describe_stream(card: Any) -> list[tuple[str, str]]:
    facts = []
    if domains := getattr(card, "domains", None):
        facts.append(("domains", ", ".join(map(escape, domains.values()))))
    if members := getattr(card, "members", None):
        facts.append(("members", ", ".join(map(code, members))))
    if (stages := getattr(card, "stages", None)) is not None:
        facts.append(("stages of its stream", str(stages) if isinstance(stages, int) else str(len(stages))))
    if getattr(card, "transductive", False):
        facts.append(("tests of an adaptation", "the target images that were adapted to"))
    return facts
