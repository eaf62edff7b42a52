"""Training: the settings and the loop."""

from vlprompt.train.loop import Loop, NotFinite, State, Step, fit
from vlprompt.train.settings import Train, rate

__all__ = ["Loop", "NotFinite", "State", "Step", "Train", "fit", "rate"]
