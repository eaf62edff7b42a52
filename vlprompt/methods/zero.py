"""ZERO: Farina et al., "Frustratingly Easy Test-Time Adaptation of VLMs", NeurIPS 2024, arXiv:2405.18330.

The confident augmentations of a test image vote: their predictions are added at temperature zero, so that each has one
vote for one class, and the class with the most votes is the answer. Nothing is trained. Sites: none. Use: test time.

Differs from the authors' code in: augmentations are pure functions of the image; the temperature is a setting, which in
their code is the spacing of the number type, 2^-10 under their half precision (votes are then soft near a tie) and
2^-23 in float32; a tie that no other view decides goes to the surest of the views that voted (theirs masks the wrong
classes). From the paper in: temperature=0 is the paper's, the default the authors'.

Expected (domain generalisation, ViT-B/16, one template, as published, not verified): ImageNet 69.31, V2 64.16, Sketch
48.40, A 59.61, R 77.22.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.methods._views import count_confident, encode_views, order_by_confidence, require_view_settings


class ZERO(Method):
    """Votes of the confident augmentations of each test image.

    Args:
        clip: frozen CLIP.
        augmentations: number of augmentations of an image, which votes too.
        confident_fraction: of these, those with the lowest entropy that vote.
        temperature: of the cosines in a vote; 0 gives each view one whole vote.
        augment: "crop-flip", "crop" or "augmix".
        template: of the class texts; default the dataset's own.
    """

    depends_on_class_set = True

    def __init__(
        self,
        clip: Clip,
        augmentations: int = 63,
        confident_fraction: float = 0.3,
        temperature: float = 2**-10,
        augment: str = "crop-flip",
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.augmentations, self.confident_fraction = clip, augmentations, confident_fraction
        self.temperature, self.augment, self.template = temperature, augment, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        require_view_settings(self)
        self.require_at_least(temperature=0)

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template, normalize=True)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        views = encode_views(self.clip, inputs, self.augment, self.augmentations)
        votes = self.decide(self.clip.unit(views), self.clip.unit(prepared))
        return Output(votes.clamp(min=1e-30).log(), image_features=views[0], text_features=prepared)

    def decide(self, views: Tensor, text: Tensor) -> Tensor:
        """Count the votes (B, C) of unit features of views (1 + A, B, E), for unit texts (C, E); no tie remains."""
        cosines = (views @ text.T).float()
        order = order_by_confidence(self.clip.scale * cosines)  # (1 + A, B)
        ordered = torch.take_along_dim(cosines, order[..., None], 0)
        n = count_confident(len(views), self.confident_fraction)
        votes = self.cast_votes(ordered[:n]).sum(0)
        return votes + break_ties(votes, torch.cat([ordered[n:], ordered[:n]]).argmax(-1))

    def cast_votes(self, cosines: Tensor) -> Tensor:
        """Return the votes (..., C) of cosines (..., C), which add up to 1."""
        if not self.temperature:
            return F.one_hot(cosines.argmax(-1), cosines.shape[-1]).to(cosines.dtype)
        return (cosines / self.temperature).softmax(-1)


def break_ties(votes: Tensor, choices: Tensor) -> Tensor:
    """Return one more vote (B, C) for one of the classes that share the most votes; zeros where one class has them.

    Args:
        votes: (B, C).
        choices: the classes (V, B) that the views choose; the first choice that is among the tied classes decides.
    """
    n_classes = votes.shape[-1]
    is_highest = votes == votes.amax(-1, keepdim=True)  # (B, C)
    priority = torch.arange(len(choices), 0, -1, device=votes.device)[:, None, None]  # of the first view the highest
    ranking = (F.one_hot(choices, n_classes) * priority).amax(0) + 1  # (B, C): 1 for a class that no view chooses
    winner = (ranking * is_highest).argmax(-1)
    is_tied = is_highest.sum(-1, keepdim=True) > 1
    return (F.one_hot(winner, n_classes) * is_tied).to(votes.dtype)
