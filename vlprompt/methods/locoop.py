"""LoCoOp: Miyai et al., "LoCoOp: Few-Shot Out-of-Distribution Detection via Prompt Learning", NeurIPS 2023.

arXiv:2306.01293. Regions of a training image whose own features do not look like its class, such as the background, are
used as examples of unknown classes: their class probabilities are spread by maximising the entropy, so that unknown
images score low afterwards. It wraps any method whose classes are texts. Sites: those of the wrapped method; local
features of the image tower (each patch attends to itself alone in the last block).

Differs from the authors' code in: without `top_k` it is a fifth of the classes, the share of their 200 of ImageNet's
1000, which they ask to choose anew for other data; a `top_k` that no region can miss is an error (theirs has no term
then); float32. From the paper in: the same.

Expected (ImageNet, ViT-B/16, 16 shots, against iNaturalist, SUN, Places and Textures, mean FPR95 / AUROC): MCM 34.0 /
92.7, GL-MCM 28.7 / 93.5, accuracy 71.5; CoOp 36.8 / 91.9 and 30.7 / 91.8 (GalLoP's README).
"""

from typing import cast

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.head import Fixed
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower

EPSILON = 1e-5  # inside the logarithm, as the authors have it


class LoCoOp(MethodWrapper):
    """A prompt method whose class texts stay away from regions of other things than the class.

    Args:
        method: the wrapped method, on a CLIP; the regions are those of the image tower without its prompts.
        weight: of the term (lambda).
        top_k: a region counts as another thing where its image's class is not among its `top_k` most probable ones;
            None for a fifth of the classes, at least 1.
    """

    needs_single_labels = True

    def __init__(self, method: Method, weight: float = 0.25, top_k: int | None = None):
        super().__init__()
        self.method, self.weight, self.top_k = method, weight, top_k

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(weight=0)
        n_classes = len(lesson.train.names)
        if self.top_k is not None and not 1 <= self.top_k < n_classes:
            raise ValueError(
                f"method.top_k: expected 1 to {n_classes - 1} of {n_classes} classes, got {self.top_k}. Leave it out "
                "for a fifth of the classes."
            )
        cast(VisionTower, self.clip.image).require_patch_features()
        super().begin_lesson(lesson, generator)

    def choose_top_k(self, n_classes: int) -> int:
        """Return the number of most probable classes among which a region's own may be."""
        return max(1, n_classes // 5) if self.top_k is None else self.top_k

    def compute_local_logits(self, batch: Batch, out: Output) -> Tensor:
        """Return the logits (B, N, C) of the regions of images."""
        local, text = self.clip.image(batch.inputs, output="local"), self.require_text_features(out)
        return self.clip.scale * self.clip.unit(local) @ self.clip.unit(text).mT

    def find_other_things(self, local_logits: Tensor, labels: Tensor) -> Tensor:
        """Return which regions (B, N) do not have their image's class among their most probable ones."""
        top = local_logits.topk(self.choose_top_k(local_logits.shape[-1]), -1).indices
        return (top != labels.to(top.device)[:, None, None]).all(-1)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        terms, out = super().loss_terms(batch, fixed)
        if not len(batch.labels):  # a batch of unlabelled images alone
            return terms, out
        local_logits = self.compute_local_logits(batch, out).float()
        is_other = self.find_other_things(local_logits.detach(), batch.labels)
        p = local_logits.softmax(-1)
        rows = (p * (p + EPSILON).log()).sum(-1)  # minus the entropy of each region
        n = int(is_other.sum())
        # a mean over regions, of which each micro-batch has another number
        return terms | {"local": (self.weight * (rows * is_other).sum() / max(n, 1), float(n))}, out
