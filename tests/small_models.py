"""Tiny random language models of six families, written to a folder with a tokenizer of their own."""

from pathlib import Path

import torch

TEXTS = [
    "The quick brown fox jumps over the lazy dog.", "A module reads and writes files of comma separated values.",
    "It was terrible, boring and far too long.", "It was great: warm, funny and well played.",
    "Return the smallest number that is not less than x.", "the price of oil rose while shares fell in London",
    "the team won the final after extra time", "question answer yes no true false good bad great sport business",
    "Below is an instruction. Write a response. ### Instruction: ### Response:", "docs code licence text json csv",
]  # fmt: skip
FAMILIES = ("llama", "qwen2", "gpt2", "bert", "roberta", "t5")
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(family: str):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if family == "bert":
        special = {
            "unk_token": "[UNK]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        normal, pieces = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        words = sorted({w for text in TEXTS for w, _ in pieces.pre_tokenize_str(normal.normalize_str(text))})
        letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz"))
        tokens = dict.fromkeys([*special.values(), *letters, *(f"##{c}" for c in letters), *words])
        tokens |= dict.fromkeys(piece for w in words if len(w) > 3 for piece in (w[:3], f"##{w[3:]}"))
        vocabulary = {token: i for i, token in enumerate(tokens)}  # its trainer gives other ids each time
        raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        raw.normalizer, raw.pre_tokenizer, raw.decoder = normal, pieces, decoders.WordPiece()
    else:
        special = {
            "llama": {"bos_token": "<s>", "eos_token": "</s>"},
            "qwen2": {"eos_token": "<|end|>", "pad_token": "<|pad|>"},
            "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
            "roberta": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
                        "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
            "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        }[family]  # fmt: skip
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        more = ["<extra_id_0>", "<extra_id_1>"] if family == "t5" else ["<|user|>", "<|assistant|>", "<|system|>"]
        names = [*dict.fromkeys(special.values()), *(more if family in ("t5", "llama") else [])]
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        raw.train_from_iterator(TEXTS * 3, trainer)
    known = raw.get_vocab()
    pair = lambda a, b: [(a, known[a]), (b, known[b])]  # noqa: E731
    if family == "bert":
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pair("[CLS]", "[SEP]")
        )
    elif family == "roberta":
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=pair("<s>", "</s>")
        )
    elif family == "t5":
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", known["</s>"])])
    elif family == "llama":
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", known["<s>"])])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, **special)
    if family == "llama":
        made.chat_template = CHAT
    return made


def model(family: str, words: int, pad: int | None, seed: int = 0):
    import transformers as t

    torch.manual_seed(seed)
    wide = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
            "vocab_size": words, "max_position_embeddings": 128}  # fmt: skip
    if family in ("llama", "qwen2"):
        config = {"llama": t.LlamaConfig, "qwen2": t.Qwen2Config}[family](
            **wide, num_key_value_heads=2, pad_token_id=pad
        )
        net = {"llama": t.LlamaForCausalLM, "qwen2": t.Qwen2ForCausalLM}[family](config)
    elif family == "gpt2":
        shape = {"vocab_size": words, "n_positions": 128, "n_embd": 48, "n_layer": 3, "n_head": 4}
        net = t.GPT2LMHeadModel(t.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    elif family == "bert":
        net = t.BertForMaskedLM(t.BertConfig(**wide, pad_token_id=pad))
    elif family == "roberta":
        net = t.RobertaForMaskedLM(t.RobertaConfig(**{**wide, "max_position_embeddings": 130}, pad_token_id=pad))
    else:
        shape = {"vocab_size": words, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 3, "num_heads": 4}
        config = t.T5Config(**shape, decoder_start_token_id=pad, pad_token_id=pad, eos_token_id=1)
        net = t.T5ForConditionalGeneration(config)
    for p in net.parameters():  # the usual 0.02 makes all answers alike
        p.data.mul_(2.0) if p.ndim > 1 else p.data.add_(0.02 * torch.randn_like(p))
    return net.eval()


def written(family: str, folder: Path) -> Path:
    """A folder with the model and its tokenizer."""
    tok = tokenizer(family)
    model(family, len(tok), tok.pad_token_id).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
