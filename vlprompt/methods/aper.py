"""APER: Zhou et al., IJCV 2024, arXiv:2303.07338; ADAM in its first version.

The paper is "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You
Need". The first lesson tunes the tower by another method; from then on nothing is trained, and the class whose mean
feature has the highest cosine with the image's answers. The feature is that of the frozen tower, and behind it that of
the tuned one. Sites: those of the wrapped method, in the first lesson. Use: streams.

Differs from the authors' code in: the cosine head that tunes starts at normal weights, of which the direction matters
alone (theirs: uniform); soft tokens start at random ones (theirs: zero) and stand before the patches (theirs: behind
them), which no answer of a ViT without positions for them depends on; vectors have no weight decay, as in every method
here; a class that comes again has the mean of all of its images, there that of its latest lesson. Until the first
lesson ends, and so for train.model_selection, the tuning method answers. From the paper in: nothing. As there, the
scale that the tuning trains is thrown away and that of the answers is 1: probabilities are nearly equal.

Its state has 8 E + 4 bytes a class, and the tuning method's, whose head of the first lesson is no longer used.

Expected (ViT-B/16 of IN-21k, average and final accuracy, the authors' log), CIFAR-100 of 20 lessons, ImageNet-R of 40,
CUB: adaptformer 90.61 85.14, 71.90 63.73, 92.21 86.73; VPT-deep 88.91 82.65, 68.68 60.22, 91.23 85.96; VPT-shallow
88.23 81.80, 64.72 56.70, 92.09 86.73; SSF 87.85 82.01, 68.88 60.45, 91.73 86.26; full fine-tuning 87.56 81.27, 70.95
62.77, 91.79 86.43.
"""

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import Output, TowerMethod
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import cosine_similarity
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._prototypes import Prototypes, require_images


class _Tuned(NamedTuple):
    """The tuned tower, merged where that can be, and the prototypes (C, 2 E)."""

    tower: VisionTower
    prototypes: Tensor


class APER(MethodWrapper):
    """Mean features of a frozen tower beside the same tower as the first lesson tuned it.

    Args:
        method: tunes an image tower: adaptformer, vpt, ssf, lora, full ...
        logit_scale: factor of the cosines, which changes no ranking.
    """

    needs_single_labels = True
    is_tuned: Tensor

    def __init__(self, method: TowerMethod[VisionTower], logit_scale: float = 1.0):
        super().__init__()
        self.method, self.logit_scale = method, logit_scale
        self.prototypes = Prototypes("a mean feature")

    @property
    def tuning(self) -> TowerMethod[VisionTower]:
        """The tuning method, whose type `begin_lesson` checks."""
        return cast(TowerMethod[VisionTower], self.method)

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if not isinstance(self.method, TowerMethod) or not isinstance(self.method.tower, VisionTower):
            raise ValueError(
                f"method.method: expected a method that tunes an image tower, got {type(self.method).__name__}. Take "
                "adaptformer, vpt, ssf, lora or full."
            )
        names, tower = lesson.train.names, self.tuning.tower
        require_images(lesson.train, self.prototypes.class_ids if lesson.index else ())
        if lesson.index:
            self.method.requires_grad_(False)
        else:
            self.method.begin_lesson(lesson, generator)
            self.register_buffer("is_tuned", torch.zeros((), dtype=torch.bool, device=tower.device))
        self.prototypes.begin_lesson(names, not lesson.index, 2 * tower.feature_dim, tower.device)

    def end_lesson(self, lesson: Lesson) -> None:
        """Tune the tower in the first lesson; of every lesson add the classes' mean features."""
        if not lesson.index:
            self.method.end_lesson(lesson)
        self.eval()
        encode = partial(self._compute_both, self._merge_tower())
        features, labels = compute_features(encode, lesson.train)
        self.prototypes.add(features, labels, lesson.train.names)
        self.is_tuned.fill_(True)

    def _merge_tower(self) -> VisionTower:
        """Return the tuned tower where weights can hold the tuning, else the frozen one."""
        return cast(VisionTower, self.tuning.merge_backbone()) if self.tuning.is_mergeable else self.tuning.tower

    def _compute_both(self, tower: VisionTower, inputs: Images) -> Tensor:
        """Compute the features (B, 2 E) of the frozen and of the tuned tower."""
        inputs = self.tuning.prepare_inputs(inputs)
        return torch.cat([self.tuning.tower(inputs), self.tuning.compute_features(inputs, tower)], 1)

    def precompute(self, names: Names) -> Fixed:
        return self.prototypes.get(names) if self.is_tuned else super().precompute(names)

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        return _Tuned(self._merge_tower(), fixed) if self.is_tuned else super().prepare(names, fixed)

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        if not isinstance(prepared, _Tuned):
            return super().forward(inputs, prepared)
        features = self._compute_both(prepared.tower, inputs)
        logits = self.logit_scale * cosine_similarity(features, prepared.prototypes)
        return Output(logits, image_features=features)
