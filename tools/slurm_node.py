"""A Slurm cluster of this one machine, in a folder of its own: munged, slurmctld and slurmd without a system service.

    python tools/slurm_node.py FOLDER [--nodes N] -- COMMAND ...

runs a command with SLURM_CONF set, and stops the daemons when it has ended. Debian: apt-get install slurm-wlm munge.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SECONDS_TO_START, SECONDS_TO_STOP = 30.0, 20.0
CONFIGURATION = """\
ClusterName=onenode
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its old credential has expired, 120 seconds by default
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
SlurmdTimeout={seconds_to_down}
ReturnToService=2
KillWait=5
MinJobAge=600
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=1000 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={n_cpus} RealMemory=8000 State=UNKNOWN\n"
)


def find_obstacle() -> str:
    """Say why no Slurm can be started here; "" where it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=path) is None]
    if lacking:
        return f"no {', '.join(lacking)} (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


@dataclass
class SlurmNode:
    """The daemons of the cluster.

    Args:
        folder: of all their files.
        n_cpus: of a node that Slurm gives away, which need not be there.
        n_nodes: each with a daemon of its own, which Slurm has to be built for (--enable-multiple-slurmd), as Debian's.
        seconds_to_down: without an answer after which the controller takes the node for down.
    """

    folder: Path
    n_cpus: int = 4
    n_nodes: int = 1
    seconds_to_down: int = 10
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the nodes; a single one has that of the machine."""
        return [_read_host()] if self.n_nodes == 1 else [f"node{i}" for i in range(1, self.n_nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs besides its environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration and start the daemons; OSError where the node does not come up."""
        for name in ("munge", "state", *(f"spool-{node}" for node in self.names)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o755)
        values = {"host": _read_host(), "folder": self.folder, "seconds_to_down": self.seconds_to_down}
        controller_port, *ports = _find_free_ports(1 + self.n_nodes)
        text = CONFIGURATION.format(controller_port=controller_port, **values)
        for name, port in zip(self.names, ports, strict=True):
            text += NODE.format(name=name, host=_read_host(), port=port, n_cpus=self.n_cpus)
        (self.folder / "slurm.conf").write_text(text, "utf-8")
        self._start_munged()
        self._start_daemon("slurmctld", "-D", "-c")
        for name in self.names:
            self.start_slurmd(name)

    def start_slurmd(self, name: str) -> None:
        """Start a node's daemon, and wait until it takes jobs."""
        self._start_daemon("slurmd", "-D", "-N", name)
        _wait_for("an idle node", lambda: self._is_node_up(name))

    def stop_slurmd(self, name: str) -> None:
        """End a node's daemon as a crash does; its jobs go on."""
        process = self.processes.pop(f"slurmd-{name}")
        process.kill()
        process.wait()

    def stop_controller(self) -> None:
        """End the controller as a crash does; jobs that run go on."""
        process = self.processes.pop("slurmctld")
        process.kill()
        process.wait()

    def start_controller(self) -> None:
        """Start the controller with the jobs that it knew, and wait until it answers."""
        self._start_daemon("slurmctld", "-D")
        _wait_for("nodes that are up", lambda: all(map(self._is_node_up, self.names)))

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands, and return its output."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        if any(name.startswith("slurmd-") for name in self.processes):
            subprocess.run(["scancel", "--user=root"], env={**os.environ, **self.environment}, check=False)
            try:
                _wait_for("an empty queue", lambda: not self.run("squeue", "--noheader").strip())
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"slurm: {error}", file=sys.stderr)
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def _start_munged(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        paths = [f"--{option}={folder / name}" for option, name in options.items()]
        self._start_daemon("munged", "--foreground", "--force", *paths)  # --force: the folder may be open to others
        _wait_for("the socket of munged", (folder / "socket").exists)

    def _start_daemon(self, name: str, *options: str) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        key = f"{name}-{options[-1]}" if "-N" in options else name
        with (self.folder / f"{key}.out").open("ab") as output:
            self.processes[key] = subprocess.Popen(
                [shutil.which(name, path=path) or name, *options],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_node_up(self, node: str) -> bool:
        for name, process in self.processes.items():
            if process.poll() is not None:
                text = (self.folder / f"{name}.out").read_text("utf-8", "replace")
                raise OSError(f"{name}: ended with status {process.returncode}: {text[-2000:]}")
        try:
            return self.run("sinfo", "--noheader", "-n", node, "-o", "%T").strip() in ("idle", "mixed", "allocated")
        except subprocess.CalledProcessError:
            return False


@contextmanager
def start_node(folder: Path, **options: int) -> Iterator[SlurmNode]:
    """Yield a cluster that is up, and stop it at the end of the with-block."""
    node = SlurmNode(folder.absolute(), **options)
    try:
        node.start()
        yield node
    finally:
        node.stop()


def _wait_for(what: str, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not is_there():
        if time.monotonic() > deadline:
            raise OSError(f"slurm: expected {what} within {SECONDS_TO_START:.0f} seconds. See the logs in its folder.")
        time.sleep(0.1)


def _read_host() -> str:
    return socket.gethostname().partition(".")[0]


def _find_free_ports(n_ports: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n_ports)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(prog="slurm_node", description="Run a command with a Slurm cluster.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if obstacle := find_obstacle():
        sys.exit(f"slurm: {obstacle}")
    with start_node(options.folder, n_nodes=options.nodes) as node:
        sys.exit(subprocess.run(options.command, env={**os.environ, **node.environment}, check=False).returncode)


if __name__ == "__main__":
    main()
