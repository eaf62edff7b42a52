"""Files of predictions: written and read again, refused where they are broken, compared item by item."""

from dataclasses import fields, replace

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import average_precision_score, roc_auc_score

from vlprompt.experiments.prediction_scores import parse_metrics, score_predictions
from vlprompt.results.prediction_files import (
    PredictionFile,
    PredictionFileError,
    UnknownItems,
    read_predictions,
    write_predictions,
)


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


def test_swapped_files_mirror_each_interval(path):
    """Also where their rows are in other orders, and for scores of unknown items."""
    write_predictions(make_open(1), path)
    table = parquet.read_table(path)
    order = torch.randperm(62, generator=torch.Generator().manual_seed(3)).tolist()
    parquet.write_table(table.take(pyarrow.array(order)), path)
    files, names = (make_open(0), read_predictions(path)), ("accuracy", "ece15", "nll", "auroc_msp")
    plain = score_predictions(files[0], names, files[1])
    swapped = score_predictions(files[1], names, files[0])
    assert (plain.values, plain.other_values) == (swapped.other_values, swapped.values)
    for name in names:
        difference, low, high, _ = plain.intervals[name]
        assert low < high
        assert swapped.intervals[name][:3] == pytest.approx((-difference, -high, -low), abs=1e-9)


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
    assert scores.intervals["auroc"].low <= scores.intervals["auroc"].high  # of the other draws
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


# --- items of unknown classes ---


def make_open(seed=0, n=30, near=12, far=20):
    """Predictions with items of unknown classes, which are less well known the further they are; scores have ties."""
    generator = torch.Generator().manual_seed(seed + 100)
    m = near + far
    means = torch.tensor([0.0] * n + [-0.5] * near + [-1.5] * far, dtype=torch.double)
    scores = means[:, None] + torch.randn(n + m, 2, generator=generator, dtype=torch.double)
    scores[:, 0] = scores[:, 0].round()
    logits = torch.randn(m, 4, generator=generator)
    predicted = logits.argmax(1)
    predicted[1] = 4  # no answer
    items = tuple(f"others/{i}.png" for i in range(m))
    sets = ("near",) * near + ("far",) * far
    unknown = UnknownItems(("msp", "gl-mcm"), scores[:n], items, sets, predicted, logits, scores[n:])
    return replace(make(seed, n), unknown=unknown)


def write_open(path, file, **columns):
    """Write a file with unknown items and other columns, {name: function of its values}; None leaves one out."""
    write_predictions(file, path)
    table = parquet.read_table(path)
    for name, change in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place)
        if change is not None:
            values = parquet.read_table(path)[name].combine_chunks()
            table = table.add_column(place, name, change(values))
    parquet.write_table(table, path)


def test_unknown_items_are_read_as_they_were_written(path):
    file = make_open()
    write_predictions(file, path)
    again = read_predictions(path)
    for field in fields(UnknownItems):
        ours, theirs = getattr(again.unknown, field.name), getattr(file.unknown, field.name)
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs), field.name
            assert ours.dtype == theirs.dtype, field.name
        else:
            assert ours == theirs, field.name
    assert (len(again), again.items, again.facts, again.digest) == (30, file.items, file.facts, file.digest)
    table = parquet.read_table(path)
    assert table["label"].null_count == 32
    assert table["unknown"].to_pylist() == [None] * 30 + ["near"] * 12 + ["far"] * 20
    # what is known of the known items does not depend on the unknown ones
    assert score_predictions(again, ("accuracy", "nll")).values == score_predictions(make(), ("accuracy", "nll")).values


def test_rows_may_come_in_any_order(path):
    file = make_open()
    write_predictions(file, path)
    table = parquet.read_table(path)
    order = torch.randperm(62, generator=torch.Generator().manual_seed(5)).tolist()
    parquet.write_table(table.take(pyarrow.array(order)), path)
    mixed = read_predictions(path)
    assert mixed.digest == file.digest
    assert mixed.items != file.items
    back, file = mixed.sort_items(), file.sort_items()
    assert back.items == file.items == tuple(sorted(file.items))
    assert torch.equal(back.logits, file.logits)
    assert back.unknown.items == file.unknown.items
    for name in ("known_scores", "scores", "logits", "predicted"):
        assert torch.equal(getattr(back.unknown, name), getattr(file.unknown, name)), name
    both = score_predictions(mixed, ("open_auc_msp",), file)
    assert both.values == both.other_values == score_predictions(file, ("open_auc_msp",)).values
    assert both.intervals["open_auc_msp"][:3] == (0, 0, 0)


def test_metrics_of_scores_are_means_over_the_sets():
    file = make_open()
    unknown, right = file.unknown, file.predicted == file.labels
    values = score_predictions(file, ("auroc", "aupr_out_msp", "open_auc_gl-mcm")).values
    assert list(values) == ["auroc_msp", "auroc_gl-mcm", "aupr_out_msp", "open_auc_gl-mcm"]
    sides = [(unknown.known_scores.numpy(), unknown.scores[part].numpy()) for part in (slice(12), slice(12, 32))]

    def mean(function, k):
        labels = [np.array([1] * len(a) + [0] * len(b)) for a, b in sides]
        both = [np.concatenate([a[:, k], b[:, k]]) for a, b in sides]
        return 100 * np.mean([function(one, score) for one, score in zip(labels, both, strict=True)])

    assert values["auroc_msp"] == pytest.approx(mean(roc_auc_score, 0), abs=1e-10)
    assert values["auroc_gl-mcm"] == pytest.approx(mean(roc_auc_score, 1), abs=1e-10)
    out = mean(lambda label, score: average_precision_score(1 - label, -score), 0)
    assert values["aupr_out_msp"] == pytest.approx(out, abs=1e-10)
    pairs = [(right.numpy()[:, None] * (a[:, None, 1] > b[None, :, 1])).mean() for a, b in sides]
    assert values["open_auc_gl-mcm"] == pytest.approx(100 * np.mean(pairs), abs=1e-10)


def test_without_a_metric_all_of_unknown_classes_are_shown():
    scores = score_predictions(make_open())
    assert list(scores.values) == ["accuracy", "class_mean", "macro_f1", "ece15", "nll", "brier"]
    rows = scores.tables["unknown"]
    assert [(row["unknown"], row["score"]) for row in rows] == [
        (name, score) for name in ("near", "far") for score in ("msp", "gl-mcm")
    ]
    one = score_predictions(make_open(), ("fpr95_at_least_msp",))
    mean = (rows[0]["fpr95_at_least"] + rows[2]["fpr95_at_least"]) / 2
    assert one.values == {"fpr95_at_least_msp": mean}
    assert one.notes[0] == "metrics of a score: the mean over the unknown sets near, far"


def test_scores_of_two_files_are_compared_on_the_same_draws():
    first, second = make_open(0), make_open(1)
    both = score_predictions(first, ("auroc_gl-mcm", "accuracy"), second)
    interval = both.intervals["auroc_gl-mcm"]
    assert interval.difference == both.values["auroc_gl-mcm"] - both.other_values["auroc_gl-mcm"]
    assert interval.low < interval.difference < interval.high
    assert "of the 30 test items, for metrics of a score of these and the 32 unknown ones, paired" in both.notes[-1]
    small = make_open(0, near=1), make_open(1, near=1)
    n = score_predictions(small[0], ("auroc_msp",), small[1]).intervals["auroc_msp"].n_undefined
    assert 300 < n < 450  # a draw of 51 lacks the only near item with probability (50 / 51) ** 51


@pytest.mark.parametrize(
    "change",
    [
        lambda u: replace(u, items=("other.png", *u.items[1:])),
        lambda u: replace(u, sets=("far", *u.sets[1:])),
        lambda u: None,
    ],
)
def test_other_unknown_items_are_another_split(change):
    second = make_open(1)
    with pytest.raises(PredictionFileError, match="got those of another split"):
        score_predictions(make_open(), ("accuracy",), replace(second, unknown=change(second.unknown)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"unknown": None}, "expected the columns unknown, scores, got none named unknown"),
        ({"scores": None}, "expected the columns unknown, scores, got none named scores"),
        ({"unknown": lambda v: pyarrow.nulls(len(v), pyarrow.string())}, "at least one unknown item, got none"),
        ({"unknown": lambda v: pyarrow.array(["far"] * len(v))}, "at least one item, got a table without rows"),
        ({"scores": lambda v: pyarrow.array([[1.0]] * len(v))}, "a number, or 2 of them, in each row of scores"),
        ({"scores": lambda v: pyarrow.array([[1.0, float("nan")]] * len(v))}, "2 scores an item, got NaN in 30 rows"),
        ({"scores": lambda v: pyarrow.array([1.0] * len(v))}, "2 scores an item, got one number an item"),
        ({"unknown": lambda v: pyarrow.array([*v.to_pylist()[:-1], None])}, "in each row of label, got other values"),
        ({"prediction": lambda v: pyarrow.array([*v.to_pylist()[:-1], 9])}, "expected predictions from 0 to 4, got 9"),
    ],
)  # fmt: skip
def test_broken_unknown_items(path, columns, message):
    write_open(path, make_open(), **columns)
    with pytest.raises(PredictionFileError, match=message):
        read_predictions(path)


def test_a_draw_of_items_is_those_items():
    sets = make_open().as_unknown_sets()
    places = torch.randint(62, (62,), generator=torch.Generator().manual_seed(1))
    drawn = sets.select(places)
    for name in ("scores", "membership", "is_right"):
        assert torch.equal(getattr(drawn, name), getattr(sets, name)[places])
    assert drawn.compute("open_auc", "gl-mcm", 1) != sets.compute("open_auc", "gl-mcm", 1)


def test_scores_that_a_file_lacks():
    with pytest.raises(ValueError, match=r"^--metric auroc_msp: predictions: expected items of unknown classes, got a"):
        score_predictions(make(), parse_metrics("auroc_msp"))
    with pytest.raises(ValueError, match=r"^--metric unknown: predictions: expected items of unknown classes"):
        score_predictions(make(), parse_metrics("unknown"))
    with pytest.raises(ValueError, match=r"^--metric auroc_mcm: predictions: expected the score mcm, got msp, gl-mcm"):
        score_predictions(make_open(), parse_metrics("auroc_mcm"))
