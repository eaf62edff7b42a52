"""Metrics of known and unknown, or base and new, classes together; percentages."""

import torch
from torch import Tensor

from vlprompt.metrics.answers import mean_class_accuracy
from vlprompt.metrics.streams import harmonic_mean
from vlprompt.metrics.unknown import auroc


def openworld_auc(base_scores: Tensor, base_correct: Tensor, new_scores: Tensor, new_correct: Tensor) -> float:
    """Return OpenworldAUC: the share of pairs that are named rightly on both sides and ranked rightly.

    The mean over all pairs of a base and a new item of [base item right] [new item right] ([s > s'] + 1/2 [s = s']).
    Hua et al., ICML 2025, arXiv:2505.05180. The definition holds: the authors' code counts pairs of two wrong items as
    right where every new score lies above every base score.

    Args:
        base_scores: (N,) of the base items, high for base.
        base_correct: (N,) whether each is named rightly among the base classes.
        new_scores: (M,) of the new items.
        new_correct: (M,) whether each is named rightly among the new classes.
    """
    auroc(base_scores, new_scores)  # raises for empty sides and NaN
    base, new = base_scores[base_correct.bool()], new_scores[new_correct.bool()]
    if not len(base) or not len(new):
        return 0.0
    return auroc(base, new) * len(base) * len(new) / (len(base_scores) * len(new_scores))


def open_auc(known_scores: Tensor, known_correct: Tensor, unknown_scores: Tensor) -> float:
    """Return OpenAUC, the area under OSCR: the share of pairs ranked rightly whose known item is named rightly.

    The mean over all pairs of [known item right] ([s > s'] + 1/2 [s = s']). Wang et al., "OpenAUC", NeurIPS 2022,
    arXiv:2210.13458; OSCR: Dhamija et al., NeurIPS 2018, arXiv:1811.04110.

    Args:
        known_scores: (N,) of items of known classes, high for known.
        known_correct: (N,) whether each is named rightly among the known classes.
        unknown_scores: (M,) of items of unknown classes.
    """
    return openworld_auc(known_scores, known_correct, unknown_scores, torch.ones(len(unknown_scores), dtype=torch.bool))


def joint_accuracies(scores: Tensor, labels: Tensor, is_base: Tensor) -> dict[str, float]:
    """Return the accuracies of one answer over base and new classes together, as DeCoOp reports them.

    Zhou et al., "DeCoOp", ICML 2024, arXiv:2406.00345.

    Args:
        scores: (N, C) over all classes.
        labels: (N,).
        is_base: (C,) whether a class is a base class.

    Returns:
        base (base items, base classes only), new (new items, new classes only), harmonic (mean of both), base_all and
        new_all (their items, all classes), openworld_accuracy (all items, all classes).

    Raises:
        ValueError: where there are no base items or no new ones.
    """
    item_is_base, right = is_base[labels], scores.argmax(1) == labels
    if bool(item_is_base.all()) or not bool(item_is_base.any()):
        kinds = "base" if bool(item_is_base.any()) else "new"
        raise ValueError(
            f"labels: expected items of base and of new classes, got {kinds} ones only. Take a test of both together."
        )
    restricted = dict[str, float]()
    for name, mask in (("base", is_base), ("new", ~is_base)):
        items = mask[labels]
        among = scores[items].double().masked_fill(~mask, -torch.inf).argmax(1)
        restricted[name] = 100 * (among == labels[items]).double().mean().item()
    return restricted | {
        "harmonic": harmonic_mean(restricted["base"], restricted["new"]),
        "base_all": 100 * right[item_is_base].double().mean().item(),
        "new_all": 100 * right[~item_is_base].double().mean().item(),
        "openworld_accuracy": 100 * right.double().mean().item(),
    }


def h_score(predicted: Tensor, labels: Tensor, n_known: int) -> float:
    """Return the H-score: harmonic mean of the known classes' mean accuracy and the share of unknown items rejected.

    Fu et al., ECCV 2020 (universal adaptation); Bucci et al., ECCV 2020, arXiv:2007.12360 (HOS, OS* and UNK).

    Args:
        predicted: (N,), K for `unknown`.
        labels: (N,), K for an item of an unknown class.
        n_known: the number K of known classes.

    Raises:
        ValueError: where there are no known items or no unknown ones.
    """
    is_known = labels < n_known
    if bool(is_known.all()) or not bool(is_known.any()):
        kinds = "known" if bool(is_known.any()) else "unknown"
        raise ValueError(f"labels: expected known and unknown items, got {kinds} ones only. Take a test with both.")
    known = mean_class_accuracy(predicted[is_known], labels[is_known], n_known)
    return harmonic_mean(known, 100 * (predicted[~is_known] == n_known).double().mean().item())
