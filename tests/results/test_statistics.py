"""Paired tests of methods: p as scipy has it, Holm's correction, and what can't be compared is named."""

import pytest
from scipy.stats import PermutationMethod, wilcoxon
from test_stream_results import stream

from vlprompt.results.run_folder import Result
from vlprompt.results.statistics import compare_methods, correct_holm, wilcoxon_p
from vlprompt.results.tables.summary import build_rows


def few_shot(method, accuracy, dataset="digits", shots=4, seed=1, test="h", **train):
    config = {"backbone": "glyph", "method": {"name": method}, "train": train, "seed": seed,
              "task": {"name": "few_shot", "dataset": dataset, "shots": shots, "seed": seed}}  # fmt: skip
    cost = {"seconds": 1.0, "trained_parameters": 10, "peak_memory_mb": 5.0}
    return Result(config, [], {"accuracy": accuracy}, cost, {}, {"test": test})


def grid(method, offset, n_seeds=3, spread=0.1, **changes):
    """Accuracies on 2 datasets x 3 seeds, below 80 by an offset that differs from seed to seed."""
    return [
        few_shot(method, 80.0 - offset - spread * (i * n_seeds + seed), dataset, seed=seed, **changes)
        for i, dataset in enumerate(("digits", "glyphs"))
        for seed in range(n_seeds)
    ]


@pytest.mark.parametrize(
    "differences",
    [
        [1.5, -0.3, 2.2, 0.7, 3.1, 0.9, -1.1, 2.6],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        [-5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0],
    ],
)
def test_p_is_that_of_scipy(differences):
    assert wilcoxon_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue, abs=1e-12)


def test_p_with_ties_counts_all_signs():
    differences = [1.0, 1.0, -1.0, 2.0, 2.0, 3.0, 0.0]
    ranks, total = [2, 2, 2, 4.5, 4.5, 6], 21
    sums = [sum(r for k, r in enumerate(ranks) if bits >> k & 1) for bits in range(64)]
    expected = 2 * sum(s <= min(2, total - 2) for s in sums) / 64
    assert wilcoxon_p(differences) == pytest.approx(expected)
    all_signs = PermutationMethod(n_resamples=1000)  # more than there are
    assert wilcoxon([d for d in differences if d], method=all_signs).pvalue == pytest.approx(expected)
    assert wilcoxon_p([0.0, 0.0]) == 1


def test_p_of_many_pairs_is_the_normal_one():
    differences = [((i * 37) % 101 - 40) / 7 for i in range(80)]
    expected = wilcoxon(differences, method="asymptotic", correction=False).pvalue
    assert wilcoxon_p(differences) == pytest.approx(expected, rel=1e-3)


def naive_holm(p_values):
    corrected = {}
    for step, (p, i) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        corrected[i] = max([min(1, (len(p_values) - step) * p), *corrected.values()])
    return [corrected[i] for i in range(len(p_values))]


def test_holm():
    assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for p_values in ([0.5, 0.9, 0.4], [0.02], [0.01, 0.01, 0.2], []):
        assert correct_holm(p_values) == pytest.approx(naive_holm(p_values))


def test_the_best_and_those_not_worse():
    near = [
        few_shot("near", 79.95 + (-1) ** s * (1 + s) - 0.1 * (i * 4 + s), dataset, seed=s)
        for i, dataset in enumerate(("digits", "glyphs"))
        for s in range(4)
    ]
    rows = build_rows([*grid("coop", 0, 4), *grid("worse", 5, 4), *near])
    group = compare_methods(rows)
    assert (group.metric, group.best) == ("accuracy", "coop")
    assert [c.label for c in group.comparisons if c.is_worse is False] == ["near"]
    by_label = {c.label: c for c in group.comparisons}
    assert by_label["worse"].p == pytest.approx(2 / 2**8)
    assert by_label["worse"].p_corrected == pytest.approx(4 / 2**8)
    assert (by_label["worse"].n_pairs, by_label["worse"].difference) == (8, pytest.approx(5.0))
    assert by_label["worse"].is_worse
    assert "Wilcoxon" in group.test
    assert "Holm" in group.correction


def test_too_few_pairs_are_no_test():
    group = compare_methods(build_rows([*grid("coop", 0, 2), *grid("worse", 5, 2)]))
    [comparison] = group.comparisons
    assert (comparison.p, comparison.is_worse, comparison.n_pairs) == (None, None, 4)
    assert comparison.note == "4 pairs, of which the test needs 6 to reach p < .05"
    several = compare_methods(build_rows([*grid("a", 0), *grid("b", 5), *grid("c", 6)]))
    assert several.notes == ("2 comparisons of 6 pairs can't reach p < 0.05 after the correction",)


def test_what_is_not_comparable_is_left_out_by_name():
    results = [*grid("coop", 0), *grid("linear", 5), *grid("other", -9, test="other images")]
    group = compare_methods(build_rows(results))
    assert group.best == "coop"
    assert any(note.startswith("other on digits is left out, its protocol differs: ") for note in group.notes)
    group = compare_methods(build_rows([stream("l2p"), stream("linear", joint=True, last=90)]))
    assert group.comparisons == ()
    assert "linear (joint training) on digits is left out, its protocol differs: task.joint=true" in group.notes


def test_missing_pairs_and_other_settings_are_named():
    group = compare_methods(build_rows([*grid("coop", 0), *grid("linear", 5)[:5]]))
    assert group.comparisons[0].n_pairs == 5
    assert group.notes == ("the best is that of the 5 pairs (dataset, shots, seed) that all methods have",)
    coop = [few_shot("coop", 80.0, d, lr=lr) for d, lr in (("digits", 0.1), ("glyphs", 0.2))]
    assert "coop has other lr on other datasets or shots" in compare_methods(build_rows([*coop, *grid("b", 5)])).notes
