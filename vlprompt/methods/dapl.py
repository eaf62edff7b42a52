"""DAPL: Ge et al., "Domain Adaptation via Prompt Learning", arXiv:2202.06687.

Every domain has learned tokens of its own after the learned context that all share, and its name in the text; images of
a source are judged by their domain's texts and their labels, those of the target by its texts and by what the frozen
CLIP takes them to be, where it is sure. Tests take the target's texts. Sites: soft tokens at layer 0 of the text tower.

Differs from the authors' code in: a step in which no target image is sure learns from the source alone (theirs divides
by zero); a domain's texts are encoded once a step, the frozen ones once; several sources, each with its own tokens and
texts; a recipe's schedule is stepped per epoch (theirs, made for epochs, at every iteration); the text ends in one
period (theirs in two; the recipe has them); float32; no epoch is chosen by the target's test labels. From the paper in:
the softmax is over one domain's classes, as in the code; over="both" takes those of all domains, as its equation is
read.

Expected (Office-Home, mean of 12 pairs, the authors' README): RN50 74.5 (CLIP 72.0), ViT-B/16 84.4 (CLIP 82.4);
VisDA-2017, mean per class: RN101 86.9 (CLIP 84.4), ViT-B/16 89.8 (CLIP 88.7); all at the best epoch on target labels.
"""

import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Unlabelled
from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output, Terms
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand, holes
from vlprompt.layers.heads import columns
from vlprompt.methods._adaptation import needs_target


class _Fixed(NamedTuple):
    """texts: of each domain, its classes; plain (C, E): of CLIP as it is; chosen: which contexts."""

    texts: list[list[str]]
    plain: Tensor
    chosen: Tensor | None


class DAPL(Method):
    """A context that all domains share, tokens for each domain, and pseudo-labels on the target.

    n_ctx, n_domain: tokens of the context (M1 in the paper) and of a domain (M2); weight: of the target's term;
    threshold: the probability from which on a pseudo-label is learned from (tau); temperature: of the pseudo-labels;
    own: a context for each class, such a prompt knows no new classes; over: the softmax is over the classes of one
    "domain" or over those of "both", all domains of the lesson; text: where context, class and domain stand; template:
    the text that makes the pseudo-labels, None for the dataset's own.
    """

    adapts = True

    def __init__(self, clip: Clip, n_ctx: int = 16, n_domain: int = 16, weight: float = 1.0, threshold: float = 0.5,
                 temperature: float = 1.0, own: bool = False, over: Literal["domain", "both"] = "domain",
                 text: str = "{ctx} {name}, a {domain} image.",
                 template: Template = "a photo of a {name}."):  # fmt: skip
        super().__init__()
        self.clip, self.n_ctx, self.n_domain, self.weight, self.threshold = clip, n_ctx, n_domain, weight, threshold
        self.temperature, self.own, self.over, self.text, self.template = temperature, own, over, text, template
        self.ids: Names = ()
        self.domains: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(weight=0, threshold=0)
        if self.temperature <= 0:
            raise ValueError(f"method.temperature must be above 0, not {self.temperature}")
        needs_target(self, lesson, domains=2)
        known, met = (self.ids, self.domains) if lesson.index else ((), ())
        draw = lambda n: self.clip.text.context(n, None, generator)  # noqa: E731
        if self.own:
            new = [i for i in ids(lesson.train.names) if i not in known]
            old = [*self.ctx.detach()] if known else []
            self.ctx, self.ids = nn.Parameter(torch.stack([*old, *(draw(self.n_ctx) for _ in new)])), (*known, *new)
        elif not lesson.index:
            self.ctx = nn.Parameter(draw(self.n_ctx))  # (P, D), or (C, P, D) of each class
        more = [d for d in dict.fromkeys(lesson.domains) if d not in met]
        old = [*self.domain.detach()] if met else []
        self.domain, self.domains = (
            nn.Parameter(torch.stack([*old, *(draw(self.n_domain) for _ in more)])),
            (*met, *more),
        )
        self.here = lesson.domains  # the last one is the target
        if lesson.unlabelled:
            self._heard(lesson.unlabelled)

    @torch.no_grad()
    def _heard(self, target: Unlabelled) -> None:
        """Warns of a target of which no image is sure."""
        plain = self.fixed(target.names)
        most = max(float(self.guess(batch.inputs, plain)[0].max()) for batch in target.batches(100))
        if most < self.threshold:
            warnings.warn(
                f"no image of the target is learned from: method.threshold is {self.threshold}, and the highest "
                f"probability of a pseudo-label is {most:.6f}; lower the threshold, or method.temperature",
                stacklevel=4,
            )

    def fixed(self, names: Names) -> _Fixed:
        chosen = columns(self.ids, names, "a class-specific context").to(self.ctx.device) if self.own else None
        n = self.n_ctx + self.n_domain
        of = lambda d: self.text.replace("{domain}", d.replace("{", "{{").replace("}", "}}"))  # noqa: E731
        texts = [holes(of(domain), names, n) for domain in self.here]
        return _Fixed(texts, hand(self.clip, names, self.template), chosen)

    def encoded(self, k: int, fixed: _Fixed) -> Tensor:
        """The texts (C, E) of the lesson's k-th domain."""
        ctx = self.ctx if fixed.chosen is None else self.ctx[fixed.chosen]
        tokens = self.domain[self.domains.index(self.here[k])].expand(*ctx.shape[:-2], -1, -1)
        return self.clip.text(fixed.texts[k], Prompt(tokens={0: torch.cat([ctx, tokens], -2)[None]}))[0]

    def prepare(self, names: Names, fixed: _Fixed) -> Tensor:
        return self.encoded(len(self.here) - 1, fixed)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)

    def guess(self, inputs: Images, fixed: _Fixed) -> tuple[Tensor, Tensor]:
        p = (self.clip.logits(self.clip.image(inputs), fixed.plain).float() / self.temperature).softmax(-1)
        return p, p.max(-1).values >= self.threshold

    def judged(self, inputs: Images, domain: Tensor, labels: Tensor, texts: dict[int, Tensor]) -> tuple[Tensor, Output]:
        """The loss (B,) of images of domains (B,), and their answers, each by the texts of its own domain."""
        image, device = self.clip.image(inputs), self.clip.device  # (B, E)
        of, classes = {k: place for place, k in enumerate(texts)}, len(next(iter(texts.values())))
        place = torch.tensor([of[k] for k in domain.tolist()], device=device)
        every = self.clip.logits(image, torch.cat([*texts.values()])).unflatten(1, (len(texts), classes))  # (B, K, C)
        logits, labels = every[torch.arange(len(image), device=device), place], labels.to(device)
        text = texts[int(domain[0])] if len(domain.unique()) == 1 else torch.stack([*texts.values()])[place]
        if self.over == "both":
            loss = F.cross_entropy(every.flatten(1).float(), place * classes + labels, reduction="none")
        else:
            loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return loss, Output(logits, image=image, text=text)

    def terms(self, batch: Batch, fixed: _Fixed) -> tuple[Terms, Output]:
        beside, target, found, out = batch.unlabelled, len(self.here) - 1, Terms(), None
        domain = torch.zeros(len(batch.inputs)).long() if batch.domains is None else batch.domains
        used = {*domain.tolist(), *([] if beside is None else [target])}
        texts = {k: self.encoded(k, fixed) for k in range(target + 1) if k in used or self.over == "both"}
        if len(batch.inputs):
            each, out = self.judged(batch.inputs, domain, batch.labels, texts)
            found["ce"] = each.mean(), len(each)
        if beside is not None:
            p, sure = self.guess(beside.inputs, fixed)
            each, answer = self.judged(beside.inputs, torch.full((len(p),), target), p.argmax(-1), texts)
            found["target"] = self.weight * (each * sure).sum() / max(int(sure.sum()), 1), float(sure.sum())
            out = out or answer
        assert out is not None, "a batch has images"
        return found, out
