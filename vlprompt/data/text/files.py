"""Files of texts: tables as rows by part, and a user's own, whose columns tell what is asked."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.core.class_names import Name, ids
from vlprompt.data.dataset import Data, joined
from vlprompt.data.table_rows import TABLES, read_rows
from vlprompt.data.text.dataset import text_data
from vlprompt.data.text.rows import label_of, list_of, no_pictures, value_of
from vlprompt.data.text_schema import Meaning, Told

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
NO_TEXT = ("label", "class", "split", "id", "idx", "index")  # columns that a text never stands in
ALPACA = (  # the prompts of its authors, with and without an input (github.com/tatsu-lab/stanford_alpaca)
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
)


def rows_of(path: Path) -> list[Told]:
    """The rows of a table; a passage is called by the file and the line."""
    found = [Told(f"{path}, row {line}", f"{path.stem}/{line}", row) for line, row in read_rows(path)]
    if not found:
        raise ValueError(f"{path} has no rows; it needs one for each text")
    return found


def tables_in(folder: Path) -> dict[str, Path]:
    """{part: file} of the tables that are called train, val (valid, validation, dev) and test."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TABLES and path.is_file() and (part := PARTS.get(path.stem.lower())) is not None:
            if part in found:
                raise ValueError(f"{str(folder)!r} has {found[part].name} and {path.name}, both for {part}; remove one")
            found[part] = path
    return found


def is_texts(path: Path) -> bool:
    """Whether a file's columns, or those of the tables in a folder without folders, say that it holds texts."""
    if path.is_dir():
        return not any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()) and bool(tables_in(path))
    if path.suffix.lower() not in TABLES or not (rows := read_rows(path)):
        return False
    return _meaning([column.lower() for column in rows[0][1]], str(path)) is not None


def open_texts(dataset: str, template: str | None, skip_broken: bool, only_there: bool) -> Data:
    """A user's own texts: one table, or a folder with train, test and perhaps val.

    The columns, in any case, tell what is asked: label or class (of all other columns, or of text alone where there is
    one), words and tags, messages, prompt and response, instruction, perhaps input, and output; text and response. A
    column split says train, val or test; id, idx and index are not looked at. ValueError for other columns.
    """
    path = Path(dataset).expanduser()
    tables = tables_in(path) if path.is_dir() else {"all": path}
    if path.is_dir() and not {"train", "test"} <= set(tables):
        raise ValueError(f"{str(path)!r} has {', '.join(p.name for p in tables.values())}; both train and test are "
                         "needed, or one file, which is cut")  # fmt: skip
    parts = {part: _lower(rows_of(table)) for part, table in tables.items()}
    first = next(iter(parts.values()))[0]
    meaning = _meaning(list(first.row), first.where)
    if meaning is None:
        raise ValueError(
            f"{first.where}: the columns are {', '.join(first.row)}; a file of texts has text and label, prompt and "
            "response, words and tags, or messages"
        )
    every = [one for rows in parts.values() for one in rows]
    no_pictures(every, list(meaning.fields.values()) if meaning.answer == "class" else [])
    if "split" in first.row and "all" in parts:
        parts = _by_split(parts["all"])
    names = _names(every, meaning, skip_broken)
    templates = meaning.templates if template is None else (template,)
    if meaning.answer == "class":
        names = tuple(Name(str(name), key, templates[0]) for name, key in zip(names, ids(names), strict=True))
    note = f"texts by the columns {', '.join(meaning.fields.values()) or 'messages'}"
    note = joined(note, "" if meaning.answer == "messages" else f"answers by {meaning.column}")
    meaning = Meaning(meaning.answer, meaning.fields, meaning.column, templates, meaning.plain, names)
    return text_data(path.absolute().name, parts, meaning, f"{'the folder' if path.is_dir() else 'the file'} "
                     f"{dataset!r}", note=note, skip_broken=skip_broken, only_there=only_there)  # fmt: skip


def _lower(rows: Sequence[Told]) -> list[Told]:
    return [one._replace(row={column.lower(): value for column, value in one.row.items()}) for one in rows]


def _meaning(order: Sequence[str], where: str) -> Meaning | None:
    """What the columns ask; None for a list of images and for what asks nothing."""
    columns = set(order)
    if columns & {"path", "image"}:
        return None
    if "messages" in columns:
        return Meaning("messages", {"messages": "messages"}, "messages", ("{messages}",), "{messages}")
    if {"words", "tags"} <= columns:
        return Meaning("tags", {"words": "words"}, "tags", ("{words}",), "{words}")
    if {"instruction", "output"} <= columns:
        fields = {column: column for column in ("instruction", "input") if column in columns}
        return Meaning("response", fields, "output", ALPACA if "input" in fields else ALPACA[1:])
    for asks in ("prompt", "text"):
        if {asks, "response"} <= columns:
            return Meaning("response", {asks: asks}, "response", (f"{{{asks}}}",))
    label = next((column for column in ("label", "class") if column in columns), None)
    texts = ["text"] if "text" in columns else [column for column in order if column not in NO_TEXT]
    if label is None or not texts:
        return None
    template = " ".join(f"{{{column}}}" for column in texts) + " It is {mask}."
    try:
        return Meaning("class", {column: column for column in texts}, label, (template,))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _by_split(rows: Sequence[Told]) -> dict[str, list[Told]]:
    parts: dict[str, list[Told]] = {}
    for one in rows:
        told = str(value_of(one, "split")).strip().lower()
        if told not in PARTS:
            raise ValueError(f"{one.where}: the split {told!r} is not train, val or test")
        parts.setdefault(PARTS[told], []).append(one)
    if not {"train", "test"} <= set(parts):
        raise ValueError(f"{rows[0].where}: the column split has {', '.join(parts)}; both train and test are needed")
    return parts


def _names(rows: Sequence[Told], meaning: Meaning, skip_broken: bool) -> tuple[Name, ...]:
    """The classes that the rows name, sorted, whole numbers by their size; ValueError for fewer than two."""
    if meaning.answer not in ("class", "tags"):
        return (Name("response"),)
    seen: dict[str, None] = {}
    for one in rows:
        if skip_broken and meaning.column not in one.row:
            continue
        labels: Sequence[object] = [value_of(one, meaning.column)]
        for label in list_of(one, meaning.column) if meaning.answer == "tags" else labels:
            text = "" if label is None else label_of(label)
            if not text and not skip_broken:
                raise ValueError(f"{one.where}: {meaning.column} is empty; every text needs a class")
            if text:
                seen.setdefault(text)
    found = sorted(seen, key=int) if all(text.isdecimal() for text in seen) else sorted(seen)
    if len(found) < 2:
        raise ValueError(f"{rows[0].where}: the column {meaning.column} has only the class {', '.join(found)!r}; two "
                         "classes are the least")  # fmt: skip
    return tuple(Name(text) for text in found)
