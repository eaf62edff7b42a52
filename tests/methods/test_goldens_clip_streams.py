"""Streams on a CLIP with class texts against numbers that the authors' own code computed: RAPF, PROOF and ENGINE."""

import pytest
import torch
from conftest import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.methods import rapf as rapf_file
from vlprompt.runtime.seeding import make_generator


class Stream:
    """The lessons of a golden vector, in turn.

    The authors' texts have underscores in names as they are. Here they are spaces, so that the names have the wide form
    of the sign, which the tokenizer reads as the plain one.
    """

    def __init__(self, case):
        self.case, (self.told, self.arrays) = case, golden(case)
        self.hyper, self.sizes = self.told["hyperparameters"], self.told["hyperparameters"]["task_sizes"]
        self.names = tuple(ClassName(n.replace("_", "＿"), n) for n in self.told["classnames"])
        self.errors = {}

    def of(self, t):
        """The arrays of a task by their names."""
        start = f"task{t}."
        return {k.removeprefix(start): v for k, v in self.arrays.items() if k.startswith(start)}

    def seen(self, t):
        return self.names[: sum(self.sizes[: t + 1])]

    def lesson(self, t):
        """A lesson, whose images are those of the task in their order."""
        pixels, n_before = self.of(t)["images"], sum(self.sizes[:t])
        items = [ImageItem(f"{self.case}/{t}/{i}", lambda look, view, p=p: p) for i, p in enumerate(pixels)]
        labels = (self.of(t)["labels"] - n_before).tolist()
        train = Split(tuple(items), tuple(labels), self.seen(t)[n_before:])
        return Lesson(train, index=t, total=len(self.sizes))

    def batch(self, t):
        train = self.lesson(t).train
        return Batch(images(self.of(t)["images"], f"{self.case}/{t}"), torch.tensor(train.labels), train.names)

    def answer(self, method, t):
        inputs, names = images(self.arrays["test.images"], f"{self.case}/test"), self.seen(t)
        method.eval()
        with torch.no_grad():
            return method(inputs, method.prepare(names, method.precompute(names))).logits

    def compare(self, t, **pairs):
        """Compare values with the task's arrays by name."""
        arrays = self.of(t)
        self.errors |= {f"{t} {k}": relative(v.detach(), arrays[k]) for k, v in pairs.items()}

    def require(self):
        assert max(self.errors.values()) < 1e-4, {k: v for k, v in self.errors.items() if v >= 1e-4}


def test_these_vectors_are_taken():
    assert {name.partition("-")[0] for name in golden_cases("rapf", "proof", "engine")} == {"rapf", "proof", "engine"}


# --- RAPF ---


def learn_rapf(stream, method, t):
    """The task's step with the authors' draws."""
    a, lesson = stream.of(t), stream.lesson(t)
    method.train().begin_lesson(lesson, make_generator(t))
    method.weight.data.copy_(a["param.W"])
    if "replay.z" in a:
        method.draw = lambda replay, step: (a["replay.classes"], a["replay.z"], a["edge.z"])
    fixed = method.precompute(lesson.train.names)
    if "edge.pairs" in a:
        assert torch.equal(method.build_replay().pairs, a["edge.pairs"])
    terms, out = method.loss_terms(stream.batch(t), fixed)
    total = sum(value for value, _ in terms.values())
    total.backward()
    stream.compare(t, loss=total, loss_ce=terms["ce"][0])
    stream.errors[f"{t} logits"] = relative(out.logits, a["train.logits"][: len(a["labels"])])
    stream.compare(t, **{"grad.W": method.weight.grad, "text_features_raw": method.replay.text})
    with torch.no_grad():
        method.weight -= stream.hyper["train_lr"] * method.weight.grad
    method.weight.grad = None
    stream.compare(t, **{"after.W": method.weight})
    method.end_lesson(lesson)
    n_before, n = sum(stream.sizes[:t]), sum(stream.sizes[: t + 1])
    g = method.gaussians
    stream.compare(t, W=method.weight, mean=g.means[n_before:n, 0], cov=g.spreads[n_before : n_before + 1])
    stream.compare(t, **{"eval.logits": stream.answer(method, t)})


@pytest.mark.parametrize("case", golden_cases("rapf"))
def test_rapf(authors_clip, case):
    stream = Stream(case)
    h = stream.hyper
    method = m.RAPF(
        authors_clip,
        draws_per_class=h["replay_per_class"],
        draws_per_pair=h["edge_per_pair"],
        threshold=h["threshold"],
        mix_bias=h["mix_bias"],
        shrinkage=h["shrinkage"],
    )
    assert method.template == h["template"].replace("{}", "{name}")
    assert h["margin"] == rapf_file.MARGIN
    for t in range(len(stream.sizes)):
        learn_rapf(stream, method, t)
    stream.require()
