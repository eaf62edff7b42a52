"""Weights of timm's models from files: which format it is, what of it is read, and whether it is this model's."""

import re
from argparse import Namespace
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

OUTER = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "teacher",
)  # where checkpoints keep weights; timm's order
INNER = ("base_encoder.", "momentum_encoder.", "backbone.")  # MoCo-v3's two networks, DINO's
KINDS = {(192, 12): "ViT-Ti", (384, 12): "ViT-S", (768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}
MISFIT = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError)  # timm raises all
VITS = ("timm.models.vision_transformer", "timm.models.deit")  # built for any size, with one table of positions


class File:
    """A checkpoint as it lies on the disk.

    state: names and tensors (JAX: names and shapes), without what is no part of an image tower: decoders, momentum
    encoders, projection heads. kind: "JAX", "MoCo-v3", "MAE", or "" where the format tells nothing of how it was
    trained. Raises ValueError for a file that is not there, is cut off, or holds other things than tensors.
    """

    def __init__(self, path: Path):
        self.path, self.kind = path, ""
        if not path.is_file():
            raise ValueError(f"there is no checkpoint file {str(path)!r}; check the path after '@'")
        try:
            self.state = self._jax() if path.suffix == ".npz" else self._torch()
        except UnpicklingError as error:
            raise ValueError(
                f"{str(path)!r} holds more than tensors, or is cut off ({_short(error)}); "
                "save its weights alone, as safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError, BadZipFile, ValueError, KeyError) as error:
            raise ValueError(f"{str(path)!r} is cut off or no checkpoint, get it again ({_short(error)})") from error
        if not self.state:
            raise ValueError(f"{str(path)!r} holds no weights; timm:NAME@FILE reads .safetensors, .pth, .bin and .npz")

    def _jax(self) -> dict[str, tuple[int, ...]]:
        import numpy as np

        self.kind = "JAX"
        with np.load(self.path, allow_pickle=False) as arrays:
            found = {name: arrays[name].shape for name in arrays.files}
        return {re.sub(r"^(opt/target/|params/img/|params/)", "", name): shape for name, shape in found.items()}

    def _torch(self) -> dict[str, Tensor]:
        found: Any
        if self.path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                found = load_file(str(self.path))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
        else:
            with torch.serialization.safe_globals([Namespace]):  # settings that MAE and DINO keep beside the weights
                found = torch.load(self.path, map_location="cpu", weights_only=True)
        found = found if isinstance(found, dict) else {}
        arch = found.get("arch")  # MoCo-v3's names are vit_small and vit_base
        found = next((found[key] for key in OUTER if isinstance(found.get(key), dict)), found)
        state = {str(k).removeprefix("_orig_mod.").removeprefix("module."): v for k, v in found.items()}
        state = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        inner = next((prefix for prefix in INNER if any(k.startswith(prefix) for k in state)), "")
        state = {k.removeprefix(inner): v for k, v in state.items() if k.startswith(inner)}
        if inner in INNER[:2] or str(arch).startswith("vit_"):
            self.kind = "MoCo-v3"
        elif any(k.startswith("decoder_") for k in state):
            self.kind = "MAE"
            state = {k: v for k, v in state.items() if not k.startswith("decoder_") and k != "mask_token"}
        return state

    def shape(self, *names: str) -> tuple[int, ...]:
        """Of the first of these that is there; () where none is."""
        found = next((self.state[name] for name in names if name in self.state), ())
        return tuple(found.shape) if isinstance(found, Tensor) else found

    @property
    def patch(self) -> int:
        """0 where it is no ViT."""
        conv = self.shape("patch_embed.proj.weight", "embedding/kernel")
        return 0 if len(conv) != 4 else conv[0] if self.kind == "JAX" else conv[-1]

    @property
    def width(self) -> int:
        return self.shape("patch_embed.proj.bias", "embedding/bias", "cls_token")[-1] if self.patch else 0

    @property
    def side(self) -> int:
        """Pixels of the square images that its table of positions is for; 0 where that can't be told."""
        table = self.shape("pos_embed", "Transformer/posembed_input/pos_embedding", "pos_embedding")
        rows = table[1] if len(table) == 3 else 0
        grid = next((isqrt(n) for n in (rows, rows - 1) if n > 0 and isqrt(n) ** 2 == n), 0)
        return grid * self.patch

    @property
    def depth(self) -> int:
        found = [re.match(r"(?:blocks\.|Transformer/encoderblock_)(\d+)\D", name) for name in self.state]
        stacked = self.shape("Transformer/encoderblock/LayerNorm_0/scale")[:1]
        return max([-1, *(int(m[1]) for m in found if m)]) + 1 or sum(stacked)

    def looks_like(self) -> str:
        """What it seems to hold, for an error message."""
        if self.patch and self.depth:
            kind = KINDS.get((self.width, self.depth), "a ViT")
            return f"{kind} of width {self.width}, {self.depth} blocks and patches of {self.patch}"
        for name, kind in (("layer1.0.conv1.weight", "a ResNet"), ("layers.0.blocks.0.norm1.weight", "a Swin"),
                           ("visual.conv1.weight", "a CLIP, which open_clip:NAME@FILE reads")):  # fmt: skip
            if name in self.state:
                return kind
        return f"nothing that vlprompt knows, beginning with {', '.join(list(self.state)[:3])}"


def model_of(file: File, name: str, tag: str, classifier: Any, side: int) -> Any:
    """timm's model `name` with the weights of a file, without its classifier, for images of the file's own size.

    classifier: its names in timm. side: what the model is made for by itself. ValueError where file and model differ.
    """
    import timm

    options: dict[str, Any] = {"num_classes": 0, "pretrained_cfg": tag or None}
    if file.side and file.side != side and timm.models.model_entrypoint(name).__module__ in VITS:
        options["img_size"] = file.side
    if heads(file):
        options["num_heads"] = heads(file)
    model: Any = None
    try:
        if file.kind == "JAX":
            model = timm.create_model(name, **options)
            wrong = _fill(model, file)
        else:
            left = tuple(f"{c}." for c in ([classifier] if isinstance(classifier, str) else classifier or ()))
            state = {k: v for k, v in file.state.items() if not k.startswith(left)}
            told = {"state_dict": state, "num_classes": 0}
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=told, **options)
            model.pretrained_cfg.pop("state_dict")  # a copy of all weights
            conv = getattr(getattr(model, "patch_embed", None), "proj", None)
            other = file.patch and isinstance(conv, torch.nn.Conv2d) and conv.weight.shape[-1] != file.patch
            wrong = "timm would stretch its patches" if other else _depth(model, file)  # nor is timm always strict
    except MISFIT as error:
        wrong = _short(error)
    if wrong:
        raise ValueError(
            f"{str(file.path)!r} is no checkpoint of {name}: {wrong}. It looks like {file.looks_like()}; "
            "name the model whose weights the file holds before '@'"
        )
    return model


def heads(file: File) -> int:
    """MoCo-v3's ViT-S has 12 heads, timm's has 6, and no shape tells them apart; 0: timm's are right."""
    return 12 if file.kind == "MoCo-v3" and file.width == 384 else 0


def _fill(model: Any, file: File) -> str:
    """Google's weights by timm's own loader, which says nothing of what it leaves: what is wrong, or ""."""
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.load_pretrained(str(file.path))
    missing = [name for name, p in model.named_parameters() if p.isnan().any()]
    if missing:
        return f"it has nothing for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
    for told, part in (("cls", model.cls_token), ("MAPHead_0/probe", model.attn_pool)):
        if told in file.state and part is None:
            return f"it has {told!r}, the model has no such part"
    return _depth(model, file)


def _depth(model: Any, file: File) -> str:
    blocks = len(getattr(model, "blocks", ()))
    return f"it has {file.depth} blocks, the model {blocks}" if file.depth not in (0, blocks) else ""


def _short(error: BaseException) -> str:
    """The first lines of an error, each cut."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Error(s) in loading")]
    return "; ".join(line if len(line) < 160 else f"{line[:150]} ..." for line in lines[:3]) or type(error).__name__
