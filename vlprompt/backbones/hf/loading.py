"""Load language models of transformers from a folder or the hub, also in 4 or 8 bits."""

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vlprompt.backbones.hf.architectures import ARCHITECTURES, Architecture, require_supported_options
from vlprompt.backbones.hf.forward import SENTENCE_TRANSFORMERS_POOLING
from vlprompt.backbones.hf.injection import ATTENTION_NAME, register_attention
from vlprompt.backbones.hf.language_model import LanguageModel
from vlprompt.backbones.hf.logging import silence_bitsandbytes, silence_transformers
from vlprompt.backbones.towers.freeze import fingerprint, freeze
from vlprompt.core.towers import WEIGHT_PRECISIONS

REQUIRED_FILES = (  # a folder must have one file of each line
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
)

HEAD_PREFIXES = ("cls.", "lm_head.", "vocab_", "pooler.")
# buffers of older releases, which are computed anew
IGNORED_SUFFIXES = (".inv_freq", ".attn.bias", ".attn.masked_bias", "position_ids")
# unused by T5, but in its published weights
IGNORED_SUFFIXES += ("EncDecAttention.relative_attention_bias.weight",)


def load_language_model(name: str, *, spec: str, device: str, base: str = "fp32") -> LanguageModel:
    """Load a causal model, an encoder or an encoder-decoder.

    Args:
        name: its folder, or its name on the hub.
        spec: the backbone as the user writes it.
        device: where it is placed.
        base: precision of the weights, a value of WEIGHT_PRECISIONS; int8 and nf4 (QLoRA's, with double quantisation)
            by bitsandbytes.

    Raises:
        ValueError: if the family is not supported, the folder does not exist, or the weights are incomplete.
        OSError: if a file is missing or can't be downloaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{spec!r}: expected the package transformers, got none. Run pip install 'vlprompt[lm]'."
        ) from error

    if base not in WEIGHT_PRECISIONS.values():
        raise ValueError(
            f"weight precision: expected one of {', '.join(WEIGHT_PRECISIONS.values())}, got {base!r}. Use one of them."
        )
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    check_source(name)
    register_attention()
    with _explain_errors(name, "a config.json that transformers reads"):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    model_class, kind = _find_model_class(config, name)
    options = _loading_options(base, spec, device)
    with _explain_errors(name, "weights of its config.json"), silence_transformers():
        net, loading_info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
        )
    require_matching_weights(name, loading_info, ARCHITECTURES[config.model_type])
    with _explain_errors(name, "a tokenizer that transformers reads"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    require_matching_tokenizer(net, tokenizer, name)
    missing_keys = sorted(loading_info["missing_keys"])
    for key in missing_keys:  # every process initialises them differently; they are never used
        net.get_parameter(key).data.zero_()
    has_lm_head = not [key for key in missing_keys if "pooler." not in key]
    return wrap_language_model(net, tokenizer, kind, spec, device, base, has_lm_head, read_pooling(Path(name)))


@contextmanager
def _explain_errors(name: str, expected: str) -> Iterator[None]:
    """Raise what libraries raise for files that they can't read, of any class, as ValueError or OSError with a name."""
    try:
        yield
    except OSError as error:
        raise OSError(_describe_loading_error(name, error)) from error
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        if isinstance(error, pickle.UnpicklingError):
            cause = "a pickle of more than tensors, which could run code and is not loaded"
        raise ValueError(
            f"{name!r}: expected {expected}, got others ({cause}). Get config.json and weights together, with their "
            "tokenizer."
        ) from error


def _loading_options(base: str, spec: str, device: str) -> dict[str, Any]:
    options = {"attn_implementation": ATTENTION_NAME, "dtype": torch.bfloat16 if base == "bf16" else torch.float32}
    if base in ("int8", "nf4"):
        options |= {"quantization_config": build_quantization_config(base, spec), "device_map": {"": device}}
    return options


def _describe_loading_error(name: str, error: OSError) -> str:
    message = f"could not load {name} ({' '.join(str(error).split())[:300]})"
    if Path(name).is_dir():
        return message
    return (
        f"{message}. Without a network: get {_describe_required_files()} of {name} on another machine, put them into "
        "one folder and use hf:path/to/it"
    )


def _describe_required_files() -> str:
    return ", ".join(" or ".join(names[:2]) for names in REQUIRED_FILES)


def wrap_language_model(
    net: Any,
    tokenizer: Any,
    kind: Any,
    spec: str,
    device: str = "cpu",
    base: str = "fp32",
    has_lm_head: bool = True,
    pooling: str = "",
) -> LanguageModel:
    """Make a tower of a model of transformers and its tokenizer; the model is frozen, in eval mode.

    Args:
        net: the model, with its head.
        tokenizer: its fast tokenizer.
        kind: "causal", "encoder" or "seq2seq".
        spec: the backbone as the user writes it.
        device: where the model is placed, unless it is quantised.
        base: precision of the weights, a value of WEIGHT_PRECISIONS.
        has_lm_head: whether the weights include the head over the vocabulary.
        pooling: "first", "last" or "mean"; "" for the default of the kind.
    """
    register_attention()
    family = ARCHITECTURES[net.config.model_type]
    net = _freeze_quantized(net) if base in ("int8", "nf4") else freeze(net, torch.device(device), spec)
    if net.config._attn_implementation != ATTENTION_NAME:
        net.set_attn_implementation(ATTENTION_NAME)
    tower = LanguageModel(
        net,
        tokenizer,
        family,
        kind,
        spec=spec,
        key=f"{spec}#{fingerprint(net)}",
        weight_precision=base,
        pooling=pooling,
        has_lm_head=has_lm_head,
    )
    if base == "nf4" and tower.device.type == "cpu":
        _note_inexact_widths(tower)
    return tower


def _freeze_quantized(net: Any) -> Any:
    net = net.eval().requires_grad_(False)
    for module in net.modules():  # its fast CPU kernel has no gradients and rounds the weights for good
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return net


def _note_inexact_widths(tower: LanguageModel) -> None:
    # bitsandbytes 0.50.2 reads scales as if every row started a block of 64
    if odd_widths := [width for width in _quantized_input_widths(tower.net) if width % 64]:
        tower.notes = {
            "4 bits": f"are read inexactly by bitsandbytes on a CPU where a map is {odd_widths[0]} wide, no multiple "
            "of 64; hf-int8: and hf-bf16: are not"
        }


def _quantized_input_widths(net: Any) -> list[int]:
    """Return the input widths of the quantised linear maps, each once."""
    return sorted({module.in_features for module in net.modules() if hasattr(module, "support_avx512bf16_for_cpu")})


def require_matching_weights(name: str, loading_info: Mapping[str, Any], architecture: Architecture) -> None:
    """Check that the weights are those that config.json describes; heads may be missing.

    Args:
        name: folder or name of the model, for errors.
        loading_info: of transformers: missing_keys, unexpected_keys and mismatched_keys.
        architecture: paths of the model's layers.

    Raises:
        ValueError: if weights have another shape, are missing, or would not be used.
    """
    if mismatched := sorted(loading_info["mismatched_keys"]):
        key, in_file, expected = mismatched[0]
        others = _count_others(mismatched)
        raise ValueError(
            f"{name!r}: expected weights of its config.json, got {key!r} of shape {tuple(in_file)} instead of "
            f"{tuple(expected)}{others}. Get config.json and weights together."
        )
    missing = [key for key in sorted(loading_info["missing_keys"]) if not _is_of_head(key)]
    if missing:
        raise ValueError(
            f"{name!r}: expected complete weights, but {missing[0]!r} and {len(missing) - 1} more are missing. "
            "Download them again."
        )
    stacks = [f"{stack.path}." for stack in architecture.stacks]
    unused = [
        key
        for key in sorted(loading_info["unexpected_keys"])
        if any(f".{stack}" in f".{key}" for stack in stacks) and not key.endswith(IGNORED_SUFFIXES)
    ]
    if unused:
        raise ValueError(
            f"{name!r}: expected weights of its config.json, got {unused[0]!r}{_count_others(unused)}, for which its "
            "config.json has no place. Get config.json and weights together."
        )


def _count_others(keys: Iterable[Any]) -> str:
    n = len(list(keys)) - 1
    return f" and {n} more" if n else ""


def _is_of_head(key: str) -> bool:
    return key.split("bert.")[-1].startswith(HEAD_PREFIXES) or key.startswith(HEAD_PREFIXES)


def require_matching_tokenizer(net: Any, tokenizer: Any, name: str) -> None:
    """Check that every token of the vocabulary has an embedding.

    Special tokens may lack one, as transformers adds some that the model never saw; TemplateTokenizer refuses texts
    with such a token.

    Args:
        net: the model.
        tokenizer: its tokenizer.
        name: folder or name of the model, for errors.

    Raises:
        ValueError: if a token has none.
    """
    n_embeddings = net.get_input_embeddings().weight.shape[0]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = {i: token for token, i in tokenizer.get_vocab().items() if i >= n_embeddings and i not in special}
    if unknown:
        first = min(unknown)
        raise ValueError(
            f"{name!r}: expected a tokenizer of the model, with ids below its {n_embeddings} embeddings, got one with "
            f"{unknown[first]!r} (id {first}){_count_others(unknown)}. Put the tokenizer that belongs to the weights "
            "into the folder, or resize the model's embeddings to it."
        )


def check_source(name: str) -> None:
    """Check that a name can be loaded.

    Raises:
        ValueError: if it is neither a folder nor a possible name on the hub.
        OSError: if the folder lacks a file.
    """
    folder = Path(name)
    if folder.is_dir():
        if lacking := [names for names in REQUIRED_FILES if not any((folder / file).is_file() for file in names)]:
            raise OSError(
                f"the folder {name!r} has no {' or '.join(lacking[0][:2])}; it must have {_describe_required_files()}"
            )
    elif name.count("/") > 1 or name[:1] in ("", ".", "/", "~"):
        raise ValueError(
            f"backbone: expected a folder or OWNER/NAME on the Hugging Face hub, got {name!r}, and there is no such "
            "folder. Check the path."
        )


def _find_model_class(config: Any, name: str) -> tuple[Any, str]:
    """Return the class that loads a model, and its kind; ValueError if its family or an option is not supported."""
    import transformers

    require_supported_options(config, name)
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM, "seq2seq"
    if config.model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"):
        return transformers.AutoModelForCausalLM, "causal"
    return transformers.AutoModelForMaskedLM, "encoder"


def read_pooling(folder: Path) -> str:
    """Read the pooling from a folder of sentence-transformers; "" if it has none.

    Raises:
        ValueError: for a pooling that is not one of ours.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return ""
    with _explain_errors(str(path), "a pooling of sentence-transformers"):
        config = dict(json.loads(path.read_text("utf-8")))
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    poolings = {f"pooling_mode_{key}": pool for pool, key in SENTENCE_TRANSFORMERS_POOLING.items()}
    if len(modes) == 1 and modes[0] in poolings:
        return poolings[modes[0]]
    if not modes:
        return ""
    raise ValueError(
        f"{str(path)!r}: expected one of {', '.join(poolings)}, got {' and '.join(modes)}. Remove the folder 1_Pooling "
        "to read the pooled feature as usual for the model's kind."
    )


def build_quantization_config(base: str, spec: str) -> Any:
    """Build transformers' configuration of bitsandbytes for int8 or nf4; ValueError if it is not installed."""
    import importlib.util

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            f"{spec!r}: expected bitsandbytes and accelerate, which exist for x86-64 and arm64 CPUs and for CUDA "
            "GPUs, got none. Run pip install 'vlprompt[lm]', or use hf-bf16: (half the memory) with the same method."
        )
    silence_bitsandbytes()
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )
