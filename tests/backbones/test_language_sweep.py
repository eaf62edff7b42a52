"""Every family of language models with every option of its arithmetic, against transformers' and PEFT's own numbers."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from texts_and_models import parts, passages, prefix

import vlprompt
from vlprompt.backbones.hf.architectures import ARCHITECTURES, ROPE_TYPES, SLIDING_WINDOW_FAMILIES
from vlprompt.backbones.hf.decoder.walk import is_walkable
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.runtime.seeding import make_generator

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
TOLERANCE, WINDOW, LENGTHS = 1e-5, 6, (40, 23, 7)
DECODER = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
           "intermediate_size": 80, "max_position_embeddings": 128, "head_dim": 12}  # fmt: skip
ENCODER = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
           "max_position_embeddings": 130}  # fmt: skip
SEQ2SEQ = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 3, "num_heads": 4}
BASES = (
    dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), DECODER)
    | {"gpt2": {"n_positions": 128, "n_embd": 48, "n_layer": 3, "n_head": 4}}
    | dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), ENCODER)
    | {"distilbert": {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 130}}
    | dict.fromkeys(("t5", "mt5"), SEQ2SEQ)
)
TOKENIZERS = (
    dict.fromkeys(("bert", "distilbert"), "bert")
    | dict.fromkeys(("roberta", "xlm-roberta", "camembert"), "roberta")
    | dict.fromkeys(("t5", "mt5"), "t5")
)
HALF = DECODER["head_dim"] // 2
ROPES = {
    "default": {"rope_theta": 500.0},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "short_factor": [1.0 + i / 9 for i in range(HALF)],
        "long_factor": [2.0 + i for i in range(HALF)],
        "original_max_position_embeddings": 64,
        "factor": 2.0,
    },
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip
WINDOWS = {
    "window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    "window in the last layers": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "layer types": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def _cases():
    """(family, option, its configuration)."""
    for family in BASES:
        yield family, "as it is", {}
    for family in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
        for rope in ROPES:
            yield family, rope, {"rope_parameters": {"rope_type": rope, "rope_theta": 10000.0} | ROPES[rope]}
        yield family, "one key head", {"num_key_value_heads": 1}
        yield family, "all key heads", {"num_key_value_heads": 4}
        yield family, "other head", {"tie_word_embeddings": family != "gemma"}
        yield family, "norm and activation", {"rms_norm_eps": 1e-2, "hidden_act": "relu"}
        if family != "qwen2":
            yield family, "wide heads", {"head_dim": 20}
        if family in ("llama", "qwen3", "gemma"):
            yield family, "attention bias", {"attention_bias": True}
    yield "llama", "mlp bias", {"mlp_bias": True}
    yield "mistral", "window", {"sliding_window": WINDOW}
    yield "mistral", "no window", {"sliding_window": None}
    for family, name in itertools.product(("qwen2", "qwen3"), WINDOWS):
        yield family, name, WINDOWS[name]
    yield "gpt2", "unscaled attention", {"scale_attn_weights": False}
    yield "gpt2", "attention scaled by layer", {"scale_attn_by_inverse_layer_idx": True}
    yield "gpt2", "upcast attention", {"reorder_and_upcast_attn": True}
    yield "gpt2", "mlp", {"n_inner": 60, "activation_function": "relu"}
    yield "gpt2", "other head", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}
    for family in ("bert", "roberta", "xlm-roberta", "camembert"):
        yield family, "other head", {"tie_word_embeddings": False, "hidden_act": "relu", "layer_norm_eps": 1e-2}
        yield family, "one segment", {"type_vocab_size": 1}
    yield "distilbert", "sinusoids", {"sinusoidal_pos_embds": True, "activation": "relu"}
    yield "distilbert", "other head", {"tie_word_embeddings": False}
    for family in ("t5", "mt5"):
        yield family, "relu", {"feed_forward_proj": "relu"}
        yield family, "gated silu", {"feed_forward_proj": "gated-silu"}
        yield family, "gated gelu, other head", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        yield family, "fewer decoder layers", {"num_decoder_layers": 2}
        buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
        yield family, "buckets", buckets | {"layer_norm_epsilon": 1e-2}


CASES = {f"{family}: {option}": (family, changes) for family, option, changes in _cases()}
QUICK = ("mt5: as it is", "gemma: as it is", "mistral: window", "qwen2: layer types", "distilbert: as it is")


@dataclass(frozen=True)
class Pair:
    """A tower and the folder of the model that transformers loads from it."""

    tower: Any
    folder: Path

    def reference(self):
        return _load_plain(self.folder)


def _load_plain(folder):
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()


def _write(family, changes, folder):
    import transformers

    tokenizer = small_models.tokenizer(TOKENIZERS.get(family, "gpt2"))
    n_tokens = len(tokenizer) + 4  # a tokenizer of a family may add special ones
    base = {"vocab_size": n_tokens, "pad_token_id": 1 if "roberta" in family or family == "camembert" else 0}
    if family in ("t5", "mt5"):
        base["decoder_start_token_id"] = 0
    config = transformers.AutoConfig.for_model(family, **base | BASES[family] | changes)
    auto = transformers.AutoModelForSeq2SeqLM if family in ("t5", "mt5") else transformers.AutoModelForCausalLM
    if BASES[family] is ENCODER or family == "distilbert":
        auto = transformers.AutoModelForMaskedLM
    torch.manual_seed(7)
    net = auto.from_config(config)
    for p in net.parameters():
        p.data.mul_(2.0) if p.ndim > 1 else p.data.add_(0.1 * torch.randn_like(p))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    pairs = {}

    def pair(case):
        if case not in pairs:
            pairs.clear()  # one at a time
            folder = tmp_path_factory.mktemp("sweep")
            _write(*CASES[case], folder)
            pairs[case] = Pair(vlprompt.load(f"hf:{folder}", "cpu"), folder)
        return pairs[case]

    return pair


def cases(quick=QUICK, only=lambda family: True):
    """A parameter for every case; those that no fault was found in are slow."""
    chosen = [case for case in CASES if only(CASES[case][0])]
    marks = [[] if case in quick else [pytest.mark.slow] for case in chosen]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=mark) for case, mark in zip(chosen, marks, strict=True)]
    )


def is_causal(family):
    return BASES[family] is DECODER or family == "gpt2"


def near(ours, expected, tolerance=TOLERANCE):
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max() / expected.abs().max()) < tolerance


def sample_ids(lengths=LENGTHS, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(10, 60, (n,), generator=draw).tolist() for n in lengths]


def rows_of(texts, prompt=NOTHING):
    """Token rows with the soft tokens in front."""
    p = prompt.length
    return [
        TokenizedText([5] * p + ids, list(range(p)), [0] * (p + len(ids)), answer_ids=[*ids[1:4], 7], answer_start=p)
        for ids in texts
    ]


def decoder_start(tower, ids):
    return [tower.net.config.decoder_start_token_id, *ids[1:4]]


def our_logits(tower, prompt=NOTHING, texts=None):
    """Logits of each text's own tokens, of an encoder-decoder those of its answer."""
    rows = rows_of(texts or sample_ids(), prompt)
    if tower.kind == "seq2seq":
        return [tower.vocabulary_logits(x) for x in tower.compute_pass(rows, prompt, "response")]
    states = tower._compute_hidden(rows, prompt)
    head = tower.architecture.head_transform(tower.net)
    return [tower.vocabulary_logits(head(x[prompt.length : len(row.ids)])) for x, row in zip(states, rows, strict=True)]


def their_logits(model, tower, texts=None):
    """The same by the library, one text at a time."""
    found = []
    for ids in texts or sample_ids():
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if tower.kind == "seq2seq":
            batch["decoder_input_ids"] = torch.tensor([decoder_start(tower, ids)])
        logits = model(**batch).logits[0]
        found.append(logits if tower.kind == "seq2seq" else logits[-len(ids) :])
    return found


def near_all(ours, expected, tolerance=TOLERANCE):
    for a, b in zip(ours, expected, strict=True):
        near(a, b, tolerance)


def low_rank(tower, rank=3):
    """Updates of every linear map."""
    draw, adapters = make_generator("updates"), {}
    for site, fans in tower.sites().items():
        if site.split("/")[-1] in ("q", "k", "v", "out", "up", "gate", "down"):
            adapters[site] = LowRankAdapter(fans, rank, 2.0, 0.0, draw, tower.device)
            adapters[site].up.data = 0.1 * torch.randn(fans[1], rank, generator=draw)
    return Prompt(adapters=adapters)


def test_what_is_supported_is_in_the_sweep():
    """All else is refused by name (test_language_files.py)."""
    assert ARCHITECTURES.keys() == BASES.keys()
    assert ROPES.keys() == set(ROPE_TYPES)
    assert {family for family, changes in CASES.values() if changes.get("sliding_window")} == {*SLIDING_WINDOW_FAMILIES}


@cases()
@torch.no_grad()
def test_states_and_logits(case, pairs):
    pair = pairs(case)
    tower, plain = pair.tower, pair.reference()
    near_all(our_logits(tower), their_logits(plain, tower))
    trunk = plain.get_encoder() if tower.kind == "seq2seq" else plain.base_model
    states = tower._compute_hidden(rows_of(sample_ids()), NOTHING)
    for x, ids in zip(states, sample_ids(), strict=True):
        near(x[: len(ids)], trunk(input_ids=torch.tensor([ids])).last_hidden_state[0])


@cases()
@torch.no_grad()
def test_low_rank_updates_as_exported(case, pairs, tmp_path):
    from peft import PeftModel

    pair = pairs(case)
    tower, prompt = pair.tower, low_rank(pair.tower)
    tower.save_as_peft(prompt, tmp_path / "adapter", {})
    ours, bare = our_logits(tower, prompt), our_logits(tower)
    adapted = PeftModel.from_pretrained(pair.reference(), tmp_path / "adapter").eval()
    near_all(ours, their_logits(adapted, tower), 2e-5)  # in float32, 1.1e-5 where products are large (gated silu)
    assert float((ours[0] - bare[0]).abs().max()) > 1e-3
    near_all(our_logits(tower.merged(prompt)), ours, 1e-4)
    tower.save_merged(prompt, tmp_path / "merged")
    near_all(their_logits(_load_plain(tmp_path / "merged"), tower), ours, 1e-4)
    near_all(our_logits(vlprompt.load(f"hf:{tmp_path / 'merged'}", "cpu")), ours, 1e-4)


@cases()
@torch.no_grad()
def test_soft_tokens_as_exported(case, pairs, tmp_path):
    """And those that start from words are those that the library embeds."""
    from peft import PeftModel

    pair = pairs(case)
    tower, plain = pair.tower, pair.reference()
    text = "great files of the team"
    ids = tower.tokenizer(text, add_special_tokens=False)["input_ids"]
    embed = plain.get_input_embeddings()
    assert torch.equal(tower.embed_text(text), embed(torch.tensor(ids)))
    drawn = torch.randint(len(embed.weight), (5,), generator=make_generator("words"))
    assert torch.equal(tower.sample_token_embeddings(5, make_generator("words")), embed(drawn))
    prompt = Prompt({0: tower.embed_text(text)[None]})
    tower.save_as_peft(prompt, tmp_path, {})
    ours, bare = our_logits(tower, prompt), our_logits(tower)
    near_all(ours, their_logits(PeftModel.from_pretrained(plain, tmp_path).eval(), tower))
    assert float((ours[0] - bare[0]).abs().max()) > 1e-3


@cases()
@torch.no_grad()
def test_a_prefix_as_exported(case, pairs, tmp_path):
    from peft import PeftModel

    pair = pairs(case)
    tower, prompt = pair.tower, Prompt(prefix=prefix(pair.tower))
    if CASES[case][0] in ("t5", "mt5", "distilbert"):
        with pytest.raises(ValueError, match=r"expected another type for .* got PREFIX_TUNING, which .* can't be exp"):
            tower.save_as_peft(prompt, tmp_path, {})
        with pytest.raises(ValueError, match="Use method prefix_tuning instead"):
            tower.with_peft_adapter({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, 1)
        return
    tower.save_as_peft(prompt, tmp_path, {})
    ours, bare = our_logits(tower, prompt), our_logits(tower)
    near_all(ours, their_logits(PeftModel.from_pretrained(pair.reference(), tmp_path).eval(), tower))
    assert float((ours[-1] - bare[-1]).abs().max()) > 1e-3


@cases(only=lambda family: family == "distilbert")
@torch.no_grad()
def test_a_prefix_of_distilbert(case, pairs):
    """Keys and values of tokens in front, whose own are replaced."""
    pair = pairs(case)
    tower, plain, kv = pair.tower, pair.reference(), prefix(pair.tower)
    for layer, values in kv.items():
        attention = plain.distilbert.transformer.layer[layer].attention
        for linear, x in zip((attention.k_lin, attention.v_lin), values, strict=True):
            front = x.transpose(1, 2).flatten(2)
            linear.register_forward_hook(
                lambda module, args, output, front=front: torch.cat([front, output[:, front.shape[1] :]], 1)
            )
    expected = [x[5:] for x in their_logits(plain, tower, [[9] * 5 + ids for ids in sample_ids()])]
    near_all(our_logits(tower, Prompt(prefix=kv)), expected)


@pytest.mark.parametrize("case", ["mistral: window", "qwen2: layer types"])
def test_gradients_in_a_window_do_not_depend_on_what_is_recomputed(case, pairs):
    """Nor on packing."""
    tower, texts = pairs(case).tower, sample_ids((9, 30, 20, 11))
    before = prefix(tower)

    def gradients(is_packed, is_recomputed):
        values = {layer: tuple(x.clone().requires_grad_() for x in kv) for layer, kv in before.items()}
        prompt, rows = Prompt(prefix=values), rows_of(texts)
        tower.activation_checkpointing = is_recomputed
        try:
            if is_packed:
                states, starts = tower._compute_packed_hidden(rows, prompt, 60)
                found = [states[b, s : s + len(row.ids)] for row, (b, s) in zip(rows, starts, strict=True)]
            else:
                found = [x[: len(row.ids)] for x, row in zip(tower._compute_hidden(rows, prompt), rows, strict=True)]
            sum(x.square().sum() for x in found).backward()
        finally:
            tower.activation_checkpointing = False
        return [x.grad for kv in values.values() for x in kv]

    expected = gradients(False, False)
    for is_packed, is_recomputed in ((True, False), (False, True), (True, True)):
        near_all(gradients(is_packed, is_recomputed), expected)


@cases(only=is_causal)
@torch.no_grad()
def test_packed_rows(case, pairs):
    """Alone, and with soft tokens, a prefix and adapters, against the texts one by one."""
    pair = pairs(case)
    tower, texts = pair.tower, sample_ids((9, 30, 20, 11))
    drawn = torch.randn(1, 3, tower.dim, generator=make_generator("soft"))
    for prompt in (NOTHING, Prompt({0: drawn}, prefix(tower), parts(tower, "q", "down"))):
        rows = rows_of(texts, prompt)
        states, starts = tower._compute_packed_hidden(rows, prompt, 60)
        assert len(states) < len(rows)
        for row, (b, start) in zip(rows, starts, strict=True):
            near(states[b, start : start + len(row.ids)], tower._compute_hidden([row], prompt)[0])
    plain = pair.reference()
    states, starts = tower._compute_packed_hidden(rows_of(texts), NOTHING, 60)
    for ids, (b, start) in zip(texts, starts, strict=True):
        near(states[b, start : start + len(ids)], plain.base_model(torch.tensor([ids])).last_hidden_state[0])


@cases(only=is_causal)
def test_rows_without_padding(case, pairs):
    """States and gradients against padded rows, where every option is walked or, by name, left to transformers."""
    tower, texts = pairs(case).tower, sample_ids((9, 30, 20, 11))
    tokens = torch.randn(1, 3, tower.dim, generator=make_generator("soft")).requires_grad_()
    kv = {layer: tuple(x.requires_grad_() for x in pair) for layer, pair in prefix(tower).items()}
    prompt = Prompt({0: tokens}, kv, parts(tower, "q", "down"))
    rows = rows_of(texts, prompt)
    family, option = case.split(": ")
    is_walked = family != "gpt2" and option not in ("dynamic", "longrope", *WINDOWS)
    assert is_walkable(tower, prompt, 38) == is_walked
    found = []
    for states in (
        tower._compute_outputs(rows, prompt, "response", False),
        tower.compute_pass(rows, prompt, "response"),
    ):
        states = torch.cat(states)
        found.append(
            [states, *torch.autograd.grad(states.square().sum(), [tokens, *(x for pair in kv.values() for x in pair)])]
        )
    near_all(*found, 2e-5)


@cases(only=is_causal)
@torch.no_grad()
def test_a_shared_beginning(case, pairs):
    """The states of a text and what is written after it, against the whole at once; in two steps, too."""
    pair = pairs(case)
    tower, plain = pair.tower, pair.reference()
    begin, more = "It was great: warm, funny.\n", "files of text"
    first = tower.template_tokenizer.tokenize_beginning(begin)
    second = tower.template_tokenizer.tokenize_beginning(more, is_continuation=True)
    shared = tower.encode_prefix(begin)
    for before, prompt in ((first, shared), ([*first, *second], tower.encode_prefix(more, shared, True))):
        states = tower._compute_hidden(rows_of(sample_ids((30, 5))), prompt)
        for x, ids in zip(states, sample_ids((30, 5)), strict=True):
            whole = plain.base_model(torch.tensor([before + ids])).last_hidden_state[0]
            near(x[: len(ids)], whole[len(before) :])


@cases(only=is_causal)
@torch.no_grad()
def test_what_is_written(case, pairs):
    """Behind texts of several lengths, alone and after a shared beginning, by the library's own generate."""
    pair = pairs(case)
    tower, plain, begin = pair.tower, pair.reference(), "It was great: warm, funny, well played.\n\n"
    texts = passages(["A module", "The team won the final after extra time and oil rose while shares fell in London"])
    tokenize = tower.template_tokenizer
    shared, after = tower.encode_prefix(begin), passages([item.fields["text"] for item in texts.items])
    after = type(after)(after.items, follows_prefix=True)
    for batch, prompt, before in ((texts, NOTHING, []), (after, shared, tokenize.tokenize_beginning(begin))):
        written = tower.generate(batch, prompt, max_new_tokens=8, eos_token_id=-1)
        for i, text in enumerate(written):
            row = tokenize.tokenize(batch, i, 0, 0)
            ids = torch.tensor([[*before, *row.ids[: row.answer_start]]])
            whole = plain.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=-1,
            )
            assert tower.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip() == text
