"""SLCA: Zhang et al., ICCV 2023, arXiv:2303.05118.

The paper is "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model". Every weight
of a copy of the image tower is trained through the stream, at a hundredth of the learning rate of the head, which is
another one for each lesson. After a lesson, features drawn from a Gaussian of each class so far align all heads, which
then answer; the next lesson goes on from the heads before that. Sites: none; it trains `tower.trainable_copy()`. Use:
streams.

Differs from the authors' code in: the norm behind the last block is the pre-trained one, as in LAMDA-PILOT (theirs is
replaced by a new one); the lesson of a class is the one it came in (theirs is its number over the size of the current
lesson, which is wrong where sizes differ); a class that comes again is trained on from its row, has the statistics of
all of its images and belongs to the later lesson. Those of earlier lessons stay as they were taken, as there. From the
paper in: the means of earlier classes shrink, and logits are divided by the mean norm over the lessons, as in the code.

Its state is as large as the tower, and has 4 E^2 + 12 E + 20 bytes a class besides, and 4 E + 4 a class of the last
lesson: 343 MB, and 2.4 MB a class, on a ViT-B/16.

Expected (ViT-B/16 of IN-21k, 10 lessons, final accuracy, the authors' readme): CIFAR-100 91.53, ImageNet-R 77.00, CUB
73.01, Cars 66.04. LAMDA-PILOT's, average and final: CIFAR-100 of 20 lessons 92.49 88.55, ImageNet-R of 10 81.17 77.00.
"""

from typing import Protocol, cast

from torch import Tensor

from vlprompt.core.images import Images
from vlprompt.core.method import ParamGroup
from vlprompt.core.towers import VisionTower
from vlprompt.methods._slow_learner import SlowLearner


class _TrainedTower(Protocol):
    def as_whole_tower(self) -> VisionTower: ...


class SLCA(SlowLearner):
    """A slowly trained copy of an image tower, with aligned linear heads.

    Args:
        tower: image tower; only its copy is trained.
        tower_lr_factor: the learning rate of the copy over that of the heads.
        draws_per_class: features that are drawn of each class in an epoch of the alignment.
        alignment_epochs: epochs of the alignment.
        alignment_lr: its learning rate.
        alignment_weight_decay: its weight decay.
        temperature: of the normalised logits in the alignment's loss.
    """

    def __init__(
        self,
        tower: VisionTower,
        tower_lr_factor: float = 0.01,
        draws_per_class: int = 256,
        alignment_epochs: int = 5,
        alignment_lr: float = 0.01,
        alignment_weight_decay: float = 5e-4,
        temperature: float = 0.1,
    ):
        super().__init__(tower, draws_per_class, alignment_epochs, alignment_lr, alignment_weight_decay, temperature)
        self.tower_lr_factor = tower_lr_factor

    def build(self) -> None:
        self.require_at_least(tower_lr_factor=0)
        self.trained_tower = self.tower.trainable_copy()

    def encode(self, inputs: Images) -> Tensor:
        return self.trained_tower(inputs.pixels(self.tower.preprocessing).to(self.tower.device))

    def compute_mean_factor(self, lesson: int) -> float:
        return 0.9 + 0.1 * (lesson + 1) / (self.lesson_index + 1)

    def param_groups(self) -> list[ParamGroup]:
        """Return the copy and the head; all of it has the training's weight decay, as in the authors' code."""
        return [
            {"params": [*self.trained_tower.parameters()], "lr_factor": self.tower_lr_factor},
            {"params": [self.weight, self.bias]},
        ]

    def merge_backbone(self) -> VisionTower:
        return cast(_TrainedTower, self.trained_tower).as_whole_tower()
