"""Workers as processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlprompt.experiments.schedulers.processes import Processes, choose_device, name_devices
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.sweep_folder import SweepFolder

PARENT = """
import sys
from pathlib import Path
from vlprompt.experiments.schedulers.processes import Processes
import pytest

from vlprompt.experiments.schedulers.processes import Processes, choose_device, name_devices
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.supervisor import run_sweep
configs = resolve_sweep(["coop"], [1], [1], dataset="digits", overrides=["train.epochs=100000"])
run_sweep(configs, SweepOptions(Path(sys.argv[1])), Processes(1, Path(sys.argv[1]) / "logs", ["7"]))
"""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("n_devices", "visible", "names"),
    [(0, None, ()), (2, None, ("0", "1")), (2, "3, 5", ("3", "5")), (1, "GPU-8a", ("GPU-8a",)), (0, "", ())],
)
def test_devices_are_named_as_cuda_names_them(n_devices: int, visible: str | None, names: tuple[str, ...]) -> None:
    assert name_devices(n_devices, visible) == names


def test_workers_share_devices_evenly() -> None:
    assert [choose_device(["3", "5"], place) for place in range(5)] == ["3", "5", "3", "5", "3"]


def read_limit(folder: Path, scheduler: Processes, settings: dict[str, float]) -> float:
    """Start a worker, and read from its command line what it may take; it ends for want of a list."""
    from vlprompt.experiments.sweeps.worker import WorkerJob

    (handle,) = scheduler.submit(WorkerJob(str(folder), "none", "call", settings=settings), 1)
    job = json.loads(scheduler._processes[handle].args[-1])  # type: ignore[index]
    scheduler.cancel(handle)
    scheduler.close()
    return job["settings"].get("memory_limit_mb", float("inf"))


def test_workers_share_what_memory_is_free_unless_an_option_limits_them(tmp_path: Path) -> None:
    alone, four = Processes(1, tmp_path / "logs"), Processes(4, tmp_path / "logs")
    assert four.memory_limit_mb == pytest.approx(alone.memory_limit_mb / 4, rel=0.3)
    inf = float("inf")
    assert read_limit(tmp_path, four, {"memory_limit_mb": inf}) == four.memory_limit_mb
    assert read_limit(tmp_path, Processes(4, tmp_path / "logs"), {"memory_limit_mb": 512.0}) == 512.0
    assert read_limit(tmp_path, Processes(4, tmp_path / "logs", ["0"]), {"memory_limit_mb": inf}) == inf


def test_a_worker_ends_with_its_killed_parent_and_sees_its_device(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    config = resolve_sweep(["coop"], [1], [1], dataset="digits", overrides=["train.epochs=100000"])[0]
    claims = tmp_path / ".sweep" / "claims" / config.hash
    wait_for((claims / "progress.json").exists)
    from vlprompt.experiments.sweeps.owner import Owner

    folder = SweepFolder(SweepOptions(tmp_path).runs_folder).open_claims(Owner.create(), 60.0)
    owner = folder.read_owner(config.hash)
    assert owner is not None
    assert b"CUDA_VISIBLE_DEVICES=7\0" in Path(f"/proc/{owner.pid}/environ").read_bytes() + b"\0"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(owner.pid))
    wait_for(lambda: folder.read_owner(config.hash) is None)  # it stopped between two steps, and released its run
