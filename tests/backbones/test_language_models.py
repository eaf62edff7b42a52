"""Language models as towers: what they give is what transformers gives, with and without a Prompt; nothing stays."""

import math
import warnings
from dataclasses import replace

import pytest
import small_models
import torch
from texts_and_models import SHOWN, TEXTS, parts, passages, prefix
from torch import nn

import vlprompt
from vlprompt.backbones.hf.loading import load_language_model, wrap_language_model
from vlprompt.core.batch import Split
from vlprompt.core.prompt import Prompt
from vlprompt.core.texts import TextBatch, TextItem, parse_template
from vlprompt.runtime.seeding import make_generator

FAMILIES = small_models.FAMILIES
CAUSAL = ("llama", "qwen2", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(family, lm):
    """The logits at the answer's place, one text at a time through the model's own forward."""
    tower = lm(family)
    states = tower(passages().with_template(), output="mask")
    for i, state in enumerate(states):
        row = tower.template_tokenizer.tokenize(passages().with_template(), i, 0, 0)
        if tower.kind == "seq2seq":
            begin = [tower.net.config.decoder_start_token_id, tower.tokenizer.convert_tokens_to_ids("<extra_id_0>")]
            own = tower.net(input_ids=torch.tensor([row.ids]), decoder_input_ids=torch.tensor([begin])).logits[0, 1]
        elif tower.kind == "encoder":
            place = row.ids.index(tower.tokenizer.mask_token_id)
            own = tower.net(input_ids=torch.tensor([row.ids])).logits[0, place]
        else:
            own = tower.net(input_ids=torch.tensor([row.ids[: row.answer_start]])).logits[0, -1]
        assert torch.allclose(tower.vocabulary_logits(state[None])[0], own, atol=2e-5 * float(own.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_response_is_as_likely_as_transformers_says(family, lm):
    tower = lm(family)
    states, targets = (
        tower(passages().with_template(), output="response"),
        tower.response_tokens(passages().with_template()),
    )
    mine = torch.cat([s.log_softmax(-1)[range(len(t)), t] for s, t in zip(
        tower.vocabulary_logits(states).split([len(t) for t in targets]), targets, strict=True)])  # fmt: skip
    own = []
    for i, target in enumerate(targets):
        assert target[-1] == tower.tokenizer.eos_token_id
        row = tower.template_tokenizer.tokenize(passages().with_template(), i, 0, 0)
        if tower.kind == "causal":
            logits = tower.net(input_ids=torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1]
        else:
            begin = [tower.net.config.decoder_start_token_id, tower.tokenizer.convert_tokens_to_ids("<extra_id_0>")]
            given = torch.tensor([[*begin, *target[:-1]]])
            logits = tower.net(input_ids=torch.tensor([row.ids]), decoder_input_ids=given).logits[0, 1:]
        own.append(logits.log_softmax(-1)[range(len(target)), target])
    assert torch.allclose(mine, torch.cat(own), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_does_not_depend_on_its_batch(family, lm):
    tower = lm(family)
    prompt = Prompt(
        {0: torch.randn(1, 4, tower.dim, generator=make_generator("t"))}, prefix(tower), parts(tower, "q", "down")
    )
    for how, read in ((passages(), "pooled"), (passages().with_template(), "mask")):
        for given in (Prompt(), prompt):
            whole = tower(how, given, read)
            alone = torch.cat([tower(how.slice(i, i + 1), given, read) for i in range(len(how))])
            assert torch.allclose(whole, alone, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_reached_and_left_as_it_was(family, lm):
    tower = lm(family)
    read = "mask" if tower.kind == "seq2seq" else "pooled"  # a decoder's sites are for what the decoder gives
    bare = tower(passages().with_template(), output=read)
    for site in tower.sites():
        with torch.no_grad():
            moved = tower(
                passages().with_template(),
                Prompt(adapters={site: lambda given, made: made + 0.1 * made.roll(1, -1)}),
                read,
            )
            same = tower(passages().with_template(), Prompt(adapters={site: lambda given, made: made}), read)
        assert (moved - bare).abs().max() > 1e-4, site
        assert torch.allclose(same, bare, atol=1e-5), site
    assert torch.equal(bare, tower(passages().with_template(), output=read))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_parts_are_given(family, lm):
    """The widths that `sites` tells, and for whole sub-layers what stands before the norm or behind it."""
    tower, met = lm(family), {}

    def note(site):
        def part(given, made):
            met[site] = given, made
            return made

        return part

    every = tower.sites()
    tower(passages().with_template(), Prompt(adapters={site: note(site) for site in every}), "mask")
    for site, (a, b) in every.items():
        assert (met[site][0].shape[-1], met[site][1].shape[-1]) == (a, b), site
    first = "enc/0" if tower.kind == "seq2seq" else "0"
    assert torch.equal(met[f"{first}/attn"][0], met[f"{first}/q"][0])
    assert torch.equal(met[f"{first}/mlp"][0], met[f"{first}/up"][0])
    assert torch.equal(met[f"{first}/attn"][1], met[f"{first}/out"][1])
    if family not in ("bert", "roberta"):
        assert torch.equal(met[f"{first}/attn+"][0], met[f"{first}/norm1"][0])
        assert torch.equal(met[f"{first}/q"][0], met[f"{first}/norm1"][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_in_the_weights_give_the_same(family, lm):
    tower = lm(family)
    prompt = Prompt(adapters=parts(tower, "q", "k", "v", "out", "up", "down"))
    before = {name: t.clone() for name, t in tower.net.state_dict().items()}
    folded, read = tower.merged(prompt), "mask" if tower.kind == "seq2seq" else "pooled"
    want = tower(passages().with_template(), prompt, read)
    assert torch.allclose(folded(passages().with_template(), output=read), want, atol=1e-4)
    assert (tower(passages().with_template(), output=read) - want).abs().max() > 0.01
    assert all(torch.equal(t, before[name]) for name, t in tower.net.state_dict().items())
    with pytest.raises(
        ValueError, match=r"got tokens or prefixes, which can't be merged into weights. Write --to peft"
    ):
        tower.merged(Prompt(prefix=prefix(tower)))


def naive_prefix(tower, text, kv):
    """BERT or Llama with keys and values before their own, written out, through hooks on nothing."""
    cache = __import__("transformers").DynamicCache()
    for i, (k, v) in kv.items():
        cache.update(k, v, i)
    ids = torch.tensor([tower.tokenizer(text)["input_ids"]])
    p = next(iter(kv.values()))[0].shape[2]
    places = torch.arange(p, p + ids.shape[1])[None]
    return tower.trunk(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True,
                       attention_mask=torch.ones(1, p + ids.shape[1])).last_hidden_state[0]  # fmt: skip


@pytest.mark.parametrize("family", CAUSAL)
def test_a_prefix_is_what_a_cache_would_be(family, lm):
    tower, kv = lm(family), prefix(lm(family))
    for i, text in enumerate(TEXTS):
        want = naive_prefix(tower, text, kv)[-1]
        assert torch.allclose(tower(passages().slice(i, i + 1), Prompt(prefix=kv))[0], want, atol=1e-5)


def attention_by_hand(x, q, k, v, kv, heads, bias, scale):
    """One row (N, D) that sees keys and values (H, P, Dh) before its own; bias (H, N, N) is of its own tokens alone."""
    q, k, v = (m(x).unflatten(-1, (heads, -1)).transpose(0, 1) for m in (q, k, v))
    k, v = torch.cat([kv[0][0], k], 1), torch.cat([kv[1][0], v], 1)
    score = q @ k.mT * scale
    score[:, :, -len(x) :] += bias
    return (score.softmax(-1) @ v).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
@torch.no_grad()
def test_a_prefix_of_an_encoder_by_hand(family, lm):
    """It moves the positions of BERT and RoBERTa, and has no share in the position bias of T5."""
    tower = lm(family)
    kv, ids = prefix(tower), torch.tensor(tower.tokenizer(TEXTS[0])["input_ids"])
    if family == "t5":
        blocks, heads, x = tower.net.encoder.block, tower.n_heads, tower.net.shared(ids)
        bias = blocks[0].layer[0].SelfAttention.compute_bias(len(ids), len(ids))[0]
        for i, block in enumerate(blocks):
            a, h = block.layer[0].SelfAttention, block.layer[0].layer_norm(x)
            x = x + a.o(attention_by_hand(h, a.q, a.k, a.v, kv[f"enc/{i}"], heads, bias, 1.0))
            x = block.layer[1](x[None])[0]
        want = tower.net.encoder.final_layer_norm(x).mean(0)
    else:
        first = 5 + (tower.net.config.pad_token_id + 1 if family == "roberta" else 0)
        places = torch.arange(first, first + len(ids))
        x = tower.trunk.embeddings(input_ids=ids[None], position_ids=places[None])[0]
        for i, layer in enumerate(tower.trunk.encoder.layer):
            a = layer.attention.self
            made = attention_by_hand(x, a.query, a.key, a.value, kv[i], 4, 0.0, tower.head_dim**-0.5)
            x = layer.attention.output(made, x)
            x = layer.output(layer.intermediate(x), x)
        want = x[0]
    assert torch.allclose(tower(passages(), Prompt(prefix=kv))[0], want, atol=1e-4)


@torch.no_grad()
def test_soft_tokens_are_no_part_of_a_mean_nor_the_first_of_a_text(lm):
    tokens = torch.randn(1, 4, 48, generator=make_generator("soft"))
    for family in ("t5", "bert"):
        tower = lm(family)
        ids = torch.tensor([tower.tokenizer(TEXTS[1])["input_ids"]])
        x = torch.cat([tokens, tower.net.get_input_embeddings()(ids)], 1)
        trunk = tower.net.encoder if family == "t5" else tower.trunk
        made = trunk(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2])).last_hidden_state[0, 4:]
        found = tower(passages(TEXTS[1:3]), Prompt(tokens={0: tokens}))[0]
        assert torch.allclose(found, made.mean(0) if family == "t5" else made[0], atol=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_text_that_was_read_before_is_as_if_it_stood_there(family, lm):
    """States, and what is written: against the whole text at once."""
    tower, begin = lm(family), "It was great.\n\n"
    read = tower.encode_prefix(begin)
    after = replace(passages().with_template(), follows_prefix=True)
    mine = tower.vocabulary_logits(tower(after, read, "mask"))
    for i in range(len(TEXTS)):
        row = tower.template_tokenizer.tokenize(after, i, 0, 0)
        ids = torch.tensor([tower.template_tokenizer.tokenize_beginning(begin) + row.ids[: row.answer_start]])
        assert torch.allclose(mine[i], tower.net(ids).logits[0, -1], atol=1e-4)
    whole = tower.net.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    whole = whole[0, ids.shape[1] :]
    written = tower.tokenizer.decode(whole, skip_special_tokens=True).strip()
    assert tower.generate(after.slice(6, 7), read, max_new_tokens=5) == [written]


@pytest.mark.parametrize("family", [*CAUSAL, "t5"])
def test_what_is_written_is_what_is_likeliest_step_by_step(family, lm):
    """With tokens, prefix and parts at once, several texts side by side, against one pass for each new token."""
    tower = lm(family)
    prompt = Prompt(
        {0: torch.randn(1, 4, tower.dim, generator=make_generator("t"))}, prefix(tower), parts(tower, "q", "up")
    )
    written = tower.generate(passages().with_template(), prompt, max_new_tokens=4)
    for i in (0, 5):
        said, tokenizer = [], tower.tokenizer
        for _ in range(4):
            given = replace(passages().with_template().slice(i, i + 1), responses=("x",))
            tower.template_tokenizer.tokenize_answers = lambda words, space=None, said=said: [
                [*said, 0]
            ]  # the answer so far and any token
            tower.template_tokenizer.cache.clear()
            best = int(tower.vocabulary_logits(tower(given, prompt, "response")[-1:]).argmax())
            del tower.template_tokenizer.tokenize_answers
            if best == tokenizer.eos_token_id:
                break
            said.append(best)
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == written[i]
    tower.template_tokenizer.cache.clear()


@pytest.mark.parametrize("family", CAUSAL)
def test_what_is_written_has_positions(family, lm):
    """A text gives way to what is written behind it, up to half of all positions; responses that are known don't."""
    tower, few = lm(family), Prompt(prefix=prefix(lm(family), 3))
    short, long = passages(["Fine"]).items[0], passages(["good film " * 200]).items[0]
    for prompt, most in ((Prompt(), 20), (few, 200)):
        seen = []
        handle = tower.trunk.register_forward_pre_hook(
            lambda m, a, k, seen=seen: seen.append(int(k["position_ids"].max())), with_kwargs=True
        )
        alone = [
            tower.generate(TextBatch((item,)), prompt, max_new_tokens=most, eos_token_id=-1)[0]
            for item in (short, long)
        ]
        handle.remove()
        assert tower.generate(TextBatch((short, long)), prompt, max_new_tokens=most, eos_token_id=-1) == alone
        assert max(seen) + tower.position_shift(prompt) == 126  # of 0 to 127; the last token is written and not read
        told = replace(long, response="great " * 40)
        assert tower.generate(TextBatch((told,)), prompt, max_new_tokens=most, eos_token_id=-1) == alone[1:]


def test_soft_tokens_stand_where_the_template_says(lm):
    for family in FAMILIES:
        tower = lm(family)
        shown = passages(["won the final"]).with_template("{2} The team {text} {3} end.")
        row = tower.template_tokenizer.tokenize(shown, 0, 5, 0)
        words = [tower.tokenizer.decode([k]) for j, k in enumerate(row.ids) if j not in row.soft_positions]
        plain = tower.tokenizer("The team won the final end.")["input_ids"]
        ids = [k for j, k in enumerate(row.ids[: row.answer_start]) if j not in row.soft_positions]
        assert ids == (plain[:-1] if tower.kind == "causal" and plain[-1] == tower.tokenizer.eos_token_id else plain), (
            words
        )
        first = row.ids.index(ids[0]) if tower.kind != "encoder" else 1
        assert row.soft_positions[:2] == [row.soft_positions[0], row.soft_positions[0] + 1]
        assert row.soft_positions[0] in (0, 1, first)
        before_end = tower.tokenizer.decode(row.ids[row.soft_positions[-1] + 1 : row.answer_start]).strip()
        assert before_end.startswith("end")
        with pytest.raises(
            ValueError, match=r"expected 4 soft tokens, as the method has, got places for 5. Set method.n_tokens=5"
        ):
            tower.template_tokenizer.tokenize(shown, 0, 4, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "t5"])
def test_soft_tokens_split_no_word_from_its_first_letters(family, lm):
    """Where tokens have the space before a word in them, soft tokens at a word stand before all of it."""
    tower = lm(family)
    shown = passages(["x"]).with_template("It was {2} good {text}")
    row = tower.template_tokenizer.tokenize(shown, 0, 2, 0)
    assert (
        tower.tokenizer.decode(row.ids[row.soft_positions[-1] + 1 : row.answer_start], skip_special_tokens=True).strip()
        == "good x"
    )


def test_a_text_too_long_is_cut_in_its_longest_field(lm):
    long = " ".join(["file"] * 400)
    for family in ("llama", "bert", "roberta", "t5"):
        tower = lm(family)
        for cut in ("end", "start"):
            fields = {"text": f"great {long} terrible", "ask": "docs?"}
            item = TextItem(f"long {cut}", fields, "{text} {ask} It was {mask}", "{text}", truncation_side=cut)
            tower.notes.pop("texts", None)
            state = tower(TextBatch((item,)).with_template(), Prompt(prefix=prefix(tower)), "mask")
            assert "128 positions" in tower.notes["texts"]
            assert f"cut at the {cut} of" in tower.notes["texts"]
            assert state.isfinite().all()
            row = tower.template_tokenizer.tokenize(TextBatch((item,)).with_template(), 0, 0, 5)
            text = tower.tokenizer.decode(row.ids)
            assert len(row.ids) == 128 - 5
            assert "docs" in text
            assert ("great" in text, "terrible" in text) == ((True, False) if cut == "end" else (False, True))
    with pytest.raises(
        ValueError, match=r"expected at most 128 positions of .*, got 202 .* alone. Use fewer prompt tokens"
    ):
        lm("bert")(passages(), Prompt(tokens={0: torch.zeros(1, 200, 48)}))


def test_templates():
    assert [p.n_soft_tokens for p in parse_template("{ctx} {text} {ctx} {mask}", 5) if p.kind == "tokens"] == [2, 3]
    assert "".join(p.text for p in parse_template("a {{b}} {text}")) == "a {b} text"
    for wrong, why in (("no field", "shows no field"), ("{text} {mask} {mask}", "at most one")):
        with pytest.raises(ValueError, match=why):
            parse_template(wrong)


def test_segments_of_a_pair(lm):
    tower = lm("bert")
    pair = TextItem("pair", {"a": "the file", "b": "the team"}, "{a}{sep}{b}{mask}", "{a}{sep}{b}")
    row = tower.template_tokenizer.tokenize(TextBatch((pair,)), 0, 0, 0)
    want = tower.tokenizer("the file", "the team", return_token_type_ids=True)
    assert row.ids == want["input_ids"]
    assert row.token_types == want["token_type_ids"]


def test_without_a_pad_token_rows_are_filled_all_the_same(lm):
    assert lm("gpt2").tokenizer.pad_token is None
    assert lm("llama").tokenizer.pad_token is None


def test_words_after_a_text(lm):
    """The tokens of an answer are those that it has behind the text, whatever stands between the two."""
    for family in CAUSAL:
        tower = lm(family)
        whole = tower.tokenizer("It was great", add_special_tokens=False)["input_ids"]
        begin = tower.tokenizer("It was", add_special_tokens=False)["input_ids"]
        assert tower.tokenize_answers(["great"], SHOWN) == [whole[len(begin) :]]
        line, start = (tower.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("It was\ngreat", "It was\n"))
        assert tower.tokenize_answers(["great"], "It was\n{mask}") == [line[len(start) :]]
        for word in ("nd", "They", "s", "1990", "\n\nx"):  # no letter is lost to what stands before
            [ids] = tower.tokenize_answers([word], "It was:{mask}")
            assert tower.tokenizer.decode(ids) == word


def test_texts_of_like_length_stand_together():
    items = tuple(TextItem(str(i), {"text": "x" * (i % 37 + 1)}, SHOWN, "{text}") for i in range(130))
    split = Split(items, tuple(i % 2 for i in range(130)), ("a", "b"))
    batches = list(split.batches(8, seed=1))
    assert sorted(key for b in batches for key in b.inputs.keys) == sorted(i.key for i in items)
    spread = [
        max(i.n_characters for i in b.inputs.items) - min(i.n_characters for i in b.inputs.items) for b in batches
    ]
    assert sum(spread[:-1]) / len(spread[:-1]) < 5
    left = {
        k for epoch in range(60) for b in split.batches(8, seed=1, epoch=epoch, drop_last=True) for k in b.inputs.keys
    }
    assert len(left) == 130  # no text is dropped in every epoch
    assert [len(b.inputs) for b in batches][:-1] == [8] * 16
    again, other = ([b.inputs.keys for b in split.batches(8, seed=s)] for s in (1, 2))
    assert [b.inputs.keys for b in batches] == again != other
    met = {
        key
        for epoch in range(9)
        for b in split.batches(50, seed=1, epoch=epoch, drop_last=True)
        for key in b.inputs.keys
    }
    assert len(met) == len(items)  # a short batch that is left out is not always that of the longest


def test_checkpointing_changes_no_gradient(lm):
    for family in FAMILIES:
        tower, found = lm(family), []
        tokens = nn.Parameter(torch.randn(1, 4, tower.dim, generator=make_generator("t")))
        kv = {layer: (k.requires_grad_(), v) for layer, (k, v) in prefix(tower).items()}
        beside, first = parts(tower, "q", "down"), next(iter(kv.values()))[0]
        for tower.activation_checkpointing in (False, True):
            made = tower(
                passages().with_template(), Prompt({0: tokens}, kv, beside), "mask" if family == "t5" else "pooled"
            )
            found.append(torch.autograd.grad(made.square().sum(), [tokens, first]))
        tower.activation_checkpointing = False
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_features_are_kept(lm):
    tower = lm("bert")
    first, again = tower(passages()), tower(passages().select([3, 1]))
    assert torch.equal(first[[3, 1]], again)
    calls = []
    handle = tower.trunk.register_forward_hook(lambda *a: calls.append(1))
    tower(passages())
    handle.remove()
    assert not calls


def test_a_folder_that_sentence_transformers_wrote_says_how_it_pools(folders, tmp_path):
    import shutil

    where = tmp_path / "st"
    shutil.copytree(folders("bert"), where)
    (where / "1_Pooling").mkdir()
    (where / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    tower = load_language_model(str(where), spec="hf:st", device="cpu")
    ids = torch.tensor([tower.tokenizer(TEXTS[0])["input_ids"]])
    want = tower.trunk(input_ids=ids).last_hidden_state[0].mean(0)
    assert torch.allclose(tower(passages())[0], want, atol=1e-5)


def test_bad_models(folders, tmp_path):
    import shutil

    with pytest.raises(ValueError, match=r"got .*/none/of/it', and there is no such folder. Check the path"):
        vlprompt.load(f"hf:{tmp_path}/none/of/it")
    with pytest.raises(OSError, match=r"has no config.json.*it must have"):
        vlprompt.load(f"hf:{tmp_path}")
    cut = tmp_path / "cut"
    shutil.copytree(folders("bert"), cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(
        ValueError, match=r"expected weights of its config.json, got others .*Get config.json and weights together"
    ):
        vlprompt.load(f"hf:{cut}")
    other = tmp_path / "other"
    shutil.copytree(folders("bert"), other)
    config = (other / "config.json").read_text().replace('"bert"', '"mamba"')
    (other / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"expected a model of type bert, .*, got 'mamba'. Use one of these types"):
        vlprompt.load(f"hf:{other}")


def test_refusals(lm):
    bert, llama = lm("bert"), lm("llama")
    with pytest.raises(ValueError, match=r"expected a model that writes responses, got an encoder. Use a causal model"):
        bert(passages(), output="response")
    with pytest.raises(
        ValueError,
        match=r"expected a causal model .* got one whose texts also depend on what follows. Use a causal model",
    ):
        bert.encode_prefix("x")
    with pytest.raises(
        ValueError, match=r"expected tokens at layer 0 of a language model, got layers \[1\]. Use a prefix"
    ):
        llama(passages(), Prompt(tokens={1: torch.zeros(1, 2, 48)}))
    with pytest.raises(ValueError, match=r"expected embedded tokens .* got is_embedded=False and carry at layers \[\]"):
        llama(passages(), Prompt(tokens={0: torch.zeros(1, 2, 48)}, is_embedded=False))
    with pytest.raises(ValueError, match=r"expected a place {mask} for the answer, got none. Add one"):
        bert(passages(), output="mask")
    with pytest.raises(ValueError, match="reads from left to right"):
        llama(passages().with_template("{mask} {text}"))
    with pytest.raises(
        ValueError, match=r"expected the fields text of the text 'text A', got \{title\}. Use one of them"
    ):
        llama(passages(["A"]).with_template("{title}"))
    with pytest.raises(ValueError, match=r"expected a text, got an empty one. Remove it"):
        bert(passages([""]))
    with pytest.raises(ValueError, match=r"expected sites norm, .*, got 'patch'. Use one of them"):
        llama.sites("patch")


def test_half_precision_is_near(folders, lm):
    for family in ("llama", "bert"):
        half = vlprompt.load(f"hf-bf16:{folders(family)}", "cpu")
        whole, made = lm(family)(passages()), half(passages())
        assert made.dtype == torch.float32
        assert float((whole - made).norm() / whole.norm()) < 0.03
        assert math.isclose(half.n_parameters, lm(family).n_parameters)
        part = parts(half, "q")
        assert half(passages(), Prompt(adapters=part)).isfinite().all()


def test_a_chat_is_written_as_its_tokenizer_has_it(lm):
    talk = TextItem("chat", {"messages": '[{"role": "user", "content": "Was it great?"}]'}, "{messages}", "{messages}",
                   response="It was.")  # fmt: skip
    tower = lm("llama")
    row = tower.template_tokenizer.tokenize(TextBatch((talk,)), 0, 0, 0)
    assert tower.tokenizer.decode(row.ids) == "<|user|>Was it great?\n<|assistant|>It was.</s>"
    assert tower.tokenizer.decode(row.ids[row.answer_start :]) == "It was.</s>"
    long = replace(talk, key="nd", response="nd it")
    row = tower.template_tokenizer.tokenize(TextBatch((long,)), 0, 0, 0)
    assert tower.tokenizer.decode(row.ids[row.answer_start :]) == "nd it</s>"
    for cut in ("end", "start"):  # of what was said, not of what says who speaks
        long = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "' + "file " * 300 + '"}]'
        row = tower.template_tokenizer.tokenize(
            TextBatch((replace(talk, key=cut, fields={"messages": long}, truncation_side=cut),)), 0, 0, 0
        )
        shown = tower.tokenizer.decode(row.ids)
        assert len(row.ids) == 128
        assert shown.startswith("<s><|system|>Be brief.\n<|user|>") or shown.startswith("<|system|>Be brief.\n<|user|>")
        assert "\n<|assistant|>It was.</s>" in shown
    with pytest.raises(ValueError, match=r"expected a chat template to read messages, got none. Use the tokenizer"):
        lm("gpt2")(TextBatch((talk,)))


def test_a_wrapped_model(folders):
    """A model that is there already, in Python."""
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(folders("llama"))
    tower = wrap_language_model(net, transformers.AutoTokenizer.from_pretrained(folders("llama")), "causal", "mine")
    assert tower(passages()).shape == (7, 48)
    assert not any(p.requires_grad for p in net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tower.key.startswith("mine#")


@pytest.mark.parametrize("family", CAUSAL)
def test_packed_rows_give_the_same(family, lm):
    """Several texts in a row: states and gradients of soft tokens, prefix and parts are those of one text a row."""
    tower, found = lm(family), []
    tokens = nn.Parameter(torch.randn(1, 3, tower.dim, generator=make_generator("t")))
    kv = {layer: (k.requires_grad_(), v) for layer, (k, v) in prefix(tower).items()}
    prompt, first = Prompt({0: tokens}, kv, parts(tower, "q", "down")), next(iter(kv.values()))[0]
    inputs = passages().with_template("{2} {text} {1} It was {mask}")
    rows = [len(tower.template_tokenizer.tokenize(inputs, i, 3, 5).ids) for i in range(len(inputs))]
    widths = []
    handle = tower.trunk.register_forward_pre_hook(
        lambda m, a, k: widths.append(k["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    for packed in (False, True):
        states = tower(replace(inputs, allows_packing=packed), prompt, "response")
        found.append((states, *torch.autograd.grad(states.square().sum(), [tokens, first])))
    handle.remove()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*found, strict=True))
    assert math.prod(widths[0]) == max(rows) * len(rows)
    assert widths[1][0] < len(rows)
    with pytest.raises(
        ValueError,
        match=r"got output 'response' of a model of kind 'seq2seq'. Set method.head.packing=false",
    ):
        lm("t5")(replace(passages(), allows_packing=True), output="response")


def test_words_that_were_cut_are_answered_by_what_was_read(lm):
    words = " ".join(["file"] * 300)
    item = TextItem("many words", {"words": words}, "{words} {mask}", "{words}", tags=(0,) * 300)
    lm("bert").notes.clear()
    states = lm("bert")(TextBatch((item,)), output="words")
    assert "many words" in lm("bert").notes["texts"]
    assert states.shape == (300, 48)
    assert torch.equal(states[299], states[298])
    assert not torch.equal(states[0], states[299])


def test_a_response_too_long_is_cut_at_half_the_positions(lm):
    """And not where the text beside it is short enough."""
    tower, said = lm("llama"), " ".join(["file"] * 100)
    for text, left in (("great " * 60, 64), ("great", None)):
        item = TextItem(f"said {text}", {"text": text.strip()}, SHOWN, "{text}", response=said)
        row = tower.template_tokenizer.tokenize(TextBatch((item,)).with_template(), 0, 0, 0)
        assert len(row.ids) == 128
        assert len(row.answer_ids) == (left or 128 - row.answer_start)
        assert tower.tokenizer.decode(row.ids[: row.answer_start]).endswith("It was")


def test_a_model_without_its_head_has_the_same_key_every_time(folders, tmp_path):
    """What a checkpoint lacks is drawn anew at each load; no head is asked for then, and none tells models apart."""
    import transformers

    net = transformers.AutoModelForMaskedLM.from_pretrained(folders("bert"))
    net.bert.save_pretrained(tmp_path / "trunk")
    transformers.AutoTokenizer.from_pretrained(folders("bert")).save_pretrained(tmp_path / "trunk")
    one, two = (vlprompt.load(f"hf:{tmp_path / 'trunk'}", "cpu") for _ in range(2))
    assert one.key == two.key
    assert torch.allclose(one(passages()), two(passages()))
    with pytest.raises(ValueError, match=r"expected a head over the vocabulary .*, got none. Set method.head=linear"):
        one(passages().with_template(), output="mask")
