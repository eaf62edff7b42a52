"""Each stream method is killed at many moments of a stream, and goes on each time: it ends with the same bits.

The processes are forks that kill themselves, so that nothing is tidied up.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import Fork
from kills import same_but_for_time
from stream_methods import MAKERS

import vlprompt
from vlprompt.core.batch import Split
from vlprompt.data.loading import open_data
from vlprompt.experiments.events import EvaluationProgress, StageTested, StepDone
from vlprompt.tasks import Continual

TRAIN = vlprompt.TrainConfig(
    epochs=2, batch_size=4, optimizer="adam", lr=0.01, schedule="constant", warmup=0, drop_last=False
)
IS_TRAINED = [name for name in MAKERS if name not in ("simplecil", "fecam", "gda")]  # by steps
HAS_STATISTICS = [name for name in MAKERS if name not in ("sdlora", "lae", "maple")]  # passes that are no steps
IS_ALIGNED = ("slca", "slcapp", "mos", "tuna", "hideprompt")


# a moment -> the methods that have it; in the order in which they come
MOMENTS = {
    "training of lesson 0": IS_TRAINED,
    "writing of a state": IS_TRAINED,
    "end of the training": MAKERS,
    "evaluation of lesson 0": MAKERS,
    "between two lessons": MAKERS,
    "statistics of lesson 1": HAS_STATISTICS,
    "alignment of lesson 1": IS_ALIGNED,
    "end of lesson 1": MAKERS,
    "after the tests of lesson 1": MAKERS,
    "training of the last lesson": [name for name in IS_TRAINED if name != "aper"],
    "evaluation of the last lesson": MAKERS,
    "writing of the result": MAKERS,
}
EVENTS = {
    "training of lesson 0": lambda event, n: isinstance(event, StepDone) and (event.lesson, event.step) == (0, 2),
    "evaluation of lesson 0": lambda event, n: isinstance(event, EvaluationProgress) and n == 0,
    "after the tests of lesson 1": lambda event, n: isinstance(event, StageTested) and event.lesson == 1,
    "training of the last lesson": lambda event, n: (
        isinstance(event, StepDone) and (event.lesson, event.step) == (2, 1)
    ),
    "evaluation of the last lesson": lambda event, n: isinstance(event, EvaluationProgress) and n == 2,
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(method, moment):
    """Have this process killed at a moment; returns what is to hear of events."""
    place = {"lesson": 0, "inside": ""}
    replaced, grad, batches = Path.replace, torch.autograd.grad, Split.batches
    begin_lesson, end_lesson = method.begin_lesson, method.end_lesson

    def within(name, call):
        def enter(lesson, *rest):
            is_real = len(lesson.train) > 0  # a resumed run begins earlier lessons without items
            place["lesson"] = lesson.index
            if is_real and (moment, name, lesson.index) in (
                ("end of the training", "end", 0),
                ("between two lessons", "begin", 1),
            ):
                kill()
            place["inside"] = name if is_real else ""
            call(lesson, *rest)
            place["inside"] = ""
            if is_real and (moment, name, lesson.index) == ("end of lesson 1", "end", 1):
                kill()

        return enter

    def rename(path, target):
        wanted = {"writing of a state": "last.safetensors", "writing of the result": "result.json"}.get(moment)
        if Path(target).name == wanted:
            kill()
        return replaced(path, target)

    def differentiate(*arguments, **options):
        if (moment, place["inside"], place["lesson"]) == ("alignment of lesson 1", "end", 1):
            kill()
        return grad(*arguments, **options)

    def iterate(split, *arguments, **options):
        for batch in batches(split, *arguments, **options):
            yield batch
            if moment == "statistics of lesson 1" and place["inside"] and place["lesson"] == 1:
                kill()

    vars(method).update(begin_lesson=within("begin", begin_lesson), end_lesson=within("end", end_lesson))
    Path.replace, torch.autograd.grad, Split.batches = rename, differentiate, iterate
    comes = EVENTS.get(moment, lambda event, n: False)
    return lambda event: kill() if comes(event, place["lesson"]) else None


def run_stream(name, moment, folder):
    """Run a stream of three lessons in this process, until its moment."""
    torch.set_num_threads(1)
    clip, data = vlprompt.load("glyph/random"), open_data("digits")
    data = replace(data, test=data.test.select(range(0, len(data.test), 60)))
    method = MAKERS[name](clip)
    task = Continual(data, shots=2, stages=3)
    vlprompt.run(method, task, TRAIN, folder, save_every=0, on_event=arm(method, moment))


def outcome_of(name, moment, folder):
    fork = Fork(run_stream, name, moment, folder)
    said = fork.communicate()[0]
    return fork.returncode, said


def kill_at(name, moments, folder):
    for moment in moments:
        status, said = outcome_of(name, moment, folder / "killed")
        assert status == -signal.SIGKILL, (moment, said)
    for part in ("killed", "whole"):
        status, said = outcome_of(name, "", folder / part)
        assert status == 0, said
    same_but_for_time(folder / "whole", folder / "killed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gda", "maple"])  # the others have a quick test beside their own
def test_killed_in_the_tests_of_a_lesson_it_ends_with_the_same_bits(name, tmp_path):
    kill_at(name, ["evaluation of lesson 0"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_killed_at_every_moment_it_ends_with_the_same_bits(name, tmp_path):
    moments = [moment for moment, methods in MOMENTS.items() if name in methods]
    assert len(moments) >= 7
    kill_at(name, moments, tmp_path)
