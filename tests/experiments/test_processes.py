"""Workers as processes of this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.sweep_folder import SweepFolder

PARENT = """
import sys
from pathlib import Path
from vlprompt.experiments.schedulers.processes import Processes
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
