"""What a memory plan says of a run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MemoryPlan:
    """What a run takes, and the settings with which it fits.

    Args:
        peak_mb: at most (MB of the process, on a GPU of its memory).
        available_mb: what there is.
        seconds: of training and tests; 0 where nothing was measured.
        overrides: settings of training other than requested, with which it fits and learns the same up to rounding.
        requested_mb: the peak without them.
        tensor_mb: the tensors that a step or a test makes.
        stored_mb: decoded images, features and the pixels of batches beside them.
        state_mb: what the method and its training hold all the time: prompts, copies of weights, the gradients of the
            step before, and the state of the optimizer.
        used_mb: what the process holds before the run.
        inexact_mb: the peak with `inexact_overrides`.
        inexact_overrides: settings that take less, with which dropout draws other random numbers; named where nothing
            else fits, never chosen.
    """

    peak_mb: float
    available_mb: float
    seconds: float
    overrides: dict[str, Any] = field(default_factory=dict)
    requested_mb: float = 0.0
    tensor_mb: float = 0.0
    stored_mb: float = 0.0
    state_mb: float = 0.0
    used_mb: float = 0.0
    inexact_mb: float = 0.0
    inexact_overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.peak_mb <= self.available_mb

    def __str__(self) -> str:
        cost = f"{self.peak_mb / 1024:.2f} GB at most, {format_duration(self.seconds)}"
        if not self.overrides and self.fits:
            return cost
        advice = self._describe_inexact()
        held = ", which the process holds already" if self.available_mb <= self.used_mb else ""
        if not self.overrides:
            return f"{cost}; there are {self.available_mb / 1024:.2f} GB{held}, so it may not fit{advice}"
        doubt = "" if self.fits else ", which may still not fit"
        sizes = f"{self.requested_mb / 1024:.2f} GB asked, {self.available_mb / 1024:.2f} there{held}"
        return f"{sizes}: {_list_settings(self.overrides)} (the same up to rounding){doubt}; {cost}{advice}"

    def _describe_inexact(self) -> str:
        if not self.inexact_overrides:
            return ""
        settings, size = _list_settings(self.inexact_overrides), f"{self.inexact_mb / 1024:.2f} GB"
        return f"; you may set {settings} ({size}), with which dropout draws other random numbers"


def _list_settings(overrides: dict[str, Any]) -> str:
    return ", ".join(f"train.{k}={v}" for k, v in overrides.items())


def format_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
