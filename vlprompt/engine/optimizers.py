"""Build optimizers by name, and export and load their state as tensors."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.method import ParamGroup
from vlprompt.engine.train_config import TrainConfig

MAX_LOOPED_PARAMETERS = 8  # on a CPU
GRAPH_CHECKS = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # names of two versions


def build_optimizer(param_groups: list[ParamGroup], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer that `config.optimizer` names; ValueError where this device has none of that name."""
    groups: list[dict[str, Any]] = [dict(group) for group in param_groups]  # optimizers write their settings into them
    # beyond a few parameters torch's loop in C++, with the same numbers, is faster than that in Python
    settings: dict[str, Any] = {"weight_decay": config.weight_decay, "foreach": None}
    if device.type == "cpu" and sum(len(group["params"]) for group in groups) > MAX_LOOPED_PARAMETERS:
        settings["foreach"] = True
    if config.optimizer == "sgd":
        return strip_decorators(torch.optim.SGD)(groups, config.lr, config.momentum, **settings)
    if config.optimizer == "paged_adamw":
        return build_paged_adamw(param_groups, config, device)
    optimizer_class = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return strip_decorators(optimizer_class)(groups, config.lr, config.betas, config.eps, **settings)


def count_state_copies(config: TrainConfig) -> int:
    """Return the tensors of each trained parameter's size that the optimizer has from its first step on."""
    return int(config.momentum != 0) if config.optimizer == "sgd" else 2


@cache
def strip_decorators(optimizer_class: type[torch.optim.Optimizer]) -> Any:
    """Return an optimizer class with the same arithmetic, without what torch puts around it.

    The first call of a decorated method of `torch.optim` imports torch._dynamo, which takes longer than torch itself
    and matters to `torch.compile` alone, which is not used here. Hooks for profilers, and the look for a CUDA graph
    that is being captured, take as long as a step of a small prompt.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(optimizer_class.step))
    vars(step)["hooked"] = True  # by which torch knows a step that it has wrapped
    methods |= {"step": step, **dict.fromkeys(GRAPH_CHECKS, lambda _: None)}
    return type(optimizer_class.__name__, (optimizer_class,), methods)


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
