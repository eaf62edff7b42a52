"""`--track`: every store is read back by its own reader, and a run that was killed is in it once."""

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import warnings

import pytest
from forks import give
from kills import COMMAND, killed_when

from vlprompt.cli.app import main
from vlprompt.results.run_folder import RunFolder, find_run_folders

WORDS = ["run", "coop", "digits", "--shots", "1", "train.epochs=4"]
N_STEPS = 4


def call(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return exit_.value.code


@pytest.fixture
def quiet(monkeypatch, tmp_path):
    """Stores stay below the test's folder."""
    for name in ("WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def only_run(out):
    [path] = find_run_folders(out)
    return path


def read_steps(run):
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def read_jsonl(run):
    return [json.loads(line) for line in (run / "tracked.jsonl").read_text().splitlines()]


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
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


def test_every_store_has_the_numbers_of_the_run(tmp_path, quiet):
    assert call(*WORDS, "--out", tmp_path / "plain") == 0
    assert call(*WORDS, "--out", tmp_path / "runs", "--track", "jsonl,tensorboard") == 0
    run, plain = only_run(tmp_path / "runs"), only_run(tmp_path / "plain")
    assert (run / "prompt.safetensors").read_bytes() == (plain / "prompt.safetensors").read_bytes()
    steps, result = read_steps(run), RunFolder(run).read_result()
    losses = [step["ce"] for step in steps]
    assert len(losses) == N_STEPS

    lines = read_jsonl(run)
    assert [line["loss"] for line in lines if line["kind"] == "step"] == losses
    assert lines[0]["config"] == result.config
    assert lines[-1]["summary"] == result.summary

    scalars = read_tensorboard(run)
    assert scalars["train/loss"] == [(i, pytest.approx(loss)) for i, loss in enumerate(losses, 1)]
    assert scalars["test/test/accuracy"] == [(N_STEPS, pytest.approx(result.summary["accuracy"]))]


@pytest.mark.slow
def test_mlflow_has_the_numbers_of_the_run(tmp_path, quiet):
    assert call(*WORDS, "--out", tmp_path / "runs", "--track", "mlflow") == 0
    run = only_run(tmp_path / "runs")
    losses, result = [step["ce"] for step in read_steps(run)], RunFolder(run).read_result()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    run_id = json.loads((run / "trackers.json").read_text())["mlflow"]["run_id"]
    history = client.get_metric_history(run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == list(enumerate(losses, 1))
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["accuracy"] == result.summary["accuracy"]
    assert stored.data.params["train.lr"] == str(result.config["train"]["lr"])
    assert {file.path for file in client.list_artifacts(run_id)} >= {"config.yaml", "result.json", "prompt.safetensors"}


@pytest.mark.slow
def test_wandb_and_trackio_have_the_numbers_of_the_run(tmp_path, quiet):
    assert call(*WORDS, "--out", tmp_path / "runs", "--track", "wandb,trackio") == 0
    run = only_run(tmp_path / "runs")
    losses, result = [step["ce"] for step in read_steps(run)], RunFolder(run).read_result()
    [file] = (tmp_path / "runs").glob("wandb/offline-run-*/*.wandb")
    items = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in read_wandb(file)
        if record.WhichOneof("record_type") == "history"
    ]
    assert [item["train/loss"] for item in items if "train/loss" in item] == losses
    with sqlite3.connect(tmp_path / "trackio" / "vlprompt.db") as store:
        rows = [(step, json.loads(values)) for step, values in store.execute("select step, metrics from metrics")]
    assert [(step, values["train/loss"]) for step, values in rows if "train/loss" in values] == list(
        enumerate(losses, 1)
    )
    assert rows[-1][1]["accuracy"] == result.summary["accuracy"]


def kill_and_go_on(out, *words):
    """Kill a run by SIGKILL once some steps are in its saved state; give the command again. Returns losses by step."""
    words = ["run", "coop", "digits", "--shots", "1", "train.epochs=60", "--save-every", "0", "--out", str(out), *words]
    condition = 'any(len(p.read_bytes()) > 1500 for p in folder.glob("*/steps.jsonl"))'
    killed_when(out, condition, COMMAND, *words)
    status, text = give(*words)
    assert status == 0, text
    run = only_run(out)
    losses = [step["ce"] for step in read_steps(run)]
    assert len(losses) == 60
    return run, list(enumerate(losses, 1))


def test_a_run_killed_before_a_batch_was_passed_on_is_in_each_file_once(tmp_path, quiet):
    """The steps that its saved state knows are read from steps.jsonl, as the killed process can't pass them on."""
    run, losses = kill_and_go_on(tmp_path / "runs", "--track", "jsonl,tensorboard")
    assert [(line["step"], line["loss"]) for line in read_jsonl(run) if line["kind"] == "step"] == losses
    assert [step for step, _ in read_tensorboard(run)["train/loss"]] == [step for step, _ in losses]


@pytest.mark.slow
def test_a_killed_run_is_in_the_stores_of_wandb_and_trackio_once(tmp_path, quiet):
    """Also where it was killed after it had passed steps on, and before it wrote so."""
    words = [*WORDS, "train.epochs=300", "--save-every", "0", "--out", str(tmp_path / "runs")]
    words = [COMMAND, *words, "--track", "wandb,trackio"]
    process = subprocess.Popen(words, env=dict(os.environ))
    while process.poll() is None:
        states = [path.read_text() for path in (tmp_path / "runs").glob("*/trackers.json")]
        if states and '"last_step": 0' not in states[0] and states[0].count('"last_step"') == 2:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    [path] = (tmp_path / "runs").glob("*/trackers.json")
    state = json.loads(path.read_text())
    for name in ("wandb", "trackio"):
        assert state[name].pop("last_step") > 1
    path.write_text(json.dumps(state))
    assert subprocess.run(words, check=False).returncode == 0
    losses = [(i, step["ce"]) for i, step in enumerate(read_steps(only_run(tmp_path / "runs")), 1)]
    assert len(losses) == 300
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for file in sorted((tmp_path / "runs").glob("wandb/offline-run-*/*.wandb"))
        for record in read_wandb(file)
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row] == losses
    files = [file.name for file in (tmp_path / "runs").glob("wandb/offline-run-*/*.wandb")]
    assert len(files) == 2
    assert len({*files}) == 1
    with sqlite3.connect(tmp_path / "trackio" / "vlprompt.db") as store:
        rows = [(step, json.loads(values)) for step, values in store.execute("select step, metrics from metrics")]
    assert [(step, values["train/loss"]) for step, values in rows if "train/loss" in values] == losses


@pytest.mark.slow
def test_a_stream_counts_its_steps_over_all_lessons(tmp_path, quiet):
    """Also where it was killed before anything was passed on, in a later lesson."""
    words = ["run", "l2p", "digits", "--task", "continual", "--backbone", "glyph-vit", "--save-every", "0",
             "train.epochs=2", "train.batch_size=64", "--track", "jsonl", "--out", str(tmp_path / "runs")]  # fmt: skip
    condition = 'any(b\'"stage": 1\' in p.read_bytes() for p in folder.glob("*/steps.jsonl"))'
    killed_when(tmp_path / "runs", condition, COMMAND, *words)
    assert give(*words)[0] == 0
    run = only_run(tmp_path / "runs")
    losses = [sum(v for k, v in step.items() if k not in ("stage", "epoch", "step", "lr")) for step in read_steps(run)]
    tracked = [line for line in read_jsonl(run) if line["kind"] == "step"]
    assert [line["step"] for line in tracked] == [*range(1, len(losses) + 1)]
    assert [line["loss"] for line in tracked] == pytest.approx(losses)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_is_in_each_store_once(tmp_path, quiet):
    """Its first process dies by SIGKILL after some steps; the second goes on in the same tracked run."""
    words = [*WORDS, "train.epochs=120", "--save-every", "0", "--out", str(tmp_path / "runs")]
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
    losses = [step["ce"] for step in read_steps(run)]
    assert len(losses) == 120
    assert [line["loss"] for line in read_jsonl(run) if line["kind"] == "step"] == losses
    assert [step for step, _ in read_tensorboard(run)["train/loss"]] == list(range(1, 121))

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    run_id = json.loads((run / "trackers.json").read_text())["mlflow"]["run_id"]
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((one.step, one.value) for one in history) == list(enumerate(losses, 1))
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1


def leave_as_killed_at_the_end(run):
    """What a process leaves that dies after the result was written and before the tracker had all of it."""
    lines = (run / "tracked.jsonl").read_text().splitlines(keepends=True)
    (run / "tracked.jsonl").write_text("".join(lines[:2]))
    (run / "trackers.json").write_text(json.dumps({"jsonl": {"file": "tracked.jsonl", "last_step": 1}}))
    return lines


@pytest.mark.parametrize("words", [WORDS, ["sweep", "method=coop", "dataset=digits", "shots=1", WORDS[-1]]])
def test_a_run_killed_after_its_result_is_tracked_to_its_end(tmp_path, quiet, words):
    words = [*words, "--out", tmp_path, "--track", "jsonl"]
    assert call(*words) == 0
    run = only_run(tmp_path)
    result, lines = (run / "result.json").read_bytes(), leave_as_killed_at_the_end(run)
    for _ in range(2):  # the second time there is nothing left to do
        assert call(*words) == 0
        assert (run / "tracked.jsonl").read_text().splitlines(keepends=True) == lines
        assert (run / "result.json").read_bytes() == result


def test_a_store_that_stays_broken_hides_no_run(tmp_path, quiet, capsys):
    words = ["sweep", "method=coop", "dataset=digits", "shots=1", WORDS[-1], "--out", tmp_path, "--track", "jsonl"]
    assert call(*words) == 0
    run = only_run(tmp_path)
    leave_as_killed_at_the_end(run)
    (run / "tracked.jsonl").unlink()
    (run / "tracked.jsonl").mkdir()
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call(*words) == 0
    streams = capsys.readouterr()
    assert "1 of 1 runs" in streams.out
    assert "goes on without it" in " ".join(streams.err.split())


def test_a_tracker_that_can_not_be_used_is_refused_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, error in (
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("wandb", "expected a login or WANDB_MODE=offline, got neither"),
    ):
        assert call(*WORDS, "--out", tmp_path / "runs", "--track", name) == 2
        assert error in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert call(*WORDS, "--out", tmp_path / "runs", "--track", "tensorboard") == 2
    assert 'pip install "vlprompt[tensorboard]"' in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_trouble_of_a_store_does_not_stop_the_run(tmp_path, capsys, quiet, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert call(*WORDS, "--out", tmp_path / "runs", "--track", "mlflow,jsonl") == 0
    assert "goes on without it" in " ".join(capsys.readouterr().err.split())
    assert [line["kind"] for line in read_jsonl(only_run(tmp_path / "runs"))] == [
        "config",
        *["step"] * N_STEPS,
        "result",
    ]
