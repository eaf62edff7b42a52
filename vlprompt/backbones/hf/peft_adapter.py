"""PEFT adapters on a frozen model that share its tensors and leave it unchanged."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf import export, peft_format
from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.weight_merging import copy_sharing_tensors
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import LanguageTower

ADAPTER_NAME = "default"  # PEFT's own name of the one adapter of a model
SOFT_TOKEN_TYPES = ("PROMPT_TUNING", "P_TUNING")
TENSOR_SHARING_TYPES = (  # types known not to change the frozen tensors, so that these can be shared
    "LORA", "ADALORA", "VERA", "IA3", "LN_TUNING", "LOHA", "LOKR", "OFT", "BOFT", "FOURIERFT", "HRA", "VBLORA",
    "RANDLORA", "TRAINABLE_TOKENS",
)  # fmt: skip


class PeftAdapter:
    """A model with an adapter of PEFT.

    Args:
        lm: the frozen model.
        config: arguments of PEFT's configuration and its peft_type; or `path`, the folder of an adapter to start from.
        seed: seed of the initial values.

    Attributes:
        tower: the model with the adapter (of soft tokens and prefixes the frozen model; `prompt` returns them).
        trainable_parameters: by their names in PEFT.
        extra_state: further tensors that a resumed run needs (AdaLoRA: importance of each value, active values).

    Raises:
        ValueError: if PEFT is not installed, or PEFT or the model can't make the adapter.
    """

    def __init__(self, lm: FrozenTransformer, config: Mapping[str, Any], seed: int):
        peft = peft_format.import_peft()
        self.requested_config, self.seed = config, seed
        arguments = copy.deepcopy(dict(config))  # PEFT changes its arguments
        path, self.total_steps = arguments.pop("path", None), arguments.get("total_step")
        self.lm = lm
        folder = Path(path).expanduser() if path else None
        if folder is not None:
            self.config = peft_format.read_config(lm, folder, arguments)
        else:
            self.config = peft_format.build_config(lm, arguments)
        self.peft_type = str(self.config.peft_type.value)
        can_share = self.config.is_prompt_learning or self._can_share_tensors()
        net = copy_sharing_tensors(lm.net) if can_share else copy.deepcopy(lm.net)
        devices = [lm.device] if lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            try:
                self.net = peft.get_peft_model(net, self.config, ADAPTER_NAME)
            except (ValueError, TypeError, NotImplementedError, AttributeError, StopIteration) as error:
                raise ValueError(peft_format.describe_peft_error(lm, self.peft_type, error)) from error
        if folder is not None:
            peft_format.load_weights(lm, self.net, folder)
        self.trainable_parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.net.named_parameters() if p.requires_grad
        }
        if self.config.is_prompt_learning:
            self.tower = cast(LanguageTower, lm)
        else:
            tower = copy.copy(lm)
            tower.is_cacheable = False
            tower.attach_model(self.net.get_base_model())
            self.tower = cast(LanguageTower, tower)
        self.adapted_layers = [module for module in self.net.modules() if not peft_format.is_plain_module(module)]
        parameters = self.trainable_parameters.items() if self.peft_type == "ADALORA" else ()
        self.adalora_parameters = {
            name.removeprefix("base_model.model."): p for name, p in parameters if ".lora_" in name
        }
        self.extra_state = self._initial_adalora_state()
        self.train(False)

    def _initial_adalora_state(self) -> dict[str, Tensor]:
        """Return mean and spread of the importance of each value, and the active singular values."""
        state = dict[str, Tensor]()
        for name, p in self.adalora_parameters.items():
            state |= {f"{name}.mean": torch.zeros_like(p.data), f"{name}.spread": torch.zeros_like(p.data)}
            if "lora_E" in name:
                state[f"{name}.kept"] = torch.ones(len(p), dtype=torch.bool, device=p.device)
        return state

    def _can_share_tensors(self) -> bool:
        """Whether neither initialisation nor training changes the frozen tensors in place."""
        init = getattr(self.config, "init_lora_weights", True)
        return (
            self.peft_type in TENSOR_SHARING_TYPES
            and init in (True, False, "gaussian", "orthogonal")
            and getattr(self.config, "bias", "none") == "none"
        )

    def prompt(self) -> Prompt:
        """Return the tokens (1, P, D) or the prefix of a prompt-learning type; otherwise an empty prompt."""
        if not self.config.is_prompt_learning:
            return NOTHING
        indices: Tensor = self.net.prompt_tokens[ADAPTER_NAME][None]
        embeddings: Tensor = self.net.prompt_encoder[ADAPTER_NAME](indices.to(self.lm.device))
        if self.peft_type in SOFT_TOKEN_TYPES:
            return Prompt(tokens={0: embeddings})
        layers = self.lm.prefix_layers
        shape = (1, embeddings.shape[1], 2 * len(layers), self.lm.n_heads, self.lm.head_dim)
        key_values = embeddings.view(shape).permute(2, 0, 3, 1, 4).split(2)  # per layer (2, 1, H, P, Dh)
        return Prompt(prefix={layer: (kv[0], kv[1]) for layer, kv in zip(layers, key_values, strict=True)})

    def train(self, mode: bool) -> None:
        """Set the adapter's dropout on or off; that of the frozen model stays off."""
        for layer in self.adapted_layers:
            layer.training = mode
            for name, child in layer.named_children():
                if name not in ("base_layer", "original_module"):
                    child.train(mode)
        if self.config.is_prompt_learning:
            self.net.prompt_encoder.train(mode)

    # AdaLoRA: prunes the least important singular values, step by step

    def penalty(self) -> Tensor | None:
        """Return AdaLoRA's weighted orthogonality penalty; None for other types."""
        if self.peft_type != "ADALORA":
            return None
        vectors = [(name, p) for name, p in self.adalora_parameters.items() if "lora_E" not in name]
        grams = [p @ p.T if "lora_A" in name else p.T @ p for name, p in vectors]
        distances = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.config.orth_reg_weight * torch.stack(distances).mean()

    def end_step(self, step: int, steps: int) -> None:
        """Update AdaLoRA's ranks after an optimizer step, before gradients are cleared.

        Args:
            step: number of the step, from 1.
            steps: number of steps of the training.

        Raises:
            ValueError: if the training is not as long as the configuration says.
        """
        if self.peft_type != "ADALORA":
            return
        self._check_schedule(steps)
        allocator = self.net.base_model.rankallocator
        allocator.exp_avg_ipt = {name: self.extra_state[f"{name}.mean"] for name in self.adalora_parameters}
        allocator.exp_avg_unc = {name: self.extra_state[f"{name}.spread"] for name in self.adalora_parameters}
        allocator.ipt = dict.fromkeys(self.adalora_parameters)  # PEFT uses only the keys
        self.config.rank_pattern = self._rank_pattern()
        self.net.base_model.update_and_allocate(step)
        for name in allocator.exp_avg_ipt:
            self.extra_state[f"{name}.mean"].copy_(allocator.exp_avg_ipt[name])
            self.extra_state[f"{name}.spread"].copy_(allocator.exp_avg_unc[name])
        for name, is_active in self.config.rank_pattern.items():
            self.extra_state[f"{name}.kept"].copy_(torch.tensor(is_active))

    def _check_schedule(self, total_steps: int) -> None:
        first, last = self.config.tinit, self.config.tfinal
        if self.total_steps is not None and self.total_steps != total_steps:
            raise ValueError(
                f"method.config.total_step: expected the {total_steps} steps of this training, got "
                f"{self.total_steps}. Leave total_step out."
            )
        if first >= total_steps - last:
            raise ValueError(
                f"method.config: expected tinit and tfinal below the {total_steps} steps of this training in sum, as "
                f"AdaLoRA prunes only between them, got tinit={first} and tfinal={last}. Lower them, or train longer."
            )
        self.config.total_step = total_steps

    def _rank_pattern(self) -> dict[str, list[bool]]:
        """Return which singular values are active, by PEFT's names."""
        return {name[:-5]: mask.tolist() for name, mask in self.extra_state.items() if name.endswith(".kept")}

    def save(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Write adapter_config.json and adapter_model.safetensors, as PEFT loads them."""
        from peft import get_peft_model_state_dict

        config = self.net.peft_config[ADAPTER_NAME] = copy.deepcopy(self.config)  # PEFT changes it
        if self.peft_type == "ADALORA":
            config.rank_pattern = self._rank_pattern()
        tensors = get_peft_model_state_dict(self.net, save_embedding_layers=False)
        self.net.peft_config[ADAPTER_NAME] = self.config
        peft_format.write_adapter(folder, config, tensors, metadata)

    def save_merged(self, folder: Path) -> None:
        """Save the model in float32 with the adapter merged; ValueError if that is impossible or not exact."""
        export.save_merged_adapter(self, folder)
