"""Kill by signal 9 at file events and at moments; the same command then ends as an undisturbed one does."""

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz import scenarios
from fuzz.case import Case
from fuzz.forks import begin_process, end_process, fork
from fuzz.guard import install
from fuzz.sandbox import Sandbox, shorten

LOCK = ".lock"  # an empty file that a killed process leaves, and that holds nobody
VOLATILE = (  # the witnesses are files of the sandbox, whose place differs
    "seconds",
    "peak_memory_mb",
    "feature_cache_misses",
    "feature_cache_hits",
    "environment",
    "memory",
    "witnesses",
    "checksum",
)


@dataclass(frozen=True)
class End:
    """How a process ended.

    Args:
        status: its exit status; the negative number of the signal that ended it.
        text: what it printed.
        n_changes: changes of files.
        n_events: audit events of any kind.
        seconds: how long it took.
    """

    status: int
    text: str
    n_changes: int
    n_events: int
    seconds: float


def start(words: list[str], box: Sandbox, kill_at: int | None, any_event: bool) -> tuple[int, Path]:
    """Fork a process that gives a command; return its number and where it prints."""
    log = box.root / "log"
    log.unlink(missing_ok=True)
    return fork(lambda: _work(words, box, log, kill_at, any_event)), log


def _work(words: list[str], box: Sandbox, log: Path, kill_at: int | None, any_event: bool) -> int:
    """Give the command in the forked process, and end as a process ends."""
    from vlprompt.cli.app import main

    begin_process(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    os.environ.update(box.environment())
    os.chdir(box.work)
    guard, status = install(), 0
    guard.allowed[:], guard.kill_at, guard.counts_all = ["/"], kill_at, any_event
    guard.n_events, guard.n_changes, guard.is_active = 0, 0, True
    try:
        main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    end_process()
    guard.is_active = False
    (box.root / "events").write_text(f"{guard.n_changes} {guard.n_events}")
    (box.root / "modules").write_text("\n".join(sys.modules))
    return status


def give(words: list[str], box: Sandbox, kill_at: int | None = None, any_event: bool = False, after: float = 0) -> End:
    """Give a command in a process of its own; kill it at an event, or after so many seconds; wait for its end."""
    begin = time.monotonic()
    process, log = start(words, box, kill_at, any_event)
    if after:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    seconds = time.monotonic() - begin
    counts = box.root / "events"
    n_changes, n_events = map(int, counts.read_text().split()) if status >= 0 and counts.exists() else (0, 0)
    counts.unlink(missing_ok=True)
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return End(status, text, n_changes, n_events, seconds)


def drop_volatile(value: Any) -> Any:
    """Return a value without times, memory and the machine."""
    if isinstance(value, dict):
        return {key: drop_volatile(one) for key, one in value.items() if key not in VOLATILE}
    return [drop_volatile(one) for one in value] if isinstance(value, list) else value


def read_tree(root: Path) -> dict[str, Any]:
    """Return the contents of all files below a folder, without what differs from process to process."""
    tree = dict[str, Any]()
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name == LOCK:
            continue
        data: Any = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = [data] if path.suffix == ".json" else data.splitlines()
            data = [drop_volatile(json.loads(line)) for line in lines]
        elif path.suffix == ".yaml" and path.name != "config.yaml":
            import yaml

            data = drop_volatile(yaml.safe_load(data))
        tree[str(path.relative_to(root))] = data
    return tree


def import_modules(names: list[str]) -> None:
    """Import what a process imported; forks of this one then need not."""
    for name in names:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


class Killer:
    """Kills the commands of scenarios, each of which was given once without being disturbed.

    Args:
        root: a temporary folder.
        seed: of the cases.
    """

    def __init__(self, root: Path, seed: int):
        self.root, self.seed, self.n_kills = root, seed, 0
        self.undisturbed: dict[str, tuple[dict[str, Any], End]] = {}

    def prepare(self, name: str, build: Callable[[Sandbox], list[str]]) -> tuple[dict[str, Any], End]:
        """Return what a scenario comes to, and how long it takes, when nothing kills it."""
        if name not in self.undisturbed:
            box = Sandbox(self.root, Case(f"undisturbed-{name}", self.seed, 0))
            end = give(build(box), box)
            assert end.status == 0, end
            import_modules((box.root / "modules").read_text().split())  # once, for all processes to come
            if name == "runs":  # the first one, which had yet to import them
                box = Sandbox(self.root, Case(f"undisturbed-{name}", self.seed, 1))
                end = give(build(box), box)
            self.undisturbed[name] = read_tree(box.out), end
            box.close()
        return self.undisturbed[name]

    def run_case(self, case: Case, box: Sandbox) -> None:
        """Kill the command of one scenario a few times, then let it end."""
        stream = case.stream()
        name, build = list(scenarios.SCENARIOS.items())[case.index % len(scenarios.SCENARIOS)]
        expected, whole = self.prepare(name, build)
        words = build(box)
        box.commands.append("vlprompt " + " ".join(words))
        for _ in range(stream.choice((1, 1, 2, 3))):
            finished = self.finished(box)
            self.kill(stream, box, words, whole)
            if any(self.finished(box).get(path) != content for path, content in finished.items()):
                box.violate("lost", "a finished result changed when the command was killed")
        end = give(words, box)
        if end.status != 0 or "Traceback" in end.text:
            box.violate("dead end", f"after the kills: exit status {end.status}: {shorten(end.text[-600:])}")
        elif (tree := read_tree(box.out)) != expected:
            names = [path for path in sorted(tree.keys() | expected.keys()) if tree.get(path) != expected.get(path)]
            box.violate("another result", f"after the kills {names[:5]} differ from an undisturbed run")
        box.check_leftovers(box.out, but=LOCK)

    def finished(self, box: Sandbox) -> dict[Path, bytes]:
        """Return the results that are there, but for those of a search's points, which its grid takes over."""
        paths = (path for path in box.out.rglob("result.json") if "current_run" not in path.parts)
        return {path: path.read_bytes() for path in paths}

    def kill(self, stream: random.Random, box: Sandbox, words: list[str], whole: End) -> None:
        """Give the command and kill it: before a change of a file, at another event, or at a moment."""
        kind = stream.choice(("change", "change", "event", "moment"))
        if kind == "moment":
            end, text = give(words, box, after=stream.uniform(0.01, whole.seconds)), "a moment"
        else:
            place = stream.randrange(whole.n_changes if kind == "change" else whole.n_events)
            end, text = give(words, box, place, kind == "event"), f"{kind} {place}"
        self.n_kills += end.status == -signal.SIGKILL
        box.commands.append(f"# {'killed at' if end.status < 0 else 'ended before'} {text}")
        if end.status not in (0, -signal.SIGKILL):
            box.violate("dead end", f"before the next kill: exit status {end.status}: {shorten(end.text[-600:])}")


def run_kills(n: int, seed: int, index: int | None, report: Any) -> None:
    """Run cases until n processes were killed; or the one of an index."""
    import torch

    from vlprompt.cli import app  # noqa: F401  # what is imported here is imported once for all forks

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vlprompt-kills-") as folder, scenarios.serve(Path(folder)):
        killer, place = Killer(Path(folder).resolve(), seed), index or 0
        while killer.n_kills < n if index is None else place == index:
            case = Case("kills", seed, place)
            box = Sandbox(killer.root, case)
            try:
                killer.run_case(case, box)
            finally:
                box.close()
            for violation in box.violations:
                print(violation.format(), flush=True)
            report.n_cases["kills"] += 1
            report.violations += box.violations
            place += 1
        report.n_kills = killer.n_kills
