"""The classes of a learned prompt as one matrix over pooled image features."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.class_names import Names
from vlprompt.core.head import Head
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.method import Method, Output, TowerMethod
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import Backbone, Clip, LanguageTower, Tower, find_input_tower
from vlprompt.experiments.export.comparison import differ, make_test_images
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.runtime.seeding import make_generator

ROWS_PER_PASS = 256
TOWER_SHAPE = ("depth", "dim", "n_heads", "head_dim", "grid", "n_special_tokens", "position_embeddings")
LINEARITY_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-6}  # of the largest logit: many times the rounding
AnswerFn = Callable[[Tensor], Output]  # features (B, E) -> an answer
PutOnFn = Callable[[torch.dtype], AnswerFn]  # dtype of the features


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

    The answers are compared in float64 on real and random features of several sizes, and on the images of
    `make_test_images`.

    Args:
        prompt: the prompt.
        names: the classes; default: those it was trained on.

    Raises:
        UnknownClassError: for a class that the method was not trained on and can't answer by its name.
        NotAMatrixError: with the reason, for a method that answers otherwise.
    """
    names, backbone = prompt.names if names is None else names, _require_image_backbone(prompt)
    prompt.prepare(names)  # an unknown class is an error of its own
    return _compute(prompt, names, backbone, partial(_put_on, prompt.method, backbone, names, ignores_adapters=False))


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
        return _compute(prompt, names, merged, partial(_put_on_head, method.head, backbone, names))
    return _compute(prompt, names, merged, partial(_put_on, method, backbone, names, ignores_adapters=True))


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


def _put_on(
    method: Method, backbone: Backbone, names: Names, dtype: torch.dtype, *, ignores_adapters: bool
) -> AnswerFn:
    """Return the answer of a copy of the method that is given features of a dtype instead of images."""
    tower = find_input_tower(backbone)
    probe = _FeatureTower(tower, ignores_adapters)
    shared: dict[int, object] = {id(tower): probe}
    if isinstance(backbone, Clip):
        clip = Clip(probe, backbone.text, backbone.scale, backbone.spec, backbone.bias, backbone.n_parameters)
        shared |= {id(backbone): clip, id(backbone.text): backbone.text}
    on_features = copy.deepcopy(method, shared).eval()
    prepared = _convert(on_features.prepare(names, on_features.precompute(names)), dtype)
    on_features.to(dtype)

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


def _put_on_head(head: Head, backbone: Backbone, names: Names, dtype: torch.dtype) -> AnswerFn:
    """Return the answer of a head to features of a dtype."""
    prepared = _convert(head.prepare(names, head.precompute(names)), dtype)
    copied = copy.deepcopy(head, {id(backbone): backbone}).to(dtype)
    return lambda features: Output(copied(features, prepared))


def _convert(value: Any, dtype: torch.dtype) -> Any:
    """Return a value with the real tensors in its tuples, lists and mappings in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _convert(part, dtype) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_convert(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@torch.no_grad()
def _compute(prompt: LearnedPrompt, names: Names, backbone: Backbone, put_on: PutOnFn) -> ClassMatrix:
    tower, images = cast(ImageTower, find_input_tower(backbone)), make_test_images()
    features = tower.encode(images.pixels(tower.preprocessing).to(tower.device))
    answer, dtype = _choose_precision(put_on, features)
    exact = _solve(answer, torch.eye(features.shape[1], dtype=dtype, device=features.device), names)
    for probes in _make_probes(features.to(dtype)):
        if _deviate(exact.logits(probes), answer(probes).logits, LINEARITY_TOLERANCES[dtype]):
            raise NotAMatrixError("its logits are no linear function of the image feature")
    scale, matrix = _split_scale(exact.matrix) if exact.normalizes_images else (1.0, exact.matrix)
    result = replace(exact, matrix=matrix.float().contiguous(), bias=exact.bias.float(), scale=scale)
    if differ(result.logits(features.float()), prompt.method(images, prompt.prepare(names)).logits):
        raise NotAMatrixError("what it has learned is in the image tower")
    return result


def _choose_precision(put_on: PutOnFn, features: Tensor) -> tuple[AnswerFn, torch.dtype]:
    """Return an answer in float64, or in float32 of a method that computes in it, and its dtype.

    Raises:
        NotAMatrixError: where a few features show it already, before an answer for each dimension.
    """
    try:
        answer, dtype = put_on(torch.float64), torch.float64
        if _answer_few(answer, features.double()).dtype == dtype:
            return answer, dtype
    except (NotAMatrixError, RuntimeError):  # of two dtypes in one operation
        pass
    answer, dtype = put_on(torch.float32), torch.float32
    _answer_few(answer, features.float())
    return answer, dtype


def _answer_few(answer: AnswerFn, features: Tensor) -> Tensor:
    """Return the logits of a few features (B, E); NotAMatrixError for texts of each image, and infinite logits."""
    output = answer(features)
    if output.text_features is not None and output.text_features.ndim == 3:
        raise NotAMatrixError("its class texts depend on the image")
    if not bool(output.logits.isfinite().all()):
        raise NotAMatrixError("its logits are no linear function of the image feature")
    return output.logits


def _solve(answer: AnswerFn, basis: Tensor, names: Names) -> ClassMatrix:
    """Return the matrix (C, E) and the bias of an answer that is linear in features, or in normalised ones."""
    positive, negative = (
        torch.cat([answer(rows).logits for rows in part.split(ROWS_PER_PASS)]) for part in (basis, -basis)
    )
    [probes] = _draw(basis, 1.0)
    tolerance = LINEARITY_TOLERANCES[basis.dtype]
    normalizes = not _deviate(answer(2 * probes).logits, answer(probes).logits, tolerance)
    return ClassMatrix(names, ((positive - negative) / 2).T, ((positive + negative) / 2).mean(0), 1.0, normalizes)


def _make_probes(features: Tensor) -> list[Tensor]:
    """Return features (B, E): real ones, smaller, larger and disturbed ones, and random ones of three sizes."""
    disturbed = features + features.std() * torch.cat(_draw(features, 1.0))[: len(features)]
    return [features, 0.1 * features, 10 * features, disturbed, *_draw(features, 0.1, 1.0, 10.0)]


def _draw(like: Tensor, *sizes: float) -> list[Tensor]:
    """Draw 16 features (16, E) of each size."""
    drawn = torch.randn(16, like.shape[1], generator=make_generator("export probes")).to(like)
    return [size * drawn for size in sizes]


def _deviate(x: Tensor, y: Tensor, tolerance: float) -> bool:
    """Whether logits differ by more than a share of the largest, or are no numbers."""
    return not bool((x - y).abs().max() <= tolerance * y.abs().max())


def _split_scale(weight: Tensor) -> tuple[float, Tensor]:
    """Return the norm that all rows (C, E) have and the unit rows, or 1 and the rows where norms differ."""
    norms: Sequence[float] = weight.norm(dim=1).tolist()
    scale = sum(norms) / len(norms)
    is_common = scale > 0 and max(abs(norm - scale) for norm in norms) <= 1e-6 * scale
    return (scale, weight / scale) if is_common else (1.0, weight)
