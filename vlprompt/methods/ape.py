"""APE: Zhu et al., "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement", ICCV 2023.

arXiv:2304.01195. A cache of the training images, as in Tip-Adapter, compared in the channels that differ most between
classes; an image counts the more, the less its zero-shot prediction agrees with its label. With finetune=True (APE-T)
one residual per class moves its keys and its text in these channels, and each key has a weight. Sites: none.

Differs from the authors' code in: an image belongs to the class of its label (theirs takes blocks of images, wrong
where they are not ordered by label); APE and APE-T choose their channels apart (theirs share a file); nothing is chosen
on the test (theirs on ImageNet's); no sentences of GPT-3. From the paper in: a class without images answers by its
text; in a stream the channels are those of the first lesson.

Expected (few-shot, RN50, mean of 11 sets, 1 2 4 8 16 shots, the authors' notebook, with sentences of GPT-3): 65.13
67.19 69.47 71.58 73.36; with finetune=True 67.23 69.43 72.25 74.47 77.28.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import register_tensor
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.feature_statistics import compute_channel_similarity, compute_divergence
from vlprompt.methods import _support as support

TRAINED_CRITERION = (0.2, 0.8)  # of APE-T, whose similarity is that of the texts alone
Fixed = tuple[Tensor, Tensor, Tensor]  # texts (C, E), their rows among the known classes (C,), labels of keys (M, C)
Cache = tuple[Tensor, Tensor, Tensor]  # texts (C, E), keys (M, E or Q), values (M, C)


class APE(support.SupportMethod):
    """A cache of the training images in chosen channels, added to zero-shot CLIP.

    Args:
        clip: frozen CLIP.
        finetune: whether residuals and weights of keys are trained (APE-T).
        alpha: weight of the cache's logits.
        beta: sharpness of the cache's similarities.
        gamma: how much more an image counts that zero-shot CLIP gets wrong (without finetune).
        channels: fraction of the channels that is chosen (Q), without finetune and with it.
        criterion: weights of the similarity of classes and of the variance of texts in the choice (without finetune).
        augmentations: number of augmentations that a key is the mean of (1 where the data is not augmented).
        search_scale: highest beta, alpha and gamma of the grid that is searched on validation images; None: no search.
        search_steps: its numbers of values.
        template: of the class texts; default the dataset's own.
    """

    tensors_by_image = ("keys", "values", "divergence", "value_weights")
    keys: Tensor
    values: Tensor
    divergence: Tensor
    residual: Tensor
    value_weights: Tensor
    chosen: Tensor
    alpha_beta_gamma: Tensor

    def __init__(
        self,
        clip: Clip,
        finetune: bool = False,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        channels: tuple[float, float] = (0.75, 0.75),
        criterion: tuple[float, float] = (0.5, 0.5),
        augmentations: int = 10,
        search_scale: tuple[float, float, float] | None = (7.0, 7.0, 1.0),
        search_steps: tuple[int, int, int] = (200, 20, 20),
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.finetune, self.alpha, self.beta, self.gamma = clip, finetune, alpha, beta, gamma
        self.channels, self.criterion, self.augmentations = channels, criterion, augmentations
        self.search_scale, self.search_steps, self.template = search_scale, search_steps, template

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(augmentations=1)
        train, known, device = lesson.train, self.names if lesson.index else (), self.clip.device
        self.names, seed = support.extend_names(known, train.names), support.draw_seed(generator)
        keys, labels = support.compute_keys(self.clip, train, self.augmentations, seed)
        text = self.encode_texts(train.names)
        chosen = self._choose_channels(text, keys, labels) if not lesson.index else self.chosen
        divergence = compute_divergence(text[:, chosen], keys[:, chosen], labels)
        values = support.find_rows(self.names, train.names, device)[labels]
        residual = torch.zeros(len(self.names) - len(known), len(chosen), device=device)
        parts = {"keys": keys, "values": values, "divergence": divergence, "residual": residual}
        parts["value_weights"] = torch.ones(len(keys), 1, device=device)
        for name, part in parts.items():
            tensor = torch.cat([getattr(self, name).detach(), part]) if lesson.index else part
            register_tensor(self, name, tensor, self.finetune and name in ("residual", "value_weights"))
        self.register_buffer("chosen", chosen)  # (Q,)
        self.register_buffer("alpha_beta_gamma", torch.tensor([self.alpha, self.beta, self.gamma], device=device))

    def _choose_channels(self, text: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        fraction, (similarity, variance) = self.channels[self.finetune], self.criterion
        if not 0 < fraction <= 1:
            raise ValueError(f"method.channels: expected fractions above 0, at most 1, got {fraction}. Set such.")
        if self.finetune:
            keys, labels, (similarity, variance) = keys[:0], labels[:0], TRAINED_CRITERION
        if len(text) < 2:
            raise ValueError("lesson: expected at least two classes to choose channels by, got one. Add another class.")
        score = variance * text.double().var(0) - similarity * compute_channel_similarity(text, keys, labels)
        return score.topk(max(1, round(fraction * len(score)))).indices

    def precompute(self, names: Names) -> Fixed:
        rows = support.find_rows(self.names, names, self.values.device)
        column_of_class = support.find_rows(names, self.names, rows.device)
        one_hot = F.one_hot(column_of_class[self.values] % (len(names) + 1), len(names) + 1)  # -1: the last column
        return self.encode_texts(names), rows, one_hot[:, :-1].to(self.keys.dtype)

    def prepare(self, names: Names, fixed: Fixed) -> Cache:
        text, rows, labels = fixed
        if not self.finetune:
            weights = (self.alpha_beta_gamma[2] * self.divergence).exp()
            return text, self.clip.unit(self.keys[:, self.chosen]), labels * weights[:, None]
        moved_text = text.index_add(1, self.chosen, F.pad(self.residual, (0, 0, 0, 1))[rows])  # -1: the row of zeros
        keys = self.keys.index_add(1, self.chosen, self.residual[self.values])
        return moved_text, keys, labels * self.value_weights

    def _compare(self, image: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Return the text logits (B, C), and the cosines (B, M) to the keys."""
        text, keys, _ = cache
        x = self.clip.unit(image)
        query = x if self.finetune else self.clip.unit(x[:, self.chosen])
        return self.clip.scale * x @ text.T + self.clip.bias, query @ keys.T

    def forward(self, inputs: Images, prepared: Cache) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        text_logits, similarity = self._compare(image, prepared)
        alpha, beta, _ = self.alpha_beta_gamma
        logits = text_logits + alpha * ((-beta * (1 - similarity)).exp() @ prepared[2])
        return Output(logits, image_features=image, text_features=prepared[0])

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Choose beta, alpha and gamma on the validation images, the first of a tie; gamma changes fastest."""
        if self.search_scale is None or lesson.val is None or not len(lesson.val):
            return
        x, labels = support.compute_features(self.clip, lesson.val)
        cache = self.prepare(lesson.val.names, self.precompute(lesson.val.names))
        betas, alphas, gammas = support.build_grid((0.1, 0.1, 0.0), self.search_scale, self.search_steps)
        weights = self.value_weights.T if self.finetune else (gammas.to(x.device)[:, None] * self.divergence).exp()
        columns = support.find_rows(lesson.val.names, self.names, x.device)[self.values]
        beta, alpha, i = support.search_cache(*self._compare(x, cache), columns, weights, labels, (betas, alphas))
        self.alpha_beta_gamma[:] = torch.tensor([alpha, beta, float(gammas[i])])
