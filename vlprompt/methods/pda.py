"""PDA: Bai et al., "Prompt-based Distribution Alignment for Unsupervised Domain Adaptation", 2023, arXiv:2312.09553.

Tokens of both towers learn from the source's labels and from confident pseudo-labels of the target. In a second branch
an image attends to the most confident features of each class in either domain, and its logits are added.
Sites: soft tokens at layers 0 to depth - 1 of both towers.

Differs from the authors' code in: a bank sees all images as a test does (theirs one shuffled pass of augmented ones,
without the last batch, that stops once every slot is above 0.99); widths come from the towers; no epoch is chosen by
the target's test labels; float32. As there, the context starts at random, whatever words its settings announce.

Expected (ViT-B/16, authors' README, epoch chosen on target labels): Office-Home 85.7, Office-31 91.2, VisDA-2017 89.7.
"""

from copy import deepcopy
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._adaptation import require_target, warn_if_unconfident
from vlprompt.methods._feature_banks import BankAttention, FeatureBank

ANSWER_WEIGHT = 0.5  # of the second branch, which weighs 1 in training
FixedTexts: TypeAlias = tuple[list[str], Tensor]  # texts with soft tokens; features (C, E) of the frozen CLIP's


class PDA(Method):
    """Tokens in both towers, and attention to the most confident features of both domains.

    Args:
        clip: frozen CLIP.
        n_ctx: tokens at each layer.
        depth: number of layers that have them, clipped to the shallower tower's depth.
        has_image_tokens: whether the image tower has tokens too.
        coupled_depth: number of layers whose image tokens are linear maps of the text's; later ones have their own.
        bank_size: slots of each class (K).
        bank_weight: of the logits of each bank (beta).
        threshold: least probability of a pseudo-label that is trained on (tau).
        zero_shot_epochs: number of epochs after which the prompted CLIP labels instead of the frozen one; None: never.
        source_epochs: number of epochs at the start that learn from the source alone.
        context_template: where context and class name stand; the words around them stay frozen.
        template: class texts of banks and pseudo-labels; None: the dataset's own.
    """

    needs_unlabelled, needs_whole_batch = True, True  # the batch norms of the attention

    def __init__(self, clip: Clip, n_ctx: int = 2, depth: int = 12, has_image_tokens: bool = True,
                 coupled_depth: int = 7, bank_size: int = 5, bank_weight: float = 0.1, threshold: float = 0.8,
                 zero_shot_epochs: int | None = None, source_epochs: int = 0,
                 context_template: str = "{ctx} of a {name}.",
                 template: TemplateChoice = "a photo of a {name}."):  # fmt: skip
        super().__init__()
        self.clip, self.n_ctx, self.depth, self.has_image_tokens = clip, n_ctx, depth, has_image_tokens
        self.coupled_depth, self.bank_size, self.bank_weight = coupled_depth, bank_size, bank_weight
        self.threshold, self.zero_shot_epochs, self.source_epochs = threshold, zero_shot_epochs, source_epochs
        self.context_template, self.template = context_template, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(coupled_depth=1, bank_size=1, bank_weight=0, threshold=0, source_epochs=0)
        require_target(self, lesson, min_domains=2)
        if not lesson.index:
            self._build_tokens(generator)
            self.attention = BankAttention(self.clip.feature_dim, generator, self.clip.device)
            bank = FeatureBank(self.bank_size, self.clip.feature_dim, self.clip.device)
            self.source_bank, self.target_bank = bank, deepcopy(bank)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))  # of this lesson
        text = encode_class_texts(self.clip, lesson.train.names, self.template)
        for bank, images in ((self.source_bank, lesson.train), (self.target_bank, lesson.unlabelled)):
            bank.add_classes(lesson.train.names)
            if images:
                bank.add_images(images, self.clip, text)
        if lesson.unlabelled:
            warn_if_unconfident(self, lesson.unlabelled, self.threshold)

    def _build_tokens(self, generator: torch.Generator) -> None:
        text, image, device = self.clip.text, self.clip.image, self.clip.device
        towers = (text, image) if self.has_image_tokens else (text,)
        for tower in towers if self.has_image_tokens or self.depth > 1 else ():
            tower.require_blocks()
        depth = self.clip_to_depth("depth", min(tower.depth for tower in towers))
        self.ctx = nn.ParameterList([text.init_context(self.n_ctx, None, generator) for _ in range(depth)])
        n_coupled = min(self.coupled_depth, n_image_layers := depth if self.has_image_tokens else 0)
        maps = [make_linear(text.dim, image.dim, generator, device) for _ in range(min(n_coupled, 2))]
        self.projections = nn.ModuleList([*maps, *(deepcopy(maps[1]) for _ in range(n_coupled - 2))])
        own = torch.randn(n_image_layers - n_coupled, self.n_ctx, image.dim, generator=generator) * 0.02
        self.image_ctx = nn.ParameterList([*own.to(device)])

    def precompute(self, names: Names) -> FixedTexts:
        texts = fill_class_texts(self.context_template, names, self.n_ctx)
        return texts, encode_class_texts(self.clip, names, self.template)

    def prepare(self, names: Names, fixed: FixedTexts) -> Tensor:
        return self.clip.text(fixed[0], Prompt(tokens={i: c[None] for i, c in enumerate(self.ctx)}))[0]  # (C, E)

    def encode_images(self, inputs: Images) -> Tensor:
        coupled = [project(ctx) for project, ctx in zip(self.projections, self.ctx, strict=False)]
        prompt = Prompt(tokens={i: c[None] for i, c in enumerate([*coupled, *self.image_ctx])})
        return self.clip.image(inputs, prompt)  # (B, E)

    def compute_bank_logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Compute the logits (B, C) of what image features (B, E) read from the banks."""
        aligned = self.attention(image, [self.source_bank.class_features(), self.target_bank.class_features()])
        return self.bank_weight * torch.stack([self.clip.logits(x, text, self.clip.scale) for x in aligned]).sum(0)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.encode_images(inputs)
        logits = self.clip.logits(image, prepared) + ANSWER_WEIGHT * self.compute_bank_logits(image, prepared)
        return Output(logits, image_features=image, text_features=prepared)

    @torch.no_grad()
    def pseudo_labels(self, inputs: Images, fixed: FixedTexts) -> tuple[Tensor, Tensor]:
        if self.zero_shot_epochs is None or self.epoch < self.zero_shot_epochs:
            image, text = self.clip.image(inputs), fixed[1]
        else:
            image, text = self.encode_images(inputs), self.prepare((), fixed)
        p = self.clip.logits(image, text).float().softmax(-1)
        return p, p.max(-1).values >= self.threshold

    def loss_terms(self, batch: Batch, fixed: FixedTexts) -> tuple[LossTerms, Output]:
        unlabelled, text, terms, outputs = batch.unlabelled, self.prepare(batch.names, fixed), LossTerms(), []
        if len(batch.inputs):
            losses, answer = self._compute_losses(batch.inputs, batch.labels, text)
            terms["source"], outputs = (losses.mean(), len(losses)), [answer]
        if unlabelled is not None:
            p, is_confident = self.pseudo_labels(unlabelled.inputs, fixed)
            losses, answer = self._compute_losses(unlabelled.inputs, p.argmax(-1), text)
            is_used = is_confident & (self.epoch >= self.source_epochs)
            terms["target"] = (losses * is_used).sum() / is_used.sum().clamp(min=1), float(is_used.sum())
            outputs = [*outputs, answer]
        return terms, outputs[0]

    def _compute_losses(self, inputs: Images, labels: Tensor, text: Tensor) -> tuple[Tensor, Output]:
        """Compute the losses (B,) of both branches, and the answer."""
        image = self.encode_images(inputs)
        logits, bank_logits = self.clip.logits(image, text), self.compute_bank_logits(image, text)
        losses = [F.cross_entropy(x.float(), labels.to(x.device), reduction="none") for x in (logits, bank_logits)]
        return losses[0] + losses[1], Output(logits + ANSWER_WEIGHT * bank_logits, 0.0, image, text)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.epoch += 1
