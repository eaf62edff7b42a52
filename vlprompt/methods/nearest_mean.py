"""Nearest class mean on frozen features: Mensink et al., TPAMI 2013; Janson et al. 2022, arXiv:2210.04428.

Janson et al. have it as a baseline of continual learning. The class whose mean feature has the highest cosine with the
image's. Nothing is trained by gradient; later lessons add classes. Sites: none.

Differs from Mensink et al. in: cosine instead of a learned metric, as the papers that use it on frozen features have
it.

Expected: no published number on a set that ships with vlprompt.
"""

import torch
from torch import Tensor

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower, Clip
from vlprompt.layers.heads import find_class_indices


class NearestMean(Method):
    """Classify by the cosine to the mean of each class's normalised features.

    Args:
        tower: frozen image tower or language model.
        logit_scale: factor of the cosines, which changes no ranking.
    """

    needs_single_labels = True
    sums: Tensor

    def __init__(self, tower: AnyTower, logit_scale: float = 100.0):
        super().__init__()
        self.tower, self.logit_scale = tower, logit_scale
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        train, device = lesson.train, self.tower.device
        known_ids = self.class_ids if lesson.index else ()
        added_ids = [i for i in class_ids(train.names) if i not in known_ids]
        self.class_ids = (*known_ids, *added_ids)
        earlier = [self.sums] if known_ids else []
        zeros = torch.zeros(len(added_ids), self.tower.feature_dim, device=device)
        self.register_buffer("sums", torch.cat([*earlier, zeros]))  # (C, E)
        rows = find_class_indices(self.class_ids, train.names, "a nearest mean").to(device)
        for batch in train.batches(256):
            self.sums.index_add_(0, rows[batch.labels.to(device)], Clip.unit(self.tower(batch.inputs)))

    def precompute(self, names: Names) -> Tensor:
        return self.sums[find_class_indices(self.class_ids, names, "a nearest mean").to(self.sums.device)]

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.tower(inputs)  # (B, E)
        return Output(self.logit_scale * Clip.unit(image) @ Clip.unit(prepared).T, image_features=image)
