"""Loading a language model of transformers from a folder or the hub, as it is or in 4 or 8 bits."""

import json
from pathlib import Path
from typing import Any

import torch

from vlprompt.backbones.hf.architectures import FAMILIES
from vlprompt.backbones.hf.forward import POOLING
from vlprompt.backbones.hf.injection import ATTENTION, register
from vlprompt.backbones.hf.language_model import LM
from vlprompt.backbones.hf.logging import hush_bitsandbytes, quiet
from vlprompt.backbones.towers.freeze import fingerprint, freeze
from vlprompt.core.towers import HELD

FILES = (  # what a folder must have: one of each line
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model"),
)


def language(name: str, *, spec: str, device: str, base: str = "fp32") -> LM:
    """A causal model, an encoder or an encoder-decoder by its folder or its name on the hub.

    base: how its weights are held, a value of HELD; int8 and nf4 (QLoRA's, with double quantisation) by bitsandbytes.
    ValueError for a family that has no recipe, a folder that is not there or weights that are not whole; OSError where
    files can't be had, saying which to put where.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{spec!r} needs transformers: pip install 'vlprompt[lm]'") from error
    from safetensors import SafetensorError

    if base not in HELD.values():
        raise ValueError(f"there is no base {base!r}; a language model is held as {', '.join(HELD.values())}")
    check_place(name)
    register()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        cls, kind = _class(config, name)
        how: dict[str, Any] = {"dtype": torch.bfloat16 if base == "bf16" else torch.float32}
        if base in ("int8", "nf4"):
            how |= {"quantization_config": quantised(base, spec), "device_map": {"": device}}
        with quiet():
            net, told = cls.from_pretrained(name, attn_implementation=ATTENTION, output_loading_info=True, **how)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights of {name!r} are not those of its config.json: {cause}") from error
    except OSError as error:
        cause = " ".join(str(error).split())[:300]
        wanted = ", ".join(" or ".join(names[:2]) for names in FILES)
        remedy = f"get {wanted} of {name} on another machine, put them into one folder and use hf:path/to/it"
        raise OSError(
            f"could not load {name} ({cause}){'' if Path(name).is_dir() else '. Without a network: ' + remedy}"
        ) from error
    heads = ("cls.", "lm_head.", "vocab_", "pooler.")
    missing = sorted(told["missing_keys"])
    if trunk := [key for key in missing if not key.split("bert.")[-1].startswith(heads) and not key.startswith(heads)]:
        raise ValueError(f"the weights of {name!r} are not whole: {trunk[0]!r} and {len(trunk) - 1} more are missing")
    for key in missing:  # drawn anew by every process; nothing reads them
        net.get_parameter(key).data.zero_()
    answers = not [key for key in missing if "pooler." not in key]
    return wrap(net, tokenizer, kind, spec, device, base, answers, pooling(Path(name)))


def wrap(net: Any, tokenizer: Any, kind: Any, spec: str, device: str = "cpu", base: str = "fp32", answers: bool = True,
         pool: str = "") -> LM:  # fmt: skip
    """A model of transformers and its tokenizer as a tower; the model is frozen, in eval mode."""
    register()
    family = FAMILIES[net.config.model_type]
    if base in ("int8", "nf4"):
        net = net.eval().requires_grad_(False)
        for module in net.modules():  # its fast form for CPUs has no gradients and rounds the weights, for good
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    else:
        net = freeze(net, torch.device(device))
    if net.config._attn_implementation != ATTENTION:
        net.set_attn_implementation(ATTENTION)
    made = LM(net, tokenizer, family, kind, spec=spec, key=f"{spec}#{fingerprint(net)}", base=base, pool=pool,
              answers=answers)  # fmt: skip
    # seen in bitsandbytes 0.50.2: scales are read as if every row began a block of 64
    if base == "nf4" and made.device.type == "cpu" and (odd := [w for w in _widths(net) if w % 64]):
        made.notes = {
            "4 bits": f"are read inexactly by bitsandbytes on a CPU where a map is {odd[0]} wide, no multiple of 64; "
            "hf-int8: and hf-bf16: are not"
        }
    return made


def _widths(net: Any) -> list[int]:
    """What the quantised maps are given, each width once."""
    return sorted({module.in_features for module in net.modules() if hasattr(module, "support_avx512bf16_for_cpu")})


def check_place(name: str) -> None:
    """ValueError for what can be no name, OSError for a folder that lacks a file."""
    folder = Path(name)
    if folder.is_dir():
        if lacking := [names for names in FILES if not any((folder / file).is_file() for file in names)]:
            wanted = ", ".join(" or ".join(names[:2]) for names in FILES)
            raise OSError(f"the folder {name!r} has no {' or '.join(lacking[0][:2])}; it must have {wanted}")
    elif name.count("/") > 1 or name[:1] in ("", ".", "/", "~"):
        raise ValueError(f"there is no folder {name!r}, and a name on the Hugging Face hub is OWNER/NAME")


def _class(config: Any, name: str) -> tuple[Any, str]:
    """The class that loads it, and what kind it is; ValueError for a family without a recipe."""
    import transformers

    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{name!r} is a model of type {config.model_type!r}, which vlprompt has no recipe for; it knows "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM, "seq2seq"
    if config.model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"):
        return transformers.AutoModelForCausalLM, "causal"
    return transformers.AutoModelForMaskedLM, "encoder"


def pooling(folder: Path) -> str:
    """How a folder of sentence-transformers says that its feature is made; "" where it says nothing."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return ""
    told = json.loads(path.read_text("utf-8"))
    return next((pool for pool, key in POOLING.items() if told.get(f"pooling_mode_{key}")), "")


def quantised(base: str, spec: str) -> Any:
    """How transformers asks bitsandbytes for 4 or 8 bits; ValueError where it can't be had, saying what instead."""
    import importlib.util

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise ValueError(
            f"{spec!r} needs bitsandbytes and accelerate (pip install 'vlprompt[lm]'), which there are for x86-64 and "
            "arm64 CPUs and for CUDA GPUs; elsewhere take hf-bf16: (half the memory) with the same method"
        )
    hush_bitsandbytes()
    if base == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                           bnb_4bit_compute_dtype=compute)  # fmt: skip
