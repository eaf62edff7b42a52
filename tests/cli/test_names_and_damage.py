"""Names are shown as they are, a run counts once, and a damaged run folder is named and never ends a command."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import vlprompt.cli
from vlprompt.cli.app import main

ODD = "a [i] b[/i] :cat: $x$ [red]"
RUN = ["run", "nearest_mean", "--shots", "1", "--backbone", "pixels"]


def write_images(root):
    for number, name in enumerate((f"one {ODD[2:5]}", "[bold]two")):
        folder = root / ODD / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (200 * number, 40 * i, 0)).save(folder / f"{i}.png")
    return root / ODD


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of runs with two seeds of one configuration on images with odd names."""
    root = tmp_path_factory.mktemp("odd")
    images = write_images(root)
    with pytest.raises(SystemExit) as left:
        main([*RUN[:2], str(images), *RUN[2:], "--seed", "1,2", "-o", str(root / "r[x]")])
    assert left.value.code == 0
    return root


@pytest.fixture
def runs(finished, tmp_path):
    """A copy of that folder, as r[x] in the working folder."""
    shutil.copytree(finished / "r[x]", tmp_path / "r[x]")
    return tmp_path / "r[x]"


def folder_of(runs, seed=1):
    [folder] = runs.glob(f"*-seed{seed}-*")
    return folder


def read_row(type_in, tmp_path, runs):
    code, text = type_in("table", runs, "--json", "t.json")
    assert code == 0, text
    [row] = json.loads((tmp_path / "t.json").read_text())
    return row, text


def test_names_are_shown_as_they_are(type_in, finished, tmp_path):
    words = [*RUN[:2], finished / ODD, *RUN[2:]]
    code, text = type_in(*words, "-o", "s[/x]")
    assert code == 0, text
    assert "1 run under s[/x]/" in text
    code, text = type_in("table", "s[/x]", "--markdown", "t[/m].md")
    assert code == 0, text
    assert f"few_shot on {finished / ODD}" in text
    assert "wrote t[/m].md" in text
    code, text = type_in("plot", "s[/x]", "--figure", "p[/p].png")
    assert (code, text) == (0, "wrote p[/p].png")
    [run] = (tmp_path / "s[/x]").iterdir()
    image = finished / ODD / "[bold]two" / "0.png"
    code, text = type_in("predict", run, image, "--figure", "f[/f].png")
    assert code == 0, text
    assert f"{image}: [bold]two" in text
    assert "wrote f[/f].png" in text
    assert "wrote g[/g].png" in type_in("eval", run, "--figure", "g[/g].png")[1]
    assert "one [i], [bold]two" in type_in("data", "show", finished / ODD)[1].replace(
        "[bold]two, one [i]", "one [i], [bold]two"
    )


def test_a_class_with_brackets_and_too_few_images_is_one_line(type_in, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "d.csv").write_text("path,class\nx.png,[/b]\nx.png,c\n")
    code, text = type_in(*RUN[:2], "d.csv", *RUN[2:])
    assert code == 2
    assert "[/b]" in text


def test_every_console_of_the_command_line_is_made_in_one_place():
    for path in Path(vlprompt.cli.__file__).parent.rglob("*.py"):
        if path.name != "console.py":
            assert not re.search(r"\bConsole\(", path.read_text("utf-8")), path
        assert not re.search(r"\[/\]|\[(bold|dim|red|yellow)\b", path.read_text("utf-8")), path


def test_a_seed_that_is_named_twice_counts_once(type_in, finished, tmp_path):
    code, text = type_in(*RUN[:2], finished / ODD, *RUN[2:], "--seed", "1,1", "-o", "twice")
    assert code == 0, text
    assert "1 of 2 runs were named twice; each is made and counted once" in text
    assert "±" not in text.replace("mean±standard", "")
    assert read_row(type_in, tmp_path, "twice")[0]["n"] == 1


def test_a_copied_run_counts_once(type_in, runs, tmp_path):
    shutil.copytree(folder_of(runs), runs / "copy")
    row, text = read_row(type_in, tmp_path, "r[x]")
    assert row["n"] == 2
    copies = sorted([f"r[x]/{folder_of(runs).name}", "r[x]/copy"])
    assert f"counted once: {copies[1]} is the same run as {copies[0]}" in text
    assert "counted once" in type_in("plot", "r[x]")[1]


def test_a_run_on_other_inputs_counts_and_is_told(type_in, runs, tmp_path):
    shutil.copytree(folder_of(runs), runs / "other")
    inputs = json.loads((runs / "other" / "inputs.json").read_text())
    (runs / "other" / "inputs.json").write_text(json.dumps(inputs | {"backbone": "another"}))
    code, text = type_in("table", "r[x]", "--json", "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())
    assert (code, [row["n"] for row in rows]) == (0, [2, 1])  # no row has a seed twice
    assert "on other data" in rows[1]["variant"]
    assert "both counted: r[x]/other has the configuration and seed of" in text


def edit(**changes):
    return lambda content: json.dumps({**content, **changes})


DAMAGES = {
    "cut": lambda content: json.dumps(content)[:100],
    "empty": lambda content: "",
    "a list": lambda content: "[1, 2]",
    "foreign": lambda content: '{"loss": 0.1}',
    "deep": lambda content: "[" * 100_000,
    "no summary": lambda content: json.dumps({k: v for k, v in content.items() if k != "summary"}),
    "a text for a number": lambda content: edit(summary={"accuracy": "99"})(content),
    "not a number": lambda content: edit(summary={"accuracy": float("nan")})(content),
    "no seed": lambda content: edit(config={k: v for k, v in content["config"].items() if k != "seed"})(content),
    "no cost": lambda content: edit(cost={})(content),
    "another configuration": lambda content: edit(config=content["config"] | {"seed": 7})(content),
    "no metric": lambda content: edit(summary={})(content),
    "a method without a name": lambda content: edit(config=content["config"] | {"method": {}})(content),
    "domain": lambda content: edit(config=content["config"] | {"task": {"name": "domain"}})(content),
    "contents": lambda content: edit(protocol={"contents": [1]})(content),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_result_is_named_and_the_others_are_shown(type_in, runs, tmp_path, kind):
    path = folder_of(runs) / "result.json"
    path.write_text(DAMAGES[kind](json.loads(path.read_text())))
    row, text = read_row(type_in, tmp_path, "r[x]")
    assert row["n"] == 1
    assert f"left out: 'r[x]/{path.parent.name}" in text
    assert "give the command of the run again" in text


@pytest.mark.parametrize("name", ["answers.safetensors", "prompt.safetensors"])
def test_files_that_the_run_did_not_write_are_refused(type_in, runs, finished, tmp_path, name):
    second = folder_of(runs, 2)
    content = (second / name).read_bytes()
    (second / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a whole file with another number
    refusal = f"{name}': expected the file that the run wrote, got another."
    if name == "answers.safetensors":  # of which reports draw
        row, text = read_row(type_in, tmp_path, "r[x]")
        assert row["n"] == 1
    else:
        text = type_in("eval", second, finished / ODD)[1]
    assert refusal in " ".join(text.split())
    words = [*RUN[:2], finished / ODD, *RUN[2:], "--seed", "1,2", "-o", "r[x]"]
    code, text = type_in(*words)
    assert code == 0
    assert refusal in " ".join(text.split())  # why it runs again
    assert (second / name).read_bytes() == content


def test_bytes_that_are_no_text_are_named(type_in, runs, tmp_path):
    (folder_of(runs) / "result.json").write_bytes(b"\xff\xfe\x00")
    (folder_of(runs, 2) / "config.yaml").write_bytes(b"\xff: [")
    code, text = type_in("table", "r[x]")
    assert code == 2  # none can be shown
    assert text.count("left out: ") == 2
    assert "config.yaml': expected the configuration of a run, got a broken file" in text


def test_a_broken_configuration_of_an_unfinished_run_is_one_line(type_in, finished, tmp_path):
    words = [*RUN[:2], finished / ODD, *RUN[2:], "-o", "out"]
    assert type_in(*words)[0] == 0
    [run] = (tmp_path / "out").iterdir()
    (run / "result.json").unlink()
    (run / "config.yaml").write_text("a: [")
    code, text = type_in(*words)
    assert code == 2
    assert f"Remove the folder 'out/{run.name}', or name another." in text
    shutil.rmtree(run)
    assert type_in(*words)[0] == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "no result"])
def test_a_run_whose_state_is_broken_runs_again(type_in, finished, tmp_path, damage):
    words = [*RUN[:2], finished / ODD, *RUN[2:], "-o", "out"]
    assert type_in(*words)[0] == 0
    [run] = (tmp_path / "out").iterdir()
    state, image = run / "prompt.safetensors", finished / ODD / "[bold]two" / "0.png"
    content, result = state.read_bytes(), json.loads((run / "result.json").read_text())
    if damage == "gone":
        state.unlink()
    elif damage == "cut":
        state.write_bytes(content[:-7])
    else:
        (run / "result.json").write_text("{")
    if damage != "no result":
        code, text = type_in("predict", run, image)
        assert code == 2
        assert "prompt.safetensors': expected" in text
        assert "the run again, which makes it anew" in text
    code, text = type_in(*words)
    assert code == 0, text
    assert "runs again, as a file is damaged: " in text
    assert state.read_bytes() == content
    assert json.loads((run / "result.json").read_text())["scores"] == result["scores"]
    assert type_in("predict", run, image)[0] == 0
    assert "runs again" not in type_in(*words)[1]


def test_predict_names_the_runs_of_a_folder(type_in, runs, tmp_path):
    for command in ("predict", "eval"):
        code, text = type_in(command, tmp_path, *["x.png"][: command == "predict"])
        assert code == 2
        assert (
            f"run: expected the folder of one run, got '{tmp_path}', which holds 2. Name one: {folder_of(runs)}, "
            in text
        )
    (tmp_path / "empty").mkdir()
    assert "got 'empty', which holds none" in type_in("predict", "empty", "x.png")[1]


def test_paths_in_the_home_folder(type_in, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "s.yaml").write_text("seed: 3\n")
    code, text = type_in(*RUN[:2], finished / ODD, *RUN[2:], "--out=~/runs", "--config=~/s.yaml")
    assert code == 0, text
    [run] = (tmp_path / "home" / "runs").iterdir()
    assert "-seed3-" in run.name
    assert type_in("table", "~/runs")[0] == 0
    assert type_in("predict", f"~/runs/{run.name}", finished / ODD / "[bold]two" / "0.png")[0] == 0
    assert not (tmp_path / "~").exists()


def test_a_result_without_its_configuration_is_named(type_in, runs):
    (folder_of(runs, 2) / "config.yaml").unlink()
    code, text = type_in("table", runs)
    assert code == 0
    assert f"left out: '{Path(runs.name) / folder_of(runs, 2).name}" in text or "left out:" in text
    assert "config.yaml'" in text


@pytest.mark.parametrize("setting", ["backbone.x=null", "backbone={name}", "backbone=2", "preprocess=7"])
def test_settings_that_are_no_text_are_refused(type_in, finished, setting):
    code, text = type_in(*RUN[:2], finished / ODD, "--shots", "1", setting)
    assert code == 2
    assert "expected" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("place", ["../out", "/tmp/out", "~/out"])
def test_a_card_names_no_place_outside_of_the_data(type_in, tmp_path, place):
    lines = ["title: T", "source: S", "licence: L", "classes: [a, b]", "layout: folders", "images: ."]
    lines += ["template: a {name}", "sizes: {train: 1, test: 1}", f"folder: {place}"]
    (tmp_path / "card.yaml").write_text("\n".join(lines))
    code, text = type_in("data", "show", "card.yaml")
    assert code == 2
    assert f"folder: expected a path inside the folder of the data, got '{place}'" in text


@pytest.mark.parametrize("setting", ["method.logit_scale=.inf", "train.lr=.nan"])
def test_settings_are_finite(type_in, setting):
    code, text = type_in("run", "tip_adapter", "digits", "--shots", "1", setting)
    assert code == 2
    assert f"{setting.partition('=')[0]}: expected a finite number" in text
