"""ProGrad: Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.

The gradient of the cross-entropy is used unchanged where it agrees with the gradient of a distillation term, which
preserves the predictions of zero-shot CLIP, and loses its opposing component where it does not. It wraps any method.
Sites: those of the wrapped method.

Differs from the authors' code in: their context begins with a reversed hand-written text, padded in front with zero
vectors to 16 tokens; here it begins as in the wrapped method. From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets, KgCoOp's table): base 82.48, new 70.75, harmonic mean 76.16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts


class ProGrad(MethodWrapper):
    """A prompt method whose gradient never opposes zero-shot CLIP.

    Args:
        method: the wrapped method, on a CLIP.
        weight: fraction of the opposing component that is removed (lambda).
        temperature: of the distillation.
        template: of the hand-written class texts; default the dataset's own.
    """

    def __init__(self, method: Method, weight: float = 1.0, temperature: float = 1.0, template: TemplateChoice = None):
        super().__init__()
        self.method, self.weight, self.temperature, self.template = method, weight, temperature, template

    def reference_texts(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E)

    def extra_terms(self, batch: Batch, out: Output, reference: Tensor) -> dict[str, Tensor]:
        t = self.temperature
        zero_shot = self.clip.logits(self.clip.image(batch.inputs), reference) / t
        return {"kl": F.cross_entropy(out.logits.float() / t, zero_shot.softmax(-1)) * t**2}

    def merge_gradients(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        """Merge the other terms' gradients, and remove what opposes that of "kl", parameter by parameter."""
        merged = self.method.merge_gradients({name: g for name, g in grads.items() if name != "kl"})
        return [self._project(a, b) for a, b in zip(merged, grads["kl"], strict=True)]

    def _project(self, a: Tensor, b: Tensor) -> Tensor:
        dot, tiny = (a * b).sum(), torch.finfo(b.dtype).tiny
        return torch.where(dot < 0, a - self.weight * dot / (b * b).sum().clamp(min=tiny) * b, a)
