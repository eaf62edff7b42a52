"""DeCoOp: Zhou et al., "DeCoOp: Robust Prompt Tuning with Out-of-Distribution Detection", ICML 2024, arXiv:2406.00345.

K detectors, each of which takes a part of the trained classes for unknown, learn to separate known from new classes;
then K classifiers learn, each from the images that its detector takes for known, and stay near zero-shot CLIP on the
others. An image that no detector takes for known is answered by zero-shot CLIP. Sites: soft tokens at layer 0 of the
text tower, K contexts for detectors and K for classifiers.

Differs from the authors' code in: a batch without images inside or outside a detector leaves that term out (theirs is
NaN); the first `share` of the steps are the detectors', at one learning rate (in theirs it swings in the second stage,
as its cosine of 100 epochs is stepped per iteration); shots are CoOp's (theirs draw anew for every class); float32.
From the paper in: the same. An answer among some classes sees the names of these and of the trained ones.

Expected: no number of the paper that could be checked.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, LabelLoss, Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts
from vlprompt.methods import _detectors
from vlprompt.methods._detectors import FixedTexts, join_names


class DeCoOp(Method):
    """Detectors of new classes and classifiers, each a context of its own.

    Args:
        clip: frozen CLIP.
        n_ctx: tokens of each context.
        n_detectors: detectors, and classifiers (K).
        margin: by which a detector's entropy is to be higher outside of its classes; None for ln n minus the entropy of
            a probability of 0.6 for one of its n classes.
        share: of the steps in which the detectors learn; in the others the classifiers do.
        template: of the zero-shot texts, whose logits are averaged.
    """

    needs_single_labels = True
    needs_whole_batch = True
    depends_on_class_set = True
    parameters_without_grad = ("detector_ctx", "classifier_ctx")  # in the other stage
    threshold: Tensor
    is_second: Tensor

    def __init__(
        self,
        clip: Clip,
        n_ctx: int = 16,
        n_detectors: int = 3,
        margin: float | None = 0.4,
        share: float = 1 / 3,
        template: TemplateChoice = "imagenet-7",
    ):
        super().__init__()
        self.clip, self.n_ctx, self.n_detectors, self.margin = clip, n_ctx, n_detectors, margin
        self.share, self.template = share, template
        self.trained_names, self.train_split = Names(), Split((), (), ())

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_detectors=2, share=0)
        self.require_at_most(share=1)
        device, self.train_split = self.clip.device, lesson.train
        self.trained_names = join_names(self.trained_names if lesson.index else (), lesson.train.names)
        self.register_buffer("threshold", torch.zeros((), device=device))
        self.register_buffer("is_second", torch.tensor(False, device=device))
        if not lesson.index:
            contexts = [self.clip.text.init_context(self.n_ctx, None, generator) for _ in range(2 * self.n_detectors)]
            self.detector_ctx = nn.Parameter(torch.stack(contexts[: self.n_detectors]))  # (K, P, D)
            self.classifier_ctx = nn.Parameter(torch.stack(contexts[self.n_detectors :]))

    def precompute(self, names: Names) -> FixedTexts:
        all_names = join_names(self.trained_names, names)
        places, texts = class_ids(all_names), fill_class_texts("{ctx} {name}.", all_names, self.n_ctx)
        zero_shot = encode_class_texts(self.clip, names, self.template, normalize=True)
        return FixedTexts(texts, [places.index(i) for i in class_ids(names)], zero_shot)

    def list_own(self, n_names: int) -> Tensor:
        return _detectors.list_own_names(self.n_detectors, len(self.trained_names), n_names).to(self.clip.device)

    def compute_logits(self, image: Tensor, texts: list[str], ctx: Tensor) -> Tensor:
        """Return the logits (K, B, U) of images (B, E) by each context."""
        text = self.clip.text(texts, Prompt(tokens={0: ctx}))  # (K, U, E)
        return self.clip.scale * self.clip.unit(image) @ self.clip.unit(text).mT

    def compute_zero_shot(self, image: Tensor, fixed: FixedTexts) -> Tensor:
        return self.clip.scale * self.clip.unit(image) @ fixed.zero_shot.T  # (B, C)

    def score(self, image: Tensor, texts: list[str]) -> Tensor:
        """Return how well each detector knows images (K, B): its largest probability, among all names, of its own."""
        p = self.compute_logits(image, texts, self.detector_ctx).float().softmax(-1)
        return p.masked_fill(~self.list_own(len(texts))[:, None], 0.0).amax(-1)

    def forward(self, inputs: Images, prepared: FixedTexts) -> Output:
        image, (texts, asked, _) = self.clip.image(inputs), prepared
        is_known = self.score(image, texts) >= self.threshold  # (K, B)
        logits = self.compute_logits(image, [texts[i] for i in asked], self.classifier_ctx)
        zero_shot, mixed = self.compute_zero_shot(image, prepared), (logits * is_known[..., None]).mean(0)
        mixed = torch.where(is_known.any(0)[:, None], mixed, zero_shot)
        return Output(mixed, image_features=image)

    def loss_terms(self, batch: Batch, fixed: FixedTexts) -> tuple[LossTerms, Output]:
        image, labels, loss = self.clip.image(batch.inputs), batch.labels.to(self.clip.device), batch.label_loss
        zero_shot = self.compute_zero_shot(image, fixed).float()
        if self.is_second:
            logits = self.compute_logits(image, [fixed.texts[i] for i in fixed.asked], self.classifier_ctx).float()
            with torch.no_grad():
                is_known = self.score(image, fixed.texts) >= self.threshold
            pairs = zip(logits, is_known, strict=True)
            terms = [_detectors.compute_classifier_terms(loss, rows, labels, known, zero_shot) for rows, known in pairs]
        else:
            texts = fixed.texts[: len(self.trained_names)]
            labels = torch.tensor(fixed.asked, device=image.device)[labels]
            logits, own = self.compute_logits(image, texts, self.detector_ctx).float(), self.list_own(len(texts))
            pairs = enumerate(zip(logits, own, strict=True))
            terms = [self._detect(loss, rows[:, columns], columns, labels, i) for i, (rows, columns) in pairs]
        return {name: (mean, len(labels)) for name, mean in _detectors.average_terms(terms).items()}, Output(zero_shot)

    def _detect(self, loss: LabelLoss, logits: Tensor, own: Tensor, labels: Tensor, i: int) -> dict[str, Tensor]:
        columns, is_inside = (own.cumsum(0) - 1)[labels], labels % self.n_detectors != i
        return _detectors.compute_detector_terms(loss, logits, columns, is_inside, self.margin)

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        return [self.detector_ctx] if self.is_second else [self.classifier_ctx]

    def schedule_starts(self, steps: int) -> Sequence[int]:
        return 0, max(1, int(self.share * steps))

    def end_step(self, step: int, steps: int) -> None:
        """Choose the threshold and begin the second stage, if any steps are left for it."""
        if step == self.schedule_starts(steps)[1] and step < steps:
            self.choose_threshold()
            self.is_second.fill_(True)

    @torch.no_grad()
    def choose_threshold(self) -> None:
        """Take the smallest of Otsu's thresholds of the detectors' scores of the training images."""
        texts, batches = self.precompute(self.trained_names).texts, self.train_split.batches(100)
        scores = torch.cat([self.score(self.clip.image(batch.inputs), texts) for batch in batches], 1)
        self.threshold.fill_(min(map(_detectors.find_otsu_threshold, scores)))
