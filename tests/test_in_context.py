"""Learning in context and chain of thought: scores against plain transformers, what is shown, what is extracted."""

import pytest
import small_models
import torch

import vlprompt
from vlprompt.demonstrations import filled
from vlprompt.evaluate import answers, evaluate
from vlprompt.methods import InContext
from vlprompt.passages import Passage, Passages
from vlprompt.prompt import Prompt
from vlprompt.stage import Lesson, Name, Split

TEMPLATE = "{text} It was {mask}."
NAMES = (Name("negative", words=("terrible",)), Name("positive", words=("great",)))
TEXTS = ["the fox", "a lazy dog jumps", "shares fell", "the final after extra time", "warm and funny", "too long",
         "good", "the price of oil rose", "boring", "well played"]  # fmt: skip


def split(texts=TEXTS, tag="train", names=NAMES, template=TEMPLATE):
    items = tuple(Passage(f"{tag}/{i} {t}", {"text": t}, template, "{text}") for i, t in enumerate(texts))
    return Split(items, tuple(i % len(names) for i in range(len(items))), names)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {f: vlprompt.load(f"hf:{small_models.written(f, root / f)}") for f in ("llama", "gpt2", "bert", "t5")}


def begun(method, train=None, seed=0):
    method.begin(Lesson(split() if train is None else train), torch.Generator().manual_seed(seed))
    return method.eval()


def scores(method, test, size=100):
    return torch.cat(list(answers(method, test, size)))


def shown(method):
    """The texts of what stands before the test, as the method keeps them."""
    return [(item.fields["text"], item.response) for item in method.prepare(NAMES, method.fixed(NAMES))[0].items]


@torch.no_grad()
def one_by_one(lm, before, texts, choices, after):
    """Sums of the log-probabilities of the choices' tokens, each in a pass of transformers of its own."""
    net, tok, rows = lm.net, lm.tokenizer, []
    ids = lambda text, special=False: tok(text, add_special_tokens=special)["input_ids"]  # noqa: E731
    for text in texts:
        context = [*ids(before, True), *ids(after + text)] if before else ids(text, True)
        row = []
        for choice in choices:
            said = ids(f"a {choice}")[len(ids("a")) :]
            whole = torch.tensor([[*context, *said]])
            made = net(input_ids=whole).logits[0].log_softmax(-1)
            row.append(sum(float(made[len(context) - 1 + k, token]) for k, token in enumerate(said)))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("shots", "instruction"), [(0, ""), (0, "Is it good?"), (3, "Is it good?")])
def test_scores_are_those_of_plain_transformers_one_by_one(towers, family, shots, instruction):
    lm, test = towers[family], split(TEXTS[:4], "test")
    method = begun(InContext(lm, shots, instruction=instruction))
    parts = [*([instruction] if instruction else []), *(f"{text} It was {said}." for text, said in shown(method))]
    texts = [f"{text} It was" for text in TEXTS[:4]]
    twin = one_by_one(lm, "\n\n".join(parts), texts, ["terrible", "great"], "\n\n")
    assert (scores(method, test) - twin).abs().max() < 1e-5


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_choices_of_several_tokens_are_scored_one_by_one_too(towers, score):
    lm, choices = towers["llama"], ("quite good after all", "comma separated")
    names = tuple(Name(str(k), words=(choice,)) for k, choice in enumerate(choices))
    method = begun(InContext(lm, 2, score=score), split(names=names))
    before = "\n\n".join(f"{text} It was {said}." for text, said in shown(method))
    twin = one_by_one(lm, before, [f"{text} It was" for text in TEXTS], choices, "\n\n")
    sizes = [len(lm.tokenizer(f"a {choice}")["input_ids"]) - 2 for choice in choices]  # without <s> and "a"
    twin = twin / torch.tensor(sizes) if score == "mean" else twin
    assert (scores(method, split(names=names)) - twin).abs().max() < 1e-5


def test_a_prompt_that_was_learned_stands_before_the_demonstrations(towers):
    lm, soft = towers["llama"], torch.randn(1, 3, 48)
    test = Passages(split(tag="test").items[:2], plain=False, after=True)
    with torch.no_grad():
        past = lm.past("a fox It was great.\n\n", Prompt(tokens={0: soft}))
        got = lm.vocabulary(lm(test, past, read="mask"))
        for i, text in enumerate(TEXTS[:2]):
            encode = lambda text, special: lm.tokenizer(text, add_special_tokens=special)["input_ids"]  # noqa: E731
            ids = [*encode("a fox It was great.\n\n", True), *encode(f"{text} It was", False)]
            x = torch.cat([soft, lm.net.get_input_embeddings()(torch.tensor([ids]))], 1)
            assert (lm.net(inputs_embeds=x).logits[0, -1] - got[i]).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("demonstrations", ["random", "retrieved"])
def test_an_answer_does_not_depend_on_what_stands_beside_it(towers, family, demonstrations):
    names = (Name("good"), Name("bad"))
    test = split([*TEXTS[:5], TEXTS[0]], "test", names)
    method = begun(InContext(towers[family], 3, demonstrations=demonstrations, score="calibrated"), split(names=names))
    together, alone = scores(method, test), scores(method, test, 1)
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[5]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_read_from_both_sides_have_the_demonstrations_in_the_text(towers, family):
    lm, names = towers[family], (Name("good"), Name("bad"))
    train = split(names=names)
    method = begun(InContext(lm, 2), train)
    before = "\n\n".join(f"{text} It was {said}." for text, said in shown(method))
    whole = split(tag="whole", names=names, template=f"{before}\n\n{TEMPLATE}")
    bare = begun(InContext(lm, 0), whole)
    assert (scores(method, train) - scores(bare, whole)).abs().max() < 1e-6


def test_retrieved_demonstrations_behind_an_instruction_are_read_as_one_text(towers):
    lm, test = towers["gpt2"], split(["a lazy dog jumps", "shares fell"], "test")
    method = begun(InContext(lm, 2, instruction="Is it good?", demonstrations="retrieved"))
    demonstrations, words = method.prepare(NAMES, method.fixed(NAMES))
    with torch.no_grad():
        features = [torch.nn.functional.normalize(lm(Passages(s.items)), dim=-1) for s in (test, split())]
        got = method(Passages(test.items), (demonstrations, words)).logits
    for i, like in enumerate(features[0] @ features[1].T):
        far, near = like.topk(2).indices.flip(0).tolist()  # the nearest stands last
        assert TEXTS[near] == test.items[i].fields["text"]
        parts = ["Is it good?", *(f"{TEXTS[k]} It was {NAMES[k % 2].words[0]}." for k in (far, near))]
        twin = one_by_one(lm, "\n\n".join(parts), [f"{TEXTS[near]} It was"], ["terrible", "great"], "\n\n")
        assert (got[i] - twin).abs().max() < 1e-5


def test_another_seed_draws_other_demonstrations_and_balanced_has_as_many_of_each_class(towers):
    lm = towers["llama"]
    drawn = [shown(begun(InContext(lm, 4), seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    few = Split(split([text[:6] for text in TEXTS]).items, (0,) * 7 + (1,) * 3, NAMES)
    for seed in range(5):
        said = [word for _, word in shown(begun(InContext(lm, 6, demonstrations="balanced"), few, seed))]
        assert sorted(said) == ["great"] * 3 + ["terrible"] * 3
    said = [word for _, word in shown(begun(InContext(lm, 8, demonstrations="balanced"), few))]
    assert said.count("great") == 3  # all that it has


def test_calibration_divides_by_what_is_said_of_texts_without_content(towers):
    lm, test = towers["llama"], split(tag="test")
    plain, calibrated = (begun(InContext(lm, 2, score=score)) for score in ("sum", "calibrated"))
    free = scores(plain, split(["N/A", "", "[MASK]"], "free")).softmax(1).mean(0)
    p = scores(plain, test).softmax(1) / free
    assert torch.allclose(scores(calibrated, test).softmax(1), p / p.sum(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("demonstrations", ["random", "retrieved"])
def test_it_comes_back_from_its_state_without_data(towers, demonstrations):
    train = split(["{a} brace", "ünï", *TEXTS])
    method = begun(InContext(towers["llama"], 3, demonstrations=demonstrations), train)
    again = InContext(towers["llama"], 3, demonstrations=demonstrations)
    again.restore([Lesson(train)], method.state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in method.state_dict().items())
    assert torch.equal(scores(method, split(tag="test")), scores(again, split(tag="test")))


def test_a_text_is_written_out_as_its_template_says():
    item = Passage("k", {"a": "one", "b": "two {x}"}, "", "", response="yes")
    assert filled(item, "{a} {sep}{b}? {mask}!") == "one\ntwo {x}? yes!"
    assert filled(item, "{{}} {b}") == "{} two {x} yes"
    with pytest.raises(ValueError, match=r"\{c\}, but the text 'k' has the fields a, b"):
        filled(item, "{c} {mask}")


def test_texts_that_are_answered_by_text_are_rated_and_written_behind_demonstrations(towers):
    items = tuple(Passage(f"r{i}", {"text": t}, "{text} It was {mask}", "{text}", response="great")
                  for i, t in enumerate(TEXTS))  # fmt: skip
    answered = Split(items, (0,) * len(items), (Name("response"),), info={"write": 4})
    method = begun(InContext(towers["llama"], 2), answered)
    found = evaluate(method, answered, batch=3).numbers
    before = "\n\n".join(f"{text} It was {said}" for text, said in shown(method))
    twin = one_by_one(towers["llama"], before, [f"{text} It was" for text in TEXTS], ["great</s>"], "\n\n")
    tokens = len(towers["llama"].targets(Passages(items[:1], plain=False))[0])
    assert found["perplexity"] == pytest.approx(float((-twin.mean() / tokens).exp()), rel=1e-4)
    wanted = method.write(Passages(items), max_new_tokens=4)
    assert found["exact_match"] == 100 * sum(text == "great" for text in wanted) / len(items)
