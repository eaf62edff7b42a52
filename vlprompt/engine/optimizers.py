"""Build optimizers by name, and export and load their state as tensors."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.method import ParamGroup
from vlprompt.engine.train_config import TrainConfig


def build_optimizer(param_groups: list[ParamGroup], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer that `config.optimizer` names; ValueError where this device has none of that name."""
    groups = [dict(group) for group in param_groups]  # optimizers write their settings into them
    if config.optimizer == "sgd":
        return skip_dynamo(torch.optim.SGD)(groups, config.lr, config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "paged_adamw":
        return build_paged_adamw(param_groups, config, device)
    optimizer_class = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return skip_dynamo(optimizer_class)(groups, config.lr, config.betas, config.eps, weight_decay=config.weight_decay)


def count_state_copies(config: TrainConfig) -> int:
    """Return the tensors of each trained parameter's size that the optimizer has from its first step on."""
    return int(config.momentum != 0) if config.optimizer == "sgd" else 2


@cache
def skip_dynamo(optimizer_class: type[torch.optim.Optimizer]) -> Any:
    """Return an optimizer class with the same arithmetic that does not import torch._dynamo.

    The first call of a decorated method of `torch.optim` imports it, which takes longer than torch itself and matters
    to `torch.compile` alone, which is not used here.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(optimizer_class.step))
    return type(optimizer_class.__name__, (optimizer_class,), {**methods, "step": step})


def build_paged_adamw(
    param_groups: list[ParamGroup], config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Build QLoRA's AdamW (32 bits), whose state moves to CPU memory when the GPU is full; ValueError without CUDA."""
    if device.type != "cuda":
        raise ValueError(
            f"train.optimizer=paged_adamw: expected a CUDA GPU, from which its state is paged to the CPU, got "
            f"{device.type}. Set train.optimizer=adamw, the same without paging."
        )
    try:
        from bitsandbytes.optim.adamw import PagedAdamW32bit
    except ImportError as error:
        raise ValueError(
            "train.optimizer=paged_adamw: expected bitsandbytes, got no such package. "
            "Install it by pip install 'vlprompt[lm]', or set train.optimizer=adamw, the same without paging."
        ) from error
    return PagedAdamW32bit(param_groups, config.lr, config.betas, config.eps, config.weight_decay)


def export_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy the optimizer state as {"parameter/name": tensor}; step counts become tensors too."""
    tensors: dict[str, Tensor] = {}
    for i, slots in optimizer.state_dict()["state"].items():
        flat = {k: v for k, v in slots.items() if not isinstance(v, dict)}
        for nested in (v for v in slots.values() if isinstance(v, dict)):  # bitsandbytes nests its state
            flat |= nested
        for k, v in flat.items():
            if isinstance(v, Tensor | int):
                tensors[f"{i}/{k}"] = torch.as_tensor(v).detach().clone()
    return tensors


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `export_optimizer_state` returned."""
    slots: dict[int, dict[str, Tensor | int]] = {}
    for name, tensor in tensors.items():
        i, _, key = name.partition("/")
        slots.setdefault(int(i), {})[key] = int(tensor) if tensor.dtype == torch.int64 else tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
