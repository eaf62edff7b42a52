"""The generated reference: definitions stand in their tables, pictures say what headers say, a gap is an error."""

import re
from pathlib import Path

import pytest
import torch
from docs.arguments import describe_arguments
from docs.docstrings import read_method_header, read_section
from docs.markdown_text import escape, table
from docs.paths import METHODS_FOLDER, ROOT
from docs.site_pictures import describe_sites, draw
from docs.site_trace import TowerTrace, find_tower_kind, trace_method
from docs.tables import api, backbones, command_line, datasets, heads, metrics, preprocessing, settings, tasks

import vlprompt
from docs import equations, evidence, measured, method_index, method_pages, repository_links, site_pages
from vlprompt import methods
from vlprompt.backbones.schemes import list_forms
from vlprompt.config.build import resolve_class
from vlprompt.config.sources import HEADS
from vlprompt.data.cards import list_cards, load_card
from vlprompt.data.images.preprocess_presets import list_presets
from vlprompt.engine.train_config import TrainConfig

METHODS = list(methods.find_classes())
ON_IMAGES = [name for name in METHODS if find_tower_kind(name) != "language model"]
ON_TEXTS = [name for name in METHODS if name not in ON_IMAGES]
ALL_BLOCKS = set(range(12))


def header_of(name):
    return read_method_header(METHODS_FOLDER / f"{name}.py")


# --- pictures ---

EXPECTED_SITES = {  # method -> {(tower, kind): layers}; what is not named is empty
    "coop": {("text", "tokens"): {0}},
    "cocoop": {("text", "tokens"): {0}},
    "tpt": {("text", "tokens"): {0}},
    "dapl": {("text", "tokens"): {0}},
    "maple": {("text", "tokens"): set(range(9)), ("image", "tokens"): set(range(9))},
    "ivlp": {("text", "tokens"): set(range(9)), ("image", "tokens"): set(range(9))},
    "vpt": {("image", "tokens"): ALL_BLOCKS},
    "l2p": {("image", "tokens"): {0}},
    "s_prompts": {("image", "tokens"): {0}},
    "dualprompt": {("image", "prefix"): set(range(5))},
    "coda_prompt": {("image", "prefix"): set(range(5))},
    "lora": {("image", "adapters"): ALL_BLOCKS},
    "clip_lora": {("image", "adapters"): ALL_BLOCKS, ("text", "adapters"): ALL_BLOCKS},
    "clip_svd": {("image", "adapters"): ALL_BLOCKS, ("text", "adapters"): ALL_BLOCKS},
    "mma": {("image", "adapters"): set(range(4, 12)), ("text", "adapters"): set(range(4, 12))},
    "two_stage": {("image", "adapters"): ALL_BLOCKS, ("text", "adapters"): ALL_BLOCKS},
    "ssf": {("image", "adapters"): {*ALL_BLOCKS, None}},
    "bitfit": {("image", "adapters"): {*ALL_BLOCKS, None}},
    "full": {("image", "trained_blocks"): ALL_BLOCKS},
    "partial": {("image", "trained_blocks"): {11}},
    "zero_shot": {},
    "taskres": {},
    "linear": {},
}
EXPECTED_KINDS = {
    "lora": ["q", "v"],
    "clip_lora": ["q", "k", "v"],
    "adapter": ["mlp"],
    "adaptformer": ["mlp+"],
    "convpass": ["attn", "mlp"],
    "mma": ["block"],
    "two_stage": ["norm1", "norm2"],
    "ssf": ["norm1", "q", "k", "v", "out", "norm2", "up", "down"],
}


@pytest.mark.parametrize("name", EXPECTED_SITES)
def test_the_trace_finds_where_a_method_enters(name):
    sites = {
        (tower.name, kind): set(getattr(tower, kind))
        for tower in trace_method(name).towers
        for kind in ("tokens", "prefix", "adapters", "trained_blocks")
        if getattr(tower, kind)
    }
    assert sites == EXPECTED_SITES[name]


@pytest.mark.parametrize("name", EXPECTED_KINDS)
def test_the_trace_finds_the_maps(name):
    assert {tuple(kinds) for layer, kinds in trace_method(name).towers[0].adapters.items() if layer is not None} == {
        tuple(EXPECTED_KINDS[name])
    }


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_picture_agrees_with_the_header(name):
    check_picture(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_TEXTS)
def test_a_picture_of_a_language_model_agrees_with_the_header(name):
    check_picture(name)


def check_picture(name):
    """What the line "Sites:" of a header claims is what the trace found, and what the picture shows."""
    trace, sites = trace_method(name), header_of(name).sites
    towers = [tower for tower in trace.towers if tower.is_changed]
    if sites.startswith("those of the wrapped method"):
        inner = trace_method(trace.settings["method"]["name"])
        assert [(t.name, t.tokens) for t in trace.towers if t.tokens] == [
            (t.name, t.tokens) for t in inner.towers if t.tokens
        ]
    elif sites.startswith("none"):
        assert not [tower for tower in towers if not tower.trained_blocks and not tower.prefix], sites
        assert bool([t for t in towers if t.trained_blocks]) == (name in ("full", "partial", "slca"))
    else:
        tower = towers[0]
        kinds = {"prefix": tower.prefix, "token": tower.tokens}
        claimed = next((kind for kind in kinds if kind in sites), "adapters")
        assert kinds.get(claimed, tower.adapters), (sites, tower)
        assert "another set per image" not in sites or tower.per_input or name == "s_prompts"
    svg = draw(trace, name)
    for tower in trace.towers:
        assert svg.count("trained copy") == len(tower.trained_blocks)
        for word, entry in (("tokens", tower.tokens), ("K, V", tower.prefix)):
            assert all(f">{length} {word}<" in svg for length in entry.values())
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert all(escape_html(line) in svg for line in describe_sites(trace))


def escape_html(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def test_other_settings_have_another_trace(monkeypatch):
    from docs import site_trace

    monkeypatch.setitem(site_trace.PICTURE_SETTINGS, "vpt", {"deep": False, "n_tokens": 3})
    trace = site_trace.trace_method.__wrapped__("vpt")
    assert trace.tower("image").tokens == {0: 3}


def test_what_is_trained_above_the_features_is_told_apart():
    inside, outside = trace_method("l2p").inside, trace_method("l2p").outside
    assert set(inside) == {"pool"}
    assert set(outside) == {"keys", "head.weight", "head.bias"}
    assert set(trace_method("clip_adapter").outside) == {"net.0.weight", "net.2.weight"}
    assert not trace_method("coop").outside


def test_a_tower_is_itself_again_after_a_trace():
    from docs.small_towers import build_small_clip

    image = build_small_clip().image
    trace_method("vpt")
    assert type(image).__module__.startswith("vlprompt.backbones")
    assert TowerTrace("image", 1).is_changed is False


# --- pages of methods ---


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_all_its_parts(name, monkeypatch):
    monkeypatch.setattr(method_pages, "_describe_picture", lambda *_: [f"Sites: {escape(header_of(name).sites)}", ""])
    page = method_pages.build_method_page(name)
    assert re.findall(r"^## (.*)$", page, re.M) == list(method_pages.SECTIONS)
    for section in re.split(r"^## .*$", page, flags=re.M)[1:]:
        assert len(section.split()) > 1, section
    header = header_of(name)
    for part in (*header.idea, header.sites, header.differs, header.expected):
        assert escape(part) in page
    for argument in describe_arguments(resolve_class("method", name)):
        assert argument.is_backbone or f"| `method.{argument.name}` |" in page
    for path in sorted((ROOT / "configs").rglob(f"{name}.yaml")):
        if path.parent.name not in ("preprocess", "reference"):
            assert f"[{path.relative_to(ROOT)}]" in page
    assert "{{" not in page


def test_every_method_has_an_equation():
    texts = equations.read_equations()
    assert set(texts) == set(METHODS)
    for equation in texts.values():
        assert equations.display_equation(equation["tex"]).count("<math") == 1
        assert equation["where"].split()
        assert "$" not in equations.explain_equation(equation["where"])


def test_defaults_and_types_are_those_of_the_constructor():
    rows = {one.name: one for one in describe_arguments(methods.VPT)}
    assert (rows["n_tokens"].type, rows["n_tokens"].default) == ("int", "10")
    assert (rows["token_dim"].type, rows["token_dim"].default) == ("int | null", "null")
    assert (rows["head"].type, rows["head"].default) == ("a head", "linear")
    assert rows["tower"].is_backbone
    choices = {one.name: one.type for one in describe_arguments(methods.DualPrompt)}
    assert choices["prompt_type"] == "prefix | tokens"
    assert choices["init_range"] == "tuple[float, float]"


def test_what_a_description_refers_to_is_filled_in():
    from vlprompt.tasks import BaseToNew

    shots = next(one for one in describe_arguments(BaseToNew) if one.name == "shots")
    assert shots.description == "images per class, None for all."


def test_golden_vectors_are_assigned_to_their_methods():
    vectors = evidence.find_golden_vectors()
    assert {vector.name for vector in vectors["dualprompt"]} >= {"codarepo-dualprompt-task1"}
    assert {name: len(vectors.get(name, [])) > 0 for name in ("coop", "cocoop", "zero_shot", "lora", "vpt")} == {
        "coop": True, "cocoop": True, "zero_shot": True, "lora": False, "vpt": True,
    }  # fmt: skip
    assert all(vector.commit for of_method in vectors.values() for vector in of_method)
    assert all((ROOT / file).is_file() for name in METHODS for file in evidence.find_tests(name))
    assert "tests/methods/test_twins.py" in evidence.find_tests("taskres")


def test_measured_rows_are_those_of_the_method(tmp_path):
    (tmp_path / "methods.md").write_text(
        "# Page\n\n## `A` table\n\n| method | base |\n| --- | ---: |\n| `coop` | 1 |\n| coop on glyph-vit | 2 |\n"
        "| `cocoop` | 3 |\n\n```\n| coop | none |\n|---|---|\n| coop | 4 |\n```\n"
    )
    (found,) = measured.find_measured("coop", tmp_path)
    assert found.rows == ("| `coop` | 1 |", "| coop on glyph-vit | 2 |")
    assert (found.page, found.heading) == ("results/methods.md", "`A` table")
    assert measured.anchor(found.heading) == "a-table"
    assert not measured.find_measured("maple", tmp_path)


def test_the_navigation_has_every_page_once():
    def walk(node):
        if isinstance(node, str):
            yield node
        for one in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from walk(one)

    pages = list(walk(site_pages.build_navigation()))
    expected = {"reference/index.md", "reference/methods/index.md", *method_pages.list_method_pages()}
    assert len(pages) == len(set(pages))
    assert set(pages) == expected | {f"reference/{name}.md" for name in site_pages.TABLES}
    assert sorted(name for names in method_index.list_groups().values() for name in names) == METHODS


# --- tables ---


def test_every_setting_of_training_is_in_the_table():
    page = settings.build()
    for field, default in ((name, getattr(TrainConfig(), name)) for name in TrainConfig.__dataclass_fields__):
        row = next(line for line in page.splitlines() if line.startswith(f"| `train.{field}` |"))
        assert default is None or str(default).lower() in row.lower() or isinstance(default, tuple)
    assert "At least 1." in next(line for line in page.splitlines() if "`train.batch_size`" in line)


def test_every_setting_of_tasks_and_every_variable_is_in_the_table():
    page = settings.build()
    for name in vlprompt.tasks.find_classes():
        for argument in describe_arguments(resolve_class("task", name)):
            assert f"| `task.{argument.name}` |" in page
    sources = [path.read_text("utf-8") for path in (ROOT / "vlprompt").rglob("*.py")]
    variables = {name for text in sources for name in re.findall(r"\"(VLPROMPT_[A-Z_]+)\"", text)}
    assert len(variables) > 3
    assert variables <= set(settings.ENVIRONMENT)
    assert all(f"`{name}`" in page for name in settings.ENVIRONMENT)


def test_every_command_and_option_is_in_the_page():
    page = command_line.build()
    commands = dict(command_line.iter_commands())
    assert {"vlprompt run", "vlprompt data prepare", "vlprompt export"} <= set(commands)
    for name, command in commands.items():
        section = page.split(f"\n## {name} {{", 1)[1].split("\n## ", 1)[0]
        options = [p for p in command.params if "--help" not in p.opts and not getattr(p, "hidden", False)]
        for option in options:
            assert all(f"`{one}`" in section for one in option.opts if one.startswith("-")), (name, option.opts)


def test_every_card_preset_head_task_and_backbone_has_its_place():
    page = datasets.build()
    for name in list_cards():
        card = load_card(name)
        section = page.split(f"### `{name}` {{", 1)[1].split("\n#", 1)[0]
        assert all(escape(text) in section for text in (card.title, card.source, card.licence)), name
    assert all(f"| `{name}` |" in preprocessing.build() for name in list_presets())
    assert all(f"## `{name}` {{" in heads.build() for name in HEADS)
    assert all(f"## `{name}` {{" in tasks.build() for name in vlprompt.tasks.find_classes())
    assert all(f"| `{form}` |" in backbones.build() for form in list_forms())
    assert all(f"::: {home}" in api.build() for home in api.list_public_names().values())


def test_every_number_of_a_result_has_a_definition():
    page, m = metrics.build(), vlprompt.metrics
    predicted, labels = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    keys = {*m.classification_scores(predicted, torch.eye(2)[predicted], labels, 2)}
    keys |= {*m.benchmark_metric("f1", predicted, labels), *m.benchmark_metric("matthews", predicted, labels)}
    one = {"accuracy": 50.0, "class_mean": 50.0, "calibration_error": 1.0}
    keys |= set(m.continual_summary([{"seen": one, "seen/0": one}], [1]))
    keys |= set(m.domain_summary({"target": one, "source": one, "zero_shot": one}))
    keys |= {"known", "unknown", "h_score"}  # of targets with unknown classes
    few = vlprompt.tasks.BaseToNew("digits")
    keys |= set(few.summary([{"base": one, "new": one, "joint": one}]))
    source = (ROOT / "vlprompt" / "engine" / "evaluate_text.py").read_text("utf-8")
    keys |= set(re.findall(r"metrics\[\"(\w+)\"\] =", source))
    runner = (ROOT / "vlprompt" / "experiments" / "runner.py").read_text("utf-8")
    keys |= set(re.findall(r"cost\[\"(\w+)\"\] =", runner)) | {"seconds", "trained_parameters"}
    assert len(keys) > 20
    assert not [key for key in keys if f"| `{key}` |" not in page]


# --- a gap is an error ---


class Undescribed:
    """A class.

    Args:
        first: is described.
    """

    def __init__(self, first: int = 1, second: int = 2):
        self.first, self.second = first, second


def test_a_setting_without_a_description_is_an_error():
    Undescribed.__module__ = "vlprompt.invented"
    with pytest.raises(ValueError, match="expected a description of the argument 'second'"):
        describe_arguments(Undescribed)


def test_an_option_without_help_is_an_error():
    from types import SimpleNamespace

    with pytest.raises(ValueError, match=r"--new: expected a help text"):
        command_line.describe_parameter(SimpleNamespace(help=None, opts=["--new"], secondary_opts=[]))


@pytest.mark.parametrize("part", ["Sites:", "Differs from", "Expected"])
def test_a_header_without_a_part_is_an_error(part, tmp_path):
    text = (METHODS_FOLDER / "coop.py").read_text("utf-8")
    (tmp_path / "coop.py").write_text(text.replace(part, "Something"))
    with pytest.raises(ValueError, match=f"expected a header with '{part}'"):
        read_method_header(tmp_path / "coop.py")


def test_a_public_name_without_a_group_is_an_error(monkeypatch):
    monkeypatch.setitem(vlprompt._HOMES, "Newcomer", "core.method")
    with pytest.raises(ValueError, match="Newcomer: expected the public names"):
        api.list_public_names()


def test_tex_that_cannot_be_shown_is_an_error():
    with pytest.raises(ValueError, match="expected TeX"):
        equations.to_mathml(r"\undefinedcommand{x}")


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        table(["a", "b"], [["one"]])


# --- text and links ---


def test_text_of_a_docstring_is_shown_as_it_is():
    assert escape("q (A * K)^T, a_b `x*y` <b> arXiv:2109.01134") == (
        r"q (A \* K)^T, a\_b `x*y` &lt;b> [arXiv:2109.01134](https://arxiv.org/abs/2109.01134)"
    )
    docstring = "Title.\n\nArgs:\n    a, b: two\n        lines.\n    c: one: more.\n\nReturns:\n    d: no."
    assert read_section(docstring) == {
        "a": "two lines.", "b": "two lines.", "c": "one: more.",
    }  # fmt: skip
    assert table(["a"], [["`x | y` | z"]])[2] == r"| `x | y` \| z |"


def test_links_out_of_the_docs_lead_to_files_of_the_site():
    text = (
        "![a](../../tools/results/demo-shots.png) [b](../../configs/groups.yaml#x) [c](runs.md) [d](../../no/such.py)\n"
        "```\n[e](../../configs/groups.yaml)\n```\n[f](https://arxiv.org)"
    )
    changed = repository_links.rewrite_links(text, "docs/guides", "guides/memory.md")
    assert changed == (
        "![a](../files/tools/results/demo-shots.png) [b](../files/configs/groups.yaml.html#x) [c](runs.md) "
        "[d](../../no/such.py)\n```\n[e](../../configs/groups.yaml)\n```\n[f](https://arxiv.org)"
    )
    assert repository_links.find_targets(text, "docs/guides") == ["tools/results/demo-shots.png", "configs/groups.yaml"]


def test_a_file_of_the_repository_is_a_page_of_its_own():
    page = repository_links.build_file_page("configs/groups.yaml")
    assert "<pre>" in page
    assert 'href="../../index.html"' in page
    card = repository_links.build_file_page("vlprompt/backbones/glyph.md")
    assert "<h1>" in card


def test_equations_of_a_page_become_mathml():
    page = equations.convert_blocks("before\n\n$$\nx^2\n$$\n\n```\n$$\ny\n$$\n```\n")
    assert page.count("<math") == 1
    assert "```\n$$\ny\n$$\n```" in page


# --- the whole site ---

EXTERNAL = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+")


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        text = page.read_text("utf-8")
        assert not EXTERNAL.findall(text), page
    for styles in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"url\([\"']?https?:|@import", styles.read_text("utf-8")), styles
    assert not missing_links(tmp_path / "site", pages)


def missing_links(site, pages):
    """Links inside of the site to files that it lacks."""
    missing = []
    for page in pages:
        for link in re.findall(r"(?:href|src)=[\"']?([^\s\"'>#?]+)", page.read_text("utf-8")):
            if "://" not in link and not link.startswith(("mailto:", "data:", "/", "javascript:")):
                target = Path(page.parent, link).resolve()
                if not (target.is_file() or (target / "index.html").is_file()):
                    missing.append((str(page.relative_to(site)), link))
    return missing
