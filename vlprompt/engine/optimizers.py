"""Optimizers by their names, and their state as tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlprompt.engine.train_config import Train


def optimizer(groups: list[dict[str, Any]], train: Train, device: torch.device) -> torch.optim.Optimizer:
    """The one that `train` names; ValueError where there is none of that name on this device."""
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, train.lr, train.momentum, weight_decay=train.weight_decay)
    if train.optimizer == "paged_adamw":
        return paged(groups, train, device)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, train.lr, train.betas, train.eps, weight_decay=train.weight_decay)


def paged(groups: list[dict[str, Any]], train: Train, device: torch.device) -> torch.optim.Optimizer:
    """QLoRA's AdamW (32 bits), whose state goes to the CPU's memory where the GPU's is full; ValueError elsewhere."""
    if device.type != "cuda":
        raise ValueError(
            f"train.optimizer=paged_adamw moves its state between a CUDA GPU and the CPU, and this trains on "
            f"{device.type}: take train.optimizer=adamw, the same without pages"
        )
    try:
        from bitsandbytes.optim.adamw import PagedAdamW32bit
    except ImportError as error:
        raise ValueError(
            "train.optimizer=paged_adamw needs bitsandbytes (pip install 'vlprompt[lm]'); adamw is the same without "
            "pages"
        ) from error
    return PagedAdamW32bit(groups, train.lr, train.betas, train.eps, train.weight_decay)


def saved(made: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all that the next step depends on, by "parameter/name"; counts are tensors too."""
    found: dict[str, Tensor] = {}
    for i, slots in made.state_dict()["state"].items():
        flat = {k: v for k, v in slots.items() if not isinstance(v, dict)}
        for nested in (v for v in slots.values() if isinstance(v, dict)):  # as bitsandbytes has it
            flat |= nested
        for k, v in flat.items():
            if isinstance(v, Tensor | int):
                found[f"{i}/{k}"] = torch.as_tensor(v).detach().clone()
    return found


def load(made: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `saved` gave."""
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        i, _, key = name.partition("/")
        slots.setdefault(int(i), {})[key] = int(tensor) if tensor.dtype == torch.int64 else tensor
    made.load_state_dict({"state": slots, "param_groups": made.state_dict()["param_groups"]})
