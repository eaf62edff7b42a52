"""Learning in context and chain of thought: scores against plain transformers, what is shown, what is extracted."""

import re

import pytest
import small_models
import torch

import vlprompt
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextBatch, TextItem, render_template
from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.methods import ChainOfThought, InContext
from vlprompt.methods._answer_extraction import find_answer, find_class

TEMPLATE = "{text} It was {mask}."
NAMES = (ClassName("negative", words=("terrible",)), ClassName("positive", words=("great",)))
TEXTS = ["the fox", "a lazy dog jumps", "shares fell", "the final after extra time", "warm and funny", "too long",
         "good", "the price of oil rose", "boring", "well played"]  # fmt: skip


def split(texts=TEXTS, tag="train", names=NAMES, template=TEMPLATE):
    items = tuple(TextItem(f"{tag}/{i} {t}", {"text": t}, template, "{text}") for i, t in enumerate(texts))
    return Split(items, tuple(i % len(names) for i in range(len(items))), names)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {f: vlprompt.load(f"hf:{small_models.written(f, root / f)}") for f in ("llama", "gpt2", "bert", "t5")}


def begun(method, train=None, seed=0):
    method.begin_lesson(Lesson(split() if train is None else train), torch.Generator().manual_seed(seed))
    return method.eval()


def scores(method, test, size=100):
    return torch.cat(list(iter_logits(method, test, size)))


def shown(method):
    """The texts of what stands before the test, as the method keeps them."""
    return [(item.fields["text"], item.response) for item in method.prepare(NAMES, method.precompute(NAMES))[0].items]


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
    names = tuple(ClassName(str(k), words=(choice,)) for k, choice in enumerate(choices))
    method = begun(InContext(lm, 2, score=score), split(names=names))
    before = "\n\n".join(f"{text} It was {said}." for text, said in shown(method))
    twin = one_by_one(lm, before, [f"{text} It was" for text in TEXTS], choices, "\n\n")
    sizes = [len(lm.tokenizer(f"a {choice}")["input_ids"]) - 2 for choice in choices]  # without <s> and "a"
    twin = twin / torch.tensor(sizes) if score == "mean" else twin
    assert (scores(method, split(names=names)) - twin).abs().max() < 1e-5


def test_a_prompt_that_was_learned_stands_before_the_demonstrations(towers):
    lm, soft = towers["llama"], torch.randn(1, 3, 48)
    test = TextBatch(split(tag="test").items[:2], is_plain=False, follows_prefix=True)
    with torch.no_grad():
        past = lm.encode_prefix("a fox It was great.\n\n", Prompt(tokens={0: soft}))
        got = lm.vocabulary_logits(lm(test, past, output="mask"))
        for i, text in enumerate(TEXTS[:2]):
            encode = lambda text, special: lm.tokenizer(text, add_special_tokens=special)["input_ids"]  # noqa: E731
            ids = [*encode("a fox It was great.\n\n", True), *encode(f"{text} It was", False)]
            x = torch.cat([soft, lm.net.get_input_embeddings()(torch.tensor([ids]))], 1)
            assert (lm.net(inputs_embeds=x).logits[0, -1] - got[i]).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("demonstrations", ["random", "retrieved"])
def test_an_answer_does_not_depend_on_what_stands_beside_it(towers, family, demonstrations):
    names = (ClassName("good"), ClassName("bad"))
    test = split([*TEXTS[:5], TEXTS[0]], "test", names)
    method = begun(
        InContext(towers[family], 3, demonstration_selection=demonstrations, score="calibrated"), split(names=names)
    )
    together, alone = scores(method, test), scores(method, test, 1)
    assert (together - alone).abs().max() < 1e-5
    assert (together[0] - together[5]).abs().max() < 1e-5
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_read_from_both_sides_have_the_demonstrations_in_the_text(towers, family):
    lm, names = towers[family], (ClassName("good"), ClassName("bad"))
    train = split(names=names)
    method = begun(InContext(lm, 2), train)
    before = "\n\n".join(f"{text} It was {said}." for text, said in shown(method))
    whole = split(tag="whole", names=names, template=f"{before}\n\n{TEMPLATE}")
    bare = begun(InContext(lm, 0), whole)
    assert (scores(method, train) - scores(bare, whole)).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # with and without a token that begins a text
def test_retrieved_demonstrations_behind_an_instruction_are_read_as_one_text(towers, family):
    lm, test = towers[family], split(["a lazy dog jumps", "shares fell"], "test")
    method = begun(InContext(lm, 2, instruction="Is it good?", demonstration_selection="retrieved"))
    demonstrations, words = method.prepare(NAMES, method.precompute(NAMES))
    with torch.no_grad():
        features = [torch.nn.functional.normalize(lm(TextBatch(s.items)), dim=-1) for s in (test, split())]
        got = method(TextBatch(test.items), (demonstrations, words)).logits
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
        said = [word for _, word in shown(begun(InContext(lm, 6, demonstration_selection="balanced"), few, seed))]
        assert sorted(said) == ["great"] * 3 + ["terrible"] * 3
    said = [word for _, word in shown(begun(InContext(lm, 8, demonstration_selection="balanced"), few))]
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
    method = begun(InContext(towers["llama"], 3, demonstration_selection=demonstrations), train)
    again = InContext(towers["llama"], 3, demonstration_selection=demonstrations)
    again.restore([Lesson(train)], method.state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in method.state_dict().items())
    assert torch.equal(scores(method, split(tag="test")), scores(again, split(tag="test")))


def test_a_text_is_written_out_as_its_template_says():
    item = TextItem("k", {"a": "one", "b": "two {x}"}, "", "", response="yes")
    assert render_template(item, "{a} {sep}{b}? {mask}!") == "one\ntwo {x}? yes!"
    assert render_template(item, "{{}} {b}") == "{} two {x} yes"
    with pytest.raises(
        ValueError, match=r"expected a field of the text 'k' \(a, b\), got \{c\}. Use one of its fields"
    ):
        render_template(item, "{c} {mask}")


def test_texts_that_are_answered_by_text_are_rated_and_written_behind_demonstrations(towers):
    items = tuple(TextItem(f"r{i}", {"text": t}, "{text} It was {mask}", "{text}", response="great")
                  for i, t in enumerate(TEXTS))  # fmt: skip
    answered = Split(items, (0,) * len(items), (ClassName("response"),), info={"max_new_tokens": 4})
    method = begun(InContext(towers["llama"], 2), answered)
    found = evaluate(method, answered, batch_size=3).metrics
    before = "\n\n".join(f"{text} It was {said}" for text, said in shown(method))
    twin = one_by_one(towers["llama"], before, [f"{text} It was" for text in TEXTS], ["great</s>"], "\n\n")
    tokens = len(towers["llama"].response_tokens(TextBatch(items[:1], is_plain=False))[0])
    assert found["perplexity"] == pytest.approx(float((-twin.mean() / tokens).exp()), rel=1e-4)
    wanted = method.generate(TextBatch(items), max_new_tokens=4)
    assert found["exact_match"] == 100 * sum(text == "great" for text in wanted) / len(items)


@pytest.mark.parametrize(("text", "answer"), [
    ("She has 5 and buys 1,240 more. The answer is $1,245.", "1245"),
    ("The answer is 3. No: the answer is -4.5 dollars", "-4.5"),
    ("so 3 + 4 = 7", "7"), ("The answer is: Paris. It is 9 o'clock", "Paris"), ("I don't know", None), ("", None),
    ("The answer is (18)\nQ: 19", "18"),
])  # fmt: skip
def test_an_answer_in_text_is_what_follows_answer_is_or_the_last_number(text, answer):
    assert find_answer(text) == answer


def test_a_pattern_says_what_an_answer_looks_like():
    assert find_answer("#### 3 and #### 4", r"#### (\d)") == "4"
    assert find_answer("3", r"#### \d") is None
    with pytest.raises(
        ValueError, match=r"method.answer_pattern: expected a regular expression, got '\('.*Correct the pattern"
    ):
        find_answer("", "(")


@pytest.mark.parametrize(("text", "place"), [
    ("It is Great, no: terrible", 0), ("terrible ... so GREAT.", 1), ("greatest", None), ("not great", 2), ("", None),
])  # fmt: skip
def test_a_class_in_text_is_the_last_whole_word_that_stands_for_one(text, place):
    assert find_class(text, [["terrible", "bad"], ["great"], ["not great"]]) == place


EXAMPLES = [{"question": "is 2 {even}?", "rationale": "2 is 1 + 1.", "answer": "yes"},
            {"question": "and 3?", "rationale": "3 is odd.", "answer": "no"}]  # fmt: skip


@torch.no_grad()
def written(lm, texts, n):
    """What plain transformers write behind texts that are read on their own, one by one."""
    found = []
    for parts in texts:
        ids = [i for k, part in enumerate(parts) for i in lm.tokenizer(part, add_special_tokens=not k)["input_ids"]]
        given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        [made] = lm.net.generate(**given, do_sample=False, max_new_tokens=n, pad_token_id=0)
        made = made[len(ids) :] if lm.kind == "causal" else made
        found.append(lm.tokenizer.decode(made, skip_special_tokens=True).strip().split("\n\n")[0])
    return found


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_chains_are_those_that_plain_transformers_write(towers, family):
    lm, inputs = towers[family], TextBatch(split(tag="test").items[:3])
    method = begun(ChainOfThought(lm, examples=EXAMPLES, max_new_tokens=6))
    before = ("Q: is 2 {even}?\nA: 2 is 1 + 1. The answer is yes.\n\n"
              "Q: and 3?\nA: 3 is odd. The answer is no.", )  # fmt: skip
    texts = [(*before, f"\n\nQ: {text}\nA:") for text in TEXTS[:3]]
    texts = texts if lm.kind == "causal" else [("".join(parts),) for parts in texts]
    assert method.generate_chains(inputs) == [[text] for text in written(lm, texts, 6)]
    bare = begun(ChainOfThought(lm, max_new_tokens=6, max_answer_tokens=4))
    first = written(lm, [(f"Q: {text}\nA: Let's think step by step.",) for text in TEXTS[:3]], 6)
    second = [(f"Q: {text}\nA: Let's think step by step. {chain}\nTherefore, the answer is",)
              for text, chain in zip(TEXTS, first, strict=False)]  # fmt: skip
    last = written(lm, second, 4)
    assert bare.generate_chains(inputs) == [[text] for text in last]
    assert bare.generate(inputs, max_new_tokens=6) == [find_answer(f"The answer is {text}") or "" for text in last]
    assert any(bare.generate(inputs))


def test_the_class_that_is_found_is_the_answer_and_what_is_not_found_is_told(towers):
    lm, test = towers["llama"], split(tag="test")
    method = begun(ChainOfThought(lm, examples=EXAMPLES, max_new_tokens=6))
    said = [re.findall(r"\w+", text) for [text] in method.generate_chains(TextBatch(test.items))]
    word = next(words[-1] for words in said if words)
    names = (ClassName("other", words=("no such word",)), ClassName("said", words=(word,)))
    right = [any(one.lower() == word.lower() for one in words) for words in said]
    assert 0 < sum(right) < len(right)
    labelled = Split(test.items, (1,) * len(test), names)
    assert scores(method, labelled).tolist() == [[0.0, float(one)] for one in right]
    found = evaluate(method, labelled).metrics
    assert found["unanswered"] == pytest.approx(100 * (1 - sum(right) / len(right)))
    assert found["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert evaluate(method, Split(test.items, (0,) * len(test), names)).metrics["accuracy"] == 0  # silence is no class


def test_samples_are_drawn_from_the_runs_seed_for_each_text_alone_and_vote(towers):
    lm, test = towers["llama"], split(tag="test")
    made = lambda seed: begun(ChainOfThought(lm, examples=EXAMPLES, max_new_tokens=6, n_samples=3), seed=seed)  # noqa: E731
    inputs, state = TextBatch(test.items[:3]), torch.get_rng_state()
    ways = made(0).generate_chains(inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(some) for some in ways] == [3, 3, 3]
    assert len({text for some in ways for text in some}) > 3
    assert made(0).generate_chains(inputs.slice(1, 2)) == ways[1:2]
    assert made(1).generate_chains(inputs) != ways
    again = ChainOfThought(lm, examples=EXAMPLES, max_new_tokens=6, n_samples=3)
    again.restore([Lesson(split())], made(0).state_dict())
    assert again.generate_chains(inputs) == ways
    words = [[find_answer(text, r"^\W*(\w+)") for text in some] for some in ways]
    again.answer_pattern = r"^\W*(\w+)"
    assert again.generate(inputs) == [max(some, key=some.count) or "" for some in words]


def test_rationales_of_the_dataset_are_shown_and_answers_in_text_are_compared(towers):
    items = tuple(TextItem(f"q{i}", {"text": t, "rationale": f"because {i}."}, "", "{text}", response=str(i))
                  for i, t in enumerate(TEXTS))  # fmt: skip
    answered = Split(items, (0,) * len(items), (ClassName("response"),), info={"max_new_tokens": 5})
    method = begun(ChainOfThought(towers["llama"], shots=2), answered)
    [first, _] = [render_template(item, item.template) for item in method.build_demonstrations().items]
    number = TEXTS.index(first[len("Q: ") :].partition("\n")[0])
    assert first == f"Q: {TEXTS[number]}\nA: because {number}. The answer is {number}."
    found = evaluate(method, answered).metrics
    assert set(found) == {"exact_match", "token_f1"}
    silent = Split(items, answered.labels, answered.names)
    with pytest.raises(ValueError, match=r"doesn't score them, got 0. Set task\.max_new_tokens"):
        evaluate(method, silent)


@pytest.mark.parametrize(
    ("family", "cls", "given", "words"),
    [
        (
            "llama",
            InContext,
            {"shots": 11},
            (
                r"method\.shots: expected at most 10, the number of training texts, got 11\. Set "
                r"a lower method\.shots, or a higher task\.shots"
            ),
        ),
        ("llama", InContext, {"shots": -1}, "method.shots: expected at least 0, got -1"),
        ("llama", InContext, {"shots": 8, "instruction": "very " * 9}, r"128 positions.*\d fit\. Set method.shots=\d"),
        ("llama", InContext, {"shots": 1, "template": "{txt} {mask}"}, r"a field of the text .* \(text\), got \{txt\}"),
        ("llama", InContext, {"label_words": {"negative": ["bad"]}}, "got none for the class 'positive'"),
        (
            "llama",
            InContext,
            {"label_words": {"negative": ["a"], "positive": ["a"]}},
            "'negative' and 'positive', got 'a' for both. Give them other words",
        ),
        (
            "bert",
            InContext,
            {"label_words": {"negative": ["quite bad"], "positive": ["a"]}},
            "an encoder, which fills one place, got 'quite bad'",
        ),
        ("bert", ChainOfThought, {}, "expected a model that generates text, got an encoder. Choose a causal model"),
        (
            "llama",
            ChainOfThought,
            {"shots": 1},
            (
                r"shots: expected 1 training texts with a field rationale, got 0 of 10\. "
                r"Give method\.examples, or set method\.shots=0"
            ),
        ),
        (
            "llama",
            ChainOfThought,
            {"examples": [{"question": "a"}]},
            (
                r"examples\[0\]: expected the keys question, rationale and "
                r"answer, got question\. Give question, rat"
            ),
        ),
        ("llama", ChainOfThought, {"n_samples": 0}, "method.n_samples: expected at least 1, got 0"),
    ],
)
def test_errors_say_what_to_do(towers, family, cls, given, words):
    with pytest.raises(ValueError, match=words):
        scores(begun(cls(towers[family], **given)), split(tag="test"))


def test_a_restored_method_without_its_demonstrations_is_refused(towers):
    for method in (InContext(towers["llama"], 2), ChainOfThought(towers["llama"], 2)):
        method.begin_lesson(Lesson(Split((), (), NAMES)), torch.Generator())
        with pytest.raises(ValueError, match="shots: expected at most 0, the number of training texts, got 2"):
            scores(method, split(tag="test"))
