"""The equations of the methods: one entry for each, MathML without leftovers, and settings that exist."""

import inspect
import re
import typing
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from vlprompt import methods

PATH = Path(__file__).parents[2] / "docs" / "reference" / "equations.yaml"
EQUATIONS: dict[str, dict[str, str]] = yaml.safe_load(PATH.read_text("utf-8"))
CLASSES = methods.find_classes()
SETTING = re.compile(r"`method\.(\w+)(?:=([^`]*))?`")
INLINE_TEX = re.compile(r"\$([^$]*)\$")


def render(tex: str, display: str) -> ElementTree.Element:
    converter = pytest.importorskip("latex2mathml.converter")
    return ElementTree.fromstring(converter.convert(tex, display=display))


def find_leftovers(math: ElementTree.Element) -> list[str]:
    """Return what no browser renders: commands that stayed TeX, empty operators, and line breaks outside a table."""
    leftovers = []
    for element in math.iter():
        kind, text = element.tag.rpartition("}")[2], element.text or ""
        if "\\" in text or "&" in text:
            leftovers.append(text)
        if kind in ("mi", "mo", "mn", "mtext") and not text:
            leftovers.append(f"an empty {kind}")
        if element.get("linebreak"):
            leftovers.append("a line break")
        if "mathspace" in element.get("width", ""):  # a named space, which MathML Core dropped
            leftovers.append(element.get("width", ""))
    return leftovers


def test_every_public_method_has_an_entry_and_no_other_name_has_one():
    assert list(EQUATIONS) == sorted(CLASSES)


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_entry_has_equations_and_the_meaning_of_their_symbols(name):
    entry = EQUATIONS[name]
    assert entry.keys() == {"tex", "where"}
    assert 1 <= len(entry["tex"].split(r" \\")) <= 4
    assert entry["where"].endswith(".")
    assert not any(entry["where"].count(mark) % 2 for mark in "$`")


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equations_and_the_symbols_render_without_leftovers(name):
    entry = EQUATIONS[name]
    assert not find_leftovers(render(entry["tex"], "block"))
    for tex in INLINE_TEX.findall(entry["where"]):
        assert tex.strip() == tex != "", f"Markdown reads no inline TeX in ${tex}$"
        assert not find_leftovers(render(tex, "inline"))


@pytest.mark.parametrize(
    "tex",
    [r"\nosuchcommand x", r"a \\ b", r"\begin{gathered} a \\ b \end{gathered}", r"\operatorname*{arg\,min}", r"\!"],
)
def test_what_browsers_do_not_render_is_found(tex):
    assert find_leftovers(render(tex, "block"))


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_settings_that_an_entry_names_are_arguments_of_the_method(name):
    method = getattr(methods, CLASSES[name])
    arguments, hints = inspect.signature(method).parameters, typing.get_type_hints(method.__init__)
    where = EQUATIONS[name]["where"]
    assert where.count("method.") == len(SETTING.findall(where)), "a setting stands between backticks"
    for setting, value in SETTING.findall(where):
        assert setting in arguments
        if choices := typing.get_args(hints[setting]) if value else ():
            assert value in choices or (value == "null" and type(None) in choices)
