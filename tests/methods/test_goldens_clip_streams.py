"""Streams on a CLIP with class texts against numbers that the authors' own code computed: RAPF, PROOF and ENGINE."""

import json

import pytest
import torch
from shared import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.methods import engine as engine_file
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


# --- PROOF ---


def of_proof(method, name):
    """Our parameter that is the authors' `name`."""
    kind, _, rest = name.partition(".")
    if kind == "logit_scale":
        return method.log_scale
    if kind == "context_prompts":
        return method.contexts[int(rest)]
    if kind == "sel_attn":
        part, _, rest = rest.partition(".")
        part = {"w_qs": "query", "w_ks": "key", "w_vs": "value", "fc": "out", "layer_norm": "norm"}[part]
        return getattr(getattr(method.fusion, part), rest)
    maps = {"projs_img": method.image_maps, "projs_text": method.text_maps}[kind]
    place, _, rest = rest.partition(".")
    return getattr(maps[int(place)], rest)


def learn_proof(stream, method, t):
    a, lesson = stream.of(t), stream.lesson(t)
    method.train().begin_lesson(lesson, make_generator(t))
    for key in [k for k in a if k.startswith("param.")]:
        of_proof(method, key.removeprefix("param.")).data.copy_(a[key])
    means = method.sums / method.counts[:, None]
    stream.compare(t, prototypes=means)
    terms, out = method.loss_terms(stream.batch(t), method.precompute(lesson.train.names))
    total = sum(value for value, _ in terms.values())
    total.backward()
    theirs = {"loss_text": "ce", "loss_clip": "contrast", "loss_proto": "prototypes"}
    stream.compare(t, loss=total, **{name: terms[ours][0] for name, ours in theirs.items()})
    stream.errors[f"{t} logits"] = relative(out.logits, a["train.logits"][: len(a["labels"])])
    stream.compare(t, **{k: of_proof(method, k.removeprefix("grad.")).grad for k in a if k.startswith("grad.")})
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p -= stream.hyper["train_lr"] * p.grad
            else:
                assert p.grad is None
            p.grad = None
    stream.compare(t, **{k: of_proof(method, k.removeprefix("after.")) for k in a if k.startswith("after.")})
    method.end_lesson(lesson)
    stream.compare(t, **{"eval.logits_each": stream.answer(method, t)})


@pytest.mark.parametrize("case", golden_cases("proof"))
def test_proof(authors_clip, case):
    stream = Stream(case)
    h = stream.hyper
    templates = [text.replace("{}", "{name}") for text in h["templates"]]
    method = m.PROOF(authors_clip, h["context_per_task"], h["memory_per_class"], 0.0, templates)
    for t in range(len(stream.sizes)):
        if t:
            memory, pixels = stream.of(t)["memory.index"], torch.cat([stream.of(k)["images"] for k in range(t)])
            wanted = authors_clip.image(images(pixels[memory], f"{case}/memory"))
            assert relative(method.exemplars.flatten(0, 1), wanted) < 1e-4
        learn_proof(stream, method, t)
    stream.require()


# --- ENGINE ---


def learn_engine(stream, method, t):
    a, lesson = stream.of(t), stream.lesson(t)
    method.train().begin_lesson(lesson, make_generator(t))
    parameters = {}
    for name, maps in (("image", method.image_maps), ("text", method.text_maps)):
        parameters |= {f"{name}.{t}.{part}": getattr(maps[t], part) for part in ("weight", "bias")}
    for name, p in parameters.items():
        p.data.copy_(a[f"param.{name}"])
    noise = {"pixels": a["aug.z"], "prototypes": a.get("proto.z", torch.zeros(0, 64))}
    method.draw_noise = lambda purpose, step, *shape: noise[purpose].view(shape)
    terms, _ = method.loss_terms(stream.batch(t), None)
    total = sum(value for value, _ in terms.values())
    total.backward()
    stream.compare(t, loss=total, loss_clip=terms["contrast"][0])
    stream.compare(t, loss_text=terms["text"][0] / method.text_weight)
    stream.compare(t, loss_image=terms["image"][0] / method.image_weight)
    stream.compare(t, **{f"grad.{name}": p.grad for name, p in parameters.items()})
    assert {id(p) for p in method.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    with torch.no_grad():
        for p in parameters.values():
            p -= stream.hyper["train_lr"] * p.grad
    stream.compare(t, **{f"after.{name}": p for name, p in parameters.items()})
    method.end_lesson(lesson)
    fixed = method.eval().precompute(stream.seen(t))
    stream.compare(t, **{"gda.W": fixed.weights.T.float(), "gda.b": fixed.biases.float()})
    stream.compare(t, proto=(method.sums / method.gaussians.counts[:, None]).float())
    stream.compare(t, **{"eval.logits": stream.answer(method, t)})
    for part, weights in (("cosine", (0.0, 0.0)), ("rerank", (1.0, 0.0))):
        settings = method.rerank_weight, method.gaussian_weight
        method.rerank_weight, method.gaussian_weight = weights
        stream.compare(t, **{f"eval.{part}": stream.answer(method, t)})
        method.rerank_weight, method.gaussian_weight = settings


@pytest.mark.parametrize("case", golden_cases("engine"))
def test_engine(authors_clip, case, tmp_path, monkeypatch):
    first = lambda sentences, labels, generator: torch.stack([sentences[row][0] for row in labels])  # noqa: E731
    monkeypatch.setattr(engine_file, "draw_sentences", first)
    stream = Stream(case)
    h, file = stream.hyper, tmp_path / "pairs.json"
    file.write_text(json.dumps(stream.told["descriptions"]))
    templates = [text.replace("{}", "{name}") for text in h["templates"]]
    method = m.ENGINE(
        authors_clip,
        str(file),
        h["text_des"],
        h["image_aug"],
        h["rerank"],
        h["stat"],
        h["rerank_top"],
        h["sample_noise"],
        templates,
    )
    assert h["aug_noise"] == engine_file.NOISE
    for t in range(len(stream.sizes)):
        learn_engine(stream, method, t)
    stream.require()
