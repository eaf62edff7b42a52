"""A Llama's texts without padding, and greedy generation: what transformers gives, with less work and memory."""

import copy
from dataclasses import replace

import pytest
import torch
from texts_and_models import parts, passages, prefix
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from vlprompt.backbones.hf.loading import wrap_language_model
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.runtime.seeding import make_generator

SHOWN = {False: "{text} It was {mask}", True: "{2} {text} {1} It was {mask}"}
WAYS = {  # tokens, prefix, sites of adapters
    "tokens": (True, False, ()),
    "prefix": (False, True, ()),
    "adapters": (False, False, ("q", "v", "down", "norm1", "gate")),
    "sub-layers": (False, False, ("attn", "attn+", "mlp+")),
    "all": (True, True, ("q", "up")),
}


def build_prompt(tower, way):
    """A prompt and its tensors, which learn."""
    has_tokens, has_prefix, sites = WAYS[way]
    adapters = parts(tower, *sites) if sites else {}
    for part in adapters.values():
        part.weight = nn.Parameter(part.weight)
    tokens = {0: torch.randn(1, 3, tower.dim, generator=make_generator("t")).requires_grad_()} if has_tokens else {}
    kv = {i: (k.requires_grad_(), v.requires_grad_()) for i, (k, v) in prefix(tower).items()} if has_prefix else {}
    learned = [*tokens.values(), *(t for pair in kv.values() for t in pair), *(p.weight for p in adapters.values())]
    return Prompt(tokens, kv, adapters), learned


def count_calls(module):
    """The rows that a linear map is given, call by call, and the handle of the hook."""
    rows = []
    return rows, module.register_forward_hook(lambda m, args, output: rows.append(args[0].shape[:-1].numel()))


def count_saved_bytes(run):
    """Bytes of the tensors that a pass stores for its backward pass, weights aside, each storage once."""
    sizes = {}

    def note(t):
        kept = t.detach()  # with its graph it would be held by what it holds, and never be freed
        if not (t.is_leaf and t.ndim == 2):
            sizes[t.untyped_storage().data_ptr()] = kept, t.untyped_storage().nbytes()
        return kept

    with saved_tensors_hooks(note, lambda t: t):
        found = run()
    del found
    return sum(n for _, n in sizes.values())


@pytest.mark.parametrize(
    ("family", "way", "output"),
    [*(("llama", way, "response") for way in WAYS), ("qwen2", "all", "mask"), ("qwen2", "all", "pooled")],
)
def test_states_and_gradients_are_those_of_padded_rows(family, way, output, lm):
    tower = lm(family)
    prompt, learned = build_prompt(tower, way)
    inputs = passages().with_template(SHOWN[bool(prompt.length)])
    ours, expected = (
        tower(inputs, prompt, output),
        torch.cat(tower.compute_pass(tower.tokenize(inputs, prompt), prompt, output)),
    )
    assert torch.allclose(ours, expected, atol=1e-5 * float(expected.detach().abs().max()))
    weights = torch.randn(expected.shape, generator=make_generator("w"))
    found = [torch.autograd.grad((x * weights).sum(), learned, allow_unused=True) for x in (ours, expected)]
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5 * float(theirs.abs().max()))


def test_what_texts_begin_with_is_computed_once_and_what_nobody_reads_is_not(lm):
    """Soft tokens in front run once; in the last layer only what is read goes on behind the attention."""
    tower = lm("llama")
    prompt = Prompt({0: torch.randn(1, 5, tower.dim)})
    inputs = passages().with_template()
    rows = tower.tokenize(inputs, prompt)
    own_rows = sum(len(row.ids) - 5 - 1 for row in rows)  # <s>, then the last token, which nothing reads
    (first, a), (last, b) = (count_calls(tower.trunk.layers[i].mlp.down_proj) for i in (0, -1))
    states = tower(inputs, prompt, "response")
    a.remove()
    b.remove()
    assert first == [5 + 1 + own_rows - len(rows)]
    assert last == [len(states)]


def test_dropout_is_drawn_for_each_text(lm):
    """So what texts begin with is not one row, with one dropout for all."""
    tower = lm("llama")
    adapter = LowRankAdapter(tower.sites()["0/q"], 4, 8.0, 0.5, make_generator("d"), tower.device)
    inputs = passages(["one text", "one text"]).with_template()
    n = tower.tokenize(inputs, NOTHING)[0].answer_start
    rows, handle = count_calls(tower.trunk.layers[0].mlp.down_proj)
    for is_training in (True, False):
        tower(inputs, Prompt(adapters={"0/q": adapter.train(is_training)}), "mask")
    handle.remove()
    assert rows == [2 * n, n + 1]


def test_a_pass_stores_little(lm):
    """Less than half of what transformers' pass stores; with activation checkpointing the inputs of the layers."""
    tower = lm("llama")
    prompt, learned = build_prompt(tower, "tokens")
    inputs = passages(["The team won the final after extra time. " * 2, *["It was great, warm and funny. "] * 5])
    rows = tower.tokenize(inputs.with_template(SHOWN[True]), prompt)
    whole = count_saved_bytes(lambda: tower.compute_pass(rows, prompt, "response"))
    ours = count_saved_bytes(lambda: tower(inputs.with_template(SHOWN[True]), prompt, "response"))
    assert ours < 0.5 * whole

    def gradients():
        states = tower(inputs.with_template(SHOWN[True]), prompt, "response")
        return torch.autograd.grad(states.square().sum(), learned)

    expected = gradients()
    tower.activation_checkpointing = True
    try:
        checkpointed = count_saved_bytes(lambda: tower(inputs.with_template(SHOWN[True]), prompt, "response"))
        found = gradients()
    finally:
        del tower.activation_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert checkpointed < 0.4 * ours


def test_all_weights_learn_as_in_padded_rows(lm):
    whole = lm("llama").trainable_copy()
    inputs = passages().with_template()
    tower = whole.tower
    found = []
    for states in (
        whole(inputs, output="response"),
        torch.cat(tower.compute_pass(tower.tokenize(inputs, NOTHING), NOTHING, "response")),
    ):
        weights = {name: p for name, p in whole.weights.items() if "lm_head" not in name}
        found.append(torch.autograd.grad(states.square().sum(), list(weights.values())))
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5 * float(theirs.abs().max()))


# generation


def by_transformers(tower, *args, **settings):
    """What `generate` gives where something is hooked to the model, so that transformers has to run it."""
    handle = tower.trunk.register_forward_pre_hook(lambda module, args: None)
    try:
        return tower.generate(*args, **settings)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("family", "way"), [("llama", "tokens"), ("llama", "all"), ("llama", None), ("qwen2", "prefix"), ("qwen2", "all")]
)
def test_greedy_texts_are_those_of_transformers(family, way, lm):
    """Also where texts end at different steps, and none before a step."""
    tower = lm(family)
    prompt = build_prompt(tower, way)[0] if way else NOTHING
    inputs = passages().with_template(SHOWN[bool(prompt.length)])
    steps = []
    handle = tower.net.lm_head.register_forward_hook(lambda m, args, logits: steps.append(logits.argmax(-1).tolist()))
    tower.generate(inputs, prompt, max_new_tokens=12, eos_token_id=-1)
    handle.remove()
    ends = [steps[2][0], steps[5][1], steps[8][2]]  # each ends some text
    for settings in ({}, {"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 5}, {"num_beams": 1}):
        (rows, handle), how = count_calls(tower.trunk.layers[0].mlp.down_proj), {"max_new_tokens": 12, **settings}
        ours = tower.generate(inputs, prompt, **how)
        handle.remove()
        assert ours == by_transformers(tower, inputs, prompt, **how)
        if "eos_token_id" in settings and "min_new_tokens" not in settings:
            assert len(rows) == 1 or min(rows) < len(inputs)  # what has ended left the batch


def test_other_settings_are_those_of_transformers(lm):
    """Of the call, and of the model."""
    tower, inputs = lm("llama"), passages().with_template()
    greedy = tower.generate(inputs, max_new_tokens=12)
    for settings in ({"num_beams": 3}, {"repetition_penalty": 5.0}):
        assert tower.generate(inputs, max_new_tokens=12, **settings) == by_transformers(
            tower, inputs, max_new_tokens=12, **settings
        )
    tower.net.generation_config.repetition_penalty = 5.0
    try:
        penalised = tower.generate(inputs, max_new_tokens=12)
    finally:
        tower.net.generation_config.repetition_penalty = None
    assert penalised == by_transformers(tower, inputs, max_new_tokens=12, repetition_penalty=5.0) != greedy


def test_texts_behind_a_long_beginning_share_its_keys(lm):
    """The same texts as with the beginning in front of each."""
    tower, begin = lm("llama"), "It was great: warm, funny and well played.\n\n" * 2
    after = replace(passages().with_template(), follows_prefix=True)
    written = tower.generate(after, tower.encode_prefix(begin), max_new_tokens=6, eos_token_id=-1)
    ids = tower.template_tokenizer.tokenize_beginning(begin)
    for i, text in enumerate(written):
        row = tower.template_tokenizer.tokenize(after, i, 0, 0)
        whole = torch.tensor([[*ids, *row.ids[: row.answer_start]]])
        for _ in range(6):
            whole = torch.cat([whole, tower.net(whole).logits[:, -1:].argmax(-1)], 1)
        assert tower.tokenizer.decode(whole[0, -6:], skip_special_tokens=True).strip() == text


def test_half_precision(lm):
    """In bfloat16 the states are as near to those of single precision as those of padded rows."""
    single, inputs = lm("llama"), passages().with_template()
    tower = wrap_language_model(copy.deepcopy(single.net).bfloat16(), single.tokenizer, "causal", "half")
    exact, ours = single(inputs, output="response"), tower(inputs, output="response")
    padded = torch.cat(tower.compute_pass(tower.tokenize(inputs, NOTHING), NOTHING, "response")).float()
    assert (ours - exact).abs().max() < 1.5 * (padded - exact).abs().max()


def test_a_text_without_a_response_gives_no_states(lm):
    tower = lm("llama")
    rows = [TokenizedText([5, 6, 7], [], [0] * 3, mask_position=2, answer_ids=[], answer_start=3)]
    rows.append(TokenizedText([5, 6, 7, 8], [], [0] * 4, mask_position=2, answer_ids=[8], answer_start=3))
    none, one = tower._compute_outputs(rows, NOTHING, "response", False)
    assert (len(none), len(one)) == (0, 1)
