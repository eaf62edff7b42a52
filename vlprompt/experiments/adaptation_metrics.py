"""What an adaptation is judged by while it goes on, and what it is compared with; the labels of a target end here."""

from collections.abc import Sequence
from typing import Any

import torch

from vlprompt.core.batch import Split
from vlprompt.core.introspection import clip_of
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.engine.evaluate import answers, evaluate
from vlprompt.engine.loop import Loop
from vlprompt.engine.model_selection import UNSEEN, criteria
from vlprompt.engine.train_config import Train
from vlprompt.methods.zero_shot import ZeroShot
from vlprompt.metrics import accuracy
from vlprompt.runtime import collectives
from vlprompt.runtime.seeding import number

RULES = ("val", *UNSEEN)  # that a method could be chosen by without the target's labels
Record = dict[str, float]


@torch.no_grad()
def epoch_record(stage: Stage, train: Train, seed: int, loop: Loop) -> Record:
    """Of the epoch that has just ended: each rule's score, the test's accuracy, and how good its pseudo-labels were.

    Percent, but entropy and density (nats); epoch and step count from 1.
    """
    method, lesson, test = loop.method, stage.lesson, stage.tests["target"]
    was = method.training
    method.eval()
    names = lesson.train.names  # those of the target too
    fixed = loop.known(names)
    how: dict[str, Any] = {"micro_batch": train.micro_batch, "prepared": method.prepare(names, fixed)}
    unseen = lesson.unlabelled
    seen = None if unseen is None else torch.cat(list(answers(method, unseen, **how)))
    found = {"epoch": float(loop.cursor.epoch), "step": float(loop.cursor.step)}
    found |= criteria(method, lesson, RULES, fixed=fixed, seen=seen, **how)
    if seen is None or stage.truth is not test:  # transductive: these were all of them
        seen = torch.cat(list(answers(method, test, **how)))
    found["target"] = accuracy(seen.argmax(1), torch.tensor(test.labels))
    if stage.truth is not None:
        found |= _pseudo(stage.truth, stage, train, seed, loop)
    method.train(was)
    return found


def _pseudo(truth: Split, stage: Stage, train: Train, seed: int, loop: Loop) -> Record:
    """Coverage and precision of the method's own pseudo-labels, on the views of this epoch if it learns from views."""
    method, lesson = loop.method, stage.lesson
    assert lesson.unlabelled is not None, "there is a truth of it"
    labels = {item.key: label for item, label in zip(truth.items, truth.labels, strict=True)}
    fixed = loop.known(lesson.train.names)
    if method.taught(lesson).unlabelled is None:
        batches = lesson.unlabelled.batches(100)
    else:
        steps = loop.cursor.step - loop.begun
        drawn = lesson.unlabelled.drawn(train.batch, number(seed, lesson.index), train.views, loop.begun)
        batches = (next(drawn) for _ in range(steps))
    right, kept, every = 0, 0, 0
    with collectives.alike():
        for whole in batches:
            for part in whole.split(train.micro_batch):
                guess = method.guess(part.inputs, fixed)
                if guess is None:
                    return {}
                p, sure = (t.cpu() for t in guess)
                told = torch.tensor([labels[str(key).partition("|")[0]] for key in part.inputs.keys])
                every, kept = every + len(told), kept + int(sure.sum())
                right += int((p.argmax(1) == told)[sure].sum())
    return {"coverage": 100 * kept / every} | ({"precision": 100 * right / kept} if kept else {})


def kept_by(records: Sequence[Record]) -> Record:
    """The test accuracy of the epoch that each rule would keep; `oracle` is the best there was."""
    targets = [record["target"] for record in records]
    found = {"last": targets[-1], "oracle": max(targets)}
    for rule in RULES:
        if all(rule in record for record in records):
            found[rule] = max(records, key=lambda record: record[rule])["target"]  # the first of equally good ones
    return found


def beside(method: Method, stage: Stage, records: Sequence[Record], micro_batch: int | None) -> dict[str, Record]:
    """What an adaptation's scores are read beside; nothing of other stages.

    zero_shot (of the target, zero_shot source): the frozen CLIP that the method stands on, by the hand-written texts of
    the dataset; rules: what each would have kept; pseudo: coverage and precision in the last epoch.
    """
    found, clip = dict[str, Record](), clip_of(method)
    if stage.compared and clip is not None:
        for name, test in stage.tests.items():
            numbers = evaluate(ZeroShot(clip), test, micro_batch=micro_batch).numbers
            found["zero_shot" if name == "target" else f"zero_shot {name}"] = numbers
    if records:
        found["rules"] = kept_by(records)
        found["pseudo"] = {k: v for k, v in records[-1].items() if k in ("coverage", "precision")}
    return {name: numbers for name, numbers in found.items() if numbers}
