"""LP++: Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, arXiv:2404.02285.

The weights of a linear probe are the images' w_c and b_c and a learned multiple alpha_c of the class text, trained on
the features of all images at once, with step sizes that follow from the features instead of a search. Sites: none.

Differs from the authors' code in: features are float32 (theirs float16); validation images are as many as the task has
(theirs: as many as shots). As there, and unlike a plain reading of the paper, alpha's gradient is the sum over all
epochs so far. From the paper in: a class without images answers by alpha's mean times its text; a later lesson of a
stream trains the rows of its own classes anew.

Expected (few-shot, ViT-B/16, mean of 11 sets, 1 2 4 8 16 shots, a re-run in CLIP-SVD's repository): 70.35 72.93 75.77
77.94 80.32.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.methods import _support as support

MOMENTUM, ALPHA_START, ALPHA_PERIOD = 0.9, 250.0, 10  # of all steps; alpha's first value; epochs between its steps


class _Probe(NamedTuple):
    """Weights (C, E), biases (C,) and multiples of the class texts (C,), or their gradients."""

    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def answer(self, x: Tensor, cosines: Tensor) -> Tensor:
        """Compute the logits (N, C) of features (N, E) and their cosines (N, C) to the class texts."""
        return torch.addmm(self.bias, x, self.weight.T).addcmul_(self.alpha, cosines)


class LPPlus(support.SupportMethod):
    """A linear probe that blends weights of the images with the class texts.

    Args:
        clip: frozen CLIP.
        epochs: steps on all images at once; the probe after the best of them on the validation images is used, after
            the last one without any.
        template: of the class texts; default the dataset's own.
    """

    weight: Tensor
    bias: Tensor
    alpha: Tensor
    has_images: Tensor

    def __init__(self, clip: Clip, epochs: int = 300, template: TemplateChoice = None):
        super().__init__()
        self.clip, self.epochs, self.template = clip, epochs, template

    @torch.no_grad()
    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(epochs=1)
        known, names, width = self.names if lesson.index else (), lesson.train.names, self.clip.feature_dim
        self.names = support.extend_names(known, names)
        x, labels = support.compute_features(self.clip, lesson.train, 1, support.draw_seed(generator))
        shapes = {"weight": (width,), "bias": (), "alpha": ()}
        state = {name: x.new_zeros(len(self.names), *shape) for name, shape in shapes.items()}
        state["has_images"] = torch.zeros(len(self.names), dtype=torch.bool, device=x.device)
        for name, tensor in state.items():
            if known:
                tensor[: len(known)] = getattr(self, name)
            if name in shapes:
                setattr(self, name, nn.Parameter(tensor, requires_grad=False))
        self.register_buffer("has_images", state["has_images"])
        bias = draw_uniform((len(names),), -(width**-0.5), width**-0.5, generator).to(x.device)
        if not len(x):
            return
        classes = labels.unique()  # those that have images
        rows, text = support.find_rows(self.names, names, x.device)[classes], self.encode_texts(names)[classes]
        probe = self._train(lesson, classes, x, torch.searchsorted(classes, labels), text, bias[classes])
        self.has_images[rows] = True
        for name, value in probe._asdict().items():
            getattr(self, name)[rows] = value

    def _train(self, lesson: Lesson, classes: Tensor, x: Tensor, labels: Tensor, text: Tensor, bias: Tensor) -> _Probe:
        """Return the probe of the best epoch on the validation images of these classes, the last of a tie."""
        epochs = iter_epochs(build_probe(x, labels, text, bias), x, x @ text.T, labels, self.epochs)
        val_x, val_labels = x[:0], labels[:0]
        if lesson.val is not None:
            val_x, val_labels = support.compute_features(self.clip, lesson.val)
            val_labels = support.find_rows(lesson.train.names, lesson.val.names, x.device)[val_labels]
            val_x, val_labels = (part[torch.isin(val_labels, classes)] for part in (val_x, val_labels))
            val_labels = torch.searchsorted(classes, val_labels)
        cosines, best, chosen = val_x @ text.T, -1, next(epochs)
        for probe in itertools.chain([chosen], epochs):
            if (n_correct := int(support.count_correct(probe.answer(val_x, cosines), val_labels))) >= best:
                best, chosen = n_correct, probe
        return chosen

    def precompute(self, names: Names) -> tuple[Tensor, _Probe]:
        text, rows = self.encode_texts(names), support.find_rows(self.names, names, self.alpha.device)
        is_known = (rows >= 0) & F.pad(self.has_images, (0, 1))[rows]
        mean_alpha = self.alpha[self.has_images].mean().nan_to_num(self.clip.scale)
        weight = F.pad(self.weight, (0, 0, 0, 1))[rows]  # -1: a row of zeros
        bias, alpha = (F.pad(x, (0, 1))[rows] for x in (self.bias, self.alpha))
        return text, _Probe(weight, bias, torch.where(is_known, alpha, mean_alpha))

    def forward(self, inputs: Images, prepared: tuple[Tensor, _Probe]) -> Output:
        text, probe = prepared
        image = self.clip.image(inputs)  # (B, E)
        x = self.clip.unit(image)
        return Output(probe.answer(x, x @ text.T), image_features=image, text_features=text)


def build_probe(x: Tensor, labels: Tensor, text: Tensor, bias: Tensor) -> _Probe:
    """Build the probe to begin with: the sum of each class's features (N, E), and one multiple of all texts (C, E)."""
    sums, counts = torch.zeros_like(text).index_add_(0, labels, x), torch.bincount(labels, minlength=len(text))
    mean_cosine = float(((sums * text).sum(1) / counts).mean())
    return _Probe(sums, bias, torch.full_like(bias, ALPHA_START * mean_cosine))


def iter_epochs(probe: _Probe, x: Tensor, cosines: Tensor, labels: Tensor, epochs: int) -> Iterator[_Probe]:
    """Yield the probe after each step on features (N, E), their cosines (N, C) to the texts, and labels (N,)."""
    n, alpha_gradient = len(x), torch.zeros_like(probe.alpha)
    gram = x.T @ x if n > x.shape[1] else x @ x.T
    weight_lr = 4 * n / float(torch.linalg.eigvalsh(gram)[-1])
    alpha_lr = n / (4 * float(cosines.square().sum(0).max()))
    momentum = (torch.zeros_like(probe.weight), torch.zeros_like(probe.bias))
    for epoch in range(1, epochs + 1):
        weight_gradient, bias_gradient, alpha_step = compute_gradient(probe, x, cosines, labels)
        momentum = (weight_gradient.add_(momentum[0], alpha=MOMENTUM), bias_gradient.add_(momentum[1], alpha=MOMENTUM))
        alpha_gradient += alpha_step
        alpha = probe.alpha - alpha_lr * alpha_gradient if epoch % ALPHA_PERIOD == 0 else probe.alpha
        probe = _Probe(probe.weight - weight_lr * momentum[0], probe.bias - weight_lr * momentum[1], alpha)
        yield probe


def compute_gradient(probe: _Probe, x: Tensor, cosines: Tensor, labels: Tensor) -> _Probe:
    """Compute the gradient of the mean cross-entropy."""
    error = probe.answer(x, cosines).softmax(-1)
    error[torch.arange(len(x), device=x.device), labels] -= 1
    return _Probe(error.T @ x / len(x), error.mean(0), error.mul_(cosines).mean(0))
