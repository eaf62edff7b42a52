"""One parser for templates, and texts that know the places of their soft tokens."""

import pickle

import pytest

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.class_names import ClassName
from vlprompt.core.method import Method
from vlprompt.core.templates import PromptTemplate, TemplatedText, as_templated_text, escape_braces
from vlprompt.layers.class_texts import fill_class_texts


@pytest.mark.parametrize(
    ("template", "n", "text", "words"),
    [
        ("a photo of a {name}.", 0, "a photo of a red fox.", "a photo of a red fox."),
        ("{ctx} {name}.", 16, "{16} red fox.", " red fox."),
        ("a {ctx} {name} {ctx}", 5, "a {2} red fox {3}", "a red fox"),
        ("{{}} {{x}} {name}", 0, "{{}} {{x}} red fox", "{} {x} red fox"),
    ],
)
def test_class_texts(template, n, text, words):
    [filled] = fill_class_texts(template, ["red_fox"], n)
    assert (filled, filled.words) == (text, words)
    assert as_templated_text(str(filled)).pieces == filled.pieces
    assert pickle.loads(pickle.dumps(filled)).pieces == filled.pieces


def test_braces_in_class_names_are_words():
    name = "{4} dog} {{cat"
    [filled] = fill_class_texts("a {name}", [ClassName(name)])
    assert (filled, filled.words) == (escape_braces("a " + name), "a " + name)
    assert [piece.kind for piece in filled.pieces] == ["words"]
    tower = build_tiny_clip("cpu").text
    with pytest.raises(ValueError, match="expected places for 4 prompt tokens, got 0"):
        tower.tokenizer.tokenize(as_templated_text("{{4}} {0}"), 4)


@pytest.mark.parametrize("unknown", ["kind", "NAME", "", "oc.env:HOME", "name!r", "mask", "sep", "description"])
def test_unknown_placeholders_of_a_class_template_are_refused(unknown):
    with pytest.raises(ValueError) as error:
        fill_class_texts(f"a {{{unknown}}} {{ctx}} {{name}}", ["fox"], 4)
    assert f"expected the placeholders {{name}}, {{ctx}}, got {{{unknown}}}. Write one of those" in str(error.value)


def test_soft_tokens_that_no_method_brings_are_refused():
    with pytest.raises(ValueError, match=r"expected the placeholders \{name\}, got \{ctx\}"):
        fill_class_texts("a {ctx} {name}", ["fox"])


def test_unknown_placeholders_of_a_text_are_words():
    template = PromptTemplate.parse("{text}{sep}{mask} {name}")
    assert template.fields == ("text", "name")
    assert template.fill({"name": "cat"}) == "{{text}}{{sep}}{{mask}} cat"
    assert isinstance(template.fill({}), TemplatedText)


def test_a_backbone_may_be_stored_under_any_name():
    clip = build_tiny_clip("cpu")
    method = Method()
    assert method.backbone is None
    method.anything = clip.image
    assert method.backbone is clip.image
    method.backbone = clip
    assert method.backbone is clip
    assert clip.image.require_blocks() is None
