"""PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023.

arXiv:2307.06948. Learned prompts are regularised towards the frozen CLIP three times, in text features, image features
and predictions, and the result is a mean of the parameters over the epochs, with Gaussian weights. It wraps any prompt
method; the paper's is IVLP. Sites: those of the wrapped method.

Differs from the authors' code in: only the prompts are averaged (theirs averages the whole model, frozen half-precision
weights included, and loses the sum when it resumes); float32. From the paper in: the term on the predictions has weight
1 and is divided by images times classes, as in the code.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 84.26, new 76.10, harmonic mean 79.97.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts


class PromptSRC(MethodWrapper):
    """A prompt method regularised by the frozen CLIP.

    Args:
        method: the wrapped method, on a CLIP.
        text_weight, image_weight: of the mean absolute differences of normalised features.
        gaussian_mean: of the weights of epochs (1 is the first).
        gaussian_std: of the weights of epochs; None uses the last epoch.
        template: of the class texts whose mean is the reference.
    """

    def __init__(
        self,
        method: Method,
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        gaussian_mean: float = 15.0,
        gaussian_std: float | None = 1.0,
        template: TemplateChoice = "imagenet-60",
    ):
        super().__init__()
        self.method, self.text_weight, self.image_weight = method, text_weight, image_weight
        self.gaussian_mean, self.gaussian_std, self.template = gaussian_mean, gaussian_std, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        super().begin_lesson(lesson, generator)
        if self.gaussian_std is not None and self.gaussian_std <= 0:
            raise ValueError(
                "method.gaussian_std: expected a value above 0, or null for the last epoch, got "
                f"{self.gaussian_std}. Set one of these."
            )
        for i, p in enumerate(self.method.parameters()):
            self.register_buffer(f"sum{i}", torch.zeros_like(p))

    def reference_texts(self, names: Names) -> Tensor:
        return self.clip.unit(encode_class_texts(self.clip, names, self.template))  # (C, E)

    def extra_terms(self, batch: Batch, out: Output, reference: Tensor) -> dict[str, Tensor]:
        unit, image = self.clip.unit, self.clip.image(batch.inputs)  # (B, E), frozen, of the same augmentations
        frozen_log_p = self.clip.logits(image, reference).log_softmax(-1)
        log_p = out.logits.float().log_softmax(-1)
        terms = {
            "text": self.text_weight * (unit(self.require_text_features(out)) - reference).abs().mean(),
            "answers": F.kl_div(log_p, frozen_log_p, reduction="none", log_target=True).mean(),
        }
        if out.image_features is not None:
            terms["image"] = self.image_weight * (unit(out.image_features) - unit(image)).abs().mean()
        return terms

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        super().end_epoch(epoch, epochs)
        if self.gaussian_std is None:
            return
        numbers = torch.arange(1, epochs + 1, dtype=torch.float64)
        weight = float((-(((numbers - self.gaussian_mean) / self.gaussian_std) ** 2) / 2).softmax(0)[epoch])
        for i, p in enumerate(self.method.parameters()):
            total: Tensor = getattr(self, f"sum{i}")
            total += weight * p
            if epoch + 1 == epochs:
                p.copy_(total)
