"""2SFS: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025.

arXiv:2503.11609. The first 0.6 of the steps train the norms of both towers by the class texts. Then the towers are
frozen, and the rest trains a classifier, which starts at the unit features of the class texts. Classes that were
trained on are scored by the classifier, new ones by their texts through the adapted tower. Sites: norm1 and norm2 of
the layers of both towers.

Differs from the authors' code in: float32 (theirs is mixed, and does not count skipped steps); its low-rank variant is
the method clip_lora. Weight decay pulls gains and biases towards zero, not towards their start, as there. From the
paper in: the norms outside of the blocks are not trained, as in their code, which lists them and then freezes them.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 85.55, new 75.48, harmonic mean 80.20.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.class_names import DEFAULT_TEMPLATE, Names, extend_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, TextTower, WeightedMap
from vlprompt.layers.adapters import NormAdapter
from vlprompt.layers.class_texts import TemplateChoice, select_class_rows
from vlprompt.layers.heads import find_class_indices, find_known_classes
from vlprompt.methods._clip_adapters import ClipAdapterMethod, TowerName

SITES = {"norms": ("norm1", "norm2"), "biases": ("norm1", "norm2", "out", "up", "down")}
OUTER_SITES = {"norms": (), "biases": ("pre_norm", "norm")}


class _Bias(nn.Module):
    """A frozen map with another bias (fan_out,)."""

    start: Tensor

    def __init__(self, frozen: WeightedMap):
        super().__init__()
        start = frozen.weight.new_zeros(len(frozen.weight)) if frozen.bias is None else frozen.bias.detach()
        self.register_buffer("start", start, persistent=False)
        self.bias = nn.Parameter(start.clone())

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return made + (self.bias - self.start)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return weight, self.bias


class TwoStage(ClipAdapterMethod):
    """Norms or biases of a CLIP, and then a classifier that starts at its class texts.

    Args:
        clip: frozen CLIP.
        towers: "image", "text" or both.
        tuning: what the first stage trains: norms, or biases of norms, out, up, down.
        layers: indices of layers; default all.
        share: of the steps in the first stage, which has one at least.
        template: of the class texts; default one for every dataset, as in the paper; None: the dataset's own.
        logit_scale: of the logits; default the CLIP's own.
    """

    has_rows: Tensor

    def __init__(
        self,
        clip: Clip,
        towers: tuple[TowerName, ...] = ("image", "text"),
        tuning: Literal["norms", "biases"] = "norms",
        layers: tuple[int, ...] | None = None,
        share: float = 0.6,
        template: TemplateChoice = DEFAULT_TEMPLATE,
        logit_scale: float | None = None,
    ):
        super().__init__(clip, towers, SITES[tuning], layers, logit_scale, template)
        self.tuning, self.share, self.parameters_without_grad = tuning, share, ("classifier",)
        self.class_ids: Names = ()
        self.lesson_names: Names = ()

    def validate(self) -> None:
        self.require_at_least(share=0)
        self.require_at_most(share=1)

    def build_adapter(self, tower: TextTower, site: str, fans: tuple[int, int], generator: Generator) -> nn.Module:
        return (NormAdapter if self.tuning == "norms" else _Bias)(tower.frozen_map(site))

    def select_sites(self, name: TowerName) -> dict[str, tuple[int, int]]:
        outer = [site for site in OUTER_SITES[self.tuning] if site in getattr(self.clip, name).sites()]
        return super().select_sites(name) | (getattr(self.clip, name).sites(*outer) if outer else {})

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        super().begin_lesson(lesson, generator)
        known, self.lesson_names = self.class_ids if lesson.index else (), lesson.train.names
        self.class_ids = extend_ids(known, self.lesson_names)
        rows = torch.zeros(len(self.class_ids), self.clip.feature_dim, device=self.clip.device)
        has_rows = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if known:
            rows[: len(known)], has_rows[: len(known)] = self.classifier.detach(), self.has_rows
        self.classifier = nn.Parameter(rows)  # (C, E)
        self.register_buffer("has_rows", has_rows.index_fill(0, self._lesson_rows(), False))  # (C,)

    def _lesson_rows(self) -> Tensor:
        return find_class_indices(self.class_ids, self.lesson_names, "2SFS").to(self.clip.device)

    @property
    def is_second_stage(self) -> bool:
        return bool(self.has_rows[self._lesson_rows()].all())

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        return [*self.adapters.parameters()] if self.is_second_stage else [self.classifier]

    def schedule_starts(self, steps: int) -> Sequence[int]:
        return 0, max(1, int(self.share * steps))

    @torch.no_grad()
    def end_step(self, step: int, steps: int) -> None:
        """Begin the second stage: the classifier starts at the class texts."""
        if step == self.schedule_starts(steps)[1]:
            rows, texts = self._lesson_rows(), self.encode_texts(self.precompute(self.lesson_names))
            self.classifier[rows], self.has_rows[rows] = self.clip.unit(texts), True

    def prepare(self, names: Names, fixed: Tensor | list[list[str]]) -> Tensor:
        ids = [i for i, has_row in zip(self.class_ids, self.has_rows.tolist(), strict=True) if has_row]
        has_all = bool(find_known_classes(ids, names).all())
        texts = self.classifier.new_zeros(len(names), self.clip.feature_dim) if has_all else self.encode_texts(fixed)
        return select_class_rows(self.classifier[self.has_rows], ids, names, texts)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_second_stage):
            image = self.clip.image(inputs, self.prompt("image"))  # (B, E)
        return Output(self.clip.logits(image, prepared, self.logit_scale), image_features=image, text_features=prepared)
