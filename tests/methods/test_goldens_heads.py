"""Classifiers on features against numbers that the authors' own code computed, and what they make of odd data."""

import pytest
import torch
import torch.nn.functional as F
from conftest import golden, golden_cases, relative

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.feature_statistics import compute_channel_similarity
from vlprompt.methods.ape import TRAINED_CRITERION
from vlprompt.methods.gda import ALPHAS
from vlprompt.methods.lpplus import build_probe, compute_gradient, iter_epochs
from vlprompt.methods.proker import compute_kernel
from vlprompt.runtime.seeding import make_generator

PIXELS = Preprocessing((1, 1))


class FeatureTower:
    """An image tower whose pixels are the features."""

    device = torch.device("cpu")

    def __init__(self, width):
        self.feature_dim = width

    def __call__(self, images):
        return images.pixels(PIXELS)


def build_clip(texts, scale=100.0):
    """A CLIP whose class texts have these features, by name."""
    towers = FeatureTower(len(next(iter(texts.values())))), lambda names: torch.stack([texts[n] for n in names])[None]
    return Clip(*towers, scale, "features")


def build_split(views, labels, names, augment="crop"):
    """Images that have the features (V, N, E), each augmentation in turn."""
    counts = {}

    def item(i):
        def pixels(look, augmentation):
            counts[i] = counts.get(i, -1) + 1
            return views[counts[i] % len(views)][i]

        return ImageItem(f"features/{id(views)}/{i}", pixels)

    return Split(tuple(item(i) for i in range(len(labels))), tuple(labels.tolist()), names, augment=augment)


class Case:
    """The data of a golden vector as a lesson, and what its method answers."""

    def __init__(self, name):
        self.told, self.arrays = golden(name)
        a = self.arrays
        self.hyper = self.told["hyperparameters"]
        self.names = self.build_names("base", len(a["text"]))
        self.new_names = self.build_names("new", len(a.get("text_new", ())))
        texts = torch.cat([a["text"], a["text_new"]]) if self.new_names else a["text"]
        self.clip = build_clip(dict(zip(map(str, (*self.names, *self.new_names)), texts, strict=True)))
        views = a["keys"] if "keys" in a else a["features"]
        views = views if views.ndim == 3 else views[None]
        self.train = build_split(views, a["labels"], self.names)
        self.val = build_split(a["val_features"][None], a["val_labels"], self.names) if "val_labels" in a else None

    @staticmethod
    def build_names(kind, n):
        return tuple(ClassName(f"{kind} {i}", template="{name}") for i in range(n))

    def learn(self, method, **changes):
        lesson = Lesson(self.train, self.val)
        method.begin_lesson(lesson, make_generator(0))
        for name, value in changes.items():
            getattr(method, name).data.copy_(value)
        method.end_lesson(lesson)
        return method

    def answer(self, method, features, names=None):
        names = names or self.names
        labels = torch.zeros(len(features), dtype=torch.long)
        inputs = next(build_split(features[None], labels, names).batches(len(labels))).inputs
        with torch.no_grad():
            return method.eval()(inputs, method.prepare(names, method.precompute(names))).logits

    def relative(self, **pairs):
        """The largest relative error of arrays by name."""
        errors = {name: relative(value.float(), self.arrays[name].float()) for name, value in pairs.items()}
        assert max(errors.values()) < 1e-4, errors
        print(self.told["name"], max(errors.values()))


def test_these_vectors_are_taken():
    kinds = {name.partition("-")[0] for name in golden_cases("ape", "gda", "lpplus", "proker")}
    assert kinds == {"ape", "gda", "lpplus", "proker"}


# --- GDA ---


@pytest.mark.parametrize("name", golden_cases("gda", suits=lambda told: "new_classes" not in told["hyperparameters"]))
def test_gda(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    assert pytest.approx(h["alphas"]) == list(ALPHAS)
    method = case.learn(m.GDA(case.clip, augmentations=h["views"], logit_scale=h["scale"]))
    text, weight, bias = method.precompute(case.names)
    means = method.sums / method.counts[:, None]
    case.relative(means=means, precision=method.precision, weight=weight, bias=bias, alpha=method.chosen_alpha)
    case.relative(text=text, gda_logits_test=a["test_features"].double() @ weight.T + bias)
    logits = case.answer(method, a["test_features"])
    case.relative(logits=logits)
    right = (logits.argmax(1) == a["test_labels"]).float().mean() * 100
    assert float(right) == pytest.approx(float(a["accuracy"]))


@pytest.mark.parametrize("name", golden_cases("gda", suits=lambda told: "new_classes" in told["hyperparameters"]))
def test_gda_of_new_classes(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    settings = {"n_neighbors": h["neighbours"], "text_copies": h["copies_of_text"], "logit_scale": h["scale"]}
    method = case.learn(m.GDA(case.clip, "base-to-new", augmentations=h["views"], **settings))
    _, weight, bias = method.precompute(case.names)
    case.relative(precision=method.precision, weight=weight, bias=bias, alpha=method.chosen_alpha)
    case.relative(logits=case.answer(method, a["test_features"]))
    similarity = a["text_new"] @ method.features.T
    assert torch.equal(similarity.topk(h["neighbours"]).indices, a["neighbours"])
    _, weight, bias = method.precompute(case.new_names)
    case.relative(weight_new=weight, bias_new=bias)
    case.relative(logits_new=case.answer(method, a["test_features_new"], case.new_names))
    _, joint, _ = method.precompute((*case.new_names, *case.names))
    assert torch.equal(joint[: len(weight)], weight)  # the classes of the lesson keep theirs


# --- ProKeR ---


@pytest.mark.parametrize("name", golden_cases("proker"))
def test_proker(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    fixed = dict(zip(("beta", "lmbda"), h["fixed_by_shots"].get(str(h["shots"]), (1.7, 0.1)), strict=True))
    grids = {"beta_grid": h["beta_grid"], "lmbda_grid": h["lmbda_grid"]}
    settings = {"augmentations": h["views"], "logit_scale": 1.0}
    method = case.learn(m.ProKeR(case.clip, **fixed, **grids, **settings))
    beta, lmbda = method.beta_lmbda
    kernel = compute_kernel(method.features, method.features, float(beta))
    kernel_test = compute_kernel(a["test_features"], method.features, float(beta))
    case.relative(beta=beta, lmbda=lmbda, coefficients=method.coefficients, kernel_support=kernel)
    text, coefficients = method.precompute(case.names)
    case.relative(kernel_test=kernel_test, logits_zeroshot=a["test_features"] @ text.T)
    assert torch.equal(coefficients, method.coefficients)
    case.relative(logits=case.answer(method, a["test_features"]))


# --- LP++ ---


@pytest.mark.parametrize("name", golden_cases("lpplus"))
def test_lpplus(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    x, labels, text = a["features"], a["labels"], a["text"]
    start = build_probe(x, labels, text, a["param.bias"])
    case.relative(**{f"param.{name}": value for name, value in start._asdict().items()})
    gradient = compute_gradient(start, x, x @ text.T, labels)
    case.relative(**{f"grad.{name}": value for name, value in gradient._asdict().items()})
    logits = start.answer(x, x @ text.T)
    case.relative(logits=logits, loss=F.cross_entropy(logits, labels))
    probes = list(iter_epochs(start, x, x @ text.T, labels, h["epochs"]))
    for place, probe in {"after": probes[0], "epoch10": probes[9], "epoch20": probes[19], "final": probes[-1]}.items():
        case.relative(**{f"{place}.{name}": value for name, value in probe._asdict().items()})
    losses = [F.cross_entropy(p.answer(x, x @ text.T), labels) for p in (start, *probes[:-1])]
    case.relative(losses=torch.stack(losses))
    assert torch.equal(probes[8].alpha, start.alpha)


@pytest.mark.parametrize("name", golden_cases("lpplus"))
def test_lpplus_takes_the_best_epoch(name, monkeypatch):
    case = Case(name)
    a = case.arrays
    monkeypatch.setattr("vlprompt.methods.lpplus.draw_uniform", lambda *_: a["param.bias"])
    method = case.learn(m.LPPlusPlus(case.clip, case.hyper["epochs"]))
    case.relative(logits_test=case.answer(method, a["test_features"]))
    x, text = a["features"], a["text"]
    start = build_probe(x, a["labels"], text, a["param.bias"])
    probes = list(iter_epochs(start, x, x @ text.T, a["labels"], case.hyper["epochs"]))
    assert relative(method.weight, probes[int(a["best_epoch"])].weight) < 1e-4


# --- APE ---


@pytest.mark.parametrize("name", golden_cases("ape", suits=lambda told: "search_scale" in told["hyperparameters"]))
def test_ape(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    settings = {"search_scale": h["search_scale"], "search_steps": h["search_step"], "criterion": h["w"]}
    starts = {setting: h[f"init_{setting}"] for setting in ("alpha", "beta", "gamma")}
    method = m.APE(case.clip, channels=(h["channels"] / h["dim"], 1.0), **settings, **starts)
    method.begin_lesson(Lesson(case.train), make_generator(0))
    case.relative(keys=method.keys, divergence=method.divergence)
    assert torch.equal(method.chosen, a["channels"])
    similarity = compute_channel_similarity(a["text"], a["keys"], a["labels"])
    case.relative(similarity=similarity, variance=a["text"].var(0))
    case.relative(logits_before_search=case.answer(method, a["test_features"]))
    method.end_lesson(Lesson(case.train, case.val))
    alpha, beta, gamma = method.alpha_beta_gamma
    case.relative(alpha=alpha, beta=beta, gamma=gamma, logits=case.answer(method, a["test_features"]))


@pytest.mark.parametrize("name", golden_cases("ape", suits=lambda told: "search_scale" not in told["hyperparameters"]))
def test_ape_with_training(name):
    case = Case(name)
    h, a = case.hyper, case.arrays
    method = m.APE(case.clip, True, h["alpha"], h["beta"], channels=(1.0, h["channels"] / h["dim"]))
    method.begin_lesson(Lesson(case.train), make_generator(0))
    assert tuple(h["w"]) == TRAINED_CRITERION
    assert torch.equal(method.chosen, a["channels"])
    parameters = {"value_weights": method.value_weights, "res": method.residual}
    assert {id(p) for p in parameters.values()} == {id(p) for p in method.parameters()}
    assert [float(p.detach().unique()) for p in parameters.values()] == [1.0, 0.0]
    for name, p in parameters.items():
        p.data.copy_(a[f"param.{name}"])
    features = build_split(a["batch_features"][None], a["batch_labels"], case.names)
    terms, out = method.train().loss_terms(next(features.batches(99)), method.precompute(case.names))
    case.relative(logits_train=out.logits, loss=terms["ce"][0], logits=case.answer(method, a["test_features"]))
    terms["ce"][0].backward()
    case.relative(**{f"grad.{name}": p.grad for name, p in parameters.items()})
    torch.optim.SGD(method.parameters(), case.told["sgd"]["lr"]).step()
    case.relative(**{f"after.{name}": p for name, p in parameters.items()})
    case.relative(logits_after=case.answer(method, a["test_features"]))
