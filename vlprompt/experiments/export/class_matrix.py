"""The classes of a learned prompt as one matrix over pooled image features."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.class_names import Names
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.method import Method, Output, TowerMethod
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import Backbone, Clip, LanguageTower, Tower, find_input_tower
from vlprompt.experiments.export.comparison import differ, make_test_images
from vlprompt.experiments.learned.prompt import LearnedPrompt

ROWS_PER_PASS = 256
TOWER_SHAPE = ("depth", "dim", "n_heads", "head_dim", "grid", "n_special_tokens", "position_embeddings")
AnswerFn = Callable[[Tensor], Output]  # features (B, E) -> an answer


@dataclass(frozen=True)
class ClassMatrix:
    """Logits (B, C) are scale * x @ matrix.T + bias, of image features x (B, E).

    Args:
        names: the classes.
        matrix: (C, E).
        bias: (C,).
        scale: of the products.
        normalizes_images: whether x is divided by its norm first.
    """

    names: Names
    matrix: Tensor
    bias: Tensor
    scale: float
    normalizes_images: bool

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, E) -> logits (B, C)."""
        x = Clip.unit(features) if self.normalizes_images else features
        return self.scale * x @ self.matrix.T + self.bias


class NotAMatrixError(ValueError):
    """An answer that is no product of the pooled image feature and a matrix; the message is the reason alone."""


def compute_class_matrix(prompt: LearnedPrompt, names: Names | None = None) -> ClassMatrix:
    """Compute the matrix that answers as a prompt does from features of the frozen image tower.

    The answers are compared on random features and on the images of `make_test_images`.

    Args:
        prompt: the prompt.
        names: the classes; default: those it was trained on.

    Raises:
        UnknownClassError: for a class that the method was not trained on and can't answer by its name.
        NotAMatrixError: with the reason, for a method that answers otherwise.
    """
    names = prompt.names if names is None else names
    prompt.prepare(names)  # an unknown class is an error of its own
    backbone = _require_image_backbone(prompt)
    return _compute(prompt, names, backbone, _put_on(prompt.method, backbone, names, ignores_adapters=False))


def compute_merged_class_matrix(prompt: LearnedPrompt, merged: Backbone, names: Names | None = None) -> ClassMatrix:
    """Compute the matrix that answers as a prompt does from features of its merged backbone.

    Arguments and errors as in `compute_class_matrix`; merged: what `method.merge_backbone` returned.
    """
    names = prompt.names if names is None else names
    prompt.prepare(names)
    method, backbone = prompt.method, _require_image_backbone(prompt)
    while isinstance(method, MethodWrapper):
        method = method.method
    if isinstance(method, TowerMethod):
        head, prepared = method.head, method.head.prepare(names, method.head.precompute(names))
        return _compute(prompt, names, merged, lambda x: Output(head(x, prepared)))
    return _compute(prompt, names, merged, _put_on(method, backbone, names, ignores_adapters=True))


def find_merged_answer(prompt: LearnedPrompt, names: Names | None = None) -> tuple[Backbone, ClassMatrix]:
    """Return a backbone without prompts whose features answer as a prompt does, by the matrix beside it.

    That is the frozen backbone, or where it is changed the merged one. Arguments and errors as in
    `compute_class_matrix`.
    """
    try:
        return _require_image_backbone(prompt), compute_class_matrix(prompt, names)
    except NotAMatrixError as error:
        try:
            merged = prompt.method.merge_backbone()
            return merged, compute_merged_class_matrix(prompt, merged, names)
        except ValueError:
            raise error from None  # why the frozen tower is not enough says more


def _require_image_backbone(prompt: LearnedPrompt) -> Backbone:
    backbone = prompt.method.backbone
    if backbone is None or isinstance(backbone, LanguageTower):
        raise NotAMatrixError("it reads texts, not images")
    return backbone


class _FeatureTower(ImageTower):
    """An image tower whose pixels (B, E, 1, 1) are the features themselves; a merged one has the adapters in them."""

    def __init__(self, tower: Tower, ignores_adapters: bool):
        size = Preprocessing((1, 1))
        super().__init__(lambda pixels: pixels.flatten(1), tower.feature_dim, size, tower.key, tower.device)
        self.ignores_adapters = ignores_adapters
        for name in TOWER_SHAPE:
            setattr(self, name, getattr(tower, name))

    def __call__(self, images: Images, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        is_ignored = self.ignores_adapters and not len(prompt.tokens) and not len(prompt.prefix)
        return super().__call__(images, NOTHING if is_ignored else prompt, output)

    def _unsupported_error(self) -> ValueError:
        return NotAMatrixError("what it has learned is in the image tower")


def _put_on(method: Method, backbone: Backbone, names: Names, ignores_adapters: bool) -> AnswerFn:
    """Return the answer of a copy of the method that is given features instead of images."""
    tower = find_input_tower(backbone)
    probe = _FeatureTower(tower, ignores_adapters)
    shared: dict[int, object] = {id(tower): probe}
    if isinstance(backbone, Clip):
        clip = Clip(probe, backbone.text, backbone.scale, backbone.spec, backbone.bias, backbone.n_parameters)
        shared |= {id(backbone): clip, id(backbone.text): backbone.text}
    on_features = copy.deepcopy(method, shared).eval()
    prepared = on_features.prepare(names, on_features.precompute(names))

    def answer(features: Tensor) -> Output:
        pixels = features[..., None, None]
        images = Images(lambda _, indices: pixels[list(indices)], (None,) * len(features))
        try:
            return on_features(images, prepared)
        except NotAMatrixError:
            raise
        except (ValueError, RuntimeError) as error:  # it asked for pixels, tokens or augmentations of an image
            raise NotAMatrixError("it reads more of an image than the pooled feature") from error

    return answer


@torch.no_grad()
def _compute(prompt: LearnedPrompt, names: Names, backbone: Backbone, answer: AnswerFn) -> ClassMatrix:
    tower = cast(ImageTower, find_input_tower(backbone))
    drawn = torch.randn(16, tower.feature_dim, generator=torch.Generator().manual_seed(0)).to(tower.device)
    _require_linear(answer, drawn)
    basis = torch.eye(tower.feature_dim, device=tower.device)
    positive, negative = (
        torch.cat([answer(rows).logits.double() for rows in part.split(ROWS_PER_PASS)]) for part in (basis, -basis)
    )
    normalizes = not differ(answer(2 * drawn).logits, answer(drawn).logits)
    weight, bias = ((positive - negative) / 2).T, ((positive + negative) / 2).mean(0)
    scale, matrix = _split_scale(weight) if normalizes else (1.0, weight)
    result = ClassMatrix(names, matrix.float().contiguous(), bias.float(), scale, normalizes)
    if differ(result.logits(drawn), answer(drawn).logits):
        raise NotAMatrixError("its logits are no linear function of the image feature")
    images = make_test_images()
    expected = prompt.method(images, prompt.prepare(names)).logits
    features = tower.encode(images.pixels(tower.preprocessing).to(tower.device))
    if differ(result.logits(features), expected):
        raise NotAMatrixError("what it has learned is in the image tower")
    return result


def _require_linear(answer: AnswerFn, drawn: Tensor) -> None:
    """NotAMatrixError where a few features show it already, before an answer for each dimension."""
    few = drawn[:2]
    positive, negative = answer(few), answer(-few)
    text = positive.text_features
    if text is not None and text.ndim == 3:
        raise NotAMatrixError("its class texts depend on the image")
    first, second = (positive.logits + negative.logits) / 2  # of a linear function the bias, twice
    if differ(first, second) or not bool(positive.logits.isfinite().all()):
        raise NotAMatrixError("its logits are no linear function of the image feature")


def _split_scale(weight: Tensor) -> tuple[float, Tensor]:
    """Return the norm that all rows (C, E) have and the unit rows, or 1 and the rows where norms differ."""
    norms: Sequence[float] = weight.norm(dim=1).tolist()
    scale = sum(norms) / len(norms)
    is_common = scale > 0 and max(abs(norm - scale) for norm in norms) <= 1e-6 * scale
    return (scale, weight / scale) if is_common else (1.0, weight)
