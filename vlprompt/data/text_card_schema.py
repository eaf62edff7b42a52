"""Cards of text datasets: what they say, where their tables lie, and how they are read and fetched."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Names
from vlprompt.data.builtin.text_loaders import LOADERS
from vlprompt.data.text_schema import ANSWERS, Meaning
from vlprompt.runtime.errors import nearest

NEEDED = {"title", "source", "licence", "text"}
HOMES = ("loader", "folder", "file")
KEYS = NEEDED | {*HOMES, "hub", "classes", "words", "template", "plain", "sizes", "note", "metric"}
PARTITIONS = ({"train", "test"}, {"train", "val", "test"}, {"all"})
HUB = {"path", "name", "revision", "splits"}


def completed(card: dict[str, Any], path: Path, class_ids: Callable[[], Iterable[str]]) -> dict[str, Any]:
    """A card of texts with what it leaves out; ValueError for a key too many, one that it lacks, or what can't be.

    text: {fields: {our name: column}, answer, and the answer's column by its key in ANSWERS}. Conversations and tags
    need no template; others have one, or a list of which a row takes the first whose fields it has. words: {class:
    what a language model says for it, the best first}. folder: under the root of all data; file: beside the card.
    """
    if unknown := set(card) - KEYS:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}; a card of texts has {', '.join(sorted(KEYS))}")
    text, homes = card.get("text"), [home for home in HOMES if home in card]
    if missing := NEEDED - set(card):
        raise ValueError(f"{path}: the key {min(missing)!r} is missing")
    if len(homes) != 1:
        raise ValueError(f"{path} has {' and '.join(homes) or 'no place'}; a card of texts has one of "
                         f"{', '.join(HOMES)}")  # fmt: skip
    if "loader" in card and card["loader"] not in LOADERS:
        raise ValueError(f"{path}: there is no loader {card['loader']!r}; {nearest(str(card['loader']), LOADERS)}")
    if not isinstance(text, dict) or text.get("answer") not in ANSWERS:
        raise ValueError(f"{path}: text is {{fields: {{our name: column}}, answer: one of {', '.join(ANSWERS)}, and "
                         f"the answer's column}}, not {text!r}")  # fmt: skip
    answer = text["answer"]
    needed = {"answer", ANSWERS[answer]} | ({"fields"} if answer != "messages" else set())
    if set(text) != needed:
        raise ValueError(f"{path}: text has {', '.join(text)}; for the answer {answer} it has "
                         f"{', '.join(sorted(needed))}")  # fmt: skip
    fields = text.get("fields", {"messages": text.get("messages")})
    if not isinstance(fields, dict) or not fields or (answer == "tags" and set(fields) != {"words"}):
        wanted = "{words: column}" if answer == "tags" else "{our name: column}"
        raise ValueError(f"{path}: fields are {wanted}, not {fields!r}")
    if "hub" in card and not (
        isinstance(card["hub"], dict) and {"path", "splits"} <= set(card["hub"]) <= HUB and "folder" in card
    ):
        raise ValueError(f"{path}: a hub is {{path: OWNER/NAME, name: of a part, splits: {{train: theirs, test: "
                         f"theirs}}}} beside a folder, not {card['hub']!r}")  # fmt: skip
    if "hub" in card and set(card["hub"]["splits"]) not in PARTITIONS:
        raise ValueError(f"{path}: the hub's splits have {', '.join(card['hub']['splits'])}; ours are train, test and "
                         "perhaps val, or all, which is cut")  # fmt: skip
    if ("classes" in card) != (answer in ("class", "tags")):
        raise ValueError(f"{path}: classes are for the answers class and tags, and these need them")
    if answer in ("messages", "tags"):
        card.setdefault("template", "{messages}" if answer == "messages" else "{words}")
    if "template" not in card:
        raise ValueError(f"{path}: the key 'template' is missing")
    templates = card["template"] if isinstance(card["template"], list) else [card["template"]]
    card["templates"], card["template"] = tuple(map(str, templates)), str(templates[0])
    card.setdefault("classes", ["response"])
    words, keys = card.get("words", {}), list(class_ids())
    lists = list(words.values()) if isinstance(words, dict) else [words]
    if not all(isinstance(some, list) and some for some in lists):
        raise ValueError(f"{path}: words are {{class: a list of words}}, the best first, not {words!r}")
    if bad := [word for some in lists for word in some if not isinstance(word, str) or not word.strip()]:
        raise ValueError(f"{path}: {bad[0]!r} is no word; write words in quotes, for YAML takes yes and no for truth")
    if strange := [key for key in map(str, words) if key not in keys]:
        raise ValueError(f"{path}: words has the class {strange[0]!r}; {nearest(strange[0], keys)}")
    try:
        _meaning(card, ())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "file" in card:
        card["file"] = str(path.parent / card["file"])
    return card


def _meaning(card: Mapping[str, Any], names: Names) -> Meaning:
    text = card["text"]
    column = text[ANSWERS[text["answer"]]]
    return Meaning(text["answer"], text.get("fields", {"messages": column}), column, card["templates"],
                   card.get("plain"), names)  # fmt: skip
