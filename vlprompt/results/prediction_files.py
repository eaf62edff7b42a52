"""Predictions of a test in a Parquet file: name, label, prediction and logits of each item."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.metrics.predictions import Predictions
from vlprompt.results.atomic_files import write_atomically
from vlprompt.runtime.installation import require_package

COLUMNS = ("item", "label", "prediction", "logits")
METADATA_KEY, FORMAT = b"vlprompt", 1
THRESHOLD_FACT = "threshold"  # of several labels, the logit above which one is predicted; 0 where it is missing
PURPOSE, REMEDY = "prediction files", "Write one by `vlprompt eval RUN --keep-predictions FILE`."


class PredictionFileError(ValueError):
    """A file that holds no predictions, or predictions that contradict each other."""


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

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_several_labels(self) -> bool:
        """Whether an item may have several labels."""
        return self.labels.ndim == 2

    @property
    def digest(self) -> str:
        """A digest of the test items with their labels and of the classes, whatever the order of the items."""
        content = sorted(zip(self.items, map(repr, self.labels.tolist()), strict=True)), self.ids
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

    def in_order_of(self, other: "PredictionFile") -> "PredictionFile":
        """Return them in the order of another file's items.

        Raises:
            PredictionFileError: when the other is of other test items, labels or classes.
        """
        if self.digest != other.digest:
            raise PredictionFileError(
                f"{self.path!r}: expected predictions of the same test items as {other.path!r} ({len(other)} items of "
                f"{len(other.ids)} classes, {other.digest}), got those of another split ({len(self)} items of "
                f"{len(self.ids)} classes, {self.digest}). Compare two files of one test."
            )
        ours, theirs = (
            sorted(range(len(file)), key=lambda i, file=file: (file.items[i], repr(file.labels[i].tolist())))
            for file in (self, other)
        )
        order = [0] * len(self)
        for own, place in zip(ours, theirs, strict=True):
            order[place] = own
        return replace(
            self,
            items=tuple(self.items[i] for i in order),
            labels=self.labels[order],
            predicted=self.predicted[order],
            logits=self.logits[order],
        )


def write_predictions(file: PredictionFile, path: Path) -> None:
    """Write a file of predictions, completely or not at all; OSError where pyarrow is not installed."""
    pyarrow = require_package("pyarrow", "parquet", PURPOSE)
    parquet = require_package("pyarrow.parquet", "parquet", PURPOSE)
    n_classes = len(file.names)
    label_type = pyarrow.list_(pyarrow.int8()) if file.has_several_labels else pyarrow.int32()
    predicted = [None if k >= n_classes else k for k in file.predicted.tolist()]
    flat = pyarrow.array(file.logits.float().flatten().numpy())
    metadata = {
        "format": FORMAT,
        "classes": file.names,
        "class_ids": file.ids,
        "learned_class_ids": file.learned_ids,
        **(file.facts or {}),
    }
    columns = [
        pyarrow.array([name.encode(errors="surrogateescape").decode(errors="replace") for name in file.items]),
        pyarrow.array(file.labels.tolist(), label_type),
        pyarrow.array(predicted, pyarrow.int32()),
        pyarrow.FixedSizeListArray.from_arrays(flat, n_classes),
    ]
    table = pyarrow.table(dict(zip(COLUMNS, columns, strict=True)))
    stream = pyarrow.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), stream, compression="zstd")
    write_atomically(path, stream.getvalue().to_pybytes())


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
    if not table.num_rows:
        raise _explain(path, "the predictions of at least one item", "a table without rows")
    n = len(names)
    labels, logits = _read_numbers(path, table["label"], "label", n), _read_numbers(path, table["logits"], "logits", n)
    if logits.ndim != 2 or logits.shape[1] != n or bool(logits.isnan().any()):
        kind = f"NaN in {int(logits.isnan().any(1).sum())} rows" if logits.ndim == 2 else "one number an item"
        raise _explain(path, f"{n} logits an item, one for each class", kind)
    _require_range(path, "labels", labels, -1 if labels.ndim == 2 else 0, 1 if labels.ndim == 2 else n - 1)
    predicted = _read_numbers(path, table["prediction"].fill_null(n), "prediction", n)
    _require_range(path, "predictions", predicted, 0, n)
    items = tuple(map(str, table["item"].to_pylist()))
    return PredictionFile(items, labels, predicted, logits.float(), names, ids, learned, facts, str(path))


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
