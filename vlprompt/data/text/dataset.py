"""Build datasets of texts from table rows, and replace their templates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.texts import TextItem
from vlprompt.data.dataset import Data, ImageRecord, join_notes
from vlprompt.data.splits.sampling import split_per_class
from vlprompt.data.text.rows import build_text_item
from vlprompt.data.text_schema import TextRow, TextSchema

LabelledText = tuple[TextItem, str]  # an item and the id of its class


def build_text_dataset(
    name: str,
    rows_by_split: Mapping[str, Sequence[TextRow]],
    schema: TextSchema,
    where: str,
    *,
    note: str = "",
    info: Mapping[str, object] | None = None,
    skip_broken: bool = False,
    allow_missing_classes: bool = False,
) -> Data:
    """Build the splits of a text dataset; `info["answer"]` is "class", "response", "tags" or "messages".

    Args:
        name: the name of the dataset.
        rows_by_split: rows of each split. A single split, whatever its name, is divided 70:10:20 class by class,
            always the same way; without val, a tenth of train becomes val.
        schema: the meaning of the columns.
        where: the source, for error messages.
        note: what a result reports about the data.
        info: further metadata of the splits.
        skip_broken: leave out rows that can't be read, and count them in the note.
        allow_missing_classes: leave out classes without texts.

    Raises:
        ValueError: for an invalid row (with its file and line), an empty split and a class without texts.
    """
    items_by_split, skipped = _parse_rows(rows_by_split, schema, where, skip_broken)
    if skipped:
        note = join_notes(note, f"{len(skipped)} rows left out ({', '.join(skipped[:3])}{' ...' * (len(skipped) > 3)})")
    items_by_split, split_note = _divide_into_splits(items_by_split)
    note = join_notes(note, split_note)
    train_texts = {_field_pairs(item) for split_name in ("train", "val") for item, _ in items_by_split[split_name]}
    if n_overlapping := sum(_field_pairs(item) in train_texts for item, _ in items_by_split["test"]):
        note = join_notes(note, f"{n_overlapping} of {len(items_by_split['test'])} test texts are in train or val too")
    label_by_id = {class_id: label for label, class_id in enumerate(class_ids(schema.names))}
    split_info = {"answer": schema.answer, **(info or {})}
    splits = {
        split_name: Split(
            tuple(item for item, _ in items),
            tuple(label_by_id.get(class_id, 0) for _, class_id in items),
            schema.names,
            info=split_info,
        )
        for split_name, items in items_by_split.items()
    }
    if schema.answer == "class":
        splits, note = _drop_empty_classes(splits, where, note, allow_missing_classes)
    val = splits["val"] if len(splits["val"]) else None
    return Data(name, splits["train"], val, splits["test"], schema.templates[0], note)


def with_text_template(data: Data, template: str) -> Data:
    """Return the same texts with another template.

    Raises:
        ValueError: if the template does not fit the fields and the answer of the texts.
    """
    first = data.test.items[0]
    TextSchema(str(data.test.info["answer"]), {field: field for field in first.fields}, "", (template,))
    names = tuple(
        ClassName(str(name), class_id, template, getattr(name, "words", ()))
        for name, class_id in zip(data.test.names, class_ids(data.test.names), strict=True)
    )

    def replace_template(split: Split) -> Split:
        return replace(split, names=names, items=tuple(replace(item, template=template) for item in split.items))

    return replace(
        data,
        template=template,
        train=replace_template(data.train),
        val=None if data.val is None else replace_template(data.val),
        test=replace_template(data.test),
    )


def _parse_rows(
    rows_by_split: Mapping[str, Sequence[TextRow]], schema: TextSchema, where: str, skip_broken: bool
) -> tuple[dict[str, list[LabelledText]], list[str]]:
    """Return the items of each split and the locations of the rows that were skipped."""
    items_by_split, skipped = dict[str, list[LabelledText]](), list[str]()
    for split_name, rows in rows_by_split.items():
        items: list[LabelledText] = []
        for row in rows:
            try:
                items.append(build_text_item(row, schema))
            except ValueError:
                if not skip_broken:
                    raise
                skipped.append(row.location)
        if not items:
            raise ValueError(
                f"{where}: expected rows{f' for {split_name}' * (len(rows_by_split) > 1)}, got none. Add some."
            )
        items_by_split[split_name] = items
    return items_by_split, skipped


def _divide_into_splits(
    items_by_split: dict[str, list[LabelledText]],
) -> tuple[dict[str, list[LabelledText]], str]:
    def divide(items: list[LabelledText], *fractions: float) -> dict[str, list[LabelledText]]:
        records = [ImageRecord(str(i), class_id) for i, (_, class_id) in enumerate(items)]
        return {
            split_name: [items[int(record.path)] for record in split_records]
            for split_name, split_records in split_per_class(records, fractions).items()
        }

    if len(items_by_split) == 1:
        [items] = items_by_split.values()
        return divide(items, 0.7, 0.1, 0.2), "each class cut 70:10:20 into train, val and test"
    if "val" in items_by_split:
        return items_by_split, ""
    return {**divide(items_by_split["train"], 0.9, 0.1), "test": items_by_split["test"]}, "a tenth of train is val"


def _drop_empty_classes(
    splits: dict[str, Split], where: str, note: str, allow_missing_classes: bool
) -> tuple[dict[str, Split], str]:
    names = splits["test"].names
    counts = {split_name: splits[split_name].count_per_class() for split_name in ("train", "test")}
    labels = [label for label in range(len(names)) if all(per_class[label] for per_class in counts.values())]
    if len(labels) == len(names):
        return splits, note
    empty_label = next(label for label in range(len(names)) if label not in labels)
    empty_split = next(split_name for split_name, per_class in counts.items() if not per_class[empty_label])
    if not allow_missing_classes or len(labels) < 2:
        raise ValueError(
            f"{where}: expected texts of every class, got none of {str(names[empty_label])!r} for {empty_split}. Add "
            "some, or remove the class."
        )
    note = join_notes(note, f"only the {len(labels)} of {len(names)} classes that have texts")
    return {split_name: split.select_classes(labels) for split_name, split in splits.items()}, note


def _field_pairs(item: TextItem) -> tuple[tuple[str, str], ...]:
    return tuple(item.fields.items())
