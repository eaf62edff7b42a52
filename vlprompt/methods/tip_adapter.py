"""Tip-Adapter: Zhang et al., "Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2207.09519.

The few training images are a cache: their features are keys, their labels values, and the cache's logits of a test
image are added to the zero-shot logits. Nothing is trained; with finetune=True (Tip-Adapter-F) the keys are. Sites:
none.

Differs from the authors' code in: alpha and beta are searched on the lesson's validation images, never on the test; the
last epoch is used (theirs uses the epoch that is best on the test: issue 11 of their repository). From the paper in: a
class that the cache does not have answers by its text.

Expected (few-shot, RN50, mean of 11 sets, 1 2 4 8 16 shots, the authors' log): 62.33 64.62 66.54 68.50 70.32; with
finetune=True 64.60 66.65 69.67 72.45 75.83, selected on the test.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import register_tensor
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.methods import _support as support

TextAndValues = tuple[Tensor, Tensor]


class TipAdapter(support.SupportMethod):
    """A cache of the training images added to zero-shot CLIP.

    Args:
        clip: frozen CLIP.
        alpha: weight of the cache's logits.
        beta: sharpness of the cache's similarities.
        finetune: whether the keys are trained (Tip-Adapter-F).
        augmentations: number of augmentations that a key is the mean of (1 where the data is not augmented).
        search_scale: highest beta and alpha of the grid of 200 x 20 that is searched on validation images after
            training; None: no search.
        logit_scale: of the text logits; default the CLIP's own.
        template: of the class texts; default the dataset's own.
    """

    tensors_by_image = ("keys", "values")
    keys: Tensor
    values: Tensor
    alpha_beta: Tensor

    def __init__(
        self,
        clip: Clip,
        alpha: float = 1.0,
        beta: float = 1.0,
        finetune: bool = False,
        augmentations: int = 10,
        search_scale: tuple[float, float] | None = (7.0, 3.0),
        logit_scale: float | None = None,
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.alpha, self.beta, self.finetune, self.augmentations = clip, alpha, beta, finetune, augmentations
        self.search_scale, self.logit_scale, self.template = search_scale, logit_scale, template
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(augmentations=1)
        train, device = lesson.train, self.clip.device
        known_ids = self.class_ids if lesson.index else ()
        self.class_ids = (*known_ids, *(i for i in class_ids(train.names) if i not in known_ids))
        seed = support.draw_seed(generator)
        keys, labels = support.compute_keys(self.clip, train, self.augmentations, seed)
        values = torch.tensor([self.class_ids.index(i) for i in class_ids(train.names)], device=device)[labels]
        if lesson.index:
            keys, values = torch.cat([self.keys.detach(), keys]), torch.cat([self.values, values])
        register_tensor(self, "keys", keys, self.finetune)  # (M, E)
        self.register_buffer("values", values)  # (M,): indices into self.class_ids
        self.register_buffer("alpha_beta", torch.tensor([self.alpha, self.beta], device=device))

    def precompute(self, names: Names) -> TextAndValues:
        text = encode_class_texts(self.clip, names, self.template, normalize=True)  # (C, E)
        columns = {i: k for k, i in enumerate(class_ids(names))}
        column_of_class = torch.tensor([columns.get(i, len(names)) for i in self.class_ids], device=text.device)
        one_hot = F.one_hot(column_of_class[self.values], len(names) + 1)
        return text, one_hot[:, :-1].to(text.dtype)  # (M, C)

    def forward(self, inputs: Images, prepared: TextAndValues) -> Output:
        text, values = prepared
        image = self.clip.image(inputs)  # (B, E)
        alpha, beta = self.alpha_beta
        cache_logits = (-beta * (1 - self.clip.unit(image) @ self.keys.T)).exp() @ values  # (B, C)
        logits = self.clip.logits(image, text, self.logit_scale) + alpha * cache_logits
        return Output(logits, image_features=image, text_features=text)

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Choose alpha and beta on the validation images, the first of a tie."""
        if self.search_scale is None or lesson.val is None or not len(lesson.val):
            return
        text = self.precompute(lesson.val.names)[0]
        x, labels = support.compute_features(self.clip, lesson.val)
        known_ids = class_ids(lesson.val.names)
        columns = torch.tensor([known_ids.index(i) if i in known_ids else -1 for i in self.class_ids], device=x.device)
        grid = support.build_grid((0.1, 0.1), self.search_scale, (200, 20))
        text_logits = self.clip.logits(x, text, self.logit_scale)
        weights = torch.ones(1, len(self.keys), device=x.device)
        options = columns[self.values], weights, labels, grid
        beta, alpha, _ = support.search_cache(text_logits, x @ self.keys.T, *options)
        self.alpha_beta[:] = torch.tensor([alpha, beta])
