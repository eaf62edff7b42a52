"""PEFT's configurations and its files, for a model that is a tower here: adapter_config.json and its tensors."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlprompt.backbones.hf.forward import Passes
from vlprompt.backbones.hf.logging import hush_bitsandbytes
from vlprompt.runtime.errors import nearest

CONFIG, TENSORS, OURS = "adapter_config.json", "adapter_model.safetensors", "vlprompt.json"
ALONE = {  # types that have no place in a pass that is made elsewhere
    **dict.fromkeys(("ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW"), "it changes the passes of the model itself"),
    **dict.fromkeys(("MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"), "its prompt depends on more than the model"),
}


def library() -> Any:
    """PEFT, imported where it is used, for that takes seconds; ValueError where it is not installed."""
    hush_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise ValueError("PEFT is not installed: pip install 'vlprompt[lm]'") from error
    return peft


def made(lm: Passes, given: dict[str, Any]) -> Any:
    """PEFT's configuration of these arguments; ValueError for those that it does not know, or that would be guessed."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value not in ALONE}
    kind = str(given.pop("peft_type", "")).upper()
    if kind in ALONE:
        raise ValueError(f"peft_type {kind} can't be used here: {ALONE[kind]}; take another type, such as LORA")
    if kind not in known:
        raise ValueError(f"method.config.peft_type is {kind or 'missing'}; {nearest(kind, known)}")
    fields = {field.name for field in dataclasses.fields(known[kind])}
    if strange := [key for key in given if key not in fields]:
        raise ValueError(f"PEFT's {kind} has no setting {strange[0]!r}; {nearest(strange[0], fields)}")
    if given.get("alora_invocation_tokens"):
        raise ValueError(
            "activated LoRA (alora_invocation_tokens) changes the passes of the model itself: leave it out"
        )
    _named(lm, kind, given, fields)
    if kind == "ADALORA":
        given.setdefault("total_step", int(given.get("tinit", 0)) + int(given.get("tfinal", 0)) + 1)
        if int(given.get("target_r", 8)) >= int(given.get("init_r", 12)):
            raise ValueError(
                f"AdaLoRA goes from a mean rank of init_r={given.get('init_r', 12)} down to target_r="
                f"{given.get('target_r', 8)}: give a higher init_r"
            )
    if "fan_in_fan_out" in fields:
        given.setdefault("fan_in_fan_out", any(hasattr(module, "nx") for module in lm.net.modules()))
    try:
        config = known[kind](**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method.config is not one of PEFT's {kind}: {' '.join(str(error).split())}") from error
    return fitted(lm, config)


def _named(lm: Passes, kind: str, given: Mapping[str, Any], fields: set[str]) -> None:
    """ValueError where PEFT would have to guess which maps are meant."""
    wanted = given.get("target_modules")
    if wanted == "all-linear":
        raise ValueError(f"target_modules=all-linear is a guess; {maps(lm)}")
    needed = "target_modules" in fields and kind != "TRAINABLE_TOKENS" and not given.get("target_parameters")
    if needed and not wanted:
        raise ValueError(f"PEFT's {kind} needs target_modules in method.config; {maps(lm)}")
    if kind == "IA3" and "feedforward_modules" not in given:
        raise ValueError(
            "PEFT's IA3 needs feedforward_modules in method.config: those of target_modules whose input is scaled, "
            "such as the map down of an MLP, or []"
        )


def fitted(lm: Passes, config: Any) -> Any:
    """A configuration for this model: what PEFT would else guess of it is told; ValueError where it does not fit."""
    kind = str(config.peft_type.value)
    if kind == "PREFIX_TUNING" and lm.kind == "seq2seq":
        raise ValueError(
            "PEFT's prefix of an encoder-decoder is another thing than ours: only the decoder's own attention sees it, "
            "layer i that of layer 2 i modulo their number, with the position bias of tokens; take method "
            "prefix_tuning instead"
        )
    if config.is_prompt_learning:
        config.num_transformer_submodules = 1
        config.inference_mode = False
    if kind == "PREFIX_TUNING":
        config.num_layers, config.num_attention_heads = len(lm.layers), lm.heads
        config.token_dim = lm.heads * lm.head_dim
    if config.task_type is None:
        other = "FEATURE_EXTRACTION" if config.is_prompt_learning else None
        config.task_type = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(lm.kind, other)
    config.base_model_name_or_path = base_of(lm)
    return config


def base_of(lm: Passes) -> str:
    """The folder of a model, or its name on the hub."""
    return lm.spec.partition(":")[2]


def maps(lm: Passes) -> str:
    """What the linear maps of a model are called, for a message."""
    by_kind: dict[str, str] = {}
    names = {id(module): name for name, module in lm.net.named_modules()}
    for place in lm.places.values():
        fused = {} if place.fused is None else {"q, k and v": place.fused}
        for kind, module in {**place.maps, **fused}.items():
            by_kind.setdefault(kind, names[id(module)].rpartition(".")[2])
    linear = {kind: name for kind, name in by_kind.items() if not kind.startswith("norm")}
    found = ", ".join(f"{name} ({kind})" for kind, name in linear.items())
    return f"the linear maps of a {lm.net.config.model_type} model are {found}: name those that you want"


def refused(lm: Passes, kind: str, error: Exception) -> str:
    """What to say where PEFT can't make an adapter."""
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    return f"PEFT makes no {kind} adapter on {lm.spec}: {cause}; {maps(lm)}"


# files


def write(folder: Path, config: Any, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
    """An adapter's two files, and beside them what PEFT has no place for: which weights it was made for."""
    from safetensors.torch import save_file

    config = copy.deepcopy(config)
    config.inference_mode = True  # as PEFT writes it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(whole, folder / TENSORS, metadata={"format": "pt"})
        (folder / OURS).write_text(json.dumps(dict(told), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise OSError(f"could not write into {str(folder)!r} ({error}); make room or name another folder") from error


def read(lm: Passes, folder: Path, over: dict[str, Any]) -> Any:
    """The configuration of an adapter's folder, to go on training it; ValueError for an adapter of another model.

    over: settings that are to be others; base_model_name_or_path says that a base of another name is the same.
    """
    from peft import PeftConfig

    if not (folder / CONFIG).is_file() or not (folder / TENSORS).is_file():
        raise OSError(f"the folder {str(folder)!r} holds no adapter: it must have {CONFIG} and {TENSORS}")
    told = json.loads((folder / OURS).read_text("utf-8")) if (folder / OURS).is_file() else {}
    try:
        about = json.loads((folder / CONFIG).read_text("utf-8"))
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(folder / CONFIG)!r} is no configuration of PEFT: {error}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind in ALONE:
        raise ValueError(f"an adapter of type {kind} can't be used here: {ALONE[kind]}")
    base = str(over.pop("base_model_name_or_path", None) or about.get("base_model_name_or_path") or "")
    mine, weights = base_of(lm), lm.key.partition("#")[2]
    same = told["weights"] == weights if "weights" in told else _last(base) in ("", _last(mine))
    if not same:
        raise ValueError(
            f"the adapter in {str(folder)!r} was made for {base or 'other weights'}, and the backbone is {mine}: name "
            "the right one by --backbone, or, where it is the same model, give "
            f"base_model_name_or_path: {mine} beside the path"
        )
    task = getattr(config.task_type, "value", config.task_type)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}[task] != lm.kind:
        raise ValueError(f"the adapter in {str(folder)!r} is for {task}, and {lm.spec} is of another kind: {lm.kind}")
    if over:
        raise ValueError(f"beside a path nothing else is said of an adapter; leave {', '.join(over)} out")
    if kind == "P_TUNING":  # its encoder is not in the file, only the tokens that it made
        from peft import PromptTuningConfig

        config = PromptTuningConfig(num_virtual_tokens=config.num_virtual_tokens, task_type=config.task_type)
    if kind == "PREFIX_TUNING":
        config.prefix_projection = False  # likewise
    config.inference_mode = False
    return fitted(lm, config)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def load(lm: Passes, net: Any, folder: Path) -> None:
    """An adapter's tensors into a model that has its places; ValueError where they are of another model."""
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / TENSORS, device=str(lm.device))
        told = set_peft_model_state_dict(net, tensors)
    except (RuntimeError, KeyError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter in {str(folder)!r} does not fit {lm.spec}: {cause}") from error
    whole = net.active_peft_config.is_prompt_learning  # then it is one tensor, and it has been looked for
    learned = {name for name, p in net.named_parameters() if p.requires_grad and not whole}
    strange = [name for name in told.unexpected_keys if not whole or name != "prompt_embeddings"]
    if strange := [*(name for name in told.missing_keys if name in learned), *strange]:
        raise ValueError(
            f"the adapter in {str(folder)!r} is of another model than {lm.spec}: {strange[0]!r} has no counterpart"
        )


def plain(module: nn.Module) -> bool:
    """Whether nothing of PEFT's stands around a map."""
    return not hasattr(module, "base_layer") and not hasattr(module, "original_module")
