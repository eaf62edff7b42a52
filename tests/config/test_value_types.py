"""Values of the command line and of files mean what was typed: YAML changes no text."""

import json

import pytest
import yaml

from vlprompt.config.override_types import parse_typed
from vlprompt.config.resolve import resolve_grid
from vlprompt.config.sources import format_override
from vlprompt.runtime.yaml_text import load_yaml

ZERO_SHOT = ["run", "zero_shot", "digits", "--shots", "1", "--backbone", "glyph/random"]


def read_setting(folder, section, name):
    [config] = folder.rglob("config.yaml")
    return yaml.safe_load(config.read_text("utf-8"))[section][name]


@pytest.mark.parametrize(
    ("typed", "template"),
    [
        ("a {name} #1", "a {name} #1"),
        ('"a {name} #1"', "a {name} #1"),
        ("{name}", "{name}"),
        ("a {name}: a pet", "a {name}: a pet"),
        ("- {name}", "- {name}"),
        ("&a *b !c {name}", "&a *b !c {name}"),
        ('["a {name} #1", "b {name}"]', ["a {name} #1", "b {name}"]),
        ("'[a] {name}'", "[a] {name}"),
        ('"a" {name} "b"', '"a" {name} "b"'),
    ],
)
def test_a_template_is_what_was_typed(typed, template):
    [config] = resolve_grid(["zero_shot"], [1], [1], dataset="digits", overrides=[f"method.template={typed}"])
    assert config.method["template"] == template


def test_a_typed_template_stands_in_the_runs_configuration(type_in, tmp_path):
    code, text = type_in(*ZERO_SHOT, "method.template=&a *b !c {name} #1")
    assert code == 0, text
    assert read_setting(tmp_path, "method", "template") == "&a *b !c {name} #1"


@pytest.mark.parametrize("words", ["a photo #of a", "yes", "1e3", "010", "2020-01-01", "1:30", "${HOME}"])
def test_initial_words_are_what_was_typed(words):
    [config] = resolve_grid(["coop"], [1], [1], dataset="digits", overrides=[f"method.init_text={words}"])
    assert config.method["init_text"] == words


@pytest.mark.parametrize("kind", ["kind", "oc.env:HOME"])
def test_an_unknown_field_of_a_template_is_refused(type_in, kind):
    code, text = type_in(*ZERO_SHOT, f"method.template=a ${{{kind}}} of {{name}}")
    assert code == 2
    assert f"expected the placeholders {{name}}, got {{{kind}}}. Write one of those, or {{{{{kind}}}}}" in text


def test_a_list_that_is_none_is_refused(type_in):
    code, text = type_in(*ZERO_SHOT, "method.template=[a {name} #1, b {name}]")
    assert code == 2
    assert "expected a list or mapping, got a text that is none. Write its texts in double quotes" in text


@pytest.mark.parametrize(
    ("typed", "annotation", "value"),
    [
        ("", str | None, None),
        ("null", str | None, None),
        ("'null'", str | None, "null"),
        ("null", str, "null"),
        ("3", int | str, 3),
        ("'3'", int | str, "3"),
        ("1e-3", float | str, 1e-3),
        ("kaiming", float | str, "kaiming"),
        ("010", int, 10),
        ("1e3", float, 1000.0),
        ("true", bool, True),
        ("[1, 2]", tuple[int, ...] | None, [1, 2]),
        ("{a: 1}", dict[str, int], {"a": 1}),
        ("[yes, a b]", list[str] | None, ["yes", "a b"]),
    ],
)
def test_the_type_of_the_argument_decides(typed, annotation, value):
    assert parse_typed(typed, annotation) == value
    assert type(parse_typed(typed, annotation)) is type(value)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("backbone=", "backbone: expected the name of a backbone, got ''. Set --backbone glyph"),
        ("backbone=[1]", "'[1]'"),
        ("backbone=a: b", "a: b"),
        ("preprocess=[1]", "'[1]'"),
        ("seed=true", "seed: expected an integer, got True. Set seed=1"),
        ("seed=", "seed: expected an integer, got None. Set seed=1"),
        ("train.epochs=3 #5", "train.epochs: expected a valid integer"),
        ("task.dataset=", "''"),
        ("task.dataset=[a]", "'[a]'"),
        ("method.descriptions=none.json", "method.descriptions: expected a file of descriptions, got 'none.json'"),
    ],
)
def test_values_that_can_not_be_are_one_line(type_in, setting, expected):
    words = ZERO_SHOT[:5] if setting.startswith("backbone") else ZERO_SHOT
    words = [word for word in words if word != "digits" or not setting.startswith("task.dataset")]
    code, text = type_in(*words, setting)
    assert code == 2
    assert expected in text


def test_a_file_of_settings_is_read_as_yaml_1_2(type_in, tmp_path):
    (tmp_path / "mine.yaml").write_text("method: {name: coop, init_text: yes}\ntask: {shots: 01, skip_broken: on}\n")
    [config] = resolve_grid([None], [None], [1], dataset="digits", config_file=tmp_path / "mine.yaml")
    assert (config.method["init_text"], config.task["shots"], config.task["skip_broken"]) == ("yes", 1, True)
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.1, lr: 0.2}\n")
    code, text = type_in(*ZERO_SHOT, "-c", "mine.yaml")
    assert code == 2
    assert "mine.yaml: expected YAML, got an error: the key 'lr' stands twice" in text
    (tmp_path / "mine.yaml").write_bytes(b"method: \xff\n")
    assert type_in(*ZERO_SHOT, "-c", "mine.yaml")[0] == 2


def test_words_of_yaml():
    text = "{a: yes, b: 010, c: 1:30, d: 2020-01-01, e: 1e3, f: .5, g: null, h: true, i: 0x1F, j: -.inf, k: '5', l: <<}"
    assert load_yaml(text) == {
        "a": "yes", "b": 10, "c": "1:30", "d": "2020-01-01", "e": 1000.0, "f": 0.5, "g": None, "h": True, "i": "0x1F",
        "j": -float("inf"), "k": "5", "l": "<<",
    }  # fmt: skip
    assert load_yaml("{a: {true: 1.0, 010: [null]}, b: {true: 1.0, 7: 8}, c: 5}", ("b",)) == {
        "a": {"true": "1.0", "010": ["null"]},
        "b": {"true": 1.0, 7: 8},
        "c": 5,
    }


@pytest.mark.parametrize("name", ["1", "yes", "null", "a #b", 'a "b', "it's", "a\\nb", "{x}", "[y]", " "])
def test_a_name_comes_back_from_its_setting(name):
    key, _, text = format_override("task.source", name).partition("=")
    assert (key, parse_typed(text, str | list[str] | None)) == ("task.source", name)


CARD = "title: t\nsource: s\nlicence: l\ntemplate: a {name}.\nlayout: folders\nfolder: mine\nimages: images\n"


def test_class_names_of_a_card_are_as_they_are_written(type_in, tmp_path):
    (tmp_path / "mine.yaml").write_text(CARD + "classes: [{yes: Yes}, {no: 1.0}, 010, 2020-01-01, null, 1e3]\n")
    code, text = type_in("data", "show", "mine.yaml", "--root", tmp_path)
    assert code == 0, text
    assert "classes 6: Yes, 1.0, 010, 2020-01-01, null, 1e3" in text


def test_an_unknown_field_of_a_cards_template_is_refused(type_in, tmp_path):
    (tmp_path / "mine.yaml").write_text(CARD.replace("a {name}", "a {name}, a {kind}") + "classes: [a, b]\n")
    code, text = type_in("data", "check", "mine.yaml")
    assert code == 2
    assert "mine.yaml: template: 'a {name}, a {kind}.': expected the placeholders {name}, got {kind}" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"digit zero": [', "expected JSON or YAML in 'd.json', got an error"),
        ("[1, 2]", "expected {class name: [texts]} in 'd.json', got a list"),
        ('{"zero": 5}', "expected a list of texts for 'zero' in 'd.json', got 5"),
        ('{"zero": [""]}', "expected a list of texts for 'zero' in 'd.json', got ['']"),
        ('{"zero": "a", "Zero": "b"}', "names that differ in case or underscores only"),
        ("\x00", "expected JSON or YAML in 'd.json', got an error"),
    ],
)
def test_broken_descriptions_are_one_line(type_in, tmp_path, content, expected):
    (tmp_path / "d.json").write_text(content)
    code, text = type_in(*ZERO_SHOT, "method.descriptions=d.json")
    assert code == 2
    assert f"method.descriptions: {expected}" in text.replace("each class once in 'd.json', got ", "").replace(
        "expected names", "names"
    )


def test_descriptions_in_the_home_folder(type_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "d.json").write_text(json.dumps({name: [f"the number {name}"] for name in names}))
    code, text = type_in(*ZERO_SHOT, "method.descriptions=~/d.json")
    assert code == 0, text
