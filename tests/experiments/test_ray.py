"""Sweeps on Ray."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import ValidationError
from sweep_commands import list_running, read_parent, read_runs, run_sweep_command, start_sweep, wait_for

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


class RayNodes:
    """A cluster of Ray on this machine, as its documentation says: `ray start --head`, and other nodes that join it.

    Args:
        folder: of the logs, and of Ray's own files; a short path, as those have sockets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(2)]
            self.port, self.client_port = (one.getsockname()[1] for one in sockets)

    def start(self, *words: str) -> int:
        """Start a node; return the process of its raylet."""
        log = self.folder / f"node{len(self.processes)}.log"
        options = "--block", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", *words
        with log.open("wb") as output:
            command = [str(Path(sys.executable).with_name("ray")), "start", *options]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        self.processes.append(process)
        wait_for(lambda: "Ray runtime started" in log.read_text(), process)
        stats = [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_raylet(path, process.pid)]
        return int(stats[0].parent.name)

    def start_head(self) -> int:
        ports = f"--port={self.port}", f"--ray-client-server-port={self.client_port}"
        return self.start("--head", *ports, "--include-dashboard=false", f"--temp-dir={self.folder}")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def is_raylet(cmdline: Path, parent: int) -> bool:
    try:
        return b"raylet/raylet\0" in cmdline.read_bytes() and read_parent(int(cmdline.parent.name)) == parent
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("slow_method")
def test_two_nodes_with_kills_make_the_table_of_one_process(tmp_path, monkeypatch):
    words = "method=slow_method:Slow", "dataset=digits", "backbone=glyph/random", "shots=1", "seed=1,2,3,4"
    words = *words, "train.epochs=100", "--save-every", "0.2"
    run_sweep_command(tmp_path / "one", *words)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "SECONDS_PER_STEP": "0.1"}.items():
        monkeypatch.setenv(name, value)
    runs, log = tmp_path / "runs", tmp_path / "runs.log"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        nodes = RayNodes(Path(folder))
        try:
            head, address = nodes.start_head(), f"127.0.0.1:{nodes.port}"
            other = nodes.start(f"--address={address}")
            ray = "--on", "ray", "--jobs", 2
            command = start_sweep(runs, *words, *ray, RAY_ADDRESS=address)
            running = wait_for(lambda: len(list_running(runs)) == 2 and list_running(runs), command)
            assert {read_parent(owner.pid) for owner, _ in running.values()} == {head, other}
            os.kill(other, signal.SIGKILL)
            wait_for(lambda: "another worker goes on" in log.read_text(), command)
            begun = {(name, owner.token) for name, (owner, _) in running.items()}

            def is_one_taken_over():  # by the worker that is left, as its node has one CPU, or by a new one
                return any((name, owner.token) not in begun for name, (owner, _) in list_running(runs).items())

            wait_for(is_one_taken_over, command)
            command.kill()
            command.wait()
            assert len(read_runs(runs)) < 4
            run_sweep_command(runs, *words, *ray, "--on-option", f"address={address}")
        finally:
            nodes.stop()
    assert len(read_runs(runs)) == 4
    assert read_runs(runs) == read_runs(tmp_path / "one")
