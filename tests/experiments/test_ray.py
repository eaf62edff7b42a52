"""Sweeps on Ray."""

import os
import signal
import time

import pytest
from pydantic import ValidationError

from vlprompt.experiments.events import Notice, SweepProgress
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.ray_cluster import RayCluster, RayOptions
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.supervisor import run_sweep


def test_resources_of_a_worker():
    assert RayOptions().describe_resources() == {"num_cpus": 1.0, "num_gpus": 0.0}
    resources = RayOptions(cpus=2, gpus=0.5, memory_mb=3).describe_resources()
    assert resources == {"num_cpus": 2.0, "num_gpus": 0.5, "memory": 3 * 2**20}
    with pytest.raises(ValidationError, match="n_worker"):
        RayOptions.model_validate({"n_worker": 2})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_no_cluster_at_the_address(tmp_path, address):
    configs, start = resolve_sweep(["zero_shot"], [1], [1], dataset="digits"), time.monotonic()
    with pytest.raises(OSError, match=f"Ray: expected a cluster at {address}.*Start one by"):
        run_sweep(configs, SweepOptions(tmp_path), RayCluster(1, tmp_path, RayOptions(address=address)))
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_local_ray_learns_the_same_bits(tmp_path):
    configs = resolve_sweep(["coop", "zero_shot"], [1], [1, 2], dataset="digits", overrides=["train.epochs=2"])
    here, there = SweepOptions(tmp_path / "here"), SweepOptions(tmp_path / "there")
    run_sweep(configs, here, InProcess())
    report = run_sweep(configs, there, RayCluster(2, tmp_path))
    assert not report.errors
    assert all(report.results)
    for name in ("prompt.safetensors", "steps.jsonl"):
        files = [sorted(options.runs_folder.glob(f"*/{name}")) for options in (here, there)]
        assert len(files[0]) == len(files[1]) == len(configs)
        assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


@pytest.mark.slow
def test_an_actor_that_is_killed_is_replaced(tmp_path):
    configs = resolve_sweep(["coop"], [4], [1], dataset="digits", overrides=["train.epochs=40"])
    here, there = SweepOptions(tmp_path / "here"), SweepOptions(tmp_path / "there", save_every=0.1)
    run_sweep(configs, here, InProcess())
    killed, notices = list[int](), list[str]()

    def kill_once(event):
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, SweepProgress) and not killed and event.running and event.running[0].n_done:
            killed.append(int(event.running[0].place.rpartition(" ")[2]))
            os.kill(killed[0], signal.SIGKILL)

    report = run_sweep(configs, there, RayCluster(1, tmp_path), kill_once, seconds_between_looks=0.05)
    assert killed
    assert len(notices) == 1, notices
    assert "another worker goes on" in notices[0]
    assert not report.errors
    for name in ("prompt.safetensors", "steps.jsonl"):
        [one], [other] = (list(options.runs_folder.glob(f"*/{name}")) for options in (here, there))
        assert one.read_bytes() == other.read_bytes()
