"""Test images as a stream: they come one after the other, in several orders that are drawn.

An online method (TDA: Karmanov et al., CVPR 2024, arXiv:2403.18293) learns from each test image, without its label, for
the later ones: its accuracy depends on their order. Other methods have the same accuracy in every order.
"""

import statistics
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from vlprompt.core.batch import Split
from vlprompt.core.stage import Stage
from vlprompt.data.dataset import Data
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks.few_shot import FewShot

MAX_ORDERS = 100  # each is a test of its own
ONLINE_METRICS = {
    "accuracy": "mean over the orders of the share right; the other metrics of classes likewise",
    "order_std": "standard deviation of the accuracy over the orders, divided by n; 0 where the order does not matter",
}


class Online(FewShot):
    """Train on k shots per class, and test on all classes, on a stream of the test images in several orders.

    The summary has the mean of each metric over the orders, and the standard deviation of the accuracy over them.

    Args:
        dataset: as in FewShot.
        orders: number of orders that are drawn; each is a test of its own, which begins anew.
        shots: as in FewShot.
        seed: draws the orders and the shots.
        augment: as in FewShot.
        skip_broken: as in FewShot.
        layout: as in FewShot.
        unlabelled: as in FewShot.
    """

    is_online = True

    def __init__(
        self,
        dataset: str | Data,
        orders: int = 3,
        shots: int | None = 16,
        seed: int = 1,
        augment: str | None = None,
        skip_broken: bool = False,
        layout: str | None = None,
        unlabelled: bool = False,
    ):
        super().__init__(dataset, shots, seed, augment, skip_broken, layout, unlabelled)
        if not 1 <= orders <= MAX_ORDERS:
            raise ValueError(f"task.orders: expected 1 to {MAX_ORDERS}, got {orders}. Set task.orders=3.")
        self.orders = orders

    @cached_property
    def tests(self) -> dict[str, Split]:
        """The test images in each order, by its name."""
        return {f"order_{k + 1}": draw_order(self.data.test, self.seed, k) for k in range(self.orders)}

    @property
    def protocol(self) -> dict[str, Any]:
        orders = {name: {"seed": self.seed, "test": test.hash()} for name, test in self.tests.items()}
        return {**super().protocol, "orders": orders}

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, dict(self.tests))

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        by_order = [scores[-1][name] for name in self.tests]
        means = {metric: statistics.fmean(order[metric] for order in by_order) for metric in by_order[0]}
        return {**means, "order_std": statistics.pstdev(order["accuracy"] for order in by_order)}


def draw_order(test: Split, seed: int, index: int) -> Split:
    """Return a test split in the order with this index, a pure function of (seed, index, number of items)."""
    order = torch.randperm(len(test), generator=make_generator(seed, "order of the test", index))
    return test.select(order.tolist())
