"""Read weights of timm's models from checkpoint files of several formats, and check that they fit the model."""

import re
from argparse import Namespace
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

WEIGHT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")  # of weights in a file; timm's order
NESTED_PREFIXES = ("base_encoder.", "momentum_encoder.", "backbone.")  # MoCo-v3's two networks, DINO's
VIT_SIZES = {(192, 12): "ViT-Ti", (384, 12): "ViT-S", (768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}
OTHER_MODELS = {  # a parameter's name -> its model
    "layer1.0.conv1.weight": "a ResNet",
    "layers.0.blocks.0.norm1.weight": "a Swin",
    "visual.conv1.weight": "a CLIP, which open_clip:NAME@FILE reads",
}
MISMATCH_ERRORS = (  # timm raises all of these
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
)
RESIZABLE_VIT_MODULES = ("timm.models.vision_transformer", "timm.models.deit")  # built for any size, with one table


class CheckpointFile:
    """A checkpoint file.

    `state` has names and tensors (JAX: names and shapes), without those that are no part of an image tower: decoders,
    momentum encoders, projection heads. `format` is "JAX", "MoCo-v3", "MAE", or "" if it does not show the training.

    Args:
        path: a .safetensors, .pth, .bin or .npz file.

    Raises:
        ValueError: for a file that is missing, truncated, or has other contents than tensors.
    """

    def __init__(self, path: Path):
        self.path, self.format = path, ""
        if not path.is_file():
            raise ValueError(
                f"backbone: expected a checkpoint file, got {str(path)!r}, and there is no such file. Check the path "
                "after '@'."
            )
        try:
            self.state = self._read_jax() if path.suffix == ".npz" else self._read_torch()
        except UnpicklingError as error:
            raise ValueError(
                f"{str(path)!r}: expected only tensors, got other objects or a truncated file "
                f"({_summarize_error(error)}). Save its weights alone, as safetensors."
            ) from error
        except Exception as error:  # torch and NumPy raise of many kinds for a file that is broken
            raise ValueError(
                f"{str(path)!r}: expected a checkpoint, got a truncated or another file ({_summarize_error(error)}). "
                "Get it again."
            ) from error
        if not self.state:
            raise ValueError(
                f"{str(path)!r}: expected weights, got none. Use a .safetensors, .pth, .bin or .npz file of a model."
            )

    def _read_jax(self) -> dict[str, tuple[int, ...]]:
        import numpy as np

        self.format = "JAX"
        with np.load(self.path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
        return {re.sub(r"^(opt/target/|params/img/|params/)", "", name): shape for name, shape in shapes.items()}

    def _read_torch(self) -> dict[str, Tensor]:
        contents = self._load_contents()
        arch = contents.get("arch")  # MoCo-v3's names are vit_small and vit_base
        weights = next((contents[key] for key in WEIGHT_KEYS if isinstance(contents.get(key), dict)), contents)
        state = {str(k).removeprefix("_orig_mod.").removeprefix("module."): v for k, v in weights.items()}
        state = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        nested = next((prefix for prefix in NESTED_PREFIXES if any(k.startswith(prefix) for k in state)), "")
        state = {k.removeprefix(nested): v for k, v in state.items() if k.startswith(nested)}
        if nested in NESTED_PREFIXES[:2] or str(arch).startswith("vit_"):
            self.format = "MoCo-v3"
        elif any(k.startswith("decoder_") for k in state):
            self.format = "MAE"
            state = {k: v for k, v in state.items() if not k.startswith("decoder_") and k != "mask_token"}
        return state

    def _load_contents(self) -> dict[Any, Any]:
        if self.path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return dict(load_file(str(self.path)))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
        with torch.serialization.safe_globals([Namespace]):  # MAE and DINO save their settings beside the weights
            contents = torch.load(self.path, map_location="cpu", weights_only=True)
        return contents if isinstance(contents, dict) else {}

    def find_shape(self, *names: str) -> tuple[int, ...]:
        """Return the shape of the first of these names that is in the file; () if none is."""
        entry = next((self.state[name] for name in names if name in self.state), ())
        return tuple(entry.shape) if isinstance(entry, Tensor) else entry

    @property
    def patch_size(self) -> int:
        """The side of a patch; 0 if it is no ViT."""
        kernel = self.find_shape("patch_embed.proj.weight", "embedding/kernel")
        return 0 if len(kernel) != 4 else kernel[0] if self.format == "JAX" else kernel[-1]

    @property
    def width(self) -> int:
        return self.find_shape("patch_embed.proj.bias", "embedding/bias", "cls_token")[-1] if self.patch_size else 0

    @property
    def image_size(self) -> int:
        """The side in pixels of the square images of its position embeddings; 0 if unknown."""
        table = self.find_shape("pos_embed", "Transformer/posembed_input/pos_embedding", "pos_embedding")
        rows = table[1] if len(table) == 3 else 0
        grid = next((isqrt(n) for n in (rows, rows - 1) if n > 0 and isqrt(n) ** 2 == n), 0)
        return grid * self.patch_size

    @property
    def depth(self) -> int:
        matches = [re.match(r"(?:blocks\.|Transformer/encoderblock_)(\d+)\D", name) for name in self.state]
        stacked = self.find_shape("Transformer/encoderblock/LayerNorm_0/scale")[:1]
        return max([-1, *(int(m[1]) for m in matches if m)]) + 1 or sum(stacked)

    def describe_contents(self) -> str:
        """Return what model the file seems to be of, for an error message."""
        if self.patch_size and self.depth:
            model = VIT_SIZES.get((self.width, self.depth), "a ViT")
            return f"{model} of width {self.width}, {self.depth} blocks and patches of {self.patch_size}"
        unknown = f"nothing that vlprompt knows, beginning with {', '.join(list(self.state)[:3])}"
        return next((model for name, model in OTHER_MODELS.items() if name in self.state), unknown)


def load_model(file: CheckpointFile, name: str, tag: str, classifier: Any, image_size: int) -> Any:
    """Build a timm model without its classifier, with a file's weights and for the file's image size.

    Args:
        file: the checkpoint.
        name: timm's name of the model.
        tag: the tag whose configuration it gets; "" for timm's default.
        classifier: the names of the classifier's layers in timm.
        image_size: the image size for which timm builds the model by default.

    Raises:
        ValueError: if the file is of another model.
    """
    import timm

    options: dict[str, Any] = {"num_classes": 0, "pretrained_cfg": tag or None}
    is_resizable = timm.models.model_entrypoint(name).__module__ in RESIZABLE_VIT_MODULES
    if is_resizable and file.image_size not in (0, image_size):
        options["img_size"] = file.image_size
    if infer_n_heads(file):
        options["num_heads"] = infer_n_heads(file)
    model: Any = None
    try:
        if file.format == "JAX":
            model = timm.create_model(name, **options)
            mismatch = _load_jax_weights(model, file)
        else:
            model = _create_from_state(file, name, classifier, options)
            mismatch = _describe_mismatch(model, file)
    except MISMATCH_ERRORS as error:
        mismatch = _summarize_error(error)
    if mismatch:
        raise ValueError(
            f"{str(file.path)!r}: expected a checkpoint of {name}, got what looks like {file.describe_contents()}: "
            f"{mismatch}. Name the model whose weights the file holds before '@'."
        )
    return model


def _create_from_state(file: CheckpointFile, name: str, classifier: Any, options: dict[str, Any]) -> Any:
    import timm

    layers = [classifier] if isinstance(classifier, str) else classifier or ()
    ignored = tuple(f"{layer}." for layer in layers)
    state = {k: v for k, v in file.state.items() if not k.startswith(ignored)}
    overlay = {"state_dict": state, "num_classes": 0}
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    model.pretrained_cfg.pop("state_dict")  # a copy of all weights
    return model


def _describe_mismatch(model: Any, file: CheckpointFile) -> str:
    """Return what timm accepts although it is of another model, or ""."""
    conv = getattr(getattr(model, "patch_embed", None), "proj", None)
    if file.patch_size and isinstance(conv, torch.nn.Conv2d) and conv.weight.shape[-1] != file.patch_size:
        return "timm would stretch its patches"
    return _describe_depth_mismatch(model, file)


def infer_n_heads(file: CheckpointFile) -> int:
    """Return 12 for MoCo-v3's ViT-S, where timm's has 6 and shapes do not differ; 0 if timm's number is right."""
    return 12 if file.format == "MoCo-v3" and file.width == 384 else 0


def _load_jax_weights(model: Any, file: CheckpointFile) -> str:
    """Load Google's weights by timm's loader, which ignores parameters in silence; return what is wrong, or ""."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.load_pretrained(str(file.path))
    missing = [name for name, p in model.named_parameters() if p.isnan().any()]
    if missing:
        return f"it has nothing for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
    for name, parameter in (("cls", model.cls_token), ("MAPHead_0/probe", model.attn_pool)):
        if name in file.state and parameter is None:
            return f"it has {name!r}, the model has no such part"
    return _describe_depth_mismatch(model, file)


def _describe_depth_mismatch(model: Any, file: CheckpointFile) -> str:
    blocks = len(getattr(model, "blocks", ()))
    return f"it has {file.depth} blocks, the model {blocks}" if file.depth not in (0, blocks) else ""


def _summarize_error(error: BaseException) -> str:
    """Return the first lines of an error, each shortened."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Error(s) in loading")]
    return "; ".join(line if len(line) < 160 else f"{line[:150]} ..." for line in lines[:3]) or type(error).__name__
