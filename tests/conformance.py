"""What every method must do: one suite over all files of vlprompt/methods, on a tiny random CLIP and real digits.

A method needs no entry here. SMALL holds arguments that make the paper's sizes fit the tiny CLIP; STARTS_AS_ZERO_SHOT
those that begin as the identity and with which settings.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import images
from PIL import Image

from vlprompt import methods
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.config.build import build_method, build_task, get_constructor_types, resolve_class
from vlprompt.config.describe import describe
from vlprompt.config.resolve import complete_arguments, resolve_grid
from vlprompt.config.sources import LayeredConfig
from vlprompt.core.batch import Batch, Unlabelled
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.data.builtin.digits import load_digit_arrays
from vlprompt.data.builtin.glyphs.words import DIGITS
from vlprompt.data.loading import open_data
from vlprompt.data.splits.label_hiding import anonymize_items, drop_labels
from vlprompt.data.splits.sampling import sample_few_shot
from vlprompt.engine.evaluate import iter_logits
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.runner import run
from vlprompt.methods import ZeroShot
from vlprompt.runtime.seeding import make_generator

COOP = {"name": "coop", "n_ctx": 4}
SMALL = {
    "coop": {"n_ctx": 4},
    "cocoop": {"n_ctx": 4, "reduction": 4},
    "kgcoop": {"method": COOP},
    "prograd": {"method": COOP},
    "promptsrc": {
        "method": {"name": "ivlp", "n_image_tokens": 2, "depth_text": 2, "depth_image": 3},
        "template": "imagenet-7",
    },
    "ivlp": {"depth_text": 2, "depth_image": 3},
    "maple": {"depth": 2},
    "vpt": {"head": {"name": "texts"}, "dropout": 0.0},
    "clip_lora": {"dropout": 0.0},
    "tip_adapter": {"finetune": True},
    "tpt": {"augmentations": 9, "train_context": True},
    "linear": {"solver": "fit"},
    "mlp": {"dropout": 0.0},
    "adapter": {"design": "houlsby"},
    "adaptformer": {"bottleneck_dim": 8, "dropout": 0.0},
    "convpass": {"bottleneck_dim": 4, "dropout": 0.0},
    "lora": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "lora_fa": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "l2p": {"pool_size": 4, "prompt_length": 2, "top_k": 2},
    "dualprompt": {"general_length": 2, "expert_length": 2},
    "coda_prompt": {"pool_size": 8, "prompt_length": 4},
    "s_prompts": {"prompt_length": 2, "n_centroids": 2},
    "ranpac": {"projection_dim": 100},
    "dapl": {"n_ctx": 2, "n_domain_ctx": 2, "threshold": 0.0},
    "upl": {"method": COOP, "images_per_class": 4},
    "entropy": {"method": COOP},
    "dann": {"bottleneck_dim": 8, "discriminator_dim": 16},
}
PLAIN = "a photo of a {name}."
WORDS = {"init_text": "a photo of a", "context_template": "{ctx} {name}."}
START = {"name": "coop", **WORDS}
STARTS_AS_BARE_TOWER = ("adapter", "adaptformer", "bitfit", "convpass", "full", "lora", "lora_fa", "partial")
STARTS_AS_ZERO_SHOT = {
    "coop": WORDS,
    "zero_shot": {"template": PLAIN},
    "kgcoop": {"method": START},
    "prograd": {"method": START},
    "taskres": {"template": PLAIN},
    "clap": {"template": PLAIN},
    "cross_modal": {"template": PLAIN},
    "clip_lora": {},
    **{name: {"head": {"name": "texts", "template": PLAIN}} for name in STARTS_AS_BARE_TOWER},
    "tpt": {"lr": 1e-12},
}
DEPENDS_ON_CLASSES = ("tpt",)  # scores depend on the set of classes (never on their order)
LANGUAGE_METHODS = [
    name for name in methods.find_classes() if "lm" in get_constructor_types(resolve_class("method", name))
]  # texts: test_language_methods.py
IMAGE_METHODS = sorted(set(methods.find_classes()) - set(LANGUAGE_METHODS))
pytestmark = pytest.mark.filterwarnings("ignore:no confident pseudo-label for")  # a random CLIP knows no digits


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


@pytest.fixture(scope="module")
def lesson():
    """With unlabelled images, which only adaptation methods get."""
    data = open_data("digits")
    target = anonymize_items(sample_few_shot(data.test, None, 2, 1)[0])
    return Lesson(*sample_few_shot(data.train, data.val, 2, 1), drop_labels(target), domains=("ink", "chalk"))


def make(name, clip, **more):
    cls = methods.find_classes()[name]
    settings = {**SMALL.get(name, {}), **more, "name": name}
    arguments = complete_arguments("method", getattr(methods, cls), settings, LayeredConfig([]))
    return build_method({"name": name, **arguments}, clip)


def begun(name, clip, lesson, seed=0):
    method = make(name, clip)
    method.begin_lesson(lesson, make_generator(seed))
    return method


def logits(method, pixels, names, keys="x"):
    inputs = pixels if isinstance(pixels, Images) else images(pixels, keys)
    with torch.no_grad():
        return method.eval()(inputs, method.prepare(names, method.precompute(names))).logits


def trained(name, clip, lesson, seed=0, epochs=1, **options):
    method = begun(name, clip, lesson, seed)
    train = TrainConfig(epochs=epochs, **{"batch_size": 7, "lr": 0.01, "warmup": 0, **options})
    losses = [s.loss for s in fit(method, lesson, train, seed=seed)]
    return method, losses


@pytest.fixture(scope="module")
def learned(clip, lesson):
    """Each method as it was trained once, for tests that only ask it."""
    made = {}

    def method(name):
        if name not in made:
            made[name] = trained(name, clip, lesson)[0]
        return made[name]

    return method


def weights_of(tower):
    weights = [t for t in vars(tower).values() if isinstance(t, torch.Tensor)]
    for block in tower.blocks:
        for value in vars(block).values():
            weights += [t for t in getattr(value, "__dict__", {}).values() if isinstance(t, torch.Tensor)]
            weights += list(value.parameters()) if isinstance(value, torch.nn.Module) else []
    return weights


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_the_backbone_stays_as_it_is(name, clip, lesson):
    frozen = weights_of(clip.image) + weights_of(clip.text)
    assert len(frozen) > 60
    before = [t.clone() for t in frozen]
    trained(name, clip, lesson)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(t.grad is None and not t.requires_grad for t in frozen)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_every_parameter_gets_a_gradient(name, clip, lesson):
    method = begun(name, clip, lesson)
    live = {n: p for n, p in method.named_parameters() if p.requires_grad and n not in method.parameters_without_grad}
    with_gradient = set()
    unlabelled = next(lesson.unlabelled.batches(9))
    train = method.training_lesson(lesson).train
    for batch in train.batches(10):  # a zero start (LoRA's) has its gradient from the second step on
        method.zero_grad()
        batch = replace(batch, unlabelled=unlabelled if method.needs_unlabelled else None, progress=0.5)
        terms, _ = method.loss_terms(batch, method.precompute(batch.names))
        total = sum(value for value, _ in terms.values())
        if live:
            total.backward()
        with_gradient |= {n for n, p in live.items() if p.grad is not None and p.grad.abs().sum() > 0}
        for p in live.values():
            p.data -= 0.1 * p.grad
    assert with_gradient == set(live)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_state_comes_back(name, clip, lesson, learned):
    method = learned(name)
    again = make(name, clip)
    again.restore([lesson], copy.deepcopy(method.state_dict()))
    x = torch.randn(5, 3, 32, 32, generator=make_generator("x"))
    assert torch.equal(logits(method, x, lesson.train.names), logits(again, x, lesson.train.names))


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_an_answer_does_not_depend_on_its_batch(name, lesson, learned):
    method = learned(name)
    x = torch.randn(6, 3, 32, 32, generator=make_generator("y"))
    together = logits(method, images(x, f"{name} whole"), lesson.train.names)
    alone = torch.cat([logits(method, images(x[i : i + 1], f"{name} {i}"), lesson.train.names) for i in range(6)])
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_new_names_are_taken_or_refused_loudly(name, clip, lesson):
    method, x = begun(name, clip, lesson), torch.randn(2, 3, 32, 32)
    names = (ClassName("snow leopard"), ClassName("red panda"), ClassName("yak {wild}"))
    try:
        scores = logits(method, x, names)
    except ValueError as error:
        assert "snow leopard" in str(error)  # noqa: PT017
    else:
        assert scores.shape == (2, 3)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_names_choose_and_order_the_answers(name, lesson, learned):
    method = learned(name)
    x, order = torch.randn(3, 3, 32, 32), [7, 2, 5, 9, 0, 1, 8, 6, 3, 4][: None if name in DEPENDS_ON_CLASSES else 3]
    full = logits(method, images(x, f"{name} order"), lesson.train.names)
    part = logits(method, images(x, f"{name} order"), tuple(lesson.train.names[i] for i in order))
    assert torch.allclose(part, full[:, order], atol=1e-5 * float(full.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_a_seed_gives_the_same_and_another_seed_another(name, clip, lesson):
    first, again, other = (trained(name, clip, lesson, seed) for seed in (1, 1, 2))
    assert first[1] == again[1]
    same = all(
        torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True)
    )
    assert same
    if first[1]:
        assert first[1] != other[1]


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_it_learns(name, clip, lesson):
    _, losses = trained(name, clip, lesson, epochs=8, batch_size=20)  # of all images, so that losses can be compared
    assert not losses or sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_bf16_is_near_fp32(name, clip, lesson):
    full, half = (trained(name, clip, lesson, precision=p)[1] for p in ("fp32", "bf16"))
    assert all(math.isclose(a, b, rel_tol=0.05, abs_tol=0.02) for a, b in zip(full, half, strict=True))


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_micro_batches_give_the_same_gradient(name, clip, lesson):
    if begun(name, clip, lesson).needs_whole_batch:
        with pytest.raises(ValueError, match="normalises over the whole batch"):
            trained(name, clip, lesson, micro_batch_size=3)
        return
    one, split = (trained(name, clip, lesson, micro_batch_size=m) for m in (None, 3))
    for a, b in zip(one[0].parameters(), split[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def stream(lesson, same):
    """Two lessons: of the same classes, or of five and five others."""
    parts = [range(10), range(10)] if same else [range(5), range(5, 10)]
    unlabelled, lessons = lesson.unlabelled, []
    for k, part in enumerate(parts):
        train = lesson.train.select_classes(part)
        target = Unlabelled(unlabelled.items, train.names, unlabelled.augment)
        lessons.append(Lesson(train, lesson.val.select_classes(part), target, domains=lesson.domains, index=k, total=2))
    return lessons


def after(name, clip, lessons, method=None):
    method = method or make(name, clip)
    for k, lesson in enumerate(lessons):
        method.begin_lesson(lesson, make_generator("stream", k))
        list(fit(method, lesson, TrainConfig(epochs=1, batch_size=7, lr=0.01, warmup=0), seed=k))
        method.end_lesson(lesson)
    return method


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_a_second_lesson(name, same, clip, lesson):
    """It is learned, its state comes back without data, and an answer still does not depend on its batch."""
    lessons, x = stream(lesson, same), torch.randn(6, 3, 32, 32, generator=make_generator("z"))
    method, again = after(name, clip, lessons), make(name, clip)
    again.restore(lessons, copy.deepcopy(method.state_dict()))
    together = logits(method, images(x, f"{name} second"), lesson.train.names)
    assert together.shape == (6, 10)
    assert together.isfinite().any(1).all()
    assert torch.equal(together, logits(again, images(x, f"{name} second"), lesson.train.names))
    alone = [logits(method, images(x[i : i + 1], f"{name} second {i}"), lesson.train.names) for i in range(6)]
    atol = 1e-5 * float(together[together.isfinite()].abs().max())
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=atol)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_the_first_lesson_begins_anew(name, clip, lesson):
    lessons = stream(lesson, same=False)
    method, fresh = after(name, clip, lessons), make(name, clip)
    for one in (method, fresh):
        one.begin_lesson(lessons[0], make_generator(0))
    state, fresh_state = method.state_dict(), fresh.state_dict()
    assert list(state) == list(fresh_state)
    assert all(torch.equal(state[k], fresh_state[k]) for k in fresh_state)
    assert [p.requires_grad for p in method.parameters()] == [p.requires_grad for p in fresh.parameters()]


@pytest.mark.parametrize("name", sorted(STARTS_AS_ZERO_SHOT))
def test_identity_at_the_start(name, clip, lesson):
    method = make(name, clip, **STARTS_AS_ZERO_SHOT[name])
    method.begin_lesson(lesson, make_generator(0))
    x = torch.randn(4, 3, 32, 32)
    pair = [logits(m, x, lesson.train.names, f"{name} start") for m in (method, ZeroShot(clip, PLAIN))]
    assert torch.allclose(*pair, atol=1e-3)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_the_constructor_only_stores(name, clip):
    method = make(name, clip)
    assert not list(method.parameters())
    settings = describe(method)
    assert settings["name"] == name
    for key, value in SMALL.get(name, {}).items():
        assert settings[key] == value or value.items() <= settings[key].items()
    assert build_method(settings, clip) is not method


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folders of a few handwritten digits: split/class/image with all ten, domain/class/image with two looks of two."""
    root, (arrays, labels) = tmp_path_factory.mktemp("small"), load_digit_arrays()
    places = [
        (f"digits/{split}/{word}/{i}.png", c, i)
        for c, word in enumerate(DIGITS)
        for split, part in (("train", range(2)), ("val", range(2, 3)), ("test", range(3, 5)))
        for i in part
    ]
    places += [
        (f"domains/{d}/{w}/{i}.png", c, i) for d in ("ink", "chalk") for c, w in enumerate(DIGITS[:2]) for i in range(6)
    ]
    for path, c, i in places:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        array = arrays[labels == c][i + 6 * ("chalk" in path)]
        Image.fromarray(array if "chalk" in path else 255 - array).save(root / path)
    return root


@pytest.mark.parametrize(
    "task", ["few_shot", "base_to_new", pytest.param("transfer", marks=pytest.mark.slow), "continual", "domain"]
)
@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_its_recipe_runs(name, task, clip, tmp_path, pictures, small):
    short = ["train.epochs=1", "train.iterations=null"]
    short += {
        "transfer": [f"task.targets=[{pictures}]"],
        "continual": ["task.stages=2"],
        "domain": ["task.source=ink", "task.target=chalk"],
    }.get(task, [])
    short += {
        "tpt": ["method.augmentations=3", "train.micro_batch_size=50"],
        "promptsrc": ["method.template=imagenet-7"],
        "coda_prompt": ["method.pool_size=8"],
        "ranpac": ["method.projection_dim=100"],
        "upl": ["method.method=coop"],
        "entropy": ["method.method=coop"],
        "dapl": ["method.threshold=0.1"],
    }.get(name, [])
    dataset = small / ("domains" if task == "domain" else "digits")
    [plan] = resolve_grid([name], [1], [1], dataset=str(dataset), task=task, backbone="glyph/random", overrides=short)
    about = (
        build_method(plan.method, clip),
        build_task(plan.task),
        plan.train_config,
        tmp_path / "run",
        1,
    )
    if about[0].needs_unlabelled and task != "domain":
        with pytest.raises(ValueError, match="Run it with --source and --target"):
            run(*about)
        return
    knows_no_names = name in ("nearest_mean", "ranpac") or plan.method.get("head", {}).get("name") == "linear"
    if knows_no_names and task not in ("few_shot", "continual", "domain"):
        with pytest.raises(ValueError, match="no weights for class '"):
            run(*about)
        return
    result = run(*about)
    assert result.config == plan.to_dict()
    assert 0 <= next(iter(result.summary.values())) <= 100


def test_answers_leave_the_method_as_it_was(clip, lesson):
    method = begun("coop", clip, lesson)
    method.train()
    list(iter_logits(method, lesson.train))
    assert method.training
    batch = next(lesson.train.batches(3))
    assert isinstance(batch, Batch)
