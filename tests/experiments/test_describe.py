"""Class descriptions that a language model or chance writes: the file, what a stopped command does, bad input."""

import json

import pytest

from vlprompt.backbones import load_backbone
from vlprompt.backbones.hf.language_model import LanguageModel
from vlprompt.experiments.descriptions import generator
from vlprompt.experiments.descriptions.random_texts import draw_random_descriptors, list_words
from vlprompt.experiments.descriptions.styles import STYLES, fill_questions, parse_answers
from vlprompt.layers.class_descriptions import DESCRIPTOR_TEMPLATE, load_descriptions
from vlprompt.results import atomic_files
from vlprompt.testing.language_models import write_language_model

SHORT = ("--samples", "2", "--max-new-tokens", "6", "--question", "What is a {name}?")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny language models."""
    folder = tmp_path_factory.mktemp("models")
    return {family: f"hf:{write_language_model(family, folder / family)}" for family in ("gpt2", "llama", "bert")}


@pytest.fixture
def describe(type_in, models):
    """Describes the digits; gives (exit status, what was printed)."""
    return lambda *words, model="gpt2": type_in(
        "describe", "digits", "-o", "d.json", *(("--model", models[model]) if model else ()), *words
    )


@pytest.fixture
def questions(monkeypatch):
    """The questions that a model was asked."""
    seen, generate = [], LanguageModel.generate

    def record(self, inputs, *more, **settings):
        seen.append((inputs.items[0].fields, settings))
        return generate(self, inputs, *more, **settings)

    monkeypatch.setattr(LanguageModel, "generate", record)
    return seen


def test_the_file_says_how_it_was_made(describe, tmp_path, questions):
    code, text = describe(*SHORT)
    assert code == 0, text
    assert "10 of 10: nine" in text
    content = json.loads((tmp_path / "d.json").read_text())
    assert list(content["descriptions"])[:3] == ["zero", "one", "two"]
    assert all(1 <= len(texts) <= 2 for texts in content["descriptions"].values())
    made = content["generator"]
    assert (made["style"], made["model"], made["samples"], made["seed"]) == ("cupl", "hf:gpt2", 2, 1)
    assert made["questions"] == ["What is a {name}?"]
    assert made["model_key"]
    assert "/" not in json.dumps(made)  # no path of this machine
    assert [fields["question"] for fields, _ in questions][:2] == ["What is a zero?", "What is a one?"]
    assert questions[0][1]["temperature"] == STYLES["cupl"].temperature
    before = (tmp_path / "d.json").read_bytes()
    assert describe(*SHORT)[0] == 0
    assert len(questions) == 10  # none was asked again
    assert (tmp_path / "d.json").read_bytes() == before


def test_a_stopped_command_goes_on_to_the_same_file(describe, tmp_path, monkeypatch):
    assert describe(*SHORT)[0] == 0
    whole, write = (tmp_path / "d.json").read_bytes(), atomic_files.write_json
    (tmp_path / "d.json").unlink()
    count = []

    def stop(path, content):
        count.append(path)
        if len(count) == 4:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(generator, "write_json", stop)
        code, text = describe(*SHORT)
    assert code == 130
    assert "goes on from here" in text
    partial = json.loads((tmp_path / "d.json").read_text())["descriptions"]
    assert list(partial) == ["zero", "one", "two"]
    assert describe(*SHORT)[0] == 0
    assert (tmp_path / "d.json").read_bytes() == whole


def test_a_class_that_a_person_described_stays(describe, tmp_path, questions):
    assert describe(*SHORT)[0] == 0
    content = json.loads((tmp_path / "d.json").read_text())
    content["descriptions"]["one"] = ["an upright stroke"]
    del content["descriptions"]["two"]
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert describe(*SHORT)[0] == 0
    again = json.loads((tmp_path / "d.json").read_text())["descriptions"]
    assert again["one"] == ["an upright stroke"]
    assert list(again)[:3] == ["zero", "one", "two"]
    assert len(questions) == 11


def test_an_instruction_tuned_model_is_asked_by_messages(describe, tmp_path, questions):
    code, text = describe(*SHORT, model="llama")
    assert code == 0, text
    assert json.loads(questions[0][0]["messages"]) == [{"role": "user", "content": "What is a zero?"}]
    assert json.loads((tmp_path / "d.json").read_text())["generator"]["chat_template"]


def test_seeds_and_classes_have_answers_of_their_own(models):
    lm = load_backbone(models["gpt2"], "cpu")
    sampling = generator.Sampling(("What is a {name}?",), 2, 1.0, 6, 1)
    first = generator.ask(lm, "cat", "cat", sampling)
    assert len(first) == 2
    generator.ask(lm, "dog", "dog", sampling)
    assert generator.ask(lm, "cat", "cat", sampling) == first
    assert generator.ask(lm, "cat", "n02121808", sampling) != first
    assert generator.ask(lm, "cat", "cat", generator.Sampling(("What is a {name}?",), 2, 1.0, 6, 2)) != first


def test_answers_become_texts():
    answers = ["\n A round ring. It is closed.\nQuestion: no", "- A round ring.", "", " .\n", "1. An oval, at 2.5 cm"]
    assert parse_answers("cupl", answers) == ["A round ring.", "An oval, at 2.5 cm"]
    answers = [" black stripes,\n- four legs.\n* a mane\n2) a tail\n\n- not this", "hooves\nQuestion: What?", "...\n-"]
    assert parse_answers("dclip", answers) == ["black stripes", "four legs", "a mane", "a tail", "hooves"]


def test_questions_show_names_with_spaces():
    for style in STYLES.values():
        assert all("big cat" in question for question in fill_questions(style.questions, "big_cat"))


def test_an_empty_answer_is_one_error(describe, tmp_path, monkeypatch):
    def answer(self, inputs, *more, **settings):
        return ["", " - "] if "two" in inputs.items[0].fields["question"] else ["a ring", "a stroke"]

    monkeypatch.setattr(LanguageModel, "generate", answer)
    code, text = describe(*SHORT)
    assert code == 2
    assert "describe: expected a text about 'two', got 2 empty answers of hf:" in text
    assert list(json.loads((tmp_path / "d.json").read_text())["descriptions"]) == ["zero", "one"]


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        ((), None, "--model: expected a language model for --style cupl, got none. Set --model hf:FOLDER"),
        (("--model", "glyph"), None, "--model: expected a language model, got 'glyph'"),
        (("--style", "waffle"), "gpt2", "--style: expected cupl or dclip for a model that is asked, got waffle"),
        (("--question", "What is it?"), "gpt2", "--question: expected a text with {name}, where the class stands, got"),
        (("--question", "{name} {class}"), "gpt2", "expected the placeholders {name}, got {class}"),
        (("--samples", "0"), "gpt2", "--samples: expected 1 or more, got 0"),
        (("--samples", "0", "--style", "waffle"), None, "--samples: expected 1 or more pairs of random descriptors"),
        (("--max-new-tokens", "0"), "gpt2", "--max-new-tokens: expected 1 or more, got 0"),
        (("--temperature", "-1"), "gpt2", "--temperature: expected 0 or more, got -1.0"),
        (("--temperature", "0"), "gpt2", "--temperature: expected more than 0 for different answers, got 0 with 10"),
        (("-o", "d.txt"), "gpt2", "--out: expected the name of a .json file, got 'd.txt'"),
        ((), "bert", "expected a model that generates text, got an encoder"),
        (("--style", "dclip"), "gpt2", "--question: expected a question that fits into the 128 positions of hf:"),
    ],
)
def test_bad_input_is_one_error(describe, tmp_path, words, model, expected):
    code, text = describe(*words, model=model)
    assert code == 2, text
    assert expected in text
    assert not (tmp_path / "d.json").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"generator": None}, "--out: expected a new file, or one that vlprompt describe wrote, got 'd.json', which"),
        ({"descriptions": {"cat": ["a"]}}, "--out: expected a file of classes such as 'zero', got 'd.json', which has"),
        ({"template": "{description}"}, '--out: expected a file made with template "A photo of a {name}, which'),
        ({"generator": {"style": "waffle", "samples": 15, "seed": 2}}, "made with seed 1, got 'd.json', made with 2."),
        ({"descriptions": {"zero": []}, "other": 1}, "expected the keys template, descriptions, generator"),
    ],
)
def test_a_file_that_was_made_otherwise_is_not_touched(describe, tmp_path, change, expected):
    made = {"style": "waffle", "samples": 15, "seed": 1}
    content = {"template": DESCRIPTOR_TEMPLATE, "descriptions": {"zero": ["wings"]}, "generator": made} | change
    if content["generator"] is None:
        content = content["descriptions"]
    (tmp_path / "d.json").write_text(json.dumps(content))
    before = (tmp_path / "d.json").read_bytes()
    code, text = describe("--style", "waffle", model=None)
    assert code == 2
    assert expected in text
    assert (tmp_path / "d.json").read_bytes() == before


def test_random_descriptors_are_like_the_names_and_shared(describe, tmp_path):
    names = ["golden_retriever", "big cat"]  # two words each, of (6 + 9 + 3 + 3) / 4 letters
    descriptors = draw_random_descriptors(names, 15, 1)
    assert len(descriptors) == 30
    assert all(len(words := text.split(" ")) == 2 and max(map(len, words)) <= 5 for text in descriptors)
    assert all(len(text) == 11 for text in descriptors[1::2])
    known = {word[:5] for word in list_words()}
    assert {word for text in descriptors[::2] for word in text.split()} <= known
    assert not {word for text in descriptors[1::2] for word in text.split()} <= known
    assert descriptors == draw_random_descriptors(names, 15, 1) != draw_random_descriptors(names, 15, 2)
    code, text = describe("--style", "waffle", "--samples", "3", model=None)
    assert (code, "wrote d.json: 60 texts of 10 classes" in text) == (0, True)
    written = load_descriptions(tmp_path / "d.json")
    assert len({tuple(texts) for texts in written.texts.values()}) == 1
    assert (written.template, written.use) == (DESCRIPTOR_TEMPLATE, "random_texts")
    assert describe("--style", "waffle", "--samples", "3", model=None)[0] == 0


def test_classes_of_one_name_are_described_by_their_ids(tmp_path):
    from vlprompt.core.class_names import ClassName

    names = (ClassName("missile", "n1"), ClassName("Missile", "n2"), ClassName("cat", "n3"))
    file = generator.DescriptionFile(tmp_path / "d.json", names, None, generator.describe_chance(1, 1))
    assert file.keys == ["n1", "n2", "cat"]


def test_texts_are_no_dataset_to_describe(type_in, tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nfine,good\nawful,bad\nnice,good\nsad,bad\n")
    code, text = type_in("describe", "t.csv", "--style", "waffle", "-o", "d.json")
    assert code == 2
    assert "describe: expected a dataset of images, got the texts 't.csv'" in text


def test_methods_read_the_file(describe, type_in, tmp_path):
    assert describe(*SHORT)[0] == 0
    code, text = type_in(
        "run", "zero_shot", "digits", "--shots", "1", "--backbone", "glyph/random", "method.template=d.json"
    )
    assert code == 0, text
    [path] = (tmp_path / "runs").rglob("result.json")
    protocol = json.loads(path.read_text())["protocol"]
    assert protocol["uses"] == ["llm_texts"]
    assert list(protocol["descriptions"]) == ["d.json"]


def test_coprompt_reads_the_same_file(describe, type_in):
    assert describe("--style", "waffle", model=None)[0] == 0
    words = ("run", "coprompt", "digits", "--shots", "1", "--backbone", "glyph/random", "method.descriptions=d.json")
    code, text = type_in(*words, "method.method=maple", "train.epochs=1")
    assert code == 0, text
