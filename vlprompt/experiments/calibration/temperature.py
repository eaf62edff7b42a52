"""Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599."""

from torch import Tensor

MAX_DOUBLINGS = 60  # of the inverse temperature, until the optimum lies between two of them


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature whose probabilities have the least negative log-likelihood.

    The likelihood is concave in 1 / T: its derivative is bisected in float64 down to two neighbouring numbers.

    Args:
        logits: (N, C) of validation items.
        labels: (N,).

    Raises:
        ValueError: where no temperature is best: all items are right, or they are no better than chance.
    """
    z, n = logits.double(), len(labels)
    true = z.gather(1, labels[:, None]).sum()

    def slope(inverse: float) -> float:  # of the summed negative log-likelihood
        return float(((z * inverse).softmax(1) * z).sum() - true)

    if slope(0.0) >= 0:
        raise ValueError(
            f"--calibrate: expected validation items that are answered better than by chance, got {n} that are not. "
            "Train longer, or name other items by --validation."
        )
    if bool((z.argmax(1) == labels).all()):
        raise ValueError(
            f"--calibrate: expected validation items of which at least one is answered wrong, got {n} that are all "
            "right, so that the smallest temperature would be best. Name more items by --validation."
        )
    upper = next((2.0**k for k in range(-MAX_DOUBLINGS, MAX_DOUBLINGS) if slope(2.0**k) > 0), None)
    if upper is None:
        raise ValueError(
            "--calibrate: expected logits that differ by more than rounding, got ones that do not. Train longer."
        )
    lower = 0.0
    while lower < (middle := (lower + upper) / 2) < upper:
        lower, upper = (middle, upper) if slope(middle) < 0 else (lower, middle)
    return 1 / upper
