"""DAPL: Ge et al., "Domain Adaptation via Prompt Learning", arXiv:2202.06687.

Every domain has learned tokens of its own after a learned context shared by all, and its name in the text; images of a
source are classified by their domain's texts and trained with their labels, those of the target by its texts and with
confident pseudo-labels of the frozen CLIP. Tests take the target's texts. Sites: tokens at layer 0 of the text tower.

Differs from the authors' code in: a step without a confident target image learns from the source alone (theirs divides
by zero); a domain's texts are encoded once a step, the frozen ones once; several sources, each with its own tokens and
texts; a recipe's schedule is stepped per epoch (theirs, written for epochs, at every iteration); the text ends in one
period (theirs in two; the recipe has them); float32; no epoch is chosen by the target's test labels. From the paper in:
the softmax is over one domain's classes, as in the code; softmax_over="all" takes all domains', as in its equation.

Expected (Office-Home, mean of 12 pairs, the authors' README): RN50 74.5 (CLIP 72.0), ViT-B/16 84.4 (CLIP 82.4);
VisDA-2017, mean per class: RN101 86.9 (CLIP 84.4), ViT-B/16 89.8 (CLIP 88.7); all at the best epoch on target labels.
"""

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, LabelLoss
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import escape_braces
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts
from vlprompt.layers.heads import find_class_indices
from vlprompt.methods._adaptation import require_positive, require_target, warn_if_unconfident, zero_shot_probabilities


class _FixedTexts(NamedTuple):
    domain_texts: list[list[str]]  # of each domain, its classes
    zero_shot_text: Tensor  # (C, E)
    context_indices: Tensor | None  # of class-specific contexts


class DAPL(Method):
    """A shared context, tokens of each domain, and pseudo-labels on the target.

    Args:
        clip: frozen CLIP.
        n_ctx, n_domain_ctx: tokens of the context (M1 in the paper) and of a domain (M2).
        weight: of the target's loss.
        threshold: least probability of a pseudo-label that is trained on (tau).
        temperature: of the pseudo-labels.
        class_specific: whether each class has its own context; such a prompt cannot classify new classes.
        softmax_over: the classes of one "domain", or of "all" domains of the lesson.
        context_template: where context, class name and domain stand.
        template: of the pseudo-labelling class texts; None: the dataset's own.
    """

    needs_unlabelled = True

    def __init__(self, clip: Clip, n_ctx: int = 16, n_domain_ctx: int = 16, weight: float = 1.0, threshold: float = 0.5,
                 temperature: float = 1.0, class_specific: bool = False,
                 softmax_over: Literal["domain", "all"] = "domain",
                 context_template: str = "{ctx} {name}, a {domain} image.",
                 template: TemplateChoice = "a photo of a {name}."):  # fmt: skip
        super().__init__()
        self.clip, self.n_ctx, self.n_domain_ctx, self.weight = clip, n_ctx, n_domain_ctx, weight
        self.threshold, self.temperature, self.class_specific = threshold, temperature, class_specific
        self.softmax_over, self.context_template, self.template = softmax_over, context_template, template
        self.class_ids, self.domain_names = (), ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(weight=0, threshold=0)
        require_positive(self, "temperature")
        require_target(self, lesson, min_domains=2)
        known_ids, known_domains = (self.class_ids, self.domain_names) if lesson.index else ((), ())
        draw = partial(self.clip.text.init_context, generator=generator)
        if self.class_specific:
            added_ids = [i for i in class_ids(lesson.train.names) if i not in known_ids]
            earlier = [*self.ctx.detach()] if known_ids else []
            self.ctx = nn.Parameter(torch.stack([*earlier, *(draw(self.n_ctx) for _ in added_ids)]))  # (C, P, D)
            self.class_ids = (*known_ids, *added_ids)
        elif not lesson.index:
            self.ctx = nn.Parameter(draw(self.n_ctx))  # (P, D)
        added_domains = [d for d in dict.fromkeys(lesson.domains) if d not in known_domains]
        earlier = [*self.domain_ctx.detach()] if known_domains else []
        self.domain_ctx = nn.Parameter(torch.stack([*earlier, *(draw(self.n_domain_ctx) for _ in added_domains)]))
        self.domain_names = (*known_domains, *added_domains)
        self.lesson_domains = lesson.domains  # the last one is the target
        if lesson.unlabelled:
            warn_if_unconfident(self, lesson.unlabelled, self.threshold)

    def precompute(self, names: Names) -> _FixedTexts:
        indices, n_tokens = None, self.n_ctx + self.n_domain_ctx
        if self.class_specific:
            indices = find_class_indices(self.class_ids, names, "a class-specific context").to(self.ctx.device)
        templates = [self.context_template.replace("{domain}", escape_braces(d)) for d in self.lesson_domains]
        texts = [fill_class_texts(template, names, n_tokens) for template in templates]
        return _FixedTexts(texts, encode_class_texts(self.clip, names, self.template), indices)

    def encode_domain(self, domain_index: int, fixed: _FixedTexts) -> Tensor:
        """Encode the class texts (C, E) of a domain of the lesson."""
        ctx = self.ctx if fixed.context_indices is None else self.ctx[fixed.context_indices]
        domain_ctx = self.domain_ctx[self.domain_names.index(self.lesson_domains[domain_index])]
        tokens = torch.cat([ctx, domain_ctx.expand(*ctx.shape[:-2], -1, -1)], -2)
        return self.clip.text(fixed.domain_texts[domain_index], Prompt(tokens={0: tokens[None]}))[0]

    def prepare(self, names: Names, fixed: _FixedTexts) -> Tensor:
        return self.encode_domain(len(self.lesson_domains) - 1, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)

    def pseudo_labels(self, inputs: Images, fixed: _FixedTexts) -> tuple[Tensor, Tensor]:
        p = zero_shot_probabilities(self.clip, inputs, fixed.zero_shot_text, self.temperature)
        return p, p.max(-1).values >= self.threshold

    def compute_losses(
        self, inputs: Images, domains: Tensor, labels: Tensor, texts: dict[int, Tensor], label_loss: LabelLoss
    ) -> tuple[Tensor, Output]:
        """Classify images by the texts of their own domains (B,), and compute their losses (B,)."""
        image, device = self.clip.image(inputs), self.clip.device  # (B, E)
        positions, n_classes = {k: i for i, k in enumerate(texts)}, len(next(iter(texts.values())))
        k = torch.tensor([positions[domain] for domain in domains.tolist()], device=device)
        all_logits = self.clip.logits(image, torch.cat([*texts.values()])).unflatten(1, (len(texts), n_classes))
        logits, labels = all_logits[torch.arange(len(image), device=device), k], labels.to(device)  # of (B, K, C)
        text = texts[int(domains[0])] if len(domains.unique()) == 1 else torch.stack([*texts.values()])[k]
        rows = (all_logits.flatten(1), k * n_classes + labels) if self.softmax_over == "all" else (logits, labels)
        loss = label_loss(rows[0].float(), rows[1], reduction="none")
        return loss, Output(logits, image_features=image, text_features=text)

    def loss_terms(self, batch: Batch, fixed: _FixedTexts) -> tuple[LossTerms, Output]:
        unlabelled, target, terms, out = batch.unlabelled, len(self.lesson_domains) - 1, LossTerms(), None
        domains = torch.zeros(len(batch.inputs)).long() if batch.domains is None else batch.domains
        used = {*domains.tolist(), *([] if unlabelled is None else [target])}
        texts = {k: self.encode_domain(k, fixed) for k in range(target + 1) if k in used or self.softmax_over == "all"}
        if len(batch.inputs):
            losses, out = self.compute_losses(batch.inputs, domains, batch.labels, texts, batch.label_loss)
            terms["ce"] = losses.mean(), len(losses)
        if unlabelled is not None:
            p, is_confident = self.pseudo_labels(unlabelled.inputs, fixed)
            target_domain = torch.full((len(p),), target)
            losses, target_out = self.compute_losses(
                unlabelled.inputs, target_domain, p.argmax(-1), texts, batch.label_loss
            )
            n = int(is_confident.sum())
            terms["target"] = self.weight * (losses * is_confident).sum() / max(n, 1), float(n)
            out = out or target_out
        assert out is not None, "a batch has images"
        return terms, out
