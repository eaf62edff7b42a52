"""SD-LoRA, InfLoRA, LAE and HiDe-Prompt in streams: twins, what is left alone, bad input, bytes, stops."""

import copy
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kills import interrupted, same_but_for_time
from shared import OWN_GOLDEN, golden, golden_vit_of, relative, vit_tower_of
from test_continual_methods import NAMES, STREAM, answer, learned, lesson_of, seen

import vlprompt
from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.data.loading import open_data
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Continual

ALIGN = {"alignment_epochs": 2, "draws": 10}
MAKERS = {
    "sdlora": lambda t: m.SDLoRA(t, LinearHead(), 2),
    "inflora": lambda t: m.InfLoRA(t, LinearHead(), 2),
    "lae": lambda t: m.LAE(t, LinearHead(), n_layers=2, decay=0.9, frozen_fraction=0.4),
    "lae prefix": lambda t: m.LAE(t, LinearHead(), "prefix", prompt_length=2, decay=0.9, frozen_fraction=0.0),
    "hideprompt": lambda t: m.HiDePrompt(t, LinearHead(), 2, (0, 1), n_centroids=2, guesser_lr_factor=1.0, **ALIGN),
}


@pytest.fixture(scope="module")
def trunk():
    return golden_vit_of(OWN_GOLDEN).requires_grad_(False)


@pytest.fixture(scope="module")
def tower(trunk):
    return vit_tower_of(trunk, "golden-vit")


@pytest.fixture(scope="module")
def pixels():
    return golden("vit-plain", OWN_GOLDEN)[1]["images"]


def trained_features(method, pixels, names=NAMES):
    """The features of the pass that training makes, whose updates are not in the weights."""
    method.train()
    return method(seen(pixels), method.prepare(names, method.precompute(names))).image_features.detach()


# --- all of them ---


@pytest.mark.parametrize("name", MAKERS)
def test_two_lessons(tower, name):
    """State comes back without data, an answer does not depend on its batch, and both lessons are known."""
    method, again = learned(MAKERS[name](tower), STREAM, epochs=4), MAKERS[name](tower)
    again.restore(STREAM, copy.deepcopy(method.state_dict()))
    x = torch.stack([item.pixels(None, None) for lesson in STREAM for item in lesson.train.items])
    out = answer(method, x)
    assert torch.equal(out.logits, answer(again, x).logits)
    for i in range(0, len(x), 5):
        assert torch.allclose(answer(method, x[i : i + 1]).logits, out.logits[i : i + 1], atol=1e-4)
    labels = torch.tensor([*STREAM[0].train.labels, *(4 + i for i in STREAM[1].train.labels)])
    late = out.logits[16:, 4:].argmax(1) == labels[16:] - 4
    assert float(late.float().mean()) > 0.6  # what was just learned, among its own classes


@pytest.mark.parametrize("name", MAKERS)
def test_small_and_returning_lessons(tower, name):
    """A lesson of one class, a class of one image, images that are all the same, a class that comes back."""
    one = lesson_of(NAMES[4:5], 1, 4, each=1)
    same = lesson_of(NAMES[5:], 2, 4)
    same = replace(same, train=replace(same.train, items=same.train.items[:1] * len(same.train)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = learned(MAKERS[name](tower), [lesson_of(NAMES[:4], 0, 4), one, same, lesson_of(NAMES[:2], 3, 4)])
    assert answer(method, torch.randn(2, 3, 32, 32)).logits.isfinite().all()
    assert all(t.isfinite().all() for t in method.state_dict().values())


def count_bytes(method):
    return sum(t.nbytes for t in method.state_dict().values())


SLOPES = {  # bytes of a lesson, and of a class beside the 49 numbers of its row of the head
    "sdlora": (8 * (4 * 2 * (48 + 48)) + 4, 0),  # 4 layers, q and v
    "inflora": (0, 0),
    "lae": (0, 0),
    "lae prefix": (0, 0),
    "hideprompt": (8 * 2 * 2 * 48, 16 * 2 * 48 + 8 * 2 + 4 * 49 + 8),  # centroids, counts, the guesser's row, a lesson
}


@pytest.mark.parametrize("name", MAKERS)
def test_bytes_of_a_hundred_lessons(tower, name):
    method, sizes, (each, by_class) = MAKERS[name](tower), [], SLOPES[name]
    for t in range(100):
        names = (ClassName(f"class {t}", str(t)),)
        method.begin_lesson(Lesson(Split((), (), names), index=t, total=100), make_generator(t))
        sizes.append(count_bytes(method))
    assert {b - a for a, b in itertools.pairwise(sizes)} == {each + by_class + 4 * 49}


STREAMS = {"two": {"stages": 2}, "memory": {"stages": 5, "buffer": 12, "mask": False}}
TRAIN = TrainConfig(epochs=3, batch_size=8, lr=0.01, warmup=0)
STOPS = {0: lambda n: n // 2, 1: lambda n: 1, 2: lambda n: 3, 3: lambda n: n // 3, 4: lambda n: 2, 5: lambda n: n // 4}


@pytest.mark.parametrize(
    ("name", "stream", "stops"),
    [
        *((name, "two", [0]) for name in MAKERS),
        *(pytest.param(name, "memory", [*STOPS, 0], marks=pytest.mark.slow) for name in MAKERS),
    ],
)
def test_stopped_anywhere_it_ends_with_the_same_bits(name, stream, stops, tmp_path):
    vit, data, moments = vlprompt.load("glyph-vit/random"), open_data("digits"), []
    data = replace(data, test=data.test.select(range(0, len(data.test), 20)))
    task, make = Continual(data, shots=2, **STREAMS[stream]), lambda: MAKERS[name](vit)
    vlprompt.run(make(), task, TRAIN, tmp_path / "whole", on_event=lambda *told: moments.append(told))
    interrupted(make, task, TRAIN, tmp_path / "parts", [STOPS[k](len(moments)) for k in stops], len(moments))
    same_but_for_time(tmp_path / "whole", tmp_path / "parts")


def test_a_stream_in_another_order_is_another_run(tmp_path):
    vit, data = vlprompt.load("glyph-vit/random"), open_data("digits")
    vlprompt.run(MAKERS["inflora"](vit), Continual(data, 2, shots=1), TRAIN, tmp_path, max_lessons=1)
    with pytest.raises(ValueError, match=r"order"):
        vlprompt.run(MAKERS["inflora"](vit), Continual(data, 2, shots=1, order="seeded"), TRAIN, tmp_path)


BAD = {
    r"method\.rank: expected at least 1, got 0": lambda t: m.SDLoRA(t, LinearHead(), 0),
    r"method\.sites: expected linear maps .* got 'norm1'": lambda t: m.SDLoRA(t, LinearHead(), sites=("norm1",)),
    r"method\.rank: expected at most 48, got 49": lambda t: m.InfLoRA(t, LinearHead(), 49),
    r"method\.threshold: expected at most 0\.9, got 0\.95": lambda t: m.InfLoRA(t, LinearHead(), final_threshold=0.9),
    r"method\.decay: expected at most 1, got 1\.5": lambda t: m.LAE(t, LinearHead(), decay=1.5),
    r"method\.bottleneck_dim: expected at least 1, got 0": lambda t: m.LAE(t, LinearHead(), bottleneck_dim=0),
    r"method\.mixing: expected at most 1, got 2": lambda t: m.HiDePrompt(t, LinearHead(), mixing=2.0),
    r"method\.layers: expected layers 0 to 3 of the tower, got \[7\]": lambda t: m.HiDePrompt(
        t, LinearHead(), layers=(7,)
    ),
    r"method\.draws: expected at least 5, got 4": lambda t: m.HiDePrompt(t, LinearHead(), draws=4),
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_make_no_sense(tower, message):
    with pytest.raises(ValueError, match=message):
        BAD[message](tower).begin_lesson(STREAM[0], make_generator(0))


@pytest.mark.parametrize("name", ["inflora", "hideprompt"])
def test_streams_that_end_nowhere(tower, name):
    free = lesson_of(NAMES, total=None, has_task_boundaries=False)
    with pytest.raises(ValueError, match=rf"{name}: expected .* Use l2p, or dualprompt with method\.pool_size"):
        MAKERS[name](tower).begin_lesson(free, make_generator(0))
    if name == "inflora":
        with pytest.raises(ValueError, match=r"inflora: expected a known number of lessons"):
            MAKERS[name](tower).begin_lesson(lesson_of(NAMES, total=None), make_generator(0))


@pytest.mark.parametrize("name", MAKERS)
def test_a_network_without_blocks(name):
    opaque = vlprompt.load("timm:test_resnet/random")
    with pytest.raises(ValueError, match=r"expected a block-wise tower"):
        MAKERS[name](opaque).begin_lesson(STREAM[0], make_generator(0))


# --- low-rank updates ---


@pytest.mark.parametrize("name", ["sdlora", "inflora"])
def test_they_merge_exactly(tower, pixels, name):
    method = learned(MAKERS[name](tower), STREAM)
    features = trained_features(method, pixels)
    assert relative(answer(method, pixels).image_features, features) < 1e-5
    assert relative(method.merge_backbone()(seen(pixels)), features) < 1e-5
    assert relative(tower(seen(pixels)), features) > 1e-2


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_past_directions_of_sdlora_are_not_touched(tower, optimizer):
    method = learned(MAKERS["sdlora"](tower), STREAM[:1], optimizer=optimizer, weight_decay=0.1)
    past = {n: p.detach().clone() for n, p in method.named_parameters() if n.endswith("s.0")}
    learned(method, STREAM[1:], optimizer=optimizer, weight_decay=0.1)
    now = dict(method.named_parameters())
    changed = [n for n, p in past.items() if not torch.equal(now[n], p)]
    assert changed == ["magnitudes.0"]
    assert len(past) == 2 * 2 * 4 + 1


@pytest.mark.parametrize("keep", [True, False])
def test_the_magnitudes_of_sdlora(tower, keep):
    method = learned(m.SDLoRA(tower, LinearHead(), 2, magnitude=0.5, keep_magnitudes=keep), STREAM[:1])
    first = method.magnitudes[0].item()
    method.begin_lesson(STREAM[1], make_generator(1))
    assert first != 0.5
    assert [x.item() for x in method.magnitudes] == [first if keep else 0.5, 0.5]
    assert all(x.requires_grad for x in method.magnitudes)


def test_a_finished_update_of_inflora_stays(tower, pixels):
    method = learned(MAKERS["inflora"](tower), STREAM[:1])
    features = trained_features(method, pixels, NAMES[:4])
    method.begin_lesson(STREAM[1], make_generator(1))
    assert relative(trained_features(method, pixels), features) < 1e-5
    assert not method.up.any()
    assert method.finished.any()


def test_what_inflora_learns_does_not_read_directions_that_were_taken(tower):
    method = learned(m.InfLoRA(tower, LinearHead(), 2, threshold=0.8), STREAM[:1])
    taken, before = torch.eye(48).double() - method.free, method.finished + method.up.detach() @ method.down[:, None]
    learned(method, STREAM[1:])
    change = method.finished + method.up.detach() @ method.down[:, None] - before
    assert change.abs().max() > 1e-4
    assert (change.double() @ taken[:, None]).abs().max() < 1e-5 * change.abs().max()
    ranks = torch.linalg.matrix_rank(taken)
    assert (ranks >= 1).all()
    assert torch.equal(taken.diagonal(dim1=1, dim2=2).sum(1).round().long(), ranks)
    assert (count_free(method) < 48 - ranks).any()


def count_free(method):
    return method.free.diagonal(dim1=1, dim2=2).sum(1).round().long()


def test_a_first_lesson_that_takes_half_of_the_directions_or_all(tower):
    """The authors' code fails at half."""
    with pytest.warns(UserWarning, match=r"inflora: lesson 2 has [01] free directions .* Lower method.threshold"):
        method = learned(m.InfLoRA(tower, LinearHead(), 2, threshold=1.0), STREAM)
    assert (method.down.abs().amax(2) < 1e-10).any()  # a sum of shares that rounds above 1 leaves one direction free
    method = learned(m.InfLoRA(tower, LinearHead(), 2, threshold=1 - 1e-5), STREAM[:1])
    assert ((count_free(method) > 0) & (count_free(method) < 24)).any()
    learned(method, STREAM[1:])
    assert answer(method, torch.randn(2, 3, 32, 32)).logits.isfinite().all()


def test_the_moments_do_not_depend_on_the_batch(tower):
    method, other = (m.InfLoRA(tower, LinearHead(), 2, batch_size=n) for n in (3, 100))
    for one in (method, other):
        one.begin_lesson(STREAM[0], make_generator(0))
    assert relative(method.collect_moments(STREAM[0]), other.collect_moments(STREAM[0])) < 1e-6


# --- LAE ---


def test_the_answer_of_lae_is_the_larger_softmax(tower, pixels):
    method = learned(MAKERS["lae"](tower), STREAM, lr=0.5, epochs=8)
    online, offline = (
        F.linear(tower(seen(pixels), Prompt(adapters={f"{i}/mlp+": part for i, part in enumerate(parts)})),
                 method.head.weight, method.head.bias).softmax(1)
        for parts in (method.online, method.offline)
    )  # fmt: skip
    assert relative(online, offline) > 1e-3
    out = answer(method, pixels).logits.exp()
    assert relative(out, torch.maximum(online, offline)) < 1e-5
    part = F.linear(tower(seen(pixels), method.build_prompt(method.online)), method.head.weight, method.head.bias)
    assert relative(method.train()(seen(pixels), (tower, slice(None))).logits, part) < 1e-5


def test_the_average_of_lae_and_its_frozen_steps(tower):
    method = m.LAE(tower, LinearHead(), n_layers=1, decay=0.75, frozen_fraction=0.5)
    method.begin_lesson(STREAM[0], make_generator(0))
    average = {n: p.detach().clone() for n, p in method.online.named_parameters()}
    start, moved = copy.deepcopy(average), []
    for step in fit(method, STREAM[0], TrainConfig(epochs=5, batch_size=8, lr=0.5, warmup=0, weight_decay=0.1)):
        now = dict(method.online.named_parameters())
        average = {n: 0.75 * x + 0.25 * now[n].detach() for n, x in average.items()}
        moved.append(any(not torch.equal(now[n], x) for n, x in start.items()))
        assert step.total_steps == 10
    assert moved == [False] * 5 + [True] * 5
    for name, p in method.offline.named_parameters():
        assert torch.allclose(p, average[name], atol=1e-6)


def write_out(trunk, x, prefixes):
    """timm's blocks in float64, with compensated prefixes in the first ones."""
    x = trunk._pos_embed(trunk.patch_embed(x))
    for i, block in enumerate(trunk.blocks):
        a, h = block.attn, block.attn.num_heads
        q, k, v = a.qkv(block.norm1(x)).unflatten(2, (3, h, -1)).permute(2, 0, 3, 1, 4)
        weights = q @ k.mT * q.shape[-1] ** -0.5
        if i < len(prefixes):
            p = prefixes[i]
            keys, values = (
                (scale * rows).double().unflatten(1, (h, -1)).transpose(0, 1)
                for scale, rows in ((p.key_scale, p.keys), (p.value_scale, p.values))
            )
            own = q @ keys.mT * q.shape[-1] ** -0.5
            both = torch.cat([own, weights], -1).softmax(-1)
            mixed = both[..., len(p.keys) :] @ v + own.softmax(-1) @ values
        else:
            mixed = weights.softmax(-1) @ v
        x = x + a.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return trunk.norm(x)[:, 0]


@pytest.mark.parametrize("n_layers", [2, 4])
def test_compensated_prefixes(tower, trunk, pixels, n_layers):
    """In the last block too, which makes queries of the class token alone."""
    method = m.LAE(tower, LinearHead(), "prefix", prompt_length=3, n_layers=n_layers)
    method.begin_lesson(STREAM[0], make_generator(0))
    with torch.no_grad():
        for p in method.online.parameters():
            p += 0.5 * torch.randn(p.shape, generator=make_generator("prefix", p.ndim))
        twin = write_out(copy.deepcopy(trunk).double(), pixels.double(), method.online)
        features = tower(seen(pixels), method.build_prompt(method.online))
    assert relative(features.double(), twin) < 1e-5
    assert relative(tower(seen(pixels), NOTHING), features) > 1e-2


def test_compensated_prefixes_with_recomputed_layers(tower):
    states = [
        learned(MAKERS["lae prefix"](tower), STREAM[:1], activation_checkpointing=is_on).state_dict()
        for is_on in (False, True)
    ]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(s.values() for s in states), strict=True))


# --- HiDe-Prompt ---


def test_hideprompt_answers_with_the_prompts_of_the_guessed_class(tower, pixels):
    lessons = [lesson_of(NAMES[:4], 0, 3), lesson_of(NAMES[4:], 1, 3), lesson_of(NAMES[:1], 2, 3)]
    method = learned(MAKERS["hideprompt"](tower), lessons, epochs=6)
    assert method.guesser.class_lessons.tolist() == [2, 0, 0, 0, 1, 1, 1]  # a class is of its latest lesson
    x = torch.cat([torch.stack([item.pixels(None, None) for item in lesson.train.items[::2]]) for lesson in lessons])
    out = answer(method, x)
    guesses = method.guesser(tower(seen(x)), slice(None)).argmax(1)
    assert torch.equal(out.predicted_lesson, method.guesser.class_lessons[guesses])
    assert len(set(out.predicted_lesson.tolist())) > 1
    for i, lesson in enumerate(out.predicted_lesson.tolist()):
        features = tower(seen(x[i : i + 1]), method.insert(method.prompts[lesson][None]))
        assert relative(out.image_features[i : i + 1], features) < 1e-5
    part = answer(method, x, NAMES[4:])  # among the classes that are asked for
    assert part.predicted_lesson.tolist() == [1] * len(x)


@pytest.mark.parametrize("mask", [True, False])
def test_a_lesson_has_the_classes_of_its_images(tower, mask):
    names = NAMES[4:] if mask else NAMES
    second = STREAM[1] if mask else replace(STREAM[1], train=replace(
        STREAM[1].train, names=names, labels=tuple(4 + i for i in STREAM[1].train.labels)))  # fmt: skip
    method = learned(MAKERS["hideprompt"](tower), [STREAM[0], second])
    assert method.guesser.class_lessons.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (method.prompted_classes.counts.sum(1) == 4).all()


def test_past_prompts_of_hideprompt_are_not_touched(tower):
    method = learned(MAKERS["hideprompt"](tower), STREAM[:1], optimizer="adam", weight_decay=0.1)
    first, means = method.prompts[0].detach().clone(), method.prompted_classes.means.clone()
    learned(method, STREAM[1:], optimizer="adam", weight_decay=0.1, epochs=0)
    assert torch.allclose(*method.prompts)  # it begins as the one before
    method = learned(MAKERS["hideprompt"](tower), STREAM[:1], optimizer="adam", weight_decay=0.1)
    learned(method, STREAM[1:], optimizer="adam", weight_decay=0.1)
    assert torch.equal(method.prompts[0], first)
    assert not torch.equal(method.prompts[1], first)
    assert torch.equal(method.prompted_classes.means[:4], means)


def test_the_alignment_of_hideprompt(tower):
    options = {"epochs": 1, "lr": 0.01}
    plain, aligned = (
        m.HiDePrompt(tower, LinearHead(), 2, (0,), n_centroids=2, alignment_epochs=n, draws=10, mixing=0.5)
        for n in (0, 20)
    )
    for method in (plain, aligned):
        learned(method, STREAM[:1], **options)
    assert torch.equal(plain.head.weight, aligned.head.weight)  # the first lesson needs none
    for method in (plain, aligned):
        learned(method, STREAM[1:], **options)
    assert torch.equal(*(method.prompts[1] for method in (plain, aligned)))
    assert not torch.equal(plain.guesser.head.weight, aligned.guesser.head.weight)
    x = torch.stack([item.pixels(None, None) for lesson in STREAM for item in lesson.train.items])
    labels = torch.tensor([*STREAM[0].train.labels, *(4 + i for i in STREAM[1].train.labels)])
    scores = [F.cross_entropy(answer(method, x).logits, labels) for method in (plain, aligned)]
    assert scores[1] < scores[0]


def test_the_rates_of_hideprompt(tower):
    method = m.HiDePrompt(tower, LinearHead(), head_lr_factor=0.5, guesser_lr_factor=0.25)
    method.begin_lesson(STREAM[0], make_generator(0))
    groups, factors = method.param_groups(), {}
    for group in groups:
        factors |= {id(p): group["lr_factor"] for p in group["params"]}
        assert all((group.get("weight_decay") == 0.0) == (p.ndim < 2) for p in group["params"])
    assert {factors[id(p)] for p in method.head.parameters()} == {0.5}
    assert {factors[id(p)] for p in method.guesser.parameters()} == {0.25}
    assert factors[id(method.prompts[0])] == 1.0
    assert len(factors) == len(list(method.parameters()))


def test_class_texts_answer_hideprompt_where_the_feature_has_another_width():
    """A head without parameters is not aligned; the guesser is."""
    clip = build_tiny_clip(embed_dim=40)
    method = m.HiDePrompt(clip.image, TextHead(clip), 2, (0, 1), n_centroids=2, **ALIGN)
    learned(method, STREAM)
    out = answer(method, torch.randn(2, 3, 32, 32))
    assert out.logits.shape == (2, 7)
    assert method.frozen_classes.means.shape == (7, 2, 40)
    with pytest.raises(ValueError, match=r"no weights for class 'yak'"):
        answer(method, torch.randn(2, 3, 32, 32), (*NAMES, ClassName("yak")))


def test_a_class_of_one_image_has_the_covariance_of_its_lesson(tower):
    method = m.HiDePrompt(tower, LinearHead(), 2, (0,), statistics="covariance", **ALIGN)
    first = lesson_of(NAMES[:3], 0)
    single = replace(first, train=first.train.select([0, *range(4, 12)]))
    with pytest.warns(UserWarning, match=r"expected two images of a class for its covariance, got one of class 0, so"):
        learned(method, [single])
    spreads = method.prompted_classes.spreads
    assert relative(spreads[0], spreads[1:].mean(0)) < 1e-5
    assert answer(learned(method, STREAM[1:]), torch.randn(2, 3, 32, 32), NAMES[:3]).logits.isfinite().all()
