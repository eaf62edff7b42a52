"""SimpleCIL, APER, FeCAM, SLCA and SLCA++: twins written out, lessons that are unlike the papers', and their bytes."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from shared import OWN_GOLDEN, golden_vit_of, images, relative, vit_tower_of

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.heads import CosineHead, LinearHead
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(f"class {i}", str(i)) for i in range(7))
QUICK = {"draws_per_class": 4, "alignment_epochs": 2}


@pytest.fixture(scope="module")
def tower():
    return vit_tower_of(golden_vit_of(OWN_GOLDEN), "golden-vit")


def draw_picture(*seed):
    return torch.randn(3, 32, 32, generator=make_generator("picture", *seed))


def lesson_of(names, index=0, each=4, total=None, version=0, **more):
    """Pictures of these classes, `each` of a class (a number, or one of each)."""
    counts = [each] * len(names) if isinstance(each, int) else each
    items = tuple(
        ImageItem(f"{index}/{version}/{name}/{k}", lambda look, view, at=(index, version, name, k): draw_picture(*at))
        for name, count in zip(names, counts, strict=True)
        for k in range(count)
    )
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    return Lesson(Split(items, labels, tuple(names)), index=index, total=total, **more)


def learn(method, *lessons, **options):
    for lesson in lessons:
        method.begin_lesson(lesson, make_generator("stream", lesson.index))
        config = TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup": 0, **options})
        list(fit(method, lesson, config, seed=lesson.index))
        method.end_lesson(lesson)
    return method


PIXELS = torch.stack([draw_picture("test", i) for i in range(5)])


def answer(method, names=NAMES, tag="test"):
    with torch.no_grad():
        return method.eval()(images(PIXELS, tag), method.prepare(names, method.precompute(names)))


def features_of(tower, *lessons):
    """Features (N, E) and names of all images of lessons, in float64."""
    pairs = [(tower(b.inputs), [b.names[i] for i in b.labels]) for x in lessons for b in x.train.batches(100)]
    return torch.cat([x for x, _ in pairs]).double().numpy(), np.array([name for _, names in pairs for name in names])


STREAM = [lesson_of(NAMES[:3]), lesson_of(NAMES[3:5], 1), lesson_of((*NAMES[5:], NAMES[0]), 2)]  # a class comes again
TUNINGS = {
    "adaptformer": lambda t: m.AdaptFormer(t, CosineHead(), 4),
    "vpt": lambda t: m.VPT(t, CosineHead(), 2),
    "ssf": lambda t: m.SSF(t, CosineHead()),
    "lora": lambda t: m.LoRA(t, LinearHead(), 2),
    "full": lambda t: m.Full(t, CosineHead()),
}
MAKERS = {
    "simplecil": m.SimpleCIL,
    "fecam": m.FeCAM,
    "aper": lambda t: m.APER(TUNINGS["adaptformer"](t)),
    "slca": lambda t: m.SLCA(t, 0.5, **QUICK),
    "slcapp": lambda t: m.SLCApp(t, 2, **QUICK),
}
SLOW_LEARNERS = ("slca", "slcapp")


def test_simplecil_is_the_cosine_to_means_of_features_as_they_are(tower):
    method = learn(m.SimpleCIL(tower, 3.0), *STREAM)
    x, names = features_of(tower, *STREAM)
    test = tower(images(PIXELS, "test")).double().numpy()
    means = np.stack([x[names == name].mean(0) for name in NAMES])
    cosines = test @ means.T / np.linalg.norm(test, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    assert relative(answer(method).logits.double(), torch.from_numpy(3 * cosines)) < 1e-5
    units = x / np.linalg.norm(x, axis=1)[:, None]
    others = np.stack([units[names == name].mean(0) for name in NAMES])  # nearest_mean's
    others = test @ others.T / np.linalg.norm(test, axis=1)[:, None] / np.linalg.norm(others, axis=1)
    assert np.abs(others - cosines).max() > 1e-5


def test_fecam_is_written_out(tower):
    method = learn(m.FeCAM(tower, 0.7), *STREAM)
    x, names = features_of(tower, *STREAM)
    x /= np.linalg.norm(x, axis=1)[:, None]
    test = tower(images(PIXELS, "test")).double().numpy()
    test /= np.linalg.norm(test, axis=1)[:, None]
    for c, name in enumerate(NAMES):
        members = x[names == name]
        covariance = np.cov(members.T)
        covariance += 0.7 * np.diag(covariance).mean() * np.eye(len(covariance))
        deviations = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(deviations, deviations)
        mean = members.mean(0) / np.linalg.norm(members.mean(0))
        distances = np.array([(t - mean) @ np.linalg.pinv(correlation) @ (t - mean) for t in test])
        assert np.allclose(-answer(method).logits[:, c].double().numpy(), distances, rtol=1e-4)


def test_fecam_of_one_image_or_equal_ones(tower):
    single = lesson_of(NAMES[:3], each=[1, 4, 4])
    with pytest.warns(UserWarning, match="got one of class 0, so it has the mean covariance of its lesson"):
        method = learn(m.FeCAM(tower), single)
    assert answer(method, NAMES[:3]).logits.isfinite().all()
    picture = draw_picture("one")
    items = tuple(ImageItem(f"equal/{i}", lambda look, view: picture) for i in range(3))
    with pytest.warns(UserWarning, match="expected different images of a class .* got equal ones of class 0, whose"):
        method = learn(m.FeCAM(tower), Lesson(Split(items, (0, 0, 0), NAMES[:1])))
    out = answer(method, NAMES[:1])
    mean = torch.nn.functional.normalize(method.gaussians.get_means(NAMES[:1]))
    written = (torch.nn.functional.normalize(out.image_features) - mean).square().sum(1, keepdim=True)
    assert relative(-out.logits, written) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(m.FeCAM(tower), lesson_of(NAMES[:2], each=2))  # fewer images than features


@pytest.mark.parametrize("kind", TUNINGS)
def test_aper_reads_both_towers_of_any_tuning(tower, kind):
    method = m.APER(TUNINGS[kind](tower), 2.0)
    learn(method, STREAM[0])
    tuned = {name: p.clone() for name, p in method.named_parameters()}
    learn(method, *STREAM[1:])
    assert all(torch.equal(p, tuned[name]) and not p.requires_grad for name, p in method.named_parameters())
    inner = method.method.eval()

    def encode(inputs):  # without merged weights
        with torch.no_grad():
            return torch.cat([tower(inputs), inner.compute_features(inputs, tower)], 1)

    batches = [next(lesson.train.batches(100)) for lesson in STREAM]
    x, names = torch.cat([encode(b.inputs) for b in batches]), [b.names[i] for b in batches for i in b.labels]
    means = torch.stack([x[[name == other for other in names]].mean(0) for name in NAMES])
    cosines = torch.nn.functional.cosine_similarity(encode(images(PIXELS, "twin"))[:, None], means, dim=2)
    assert relative(answer(method).logits, 2 * cosines) < 1e-4
    half = tower.feature_dim
    assert relative(x[:, half:], x[:, :half]) > 1e-4  # it was tuned


def test_until_the_first_lesson_ends_the_tuning_method_of_aper_answers(tower):
    method, inner = m.APER(TUNINGS["adaptformer"](tower)), TUNINGS["adaptformer"](tower)
    for one in (method, inner):
        one.begin_lesson(STREAM[0], make_generator(1))
    assert torch.equal(answer(method, NAMES[:3]).logits, answer(inner, NAMES[:3]).logits)


@pytest.mark.parametrize("name", SLOW_LEARNERS)
def test_a_lesson_leaves_the_rows_of_earlier_ones_and_goes_on_before_their_alignment(tower, name):
    method = learn(MAKERS[name](tower), STREAM[0])
    assert torch.equal(method.aligned_weight, method.stored_weight)  # nothing to align with
    learn(method, STREAM[1], weight_decay=0.5)
    assert not torch.equal(method.aligned_weight, method.stored_weight)
    rows, aligned = method.stored_weight.clone(), method.aligned_weight.clone()
    method.begin_lesson(STREAM[2], make_generator(9))
    assert torch.equal(method.weight[2], rows[0])  # class 0 comes again, as it was trained and not as it was aligned
    assert method.lessons.tolist() == [2, 0, 0, 1, 1, 2, 2]
    learn(method, STREAM[2], weight_decay=0.5)
    assert torch.equal(method.stored_weight[1:5], rows[1:])
    assert not torch.equal(method.stored_weight[0], rows[0])
    assert all(not torch.equal(method.aligned_weight[i], aligned[i]) for i in range(5))
    scale = 1 + getattr(method, "growth", 0.0) * (2 - method.lessons[:, None])
    out = answer(method)
    written = out.image_features @ (scale * method.aligned_weight).T + method.aligned_bias
    assert relative(out.logits, written) < 1e-5


def test_slca_shrinks_means_by_the_lesson_that_a_class_came_in(tower):
    method = m.SLCA(tower)
    method.lesson_index = 3
    assert [method.compute_mean_factor(i) for i in range(4)] == pytest.approx([0.925, 0.95, 0.975, 1.0])


@pytest.mark.parametrize("name", SLOW_LEARNERS)
def test_alignment_draws_another_epoch_each_time_and_the_same_with_the_same_seed(tower, name):
    method = learn(MAKERS[name](tower), *STREAM[:2])
    (x, labels), (other, _) = method.draw_epochs()
    assert labels.bincount().tolist() == [4] * 5
    assert not torch.equal(x, other)
    again, _ = next(method.draw_epochs())
    assert torch.equal(x, again)


@pytest.mark.parametrize("name", SLOW_LEARNERS)
def test_learning_rates_of_parts_and_weight_decay_of_all(tower, name):
    method = MAKERS[name](tower)
    factors = {"slca": [[0.5, 1.0]] * 2, "slcapp": [[0.5, 0.1, 1.0], [0.1, 0.1, 1.0]]}[name]
    for lesson, expected in zip(STREAM, factors, strict=False):
        method.begin_lesson(lesson, make_generator(1))
        groups = method.param_groups()
        assert [group.get("lr_factor", 1.0) for group in groups] == expected
        assert not any("weight_decay" in group for group in groups)
        sizes = sum(p.numel() for group in groups for p in group["params"])
        assert sizes == sum(p.numel() for p in method.parameters() if p.requires_grad)


def test_low_rank_updates_start_at_the_first_singular_vectors_and_change_nothing(tower):
    method = m.SLCApp(tower, 3)
    method.begin_lesson(STREAM[0], make_generator(1))
    weight, down = torch.cat([tower.frozen_map(f"2/{kind}").weight for kind in "qkv"]), method.updates[2].down.detach()
    singular = torch.linalg.svdvals(weight)
    assert float((weight - weight @ down.T @ down).norm()) == pytest.approx(float(singular[3:].norm()), rel=1e-4)
    assert (down.gather(1, down.abs().argmax(1, keepdim=True)) > 0).all()
    inputs = images(PIXELS, "start")
    with torch.no_grad():
        assert relative(method.encode(inputs), tower(inputs)) < 1e-5


def test_a_clip_has_a_norm_before_its_blocks(tiny):
    """The class token is shifted before that norm, which is trained too."""
    method = m.SLCApp(tiny.image, 2)
    method.begin_lesson(STREAM[0], make_generator(1))
    token, gain = torch.randn(tiny.image.dim), torch.rand(tiny.image.dim)
    inputs = images(PIXELS, "clip")
    with torch.no_grad():
        assert relative(method.encode(inputs), tiny.image(inputs)) < 1e-5
        method.class_token += token
        method.norms["pre_norm"].weight += gain
        copied = tiny.image.trainable_copy()
        copied.special_tokens[0] += token
        copied.pre_norm.weight += gain
        written = copied(PIXELS)
        assert relative(method.encode(inputs), written) < 1e-5
    assert relative(written, tiny.image(inputs)) > 1e-2


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:lesson. expected two images")
def test_a_lesson_of_one_class_and_a_class_of_one_image(tower, name):
    method = learn(MAKERS[name](tower), lesson_of(NAMES[:1]), lesson_of(NAMES[1:4], 1, each=[1, 3, 2]))
    out = answer(method, NAMES[:4])
    assert out.logits.isfinite().all()
    assert relative(answer(method, NAMES[3:0:-1], "again").logits, out.logits.flip(1)[:, :3]) < 1e-5
    with pytest.raises(UnknownClassError, match="no weights for class '4', '5'"):
        answer(method, NAMES[4:6])


@pytest.mark.parametrize("name", MAKERS)
def test_answers_to_old_and_new_classes_need_no_lesson(tower, name):
    """The logits of some classes are those columns of the logits of all: a list of names tells no lesson."""
    method = learn(MAKERS[name](tower), *STREAM[:2])
    out = answer(method, NAMES[:5])
    for part in (slice(0, 3), slice(3, 5), slice(2, 4)):
        assert relative(answer(method, NAMES[part], "part").logits, out.logits[:, part]) < 1e-5


@pytest.mark.parametrize("name", MAKERS)
def test_state_is_read_without_images_and_its_bytes_are_those_of_the_header(tower, name):
    method, names = MAKERS[name](tower), tuple(ClassName(f"kind {i}", f"k{i}") for i in range(200))
    lessons, sizes = [Lesson(Split((), (), names[2 * k : 2 * k + 2]), index=k, total=None) for k in range(100)], []
    for lesson in lessons:
        method.begin_lesson(lesson, make_generator(lesson.index))
        sizes.append(sum(value.nbytes for value in method.state_dict().values()))
    e = tower.feature_dim
    per_class = {"simplecil": 4 * e + 4, "aper": 8 * e + 4, "fecam": 4 * e * e + 4 * e + 4}
    slope = 2 * per_class.get(name, 4 * e * e + 12 * e + 20)
    assert {b - a for a, b in pairwise(sizes)} == {slope}
    learned, again = learn(MAKERS[name](tower), *STREAM), MAKERS[name](tower)
    before = {key: value.shape for key, value in learned.state_dict().items()}
    again.restore(STREAM, learned.state_dict())
    assert {key: value.shape for key, value in again.state_dict().items()} == before
    assert torch.equal(answer(again).logits, answer(learned).logits)


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_without_images_is_refused_before_anything_is_trained(tower, name):
    method = MAKERS[name](tower)
    with pytest.raises(ValueError, match=r"^lesson: expected an image of each class .* got none of class 1\. Add"):
        method.begin_lesson(lesson_of(NAMES[:2], each=[3, 0]), make_generator(1))
    learn(method, lesson_of(NAMES[:2]))
    method.begin_lesson(lesson_of(NAMES[:3], 1, each=[0, 0, 2]), make_generator(1))  # they had some before


REHEARSAL = lesson_of(NAMES[:2], 1, memory=lesson_of(NAMES[2:3]).train)
WRONG = [
    (lambda t: m.FeCAM(t, 0.0), STREAM[0], r"method\.shrinkage: expected a value above 0, .* got 0\.0\. Set"),
    (lambda t: m.SLCA(t, -1.0), STREAM[0], r"method\.tower_lr_factor: expected at least 0, got -1\.0"),
    (lambda t: m.SLCA(t, draws_per_class=0), STREAM[0], r"method\.draws_per_class: expected at least 1, got 0"),
    (lambda t: m.SLCA(t, temperature=0.0), STREAM[0], r"method\.temperature: expected a value above 0, got 0\.0"),
    (lambda t: m.SLCA(t, alignment_lr=0.0), STREAM[0], r"method\.alignment_lr: expected a value above 0, got 0\.0"),
    (lambda t: m.SLCApp(t, 0), STREAM[0], r"method\.rank: expected at least 1, got 0"),
    (lambda t: m.SLCApp(t, growth=-0.1), STREAM[0], r"method\.growth: expected at least 0, got -0\.1"),
    (lambda t: m.SLCA(t), REHEARSAL, r"SLCA: expected no rehearsal, .* got a rehearsal buffer\. Set task\.buffer=0\."),
]


@pytest.mark.parametrize(("make", "lesson", "message"), WRONG)
def test_what_does_not_fit_has_one_error(tower, make, lesson, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(tower).begin_lesson(lesson, make_generator(1))


def test_aper_says_which_methods_it_takes(tiny):
    for method in (m.CoOp(tiny), m.KgCoOp(m.CoOp(tiny))):
        with pytest.raises(
            ValueError, match=r"method\.method: expected a method that tunes an image tower, got .* Take adaptformer"
        ):
            m.APER(method).begin_lesson(STREAM[0], make_generator(1))
