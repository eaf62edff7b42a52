"""Rows of text as data: their splits, and other templates for them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name, ids
from vlprompt.core.texts import Passage
from vlprompt.data.dataset import Data, Row, joined
from vlprompt.data.splits.sampling import cut
from vlprompt.data.text.rows import passage_of
from vlprompt.data.text_schema import Meaning, Told


def text_data(name: str, told: Mapping[str, Sequence[Told]], meaning: Meaning, where: str, *, note: str = "",
              info: Mapping[str, object] | None = None, skip_broken: bool = False,
              only_there: bool = False) -> Data:  # fmt: skip
    """Splits of passages; `info["answer"]` says how they are answered, "class", "response", "tags" or "messages".

    Rows of one part, whatever its name, are cut 70:10:20 class by class, always the same way; without val a tenth of
    train is val. skip_broken: rows that can't be read are left out, and the note counts them. only_there: so are
    classes without texts. ValueError that names the file and the line of a row that is wrong, and for a class without
    texts.
    """
    made, left = dict[str, list[tuple[Passage, str]]](), list[str]()
    for part, rows in told.items():
        made[part] = []
        for one in rows:
            try:
                made[part].append(passage_of(one, meaning))
            except ValueError:
                if not skip_broken:
                    raise
                left.append(one.where)
        if not made[part]:
            raise ValueError(f"{where} has no rows{f' for {part}' if len(told) > 1 else ''}; give it some")
    if left:
        note = joined(note, f"{len(left)} rows left out ({', '.join(left[:3])}{' ...' * (len(left) > 3)})")
    made, how = _parts(made)
    note = joined(note, how)
    train = {_read(passage) for part in ("train", "val") for passage, _ in made[part]}
    if met := sum(_read(passage) in train for passage, _ in made["test"]):
        note = joined(note, f"{met} of {len(made['test'])} test texts are in train or val too")
    places = {key: i for i, key in enumerate(ids(meaning.names))}
    known = {"answer": meaning.answer, **(info or {})}
    splits = {
        part: Split(tuple(p for p, _ in rows), tuple(places.get(key, 0) for _, key in rows), meaning.names, info=known)
        for part, rows in made.items()
    }
    if meaning.answer == "class":
        splits, note = _there(splits, where, note, only_there)
    val = splits["val"] if len(splits["val"]) else None
    return Data(name, splits["train"], val, splits["test"], meaning.templates[0], note)


def shown_by(data: Data, template: str) -> Data:
    """The same texts by another template; ValueError for one that does not fit them."""
    first = data.test.items[0]
    Meaning(str(data.test.info["answer"]), {field: field for field in first.fields}, "", (template,))
    names = tuple(Name(str(n), key, template, getattr(n, "words", ())) for n, key in
                  zip(data.test.names, ids(data.test.names), strict=True))  # fmt: skip

    def again(split: Split) -> Split:
        return replace(split, names=names, items=tuple(replace(item, template=template) for item in split.items))

    val = None if data.val is None else again(data.val)
    return replace(data, template=template, train=again(data.train), val=val, test=again(data.test))


def _parts(made: dict[str, list[tuple[Passage, str]]]) -> tuple[dict[str, list[tuple[Passage, str]]], str]:
    def divided(rows: list[tuple[Passage, str]], *shares: float) -> dict[str, list[tuple[Passage, str]]]:
        cuts = cut([Row(str(i), key) for i, (_, key) in enumerate(rows)], shares)
        return {part: [rows[int(row.path)] for row in some] for part, some in cuts.items()}

    if len(made) == 1:
        [rows] = made.values()
        return divided(rows, 0.7, 0.1, 0.2), "each class cut 70:10:20 into train, val and test"
    if "val" in made:
        return made, ""
    return {**divided(made["train"], 0.9, 0.1), "test": made["test"]}, "a tenth of train is val"


def _there(splits: dict[str, Split], where: str, note: str, only_there: bool) -> tuple[dict[str, Split], str]:
    names = splits["test"].names
    counts = {part: splits[part].count() for part in ("train", "test")}
    kept = [i for i in range(len(names)) if all(of_class[i] for of_class in counts.values())]
    if len(kept) == len(names):
        return splits, note
    lacks = next(i for i in range(len(names)) if i not in kept)
    part = next(part for part, of_class in counts.items() if not of_class[lacks])
    if not only_there or len(kept) < 2:
        raise ValueError(
            f"{where} has no text of the class {str(names[lacks])!r} for {part}; add some, or remove the class"
        )
    note = joined(note, f"only the {len(kept)} of {len(names)} classes that have texts")
    return {part: split.classes(kept) for part, split in splits.items()}, note


def _read(passage: Passage) -> tuple[tuple[str, str], ...]:
    return tuple(passage.fields.items())
