"""Classifiers on features against numbers that the authors' own code computed, and what they make of odd data."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from shared import golden, golden_cases, relative

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.feature_statistics import compute_channel_similarity
from vlprompt.methods._support import build_grid, compute_kernel, search_cache
from vlprompt.methods.ape import TRAINED_CRITERION
from vlprompt.methods.gda import ALPHAS
from vlprompt.methods.lpplus import build_probe, compute_gradient, iter_epochs
from vlprompt.methods.proker import BY_SHOTS
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing.case import MethodCase
from vlprompt.testing.suite import CHECKS

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
    assert {int(shots): tuple(values) for shots, values in h["fixed_by_shots"].items()} == BY_SHOTS
    grids = {"beta_grid": h["beta_grid"], "lmbda_grid": h["lmbda_grid"]}
    settings = {"augmentations": h["views"], "logit_scale": 1.0}
    method = case.learn(m.ProKeR(case.clip, **grids, **settings))
    beta, lmbda = method.beta_lmbda
    kernel = compute_kernel(method.features, method.features, float(beta))
    kernel_test = compute_kernel(a["test_features"], method.features, float(beta))
    case.relative(beta=beta, lmbda=lmbda, coefficients=method.coefficients, kernel_support=kernel)
    text, _, coefficients = method.precompute(case.names)
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
    method = case.learn(m.LPPlus(case.clip, case.hyper["epochs"]))
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


# --- odd data ---

NAMES = tuple(ClassName(name, template="{name}") for name in ("cat", "dog", "yak", "emu"))
WIDTH = 12
UNIT = F.normalize(torch.randn(24, WIDTH, generator=make_generator("unit")), dim=1)
CLIP = build_clip({str(name): row for name, row in zip((*NAMES, "fox"), UNIT[-5:], strict=True)})
NEW = ClassName("fox", template="{name}")
LABELS = torch.tensor([0, 1, 3, 3, 0, 1])  # a yak has no image, and the others are not in order
METHODS = {"gda": m.GDA, "proker": m.ProKeR, "lpplus": m.LPPlus, "ape": m.APE}


def begin(method, features=UNIT[:6], labels=LABELS, val=None, augment="none", **lesson):
    """Learn from features (N, E) or (V, N, E)."""
    train = build_split(features if features.ndim == 3 else features[None], labels, NAMES, augment)
    lesson = Lesson(train, val and build_split(val[0][None], val[1], NAMES), **lesson)
    method.begin_lesson(lesson, make_generator(0))
    method.end_lesson(lesson)
    return method


def answer(method, x=UNIT[6:9], names=NAMES):
    inputs = next(build_split(x[None], torch.zeros(len(x)).long(), names).batches(99)).inputs
    with torch.no_grad():
        return method.eval()(inputs, method.prepare(names, method.precompute(names))).logits


def zero_shot(names, x=UNIT[6:9]):
    return answer(m.ZeroShot(CLIP), x, names)


def test_gda_of_one_shot_is_told_and_compares_with_the_image():
    with pytest.warns(UserWarning, match="so the covariance is the identity. Take more shots"):
        method = begin(m.GDA(CLIP, alpha=1.0), UNIT[:4], torch.arange(4))
    gaussian = answer(method) - zero_shot(NAMES)
    assert torch.allclose(gaussian.log_softmax(1), (UNIT[6:9] @ UNIT[:4].T).log_softmax(1), atol=1e-4)


def test_gda_of_fewer_images_than_features_is_told_where_nothing_shrinks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrunk = begin(m.GDA(CLIP))
    with pytest.warns(UserWarning, match=f"expected a covariance of rank {WIDTH}, got a singular one of 6 images"):
        method = begin(m.GDA(CLIP, "base-to-new"))
    assert torch.equal(method.precision, shrunk.precision)


def test_gda_learns_a_stream_as_it_would_all_at_once():
    whole, method = begin(m.GDA(CLIP)), m.GDA(CLIP)
    with pytest.warns(UserWarning, match="the identity"):
        begin(method, UNIT[:2], LABELS[:2])
    begin(method, UNIT[2:6], LABELS[2:6], index=1)
    for name in ("sums", "counts", "gram", "precision"):
        assert torch.allclose(getattr(method, name), getattr(whole, name), rtol=1e-12, atol=1e-13)


def test_gda_of_a_class_without_images():
    """Few-shot: the mean of the other Gaussian logits. Base to new: a Gaussian of the nearest images."""
    method = begin(m.GDA(CLIP, alpha=2.0))
    gaussian = (answer(method) - zero_shot(NAMES)) / 2
    assert torch.allclose(gaussian[:, 2], gaussian[:, [0, 1, 3]].mean(1), atol=1e-3)
    features = F.normalize(torch.randn(60, WIDTH, generator=make_generator("many")), dim=1)
    method = begin(m.GDA(CLIP, "base-to-new", n_neighbors=9, alpha=2.0), features, LABELS.repeat(10))
    text = CLIP.text(NAMES)[0][2].double()
    near = features.double()[(features.double() @ text).topk(9).indices]
    mean = (near.sum(0) + 16 * text) / 25
    scatter = (near - text).T @ (near - text)
    weight = WIDTH * torch.linalg.inv(scatter + scatter.trace() / 8 * torch.eye(WIDTH)) @ mean
    theirs = UNIT[6:9].double() @ weight - weight @ mean / 2
    gaussian = (answer(method) - zero_shot(NAMES)) / 2 + torch.tensor(4.0).log()
    assert relative(gaussian[:, 2], theirs.float()) < 1e-4


@pytest.mark.parametrize("n_val", [3, 40])
def test_proker_chooses_the_first_best_of_all_points(n_val):
    """Each solved by itself; fewer validation images than classes take another way."""
    x = F.normalize(torch.randn(n_val, WIDTH, generator=make_generator("val")), dim=1)
    labels = torch.arange(n_val) * 7 % 4
    grids = {"beta_grid": (0.5, 6.0, 5), "lmbda_grid": (0.1, 3.0, 4)}
    method = begin(m.ProKeR(CLIP, **grids), val=(x, labels))
    best, chosen, text = -1, None, CLIP.text(NAMES)[0].double()
    s, f = UNIT[:6].double(), x.double()
    for beta in torch.linspace(0.5, 6.0, 5).double():
        for lmbda in torch.linspace(0.1, 3.0, 4).double():
            kernel, across = (torch.exp(-beta * (1 - a @ s.T)) for a in (s, f))
            right = F.one_hot(LABELS, 4) - s @ text.T
            coefficients = torch.linalg.solve(kernel / lmbda + torch.eye(6), right)
            n_correct = int(((f @ text.T + across @ coefficients).argmax(1) == labels).sum())
            if n_correct > best:
                best, chosen, wanted = n_correct, (beta, lmbda), coefficients
    assert method.beta_lmbda.tolist() == pytest.approx([float(value) for value in chosen], rel=1e-6)
    assert relative(method.coefficients, wanted) < 1e-6


def test_proker_of_the_same_image_twice_halves_lambda():
    once = begin(m.ProKeR(CLIP, 1.7, 0.1), UNIT[:3], LABELS[:3])
    twice = begin(m.ProKeR(CLIP, 1.7, 0.2), UNIT[[0, 1, 2, 0, 1, 2]], LABELS[[0, 1, 2, 0, 1, 2]])
    for coefficients in twice.coefficients.split(3):
        assert torch.allclose(coefficients, once.coefficients, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_a_class_without_images_answers_by_its_text(name):
    method = begin(METHODS[name](CLIP))
    unseen = (NAMES[2], NEW)
    logits, texts = answer(method, names=(*unseen, *NAMES[:2])), zero_shot(unseen)
    if name == "lpplus":
        texts = texts / CLIP.scale * method.alpha[method.has_images].mean()
    if name == "gda":  # the same is added to both
        logits, texts = (x - x.mean(1, keepdim=True) for x in (logits[:, :2], texts))
    assert torch.allclose(logits[:, :2], texts, atol=1e-4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_without_validation_images_the_settings_hold(name):
    settings = {"gda": {"alpha": 3.0}, "proker": {"beta": 2.0, "lmbda": 0.3}, "lpplus": {}, "ape": {"beta": 2.0}}[name]
    method = begin(METHODS[name](CLIP, **settings))
    if name == "proker":
        assert begin(m.ProKeR(CLIP)).beta_lmbda.tolist() == [2.6, 0.05]  # two images of a class
    if name == "lpplus":
        assert method.alpha[0] != method.alpha[1]  # alpha was trained to the last epoch
        return
    state = {"gda": "chosen_alpha", "proker": "beta_lmbda", "ape": "alpha_beta_gamma"}[name]
    wanted = {"gda": 3.0, "proker": [2.0, 0.3], "ape": [1.0, 2.0, pytest.approx(0.1)]}[name]
    assert getattr(method, state).tolist() == wanted
    none = begin(METHODS[name](CLIP, **settings), val=(UNIT[:0], LABELS[:0]))
    assert getattr(none, state).tolist() == wanted


def test_gda_without_validation_images_has_the_authors_alpha():
    assert float(begin(m.GDA(CLIP)).chosen_alpha) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (m.GDA(CLIP, augmentations=0), r"method.augmentations: expected at least 1, got 0"),
        (m.GDA(CLIP, n_neighbors=1), r"method.n_neighbors: expected at least 2, got 1"),
        (m.ProKeR(CLIP, lmbda_grid=(0.0, 1.0, 3)), r"method.lmbda: expected values above 0, got \[0.0, 0.5, 1.0\]"),
        (m.ProKeR(CLIP, beta=-1.0, beta_grid=None), r"method.beta: expected values above 0, got \[-1.0\]. Set greater"),
        (m.ProKeR(CLIP, beta_grid=(1.0, 2.0, 0)), r"method.beta: expected values above 0, got \[\]"),
        (m.LPPlus(CLIP, epochs=0), r"method.epochs: expected at least 1, got 0"),
        (m.APE(CLIP, channels=(1.5, 1.0)), r"method.channels: expected fractions above 0, at most 1, got 1.5"),
        (m.APE(CLIP, True, channels=(1.0, 0.0)), r"method.channels: expected fractions above 0, at most 1, got 0.0"),
    ],
)
def test_settings_that_fit_nothing(method, told):
    with pytest.raises(ValueError, match=told):
        begin(method)


def test_proker_whose_kernel_does_not_fit(monkeypatch):
    monkeypatch.setattr("vlprompt.runtime.memory.measure_available", lambda device: 0.0005)
    told = (
        r"method.augmentations: expected a kernel of 6 views within 0 MB, got one of 0 MB. Set method.augmentations=1"
    )
    with pytest.raises(ValueError, match=told):
        begin(m.ProKeR(CLIP))


def test_proker_of_many_views_in_the_precision_of_its_features(monkeypatch):
    exact = begin(m.ProKeR(CLIP))
    monkeypatch.setattr("vlprompt.methods.proker.EXACT_VIEWS", 0)
    rounded = begin(m.ProKeR(CLIP))
    difference = (rounded.coefficients - exact.coefficients).abs().max() / exact.coefficients.abs().max()
    assert 0 < difference < 1e-5


def test_ape_of_one_class():
    with pytest.raises(ValueError, match="lesson: expected at least two classes to choose channels by, got one"):
        m.APE(CLIP).begin_lesson(Lesson(build_split(UNIT[None, :2], LABELS[:2] * 0, NAMES[:1])), make_generator(0))


def test_lpplus_validates_on_classes_that_have_images():
    """The images of others, whose labels are no places among those that are trained, change nothing."""
    val = UNIT[12:20], torch.tensor([0, 1, 3, 0, 1, 3, 0, 1])
    more = torch.cat([val[0], UNIT[20:23]]), torch.cat([val[1], torch.full((3,), 2)])
    one, other = (begin(m.LPPlus(CLIP, 40), val=data) for data in (val, more))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.alpha, other.alpha)


def test_a_cache_is_searched_as_point_by_point():
    """Classes with different numbers of keys, one without any, and a key of none of the classes."""
    generator = make_generator("cache")
    text, similarity = (torch.randn(30, n, generator=generator) for n in (4, 7))
    columns, labels = torch.tensor([3, -1, 0, 3, 1, 3, 0]), torch.arange(30) % 4
    weights = torch.rand(3, 7, generator=generator) * 3
    betas, alphas = build_grid((0.1, 0.1), (3.0, 9.0), (8, 6))
    best, wanted = -1, None
    one_hot = F.one_hot(columns % 5, 5)[:, :4].float()
    for beta in betas:
        for alpha in alphas:
            for place, weight in enumerate(weights):
                cache = (-beta * (1 - similarity)).exp() @ (one_hot * weight[:, None])
                n_correct = int(((text + alpha * cache).argmax(1) == labels).sum())
                if n_correct > best:
                    best, wanted = n_correct, (float(beta), float(alpha), place)
    assert search_cache(text, similarity, columns, weights, labels, (betas, alphas)) == pytest.approx(wanted)
    assert wanted[2] != 0 or wanted[1] > 0.2


CHECKED = ("state_restores", "batch_independence", "class_order", "new_class_names", "second_lesson_same_classes")
CHECKED += ("second_lesson_new_classes", "first_lesson_restarts")


@pytest.mark.parametrize("check", [check for check in CHECKS if check.__name__.removeprefix("check_") in CHECKED])
@pytest.mark.parametrize(("cls", "settings"), [(m.GDA, {"form": "base-to-new"}), (m.APE, {"search_steps": [4, 3, 2]})])
@pytest.mark.filterwarnings("ignore:lesson. expected a covariance of rank")
def test_the_other_form_conforms(cls, settings, check, tiny):
    check(MethodCase(cls, settings, tiny))
