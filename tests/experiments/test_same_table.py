"""One table of 3 methods, 2 datasets, 3 shots and 3 seeds: killed twice, it is the same by any scheduler."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vlprompt.cli.app import main
from vlprompt.results.run_folder import find_run_folders

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.slurm_node import find_obstacle, start_node

AXES = "method=coop,kgcoop,tip_adapter", "dataset=digits,glyphs", "shots=1,2,4", "seed=1,2,3", "train.epochs=3"
WAYS = {"one": [], "four": ["--jobs", "4"], "ray": ["--on", "ray", "--jobs", "2"], "slurm": ["--on", "slurm"]}
N_RUNS = 54
KILLED_AT = 6, 27
SECONDS = 900  # far above what it takes: nothing waits for ever
FILES = "prompt.safetensors", "answers.safetensors"
pytestmark = pytest.mark.slow


def begin(out, way, **environment):
    code = "from vlprompt.cli.app import main; main()"
    words = [sys.executable, "-P", "-c", code, "sweep", *AXES, "--out", str(out), "--save-every", "0.2", *WAYS[way]]
    log = out.with_suffix(".log").open("a")
    variables = {**os.environ, **environment}
    return subprocess.Popen(words, stdout=log, stderr=log, env=variables, start_new_session=True)


def count_results(out):
    return len(list(out.glob("*/result.json")))


def end(process, out):
    try:
        assert process.wait(SECONDS) == 0, out.with_suffix(".log").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def kill_after(process, out, n_results):
    deadline = time.monotonic() + SECONDS
    while count_results(out) < n_results and process.poll() is None:
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()
        time.sleep(0.05)
    assert process.poll() is None, f"ended before it was killed: {out.with_suffix('.log').read_text()}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_table(out):
    """The rows of `vlprompt table`, less what they cost."""
    path = out.with_suffix(".csv")
    with pytest.raises(SystemExit):
        main(["table", str(out), "--csv", str(path)])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    costs = ("second", "memory", "mb")
    return [{key: text for key, text in row.items() if not any(cost in key.lower() for cost in costs)} for row in rows]


def read_files(out):
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in find_run_folders(out) for name in FILES}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "runs"
    end(begin(out, "one"), out)
    table = read_table(out)
    assert len(find_run_folders(out)) == N_RUNS
    assert len(table) == N_RUNS // 3  # seeds share a row
    return table, read_files(out)


@pytest.mark.parametrize("way", WAYS)
def test_killed_twice_and_resumed_the_table_is_the_same(uninterrupted, tmp_path, way):
    if way == "slurm" and (obstacle := find_obstacle()):
        pytest.skip(f"Slurm can't be started: {obstacle}")
    if way == "slurm":
        with start_node(tmp_path / "node") as node:
            out = make_table(tmp_path / "runs", way, SLURM_CONF=node.environment["SLURM_CONF"])
    else:
        out = make_table(tmp_path / "runs", way)
    assert count_results(out) == N_RUNS
    table, files = uninterrupted
    assert read_table(out) == table
    assert read_files(out) == files


def make_table(out, way, **environment):
    for n_results in KILLED_AT:
        kill_after(begin(out, way, **environment), out, n_results)
    end(begin(out, way, **environment), out)
    return out
