"""Sweeps whose runs train side by side: the same results to rounding, whoever makes them and whatever is killed."""

import dataclasses
import json
import signal
import threading

import pytest
from kills import end, killed_until_done, start
from safetensors.torch import load_file

from vlprompt.cli.app import main
from vlprompt.experiments.events import Notice, RunStarted
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.processes import Processes
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import get_run_folder
from vlprompt.experiments.sweeps.supervisor import run_sweep
from vlprompt.experiments.sweeps.sweep_folder import SweepFolder
from vlprompt.experiments.sweeps.worker import WorkerJob, work
from vlprompt.results.run_folder import find_run_folders


def resolve(method, seeds, *overrides):
    settings = ["train.epochs=2", *overrides]
    return resolve_sweep([method], [1], seeds, dataset="digits", backbone="glyph/random", overrides=settings)


def read_runs(folder):
    """Name of a finished run's folder -> its result, its tensors and its steps."""
    return {
        path.name: (
            json.loads((path / "result.json").read_text("utf-8")),
            load_file(path / "prompt.safetensors"),
            [json.loads(line) for line in (path / "steps.jsonl").read_text("utf-8").splitlines()],
        )
        for path in find_run_folders(folder)
        if (path / "result.json").exists()
    }


def assert_same_to_rounding(folder, other):
    runs, others = read_runs(folder), read_runs(other)
    assert runs.keys() == others.keys()
    for name, (result, tensors, steps) in runs.items():
        other_result, other_tensors, other_steps = others[name]
        assert result["protocol"] == other_result["protocol"]
        assert result["config"] == other_result["config"]
        for key, tensor in tensors.items():
            assert (tensor - other_tensors[key]).abs().max() <= 1e-3 * tensor.abs().max(), (name, key)
        for step, other_step in zip(steps, other_steps, strict=True):
            assert step == pytest.approx(other_step, rel=1e-3, abs=1e-5)


def count_side_by_side(folder):
    return {name: run[0]["environment"].get("trained_side_by_side", 1) for name, run in read_runs(folder).items()}


def test_a_sweep_shares_passes_where_it_pays_and_says_so_where_not(tmp_path):
    """Seeds and rates of one method share; one of them that diverges and runs that can't share stop nothing."""
    configs = [*resolve("coop", [1, 2]), *resolve("coop", [1], "train.lr=1e30"), *resolve("linear", [1, 2])]
    configs += resolve("coop", [1, 2], "train.activation_checkpointing=true", "train.epochs=1")
    events = []
    options = SweepOptions(tmp_path / "together", side_by_side=True)
    report = run_sweep(configs, options, InProcess(events.append))
    assert list(report.errors) == [2]
    assert [event.n_others for event in events if isinstance(event, RunStarted)] == [2, 0, 0, 0, 0]
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert [text for text in notices if "one by one" in text] == [
        "2 runs train one by one: their steps have no pass with trained tokens or adapters that runs could share",
        "2 runs train one by one: they set train.activation_checkpointing, which a tower has once",
    ]
    run_sweep(configs, SweepOptions(tmp_path / "alone"), InProcess())
    assert_same_to_rounding(tmp_path / "together", tmp_path / "alone")
    assert sorted(count_side_by_side(tmp_path / "together").values()) == [1, 1, 1, 1, 3, 3]
    assert set(count_side_by_side(tmp_path / "alone").values()) == {1}


def test_a_worker_makes_of_a_group_what_it_gets(tmp_path):
    """Of five runs one is another process's, and one, begun by a process that died, is made alone: three share."""
    configs, folder = resolve("coop", [1, 2, 3, 4, 5]), SweepFolder(tmp_path)
    call = folder.begin_call("call", Owner.create(), configs, [])
    far = dataclasses.replace(Owner.create(), host="far", pid=1, process_start="0")
    folder.open_claims(far, 100.0).take(configs[0].hash)
    call.add_attempt(configs[3].hash, far)
    job = WorkerJob(str(tmp_path), call.read_list_name(), "call", {"side_by_side": True})
    assert work(job, threading.Event()) == 4
    numbers = count_side_by_side(tmp_path)
    names = [get_run_folder(tmp_path, config).path.name for config in configs]
    assert [numbers.get(name) for name in names] == [None, 3, 3, 1, 3]
    assert folder.open_claims(far, 100.0).list_keys() == [configs[0].hash]


def test_seeds_of_a_command_train_side_by_side(tmp_path, capsys):
    words = ["run", "coop", "digits", "--backbone", "glyph/random", "--shots", "1", "train.epochs=1"]
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--seed", "1,2", "--side-by-side", "--out", str(tmp_path)])
    assert exit_.value.code == 0
    assert set(count_side_by_side(tmp_path).values()) == {2}
    assert "coop 1 shot, seed 2: accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_group_that_is_killed_goes_on_side_by_side_or_alone(tmp_path):
    words = ["--seed", "1,2,3", "train.epochs=10", "train.batch_size=8", "method.n_ctx=3"]
    killed_until_done(tmp_path / "undisturbed", [], *words, "--side-by-side")
    killed_until_done(tmp_path / "killed", ["0/13/loss", "0/30/end"], *words, "--side-by-side")
    assert end(start(tmp_path / "begun", *words, "--side-by-side", KILL_AT="0/25/loss"))[0] == -signal.SIGKILL
    killed_until_done(tmp_path / "begun", [], *words)  # alone
    for name in ("killed", "begun"):
        assert_same_to_rounding(tmp_path / name, tmp_path / "undisturbed")
        assert set(count_side_by_side(tmp_path / name).values()) == {3}


@pytest.mark.slow
def test_processes_share_out_groups(tmp_path):
    configs = [*resolve("coop", [1, 2, 3]), *resolve("kgcoop", [1, 2, 3])]
    options = SweepOptions(tmp_path / "together", side_by_side=True)
    report = run_sweep(configs, options, Processes(2, tmp_path / "logs"))
    assert not report.errors
    run_sweep(configs, SweepOptions(tmp_path / "alone"), InProcess())
    assert_same_to_rounding(tmp_path / "together", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["jsonl", "tensorboard", "mlflow", "wandb", "trackio"])
def test_trackers_have_each_run_of_a_group(tmp_path, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = SweepOptions(tmp_path / "runs", trackers=[tracker], side_by_side=True)
    report = run_sweep(resolve("coop", [1, 2]), options, InProcess())
    assert not report.errors
    for path in find_run_folders(tmp_path / "runs"):
        state = json.loads((path / "trackers.json").read_text("utf-8"))
        assert state[tracker]["has_result"]
        assert state[tracker]["last_step"] == len((path / "steps.jsonl").read_text("utf-8").splitlines())
