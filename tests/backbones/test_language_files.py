"""Folders of language models whose configuration, weights and tokenizer do not fit, and unsupported options."""

import json

import pytest
import small_models
import torch
from texts_and_models import passages

import vlprompt
from vlprompt.core.texts import TextBatch, TextItem


@pytest.fixture
def folder(tmp_path):
    return small_models.written("llama", tmp_path / "llama")


def change(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return f"hf:{folder}"


def rows(folder):
    path = folder / "mine.jsonl"
    texts = [json.dumps({"text": text, "label": "ab"[i % 2]}) for i, text in enumerate(small_models.TEXTS * 3)]
    path.write_text("\n".join(texts))
    return path


def shrink(folder, n):
    """The model with embeddings of the first n tokens."""
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(folder)
    net.resize_token_embeddings(n)
    net.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.mark.parametrize("method", ["linear", "lora", "in_context"])
def test_a_tokenizer_with_more_tokens_than_embeddings(method, folder, tmp_path, type_in):
    spec = shrink(folder, 300)
    status, printed = type_in("run", method, rows(tmp_path), "--backbone", spec, "train.epochs=1")
    assert status == 2
    assert "expected a tokenizer of the model, with ids below its 300 embeddings, got one with" in printed
    assert "(id 300) and" in printed
    assert "Put the tokenizer that belongs to the weights into the folder" in printed


def test_a_special_token_without_an_embedding_is_refused_where_a_text_has_it(folder):
    """Padding does not need one."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    n = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<mine>"})
    tokenizer.save_pretrained(folder)
    lm = vlprompt.load(f"hf:{folder}", "cpu")
    assert lm.tokenizer.pad_token_id == n == len(lm.net.get_input_embeddings().weight)
    assert lm(passages()).isfinite().all()
    assert len(lm.generate(passages(), max_new_tokens=3)) == len(passages())
    message = rf"expected tokens with ids below the model's {n} embeddings, got '<mine>' \(id {n}\) in a text. Remove"
    item = TextItem("own", {"text": "It <mine> was"}, "{text} It was {mask}", "{text}")
    for refused in (
        lambda: lm(TextBatch((item,))),
        lambda: lm.embed_text("<mine>"),
        lambda: lm.encode_prefix("a <mine>"),
        lambda: lm.tokenize_answers(["<mine>"]),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


OTHER_WEIGHTS = {
    "width": ({"hidden_size": 64}, r"got 'lm_head.weight' of shape \(\d+, 48\) instead of \(\d+, 64\) and \d+ more"),
    "fewer layers": ({"num_hidden_layers": 2}, "got 'model.layers.2.input_layernorm.weight' and 8 more, for which"),
    "more layers": ({"num_hidden_layers": 4}, "'model.layers.3.input_layernorm.weight' and 8 more are missing"),
    "key heads": ({"num_key_value_heads": 4}, "got 'model.layers.0.self_attn.k_proj.weight' of shape"),
    "no file of transformers": ({"hidden_size": "48"}, "expected a config.json that transformers reads, got .*hidden_"),
    "heads": ({"num_attention_heads": 5}, "expected a config.json that transformers reads, got .* not a multiple of"),
    "no heads": ({"num_attention_heads": 0}, "expected a config.json that transformers reads"),
    "padding": ({"pad_token_id": 10**6}, "expected weights of its config.json, got others .*Padding_idx"),
    "activation": ({"hidden_act": "foo"}, "expected weights of its config.json, got others .*foo"),
}


@pytest.mark.parametrize("case", OTHER_WEIGHTS)
def test_a_configuration_of_other_weights(case, folder):
    changes, message = OTHER_WEIGHTS[case]
    with pytest.raises(ValueError, match=rf"{message}.*(together|again)[.,]"):
        vlprompt.load(change(folder, **changes), "cpu")


def test_biases_that_the_configuration_leaves_out(folder):
    """The numbers would be those of the weights without them."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    config.attention_bias = True
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"got 'model.layers.0.self_attn.k_proj.bias' and 11 more, for which its config"
    ):
        vlprompt.load(change(folder, attention_bias=False), "cpu")


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("bert", ["bert.embeddings.position_ids", "bert.pooler.dense.weight", "cls.seq_relationship.bias"]),
        ("t5", ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"]),
    ],
)
def test_what_older_releases_also_wrote_is_left_out(family, keys, tmp_path):
    from safetensors.torch import load_file, save_file

    path = small_models.written(family, tmp_path / family) / "model.safetensors"
    before = vlprompt.load(f"hf:{path.parent}", "cpu")
    save_file(load_file(path) | {key: torch.ones(1) for key in keys}, path, {"format": "pt"})
    after = vlprompt.load(f"hf:{path.parent}", "cpu")
    assert torch.equal(after(passages()), before(passages()))
    assert after.has_lm_head == before.has_lm_head


def test_what_differs_is_said_on_the_command_line(folder, tmp_path, type_in):
    spec = change(folder, hidden_size=64)
    status, printed = type_in("run", "linear", rows(tmp_path), "--backbone", spec, "train.epochs=1")
    assert status == 2
    assert "above report" not in printed
    assert "instead of" in printed


def _write_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Touch(folder / "run")}, folder / "pytorch_model.bin")


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


BROKEN = {
    "code in the weights": (
        _write_code,
        "weights of its config.json, got others .a pickle of more than tensors, which could",
    ),
    "code beside the weights": (
        lambda folder: change(folder, model_type="mine", auto_map={"AutoConfig": "code.Config"}),
        "expected a config.json that transformers reads, .* contains custom code",
    ),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "expected a tokenizer that transformers reads, got",
    ),
    "index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
        "expected weights of its config.json",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_none_of_transformers(case, folder, monkeypatch):
    """Nothing of it is executed, nor is that asked for."""
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    (folder / "code.py").write_text(f"open({str(folder / 'run')!r}, 'w')\nclass Config: pass\n")
    BROKEN[case][0](folder)
    with pytest.raises(ValueError, match=rf"{folder}': .*{BROKEN[case][1]}"):
        vlprompt.load(f"hf:{folder}", "cpu")
    assert not (folder / "run").exists()


ROPE = {"rope_type": "default", "rope_theta": 1e4}
REFUSED = {
    "opt": ({"model_type": "opt"}, "expected a model of type bert, .* got 'opt'. Use one of these types"),
    "window": ({"sliding_window": 4}, "llama model with sliding_window absent .* got 4. Use a model without"),
    "layers": ({"layer_types": ["full_attention"] * 3}, "layer_types absent in its config.json, got full_attention"),
    "rope": ({"rope_parameters": ROPE | {"rope_type": "proportional"}}, "rope_type default, .* got .*proportional"),
    "partial rope": ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "without partial_rotary_factor"),
    "quantised": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config absent .*'gptq'"),
    "chunks": ({"attention_chunk_size": 4}, "attention_chunk_size absent in its config.json, got 4"),
    "softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping absent in its config.json, got 30.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_option_that_is_not_supported_is_named(case, folder):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        vlprompt.load(change(folder, **changes), "cpu")


@pytest.mark.parametrize("option", ["is_decoder", "add_cross_attention", "position_embedding_type"])
def test_an_encoder_that_is_none_is_named(option, tmp_path):
    folder = small_models.written("bert", tmp_path)
    value = "relative_key" if option == "position_embedding_type" else True
    with pytest.raises(ValueError, match=f"expected a bert model with {option} .* got {value!r}. Use a model without"):
        vlprompt.load(change(folder, **{option: value}), "cpu")


def test_positions_end_where_the_frequencies_of_longrope_change(folder):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    spec = change(folder, rope_parameters=rope | {"original_max_position_embeddings": 32, "factor": 4.0})
    lm = vlprompt.load(spec, "cpu")
    assert lm.max_positions == 32
    texts = passages(["good film " * 200, "Fine"])
    assert torch.allclose(lm(texts)[1], lm(texts.slice(1, 2))[0], atol=1e-6)
    assert "32 positions" in lm.notes["texts"]


POOLINGS = {
    "mean": ({"pooling_mode_mean_tokens": True}, "mean"),
    "last": ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
    "maximum": ({"pooling_mode_max_tokens": True}, None),
    "two": ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_pooling_of_sentence_transformers(case, folder):
    config, pooling = POOLINGS[case]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if pooling is not None:
        assert vlprompt.load(f"hf:{folder}", "cpu").pooling == pooling
        return
    with pytest.raises(ValueError, match=r"expected one of pooling_mode_mean_tokens, .* got pooling_mode_.* Remove"):
        vlprompt.load(f"hf:{folder}", "cpu")


def test_a_folder_below_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert vlprompt.load("hf:~/llama", "cpu").kind == "causal"
