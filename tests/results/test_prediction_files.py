"""Files of predictions: written and read again, refused where they are broken, compared item by item."""

from dataclasses import replace

import pyarrow
import pytest
import torch
from pyarrow import parquet

from vlprompt.experiments.prediction_scores import parse_metrics, score_predictions
from vlprompt.results.prediction_files import PredictionFile, PredictionFileError, read_predictions, write_predictions


def make(seed=0, n=30, several=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, generator=generator)
    labels = torch.arange(n) % 3
    if several:
        labels = (torch.arange(n * 4).view(n, 4) % 5 == 0).long()
        labels[:, 3], labels[0, 0] = 0, -1
    predicted = logits.argmax(1)
    predicted[0] = 4  # no answer
    items = tuple(f"images/{i}.png" for i in range(n))
    return PredictionFile(items, labels, predicted, logits, ("a", "b", "a", "d"), ("a", "b", "a (2)", "d"), ("a", "b"),
                          {"test": "joint", "method": "coop"})  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "predictions.parquet"


@pytest.mark.parametrize("several", [False, True])
def test_a_file_is_read_as_it_was_written(path, several):
    file = make(several=several)
    write_predictions(file, path)
    again = read_predictions(path)
    for name in ("labels", "predicted", "logits"):
        assert torch.equal(getattr(again, name), getattr(file, name)), name
        assert getattr(again, name).dtype == getattr(file, name).dtype
    assert (again.items, again.names, again.ids, again.learned_ids) == (
        file.items,
        file.names,
        file.ids,
        file.learned_ids,
    )
    assert again.facts == file.facts
    assert again.digest == file.digest
    predictions = again.as_predictions()
    assert predictions.is_known.tolist() == [True, True, False, False]
    expected = file.logits.double().sigmoid() if several else file.logits.softmax(1)
    assert torch.equal(predictions.probabilities, expected)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def rewrite(path, **columns):
    """Write a file with other columns, {name: values}; None leaves one out."""
    write_predictions(make(), path)
    table = parquet.read_table(path)
    metadata = table.schema.metadata
    names = [name for name in table.column_names if columns.get(name, 0) is not None]
    values = {name: columns[name] if name in columns else table[name] for name in names}
    parquet.write_table(pyarrow.table(values).replace_schema_metadata(metadata), path)


LABELS = [i % 3 for i in range(30)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"logits": None},
            "expected the columns item, label, prediction, logits, got item, label, prediction: logits is",
        ),
        ({"label": pyarrow.array([9, *LABELS[1:]])}, "expected labels from 0 to 3, got 9"),
        ({"label": pyarrow.array([None, *LABELS[1:]])}, "in each row of label, got other values"),
        ({"label": pyarrow.array(["x"] * 30)}, "in each row of label, got other values"),
        ({"label": pyarrow.array([[2, 0, 0, 0]] * 30)}, "expected labels from -1 to 1, got 2"),
        ({"prediction": pyarrow.array([5, *LABELS[1:]])}, "expected predictions from 0 to 4, got 5"),
        ({"logits": pyarrow.array([[0.0, 1, 2]] * 30)}, "a number, or 4 of them, in each row of logits, got other"),
        ({"logits": pyarrow.array([0.5] * 30)}, "expected 4 logits an item, one for each class, got one number"),
        ({"logits": pyarrow.array([[float("nan"), 1, 2, 3]] * 30)}, "got NaN in 30 rows"),
    ],
)
def test_broken_columns(path, columns, message):
    rewrite(path, **columns)
    with pytest.raises(PredictionFileError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(repr(str(path)))


def test_files_that_are_none(path):
    with pytest.raises(PredictionFileError, match=r"expected a file of predictions, got no such file\. Write one by"):
        read_predictions(path)
    path.write_bytes(b"")
    with pytest.raises(PredictionFileError, match="expected a file of predictions, got an empty file"):
        read_predictions(path)
    path.write_text("item,label\n")
    with pytest.raises(PredictionFileError, match=r"expected a Parquet file of predictions, got another file \("):
        read_predictions(path)
    write_predictions(make(), path)
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, 0), path)
    with pytest.raises(PredictionFileError, match="at least one item, got a table without rows"):
        read_predictions(path)
    parquet.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(PredictionFileError, match="a file that names its classes, got a table without them"):
        read_predictions(path)


def test_a_comparison_is_of_the_same_items_in_any_order():
    first, second = make(0), make(1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    shuffled = replace(
        second,
        items=tuple(second.items[i] for i in order),
        labels=second.labels[order],
        predicted=second.predicted[order],
        logits=second.logits[order],
    )
    plain, mixed = (score_predictions(first, ("accuracy", "ece10", "nll"), other) for other in (second, shuffled))
    assert plain == mixed
    assert plain.values["nll"] - plain.other_values["nll"] == pytest.approx(plain.intervals["nll"].difference)
    assert plain.intervals["ece10"].low <= plain.intervals["ece10"].difference <= plain.intervals["ece10"].high
    right = [file.predicted == file.labels for file in (first, second)]
    assert plain.test[:2] == (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    assert plain.test[0] != plain.test[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: replace(f, items=("other.png", *f.items[1:])),
        lambda f: replace(f, labels=torch.cat([torch.tensor([3]), f.labels[1:]])),
        lambda f: replace(f, ids=("x", *f.ids[1:])),
        lambda f: replace(f, items=f.items[:9], labels=f.labels[:9], predicted=f.predicted[:9], logits=f.logits[:9]),
    ],
)
def test_predictions_of_another_split_are_refused(change):
    other = replace(change(make(1)), path="b.parquet")
    with pytest.raises(
        PredictionFileError, match=r"'b\.parquet': expected predictions of the same test items as 'a\.par"
    ):
        score_predictions(replace(make(), path="a.parquet"), ("accuracy",), other)


def test_a_class_that_is_never_positive_is_left_out_and_said():
    scores = score_predictions(make(several=True))
    assert list(scores.values) == ["mAP", "CF1", "OF1"]
    assert "mAP: left out 1 classes that are never positive: d" in scores.notes
    assert any("have no label that is known to be present" in note for note in scores.notes)
    one = score_predictions(make(), ("mAP", "accuracy"))
    assert one.notes == ("mAP: left out 1 classes that are never positive: d",
                         "1 items have no answer, which counts as wrong")  # fmt: skip
    compared = score_predictions(make(several=True), ("OF1",), make(1, several=True))
    assert compared.test is None
    assert any(note.startswith("no McNemar's test") for note in compared.notes)


def test_draws_on_which_a_metric_is_undefined_are_counted():
    first, second = make(0, 5), make(1, 5)
    scores = score_predictions(first, ("auroc",), second)
    n = scores.intervals["auroc"].n_undefined
    assert 0 < n < 1000
    assert f"auroc: undefined on {n} of 1000 draws, which are left out" in scores.notes


def test_names_of_metrics():
    assert parse_metrics("accuracy, ece15,accuracy,per_class") == ("accuracy", "ece15", "per_class")
    assert parse_metrics(None) is None
    with pytest.raises(
        ValueError, match="--metric: expected the name of a metric, got 'acuracy'; did you mean 'accuracy'"
    ):
        parse_metrics("acuracy")
    with pytest.raises(ValueError, match="--metric auroc_ovr: labels: expected items of every class"):
        score_predictions(make(), ("auroc_ovr",))
