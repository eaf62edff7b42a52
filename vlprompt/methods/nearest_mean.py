"""Nearest class mean on frozen features: Mensink et al., TPAMI 2013; Janson et al. 2022, arXiv:2210.04428.

Janson et al. have it as a baseline of continual learning. The class whose mean feature has the highest cosine with the
image's. Nothing is trained by gradient; later lessons add classes. Sites: none.

Differs from Mensink et al. in: cosine instead of a learned metric, as the papers that use it on frozen features have
it.

Expected: no published number on a set that ships with vlprompt.
"""

import torch
from torch import Tensor

from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower, Clip
from vlprompt.layers.heads import columns


class NearestMean(Method):
    """Cosine to the mean of each class's normalised features, times `scale`, which no ranking sees."""

    sums: Tensor

    def __init__(self, tower: AnyTower, scale: float = 100.0):
        super().__init__()
        self.tower, self.scale = tower, scale
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        train, device = lesson.train, self.tower.device
        known = self.ids if lesson.index else ()
        new = [i for i in ids(train.names) if i not in known]
        old = [self.sums] if known else []
        self.ids = (*known, *new)
        self.register_buffer(
            "sums", torch.cat([*old, torch.zeros(len(new), self.tower.width, device=device)])
        )  # (C, E)
        place = columns(self.ids, train.names, "a nearest mean").to(device)
        for batch in train.batches(256):
            self.sums.index_add_(0, place[batch.labels.to(device)], Clip.unit(self.tower(batch.inputs)))

    def fixed(self, names: Names) -> Tensor:
        return self.sums[columns(self.ids, names, "a nearest mean").to(self.sums.device)]

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.tower(inputs)  # (B, E)
        return Output(self.scale * Clip.unit(image) @ Clip.unit(prepared).T, image=image)
