"""A PEFT adapter on a frozen model: what is trained stands around the same frozen tensors; the model stays whole."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf import export, peft_format
from vlprompt.backbones.hf.forward import Passes
from vlprompt.backbones.hf.weight_merging import shared_copy
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import LanguageTower

NAME = "default"  # PEFT's own name of the one adapter of a model
TOKENS = ("PROMPT_TUNING", "P_TUNING")
AROUND = (  # types that are known to leave the frozen tensors as they are, so that these can be shared
    "LORA", "ADALORA", "VERA", "IA3", "LN_TUNING", "LOHA", "LOKR", "OFT", "BOFT", "FOURIERFT", "HRA", "VBLORA",
    "RANDLORA", "TRAINABLE_TOKENS",
)  # fmt: skip


class Adapted:
    """A model with an adapter of PEFT.

    tower: the one to ask, with the adapter in it (for soft tokens and prefixes the frozen one, and `prompt` has them);
    trained: all that learns, by its names in PEFT; state: what else a resume needs (of AdaLoRA: how much each value
    matters, and which are kept).

    config: the arguments of PEFT's configuration with its peft_type; or a path, the folder of an adapter that is the
    start. seed: of initial values. ValueError for what PEFT or this model can't do, and where PEFT is not installed.
    """

    def __init__(self, lm: Passes, config: Mapping[str, Any], seed: int):
        peft = peft_format.library()
        self.asked, self.seed = config, seed
        given = copy.deepcopy(dict(config))  # PEFT writes into what it is given
        start, self.total = given.pop("path", None), given.get("total_step")
        self.lm = lm
        self.config = peft_format.read(lm, Path(start), given) if start else peft_format.made(lm, given)
        self.kind = str(self.config.peft_type.value)
        own = self.config.is_prompt_learning or self._shares()
        net = shared_copy(lm.net) if own else copy.deepcopy(lm.net)
        devices = [lm.device] if lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            try:
                self.net = peft.get_peft_model(net, self.config, NAME)
            except (ValueError, TypeError, NotImplementedError, AttributeError, StopIteration) as error:
                raise ValueError(peft_format.refused(lm, self.kind, error)) from error
        if start:
            peft_format.load(lm, self.net, Path(start))
        self.trained: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.net.named_parameters() if p.requires_grad
        }
        if self.config.is_prompt_learning:
            self.tower = cast(LanguageTower, lm)
        else:
            tower = copy.copy(lm)
            tower.lookup = False
            tower.moved(self.net.get_base_model())
            self.tower = cast(LanguageTower, tower)
        self.layers = [module for module in self.net.modules() if not peft_format.plain(module)]
        found = self.trained.items() if self.kind == "ADALORA" else ()
        self.values = {name.removeprefix("base_model.model."): p for name, p in found if ".lora_" in name}
        # how much each value matters and how that varies, and which singular values are kept
        self.state: dict[str, Tensor] = {}
        for name, p in self.values.items():
            self.state |= {f"{name}.mean": torch.zeros_like(p.data), f"{name}.spread": torch.zeros_like(p.data)}
            if "lora_E" in name:
                self.state[f"{name}.kept"] = torch.ones(len(p), dtype=torch.bool, device=p.device)
        self.train(False)

    def _shares(self) -> bool:
        """Whether nothing of the frozen model is changed where it stands, by initial values or by training."""
        init = getattr(self.config, "init_lora_weights", True)
        return (
            self.kind in AROUND
            and init in (True, False, "gaussian", "orthogonal")
            and getattr(self.config, "bias", "none") == "none"
        )

    def prompt(self) -> Prompt:
        """Tokens (1, P, D) or a prefix, of the types that have them."""
        if not self.config.is_prompt_learning:
            return NOTHING
        indices: Tensor = self.net.prompt_tokens[NAME][None]
        made: Tensor = self.net.prompt_encoder[NAME](indices.to(self.lm.device))
        if self.kind in TOKENS:
            return Prompt(tokens={0: made})
        n, heads, wide = made.shape[1], self.lm.heads, self.lm.head_dim
        kv = made.view(1, n, 2 * len(self.lm.layers), heads, wide).permute(2, 0, 3, 1, 4).split(2)
        return Prompt(prefix={layer: (one[0], one[1]) for layer, one in zip(self.lm.layers, kv, strict=True)})

    def train(self, mode: bool) -> None:
        """Dropout of the adapter; that of the frozen model stays off."""
        for layer in self.layers:
            layer.training = mode
            for name, part in layer.named_children():
                if name not in ("base_layer", "original_module"):
                    part.train(mode)
        if self.config.is_prompt_learning:
            self.net.prompt_encoder.train(mode)

    # AdaLoRA: singular values that matter least go, step by step

    def penalty(self) -> Tensor | None:
        """How far AdaLoRA's vectors are from orthogonal ones, times its weight; None for the other types."""
        if self.kind != "ADALORA":
            return None
        vectors = [(name, p) for name, p in self.values.items() if "lora_E" not in name]
        grams = [p @ p.T if "lora_A" in name else p.T @ p for name, p in vectors]
        far = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.config.orth_reg_weight * torch.stack(far).mean()

    def stepped(self, step: int, total: int) -> None:
        """After the optimizer's step number `step` (from 1) of `total`, while the gradients are there.

        ValueError where the training is not as long as the configuration says.
        """
        if self.kind != "ADALORA":
            return
        self._timed(total)
        allocator = self.net.base_model.rankallocator
        allocator.exp_avg_ipt = {name: self.state[f"{name}.mean"] for name in self.values}
        allocator.exp_avg_unc = {name: self.state[f"{name}.spread"] for name in self.values}
        allocator.ipt = dict.fromkeys(self.values)  # PEFT asks only which are there
        self.config.rank_pattern = self._kept()
        self.net.base_model.update_and_allocate(step)
        for name in allocator.exp_avg_ipt:
            self.state[f"{name}.mean"].copy_(allocator.exp_avg_ipt[name])
            self.state[f"{name}.spread"].copy_(allocator.exp_avg_unc[name])
        for name, kept in self.config.rank_pattern.items():
            self.state[f"{name}.kept"].copy_(torch.tensor(kept))

    def _timed(self, total: int) -> None:
        first, last = self.config.tinit, self.config.tfinal
        if self.total is not None and self.total != total:
            raise ValueError(
                f"method.config.total_step={self.total}, but this training takes {total} steps: leave total_step out"
            )
        if first >= total - last:
            raise ValueError(
                f"AdaLoRA takes nothing away for tinit={first} steps and at the end for tfinal={last}, and this "
                f"training takes {total}: lower them, or train longer"
            )
        self.config.total_step = total

    def _kept(self) -> dict[str, list[bool]]:
        """Which singular values there still are, by PEFT's names."""
        return {name[:-5]: mask.tolist() for name, mask in self.state.items() if name.endswith(".kept")}

    def save(self, folder: Path, told: Mapping[str, Any]) -> None:
        """adapter_config.json and adapter_model.safetensors, as PEFT loads them."""
        from peft import get_peft_model_state_dict

        config = self.net.peft_config[NAME] = copy.deepcopy(self.config)  # PEFT writes into it
        if self.kind == "ADALORA":
            config.rank_pattern = self._kept()
        tensors = get_peft_model_state_dict(self.net, save_embedding_layers=False)
        self.net.peft_config[NAME] = self.config
        peft_format.write(folder, config, tensors, told)

    def save_merged(self, folder: Path) -> None:
        """The whole model with the adapter in its weights, in float32; ValueError where that can't be exact."""
        export.save_merged_adapter(self, folder)
