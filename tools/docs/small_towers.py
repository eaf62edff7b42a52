"""Narrow towers with random weights and as many blocks as the papers', on which methods are traced."""

from functools import cache
from typing import Any

from torch import nn

DEPTH, LANGUAGE_DEPTH, SHAPE = 12, 6, {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ("<unk>", "<end>", "<pad>", "good", "bad", "film", "the", "was", "It", "text", ":", ".", "so", "therefore")


@cache
def build_small_clip() -> Any:
    """Build a CLIP with as many blocks as a ViT-B/16 in both towers, and very narrow ones."""
    from vlprompt.backbones.glyph import build_tiny_clip

    tower = {"layers": DEPTH, "width": 16}
    text = {**tower, "heads": 2, "context_length": 77}
    return build_tiny_clip(embed_dim=16, vision_cfg={**tower, "head_width": 8}, text_cfg=text)


def _build_tokenizer() -> Any:
    """Build a tokenizer with one token for each word that it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<end>", pad_token="<pad>")


@cache
def build_small_language_model() -> Any:
    """Build a causal language model with a few narrow blocks, whose linear maps have biases."""
    import torch
    import transformers

    from vlprompt.backbones.hf.loading import wrap_language_model

    config = transformers.Qwen2Config(
        **SHAPE, vocab_size=len(WORDS), num_hidden_layers=LANGUAGE_DEPTH, num_key_value_heads=2, pad_token_id=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = transformers.Qwen2ForCausalLM(config).eval()
    return wrap_language_model(net, _build_tokenizer(), "causal", "hf:small", "cpu")
