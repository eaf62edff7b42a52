"""TaI-DPT: Guo et al., "Texts as Images in Prompt Tuning for Multi-Label Image Recognition", CVPR 2023.

arXiv:2211.12739. Captions stand in for images: a global context is compared with the feature of a caption, a local one
with its words, and both learn to rank the classes that a caption names above the others. Images are answered by their
pooled feature and their places. Sites: soft tokens at layer 0 of the text tower; features of patches ("local"), and the
pooled feature of a ResNet without positions.

Differs from the authors' code in: captions are a file of the user, or written from the labels of the lesson, whose
images are not looked at (theirs are COCO's, or OpenImages' narratives); a name counts with an s behind it (theirs have
lists of synonyms and lemmas); nothing is chosen on test images, as theirs do; their mask of padding also takes out the
token 0, a "!" inside of a word, which here counts; captions of similar length come in one batch; on a ViT, which the
authors do not have, places are the values of the last block. From the paper in: the pairs of a caption are summed.

Expected (zero-shot, RN101, mAP): COCO 68.0, VOC2007 88.9, NUS-WIDE 46.5 (in a transcription).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextBatch
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.label_losses.several_labels import compute_ranking_loss
from vlprompt.methods._captions import CaptionFeatures, CaptionSettings
from vlprompt.methods._context_pairs import ContextPairMethod, FixedPair


class TaIDPT(ContextPairMethod):
    """A global and a local context that learn from captions with labels.

    Args:
        clip: frozen CLIP with features of patches.
        captions: a file of captions, one a line, or .jsonl with "caption" and perhaps "labels"; None for captions that
            are written from the labels of the lesson.
        caption_template: of a caption that is written, with {names}.
        name_template: of each name in it.
        template: of captions that name one class each, added for every class; null adds none.
        repeats: how often a caption by the dataset's own template is added for every class.
        n_ctx: tokens of each context.
        class_specific: whether each class has its own two contexts (CSC); such a prompt cannot classify new classes.
        context_template: where context and class name stand.
        scale: of the cosines.
        text_sharpness: scale of the cosines in the softmax over the words of a caption.
        image_sharpness: that of the softmax over the places of an image.
        global_weight: of the pooled feature in an answer, beside the places'.
        learn_scale: train the logarithm of the scale, from this value.
        learn_sharpness: train the logarithm of one sharpness of both, from that of texts.
    """

    def __init__(
        self,
        clip: Clip,
        captions: str | None = None,
        caption_template: str = "a photo of {names}.",
        name_template: str = "a {name}",
        template: TemplateChoice = "imagenet-80",
        repeats: int = 9,
        n_ctx: int = 16,
        class_specific: bool = False,
        context_template: str = "{ctx} {name}.",
        scale: float = 4.0,
        text_sharpness: float = 50.0,
        image_sharpness: float = 40.0,
        global_weight: float = 0.5,
        learn_scale: bool = False,
        learn_sharpness: bool = False,
    ):
        super().__init__()
        self.clip, self.captions, self.caption_template = clip, captions, caption_template
        self.name_template, self.template, self.repeats = name_template, template, repeats
        self.n_ctx, self.class_specific, self.context_template = n_ctx, class_specific, context_template
        self.scale, self.text_sharpness, self.image_sharpness = scale, text_sharpness, image_sharpness
        self.global_weight, self.learn_scale, self.learn_sharpness = global_weight, learn_scale, learn_sharpness
        self.uses = () if captions is None else ("captions",)
        self.features = CaptionFeatures(clip, ())

    @property
    def context_sizes(self) -> Mapping[str, int]:
        return {"ctx": self.n_ctx, "local_ctx": self.n_ctx}

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_ctx=1, repeats=0, scale=1e-6, text_sharpness=1e-6, image_sharpness=0, global_weight=0)
        self.require_at_most(global_weight=1)
        super().begin_lesson(lesson, generator)
        if not lesson.index:
            self._learn_scales(self.text_sharpness)

    def training_lesson(self, lesson: Lesson) -> Lesson:
        """Return the lesson of captions."""
        templates = self.caption_template, self.name_template
        settings = CaptionSettings(self.captions, *templates, self.template, self.repeats)
        captions, note = settings.build(lesson.train)
        self.clipped_settings = {**self.clipped_settings, **({"method.captions": note} if note else {})}
        self.features = CaptionFeatures(self.clip, [item.fields["text"] for item in captions.items])
        return replace(lesson, train=captions, val=None, unlabelled=None, memory=None)

    def _score(self, pooled: Tensor, rows: Tensor, prepared: tuple[Tensor, Tensor], sharpness: Any) -> list[Tensor]:
        """Return the scores (B, C) of features (B, E), and of rows (B, N, E) whose features that are zero are none."""
        text, local_text = (self.clip.unit(x.float()) for x in prepared)
        scale, sharpness = self.get_scales(sharpness)
        is_row = rows.any(-1)[..., None]  # (B, N, 1)
        cosines = self.clip.unit(torch.where(is_row, rows.float(), 1.0)) @ local_text.T  # (B, N, C)
        weights = (sharpness * cosines).masked_fill(~is_row, -torch.inf).softmax(1)
        return [scale * self.clip.unit(pooled.float()) @ text.T, scale * (weights * cosines).sum(1)]

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        pooled, rows = cast(VisionTower, self.clip.image).read_without_positions(inputs)
        with torch.autocast(rows.device.type, enabled=False):
            scores = self._score(pooled, rows, prepared, self.image_sharpness)
        return Output(scores[1].lerp(scores[0], self.global_weight), image_features=pooled, text_features=prepared[0])

    def loss_terms(self, batch: Batch, fixed: FixedPair) -> tuple[LossTerms, Output]:
        prepared, n = self.prepare(batch.names, fixed), len(batch.inputs)
        captions = [item.fields["text"] for item in cast(TextBatch, batch.inputs).items]
        pooled, rows = self.features.read(captions)
        with torch.autocast(rows.device.type, enabled=False):
            scores = self._score(pooled, rows, prepared, self.text_sharpness)
            losses = [compute_ranking_loss(x, batch.labels.to(x.device)) for x in scores]
        logits = scores[1].lerp(scores[0], self.global_weight)
        return {"global": (losses[0], n), "local": (losses[1], n)}, Output(logits)
