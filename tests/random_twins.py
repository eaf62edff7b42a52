"""Tiny random twins of libraries' models."""

import torch

from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.images import Preprocessing


def shaken(model):
    """Every weight moved: zeros and ones, in norms, biases and positions, would hide a map that was left out."""
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p) if p.ndim == 1 else 0.02 * torch.randn_like(p)
    return model.eval().requires_grad_(False)


# --- timm's trunks ---

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 24}


def walked(trunk, project=None):
    look = Preprocessing(tuple(trunk.patch_embed.img_size))
    return build_timm_tower(trunk, project or trunk.head, 24, look, "timm", torch.device("cpu"))
