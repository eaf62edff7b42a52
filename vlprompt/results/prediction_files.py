"""Predictions of a test in a Parquet file: name, label, prediction and logits of each item."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.metrics.predictions import Predictions
from vlprompt.metrics.unknown_sets import UnknownSets
from vlprompt.results.atomic_files import write_atomically
from vlprompt.runtime.installation import require_package

COLUMNS = ("item", "label", "prediction", "logits")
UNKNOWN_COLUMNS = ("unknown", "scores")  # of a test against unknown classes: name of the set, null for a known item
SCORES_FACT = "scores"  # names of the scores, in the metadata
METADATA_KEY, FORMAT = b"vlprompt", 1
THRESHOLD_FACT = "threshold"  # of several labels, the logit above which one is predicted; 0 where it is missing
PURPOSE, REMEDY = "prediction files", "Write one by `vlprompt eval RUN --keep-predictions FILE`."


class PredictionFileError(ValueError):
    """A file that holds no predictions, or predictions that contradict each other."""


@dataclass(frozen=True)
class UnknownItems:
    """The M items of unknown classes that a test has beside its known ones, and how well all of them are known.

    Args:
        score_names: names of the scores (S).
        known_scores: (N, S) in float64, of the known items; high for known.
        items: name of each unknown item.
        sets: name of the set that it is of.
        predicted: (M,) indices into the known classes; C where the method found no answer.
        logits: (M, C) of float32, among the known classes.
        scores: (M, S) in float64.
    """

    score_names: tuple[str, ...]
    known_scores: Tensor
    items: tuple[str, ...]
    sets: tuple[str, ...]
    predicted: Tensor
    logits: Tensor
    scores: Tensor


@dataclass(frozen=True)
class PredictionFile:
    """The predictions of a test, in the order of its items.

    Args:
        items: name of each item.
        labels: (N,) indices into `names`; (N, C) of 1, 0 and -1 (unknown) where an item has several labels.
        predicted: (N,) indices into `names`; C where the method found no answer.
        logits: (N, C) of float32; their softmax, or of several labels their sigmoid, is the probability.
        names: class names.
        ids: class ids.
        learned_ids: ids of the classes that training had.
        facts: where it is from: test, method, dataset ...
        path: of the file; "" for none.
        unknown: items of unknown classes, where the test has some.
    """

    items: tuple[str, ...]
    labels: Tensor
    predicted: Tensor
    logits: Tensor
    names: tuple[str, ...]
    ids: tuple[str, ...]
    learned_ids: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None
    path: str = ""
    unknown: UnknownItems | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_several_labels(self) -> bool:
        """Whether an item may have several labels."""
        return self.labels.ndim == 2

    @property
    def digest(self) -> str:
        """A digest of the test items with their labels or sets and of the classes, whatever the order of the items."""
        content: tuple[Any, ...] = sorted(zip(self.items, map(repr, self.labels.tolist()), strict=True)), self.ids
        if self.unknown is not None:
            content = (*content, sorted(zip(self.unknown.items, self.unknown.sets, strict=True)))
        return hashlib.sha256(repr(content).encode(errors="surrogatepass")).hexdigest()[:16]

    def as_predictions(self) -> Predictions:
        """Return them as metrics take them; ValueError for labels outside the classes."""
        several = self.has_several_labels
        odds = self.logits.double() - float((self.facts or {}).get(THRESHOLD_FACT, 0.0)) if several else None
        return Predictions(
            self.logits.softmax(1) if odds is None else odds.sigmoid(),
            self.predicted,
            self.names,
            labels=None if several else self.labels,
            targets=self.labels if several else None,
            is_known=torch.tensor([class_id in self.learned_ids for class_id in self.ids]),
            odds=odds,
        )

    def as_unknown_sets(self) -> UnknownSets:
        """Return the scores of known and unknown items as metrics take them; ValueError where none are unknown."""
        if self.unknown is None:
            raise ValueError(
                "predictions: expected items of unknown classes, got a file without any. Take that of a run of the "
                "task open_set."
            )
        sets = tuple(dict.fromkeys(self.unknown.sets))
        n_known, n_unknown = len(self), len(self.unknown.items)
        membership = [-1] * n_known + [sets.index(name) for name in self.unknown.sets]
        return UnknownSets(
            self.unknown.score_names,
            torch.cat([self.unknown.known_scores, self.unknown.scores]),
            sets,
            torch.tensor(membership),
            torch.cat([self.predicted == self.labels, torch.zeros(n_unknown, dtype=torch.bool)]),
        )

    def describe(self) -> str:
        """Return the numbers of items and classes, and the digest."""
        unknown = "" if self.unknown is None else f" and {len(self.unknown.items)} unknown ones"
        return f"{len(self)} items of {len(self.ids)} classes{unknown}, {self.digest}"

    def require_same_test(self, other: "PredictionFile") -> None:
        """Raise PredictionFileError when the other is of other test items, labels or classes."""
        if self.digest != other.digest:
            raise PredictionFileError(
                f"{self.path!r}: expected predictions of the same test items as {other.path!r} ({other.describe()}), "
                f"got those of another split ({self.describe()}). Compare two files of one test."
            )

    def sort_items(self) -> "PredictionFile":
        """Return them in the order of the items' names, which files of one test have in common."""
        order = _sort_places(self.items, map(repr, self.labels.tolist()))
        unknown = self.unknown
        if unknown is not None:
            places = _sort_places(unknown.items, unknown.sets)
            unknown = replace(
                unknown,
                known_scores=unknown.known_scores[order],
                items=tuple(unknown.items[place] for place in places),
                sets=tuple(unknown.sets[place] for place in places),
                predicted=unknown.predicted[places],
                logits=unknown.logits[places],
                scores=unknown.scores[places],
            )
        return replace(
            self,
            items=tuple(self.items[place] for place in order),
            labels=self.labels[order],
            predicted=self.predicted[order],
            logits=self.logits[order],
            unknown=unknown,
        )


def _sort_places(names: Iterable[str], kinds: Iterable[str]) -> list[int]:
    """Return the places of items by their names, and by their labels or sets where names are equal."""
    keys = list(zip(names, kinds, strict=True))
    return sorted(range(len(keys)), key=keys.__getitem__)


def write_predictions(file: PredictionFile, path: Path) -> None:
    """Write a file of predictions, completely or not at all; OSError where pyarrow is not installed."""
    pyarrow = require_package("pyarrow", "parquet", PURPOSE)
    parquet = require_package("pyarrow.parquet", "parquet", PURPOSE)
    label_type = pyarrow.list_(pyarrow.int8()) if file.has_several_labels else pyarrow.int32()
    items, labels = list(file.items), file.labels.tolist()
    predicted, logits = file.predicted.tolist(), file.logits
    metadata = {
        "format": FORMAT,
        "classes": file.names,
        "class_ids": file.ids,
        "learned_class_ids": file.learned_ids,
        **(file.facts or {}),
    }
    columns = dict[str, Any]()
    if (unknown := file.unknown) is not None:
        columns = _build_unknown_columns(pyarrow, len(file), unknown)
        items += unknown.items
        labels += [None] * len(unknown.items)
        predicted += unknown.predicted.tolist()
        logits = torch.cat([logits, unknown.logits])
        metadata[SCORES_FACT] = unknown.score_names
    values = [
        pyarrow.array([name.encode(errors="surrogateescape").decode(errors="replace") for name in items]),
        pyarrow.array(labels, label_type),
        pyarrow.array([None if k >= len(file.names) else k for k in predicted], pyarrow.int32()),
        _build_list_column(pyarrow, logits.float()),
    ]
    table = pyarrow.table(dict(zip(COLUMNS, values, strict=True)) | columns)
    stream = pyarrow.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), stream, compression="zstd")
    write_atomically(path, stream.getvalue().to_pybytes())


def _build_list_column(pyarrow: Any, values: Tensor) -> Any:
    """Return rows (N, K) as a column of lists of K numbers."""
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.flatten().numpy()), values.shape[1])


def _build_unknown_columns(pyarrow: Any, n_known: int, unknown: UnknownItems) -> dict[str, Any]:
    """Return the set of each item, null for a known one, and the scores of all."""
    sets = pyarrow.array([None] * n_known + list(unknown.sets), pyarrow.string())
    scores = _build_list_column(pyarrow, torch.cat([unknown.known_scores, unknown.scores]).double())
    return dict(zip(UNKNOWN_COLUMNS, (sets, scores), strict=True))


def read_predictions(path: Path) -> PredictionFile:
    """Read a file of predictions.

    Raises:
        PredictionFileError: for a file that is missing, empty or no Parquet, other columns, labels or predictions
            outside the classes, and logits that are NaN.
        OSError: where pyarrow is not installed.
    """
    table = _read_table(path)
    facts = _read_metadata(path, table)
    names, ids, learned = (tuple(facts.pop(key)) for key in ("classes", "class_ids", "learned_class_ids"))
    score_names = tuple(facts.pop(SCORES_FACT, ()))
    known, unknown = _split_rows(path, table, bool(score_names))
    if not known.num_rows:
        raise _explain(path, "the predictions of at least one item", "a table without rows")
    n = len(names)
    labels = _read_numbers(path, known["label"], "label", n)
    _require_range(path, "labels", labels, -1 if labels.ndim == 2 else 0, 1 if labels.ndim == 2 else n - 1)
    items, predicted, logits = _read_answers(path, known, n)
    others = None
    if unknown is not None:
        scores = (_read_numbers(path, rows["scores"], "scores", len(score_names)) for rows in (known, unknown))
        sets = tuple(map(str, unknown["unknown"].to_pylist()))
        known_scores, unknown_scores = (_require_numbers(path, one, "scores", len(score_names)) for one in scores)
        other_items, other_predicted, other_logits = _read_answers(path, unknown, n)
        others = UnknownItems(
            score_names, known_scores, other_items, sets, other_predicted, other_logits, unknown_scores
        )
    return PredictionFile(items, labels, predicted, logits, names, ids, learned, facts, str(path), others)


def _split_rows(path: Path, table: Any, has_unknown: bool) -> tuple[Any, Any]:
    """Return the rows of known items, and those of unknown ones; None for the latter in a file without any."""
    if not has_unknown:
        return table, None
    if missing := [name for name in UNKNOWN_COLUMNS if name not in table.column_names]:
        raise _explain(path, f"the columns {', '.join(UNKNOWN_COLUMNS)}", f"none named {missing[0]}")
    is_known = table["unknown"].is_null()
    unknown = table.filter(table["unknown"].is_valid())
    if not unknown.num_rows:
        raise _explain(path, "the predictions of at least one unknown item", "none")
    return table.filter(is_known), unknown


def _read_answers(path: Path, rows: Any, n: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Return items, predictions (N,) and logits (N, C) of rows."""
    logits = _require_numbers(
        path, _read_numbers(path, rows["logits"], "logits", n), "logits", n, ", one for each class"
    )
    predicted = _read_numbers(path, rows["prediction"].fill_null(n), "prediction", n)
    _require_range(path, "predictions", predicted, 0, n)
    return tuple(map(str, rows["item"].to_pylist())), predicted, logits.float()


def _require_numbers(path: Path, values: Tensor, name: str, n: int, each: str = "") -> Tensor:
    """Return values (N, n); PredictionFileError for others, or NaN."""
    if values.ndim != 2 or values.shape[1] != n or bool(values.isnan().any()):
        kind = f"NaN in {int(values.isnan().any(1).sum())} rows" if values.ndim == 2 else "one number an item"
        raise _explain(path, f"{n} {name} an item{each}", kind)
    return values


def _explain(path: Path, expected: str, got: str, remedy: str = REMEDY) -> PredictionFileError:
    return PredictionFileError(f"{str(path)!r}: expected {expected}, got {got}. {remedy}")


def _read_table(path: Path) -> Any:
    parquet = require_package("pyarrow.parquet", "parquet", PURPOSE)
    pyarrow = require_package("pyarrow", "parquet", PURPOSE)
    if not path.is_file():
        raise _explain(path, "a file of predictions", "no such file")
    if not path.stat().st_size:
        raise _explain(path, "a file of predictions", "an empty file")
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _explain(
            path, "a Parquet file of predictions", f"another file ({' '.join(str(error).split())[:80]})"
        ) from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise _explain(
            path,
            f"the columns {', '.join(COLUMNS)}",
            f"{', '.join(table.column_names) or 'none'}: {missing[0]} is missing",
        )
    return table


def _read_metadata(path: Path, table: Any) -> dict[str, Any]:
    """Return what the file says of itself: above all its classes."""
    try:
        facts = json.loads((table.schema.metadata or {})[METADATA_KEY])
        if facts.pop("format") != FORMAT or len(facts["classes"]) != len(facts["class_ids"]) or not facts["classes"]:
            raise ValueError("another version")
        return facts | {"learned_class_ids": facts["learned_class_ids"]}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _explain(path, "a file that names its classes", f"a table without them ({error!r})") from error


def _read_numbers(path: Path, column: Any, name: str, n_classes: int) -> Tensor:
    """Return a column of numbers (N,), or of lists of one number a class (N, C)."""
    values = column.combine_chunks()
    try:
        has_lists = hasattr(values.type, "value_type")
        flat = torch.tensor((values.flatten() if has_lists else values).to_numpy(zero_copy_only=False))
        lengths = {len(one) for one in values} if has_lists else set[int]()
        if values.null_count or flat.dtype.is_complex or not (lengths <= {n_classes}):
            raise ValueError("nulls or other lengths")
        return (flat if flat.dtype.is_floating_point else flat.long()).view((len(values), -1) if has_lists else -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _explain(path, f"a number, or {n_classes} of them, in each row of {name}", "other values") from error


def _require_range(path: Path, kind: str, values: Tensor, low: int, high: int) -> None:
    if bool(((values < low) | (values > high)).any()):
        outside = values[(values < low) | (values > high)]
        raise _explain(
            path, f"{kind} from {low} to {high}", f"{outside[0].item():g}", "The file was edited: write it again."
        )
