"""ProGrad: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.

The gradient of the cross-entropy is taken as it is where it agrees with what keeps the answers of zero-shot CLIP (the
gradient of a distillation term), and loses its opposing component where it does not. It can be put around any method.
Sites: those of the method inside.

Differs from the authors' code in: their context begins with a reversed hand-written text, padded in front with zero
vectors to 16 tokens; here it begins as the method inside says. From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets, KgCoOp's table): base 82.48, new 70.75, harmonic mean 76.16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.method_wrapper import Around
from vlprompt.layers.class_texts import Template, hand


class ProGrad(Around):
    """A prompt method whose gradient never opposes zero-shot CLIP.

    method: the one inside, on a CLIP; weight: how much of the opposing component is taken away (lambda); temperature:
    of the distillation; template: the hand-written text, default the dataset's own.
    """

    def __init__(self, method: Method, weight: float = 1.0, temperature: float = 1.0, template: Template = None):
        super().__init__()
        self.method, self.weight, self.temperature, self.template = method, weight, temperature, template

    def own(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template)  # (C, E)

    def extra(self, batch: Batch, out: Output, own: Tensor) -> dict[str, Tensor]:
        t = self.temperature
        plain = self.clip.logits(self.clip.image(batch.inputs), own) / t
        return {"kl": F.cross_entropy(out.logits.float() / t, plain.softmax(-1)) * t**2}

    def merge(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        """The other terms' gradient, without what opposes that of "kl", parameter by parameter."""
        found = self.method.merge({name: g for name, g in grads.items() if name != "kl"})
        return [self._projected(a, b) for a, b in zip(found, grads["kl"], strict=True)]

    def _projected(self, a: Tensor, b: Tensor) -> Tensor:
        along = (a * b).sum()
        tiny = torch.finfo(b.dtype).tiny
        return torch.where(along < 0, a - self.weight * along / (b * b).sum().clamp(min=tiny) * b, a)
