"""PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023.

arXiv:2307.06948. Learned prompts are held near the frozen CLIP three times, in text features, image features and
answers, and what is kept is a mean of the parameters over the epochs, with Gaussian weights. It can be put around any
prompt method; the paper's is IVLP. Sites: those of the method inside.

Differs from the authors' code in: only the prompts are averaged (theirs averages the whole model, frozen half-precision
weights included, and loses the sum when it resumes); float32. From the paper in: the term on the answers has weight 1
and is divided by images times classes, as in the code.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 84.26, new 76.10, harmonic mean 79.97.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.method_wrapper import Around
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import Template, hand


class PromptSRC(Around):
    """A prompt method that regulates itself by the frozen CLIP.

    method: the one inside, on a CLIP; text_weight, image_weight: of the mean absolute differences of normalised
    features; mean, std: of the Gaussian over epochs (1 is the first), std None keeps the last epoch; template: the
    texts whose mean the class texts are held near.
    """

    def __init__(
        self,
        method: Method,
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        mean: float = 15.0,
        std: float | None = 1.0,
        template: Template = "imagenet-60",
    ):
        super().__init__()
        self.method, self.text_weight, self.image_weight = method, text_weight, image_weight
        self.mean, self.std, self.template = mean, std, template

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        super().begin(lesson, generator)
        if self.std is not None and self.std <= 0:
            raise ValueError(f"method.std must be above 0 (null keeps the last epoch), not {self.std}")
        for i, p in enumerate(self.method.parameters()):
            self.register_buffer(f"sum{i}", torch.zeros_like(p))

    def own(self, names: Names) -> Tensor:
        return self.clip.unit(hand(self.clip, names, self.template))  # (C, E)

    def extra(self, batch: Batch, out: Output, own: Tensor) -> dict[str, Tensor]:
        unit, plain = self.clip.unit, self.clip.image(batch.inputs)  # (B, E), frozen, of the same views
        frozen, log_p = self.clip.logits(plain, own).log_softmax(-1), out.logits.float().log_softmax(-1)
        found = {
            "text": self.text_weight * (unit(self.text(out)) - own).abs().mean(),
            "answers": F.kl_div(log_p, frozen, reduction="none", log_target=True).mean(),
        }
        if out.image is not None:
            found["image"] = self.image_weight * (unit(out.image) - unit(plain)).abs().mean()
        return found

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        super().end_epoch(epoch, epochs)
        if self.std is None:
            return
        places = torch.arange(1, epochs + 1, dtype=torch.float64)
        share = float((-(((places - self.mean) / self.std) ** 2) / 2).softmax(0)[epoch])
        for i, p in enumerate(self.method.parameters()):
            total: Tensor = getattr(self, f"sum{i}")
            total += share * p
            if epoch + 1 == epochs:
                p.copy_(total)
