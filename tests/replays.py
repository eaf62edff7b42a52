"""Passes whose recording is replayed, and what stands on a CPU in the place of a CUDA graph."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vlprompt.methods import CoCoOp, CoOp, KgCoOp, MaPLe

MADE = {
    "coop": lambda clip: CoOp(clip, 4),
    "cocoop": lambda clip: CoCoOp(clip, 4),
    "maple": lambda clip: MaPLe(clip, n_ctx=2),
    "kgcoop": lambda clip: KgCoOp(CoOp(clip, 4)),
}


class Twin:
    """A recorded pass: each run writes over what the run before has made."""

    made = 0

    def __init__(self, make, given):
        Twin.made += 1
        self.make, self.given = make, [t.detach().clone().requires_grad_(t.requires_grad) for t in given]

    def forward(self, given):
        for mine, t in zip(self.given, given, strict=True):
            mine.data.copy_(t)
        with torch.enable_grad():
            self.out = self.make(*self.given)
        return [t.detach().clone() for t in self.out]

    def backward(self, grads):
        learned = [t for t in self.given if t.requires_grad]
        found = iter(torch.autograd.grad(self.out, learned, grads, retain_graph=True, allow_unused=True))
        return [next(found) if t.requires_grad else None for t in self.given]


class Tape:
    """A recorded pass, whose operations are repeated without the Python that made them: as a CUDA graph repeats them.

    What Python has read while it was recorded (a number, a shape, a tensor that is no input) stays as it was.
    """

    made = 0

    def __init__(self, make, given):
        Tape.made += 1
        self.make, self.given = make, [t.detach().clone().requires_grad_(t.requires_grad) for t in given]
        with torch.enable_grad():
            self.grads = [torch.zeros_like(t) for t in make(*self.given)]
            self.run = make_fx(lambda given: [t.detach() for t in make(*given)])(self.given)
            self.differentiate = make_fx(lambda given, grads: self.derive(given, grads))(self.given, self.grads)

    def derive(self, given, grads):
        learned = [t for t, mine in zip(given, self.given, strict=True) if mine.requires_grad]
        found = iter(torch.autograd.grad(self.make(*given), learned, grads, allow_unused=True))
        return [next(found) if mine.requires_grad else None for mine in self.given]

    def forward(self, given):
        for mine, t in zip(self.given, given, strict=True):
            mine.data.copy_(t)
        return [t.clone() for t in self.run(self.given)]

    def backward(self, grads):
        for mine, t in zip(self.grads, grads, strict=True):
            mine.copy_(t)
        return self.differentiate(self.given, self.grads)
