"""Tiny random language models of six families, each with a tokenizer of its own, made without a network."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vlprompt.backbones import load_backbone
from vlprompt.backbones.hf.logging import silence_transformers
from vlprompt.core.towers import Backbone
from vlprompt.runtime.installation import require_package

TRAINING_TEXTS = [
    "The quick brown fox jumps over the lazy dog.", "A module reads and writes files of comma separated values.",
    "It was terrible, boring and far too long.", "It was great: warm, funny and well played.",
    "Return the smallest number that is not less than x.", "the price of oil rose while shares fell in London",
    "the team won the final after extra time", "question answer yes no true false good bad great sport business",
    "Below is an instruction. Write a response. ### Instruction: ### Response:", "docs code licence text json csv",
]  # fmt: skip
FAMILIES = ("llama", "qwen2", "gpt2", "bert", "roberta", "t5")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen2": {"eos_token": "<|end|>", "pad_token": "<|pad|>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "bert": {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "mask_token": "[MASK]"},
    "roberta": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
                "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}  # fmt: skip
SENTENCE_FORMS = {  # how special tokens stand around one text, and around two
    "bert": {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"},
    "roberta": {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"},
    "t5": {"single": "$A </s>"},
    "llama": {"single": "<s> $A"},
}
MODEL_WIDTH = 48


def build_tokenizer(family: str) -> Any:
    """Train the tokenizer of a family on a few texts."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL_TOKENS[family]
    raw = _build_word_pieces(special) if family == "bert" else _build_byte_pairs(family, special)
    if (forms := SENTENCE_FORMS.get(family)) is not None:
        ids = raw.get_vocab()
        tokens = [(token, ids[token]) for token in dict.fromkeys(special.values()) if token in str(forms)]
        raw.post_processor = processors.TemplateProcessing(**forms, special_tokens=tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, **special)
    if family == "llama":
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _build_word_pieces(special: dict[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer: Any = normalizers.BertNormalizer()
    pieces: Any = pre_tokenizers.BertPreTokenizer()
    words = sorted({w for text in TRAINING_TEXTS for w, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text))})
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz"))
    tokens = dict.fromkeys([*special.values(), *letters, *(f"##{c}" for c in letters), *words])
    tokens |= dict.fromkeys(piece for w in words if len(w) > 3 for piece in (w[:3], f"##{w[3:]}"))
    vocabulary = {token: i for i, token in enumerate(tokens)}  # its trainer gives other ids each time
    raw: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer, raw.decoder = normalizer, pieces, decoders.WordPiece()
    return raw


def _build_byte_pairs(family: str, special: dict[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw: Any = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    more = {"t5": ["<extra_id_0>", "<extra_id_1>"], "llama": ["<|user|>", "<|assistant|>", "<|system|>"]}
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[*dict.fromkeys(special.values()), *more.get(family, [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(TRAINING_TEXTS * 3, trainer)
    return raw


def build_model(family: str, n_tokens: int, pad: int | None, seed: int = 0) -> Any:
    """Build a model of three layers with random weights.

    Args:
        family: one of FAMILIES.
        n_tokens: the size of its vocabulary.
        pad: the id of the token that pads.
        seed: of the weights; the global random state is set by it.
    """
    import transformers as t

    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 128}
    wide: dict[str, Any] = {"hidden_size": MODEL_WIDTH, "intermediate_size": 96, "vocab_size": n_tokens, **heads}
    net: Any
    if family == "llama":
        net = t.LlamaForCausalLM(t.LlamaConfig(**wide, num_key_value_heads=2, pad_token_id=pad))
    elif family == "qwen2":
        net = t.Qwen2ForCausalLM(t.Qwen2Config(**wide, num_key_value_heads=2, pad_token_id=pad))
    elif family == "gpt2":
        shape: Any = {"vocab_size": n_tokens, "n_positions": 128, "n_embd": MODEL_WIDTH, "n_layer": 3, "n_head": 4}
        net = t.GPT2LMHeadModel(t.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    elif family == "bert":
        net = t.BertForMaskedLM(t.BertConfig(**wide, pad_token_id=pad))
    elif family == "roberta":
        net = t.RobertaForMaskedLM(t.RobertaConfig(**{**wide, "max_position_embeddings": 130}, pad_token_id=pad))
    else:
        shape = {"vocab_size": n_tokens, "d_model": MODEL_WIDTH, "d_kv": 12, "d_ff": 96, "num_layers": 3}
        ends: Any = {"decoder_start_token_id": pad, "pad_token_id": pad, "eos_token_id": 1}
        config = t.T5Config(**shape, num_heads=4, **ends)
        net = t.T5ForConditionalGeneration(config)
    for p in net.parameters():  # the usual 0.02 makes all answers alike
        p.data.mul_(2.0) if p.ndim > 1 else p.data.add_(0.02 * torch.randn_like(p))
    return net.eval()


def write_language_model(family: str, folder: Path) -> Path:
    """Write a model and its tokenizer into a folder, and return the folder."""
    require_package("transformers", "lm", "a tiny language model")
    tokenizer = build_tokenizer(family)
    with torch.random.fork_rng(devices=[]), silence_transformers():
        build_model(family, len(tokenizer), tokenizer.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _write_temporary(family: str) -> "TemporaryDirectory[str]":
    """Write a model once for this process; its folder goes when the process ends."""
    folder = TemporaryDirectory(prefix="vlprompt-language-model-")
    write_language_model(family, Path(folder.name))
    return folder


def build_tiny_language_model(family: str = "llama") -> Backbone:
    """Return a tiny random language model.

    Args:
        family: one of FAMILIES.

    Raises:
        OSError: without transformers; it names the extra that installs it.
    """
    return load_backbone(f"hf:{_write_temporary(family).name}", "cpu")
