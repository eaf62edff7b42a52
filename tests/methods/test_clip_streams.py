"""Streams on a CLIP with class texts (RAPF, PROOF, ENGINE): resumed, odd lessons, what they know and what they keep."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from kills import interrupted, same_but_for_time

import vlprompt
from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.data.loading import open_data
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.feature_statistics import AveragedGaussians, compute_gaussian_sums, estimate_precision
from vlprompt.methods._descriptions import PairSentences, rank_again
from vlprompt.methods.rapf import fuse
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Continual
from vlprompt.testing.images import draw_pixels, wrap_pixels

PAIRS = str(Path(__file__).parents[1] / "pairs_of_digits.json")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple(ClassName(f"digit {word}", word) for word in WORDS)
MAKERS = {
    "rapf": lambda clip: m.RAPF(clip, threshold=2.0, draws_per_class=3, draws_per_pair=2),
    "proof": lambda clip: m.PROOF(clip, n_exemplars=3),
    "engine": lambda clip: m.ENGINE(clip, PAIRS),
}
TRAIN = TrainConfig(epochs=2, batch_size=4, optimizer="adam", lr=0.003, schedule="constant", warmup=0, weight_decay=0)


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


def lesson_of(names, index=0, n=3, seed=0):
    """A lesson with n images of each class, or as many as a mapping says."""
    sizes = n if isinstance(n, dict) else dict.fromkeys(class_ids(names), n)
    rows = [(c, k) for c, i in enumerate(class_ids(names)) for k in range(sizes[i])]
    pixels = draw_pixels(len(rows), (32, 32), f"{seed} {index}")
    items = [ImageItem(f"{seed}/{index}/{i}", lambda look, view, p=p: p) for i, p in enumerate(pixels)]
    return Lesson(Split(tuple(items), tuple(c for c, _ in rows), tuple(names)), index=index, total=None)


def learn(method, lessons, config=TRAIN):
    for lesson in lessons:
        method.begin_lesson(lesson, make_generator("stream", lesson.index))
        list(fit(method, lesson, config, seed=lesson.index))
        method.end_lesson(lesson)
    return method


def answer(method, names=DIGITS[:4], n=5):
    inputs = wrap_pixels(draw_pixels(n, (32, 32), "asked"), "asked")
    method.eval()
    with torch.no_grad():
        return method(inputs, method.prepare(names, method.precompute(names))).logits


# --- streams that stop ---


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        pytest.param(name, moments, marks=[pytest.mark.slow] * (moments is None))
        for name in MAKERS
        for moments in ((0.6,), None)
    ],
)
def test_stopped_anywhere_it_ends_with_the_same_bits(name, moments, clip, tmp_path):
    data, events = open_data("digits"), []
    data = replace(data, test=data.test.select(range(0, len(data.test), 30)))
    task = Continual(data, shots=3, stages=5, order="seeded")
    make = lambda: MAKERS[name](clip)  # noqa: E731
    vlprompt.run(make(), task, TRAIN, tmp_path / "whole", on_event=lambda *event: events.append(event))
    every = len(events)
    places = (
        [round(p * every) for p in moments] if moments else [1, every // 2, 3, every // 3, 2, every // 2, every // 4]
    )
    interrupted(make, task, TRAIN, tmp_path / "parts", places, every)
    same_but_for_time(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", MAKERS)
def test_a_stream_is_restored_without_data(name, clip):
    lessons = [lesson_of(DIGITS[k : k + 1], k) for k in range(4)]
    method = learn(MAKERS[name](clip), lessons)
    again = MAKERS[name](clip)
    again.restore(lessons, {k: v.clone() for k, v in method.state_dict().items()})
    assert torch.equal(answer(method), answer(again))


def count_bytes(method):
    return sum(t.nbytes for t in method.state_dict().values())


@pytest.mark.parametrize("name", MAKERS)
def test_a_hundred_lessons_of_a_class_keep_what_the_header_says(name, clip):
    e, d, names = clip.feature_dim, clip.image.dim, tuple(ClassName(f"class {k}") for k in range(100))
    method, sizes = MAKERS[name](clip), []
    for k, class_name in enumerate(names):
        lesson = Lesson(Split((), (), (class_name,)), index=k, total=None)
        method.begin_lesson(lesson, make_generator(k))
        sizes.append(count_bytes(method))
    by_lesson = {
        "rapf": 4 * e**2 + 4 * e + 4,
        "proof": 8 * e**2 + (8 + 4 * 3) * e + 4 * e * (3 + 1) + 8,
        "engine": 8 * e**2 + 8 * e + 8 * d + 4 * e + 8,
    }[name]
    assert {b - a for a, b in pairwise(sizes)} == {by_lesson}


# --- lessons of odd shapes ---


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:lesson. expected")
def test_a_lesson_of_one_class_a_class_of_one_image_and_one_without(name, clip):
    lessons = [
        lesson_of(DIGITS[:1], 0, n=1),
        lesson_of(DIGITS[1:3], 1, n={"one": 1, "two": 2}),
        lesson_of(DIGITS[3:5], 2, n={"three": 3, "four": 0}),
    ]
    logits = answer(learn(MAKERS[name](clip), lessons), DIGITS[:5])
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_that_comes_back_has_one_row_and_is_no_earlier_one_then(name, clip):
    lessons = [lesson_of(DIGITS[:3], 0), lesson_of((DIGITS[3], DIGITS[1]), 1)]
    method = learn(MAKERS[name](clip), lessons)
    assert class_ids(method.names) == WORDS[:4]
    counts = {"rapf": lambda: method.gaussians.counts[:, 0], "proof": lambda: method.counts}
    counts = counts.get(name, lambda: method.gaussians.counts)()
    assert counts.tolist() == [3, 6, 3, 3]
    if name == "rapf":
        replay = method.build_replay()
        assert replay.earlier.tolist() == [0, 2]
        assert set(replay.pairs[:, 1].tolist()) == {1, 3}
    if name == "engine":
        assert method.is_new.tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", MAKERS)
def test_equal_images_are_learned(name, clip):
    lesson = lesson_of(DIGITS[:2])
    first = lesson.train.items[0]
    same = replace(lesson, train=replace(lesson.train, items=(first,) * len(lesson.train)))
    assert answer(learn(MAKERS[name](clip), [same]), DIGITS[:2]).isfinite().all()


@pytest.mark.parametrize("name", MAKERS)
def test_training_knows_all_classes_so_far_and_no_later_ones(name, clip):
    """The loss of the second lesson hangs on the classes of the first, whether or not the lesson has their names."""
    lessons, losses = [lesson_of(DIGITS[:2], 0), lesson_of(DIGITS[2:4], 1)], []
    for names in (DIGITS[2:4], DIGITS[:4]):  # task.mask=true and false
        second = lessons[1].train
        labels = tuple(class_ids(names).index(class_ids(second.names)[label]) for label in second.labels)
        lesson = replace(lessons[1], train=replace(second, names=names, labels=labels))
        method = learn(MAKERS[name](clip), lessons[:1])
        method.begin_lesson(lesson, make_generator("second"))
        losses.append([step.loss for step in fit(method, lesson, replace(TRAIN, epochs=1), seed=1)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if name == "rapf":
        assert method.build_replay().text.shape[0] == 4


# --- RAPF ---


def test_a_map_that_did_not_change_stays_and_one_that_did_is_its_mixture():
    draw = make_generator("maps")
    old, new = (torch.randn(6, 6, generator=draw) for _ in range(2))
    assert torch.allclose(fuse(old, old, 0.2), old, atol=1e-6)
    assert torch.allclose(fuse(old, new, 1.0), new, atol=1e-6)
    basis = torch.linalg.svd(old.double())[0]
    change = (basis.T @ new.double() - basis.T @ old.double()).abs()
    share = (change / change.max() + 0.2).clamp(max=1)
    mixed = basis @ (basis.T @ old.double() + share * (basis.T @ (new - old).double()))
    assert torch.allclose(fuse(old, new, 0.2), mixed.float(), atol=1e-5)


def test_what_rapf_draws_is_new_at_each_step_and_the_same_again(clip):
    method = learn(MAKERS["rapf"](clip), [lesson_of(DIGITS[:4], 0)])
    method.begin_lesson(lesson_of(DIGITS[4:6], 1), make_generator(1))
    replay = method.build_replay()
    assert replay.earlier.tolist() == [0, 1, 2, 3]
    assert replay.pairs.tolist() == [[i, j] for i in range(4) for j in (4, 5)]  # of a threshold above all distances
    (rows, noise, of_pairs), again, other = (method.draw(replay, step) for step in (3, 3, 4))
    assert (rows.shape, noise.shape, of_pairs.shape) == ((2,), (2, 3, 64), (8, 2, 64))
    assert torch.equal(noise, again[1])
    assert not torch.equal(noise, other[1])
    assert {tuple(sorted(method.draw(replay, k)[0].tolist())) for k in range(60)} == {
        (i, j) for i in range(4) for j in range(i + 1, 4)
    }
    method.threshold = 0.0
    assert not len(method.build_replay().pairs)


def test_an_identity_start_is_the_frozen_clip(clip):
    method = m.RAPF(clip, start="identity")
    method.begin_lesson(lesson_of(DIGITS[:4]), make_generator(0))
    zero_shot = m.ZeroShot(clip, method.template)
    assert torch.allclose(answer(method), answer(zero_shot), atol=1e-4)


# --- PROOF ---


def test_exemplars_are_those_of_herding_and_join_by_their_share(clip):
    method = learn(m.PROOF(clip, n_exemplars=2), [lesson_of(DIGITS[:3], 0, n={"zero": 1, "one": 3, "two": 4})])
    assert method.exemplar_counts.tolist() == [1, 2, 2]
    method.begin_lesson(lesson_of(DIGITS[3:5], 1, n=5), make_generator(1))
    features, rows = method.draw_exemplars(10, 0)
    assert sorted(rows.tolist()) == [0, 1, 1, 2, 2]
    assert features.shape == (5, clip.feature_dim)
    assert len(method.draw_exemplars(4, 0)[0]) == 2
    none = learn(m.PROOF(clip, n_exemplars=0), [lesson_of(DIGITS[:2], 0), lesson_of(DIGITS[2:4], 1)])
    assert none.draw_exemplars(10, 0)[0].shape == (0, clip.feature_dim)


def test_a_class_that_comes_back_is_herded_among_its_exemplars_too(clip):
    first, second = lesson_of(DIGITS[:2], 0, n=4), lesson_of(DIGITS[:2], 1, n=4)
    method = learn(m.PROOF(clip, n_exemplars=8), [first, second])
    assert method.exemplar_counts.tolist() == [8, 8]
    assert len(method.exemplars[0].unique(dim=0)) == 8


def test_maps_and_contexts_of_earlier_lessons_are_frozen_but_for_texts(clip):
    method = learn(m.PROOF(clip), [lesson_of(DIGITS[:2], 0)])
    before = {k: v.clone() for k, v in method.state_dict().items()}
    learn(method, [lesson_of(DIGITS[2:4], 1)])
    after = method.state_dict()
    same = {k for k, v in before.items() if v.shape == after[k].shape and torch.equal(v, after[k])}
    assert {"image_maps.0.weight", "image_maps.0.bias", "contexts.0"} <= same
    assert not {"text_maps.0.weight", "text_maps.0.bias", "fusion.query.weight", "log_scale"} & same


# --- ENGINE ---


def test_the_second_ranking_is_that_of_loops():
    draw = make_generator("ranking")
    scores, image = torch.randn(4, 5, generator=draw), torch.nn.functional.normalize(torch.randn(4, 8, generator=draw))
    pairs = torch.randn(5, 5, 8, generator=draw)
    found = rank_again(scores, image, pairs, 3)
    for b in range(4):
        best = scores[b].topk(3).indices.tolist()
        for c in range(5):
            mean = torch.stack([pairs[c, o] for o in best if o != c]).mean(0) if c in best else None
            wanted = 0.0 if mean is None else float(torch.cosine_similarity(mean, image[b], 0))
            assert float(found[b, c]) == pytest.approx(wanted, abs=1e-6)
    assert not rank_again(scores[:, :1], image, pairs[:1, :1], 3).any()


def test_the_mean_of_the_precisions_is_by_classes():
    draw = make_generator("precisions")
    x, labels = torch.randn(30, 4, generator=draw), torch.arange(30) % 5
    gaussians, parts = AveragedGaussians(), [(labels < 3), (labels >= 3)]
    gaussians.begin_lesson(3, True, 4, torch.device("cpu"))
    gaussians.add(x[parts[0]], labels[parts[0]])
    gaussians.begin_lesson(5, False, 4, torch.device("cpu"))
    gaussians.add(x[parts[1]], labels[parts[1]])
    one, two = (estimate_precision(compute_gaussian_sums(x[part], labels[part], 5)) for part in parts)
    assert torch.allclose(gaussians.precision, (3 * one + 2 * two) / 5, atol=1e-12)
    means = torch.stack([x[labels == c].double().mean(0) for c in (4, 1)])
    weights, biases = gaussians.build_classifier(torch.tensor([4, 1]))
    assert torch.allclose(weights, means @ gaussians.precision, atol=1e-10)
    squares = torch.einsum("cd,de,ce->c", means, gaussians.precision, means)
    assert torch.allclose(biases, -squares / 2 - torch.tensor(2.0).double().log(), atol=1e-10)


def test_sentences_against_later_classes_are_not_read(clip, tmp_path):
    content = json.loads(Path(PAIRS).read_text())
    names = DIGITS[:3]
    whole = PairSentences(clip, PAIRS, names).stack_by_class()
    known = {a: {b: text for b, text in others.items() if b in WORDS[:3]} for a, others in content.items()}
    (tmp_path / "pairs.json").write_text(json.dumps(known))
    for one, other in zip(
        whole, PairSentences(clip, str(tmp_path / "pairs.json"), names).stack_by_class(), strict=True
    ):
        assert torch.equal(one, other)
    [alone] = PairSentences(clip, PAIRS, names[:1]).stack_by_class()  # one class is told from none
    assert torch.allclose(alone, clip.text(["digit zero"])[0])


def test_without_sentences_it_uses_no_language_model(clip):
    method = m.ENGINE(clip, text_weight=0.0, rerank_weight=0.0)
    assert method.uses == ()
    assert m.ENGINE(clip, PAIRS).uses == ("llm_texts",)
    assert answer(learn(method, [lesson_of(DIGITS[:4])])).isfinite().all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"method\.descriptions: expected a file of what each class has .* got none\. Write JSON"),
        ({}, r"got none for 'digit zero' against 'digit one'\. Add it, or set method\.rerank_weight=0\."),
        ({"zero": ["a ring"]}, r"expected \{other class name: text\} for 'digit zero' .*, got a list\."),
        ({"zero": {"one": ["ring", " "]}}, r"for 'digit zero' against 'digit one' .*, got \['ring', ' '\]\. Write"),
        ({"zero": {}, "ZERO": {}}, r"expected each class once .* differ in case"),
        ([1], r"expected \{class name: \{other class name: text or \[texts\]\}\} .*, got a list"),
    ],
)
def test_files_of_pairs_that_do_not_fit_are_refused(content, said, clip, tmp_path):
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        learn(m.ENGINE(clip, None if content is None else str(file)), [lesson_of(DIGITS[:2])])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda clip: m.ENGINE(clip, PAIRS, n_reranked=1), r"method\.n_reranked: expected at least 2, got 1"),
        (
            lambda clip: m.ENGINE(clip, PAIRS, gaussian_weight=1.5),
            r"method\.gaussian_weight: expected at most 1, got 1\.5",
        ),
        (lambda clip: m.PROOF(clip, n_exemplars=-1), r"method\.n_exemplars: expected at least 0, got -1"),
        (lambda clip: m.PROOF(clip, context_length=0), r"method\.context_length: expected at least 1, got 0"),
        (lambda clip: m.PROOF(clip, dropout=1.5), r"method\.dropout: expected at most 1, got 1\.5"),
        (lambda clip: m.RAPF(clip, draws_per_class=0), r"method\.draws_per_class: expected at least 1, got 0"),
        (lambda clip: m.RAPF(clip, threshold=-1.0), r"method\.threshold: expected at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(make, said, clip):
    with pytest.raises(ValueError, match=said):
        make(clip).begin_lesson(lesson_of(DIGITS[:2]), make_generator(0))


@pytest.mark.parametrize("name", ["proof", "engine"])
def test_a_class_that_never_came_is_refused_by_its_name(name, clip):
    method = learn(MAKERS[name](clip), [lesson_of(DIGITS[:2])])
    with pytest.raises(ValueError, match=r"no weights for class 'seven'"):
        answer(method, (*DIGITS[:2], DIGITS[7]))
