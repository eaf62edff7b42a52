"""Read tables of texts, and open a user's own, whose schema is inferred from the columns."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.data.dataset import Data, join_notes
from vlprompt.data.images.files import is_hidden, list_folders
from vlprompt.data.splits.names import SPLIT_CHOICES, parse_split_name
from vlprompt.data.table_rows import TABLE_SUFFIXES, read_table_rows
from vlprompt.data.text.dataset import build_text_dataset
from vlprompt.data.text.rows import get_list, get_value, normalize_label, refuse_image_columns
from vlprompt.data.text.text_inputs import make_class_template
from vlprompt.data.text_schema import TextRow, TextSchema

NON_TEXT_COLUMNS = ("label", "class", "split", "id", "idx", "index")  # columns that never hold a text
ALPACA_TEMPLATES = (  # the prompts of its authors, with and without an input (github.com/tatsu-lab/stanford_alpaca)
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
)


def read_text_rows(path: Path) -> list[TextRow]:
    """Read the rows of a table; a text is named by its file and line."""
    rows = [TextRow(f"{path}, row {line}", f"{path.stem}/{line}", columns) for line, columns in read_table_rows(path)]
    if not rows:
        raise ValueError(f"{path}: expected a row for each text, got no rows. Add some.")
    return rows


def find_split_tables(folder: Path) -> dict[str, Path]:
    """Return {split: file} of the tables named train, val (valid, validation, dev) and test.

    Raises:
        ValueError: for two tables of one split.
    """
    tables: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split_name = None if is_hidden(path.name) else parse_split_name(path.stem)
        if split_name is None or path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
            continue
        if split_name in tables:
            raise ValueError(
                f"{str(folder)!r}: expected one table for {split_name}, got {tables[split_name].name} and "
                f"{path.name}. Remove one."
            )
        tables[split_name] = path
    return tables


def is_text_path(path: Path) -> bool:
    """Whether a path holds texts: a table with columns of texts, or a folder of split tables without subfolders."""
    if path.is_dir():
        has_subfolders = bool(list_folders(path))
        return not has_subfolders and bool(find_split_tables(path))
    if path.suffix.lower() not in TABLE_SUFFIXES or not (rows := read_table_rows(path)):
        return False
    return _infer_schema([column.lower() for column in rows[0][1]], str(path)) is not None


def open_text_path(dataset: str, template: str | None, skip_broken: bool, allow_missing_classes: bool) -> Data:
    """Open a user's own texts: one table, or a folder with tables train, test and optionally val.

    The column names, in any case, determine the answer: label or class (of the column text, else of all other
    columns), words and tags, messages, prompt and response, instruction, optionally input, and output, or text and
    response. A column split assigns rows to train, val or test; id, idx and index are ignored.

    Args:
        dataset: the path of the table or folder.
        template: replaces the inferred template.
        skip_broken: leave out rows that can't be read.
        allow_missing_classes: leave out classes without texts.

    Raises:
        ValueError: for other columns, and for a folder without train or test.
    """
    path = Path(dataset).expanduser()
    rows_by_split = _read_split_rows(path)
    rows = [row for split_rows in rows_by_split.values() for row in split_rows]
    first = rows[0]
    schema = _infer_schema(list(first.columns), first.location)
    if schema is None:
        raise ValueError(
            f"{first.location}: expected the columns text and label, prompt and response, words and tags, or "
            f"messages, got {', '.join(first.columns)}. Rename the columns."
        )
    refuse_image_columns(rows, list(schema.fields.values()) if schema.answer == "class" else [])
    if "split" in first.columns and "all" in rows_by_split:
        rows_by_split = _group_rows_by_split(rows)
    note = f"texts by the columns {', '.join(schema.fields.values()) or 'messages'}"
    note = join_notes(note, "" if schema.answer == "messages" else f"answers by {schema.answer_column}")
    return build_text_dataset(
        path.absolute().name,
        rows_by_split,
        _complete_schema(schema, rows, template, skip_broken),
        f"{'the folder' if path.is_dir() else 'the file'} {dataset!r}",
        note=note,
        skip_broken=skip_broken,
        allow_missing_classes=allow_missing_classes,
    )


def _read_split_rows(path: Path) -> dict[str, list[TextRow]]:
    """Read a folder's tables by split, or one table as {"all": rows}."""
    tables = find_split_tables(path) if path.is_dir() else {"all": path}
    if path.is_dir() and not {"train", "test"} <= set(tables):
        raise ValueError(
            f"{str(path)!r}: expected both train and test, got {', '.join(table.name for table in tables.values())}. "
            "Add the other, or give one file, which is split."
        )
    return {split_name: _lowercase_columns(read_text_rows(table)) for split_name, table in tables.items()}


def _complete_schema(
    schema: TextSchema, rows: Sequence[TextRow], template: str | None, skip_broken: bool
) -> TextSchema:
    """Add the class names that the rows have, and the user's template."""
    templates = schema.templates if template is None else (template,)
    names = _collect_class_names(rows, schema, skip_broken)
    if schema.answer == "class":
        names = tuple(
            ClassName(str(name), class_id, templates[0]) for name, class_id in zip(names, class_ids(names), strict=True)
        )
    return TextSchema(schema.answer, schema.fields, schema.answer_column, templates, schema.plain_template, names)


def _lowercase_columns(rows: Sequence[TextRow]) -> list[TextRow]:
    return [row._replace(columns={column.lower(): value for column, value in row.columns.items()}) for row in rows]


def _infer_schema(column_order: Sequence[str], where: str) -> TextSchema | None:
    """Infer fields, answer and template from the columns; None for a list of images and unknown columns."""
    columns = set(column_order)
    if columns & {"path", "image"}:
        return None
    if "messages" in columns:
        return TextSchema("messages", {"messages": "messages"}, "messages", ("{messages}",), "{messages}")
    if {"words", "tags"} <= columns:
        return TextSchema("tags", {"words": "words"}, "tags", ("{words}",), "{words}")
    if {"instruction", "output"} <= columns:
        fields = {column: column for column in ("instruction", "input") if column in columns}
        return TextSchema("response", fields, "output", ALPACA_TEMPLATES if "input" in fields else ALPACA_TEMPLATES[1:])
    for field in ("prompt", "text"):
        if {field, "response"} <= columns:
            return TextSchema("response", {field: field}, "response", (f"{{{field}}}",))
    label = next((column for column in ("label", "class") if column in columns), None)
    fields = ["text"] if "text" in columns else [column for column in column_order if column not in NON_TEXT_COLUMNS]
    if label is None or not fields:
        return None
    template = make_class_template(fields)
    try:
        return TextSchema("class", {column: column for column in fields}, label, (template,))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _group_rows_by_split(rows: Sequence[TextRow]) -> dict[str, list[TextRow]]:
    rows_by_split: dict[str, list[TextRow]] = {}
    for row in rows:
        value = get_value(row, "split")
        if (split_name := parse_split_name(value)) is None:
            raise ValueError(f"{row.location}: split: expected {SPLIT_CHOICES}, got {value!r}. Correct the row.")
        rows_by_split.setdefault(split_name, []).append(row)
    if not {"train", "test"} <= set(rows_by_split):
        raise ValueError(
            f"{rows[0].location}: split: expected both train and test, got {', '.join(rows_by_split)}. Add rows of "
            "the other split."
        )
    return rows_by_split


def _collect_class_names(rows: Sequence[TextRow], schema: TextSchema, skip_broken: bool) -> tuple[ClassName, ...]:
    """Return the classes that the rows name, sorted, integers numerically; ValueError for fewer than two."""
    if schema.answer not in ("class", "tags"):
        return (ClassName("response"),)
    labels: dict[str, None] = {}
    for row in rows:
        if skip_broken and schema.answer_column not in row.columns:
            continue
        is_tagged = schema.answer == "tags"
        values = get_list(row, schema.answer_column) if is_tagged else [get_value(row, schema.answer_column)]
        for value in values:
            label = "" if value is None else normalize_label(value)
            if not label and not skip_broken:
                raise ValueError(
                    f"{row.location}: {schema.answer_column}: expected a class for every text, got none. Fill it in."
                )
            if label:
                labels.setdefault(label)
    ordered = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
    if len(ordered) < 2:
        raise ValueError(
            f"{rows[0].location}: {schema.answer_column}: expected at least 2 classes, got only "
            f"{', '.join(ordered)!r}. Add rows of another class."
        )
    return tuple(ClassName(label) for label in ordered)
