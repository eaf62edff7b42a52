"""Contracts of frozen towers (image, text, language model), and the Clip that joins two of them."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.batch import Inputs
from vlprompt.core.images import Preprocessing
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Stage
from vlprompt.core.texts import TextBatch, TextItem

# precision of the frozen weights, by the scheme of a backbone's name
WEIGHT_PRECISIONS = {"hf": "fp32", "hf-bf16": "bf16", "hf-int8": "int8", "hf-nf4": "nf4"}


class WeightedMap(Protocol):
    """A frozen linear map (weight (out, in)) or norm (weight (D,)) at a site of a tower."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    def __call__(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Tower(Protocol):
    """A frozen network that takes a Prompt. Not an nn.Module: it can't be trained, saved or moved by mistake."""

    dim: int
    depth: int
    n_heads: int
    head_dim: int
    feature_dim: int  # E
    key: str  # identifies the weights
    device: torch.device

    def __call__(self, inputs: Inputs, /, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor: ...
    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]: ...
    def require_blocks(self) -> None: ...  # ValueError for an opaque tower


class TextTower(Tower, Protocol):
    """The text tower of a CLIP: C texts after each of R contexts -> features (R, C, E)."""

    def init_context(
        self,
        n_tokens: int | None = None,
        init: str | None = None,
        generator: torch.Generator | None = None,
        std: float = 0.02,
    ) -> Tensor: ...
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of fixed texts, with those of begin and end: their rows in the output "rows"."""
        ...

    def frozen_map(self, site: str) -> WeightedMap: ...
    def merged(self, prompt: Prompt) -> "TextTower": ...


@runtime_checkable
class VisionTower(Tower, Protocol):
    """An image tower."""

    preprocessing: Preprocessing
    has_custom_preprocessing: bool  # whether another one was set than that of the weights
    spec: str  # the name that was loaded
    n_parameters: int  # frozen parameters
    notes: Mapping[str, str]  # how the weights were adapted, for the result
    n_special_tokens: int  # class and register tokens, before the patches
    grid: tuple[int, int]  # patches per column and row
    position_embeddings: Tensor  # (S + N, D), added to special tokens and patches; empty if there are none

    def with_preprocessing(self, preprocessing: Preprocessing) -> "VisionTower": ...
    def read(self, images: Inputs, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Encode images and return several outputs of one pass, such as ("pooled", "prompts"): (B, E) and (B, P, D)."""
        ...

    def read_without_positions(self, images: Inputs) -> tuple[Tensor, Tensor]:
        """Return "pooled" (B, E) and "local" (B, N, E), of a pool that adds positions without these."""
        ...

    def require_patch_features(self) -> None:
        """Raise ValueError unless the output "patches" has the features (B, N, E) of patches in the joint space."""
        ...

    def project_rows(self, rows: Tensor) -> Tensor:
        """Project rows (.., D) behind the last norm into the joint space (.., E), as the class token is."""
        ...

    def frozen_map(self, site: str) -> WeightedMap:
        """Return the linear map or norm at a site such as "3/q", to read its weights; ValueError for other sites."""
        ...

    def merged(self, prompt: Prompt) -> "VisionTower": ...
    def split_at(self, k: int) -> "tuple[VisionTower, nn.Module]": ...
    def trainable_copy(self) -> nn.Module: ...


@runtime_checkable
class LanguageTower(Tower, Protocol):
    """A language model.

    Outputs are "pooled": features (B, E); "mask": states (B, E) at the place of the answer; "response": states (R, E)
    before each token of all responses, one after the other; "words": states (R, E) of the first token of each word.
    States are what the model's own head takes, before the projection to the vocabulary.
    """

    kind: Literal["causal", "encoder", "seq2seq"]
    weight_precision: str  # fp32, bf16, int8 or nf4
    prefix_layers: tuple[int | str, ...]  # layers that take a prefix
    sites_with_bias: frozenset[str]
    spec: str  # the name that was loaded
    n_parameters: int  # frozen parameters
    max_positions: int | None  # None: unbounded
    notes: dict[str, str]  # for the result; grows where texts are truncated
    activation_checkpointing: bool  # whether layers are recomputed in the backward pass

    def tokenize_answers(self, words: Sequence[str], template: str | None = None) -> list[list[int]]: ...
    def get_output_embeddings(self, ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Weights (V, E) and bias (V,) of the vocabulary's rows."""
        ...

    def vocabulary_logits(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """States (R, E) -> logits (R, V)."""
        ...

    def response_tokens(self, inputs: TextBatch, prompt: Prompt = NOTHING) -> list[list[int]]: ...
    def embed_text(self, text: str) -> Tensor:
        """Embeddings (N, D) of a text's tokens."""
        ...

    def sample_token_embeddings(self, n: int, generator: Generator) -> Tensor:
        """Embeddings (n, D) of random tokens."""
        ...

    def encode_prefix(self, text: str, prompt: Prompt = NOTHING, follows_prefix: bool = False) -> Prompt:
        """Run a text once and return it as a prefix; follows_prefix: it stands behind another one."""
        ...

    def generate(self, inputs: TextBatch, prompt: Prompt = NOTHING, **settings: object) -> list[str]: ...
    def merged(self, prompt: Prompt) -> "LanguageTower": ...
    def with_peft_adapter(self, config: Mapping[str, object], seed: int) -> "AdaptedLanguageModel": ...
    def save_as_peft(self, prompt: Prompt, folder: Path, metadata: Mapping[str, object]) -> None: ...
    def save_merged(self, prompt: Prompt, folder: Path) -> None:
        """Save the model with the prompt's adapters merged into its weights."""
        ...

    def trainable_copy(self) -> nn.Module: ...


class AdaptedLanguageModel(Protocol):
    """A language model with an adapter of PEFT."""

    @property
    def tower(self) -> LanguageTower: ...
    @property
    def trainable_parameters(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def extra_state(self) -> Mapping[str, Tensor]: ...  # what a resumed training needs besides
    def prompt(self) -> Prompt: ...  # of PEFT types that have a prompt
    def train(self, mode: bool) -> None: ...
    def penalty(self) -> Tensor | None: ...  # a loss term
    def end_step(self, step: int, steps: int) -> None: ...  # steps count from 1
    def save(self, folder: Path, metadata: Mapping[str, object]) -> None: ...  # in PEFT's format
    def save_merged(self, folder: Path) -> None: ...


class HitCounts(Protocol):
    """Lookups of a feature cache."""

    hits: int
    misses: int


class FeatureStore(Protocol):
    """What a tower has computed, by key; `unshared` are features that the other processes do not have yet."""

    unshared: dict[str, Tensor] | None

    @property
    def counts(self) -> HitCounts: ...
    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]: ...
    def add(self, key: str, tensor: Tensor) -> None: ...
    def flush(self) -> None: ...


def _store_signature(function: Any) -> Any:
    """Store a function's signature in it: torch asks for it at each call, and to find it takes as long as the work."""
    function.__signature__ = inspect.signature(function)
    return function


class _Unit(torch.autograd.Function):
    """x / |x| over the last dimension; its derivative in four operations, where F.normalize has sixteen."""

    generate_vmap_rule = True  # for vmapped training

    @staticmethod
    @_store_signature
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        return x / norm, norm

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, norm_grad: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, norm = ctx.saved_tensors
        of_unit = None if g is None else torch.addcmul(g, unit, (unit * g).sum(-1, keepdim=True), value=-1) / norm
        if norm_grad is None:  # it is not, where this derivative is differentiated again
            return of_unit
        return norm_grad * unit if of_unit is None else torch.addcmul(of_unit, norm_grad, unit)


@dataclass(frozen=True)
class Clip:
    """An image tower and a text tower with one joint space; their features are not normalised.

    Args:
        image: the image tower.
        text: the text tower.
        scale: exp of the learned log temperature.
        spec: the name that was loaded.
        bias: added to every logit by sigmoid losses (SigLIP); no ranking or softmax depends on it.
        n_parameters: frozen parameters of both towers.
    """

    image: Tower
    text: TextTower
    scale: float
    spec: str
    bias: float = 0.0
    n_parameters: int = 0

    @property
    def feature_dim(self) -> int:
        return self.image.feature_dim

    @property
    def device(self) -> torch.device:
        return self.image.device

    @staticmethod
    def unit(x: Tensor) -> Tensor:
        """Normalise features (.., E)."""
        needs_grad = torch.is_grad_enabled() and x.requires_grad
        return _Unit.apply(x)[0] if needs_grad else F.normalize(x, dim=-1)  # pyright: ignore

    def logits(self, image: Tensor, text: Tensor, scale: float | None = None) -> Tensor:
        """Scaled cosines (B, C) of image features (B, E) and text features (C, E) or (B, C, E), normalised here.

        The bias belongs to the learned scale: it is added unless another scale is given.
        """
        bias, scale = (self.bias, self.scale) if scale is None else (0.0, scale)
        image, text = self.unit(image), self.unit(text)
        logits = scale * (image @ text.T if text.ndim == 2 else (text @ image[..., None])[..., 0])
        return logits + bias if bias else logits


AnyTower: TypeAlias = VisionTower | LanguageTower
Backbone: TypeAlias = Clip | AnyTower


def find_input_tower(backbone: Backbone) -> AnyTower:
    """Return the tower that takes the inputs: a Clip's image tower, or the tower itself."""
    return cast(VisionTower, backbone.image) if isinstance(backbone, Clip) else backbone


def find_feature_cache(backbone: Backbone | None) -> FeatureStore | None:
    """Return the feature cache of the input tower, None if it has none."""
    return None if backbone is None else getattr(find_input_tower(backbone), "feature_cache", None)


def find_preprocessing(backbone: Backbone) -> Preprocessing:
    """Return the preprocessing of a backbone's images; ValueError for a language model."""
    tower = find_input_tower(backbone)
    if isinstance(tower, LanguageTower):
        raise ValueError(f"preprocess: expected an image tower, got {tower.spec}. Leave preprocess out.")
    return tower.preprocessing


def with_preprocessing(backbone: Backbone, preprocessing: Preprocessing) -> Backbone:
    """Return the backbone with other preprocessing; ValueError for a size that its image tower can't take."""
    find_preprocessing(backbone)
    image = cast(VisionTower, find_input_tower(backbone)).with_preprocessing(preprocessing)
    return replace(backbone, image=image) if isinstance(backbone, Clip) else image


def validate_stage_inputs(backbone: Backbone | None, stage: Stage) -> None:
    """Raise ValueError for texts and an image tower, or for images and a language model."""
    items = [item for split in (stage.lesson.train, *stage.tests.values()) for item in split.items[:1]]
    has_texts, takes_texts = any(isinstance(item, TextItem) for item in items), isinstance(backbone, LanguageTower)
    if backbone is None or not items or has_texts == takes_texts:
        return
    if takes_texts:
        kind, expected, got, remedy = "a language model", "texts", "images", "glyph or open_clip:NAME/TAG"
    else:
        kind, expected, got, remedy = "an image tower", "images", "texts", "hf:FOLDER or hf:OWNER/NAME"
    raise ValueError(
        f"dataset: expected {expected} for {backbone.spec}, which is {kind}, got {got}. "
        f"Set --backbone {remedy}, or take other data."
    )
