"""Class descriptions in the ways of CuPL, DCLIP and WaffleCLIP, against numbers that the authors' own code computed."""

import json
from dataclasses import replace

import pytest
import torch
from shared import golden, golden_cases, relative

from vlprompt import methods as m
from vlprompt.core.class_names import ClassName
from vlprompt.core.templates import PromptTemplate
from vlprompt.layers.class_descriptions import DESCRIPTOR_TEMPLATE, read_descriptions, write_clause
from vlprompt.layers.class_texts import encode_class_texts
from vlprompt.layers.heads import TextHead

CASES = golden_cases("descriptions")
NAMES = ("dog", "big_cat", "plane")
TEXTS = {"dog": ["wings", "a tail"], "big cat": ["used as a pet"], "plane": ["can fly", "wings", "an engine"]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"template": DESCRIPTOR_TEMPLATE, "descriptions": TEXTS}))
    return str(path)


def answer(clip, features, names, *arguments):
    """Cosines of image features (B, E) and classes, in the pooling of a ZeroShot with these arguments."""
    method = m.ZeroShot(replace(clip, image=lambda inputs: features), *arguments)
    with torch.no_grad():
        return (method(None, method.precompute(names)).logits - clip.bias) / clip.scale


@pytest.mark.parametrize("case", CASES)
def test_the_authors_scores(authors_clip, case, tmp_path):
    told, arrays = golden(case)
    names, features = tuple(told["classnames"]), arrays["features"]
    parsed = PromptTemplate.parse(DESCRIPTOR_TEMPLATE)
    for name in names:
        fields = [{"name": name.replace("_", " "), "descriptor": write_clause(d)} for d in told["descriptions"][name]]
        assert [parsed.fill(one) for one in fields] == told["sentences"][name]
    path, template = tmp_path / "d.json", tmp_path / "t.json"
    path.write_text(json.dumps(told["sentences"]))
    by_name = {n: [t.replace("{}", n) for t in told["cupl_templates"]] for n in names}  # underscores as they stand
    template.write_text(json.dumps(by_name))
    clip, unit = authors_clip, authors_clip.unit
    with torch.no_grad():
        flat = unit(clip.text([text for texts in told["sentences"].values() for text in texts])[0])
        cupl = encode_class_texts(clip, names, str(path), normalize=True)
        both = encode_class_texts(clip, names, [str(template), str(path)], normalize=True)
    errors = {
        "text features": relative(flat, arrays["text_features"]),
        "merged": relative(unit(cupl), arrays["merged"]),
        "cupl": relative(unit(cupl), arrays["cupl"]),
        "cupl and templates": relative(unit(both), arrays["cupl_and_templates"]),
    }
    for pooling in ("mean", "max", "merged"):
        errors[pooling] = relative(answer(clip, features, names, None, str(path), pooling), arrays[f"scores_{pooling}"])
    errors["scores_cupl"] = relative(answer(clip, features, names, str(path)), arrays["scores_cupl"])
    assert max(errors.values()) < 1e-4, errors


def test_the_template_of_a_file_writes_the_sentences(file, tmp_path):
    dog = ["A photo of a dog, which has wings.", "A photo of a dog, which is a tail."]
    assert read_descriptions(file, NAMES)[0] == dog
    assert read_descriptions(file, NAMES, "{name}: {description}")[2] == [
        "plane: can fly",
        "plane: wings",
        "plane: an engine",
    ]
    assert read_descriptions(file, NAMES, "a {name}") == read_descriptions(file, NAMES)
    assert read_descriptions(file, (ClassName("car", "DOG"),)) == [[text.replace("dog", "car") for text in dog]]


def test_a_file_is_a_template_of_every_method(golden_clip, file):
    names, unit = NAMES, golden_clip.unit
    with torch.no_grad():
        features = [unit(golden_clip.text(texts)[0]) for texts in read_descriptions(file, names)]
        own = unit(golden_clip.text([f"a {name.replace('_', ' ')}" for name in names])[0])
        merged = torch.stack([of_class.mean(0) for of_class in features])
        joined = torch.stack([torch.cat([own[i : i + 1], f]).mean(0) for i, f in enumerate(features)])
        for method in (m.ZeroShot(golden_clip, file), m.MTA(golden_clip, template=file), TextHead(golden_clip, file)):
            assert relative(method.precompute(names), merged) < 1e-5
        assert relative(m.ZeroShot(golden_clip, ["a {name}", file]).precompute(names), joined) < 1e-5
        assert relative(m.TPS(golden_clip, template=file).precompute(names), unit(merged)) < 1e-5
    assert relative(merged, joined) > 0.01


@pytest.mark.parametrize("name", ["CLIPLoRA", "MMA", "CLIPSVD", "TwoStage"])
def test_a_method_that_encodes_its_texts_at_each_step_refuses_a_file(golden_clip, file, name):
    method = getattr(m, name)(golden_clip, template=file)
    with pytest.raises(ValueError, match=r"^template: expected templates with \{name\}, got the file of descriptions"):
        method.precompute(NAMES)


def test_pooling_of_templates(golden_clip):
    features = torch.randn(4, golden_clip.feature_dim, generator=torch.Generator().manual_seed(0))
    templates = ["a {name}", "a photo of a {name}.", "{name}!"]
    each = torch.stack([answer(golden_clip, features, NAMES, t) for t in templates])
    assert relative(answer(golden_clip, features, NAMES, templates, None, "mean"), each.mean(0)) < 1e-5
    assert relative(answer(golden_clip, features, NAMES, templates, None, "max"), each.amax(0)) < 1e-5
    assert relative(answer(golden_clip, features, NAMES, templates), each.mean(0)) > 1e-4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"descriptions": {}, "texts": {}}, "expected the keys template, descriptions, generator in .* got 'texts'"),
        ({"descriptions": TEXTS, "template": ["a"]}, "expected a text as template and a mapping as generator"),
        ({"descriptions": TEXTS, "template": "{nmae}"}, r"d.json': template '\{nmae\}': expected the placeholders"),
        ({"descriptions": {"dog": ["a"]}}, "expected a description of 'big_cat', got none. Add one"),
        ({"descriptions": {"wolf": ["a"]}}, "of 'dog', got none, nor of any other class here: it has 'wolf' and the"),
        ({"descriptions": {"dog": [" "]}}, r"expected a list of texts for 'dog' in .* got \[' '\]"),
    ],
)
def test_a_file_that_can_not_be_used_is_one_error(tmp_path, content, expected):
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=expected):
        read_descriptions(tmp_path / "d.json", NAMES)


def test_two_files_of_descriptions_are_one_too_many(golden_clip, file):
    with pytest.raises(ValueError, match=r"^method.template: expected a template beside method.descriptions, got the"):
        m.ZeroShot(golden_clip, file, file).precompute(NAMES)
