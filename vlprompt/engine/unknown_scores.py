"""Scores of how well an item is known: high for items of the classes, low for items of other classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from vlprompt.core.batch import Inputs
from vlprompt.core.method import Method, Output
from vlprompt.core.towers import Clip
from vlprompt.runtime.errors import suggest_nearest

MCM_DIVISOR = 100.0  # of scaled cosines in the authors' codes: the scale of OpenAI's CLIPs
COSINE_TOLERANCE = 1e-3  # of logits, relative to the largest
FEATURE_TOLERANCE = 1e-4  # of normalised image features

# (method, inputs, their output, temperature of the decision) -> (B,) in float64
ScoreFn: TypeAlias = Callable[[Method, Inputs, Output, float], Tensor]


def compute_msp(method: Method, inputs: Inputs, output: Output, temperature: float) -> Tensor:
    """Return the maximum softmax probability, after the temperature (Hendrycks and Gimpel, arXiv:1610.02136)."""
    return (output.logits.double() / temperature).softmax(1).amax(1)


def compute_max_logit(method: Method, inputs: Inputs, output: Output, temperature: float) -> Tensor:
    """Return the largest logit (Hendrycks et al., arXiv:1911.11132)."""
    return output.logits.double().amax(1)


def compute_energy(method: Method, inputs: Inputs, output: Output, temperature: float) -> Tensor:
    """Return the negative free energy, log sum exp of the logits, at temperature 1 (Liu et al., arXiv:2010.03759)."""
    return output.logits.double().logsumexp(1)


def match_concepts(scaled_cosines: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the largest probability (...) of the softmax over classes of scaled cosines (..., C) / 100 / temperature.

    Maximum concept matching as its authors and LoCoOp's compute it. Where the scale is 100, as of every CLIP of OpenAI,
    it is the softmax of plain cosines / temperature that the paper defines (Ming et al., arXiv:2211.13445).
    """
    return (scaled_cosines / MCM_DIVISOR / temperature).softmax(-1).amax(-1)


def compute_mcm(method: Method, inputs: Inputs, output: Output, temperature: float) -> Tensor:
    """Return maximum concept matching, T = 1; ValueError for a method whose logits are no scaled cosines."""
    clip, image, text = _require_cosines("mcm", method, output)
    return match_concepts(clip.scale * _cosines(image, text))


def compute_gl_mcm(method: Method, inputs: Inputs, output: Output, temperature: float) -> Tensor:
    """Return MCM plus the largest MCM of the patches, both with T = 1 (Miyai et al., arXiv:2304.04521).

    Raises:
        ValueError: for a method whose logits are no scaled cosines, or that changes the features of images, and for an
            image tower without local features.
    """
    clip, image, text = _require_cosines("gl-mcm", method, output)
    plain = Clip.unit(clip.image(inputs).double())
    if not torch.allclose(plain, image, rtol=0, atol=FEATURE_TOLERANCE):
        raise ValueError(
            f"score gl-mcm: expected a method that leaves the features of images as they are, got "
            f"{type(method).__name__}, which changes them, so that its patches have no features of their own. Take the "
            "score mcm."
        )
    patches = Clip.unit(clip.image(inputs, output="local"))  # (B, N, E)
    local = match_concepts(clip.scale * (patches @ text.to(patches.dtype).mT)).amax(1)
    return match_concepts(clip.scale * _cosines(image, text)) + local.double()


def _cosines(image: Tensor, text: Tensor) -> Tensor:
    """(B, C) of normalised image features (B, E) and text features (C, E) or (B, C, E)."""
    return image @ text.T if text.ndim == 2 else (text @ image[..., None])[..., 0]


def _require_cosines(score: str, method: Method, output: Output) -> tuple[Clip, Tensor, Tensor]:
    """Return the Clip and the normalised features in float64, once it is known that the logits are of their cosines."""
    clip, image, text = method.backbone, output.image_features, output.text_features
    if isinstance(clip, Clip) and image is not None and text is not None:
        image, text = Clip.unit(image.double()), Clip.unit(text.double())
        if _is_proportional(output.logits.double(), _cosines(image, text)):
            return clip, image, text
    raise ValueError(
        f"score {score}: expected a method whose logits are scaled cosines of images and class texts, got "
        f"{type(method).__name__}, whose logits are not. Take the score msp, maxlogit or energy."
    )


def _is_proportional(logits: Tensor, cosines: Tensor) -> bool:
    """Whether logits (B, C) are cosines times one positive scale, up to a number for each row."""
    a, b = (x - x.mean(1, keepdim=True) for x in (logits, cosines))
    scale = (a * b).sum() / b.square().sum().clamp(min=1e-12)
    return bool(scale >= 0 and (a - scale * b).abs().max() <= COSINE_TOLERANCE * logits.abs().max())


class UnknownScore(NamedTuple):
    """A score, with its definition for readers."""

    compute: ScoreFn
    definition: str


SCORES: Mapping[str, UnknownScore] = {
    "msp": UnknownScore(compute_msp, "largest probability, after the temperature of `--calibrate` if there is one"),
    "maxlogit": UnknownScore(compute_max_logit, "largest logit"),
    "energy": UnknownScore(compute_energy, "log of the sum of exp of the logits"),
    "mcm": UnknownScore(
        compute_mcm,
        "largest probability of the softmax of scale x cosine / 100; of methods whose logits are scaled cosines of "
        "images and class texts",
    ),
    "gl-mcm": UnknownScore(
        compute_gl_mcm,
        "mcm plus the largest such probability of a patch and a class; of methods that leave a ViT's image features as "
        "they are",
    ),
}


def require_score(name: str) -> UnknownScore:
    """Return a score by its name; ValueError for one that there is not."""
    if name not in SCORES:
        raise ValueError(f"score: expected a known name, got {name!r}; {suggest_nearest(name, SCORES)}")
    return SCORES[name]


def make_score_fn(method: Method, names: Sequence[str], temperature: float = 1.0) -> Callable[[Inputs, Output], Tensor]:
    """Return a function (inputs, output) -> (B, S) that computes these scores."""
    scores = [require_score(name).compute for name in names]
    return lambda inputs, output: torch.stack([f(method, inputs, output, temperature) for f in scores], 1)
