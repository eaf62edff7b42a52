"""DAMP: Du et al., "Domain-Agnostic Mutual Prompting for Unsupervised Domain Adaptation", CVPR 2024, arXiv:2403.02899.

A context, and one decoder by which image features read the context's rows and class texts an image's patches, learn
from a source and pseudo-labels of the target, on a weak and a strong augmentation of each image. Sites: soft tokens at
layer 0 of the text tower; it changes both features.

Differs from the authors' code in: the learning rate falls once (theirs is stepped per iteration with a period meant for
epochs, so that it swings all along); an answer is the model's own (theirs is mixed with zero-shot CLIP, its best epoch
chosen on target labels); the rows that images read are those of the first class learned, which matters to
class-specific contexts (theirs of the first in a list); float32. As there, they are the start token's and those of all
context tokens but the last.

Expected: no number that was found in a file; Office-Home about 87.1 and VisDA-2017 90.9 at ViT-B/16, from memory.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import escape_braces
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import encode_class_texts, fill_class_texts
from vlprompt.layers.heads import find_class_indices
from vlprompt.methods._adaptation import require_target, warn_if_unconfident, zero_shot_probabilities
from vlprompt.methods._mutual_prompts import (
    ContextDecoder,
    compute_contrast,
    compute_information_loss,
    sum_cross_entropies,
)
from vlprompt.methods._views import require_augmentation


class _Fixed(NamedTuple):
    texts: list[str]  # of the first class, and of each
    zero_shot_text: Tensor  # (C, E)
    context_indices: Tensor | None  # of class-specific contexts


class DAMP(Method):
    """A context and a decoder between both modalities, from two augmentations and pseudo-labels.

    Args:
        clip: frozen CLIP, whose image tower has features of patches.
        n_ctx: tokens of the context.
        class_specific: whether each class has its own context; such a prompt cannot classify new classes.
        width, n_heads, n_layers, dropout: of the decoder.
        threshold: least probability of a pseudo-label that is trained on (tau).
        weight: of the target's loss.
        augment: the strong augmentation; the weak one is task.augment.
        context_template: where context and class name stand.
        template: of the pseudo-labelling class texts, with the target's name.
    """

    needs_unlabelled, needs_whole_batch = True, True  # images are contrasted with those of their batch
    own_share: Tensor  # of pseudo-labels (lambda)

    def __init__(self, clip: Clip, n_ctx: int = 32, class_specific: bool = False, width: int = 256, n_heads: int = 4,
                 n_layers: int = 6, dropout: float = 0.1, threshold: float = 0.5, weight: float = 1.0,
                 augment: str = "randaugment", context_template: str = "{ctx} {name}.",
                 template: str = "a {domain} photo of a {name}."):  # fmt: skip
        super().__init__()
        self.clip, self.n_ctx, self.class_specific, self.width = clip, n_ctx, class_specific, width
        self.n_heads, self.n_layers, self.dropout, self.threshold = n_heads, n_layers, dropout, threshold
        self.weight, self.augment, self.context_template, self.template = weight, augment, context_template, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_ctx=1, width=1, n_heads=1, n_layers=1, dropout=0, threshold=0, weight=0)
        require_augmentation(self.augment)
        require_target(self, lesson, min_domains=2)
        if self.width % (n := self.n_heads):
            raise ValueError(f"method.width: expected a multiple of method.n_heads={n}, got {self.width}. Change one.")
        self.clip.text.require_blocks()
        cast(VisionTower, self.clip.image).require_patch_features()
        known_ids = self.class_ids if lesson.index and self.class_specific else ()
        ids = class_ids(lesson.train.names) if self.class_specific else ("",)
        if not lesson.index:
            self.first_name, device = lesson.train.names[0], self.clip.device
            sizes = self.clip.feature_dim, self.width, self.n_heads, self.n_layers
            self.decoder = ContextDecoder(*sizes, self.dropout, generator, device)
            self.gamma = nn.ParameterDict({k: torch.full((1,), 0.01, device=device) for k in ("image", "text")})
        if not lesson.index or self.class_specific:
            contexts = [*self.ctx.detach()] if known_ids else []
            added_ids = [i for i in ids if i not in known_ids]
            contexts += [self.clip.text.init_context(self.n_ctx, None, generator) for _ in added_ids]
            self.ctx, self.class_ids = nn.Parameter(torch.stack(contexts)), (*known_ids, *added_ids)  # (1 or C, P, D)
        self.target_name = lesson.domains[-1].replace("_", " ")
        self.register_buffer("own_share", torch.zeros((), device=self.clip.device))
        if lesson.unlabelled:
            warn_if_unconfident(self, lesson.unlabelled, self.threshold)

    def precompute(self, names: Names) -> _Fixed:
        indices = None
        if self.class_specific:
            indices = find_class_indices(self.class_ids, names, "a class-specific context").to(self.ctx.device)
        template = self.template.replace("{domain}", escape_braces(self.target_name))
        texts = fill_class_texts(self.context_template, (self.first_name, *names), self.n_ctx)
        return _Fixed(texts, encode_class_texts(self.clip, names, template), indices)

    def prepare(self, names: Names, fixed: _Fixed) -> tuple[Tensor, Tensor]:
        """Encode class texts (C, E), and the rows (P, E) that images read."""
        first, *texts = fixed.texts
        ctx = self.ctx[0] if fixed.context_indices is None else self.ctx[fixed.context_indices]
        rows = self.clip.text([first], Prompt(tokens={0: self.ctx[:1]}), output="rows")[0, 0]
        return self.clip.text(texts, Prompt(tokens={0: ctx[None]}))[0], rows[: self.n_ctx]

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        text, context = prepared
        with torch.no_grad():
            image, patches = cast(VisionTower, self.clip.image).read(inputs, NOTHING, ("pooled", "patches"))
        rows, n = torch.cat([image[:, None], patches], 1), len(image)  # (B, 1 + N, E)
        image = image + self.gamma["image"] * self.decoder(image[:, None], context.expand(n, -1, -1))[:, 0]
        text = text + self.gamma["text"] * self.decoder(text.expand(n, -1, -1), rows)  # (B, C, E)
        return Output(self.clip.logits(image, text), image_features=image, text_features=text)

    def pseudo_labels(self, inputs: Images, fixed: _Fixed, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = zero_shot_probabilities(self.clip, inputs, fixed.zero_shot_text, 1.0)
        if float(self.own_share):
            own = self(inputs, self.prepare((), fixed)).logits if logits is None else logits.detach()
            p = p.lerp(own.float().softmax(-1), self.own_share)
        return p, p.max(-1).values >= self.threshold

    def loss_terms(self, batch: Batch, fixed: _Fixed) -> tuple[LossTerms, Output]:
        prepared, unlabelled, terms, outputs = self.prepare(batch.names, fixed), batch.unlabelled, LossTerms(), []
        if n := len(batch.inputs):
            outputs = self._answer_views(batch, batch.step, prepared)
            terms["ce"] = sum_cross_entropies(outputs, batch.labels).mean(), n
            terms["contrast"] = compute_contrast(self.clip, outputs[0]), n
        if unlabelled is not None:
            n, target = len(unlabelled.inputs), self._answer_views(unlabelled, batch.step, prepared)
            p, is_confident = self.pseudo_labels(unlabelled.inputs, fixed, target[0].logits)
            losses = self.weight * sum_cross_entropies(target, p.argmax(-1)) * is_confident
            terms["target"] = losses.sum() / is_confident.sum().clamp(min=1), float(is_confident.sum())
            terms["target_contrast"] = compute_contrast(self.clip, target[0]), n
            terms["information"] = compute_information_loss(target[0].logits, p.max(-1).values < 1), n
            outputs = [*outputs, *target]
        return terms, outputs[0]

    def _answer_views(self, batch: Batch, step: int, prepared: tuple[Tensor, Tensor]) -> list[Output]:
        return [self(inputs, prepared) for inputs in (batch.inputs, batch.inputs.augment(self.augment, step))]

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.own_share.fill_((epoch + 1) / epochs)
