"""`--track`: every store is read back by its own reader, and a run that was killed is in it once."""

import io
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import give
from kills import COMMAND, killed_when
from PIL import Image

from vlprompt.cli.app import main
from vlprompt.experiments.trackers.run_files import FILES, list_run_files
from vlprompt.results.run_folder import Result, RunFolder, find_run_folders

SETTINGS = ["--shots", "2", "task.augment=none", "train.epochs=4", "train.model_selection=val"]
N_STEPS = 4
PICTURES = ["confusion/test", "learning"]
STORE_VARIABLES = (
    "WANDB_DIR",
    "WANDB_SERVICE",
    "WANDB_BASE_URL",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_URI",
    "TRACKIO_DIR",
)


def call(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return exit_.value.code


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Stores stay below the folder of the runs, whatever the machine has set, and no process shares one of wandb's."""
    for name in STORE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def words(pictures):
    return ["run", "coop", str(pictures), *SETTINGS]


def only_run(out):
    [path] = find_run_folders(out)
    return path


def read_steps(run):
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def read_losses(run):
    return list(enumerate((step["ce"] for step in read_steps(run)), 1))


def read_jsonl(run):
    return [json.loads(line) for line in (run / "tracked.jsonl").read_text().splitlines()]


def read_tracked_losses(run):
    return [(line["step"], line["train/loss"]) for line in read_jsonl(run) if line["kind"] == "step"]


def open_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def read_tensorboard(run):
    events = open_tensorboard(run)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_wandb(path):
    """Records of an offline file: LevelDB's log format, with a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, place, parts, records = path.read_bytes(), 7, [], []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if not kind:
            break
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def read_items(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_wandb_rows(records):
    return [read_items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]


def read_trackio_rows(path):
    with sqlite3.connect(path) as store:
        return [(step, json.loads(values)) for step, values in store.execute("select step, metrics from metrics")]


def require_picture(data):
    """A picture is small, and no empty one."""
    assert len(data) < 2**20
    assert len(Image.open(io.BytesIO(data)).convert("L").getcolors(256)) > 10


@dataclass
class Tracked:
    """A run that was tracked, and its twin without a tracker."""

    run: Path
    plain: Path
    result: Result

    @property
    def losses(self):
        return read_losses(self.run)

    def require_scores(self, scores):
        """What a store has at the end is the result: summary, tests, cost."""
        assert scores["accuracy"] == pytest.approx(self.result.summary["accuracy"])
        assert scores["test/test/macro_f1"] == pytest.approx(self.result.scores[-1]["test"]["macro_f1"])
        for name in ("seconds", "trained_parameters", "peak_memory_mb"):
            assert scores[f"cost/{name}"] == pytest.approx(self.result.cost[name]), name

    def require_config(self, config):
        """Settings are parameters by the names that the command takes."""
        assert float(config["train.lr"]) == self.result.config["train"]["lr"]
        assert config["method.name"] == "coop"
        assert config["train.betas"] == "[0.9, 0.999]"


def make_tracked(tmp_path_factory, words, names):
    out = tmp_path_factory.mktemp("tracked")
    assert call(*words, "--out", out / "plain") == 0
    assert call(*words, "--out", out / "runs", "--track", names) == 0
    run = only_run(out / "runs")
    return Tracked(run, only_run(out / "plain"), RunFolder(run).read_result())


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, words):
    return make_tracked(tmp_path_factory, words, "jsonl,tensorboard")


def test_a_tracked_run_learns_the_same(tracked):
    assert (tracked.run / "prompt.safetensors").read_bytes() == (tracked.plain / "prompt.safetensors").read_bytes()
    assert tracked.result.scores == RunFolder(tracked.plain).read_result().scores


def test_jsonl_has_the_numbers_of_the_run(tracked):
    config, *steps, result = read_jsonl(tracked.run)
    assert [(line["step"], line["train/loss"]) for line in steps] == tracked.losses
    assert [line["train/lr"] for line in steps] == [step["lr"] for step in read_steps(tracked.run)]
    assert all(0 < line["epoch/val"] <= 100 for line in steps)
    tracked.require_config(config["config"])
    tracked.require_scores(result)


def test_tensorboard_has_the_numbers_and_pictures_of_the_run(tracked):
    events, scalars = open_tensorboard(tracked.run), read_tensorboard(tracked.run)
    assert scalars["train/loss"] == [(i, pytest.approx(loss)) for i, loss in tracked.losses]
    assert [step for step, _ in scalars["epoch/val"]] == [1, 2, 3, 4]
    tracked.require_scores({tag: rows[-1][1] for tag, rows in scalars.items()})
    assert events.Tags()["images"] == [f"pictures/{name}" for name in sorted(PICTURES, reverse=True)]
    for name in PICTURES:
        [picture] = events.Images(f"pictures/{name}")
        assert picture.step == N_STEPS
        require_picture(picture.encoded_image_string)
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    values = HParamsPluginData.FromString(plugin).session_start_info.hparams
    kinds = {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}
    tracked.require_config(kinds)


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        out = tmp_path_factory.mktemp("trackio")
        patch.setenv("TRACKIO_DIR", str(out))  # read once in a process
        return make_tracked(tmp_path_factory, words, "wandb,mlflow,trackio")


@pytest.mark.slow
def test_mlflow_has_the_numbers_pictures_and_files_of_the_run(everywhere, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{everywhere.run.parent}/mlflow.db")
    run_id = json.loads((everywhere.run / "trackers.json").read_text())["mlflow"]["run_id"]
    history = client.get_metric_history(run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == everywhere.losses
    assert len(client.get_metric_history(run_id, "epoch/val")) == N_STEPS
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    everywhere.require_scores(stored.data.metrics)
    everywhere.require_config(stored.data.params)
    assert {file.path for file in client.list_artifacts(run_id) if not file.is_dir} == {*FILES}
    for name in PICTURES:
        require_picture(Path(client.download_artifacts(run_id, f"pictures/{name}.png", tmp_path)).read_bytes())


@pytest.mark.slow
def test_wandb_has_the_numbers_pictures_and_files_of_the_run(everywhere):
    [file] = everywhere.run.parent.glob("wandb/offline-run-*/*.wandb")
    records = read_wandb(file)
    rows = read_wandb_rows(records)
    steps = [row for row in rows if "train/loss" in row]
    assert [(row["train/step"], row["train/loss"]) for row in steps] == everywhere.losses
    assert all(0 < row["epoch/val"] <= 100 for row in steps)
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            summary |= read_items(record.summary.update)
    everywhere.require_scores(summary)
    [run] = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    everywhere.require_config(read_items(run.config.update))
    for name in PICTURES:
        [path] = [row[f"pictures/{name}/path"] for row in rows if f"pictures/{name}/path" in row]
        require_picture((file.parent / "files" / path).read_bytes())
    [artifact] = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    assert {entry.path for entry in artifact.manifest.contents} == {*FILES}


@pytest.mark.slow
def test_trackio_has_the_numbers_pictures_and_files_of_the_run(everywhere):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    rows = read_trackio_rows(trackio.sqlite_storage.TRACKIO_DIR / "vlprompt.db")
    assert [(step, row["train/loss"]) for step, row in rows if "train/loss" in row] == everywhere.losses
    [result] = [row for _, row in rows if "accuracy" in row]
    everywhere.require_scores(result)
    everywhere.require_config(SQLiteStorage.get_run_config("vlprompt", everywhere.run.name))
    [pictures] = [row for _, row in rows if "pictures/learning" in row]
    media = trackio.sqlite_storage.TRACKIO_DIR / "media"
    for name in PICTURES:
        require_picture((media / pictures[f"pictures/{name}"]["file_path"]).read_bytes())
    [artifact] = SQLiteStorage.list_artifacts("vlprompt")
    manifest = SQLiteStorage.get_artifact_manifest("vlprompt", artifact["name"], artifact["latest_version"])
    assert {entry["path"] for entry in manifest["manifest"]} == {*FILES}


def test_a_file_that_is_too_large_for_a_store_is_told(tracked):
    size = (tracked.run / "prompt.safetensors").stat().st_size
    paths, texts = list_run_files(tracked.run, size - 1)
    assert "prompt.safetensors" not in [path.name for path in paths]
    assert len(paths) + len(texts) == len(FILES)
    assert any(text.startswith("prompt.safetensors has ") for text in texts)
    assert list_run_files(tracked.run) == ([tracked.run / name for name in FILES], [])


@pytest.mark.slow
def test_a_run_killed_before_a_batch_was_passed_on_is_tracked_once(tmp_path, words):
    """The steps that its saved state knows are read from its files, as the killed process can't pass them on."""
    words = [*words, "train.epochs=30", "--save-every", "0", "--out", str(tmp_path), "--track", "jsonl"]
    condition = 'any(len(p.read_bytes()) > 1000 for p in folder.glob("*/steps.jsonl"))'
    killed_when(tmp_path, condition, COMMAND, *words)
    status, text = give(*words)
    assert status == 0, text
    run = only_run(tmp_path)
    assert len(read_losses(run)) == 30
    assert read_tracked_losses(run) == read_losses(run)
    assert all("epoch/val" in line for line in read_jsonl(run) if line["kind"] == "step")


@pytest.mark.slow
def test_a_killed_run_is_in_the_stores_of_wandb_and_trackio_once(tmp_path, monkeypatch, words):
    """Also where it was killed after it had passed steps on, and before it wrote so."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    words = [COMMAND, *words, "train.epochs=300", "--save-every", "0", "--out", str(tmp_path / "runs")]
    words += ["--track", "wandb,trackio"]
    process = subprocess.Popen(words, env=dict(os.environ))
    while process.poll() is None:
        states = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/trackers.json")]
        if states and all(states[0].get(name, {}).get("last_step", 0) > 1 for name in ("wandb", "trackio")):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    [path] = (tmp_path / "runs").glob("*/trackers.json")
    state = json.loads(path.read_text())
    for name in ("wandb", "trackio"):
        assert state[name].pop("last_step") > 1
    path.write_text(json.dumps(state))
    assert subprocess.run(words, check=False).returncode == 0
    losses = read_losses(only_run(tmp_path / "runs"))
    assert len(losses) == 300
    files = sorted((tmp_path / "runs").glob("wandb/offline-run-*/*.wandb"))
    rows = [row for file in files for row in read_wandb_rows(read_wandb(file)) if "train/loss" in row]
    assert [(row["_step"], row["train/loss"]) for row in rows] == losses
    assert all("epoch/val" in row for row in rows)
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    rows = read_trackio_rows(tmp_path / "trackio" / "vlprompt.db")
    assert [(step, values["train/loss"]) for step, values in rows if "train/loss" in values] == losses


STREAM = ["run", "l2p", "digits", "--task", "continual", "--backbone", "glyph-vit", "--save-every", "0",
          "train.epochs=2", "train.batch_size=64"]  # fmt: skip


@pytest.mark.slow
def test_a_stream_counts_its_steps_over_all_lessons_and_has_each_lessons_tests(tmp_path):
    """Also where it was killed before anything was passed on, in a later lesson."""
    words = [*STREAM, "--track", "jsonl,tensorboard,wandb", "--out", str(tmp_path / "runs")]
    condition = 'any(b\'"stage": 1\' in p.read_bytes() for p in folder.glob("*/steps.jsonl"))'
    killed_when(tmp_path / "runs", condition, COMMAND, *words)
    before = read_jsonl(only_run(tmp_path / "runs"))
    assert [line["lesson"] for line in before if line["kind"] == "stage"] == [1]  # as soon as it was tested
    status, text = give(*words)
    assert status == 0, text
    run = only_run(tmp_path / "runs")
    losses = [sum(v for k, v in step.items() if k not in ("stage", "epoch", "step", "lr")) for step in read_steps(run)]
    tracked = [line for line in read_jsonl(run) if line["kind"] == "step"]
    assert [line["step"] for line in tracked] == [*range(1, len(losses) + 1)]
    assert [line["train/loss"] for line in tracked] == pytest.approx(losses)

    wanted = [(i, scores["seen"]["accuracy"]) for i, scores in enumerate(RunFolder(run).read_result().scores, 1)]
    assert len(wanted) == 5
    lines = [line for line in read_jsonl(run) if line["kind"] == "stage"]
    assert [(line["lesson"], line["stage/seen/accuracy"]) for line in lines] == wanted
    assert read_tensorboard(run)["stage/seen/accuracy"] == [(i, pytest.approx(value)) for i, value in wanted]
    assert {"pictures/stages", "pictures/matrix", "pictures/confusion/seen"} <= {
        *open_tensorboard(run).Tags()["images"]
    }
    files = sorted((tmp_path / "runs").glob("wandb/offline-run-*/*.wandb"))
    rows = [row for file in files for row in read_wandb_rows(read_wandb(file))]
    stages = [(row["stage/lesson"], row["stage/seen/accuracy"]) for row in rows if "stage/lesson" in row]
    assert stages in (wanted, wanted[1:])  # its own process may not have written the last row before the kill
    assert [row["train/step"] for row in rows if "train/step" in row] == [*range(1, len(losses) + 1)]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_is_in_each_store_once(tmp_path, words):
    """Its first process dies by SIGKILL after some steps; the second goes on in the same tracked run."""
    words = [*words, "train.epochs=120", "--save-every", "0", "--out", str(tmp_path / "runs")]
    words += ["--track", "jsonl,tensorboard,mlflow"]
    code = "from vlprompt.cli.app import main; main()"
    process = subprocess.Popen([sys.executable, "-P", "-c", code, *words], env=dict(os.environ))
    while process.poll() is None:
        tracked = list((tmp_path / "runs").glob("*/tracked.jsonl"))
        if tracked and tracked[0].read_text().count('"step"') > 3:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert call(*words) == 0
    run = only_run(tmp_path / "runs")
    losses = read_losses(run)
    assert len(losses) == 120
    assert read_tracked_losses(run) == losses
    scalars, steps = read_tensorboard(run), [step for step, _ in losses]
    assert [step for step, _ in scalars["train/loss"]] == [step for step, _ in scalars["epoch/val"]] == steps

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    run_id = json.loads((run / "trackers.json").read_text())["mlflow"]["run_id"]
    for name in ("train/loss", "epoch/val"):
        history = client.get_metric_history(run_id, name)
        assert sorted(one.step for one in history) == steps
    assert sorted((one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")) == losses
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


def leave_as_killed_at_the_end(run):
    """What a process leaves that dies after the result was written and before the tracker had all of it."""
    lines = (run / "tracked.jsonl").read_text().splitlines(keepends=True)
    (run / "tracked.jsonl").write_text("".join(lines[:2]))
    (run / "trackers.json").write_text(json.dumps({"jsonl": {"file": "tracked.jsonl", "last_step": 1}}))
    return lines


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_run_killed_after_its_result_is_tracked_to_its_end(tmp_path, words, pictures, command):
    if command == "sweep":
        words = ["sweep", "method=coop", f"dataset={pictures}", "shots=2", *SETTINGS[2:]]
    words = [*words, "--out", tmp_path, "--track", "jsonl"]
    assert call(*words) == 0
    run = only_run(tmp_path)
    result, lines = (run / "result.json").read_bytes(), leave_as_killed_at_the_end(run)
    for _ in range(2):  # the second time there is nothing left to do
        assert call(*words) == 0
        assert (run / "tracked.jsonl").read_text().splitlines(keepends=True) == lines
        assert (run / "result.json").read_bytes() == result


def give_with_warnings(capsys, *words):
    """Give a command; returns what it printed, and on the other stream."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call(*words) == 0
    streams = capsys.readouterr()
    return streams.out, " ".join(streams.err.split())


def test_a_store_that_breaks_in_a_run_is_told_once_and_hides_no_run(tmp_path, pictures, capsys, monkeypatch):
    """Its file becomes a folder, which no process can write to, whoever it is."""
    from vlprompt.experiments.trackers.jsonl_tracker import JsonlTracker

    begin = JsonlTracker.begin

    def begin_and_break(self, run, state):
        told = begin(self, run, state)
        self.path.unlink()
        self.path.mkdir()
        return told

    words = ["sweep", "method=coop", f"dataset={pictures}", "shots=2", *SETTINGS[2:], "--out", tmp_path]
    words += ["--track", "jsonl"]
    monkeypatch.setattr(JsonlTracker, "begin", begin_and_break)
    out, text = give_with_warnings(capsys, *words)
    assert "1 of 1 runs" in out or "coop 2 shots, seed 1: accuracy" in out
    assert text.count("goes on without it") == 1
    monkeypatch.undo()
    result = RunFolder(only_run(tmp_path)).read_result()
    assert result.summary["accuracy"] > 0
    out, text = give_with_warnings(capsys, *words)  # it stays broken
    assert "1 of 1 runs" in out
    assert text.count("goes on without it") == 1
    (only_run(tmp_path) / "tracked.jsonl").rmdir()
    assert call(*words) == 0  # and is whole again
    assert len(read_tracked_losses(only_run(tmp_path))) == N_STEPS
    assert RunFolder(only_run(tmp_path)).read_result() == result


def test_a_tracker_that_can_not_be_used_is_refused_before_anything_runs(tmp_path, words, capsys, monkeypatch):
    def require_error(name, error):
        assert call(*words, "--out", tmp_path / "runs", "--track", name) == 2
        assert error in " ".join(capsys.readouterr().err.split())

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    require_error("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?")
    require_error("wandb", "expected a login or WANDB_MODE=offline, got neither")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    require_error("tensorboard", 'pip install "vlprompt[tensorboard]"')
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_without_a_network_wandb_is_refused_at_once(tmp_path, words):
    """Its client itself would wait for a server before each run."""
    where = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    del where["WANDB_MODE"]
    status, text = give(*words, "--out", tmp_path / "runs", "--track", "wandb", env=where)
    assert status == 2, text
    assert "expected a server at http://127.0.0.1:9, got no answer (Connection refused)" in " ".join(text.split())
    assert "set WANDB_MODE=offline" in " ".join(text.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite:////proc/nowhere/mlflow.db", "http://127.0.0.1:9"])
def test_trouble_of_a_store_does_not_stop_the_run(tmp_path, words, capsys, monkeypatch, place):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    _, text = give_with_warnings(capsys, *words, "--out", tmp_path / "runs", "--track", "mlflow,jsonl")
    assert text.count("goes on without it") == 1
    kinds = [line["kind"] for line in read_jsonl(only_run(tmp_path / "runs"))]
    assert kinds == ["config", *["step"] * N_STEPS, "result"]
