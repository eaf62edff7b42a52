"""EASE, MOS and TUNA: the bank of adapters, class means, alignment, and what a stream may bring."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from kills import interrupted, same_but_for_time
from shared import OWN_GOLDEN, golden_vit_of, images, relative, vit_tower_of

import vlprompt
from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.class_gaussians import ClassGaussians
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.methods import _alignment
from vlprompt.methods._adapter_bank import AdapterBank
from vlprompt.methods._alignment import AlignmentSettings, align_head
from vlprompt.methods._class_means import ClassMeans
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(f"class {i}", str(i)) for i in range(7))
FAST = {"align_epochs": 2, "align_samples": 10}
MAKERS = {
    "ease": lambda tower, **more: m.EASE(tower, 4, **more),
    "mos": lambda tower, **more: m.MOS(tower, LinearHead(), 4, **FAST | more),
    "tuna": lambda tower, **more: m.TUNA(tower, 4, **FAST | more),
}


@pytest.fixture(scope="module")
def tower():
    return vit_tower_of(golden_vit_of(OWN_GOLDEN).requires_grad_(False), "golden-vit")


def lesson_of(names, index=0, total=3, each=4, labels=None, **more):
    """Pictures around one of each class, `each` of a class, or those of `labels`."""
    labels = [c for c in range(len(names)) for _ in range(each)] if labels is None else labels
    items = []
    for k, c in enumerate(labels):
        centre = torch.randn(3, 32, 32, generator=make_generator("class", names[c]))
        picture = centre + 0.5 * torch.randn(3, 32, 32, generator=make_generator("picture", names[c], index, k))
        items.append(ImageItem(f"{index}/{names[c]}/{k}", lambda look, view, p=picture: p))
    return Lesson(Split(tuple(items), tuple(labels), tuple(names)), index=index, total=total, **more)


STREAM = [lesson_of(NAMES[:3], 0), lesson_of(NAMES[3:5], 1), lesson_of(NAMES[5:], 2)]


def begin(method, lesson):
    method.begin_lesson(lesson, make_generator("stream", lesson.index))
    return method


def learned(method, lessons=STREAM, **options):
    options = {"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, "drop_last": False, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lesson: expected two images of a class")
        for lesson in lessons:
            begin(method, lesson)
            list(fit(method, lesson, TrainConfig(**options), seed=lesson.index))
            method.end_lesson(lesson)
    return method


def seen(pixels):
    return images(pixels, str(hash(pixels.numpy().tobytes())))


def pixels_of(lessons):
    return torch.stack([item.pixels(None, None) for lesson in lessons for item in lesson.train.items])


def answer(method, pixels, names=NAMES):
    method.eval()
    with torch.no_grad():
        return method(seen(pixels), method.prepare(names, method.precompute(names)))


def bytes_of(method):
    return sum(t.numel() * t.element_size() for t in method.state_dict().values())


# the bank


def filled_bank(tower, n=3, double=False):
    """A bank of n sets whose weights are all random."""
    bank = AdapterBank(tower, 5, 0.3, 0.0)
    for k in range(n):
        bank.add_set(make_generator("set", k))
    for p in bank.parameters():
        p.data = torch.randn(p.shape, generator=make_generator(str(p.shape)), dtype=torch.float64) + p.data.double()
        p.data = p.data if double else p.data.float()
    for k, one in enumerate(bank.sets):
        for p in one.parameters():
            p.data *= (-1) ** k * (1 + k)
    return bank


def bottleneck(one, site, x, scale):
    part = one[site]
    return scale * F.linear(F.linear(x, part.down.weight, part.down.bias).relu(), part.up.weight, part.up.bias)


def test_one_pass_takes_another_set_for_each_image(tower):
    bank, rows = filled_bank(tower, double=True), torch.tensor([2, 0, 1, 2])
    x, y = torch.randn(2, 4, 6, 48, generator=make_generator("x"), dtype=torch.float64)
    adapters = bank.select(bank.stack(), rows).adapters
    assert set(adapters) == {f"{i}/mlp+" for i in range(4)}
    for site, adapter in adapters.items():
        for i, row in enumerate(rows):
            expected = y[i] + bottleneck(bank.sets[row], site, x[i], 0.3)
            torch.testing.assert_close(adapter(x, y)[i], expected, rtol=1e-12, atol=1e-12)
    one_for_all = bank.select(bank.stack(), torch.tensor([1])).adapters["2/mlp+"]
    expected = bank.get_prompt(1).adapters["2/mlp+"](x, y)
    torch.testing.assert_close(one_for_all(x, y), expected, rtol=1e-12, atol=1e-12)


def test_a_mixed_batch_is_each_image_with_its_set(tower):
    bank, rows, x = filled_bank(tower), torch.tensor([1, 2, 0]), torch.randn(3, 3, 32, 32)
    together = tower(seen(x), bank.select(bank.stack(), rows))
    alone = [tower(seen(x[i : i + 1]), bank.get_prompt(int(row))) for i, row in enumerate(rows)]
    assert relative(together, torch.cat(alone)) < 1e-5
    assert relative(together, tower(seen(x), bank.get_prompt(0))) > 1e-2


def test_a_new_set_begins_as_nothing_or_as_the_newest(tower):
    bank = filled_bank(tower, 2)
    bank.add_set(make_generator("third"))
    assert [p.requires_grad for one in bank.sets for p in one.parameters()] == [False] * 32 + [True] * 16
    x = torch.randn(2, 3, 32, 32)
    assert relative(tower(seen(x), bank.get_prompt(2)), tower(seen(x))) < 1e-6
    bank.add_set(make_generator("fourth"), copies_newest=True)
    torch.testing.assert_close(bank.sets[3].state_dict(), bank.sets[2].state_dict(), rtol=0, atol=0)
    assert sum(p.numel() * 4 for p in bank.sets[0].parameters()) == 4 * 4 * (2 * 48 * 5 + 48 + 5)


def test_fused_weights_are_the_largest_with_the_sign_of_the_mean(tower):
    bank = filled_bank(tower)
    x = torch.randn(2, 5, 48, generator=make_generator("x"))
    fused = copy.deepcopy(bank.sets[0])
    for name, p in fused.named_parameters():
        values = torch.stack([dict(one.named_parameters())[name] for one in bank.sets]).flatten(1)
        for j, column in enumerate(values.T.tolist()):
            positive = sum(column) > 0
            agreeing = [v for v in column if (v > 0) == positive and v]
            p.data.view(-1)[j] = (max if positive else min)(agreeing, default=0.0)
    for site, adapter in bank.fuse().adapters.items():
        assert relative(adapter(x, torch.zeros_like(x)), bottleneck(fused, site, x, 0.3)) < 1e-5


def test_overlap_is_the_mean_of_a_product_of_unit_rows(tower):
    bank = filled_bank(tower, double=True)
    total = 0.0
    for earlier in bank.sets[:-1]:
        each = [
            (F.normalize(bank.sets[-1][site].up.weight, dim=1) @ F.normalize(earlier[site].up.weight, dim=1).T).mean()
            for site in earlier
        ]
        total = total + torch.stack(each).abs().mean()
    overlap, newest = bank.compute_overlap(), [part.up.weight for part in bank.sets[-1].values()]
    torch.testing.assert_close(overlap, total, rtol=1e-12, atol=1e-12)
    for mine, twin in zip(torch.autograd.grad(overlap, newest), torch.autograd.grad(total, newest), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-11, atol=1e-11)


def test_the_newest_set_moves_to_the_mean_of_the_others(tower):
    bank = filled_bank(tower, double=True)
    before = [[p.clone() for p in one.parameters()] for one in bank.sets]
    bank.merge_newest(0.25)
    for p, a, b, newest in zip(bank.sets[2].parameters(), *before, strict=True):
        torch.testing.assert_close(p.data, 0.75 * newest + 0.25 * (a + b) / 2, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, before[0], bank.sets[0].parameters()))


# class means


def draw_means(lessons, n_common=0, dim=5, fixed=None):
    """Class means of lessons, [(names, labels)], on features that are returned too, all of as many subspaces."""
    means, features = ClassMeans(n_common), []
    for t, (names, labels) in enumerate(lessons):
        n = n_common + (t + 1 if fixed is None else fixed)
        means.begin_lesson(names, n, dim, torch.device("cpu"))
        x = torch.randn(len(labels), n_common + len(lessons), dim, generator=make_generator("features", t))
        features.append((x, torch.tensor(labels)))
        means.add(x[:, :n], features[-1][1])
    return means, features


@pytest.mark.parametrize("n_common", [0, 1])
def test_means_that_no_image_has_are_composed(n_common):
    names = [NAMES[:2], NAMES[2:4], NAMES[4:7]]
    means, features = draw_means([(part, [0, 1] * 3 + [len(part) - 1]) for part in names], n_common)
    completed, lessons = means.compute()
    assert lessons.tolist() == [0, 0, 1, 1, 2, 2, 2]
    own, begin_of = [0, 0, 1, 1, 2, 2, 2], [0, 2, 4]
    real = {}
    for c, t in enumerate(own):
        x, labels = features[t]
        for k in range(n_common + t + 1):
            real[c, k] = x[labels == c - begin_of[t], k].double().mean(0)
    for i in range(2):
        for k in range(i + 1, 3):
            later = [c for c in range(7) if own[c] >= k]
            for c in (c for c in range(7) if own[c] == i):
                like = [F.cosine_similarity(real[c, n_common + i], real[d, n_common + i], 0).exp() for d in later]
                composed = sum(w * real[d, n_common + k] for w, d in zip(like, later, strict=True)) / sum(like)
                torch.testing.assert_close(completed[c, n_common + k], composed, rtol=1e-6, atol=1e-6)
    for (c, k), mean in real.items():
        torch.testing.assert_close(completed[c, k], mean, rtol=1e-6, atol=1e-6)


def test_a_class_that_comes_again_has_the_mean_of_all_its_images():
    means, features = draw_means([(NAMES[:2], [0, 1, 1]), (NAMES[1:3], [0, 1, 0])])
    completed, lessons = means.compute()
    assert lessons.tolist() == [0, 1, 1]
    first, second = (x.double() for x, _ in features)
    both = torch.stack([first[1, 0], first[2, 0], second[0, 0], second[2, 0]]).mean(0)
    torch.testing.assert_close(completed[1, 0], both, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(completed[1, 1], second[[0, 2], 1].mean(0), rtol=1e-6, atol=1e-6)


def test_classes_without_images():
    means, _ = draw_means([(NAMES[:3], [0, 2])])
    assert means.select(NAMES[:3])[1].tolist() == [0, -1, 0]
    with pytest.raises(
        UnknownClassError, match="expected one that has training images, got 'class 1', which have none"
    ):
        means.select(NAMES[1:2])
    with pytest.raises(UnknownClassError, match="class means: no weights for class 'yak'"):
        means.select((ClassName("yak"),))


# alignment


def build_gaussians(labels=(0, 0, 0, 2, 2, 2)):
    gaussians = ClassGaussians("variance")
    gaussians.begin_lesson(NAMES[:3], True, 4, torch.device("cpu"))
    gaussians.add(torch.randn(len(labels), 4, generator=make_generator("x")), torch.tensor(labels), NAMES[:3])
    return gaussians


def test_a_head_is_aligned_over_the_classes_that_have_images(monkeypatch):
    head, calls = LinearHead(), []
    head.begin_lesson(Lesson(Split((), (), NAMES[:3])), make_generator("head"), 4, torch.device("cpu"))
    monkeypatch.setattr(_alignment, "align", lambda *arguments: calls.append(arguments))
    gaussians, settings = build_gaussians(), AlignmentSettings(3, 0.1, 5)
    align_head(head, gaussians, 7, settings, [0.9, 0.8, 0.7])
    [(parameters, loss, draws, passed)] = calls
    drawn = list(draws)
    assert len(drawn) == 3
    assert passed is settings
    assert [id(p) for p in parameters] == [id(head.weight), id(head.bias)]
    generator = torch.Generator().manual_seed(7)
    for x, y in drawn:
        expected = gaussians.draw_classes([0, 2], 5, generator, [0.9, 0.7])
        assert all(map(torch.equal, (x, y), expected))
    x, y = drawn[0]
    expected = F.cross_entropy(F.linear(x, head.weight, head.bias)[:, [0, 2]], y)
    torch.testing.assert_close(loss(x, y), expected)


def test_a_head_without_parameters_stays_as_it_is():
    clip = vlprompt.backbones.glyph.build_tiny_clip()
    align_head(TextHead(clip), build_gaussians(), 1, AlignmentSettings(1, 0.1, 5))


# the methods


@pytest.mark.parametrize("name", MAKERS)
def test_three_lessons(tower, name):
    """State comes back without data, an answer does not depend on its batch, and old adapters stay as they were."""
    method, again = learned(MAKERS[name](tower)), MAKERS[name](tower)
    again.restore(STREAM, copy.deepcopy(method.state_dict()))
    x = pixels_of(STREAM)
    out = answer(method, x)
    assert torch.equal(out.logits, answer(again, x).logits)
    for i in range(0, len(x), 5):
        assert torch.allclose(answer(method, x[i : i + 1]).logits, out.logits[i : i + 1], atol=1e-4)
    labels = torch.tensor([c for c in range(7) for _ in range(4)])
    assert float((out.logits.argmax(1) == labels).float().mean()) > 0.6
    assert all(not p.requires_grad for one in method.bank.sets[:-1] for p in one.parameters())
    assert all(p.requires_grad for p in method.bank.sets[-1].parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MAKERS)
def test_what_a_past_lesson_made_is_not_touched(tower, name, optimizer):
    method = learned(MAKERS[name](tower), STREAM[:1], optimizer=optimizer, lr=0.01, weight_decay=0.1)
    past = copy.deepcopy(method.bank.sets[0].state_dict())
    assert float(past["0/mlp+.up.weight"].abs().max()) > 0
    learned(method, STREAM[1:], optimizer=optimizer, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(method.bank.sets[0].state_dict(), past, rtol=0, atol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_in_a_lesson_its_own_head_answers_for_its_classes(tower, name):
    method, x = begin(learned(MAKERS[name](tower), STREAM[:1]), STREAM[1]), pixels_of(STREAM[1:2])
    out = answer(method, x, NAMES[3:5])
    feature = tower(seen(x), method.bank.get_prompt(-1))
    head = method.head
    assert relative(out.logits, head(feature, head.precompute(NAMES[3:5])).detach()) < 1e-5
    list(fit(method, STREAM[1], TrainConfig(epochs=1, batch_size=4, lr=0.05, warmup=0, model_selection="last"), seed=1))
    method.end_lesson(STREAM[1])
    assert relative(answer(method, x, NAMES[3:5]).logits, out.logits) > 1e-3


def test_ease_weighs_subspaces(tower):
    method, x = learned(m.EASE(tower, 4, alpha=0.3, beta=0.5)), pixels_of(STREAM)[::5]
    means, lessons = method.means.compute()
    features = [tower(seen(x)), *(tower(seen(x), method.bank.get_prompt(k)) for k in range(3))]
    out = answer(method, x)
    for c in range(7):
        weights = [0.5, *(1.0 if k == lessons[c] else 0.15 for k in range(3))]
        cosines = [F.cosine_similarity(f, means[c, k].float()[None]) for k, f in enumerate(features)]
        expected = sum(w * cos for w, cos in zip(weights, cosines, strict=True))
        assert relative(out.logits[:, c], expected.detach()) < 1e-4


def test_ease_with_the_adapters_of_its_first_lesson_alone(tower):
    method = learned(m.EASE(tower, 4, beta=1.0, n_adapters=1), STREAM[:2])
    steps = list(fit(begin(method, STREAM[2]), STREAM[2], TrainConfig(epochs=1, warmup=0), seed=1))
    method.end_lesson(STREAM[2])
    assert steps == []
    assert len(method.bank) == 1
    means, _ = method.means.compute()
    assert means.shape == (7, 2, 48)
    x = pixels_of(STREAM[2:])
    assert relative(means[5, 1].float(), tower(seen(x[:4]), method.bank.get_prompt(0)).mean(0)) < 1e-5
    again = m.EASE(tower, 4, beta=1.0, n_adapters=1)
    again.restore(STREAM, copy.deepcopy(method.state_dict()))
    assert torch.equal(answer(method, x).logits, answer(again, x).logits)


def read_mos(method, tower, x, names):
    """MOS's answer for one image (1, 3, h, w), written out: (answer, adapters it was read with, passes)."""
    means, lessons = (t[method.first_means.get_rows(names)] for t in method.first_means.compute())
    head = method.head
    first = tower(seen(x), method.bank.get_prompt(0))
    cosines = F.cosine_similarity(first, means[:, 0].float())
    lesson, used, readings = int(lessons[cosines.argmax()]), None, 0
    while lesson != used and readings < 4:
        feature = tower(seen(x), method.bank.get_prompt(lesson))
        logits = F.linear(feature, head.weight, head.bias)[0, head.class_indices(names)]
        used, lesson, readings = lesson, int(lessons[logits.argmax()]), readings + 1
    return logits.softmax(0) + (len(method.bank) * cosines).softmax(0), used, readings


def test_mos_reads_an_image_until_its_adapters_stay(tower):
    method = learned(MAKERS["mos"](tower), lr=0.2)
    method.head.weight.data += 3 * torch.randn(method.head.weight.shape, generator=make_generator("head"))
    names = NAMES[::-1]
    x = torch.cat([pixels_of(STREAM)[::3], torch.randn(8, 3, 32, 32, generator=make_generator("more"))])
    out, readings = answer(method, x, names), []
    with torch.no_grad():
        for i in range(len(x)):
            expected, used, n = read_mos(method, tower, x[i : i + 1], names)
            assert relative(2 * out.logits[i].exp(), expected) < 1e-4
            assert out.predicted_lesson[i] == used
            assert out.prompt_usage[i].tolist() == [float(k == used) for k in range(3)]
            readings.append(n)
    assert {1, 2} <= set(readings)
    assert set(out.predicted_lesson.tolist()) == {0, 1, 2}


def test_mos_stops_after_four_readings(tower):
    """A head by which the adapters of each lesson find a class of the other goes on for ever."""
    method = learned(MAKERS["mos"](tower), STREAM[:2])
    x, names = torch.randn(1, 3, 32, 32), NAMES[:4]
    with torch.no_grad():
        features = [tower(seen(x), method.bank.get_prompt(k))[0] for k in range(2)]
        middle, axis = sum(features) / 2, features[0] - features[1]
        method.head.weight.zero_(), method.head.bias.zero_()
        method.head.weight[3], method.head.bias[3] = axis, -axis @ middle  # lesson 1 where the adapters are those of 0
        _, used, readings = read_mos(method, tower, x, names)
    assert readings == 4
    assert answer(method, x, names).predicted_lesson.tolist() == [used]


def test_mos_trains_its_head_slowly_and_moves_adapters_after_each_step(tower):
    method = begin(learned(MAKERS["mos"](tower, momentum=1.0), STREAM[:1]), STREAM[1])
    adapters, head = method.param_groups()
    assert (adapters.get("lr_factor"), head["lr_factor"]) == (None, 0.1)
    assert len(adapters["params"]) == 16
    list(fit(method, STREAM[1], TrainConfig(epochs=1, batch_size=8, lr=0.1, warmup=0), seed=1))
    torch.testing.assert_close(method.bank.sets[1].state_dict(), method.bank.sets[0].state_dict())


def test_mos_with_class_texts(tower):
    """A head that nothing trains: the adapters alone are."""
    clip = vlprompt.backbones.glyph.build_tiny_clip()
    method = learned(m.MOS(clip.image, TextHead(clip), 4, **FAST), STREAM[:2])
    assert len(method.param_groups()) == 1
    assert answer(method, pixels_of(STREAM[:2]), NAMES[:5]).logits.isfinite().all()


def test_tuna_lowers_the_right_cosine_in_training(tower):
    method = begin(m.TUNA(tower, 4, dropout=0.0, logit_scale=6.0, margin=0.2), STREAM[0])
    batch = next(STREAM[0].train.batches(100))
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    right = F.one_hot(batch.labels, 3).bool()
    cosines = out.logits / 6
    numerator = (6 * (cosines[right] - 0.2)).exp()
    others = (6 * cosines).exp().masked_fill(right, 0).sum(1)
    torch.testing.assert_close(terms["ce"][0], -(numerator / (numerator + others)).log().mean())
    assert not method.head.gain.requires_grad


def test_tuna_takes_the_adapters_of_least_entropy(tower):
    method, x = learned(MAKERS["tuna"](tower)), pixels_of(STREAM)
    out = answer(method, x)
    vectors = F.normalize(method.head.weight, dim=1)
    with torch.no_grad():
        p = [
            (20 * F.normalize(tower(seen(x), method.bank.get_prompt(k)), dim=1) @ vectors.T).softmax(1)
            for k in range(3)
        ]
        universal = (20 * F.normalize(tower(seen(x), method.bank.fuse()), dim=1) @ vectors.T).softmax(1)
    for i in range(len(x)):
        entropies = [float(torch.distributions.Categorical(q[i]).entropy()) for q in p]
        best = int(out.predicted_lesson[i])
        assert entropies[best] < min(entropies) + 1e-5
        assert relative(2 * out.logits[i].exp(), p[best][i] + universal[i]) < 1e-3
    assert len(set(out.predicted_lesson.tolist())) > 1


def test_tuna_aligns_in_three_waves_with_shrunk_means(tower, monkeypatch):
    from vlprompt.methods import tuna

    calls = []
    monkeypatch.setattr(tuna, "align_head", lambda *arguments: calls.append(arguments))
    method = learned(m.TUNA(tower, 4, shrinks_means=True, align_epochs=9, align_lr=0.3, align_samples=11), STREAM[:2])
    [(head, gaussians, seed, settings, factors)] = calls
    assert (head, gaussians, seed) == (method.head, method.gaussians, method.seed)
    assert settings == AlignmentSettings(9, 0.3, 11, 0.9, 5e-4, 5)
    assert factors == pytest.approx([0.95, 0.9, 0.9, 0.85, 0.85])


def test_mos_aligns_after_each_lesson_but_the_first(tower, monkeypatch):
    from vlprompt.methods import mos

    calls = []
    monkeypatch.setattr(mos, "align_head", lambda *arguments: calls.append(arguments))
    method = learned(m.MOS(tower, LinearHead(), 4, align_epochs=9, align_lr=0.3, align_samples=11))
    assert [arguments[3] for arguments in calls] == [AlignmentSettings(9, 0.3, 11, 0.9, 5e-4, None)] * 2
    assert calls[1][:3] == (method.head, method.gaussians, method.seed)


# what a stream may bring


@pytest.mark.parametrize("name", MAKERS)
def test_a_lesson_of_one_class_and_a_class_of_one_image(tower, name):
    lessons = [
        lesson_of(NAMES[:3], 0, labels=[0, 0, 1, 2, 2]),
        lesson_of(NAMES[3:4], 1),
        lesson_of(NAMES[4:5], 2, each=1),
    ]
    method = learned(MAKERS[name](tower), lessons)
    out = answer(method, pixels_of(lessons), NAMES[:5])
    assert out.logits.isfinite().all()
    assert out.logits[5:9].argmax(1).tolist().count(3) >= 3


@pytest.mark.parametrize("name", ["mos", "tuna"])
def test_a_class_of_one_image_is_told(tower, name):
    lesson = lesson_of(NAMES[:2], labels=[0, 0, 1])
    method = begin(MAKERS[name](tower), lesson)
    with pytest.warns(UserWarning, match="expected two images of a class for its covariance, got one of class 1, so"):
        method.end_lesson(lesson)


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_that_comes_back_is_one_of_its_last_lesson(tower, name):
    lessons = [lesson_of(NAMES[:3], 0), lesson_of(NAMES[2:4][::-1], 1)]
    method, again = learned(MAKERS[name](tower), lessons), MAKERS[name](tower)
    again.restore(lessons, copy.deepcopy(method.state_dict()))
    x = pixels_of(lessons)
    out = answer(method, x, NAMES[:4])
    assert torch.equal(out.logits, answer(again, x, NAMES[:4]).logits)
    assert float((out.logits.argmax(1) == torch.tensor([0, 1, 2, 3, 2]).repeat_interleave(4)).float().mean()) > 0.6
    if name != "tuna":
        means = method.means if name == "ease" else method.first_means
        assert means.select(NAMES[:4])[1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_that_never_had_an_image_cannot_win(tower, name):
    lessons = [lesson_of(NAMES[:3], 0, labels=[0, 0, 2, 2]), lesson_of(NAMES[3:5], 1)]
    method = learned(MAKERS[name](tower), lessons)
    logits = answer(method, pixels_of(lessons), NAMES[:5]).logits
    assert (logits[:, 1] == -math.inf).all()
    assert logits[:, [0, 2, 3, 4]].isfinite().all()
    with pytest.raises(UnknownClassError, match="got 'class 1', which have none"):
        answer(method, pixels_of(lessons), NAMES[1:2])


@pytest.mark.parametrize("name", MAKERS)
def test_all_classes_so_far_in_training(tower, name):
    """As task.mask=false has it: the lesson names earlier classes, of which it has no images."""
    lessons = [lesson_of(NAMES[:3], 0), lesson_of(NAMES[:5], 1, labels=[3, 3, 4, 4])]
    method = learned(MAKERS[name](tower), lessons)
    assert answer(method, pixels_of(lessons), NAMES[:5]).logits.isfinite().all()
    if name == "ease":
        assert method.means.select(NAMES[:5])[1].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", MAKERS)
def test_streams_that_a_method_cannot_take(tower, name):
    with pytest.raises(ValueError, match=rf"{name}: expected no rehearsal.* Set task\.buffer=0"):
        begin(MAKERS[name](tower), lesson_of(NAMES[:2], memory=STREAM[0].train))
    with pytest.raises(ValueError, match=rf"{name}: expected a stream with lesson boundaries.* Use l2p"):
        begin(MAKERS[name](tower), lesson_of(NAMES[:2], has_task_boundaries=False))
    begin(MAKERS[name](tower), lesson_of(NAMES[:2], total=None))
    with pytest.raises(ValueError, match=r"expected a block-wise tower .*Use a ViT"):
        begin(MAKERS[name](vlprompt.load("timm:test_resnet/random")), STREAM[0])


BAD = {
    "ease": {"bottleneck_dim": 0, "alpha": -1.0, "beta": -0.1, "n_adapters": 0, "dropout": -0.1},
    "mos": {"momentum": -0.1, "contrast_weight": -1.0, "align_epochs": -1, "align_samples": 0},
    "tuna": {"margin": -0.1, "orthogonality_weight": -1.0, "align_epochs": -1, "align_samples": 0},
}
CLASSES = {"ease": m.EASE, "mos": m.MOS, "tuna": m.TUNA}


@pytest.mark.parametrize(("name", "setting"), [(name, setting) for name in BAD for setting in BAD[name]])
def test_settings_that_make_no_sense(tower, name, setting):
    value = BAD[name][setting]
    head = [LinearHead()] if name == "mos" else []
    with pytest.raises(ValueError, match=rf"method\.{setting}: expected at least .*, got {value}"):
        begin(CLASSES[name](tower, *head, **{setting: value}), STREAM[0])


def test_a_contrast_takes_whole_batches(tower):
    assert m.MOS(tower, LinearHead()).needs_whole_batch
    assert not m.MOS(tower, LinearHead(), contrast_weight=0.0).needs_whole_batch


# memory


def expect_bytes(name, n, spread):
    """What the headers say, for n lessons of two classes: adapters of 4 layers, and of each class what it has."""
    adapters, e = n * 4 * 4 * (2 * 48 * 4 + 48 + 4), 48
    if name == "ease":  # means and a count in each lesson; the newest lesson's head
        return adapters + sum(2 * 4 * (e * (t + 1) + 1) for t in range(n)) + 4 * (2 * e + 1)
    spreads = {"covariance": 4 * e * e, "variance": 4 * e}[spread]
    of_class = spreads + 4 * e + 4 + 4 * e  # spread, mean and count, vector of the head
    if name == "mos":
        return adapters + 2 * n * (of_class + 4 + 4 * e + 4)  # bias; first mean and count
    return adapters + 2 * n * of_class + 4 + 8  # scale; lessons learned


@pytest.mark.parametrize(("name", "spread"), [("ease", None), ("mos", "covariance"), ("tuna", "variance")])
def test_a_hundred_lessons_take_what_the_header_says(tower, name, spread):
    method = MAKERS[name](tower, **({"spread": spread} if spread else {}))
    for t in range(100):
        names = tuple(ClassName(f"{t} {k}") for k in range(2))
        begin(method, Lesson(Split((), (), names), index=t, total=None))
        if t + 1 in (1, 10, 100):
            assert bytes_of(method) == expect_bytes(name, t + 1, spread)


# resumed


@pytest.mark.parametrize("moments", [1, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKERS)
def test_stopped_anywhere_it_ends_with_the_same_bits(name, moments, tmp_path):
    clip, events = vlprompt.load("glyph/random"), []
    data = vlprompt.data.loading.open_data("digits")
    data = data.__class__(**{**vars(data), "test": data.test.select(range(0, len(data.test), 60))})
    task = vlprompt.tasks.Continual(data, stages=3, shots=2)
    train = TrainConfig(epochs=2, batch_size=8, lr=0.05, warmup=0, drop_last=False)
    make = lambda: MAKERS[name](clip.image)  # noqa: E731
    vlprompt.run(make(), task, train, tmp_path / "whole", on_event=lambda *event: events.append(event))
    n = len(events)
    stops = {1: [n // 2], 7: [1, n // 2, 3, n // 3, 2, n // 2, n // 4]}[moments]
    interrupted(make, task, train, tmp_path / "parts", stops, n)
    same_but_for_time(tmp_path / "whole", tmp_path / "parts")
