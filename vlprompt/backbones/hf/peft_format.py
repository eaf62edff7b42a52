"""Configurations and files of PEFT adapters: adapter_config.json and adapter_model.safetensors."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.logging import silence_bitsandbytes
from vlprompt.runtime.errors import suggest_nearest

CONFIG_FILE, TENSORS_FILE, METADATA_FILE = "adapter_config.json", "adapter_model.safetensors", "vlprompt.json"
UNSUPPORTED_TYPES = {  # type -> why a tower can't run it
    **dict.fromkeys(("ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW"), "it changes the passes of the model itself"),
    **dict.fromkeys(("MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"), "its prompt depends on more than the model"),
}


def import_peft() -> Any:
    """Import PEFT on first use, because it takes seconds; ValueError if it is not installed."""
    silence_bitsandbytes()
    try:
        import peft
    except ImportError as error:
        raise ValueError("peft: expected an installed package, got none. Run pip install 'vlprompt[lm]'.") from error
    return peft


def build_config(lm: FrozenTransformer, arguments: dict[str, Any]) -> Any:
    """Build PEFT's configuration.

    Args:
        lm: the model of the adapter.
        arguments: peft_type and the arguments of its configuration; changed in place.

    Raises:
        ValueError: if the type or an argument is unknown, or PEFT would have to guess one.
    """
    peft_type = str(arguments.pop("peft_type", "")).upper()
    config_class = _find_config_class(peft_type)
    fields = {field.name for field in dataclasses.fields(config_class)}
    if unknown := [key for key in arguments if key not in fields]:
        raise ValueError(
            f"method.config: expected settings of PEFT's {peft_type}, got {unknown[0]!r}; "
            f"{suggest_nearest(unknown[0], fields)}"
        )
    if arguments.get("alora_invocation_tokens"):
        raise ValueError(
            "method.config.alora_invocation_tokens: expected none, as activated LoRA changes the passes of the model "
            f"itself, got {arguments['alora_invocation_tokens']}. Leave it out."
        )
    _check_target_modules(lm, peft_type, arguments, fields)
    if peft_type == "ADALORA":
        arguments.setdefault("total_step", int(arguments.get("tinit", 0)) + int(arguments.get("tfinal", 0)) + 1)
        _check_adalora_ranks(arguments)
    if "fan_in_fan_out" in fields:
        arguments.setdefault("fan_in_fan_out", any(hasattr(module, "nx") for module in lm.net.modules()))
    try:
        config = config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method.config: expected the settings of PEFT's {peft_type}, got others: {' '.join(str(error).split())}. "
            "Correct them."
        ) from error
    return complete_config(lm, config)


def _find_config_class(peft_type: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if peft_type in UNSUPPORTED_TYPES:
        raise ValueError(
            f"method.config.peft_type: expected a type that runs in a frozen model, got {peft_type}: "
            f"{UNSUPPORTED_TYPES[peft_type]}. Use another type, such as LORA."
        )
    classes = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    supported = {kind: cls for kind, cls in classes.items() if kind not in UNSUPPORTED_TYPES}
    if peft_type not in supported:
        raise ValueError(
            f"method.config.peft_type: expected a type of PEFT, got {peft_type or 'none'}; "
            f"{suggest_nearest(peft_type, supported)}"
        )
    return supported[peft_type]


def _check_adalora_ranks(arguments: Mapping[str, Any]) -> None:
    init_r, target_r = arguments.get("init_r", 12), arguments.get("target_r", 8)
    if int(target_r) >= int(init_r):
        raise ValueError(
            "method.config: expected init_r above target_r, as AdaLoRA lowers the mean rank from the one to the "
            f"other, got init_r={init_r} and target_r={target_r}. Set a higher init_r."
        )


def _check_target_modules(
    lm: FrozenTransformer, peft_type: str, arguments: Mapping[str, Any], fields: set[str]
) -> None:
    """Raise ValueError if PEFT would have to guess the target modules."""
    target_modules = arguments.get("target_modules")
    if target_modules == "all-linear":
        raise ValueError(
            "method.config.target_modules: expected names of linear maps, got 'all-linear', which PEFT would have to "
            f"guess. {describe_linear_maps(lm)}"
        )
    needed = "target_modules" in fields and peft_type != "TRAINABLE_TOKENS" and not arguments.get("target_parameters")
    if needed and not target_modules:
        raise ValueError(
            f"method.config.target_modules: expected names of linear maps for PEFT's {peft_type}, got none. "
            f"{describe_linear_maps(lm)}"
        )
    if peft_type == "IA3" and "feedforward_modules" not in arguments:
        raise ValueError(
            "method.config.feedforward_modules: expected for PEFT's IA3 those of target_modules whose input is "
            "scaled, such as the map down of an MLP, got none. Name them, or set []."
        )


def complete_config(lm: FrozenTransformer, config: Any) -> Any:
    """Set what PEFT would guess about the model in a configuration; ValueError if the model can't have it."""
    peft_type = str(config.peft_type.value)
    if peft_type == "PREFIX_TUNING":
        _require_peft_prefix(lm)
    if config.is_prompt_learning:
        config.num_transformer_submodules = 1
        config.inference_mode = False
    if peft_type == "PREFIX_TUNING":
        config.num_layers, config.num_attention_heads = len(lm.prefix_layers), lm.n_heads
        config.token_dim = lm.n_heads * lm.head_dim
    if config.task_type is None:
        encoder_task = "FEATURE_EXTRACTION" if config.is_prompt_learning else None
        config.task_type = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}.get(lm.kind, encoder_task)
    config.base_model_name_or_path = get_base_model_name(lm)
    return config


def _require_peft_prefix(lm: FrozenTransformer) -> None:
    """Raise ValueError if PEFT's prefix is another one than ours in this model, or none."""
    family = lm.net.config.model_type
    difference = ""
    if lm.kind == "seq2seq":
        difference = (
            "for an encoder-decoder, got PREFIX_TUNING, which differs from ours: only the decoder's own attention sees "
            "it, layer i that of layer 2 i modulo their number, with the position bias of tokens"
        )
    elif family == "distilbert":
        difference = (
            f"for a {family} model, got PREFIX_TUNING, which changes nothing there: it takes no keys and values from "
            "PEFT"
        )
    if difference:
        raise ValueError(
            f"method.config.peft_type: expected another type {difference}. Use method prefix_tuning instead; its "
            "prefix can't be exported as an adapter."
        )


def get_base_model_name(lm: FrozenTransformer) -> str:
    """Return the folder of a model, or its name on the hub."""
    name = lm.spec.partition(":")[2]
    return str(Path(name).expanduser()) if name.startswith("~") else name


def describe_linear_maps(lm: FrozenTransformer) -> str:
    """Return the names of a model's linear maps, for an error message."""
    by_kind: dict[str, str] = {}
    names = {id(module): name for name, module in lm.net.named_modules()}
    for layer in lm.layer_modules.values():
        fused = {} if layer.fused_qkv is None else {"q, k and v": layer.fused_qkv}
        for kind, module in {**layer.maps, **fused}.items():
            by_kind.setdefault(kind, names[id(module)].rpartition(".")[2])
    linear = {kind: name for kind, name in by_kind.items() if not kind.startswith("norm")}
    listing = ", ".join(f"{name} ({kind})" for kind, name in linear.items())
    return f"Name those that you want of the linear maps of a {lm.net.config.model_type} model: {listing}."


def describe_peft_error(lm: FrozenTransformer, peft_type: str, error: Exception) -> str:
    """Return the error message if PEFT can't make an adapter."""
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"method.config: expected an adapter that PEFT can make on {lm.spec}, got {peft_type} ({cause}). "
        f"{describe_linear_maps(lm)}"
    )


# files


def write_adapter(folder: Path, config: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write an adapter's two files, and our metadata (which weights it was trained on) in a third."""
    from safetensors.torch import save_file

    config = copy.deepcopy(config)
    config.inference_mode = True  # as PEFT does
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        # without views, which safetensors refuses
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(copies, folder / TENSORS_FILE, metadata={"format": "pt"})
        (folder / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise OSError(f"{str(folder)!r}: writing failed ({error}). Make room or name another folder.") from error


def read_config(lm: FrozenTransformer, folder: Path, overrides: dict[str, Any]) -> Any:
    """Read the configuration of a saved adapter, to continue its training.

    Args:
        lm: the model of the adapter.
        folder: the adapter's folder.
        overrides: may have base_model_name_or_path, which declares a base of another name the same model.

    Raises:
        OSError: if a file is missing.
        ValueError: if the adapter belongs to another model, its type is unsupported, or there are other overrides.
    """
    from peft import PeftConfig

    if not (folder / CONFIG_FILE).is_file() or not (folder / TENSORS_FILE).is_file():
        raise OSError(
            f"{str(folder)!r}: expected an adapter, got no {CONFIG_FILE} and {TENSORS_FILE}. Name the folder that has "
            "both."
        )
    try:
        saved_base = json.loads((folder / CONFIG_FILE).read_text("utf-8")).get("base_model_name_or_path")
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(folder / CONFIG_FILE)!r}: expected a configuration of PEFT, got another file ({error}). Save the "
            "adapter again."
        ) from error
    peft_type = str(getattr(config.peft_type, "value", config.peft_type))
    if peft_type in UNSUPPORTED_TYPES:
        raise ValueError(
            f"{str(folder)!r}: expected an adapter of a type that runs in a frozen model, got {peft_type}: "
            f"{UNSUPPORTED_TYPES[peft_type]}. Use another adapter."
        )
    _require_same_base(lm, folder, str(overrides.pop("base_model_name_or_path", None) or saved_base or ""))
    task = getattr(config.task_type, "value", config.task_type)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}[task] != lm.kind:
        raise ValueError(
            f"{str(folder)!r}: expected an adapter for {lm.spec}, a model of kind {lm.kind}, got one for {task}. Name "
            "the model that it was made for by --backbone."
        )
    if overrides:
        raise ValueError(
            f"method.config: expected no other settings next to path, got {', '.join(overrides)}. Leave them out."
        )
    if peft_type == "P_TUNING":  # the file has no prompt encoder, only the tokens that it computed
        from peft import PromptTuningConfig

        config = PromptTuningConfig(num_virtual_tokens=config.num_virtual_tokens, task_type=config.task_type)
    if peft_type == "PREFIX_TUNING":
        config.prefix_projection = False  # likewise
    config.inference_mode = False
    return complete_config(lm, config)


def _require_same_base(lm: FrozenTransformer, folder: Path, base: str) -> None:
    """Raise ValueError for an adapter of other weights or, if these are unknown, of a model of another name."""
    metadata = json.loads((folder / METADATA_FILE).read_text("utf-8")) if (folder / METADATA_FILE).is_file() else {}
    name, weights = get_base_model_name(lm), lm.key.partition("#")[2]
    if "weights" in metadata:
        is_same = metadata["weights"] == weights
    else:
        is_same = _last_path_part(base) in ("", _last_path_part(name))
    if not is_same:
        raise ValueError(
            f"{str(folder)!r}: expected an adapter of the backbone {name}, got one of {base or 'other weights'}. Name "
            f"the right one by --backbone, or, if it is the same model, set base_model_name_or_path: {name} next to "
            "the path."
        )


def _last_path_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def load_weights(lm: FrozenTransformer, net: Any, folder: Path) -> None:
    """Load an adapter's tensors into a model with the same adapter; ValueError if they don't fit."""
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / TENSORS_FILE, device=str(lm.device))
        load_result = set_peft_model_state_dict(net, tensors)
    except (RuntimeError, KeyError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{str(folder)!r}: expected an adapter that fits {lm.spec}, got other tensors ({cause}). Name the model "
            "that it was made for by --backbone."
        ) from error
    is_prompt = net.active_peft_config.is_prompt_learning  # then PEFT has checked its only tensor
    trainable = {name for name, p in net.named_parameters() if p.requires_grad and not is_prompt}
    missing = [name for name in load_result.missing_keys if name in trainable]
    unexpected = [name for name in load_result.unexpected_keys if not is_prompt or name != "prompt_embeddings"]
    if unmatched := [*missing, *unexpected]:
        raise ValueError(
            f"{str(folder)!r}: expected an adapter of {lm.spec}, got one of another model: {unmatched[0]!r} has no "
            "counterpart. Name the model that it was made for by --backbone."
        )


def is_plain_module(module: nn.Module) -> bool:
    """Whether PEFT has not wrapped a module."""
    return not hasattr(module, "base_layer") and not hasattr(module, "original_module")
