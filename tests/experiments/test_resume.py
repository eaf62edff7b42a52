"""A run that is killed, again and again and at any moment, ends with the bits of one that was left alone."""

import os
import random
import signal
import time

import pytest
from kills import SETTINGS, killed_until_done, outcome, start

SETTINGS += [
    "--save-every",
    "0.05",
    "train.epochs=60",
    "train.batch_size=8",
    "train.optimizer=adam",
    "task.augment=crop",
    "method.n_ctx=3",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    process = start(root)
    assert process.wait(300) == 0, process.stdout.read()
    return outcome(root)


def test_killed_in_the_middle(undisturbed, tmp_path):
    assert killed_until_done(tmp_path, [0.3, 0.1]) == 2
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_at_twenty_random_moments(undisturbed, tmp_path):
    stream = random.Random(0)
    assert killed_until_done(tmp_path, [stream.random() * 0.15 for _ in range(20)]) == 20
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(undisturbed, tmp_path):
    """What a process leaves that dies while it writes: a part of a temporary file beside the whole one.

    It is of no account.
    """
    process = start(tmp_path)
    while process.poll() is None and not list(tmp_path.glob("*/last.safetensors")):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    [last] = tmp_path.glob("*/last.safetensors")
    (last.parent / f".last.safetensors.{process.pid}").write_bytes(last.read_bytes()[:1000])
    with (last.parent / "steps.jsonl").open("a") as file:
        file.write('{"stage": 0, "epo')
    process = start(tmp_path)
    assert process.wait(300) == 0, process.stdout.read()
    assert outcome(tmp_path) == undisturbed


def test_a_second_process_keeps_out(tmp_path):
    first = start(tmp_path, "train.epochs=5000")
    while first.poll() is None and not list(tmp_path.glob("*/last.safetensors")):
        time.sleep(0.005)
    second = start(tmp_path, "train.epochs=5000")
    text = second.communicate(timeout=120)[0]
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "got one that another process has locked. Wait for it, or name another folder." in " ".join(text.split())
