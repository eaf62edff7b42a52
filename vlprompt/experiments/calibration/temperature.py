"""Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599."""

import math

from torch import Tensor

MAX_DOUBLINGS = 60  # of the inverse temperature, until the optimum lies between two of them


class NoTemperatureError(ValueError):
    """No temperature has the least negative log-likelihood: it falls on and on, or rises from the start."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature whose probabilities have the least negative log-likelihood.

    The likelihood is concave in 1 / T: its derivative is bisected in float64 down to two neighbouring numbers.

    Args:
        logits: (N, C) of validation items; -inf for a class that a method rules out.
        labels: (N,).

    Raises:
        NoTemperatureError: where no temperature is best: all items are right, or they are no better than chance.
    """
    z, n = logits.double(), len(labels)
    true = float(z.gather(1, labels[:, None]).sum())
    if not math.isfinite(true):
        raise NoTemperatureError(
            f"--calibrate: expected finite logits of the labels, got {true:g} in their sum. Name other items by "
            "--validation."
        )
    is_ruled_out = z == -math.inf

    def slope(inverse: float) -> float:  # of the summed negative log-likelihood
        probabilities = (z * inverse).masked_fill(is_ruled_out, -math.inf).softmax(1)
        return float((probabilities * z.masked_fill(is_ruled_out, 0)).sum()) - true

    if slope(0.0) >= 0:
        raise NoTemperatureError(
            f"--calibrate: expected validation items that are answered better than by chance, got {n} that are not. "
            "Train longer, or name other items by --validation."
        )
    if bool((z.argmax(1) == labels).all()):
        raise NoTemperatureError(
            f"--calibrate: expected validation items of which at least one is answered wrong, got {n} that are all "
            "right, so that the smallest temperature would be best. Name more items by --validation."
        )
    upper = next((2.0**k for k in range(-MAX_DOUBLINGS, MAX_DOUBLINGS) if slope(2.0**k) > 0), None)
    if upper is None:
        raise NoTemperatureError(
            "--calibrate: expected logits that differ by more than rounding, got ones that do not. Train longer."
        )
    lower = 0.0
    while lower < (middle := (lower + upper) / 2) < upper:
        lower, upper = (middle, upper) if slope(middle) < 0 else (lower, middle)
    return 1 / upper
