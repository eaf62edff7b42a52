"""Methods on language models: every method on every family by every reader that fits, on tiny random models."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from opinions import SHOWN, data, texts

from vlprompt.config.build import build_method, get_constructor_types, resolve_class
from vlprompt.config.resolve import complete_arguments, resolve_grid
from vlprompt.config.sources import LayeredConfig
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.engine.evaluate_text import compute_token_f1
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.runner import run
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Text
from vlprompt.testing import MethodCase
from vlprompt.testing.language_checks import check_text_evaluation
from vlprompt.testing.learning_checks import check_activation_checkpointing, check_gradients, check_micro_batches

FAMILIES = ("llama", "qwen2", "gpt2", "bert", "roberta", "t5")
SMALL = {  # settings that fit tiny models
    "prompt_tuning": {"n_tokens": 4},
    "p_tuning": {"n_tokens": 4, "hidden_dim": 24, "template": "{ctx} {text} {ctx} It was {mask}"},
    "prefix_tuning": {"n_tokens": 4, "hidden_dim": 32},
    "lora": {"rank": 4, "sites": ["q", "v", "up", "down"]},
    "adapter": {"design": "houlsby"},
    "adaptformer": {"bottleneck_dim": 8, "dropout": 0.0},
    "linear": {"solver": "fit"},
    "mlp": {"dropout": 0.0},
    "ranpac": {"projection_dim": 64},
}
TRAINED = [*SMALL, "ssf", "bitfit", "full", "nearest_mean", "simplecil", "fecam"]
CLASSES = ("linear", "cosine", "sentences", "verbalizer", "soft_verbalizer")
READERS = {**dict.fromkeys(CLASSES, "class"), "tags": "tags", "response": "response"}
NO_BIASES = "has no biases there"
REFUSED = {  # (method, family, reader) -> why; None stands for all
    ("bitfit", "llama", None): NO_BIASES,
    ("bitfit", "t5", None): NO_BIASES,
    (None, "bert", "response"): "expected a model that writes responses, got an encoder. Use a causal model",
    (None, "roberta", "response"): "expected a model that writes responses, got an encoder. Use a causal model",
    ("mlp", None, "tags"): "normalises",
}


def settings_of(name, reader="linear", **more):
    settings = {**SMALL.get(name, {}), **more}
    if reader != "verbalizer" and reader != "soft_verbalizer" and name == "p_tuning":
        settings["template"] = None
    if "head" in get_constructor_types(resolve_class("method", name)):
        settings["head"] = {"name": reader}
    return settings


def make(name, tower, reader="linear", **more):
    cls = resolve_class("method", name)
    arguments = complete_arguments("method", cls, settings_of(name, reader, **more), LayeredConfig([]))
    return build_method({"name": name, **arguments}, tower)


def case_of(name, tower, reader="linear", **more):
    return MethodCase(resolve_class("method", name), settings_of(name, reader), tower, **more)


def begun_with(name, tower, reader, lesson):
    method = make(name, tower, reader)
    method.begin_lesson(lesson, make_generator(0))
    return method


def refused(name, family, reader):
    found = [
        why
        for key, why in REFUSED.items()
        if all(a in (None, b) for a, b in zip(key, (name, family, reader), strict=True))
    ]
    return found[0] if found else None


LEARNED_QUICKLY = {  # every method, and both kinds of insertion on every kind of model
    *((name, "llama") for name in ("lora", "prefix_tuning", "prompt_tuning", "full")),
    *((name, family) for name in ("lora", "prefix_tuning") for family in ("bert", "t5")),
}
CELLS = [
    (m, f, r)
    for m in TRAINED
    for f in FAMILIES
    for r in READERS
    if r == "linear" or "head" in get_constructor_types(resolve_class("method", m))
]


# the others have the blocks of llama and of bert, which all readers meet
QUICK_READERS = {"gpt2": ("linear", "verbalizer", "response"), "qwen2": ("linear",), "roberta": ("linear",)}


EACH_READER = ("lora", "prompt_tuning", "prefix_tuning", "p_tuning", "full", "linear")


def quick_or_slow(cells):
    """Every kind of model and every reader meet methods of each kind; every method two readers, every family one."""

    def is_quick(method, family, reader):
        if reader not in QUICK_READERS.get(family, READERS):
            return False
        return method in EACH_READER or reader in ("linear", "verbalizer")

    return [pytest.param(*cell, marks=[] if is_quick(*cell) else pytest.mark.slow) for cell in cells]


@pytest.mark.parametrize(("name", "family", "reader"), quick_or_slow(CELLS))
def test_matrix(name, family, reader, lm):
    """Two steps: the loss is finite, gradients are in the method alone, the state comes back without data."""
    if name == "mlp" and reader in ("tags", "response"):
        pytest.skip("a deep head over each word or token is nobody's method")
    if name == "linear" and reader in ("verbalizer", "response"):
        pytest.skip("a verbalizer over a frozen state has nothing to train")
    case, why = case_of(name, lm(family), reader), refused(name, family, reader)
    assert case.answer_kind == READERS[reader]
    with pytest.raises(ValueError, match=why) if why else nullcontext():
        check_text_evaluation(case)


def test_at_least_four_in_five_cells_run():
    assert sum(refused(*cell) is not None for cell in CELLS) < len(CELLS) / 5


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name, lm):
    family = "qwen2" if name in ("bitfit", "full") else "gpt2"
    unused = ("trained_tower.weights.lm_head/weight",)  # a linear head reads the feature
    check_gradients(case_of(name, lm(family), unused_parameters=unused))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=[] if (name, family) in LEARNED_QUICKLY else pytest.mark.slow)
        for name in ("lora", "prefix_tuning", "prompt_tuning", "full")
        for family in FAMILIES
    ],
)
def test_it_learns(name, family, lm):
    """Twelve texts by heart; tokens before the text can't turn a random model's answers far."""
    lr = {"lora": 0.005, "prefix_tuning": 0.3, "prompt_tuning": 0.1, "full": 0.001}[name]
    method = make(name, lm(family), "verbalizer", **({"hidden_dim": None} if name == "prefix_tuning" else {}))
    lesson = Lesson(data().train.select(range(12)))
    method.begin_lesson(lesson, make_generator(0))
    how = TrainConfig(epochs=40, batch_size=12, lr=lr, warmup=0, optimizer="adamw", schedule="constant")
    losses = [s.loss for s in fit(method, lesson, how)]
    assert losses[-1] < (0.999 if name == "prompt_tuning" else 0.7) * losses[0]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=[] if family == "llama" or name == "lora" else pytest.mark.slow)
        for name in ("lora", "prefix_tuning", "prompt_tuning", "ssf")
        for family in ("llama", "bert", "t5")
    ],
)
def test_micro_batches_and_checkpointing_give_the_same(name, family, lm):
    case = case_of(name, lm(family), "soft_verbalizer")
    check_micro_batches(case)
    check_activation_checkpointing(case)


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_starts(name, lm):
    """The same seed the same values, another seed others."""
    states = []
    for seed in (1, 1, 2):
        method = make(name, lm("llama"))
        method.begin_lesson(Lesson(data().train), make_generator(seed))
        states.append(torch.cat([t.flatten() for t in method.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_prompt_tuning_starts_from_words(lm):
    tower, lesson = lm("llama"), Lesson(data().train)
    method = make("prompt_tuning", tower, init="text", init_text="It was great", n_tokens=7)
    method.begin_lesson(lesson, make_generator(0))
    words = tower.embed_text("It was great")
    assert torch.equal(method.tokens, words.repeat(7, 1)[:7])
    method = make("prompt_tuning", tower, init="vocabulary")
    method.begin_lesson(lesson, make_generator(0))
    table = tower.net.get_input_embeddings().weight
    assert all((row == table).all(1).any() for row in method.tokens)
    for wrong in ({"init": "text"}, {"init": "random", "init_text": "x"}):
        with pytest.raises(ValueError, match=r"exactly with method.init=text, got .*Set both, or neither"):
            make("prompt_tuning", tower, **wrong).begin_lesson(lesson, make_generator(0))


def test_where_a_prefix_stands(lm):
    method = make("prefix_tuning", lm("t5"), attentions=["dec", "cross"])
    method.begin_lesson(Lesson(data().train), make_generator(0))
    assert sorted(map(str, method.prompt(1).prefix)) == sorted(f"{p}/{i}" for p in ("dec", "cross") for i in range(3))
    with pytest.raises(ValueError, match="expected some of enc, dec, cross, got 'middle'"):
        make("prefix_tuning", lm("t5"), attentions=["middle"]).begin_lesson(Lesson(data().train), make_generator(0))
    with pytest.raises(ValueError, match=r"has one stack, got .*Leave method.attentions out"):
        make("prefix_tuning", lm("bert"), attentions=["enc"]).begin_lesson(Lesson(data().train), make_generator(0))


def test_a_verbalizer_by_hand(lm):
    """The logit of a class is the mean of its words' logits at the answer's place."""
    for family in ("llama", "bert", "t5"):
        tower = lm(family)
        method = make("linear", tower, "verbalizer")
        method.begin_lesson(Lesson(data().train), make_generator(0))
        test = texts(4, 9)
        found = torch.cat(list(iter_logits(method, test)))
        states = tower(next(test.batches(4)).inputs.with_template(), output="mask")
        every = tower.vocabulary_logits(states)
        for c, name in enumerate(test.names):
            first = [ids[0] for ids in tower.tokenize_answers(name.words, SHOWN)]
            assert torch.allclose(found[:, c], every[:, first].mean(1), atol=1e-5)
    asked = Text(data(), prompt_template="{text}\n{mask}")  # a word has no space before it where the template has none
    stage = next(asked.stages())
    tower = lm("gpt2")
    found = torch.cat(list(iter_logits(begun_with("linear", tower, "verbalizer", stage.lesson), stage.tests["test"])))
    row = tower.template_tokenizer.tokenize(TextBatch(stage.tests["test"].items[:1]).with_template(), 0, 0, 0)
    logits = tower.net(torch.tensor([row.ids])).logits[0, -1]
    firsts = [[tower.tokenizer(word)["input_ids"][0] for word in name.words] for name in stage.lesson.train.names]
    assert torch.allclose(found[0], torch.stack([logits[first].mean() for first in firsts]), atol=1e-4)


def test_words_that_say_nothing_or_the_same(lm):
    tower, lesson = lm("llama"), Lesson(data().train)
    for words, why in (
        ({"negative": ["bad"]}, "got none for the class 'positive' .has negative"),
        ({"negative": ["great"], "positive": ["great"]}, "begin with the same token"),
    ):
        method = make("lora", tower, "verbalizer")
        method.head.words = words
        method.begin_lesson(lesson, make_generator(0))
        with pytest.raises(ValueError, match=why):
            evaluate(method, lesson.train)


def test_a_reader_for_another_answer(lm):
    for kind, wanted in (("tags", "tags"), ("response", "response")):
        with pytest.raises(ValueError, match=f"method.head={wanted}"):
            run(make("lora", lm("llama")), Text(data(kind)), TrainConfig(epochs=0))
        with pytest.raises(ValueError, match=f"method.head={wanted}"):  # before anything is trained
            make("lora", lm("llama")).begin_lesson(Lesson(texts(4, 1, kind)), make_generator(0))
    writes = make("lora", lm("llama"), "response")
    with pytest.raises(ValueError, match=r"method\.head=verbalizer or linear"):
        writes.begin_lesson(Lesson(texts(4, 1)), make_generator(0))
    writes.begin_lesson(Lesson(texts(4, 1, "response")), make_generator(0))
    with pytest.raises(ValueError, match=r"method\.head=verbalizer or linear"):
        evaluate(writes, texts(4, 1))
    with pytest.raises(ValueError, match=r"whose words have no classes.*Take a dataset"):
        run(make("lora", lm("llama"), "tags"), Text(data()), TrainConfig(epochs=1))


def test_texts_and_images_are_not_mixed_up(lm):
    from vlprompt.backbones.glyph import build_tiny_clip
    from vlprompt.tasks import FewShot

    with pytest.raises(
        ValueError, match=r"expected texts for hf:.* is a language model, got images. Set --backbone glyph"
    ):
        run(make("lora", lm("llama")), FewShot("digits", 1))
    with pytest.raises(
        ValueError, match=r"expected images for glyph/random, which is an image tower, got texts. Set --backbone hf:"
    ):
        run(make("lora", build_tiny_clip()), Text(data()))
    with pytest.raises(
        ValueError, match=r"a dataset of texts for the task text, got digits, which has images\. Set --task"
    ):
        run(make("lora", lm("llama")), Text("digits"))
    with pytest.raises(ValueError, match="coop: expected a CLIP"):
        build_method({"name": "coop"}, lm("llama"))
    with pytest.raises(ValueError, match="vpt: expected an image tower, got the language model hf:"):
        build_method({"name": "vpt", "head": {"name": "linear"}}, lm("llama"))
    with pytest.raises(
        ValueError, match=r"prefix_tuning: expected a language model, got glyph/random. Choose --backbone"
    ):
        build_method({"name": "prefix_tuning", "head": {"name": "linear"}}, build_tiny_clip())


def test_perplexity_and_what_is_written_by_hand(lm):
    tower, test = lm("gpt2"), texts(6, 4, "response")
    method = make("lora", tower, "response")
    method.begin_lesson(Lesson(test), make_generator(0))
    told = evaluate(method, Split(test.items, test.labels, test.names, info={"max_new_tokens": 3})).metrics
    inputs = next(test.batches(6)).inputs.with_template()
    losses, hits = [], []
    for i, target in enumerate(tower.response_tokens(inputs)):
        row = tower.template_tokenizer.tokenize(inputs, i, 0, 0)
        logits = tower.net(torch.tensor([row.ids])).logits[0, row.answer_start - 1 : -1]
        losses += (-logits.log_softmax(-1)[range(len(target)), target]).tolist()
        hits += (logits.argmax(-1) == torch.tensor(target)).tolist()
    assert math.isclose(told["perplexity"], math.exp(sum(losses) / len(losses)), rel_tol=1e-4)
    assert math.isclose(told["token_accuracy"], 100 * sum(hits) / len(hits))
    written = tower.generate(inputs, max_new_tokens=3)
    want = [item.response for item in test.items]
    assert told["exact_match"] == 100 * sum(a == b for a, b in zip(written, want, strict=True)) / 6


@pytest.mark.parametrize(
    ("name", "more"), [("prompt_tuning", {}), ("prefix_tuning", {}), ("p_tuning", {"template": "{text}\n{ctx}{mask}"})]
)
def test_what_a_response_should_be_is_what_the_model_was_shown(name, more, lm):
    """By the method's template, and cut where the prompt leaves no more room."""
    tower = lm("gpt2")
    items = tuple(
        TextItem(f"{name} {n}", {"text": "file " * n}, "{text}", "{text}", response="The end " * 60) for n in (3, 40)
    )
    short = replace(items[0], key=f"{name} short", response="The end")
    split = Split((*items, short), (0, 0, 0), (ClassName("response"),))
    method = make(name, tower, "response")
    for setting, value in more.items():
        setattr(method, setting, value)
    method.begin_lesson(Lesson(split), make_generator(0))
    inputs = next(split.batches(3)).inputs
    out = method(inputs, method.prepare(split.names, None))
    shown, prompt = method.prepare_inputs(inputs), method.prompt(3)
    rows = [tower.template_tokenizer.tokenize(shown, i, prompt.length, tower.position_shift(prompt)) for i in range(3)]
    assert out.targets.tolist() == [token for row in rows for token in row.ids[row.answer_start :]]
    assert len(out.logits) == len(out.targets)
    method.loss_terms(next(split.batches(3)), None)


def test_full_writes_by_its_own_weights(lm):
    method = make("full", lm("gpt2"), "response")
    test = texts(4, 4, "response")
    method.begin_lesson(Lesson(test), make_generator(0))
    inputs = next(test.batches(4)).inputs
    before = method.generate(inputs, max_new_tokens=5)
    with torch.no_grad():
        for p in method.trained_tower.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=make_generator("another")))
    assert method.generate(inputs, max_new_tokens=5) != before


def test_a_run_is_resumed_where_it_was_stopped(lm, tmp_path):
    """Stopped in the middle by an error from outside, it ends in the same prompt bit for bit."""
    about = Text(data()), TrainConfig(epochs=4, batch_size=8, lr=0.01, optimizer="adamw", warmup=0)
    whole = run(make("prefix_tuning", lm("llama")), *about, tmp_path / "whole", save_every=0)

    class Stop(Exception):
        pass

    def watch(event):
        if isinstance(event, StepDone) and event.step == 9:
            raise Stop

    with pytest.raises(Stop):
        run(make("prefix_tuning", lm("llama")), *about, tmp_path / "parts", save_every=0, on_event=watch)
    again = run(make("prefix_tuning", lm("llama")), *about, tmp_path / "parts", save_every=0)
    assert again.scores == whole.scores
    assert (tmp_path / "whole" / "prompt.safetensors").read_bytes() == (
        tmp_path / "parts" / "prompt.safetensors"
    ).read_bytes()


def test_a_reader_by_its_name_and_a_setting_of_it(tmp_path):
    """method.head=response method.head.packing=true, in either order of sources."""
    how = ["method.head=response", "method.head.packing=true"]
    [plan] = resolve_grid(["lora"], [None], [1], dataset="signatures", backbone="hf:x", overrides=how)
    assert plan.task["name"] == "text"
    assert plan.method["head"] == {"name": "response", "template": None, "packing": True}


@pytest.mark.parametrize("kind", ["tags", "response"])
def test_shots_of_texts_without_classes(kind):
    lesson = Text(data(kind), shots=5).lesson
    assert (len(lesson.train), lesson.train.names) == (5, data(kind).train.names)


def test_what_a_benchmark_tells_beside_accuracy():
    """By hand: 3 of 4 positives found with 1 false one, of 8."""
    from vlprompt.metrics import benchmark_metric

    labels, said = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]), torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    assert benchmark_metric("f1", said, labels) == {"f1": pytest.approx(75.0)}
    assert benchmark_metric("matthews", said, labels) == {"matthews": pytest.approx(50.0)}
    assert benchmark_metric("accuracy", said, labels) == benchmark_metric(None, said, labels) == {}


QUICK_WRITERS = (("full", "llama"), ("lora", "llama"), ("prefix_tuning", "t5"))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(name, family, marks=[] if (name, family) in QUICK_WRITERS else pytest.mark.slow)
        for name in ("full", "lora", "prefix_tuning", "adapter")
        for family in ("llama", "t5")
    ],
)
def test_what_was_learned_is_written(name, family, lm):
    """Responses by heart come back through generation, from the trained weights and the prompt."""
    lr = {"lora": 0.02, "prefix_tuning": 0.3, "full": 0.002, "adapter": 0.02}[name]
    method = make(name, lm(family), "response", **({"hidden_dim": None} if name == "prefix_tuning" else {}))
    split = texts(12, 1, "response")
    method.begin_lesson(Lesson(split), make_generator(0))
    list(fit(method, Lesson(split), TrainConfig(epochs=60, batch_size=12, lr=lr, warmup=0, optimizer="adamw")))
    told = evaluate(method, Split(split.items, split.labels, split.names, info={"max_new_tokens": 6})).metrics
    assert told["token_accuracy"] > 90
    assert told["exact_match"] > 75


def test_a_warm_up_as_long_as_the_training_is_told(lm):
    how = TrainConfig(
        iterations=5, batch_size=8, warmup=20, warmup_kind="linear", warmup_lr=0.0, schedule_unit="iteration"
    )
    result = run(make("lora", lm("llama")), Text(data()), how)
    assert "20 iterations are the whole training" in result.protocol["clipped_settings"]["train.warmup"]


def test_what_a_task_shows():
    """tests: evenly spaced; cut, prompt and plain are those of every text."""
    whole = data().test
    task = Text(
        data(),
        max_test_texts=6,
        truncation_side="start",
        prompt_template="{text}: {mask}",
        plain_template="Text: {text}",
    )
    assert [item.key for item in task.test.items] == [item.key for item in whole.items[::4]]
    items = [*task.test.items, *task.lesson.train.items]
    assert {(item.truncation_side, item.template, item.plain_template) for item in items} == {
        ("start", "{text}: {mask}", "Text: {text}")
    }


def test_the_words_that_two_texts_share():
    assert compute_token_f1("The big  file", "the file") == pytest.approx(0.8)
    assert (compute_token_f1("a b", "c"), compute_token_f1("", ""), compute_token_f1("a a", "a")) == (
        0.0,
        1.0,
        pytest.approx(2 / 3),
    )
