"""A run that is killed, again and again and at any moment, ends with the bits of one that was left alone."""

import random

import pytest
from kills import SETTINGS, end, killed_until_done, outcome, start

SETTINGS += [
    "train.epochs=20",
    "train.batch_size=8",
    "train.optimizer=adam",
    "task.augment=crop",
    "method.n_ctx=3",
]
STEPS = 100


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    status, said = end(start(root))
    assert status == 0, said
    found = outcome(root)
    assert len(found[-1].splitlines()) == STEPS
    return found


def test_killed_in_the_middle(undisturbed, tmp_path):
    killed_until_done(tmp_path, ["0/33/loss", "0/70/end"])
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_at_twenty_random_moments(undisturbed, tmp_path):
    stream = random.Random(0)
    steps = sorted(stream.sample(range(3, STEPS, 4), 20))
    moments = [f"0/{step}/{stream.choice(('loss', 'end', 'state'))}" for step in steps]
    killed_until_done(tmp_path, moments, is_fresh=True)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_in_the_middle_of_a_write(undisturbed, tmp_path):
    """What a process leaves that dies while it writes: a part of a temporary file beside the whole one.

    It is of no account.
    """
    process = start(tmp_path, KILL_AT="0/40/loss")
    assert end(process)[0] == -9
    [last] = tmp_path.glob("*/last.safetensors")
    (last.parent / f".last.safetensors.{process.pid}").write_bytes(last.read_bytes()[:1000])
    with (last.parent / "steps.jsonl").open("a") as file:
        file.write('{"stage": 0, "epo')
    status, said = end(start(tmp_path))
    assert status == 0, said
    assert outcome(tmp_path) == undisturbed


def test_a_second_process_keeps_out(tmp_path):
    first = start(tmp_path, KILL_AT="0/10/loss", HOLDS="yes")
    said = []
    while "holding" not in (said or [""])[-1]:
        said.append(first.stdout.readline())
        assert said[-1], said  # "" is the end of a process that did not come so far
    status, text = end(start(tmp_path))
    first.kill()
    end(first)
    assert status == 2
    assert "got one that another process has locked. Wait for it, or name another folder." in " ".join(text.split())
