"""Claims of runs under attack: each has one owner, and what a dead or broken one left is taken over."""

import dataclasses
import multiprocessing

import pytest

from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.owner import Owner

KEYS = [f"run{i}" for i in range(50)]


def take_all(folder, barrier, answers):
    claims = Claims(folder, Owner.create())
    barrier.wait(60)
    answers.put([key for key in KEYS if claims.take(key)])


@pytest.mark.slow
def test_processes_that_race_never_share_a_run(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    racers = [context.Process(target=take_all, args=(tmp_path, barrier, answers)) for _ in range(8)]
    for racer in racers:
        racer.start()
    taken = [key for _ in racers for key in answers.get(timeout=60)]
    for racer in racers:
        racer.join(60)
    assert sorted(taken) == sorted(KEYS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 1}'])
def test_a_claim_with_a_broken_owner_is_taken_over_after_the_patience(tmp_path, content):
    Claims(tmp_path, Owner.create()).take("run")
    (tmp_path / "run" / "owner.json").write_text(content)
    patient, hasty = Claims(tmp_path, Owner.create()), Claims(tmp_path, Owner.create(), patience=-1)
    assert not patient.take("run")
    assert not patient.is_abandoned("run")
    assert not patient.take_over("run")
    assert hasty.take_over("run")
    assert hasty.is_mine("run")


def test_an_owner_of_another_machine_is_dead_only_without_beats(tmp_path):
    far = Claims(tmp_path, dataclasses.replace(Owner.create(), host="far", pid=1, process_start="0"))
    far.take("run")
    patient, hasty = Claims(tmp_path, Owner.create()), Claims(tmp_path, Owner.create(), patience=-1)
    assert not patient.is_abandoned("run")
    assert hasty.take_over("run")
    assert not far.is_mine("run")


def test_a_free_run_is_not_abandoned(tmp_path):
    claims = Claims(tmp_path, Owner.create(), patience=-1)
    assert not claims.is_abandoned("run")
    assert not claims.take_over("run")


def test_a_new_process_trusts_who_watched_the_owner_until_a_sign_of_life(tmp_path):
    far = Claims(tmp_path, dataclasses.replace(Owner.create(), host="far"))
    far.take("run")
    sign = Claims(tmp_path, Owner.create(), patience=-1).find_last_sign("run")
    assert sign is not None
    beat = tmp_path / "run" / "beat-0"
    beat.rename(beat.with_name("beat-1"))
    new = Claims(tmp_path, Owner.create(), silent={"run": sign})
    assert not new.take_over("run")
    beat.with_name("beat-1").rename(beat)
    assert new.take_over("run")
    assert not Claims(tmp_path, Owner.create(), silent={"run": sign}).take_over("run")  # it has another owner now
