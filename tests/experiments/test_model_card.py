"""Model cards: made from the result, valid for the hub, with a command that makes the same run again."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from forks import give
from PIL import Image

import vlprompt
from vlprompt.experiments.learned.model_files import read_model_config
from vlprompt.experiments.learned.publish import _update_card
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.experiments.model_cards.citations import read_citation
from vlprompt.experiments.model_cards.run_command import build_run_command
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.methods import find_classes
from vlprompt.runtime.paths import find_configs_folder

SETTINGS = ["digits", "--shots", "2", "--backbone", "glyph/random", "train.epochs=2", "method.n_ctx=3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of three seeds of one configuration, and two runs beside them that are another."""
    root = tmp_path_factory.mktemp("runs")
    assert give("run", "coop", *SETTINGS, "--seed", "1,2,3", "--out", "runs", cwd=root)[0] == 0
    assert (
        give("run", "coop", *SETTINGS, "method.class_specific=true", "--seed", "4", "--out", "runs", cwd=root)[0] == 0
    )
    return root / "runs"


@pytest.fixture
def run(runs):
    return next(runs.glob("coop-digits-2shot-seed2-*"))


def read_card(run, folder, **options):
    vlprompt.save_prompt(read_learned_state(run), folder, **options)
    return (folder / "README.md").read_text()


@pytest.mark.slow
def test_the_hub_can_read_the_card(run, tmp_path):
    from huggingface_hub import ModelCard

    text = read_card(run, tmp_path / "mine", license="cc-by-4.0")
    data = ModelCard.load(tmp_path / "mine" / "README.md").data
    summary = read_summary(run)
    assert (data.library_name, data.license, data.pipeline_tag) == ("vlprompt", "cc-by-4.0", "image-classification")
    assert {"vlprompt", "coop", "few_shot"} <= set(data.tags)
    assert data.model_name == "mine"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == summary
    assert data.metrics == list(summary)
    assert data.eval_results[0].dataset_split == "test"
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "vlprompt"


def read_summary(run):
    from vlprompt.results.run_folder import RunFolder

    return RunFolder(run).read_result().summary


def test_the_card_says_what_is_known(run, runs, tmp_path):
    text = read_card(run, tmp_path / "mine")
    values = [read_summary(other)["accuracy"] for other in sorted(runs.iterdir()) if "-seed4-" not in other.name]
    mean = sum(values) / 3
    std = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
    own = read_summary(run)["accuracy"]
    assert f"| accuracy | {own:.2f} | {mean:.2f}±{std:.2f} |" in text
    assert "mean±std of 3 seeds" in text
    assert "Seeds 1, 2, 3; the standard deviation is divided by n." in text
    for line in (
        "paper: Learning to Prompt for Vision-Language Models",
        "arXiv: [2109.01134](https://arxiv.org/abs/2109.01134)",
        "spec: `glyph/random`",
        f"key: `{read_learned_state(run).backbone_key}`",
        "shots: 2",
        "selection: last epoch",
        "train: 20 items, content hash `",
        "test: 896 items, content hash `",
        "the data digits: CC BY 4.0; the images come with scikit-learn",
        "the backbone: see that of `glyph/random`",
        "this prompt: none was named by the one who saved it",
        "inputs of no class: every input is answered with one of the classes",
        "10: `zero`, `one`, `two`",
    ):
        assert line in text, line
    assert "license:" not in text
    assert "other seeds" not in text


def test_one_run_alone_has_no_spread(runs, tmp_path):
    text = read_card(next(runs.glob("*-seed4-*")), tmp_path / "mine")
    assert "One run: the spread over seeds is not known." in text
    assert "other seeds: how much the numbers vary is not known" in text
    assert "±" not in text


def test_the_command_of_the_card_is_that_of_the_run(run, runs, tmp_path, type_in):
    text = read_card(run, tmp_path / "mine")
    [command] = re.findall(r"^vlprompt run .*$", text, re.MULTILINE)
    options = "--task few_shot --backbone glyph/random --shots 2 --seed 2"
    assert command == f"vlprompt run coop digits {options} method.n_ctx=3 train.epochs=2"
    before = sorted(runs.rglob("*"))
    code, printed = type_in(*shlex.split(command)[1:], "--out", runs)
    assert code == 0, printed
    assert sorted(runs.rglob("*")) == before  # the run is there, finished


def test_the_code_of_the_card_works(run, tmp_path, monkeypatch, capsys):
    text = read_card(run, tmp_path / "mine")
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (9, 9, 9)).save("image.png")
    exec(code, {})
    name, probability = capsys.readouterr().out.split()
    assert name in read_learned_state(run).names
    assert 0 < float(probability) <= 1


def list_recipes():
    root = find_configs_folder()
    pairs = {(path.relative_to(root).parts[0], path.stem) for path in root.rglob("*.yaml")}
    return sorted(
        (task, method) for task, method in pairs if method in find_classes() and task not in ("reference", "preprocess")
    )


@pytest.mark.parametrize(("task", "method"), list_recipes())
def test_every_recipe_is_written_as_a_command(task, method, monkeypatch):
    """Parsed again by the command line, it is the same configuration, with settings that are no defaults too."""
    from vlprompt.cli import run as run_command
    from vlprompt.cli.app import main

    overrides = ["train.lr=0.5", "train.betas=[0.8, 0.9]", "train.augmentations=3"]
    overrides += ["method.teacher.backbone=glyph/random"] if method == "promptkd" else []
    overrides += {"transfer": ['task.targets=["digits"]']}.get(task, [])
    data = {"vtab": "digits", "domain": None}.get(task, "./my images/it's")
    options = {"dataset": data, "task": task, "overrides": overrides}
    pair = {"source": "glyphs", "target": "digits"} if task == "domain" else {}
    [config] = resolve_sweep([method], [None if task in ("vtab", "text") else 4], [3], **options, **pair)
    words = shlex.split(build_run_command(config.to_dict()))[1:]
    seen = []
    monkeypatch.setattr(run_command, "run_and_show", lambda configs, *_: seen.extend(configs))
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    assert [one.hash for one in seen] == [config.hash]


@pytest.mark.parametrize("method", find_classes())
def test_every_method_has_a_citation(method):
    citation = read_citation(method)
    assert citation.name
    assert citation.idea.endswith(".")
    assert citation.title or citation.arxiv or method in ("full", "mlp")
    assert "\n" not in citation.title


def test_huggingface_hubs_own_mixin_reads_the_folder(run, tmp_path):
    from huggingface_hub import ModelHubMixin

    class Prompt(ModelHubMixin):
        def __init__(self, prompt=None):
            self.prompt = prompt

        @classmethod
        def _from_pretrained(cls, *, model_id, **_):
            return cls(vlprompt.load_prompt(model_id))

    read_card(run, tmp_path / "mine")
    model = Prompt.from_pretrained(tmp_path / "mine")
    assert model.prompt.names == read_learned_state(run).names
    assert Path(tmp_path / "mine" / "model.safetensors").is_file()


def test_a_prompt_without_a_result_says_so(run, tmp_path):
    from dataclasses import replace

    state = replace(read_learned_state(run), source=str(tmp_path / "nowhere"))
    text = read_card_of(state, tmp_path / "mine")
    assert "No result is known: the prompt was saved without one." in text
    assert "model-index" not in text


def read_card_of(state, folder):
    vlprompt.save_prompt(state, folder)
    return (folder / "README.md").read_text()


def test_many_classes_are_counted_and_broken_names_stay_in_their_place(run, tmp_path):
    from dataclasses import replace

    state = read_learned_state(run)
    names = [[f"class `{i}`\n# x", str(i), None, []] for i in range(60)]
    text = read_card_of(replace(state, metadata={**state.metadata, "lessons": [names]}), tmp_path / "mine")
    assert "60: `class '0' # x`, " in text
    assert "`class '49' # x` ... and 10 more." in text
    assert "\n# x" not in text


@pytest.mark.slow
def test_a_card_that_is_no_card_is_one_sentence(run, tmp_path):
    read_card(run, tmp_path / "mine", license="mit")
    for content, told in (
        (b"---\nlicense: !!python/object/apply:os.system ['touch x']\n---\n", "expected YAML between the lines ---"),
        (b"---\n" + b"[" * 5000 + b"\n---\n", "expected YAML between the lines ---, got maximum recursion depth"),
        (b"\xff", "expected UTF-8, got an invalid start byte. Convert it to UTF-8."),
        (b"---\nlicense: [mit]\n---\n", "--license: expected an identifier as the hub has them"),
    ):
        (tmp_path / "mine" / "README.md").write_bytes(content)
        config = read_model_config(tmp_path / "mine" / "config.json", "mine")
        with pytest.raises(ValueError, match=re.escape(told)):
            _update_card(tmp_path / "mine", config, "me/mine", None)
        assert read_learned_state(tmp_path / "mine").names  # the card is no reason not to answer
