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

from vlprompt import methods
from vlprompt.backbones.glyph import twin
from vlprompt.config.build import build_method, build_task, find, hints
from vlprompt.config.describe import describe
from vlprompt.config.resolve import complete, grid
from vlprompt.config.sources import Source
from vlprompt.core.batch import Batch, Unlabelled
from vlprompt.core.class_names import Name
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.data.loading import open_data
from vlprompt.data.splits.label_hiding import hidden, unlabelled
from vlprompt.data.splits.sampling import few_shot
from vlprompt.engine.evaluate import answers
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import Train
from vlprompt.experiments.runner import run
from vlprompt.methods import ZeroShot
from vlprompt.runtime.seeding import generator

COOP = {"name": "coop", "n_ctx": 4}
SMALL = {
    "coop": {"n_ctx": 4},
    "cocoop": {"n_ctx": 4, "reduction": 4},
    "kgcoop": {"method": COOP},
    "prograd": {"method": COOP},
    "promptsrc": {
        "method": {"name": "ivlp", "n_image": 2, "depth_text": 2, "depth_image": 3},
        "template": "imagenet-7",
    },
    "ivlp": {"depth_text": 2, "depth_image": 3},
    "maple": {"depth": 2},
    "vpt": {"reader": {"name": "texts"}, "dropout": 0.0},
    "clip_lora": {"dropout": 0.0},
    "tip_adapter": {"finetune": True},
    "tpt": {"views": 9, "learn": True},
    "linear": {"solver": "fit"},
    "mlp": {"dropout": 0.0},
    "adapter": {"design": "houlsby"},
    "adaptformer": {"hidden": 8, "dropout": 0.0},
    "convpass": {"hidden": 4, "dropout": 0.0},
    "lora": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "lora_fa": {"rank": 2, "sites": ["q", "k", "v", "out", "up", "down"]},
    "l2p": {"size": 4, "length": 2, "top": 2},
    "dualprompt": {"general": 2, "expert": 2},
    "coda_prompt": {"size": 8, "length": 4},
    "s_prompts": {"length": 2, "k": 2},
    "ranpac": {"width": 100},
    "dapl": {"n_ctx": 2, "n_domain": 2, "threshold": 0.0},
    "upl": {"method": COOP, "k": 4},
    "entropy": {"method": COOP},
    "dann": {"hidden": 8, "units": 16},
}
PLAIN = "a photo of a {name}."
WORDS = {"init": "a photo of a", "text": "{ctx} {name}."}
START = {"name": "coop", **WORDS}
BESIDE = (
    "adapter",
    "adaptformer",
    "bitfit",
    "convpass",
    "full",
    "lora",
    "lora_fa",
    "partial",
)  # that start as the bare tower
STARTS_AS_ZERO_SHOT = {
    "coop": WORDS,
    "zero_shot": {"template": PLAIN},
    "kgcoop": {"method": START},
    "prograd": {"method": START},
    "taskres": {"template": PLAIN},
    "clap": {"template": PLAIN},
    "cross_modal": {"template": PLAIN},
    "clip_lora": {},
    **{name: {"reader": {"name": "texts", "template": PLAIN}} for name in BESIDE},
    "tpt": {"lr": 1e-12},
}
OVER_THE_SET = ("tpt",)  # an answer depends on which classes are asked for (never on their order)
READS = [name for name in methods.found() if "lm" in hints(find("method", name))]  # texts: test_language_methods.py
EVERY = sorted(set(methods.found()) - set(READS))
pytestmark = pytest.mark.filterwarnings("ignore:no unlabelled image is taken for")  # a random CLIP knows no digits


@pytest.fixture(scope="module")
def clip():
    return twin()


@pytest.fixture(scope="module")
def lesson():
    """With unlabelled images, which only methods that adapt are given."""
    data = open_data("digits")
    target = hidden(few_shot(data.test, None, 2, 1)[0])
    return Lesson(*few_shot(data.train, data.val, 2, 1), unlabelled(target), domains=("ink", "chalk"))


def make(name, clip, **more):
    cls = methods.found()[name]
    given = {**SMALL.get(name, {}), **more, "name": name}
    return build_method({"name": name, **complete("method", getattr(methods, cls), given, Source([]))}, clip)


def begun(name, clip, lesson, seed=0):
    method = make(name, clip)
    method.begin(lesson, generator(seed))
    return method


def logits(method, pixels, names, keys="x"):
    inputs = pixels if isinstance(pixels, Images) else images(pixels, keys)
    with torch.no_grad():
        return method.eval()(inputs, method.prepare(names, method.fixed(names))).logits


def trained(name, clip, lesson, seed=0, epochs=1, **options):
    method = begun(name, clip, lesson, seed)
    losses = [
        s.loss for s in fit(method, lesson, Train(epochs=epochs, batch=7, lr=0.01, warmup=0, **options), seed=seed)
    ]
    return method, losses


def weights_of(tower):
    found = [t for t in vars(tower).values() if isinstance(t, torch.Tensor)]
    for block in tower.blocks:
        for value in vars(block).values():
            found += [t for t in getattr(value, "__dict__", {}).values() if isinstance(t, torch.Tensor)]
            found += list(value.parameters()) if isinstance(value, torch.nn.Module) else []
    return found


@pytest.mark.parametrize("name", EVERY)
def test_the_backbone_stays_as_it_is(name, clip, lesson):
    frozen = weights_of(clip.image) + weights_of(clip.text)
    assert len(frozen) > 60
    before = [t.clone() for t in frozen]
    trained(name, clip, lesson)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(t.grad is None and not t.requires_grad for t in frozen)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_gets_a_gradient(name, clip, lesson):
    method = begun(name, clip, lesson)
    live = {n: p for n, p in method.named_parameters() if p.requires_grad and n not in method.dormant}
    seen = set()
    beside = next(lesson.unlabelled.batches(9))
    for batch in method.taught(lesson).train.batches(
        10
    ):  # a zero start (LoRA's) has its gradient from the second step on
        method.zero_grad()
        batch = replace(batch, unlabelled=beside if method.adapts else None, progress=0.5)
        terms, _ = method.terms(batch, method.fixed(batch.names))
        total = sum(value for value, _ in terms.values())
        if live:
            total.backward()
        seen |= {n for n, p in live.items() if p.grad is not None and p.grad.abs().sum() > 0}
        for p in live.values():
            p.data -= 0.1 * p.grad
    assert seen == set(live)


@pytest.mark.parametrize("name", EVERY)
def test_state_comes_back(name, clip, lesson):
    method, _ = trained(name, clip, lesson)
    again = make(name, clip)
    again.restore([lesson], copy.deepcopy(method.state_dict()))
    x = torch.randn(5, 3, 32, 32, generator=generator("x"))
    assert torch.equal(logits(method, x, lesson.train.names), logits(again, x, lesson.train.names))


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_does_not_depend_on_its_batch(name, clip, lesson):
    method, _ = trained(name, clip, lesson)
    x = torch.randn(6, 3, 32, 32, generator=generator("y"))
    whole = logits(method, images(x, f"{name} whole"), lesson.train.names)
    alone = torch.cat([logits(method, images(x[i : i + 1], f"{name} {i}"), lesson.train.names) for i in range(6)])
    assert (whole - alone).abs().max() <= 1e-5 * whole.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", EVERY)
def test_new_names_are_taken_or_refused_loudly(name, clip, lesson):
    method, x = begun(name, clip, lesson), torch.randn(2, 3, 32, 32)
    new = (Name("snow leopard"), Name("red panda"), Name("yak {wild}"))
    try:
        found = logits(method, x, new)
    except ValueError as error:
        assert "snow leopard" in str(error)  # noqa: PT017
    else:
        assert found.shape == (2, 3)


@pytest.mark.parametrize("name", EVERY)
def test_names_choose_and_order_the_answers(name, clip, lesson):
    method, _ = trained(name, clip, lesson)
    x, some = torch.randn(3, 3, 32, 32), [7, 2, 5, 9, 0, 1, 8, 6, 3, 4][: None if name in OVER_THE_SET else 3]
    whole = logits(method, images(x, f"{name} order"), lesson.train.names)
    part = logits(method, images(x, f"{name} order"), tuple(lesson.train.names[i] for i in some))
    assert torch.allclose(part, whole[:, some], atol=1e-5 * float(whole.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_gives_the_same_and_another_seed_another(name, clip, lesson):
    first, again, other = (trained(name, clip, lesson, seed) for seed in (1, 1, 2))
    assert first[1] == again[1]
    same = all(
        torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True)
    )
    assert same
    if first[1]:
        assert first[1] != other[1]


@pytest.mark.parametrize("name", EVERY)
def test_it_learns(name, clip, lesson):
    _, losses = trained(name, clip, lesson, epochs=30)
    assert not losses or sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", EVERY)
def test_bf16_is_near_fp32(name, clip, lesson):
    full, half = (trained(name, clip, lesson, precision=p)[1] for p in ("fp32", "bf16"))
    assert all(math.isclose(a, b, rel_tol=0.05, abs_tol=0.02) for a, b in zip(full, half, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_micro_batches_give_the_same_gradient(name, clip, lesson):
    if begun(name, clip, lesson).whole_batch:
        with pytest.raises(ValueError, match="normalises over the whole batch"):
            trained(name, clip, lesson, micro_batch=3)
        return
    whole, parts = (trained(name, clip, lesson, micro_batch=m) for m in (None, 3))
    for a, b in zip(whole[0].parameters(), parts[0].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def stream(lesson, same):
    """Two lessons: of the same classes, or of five and five others."""
    parts = [range(10), range(10)] if same else [range(5), range(5, 10)]
    one, found = lesson.unlabelled, []
    for k, part in enumerate(parts):
        train = lesson.train.classes(part)
        target = Unlabelled(one.items, train.names, one.augment)
        found.append(Lesson(train, lesson.val.classes(part), target, domains=lesson.domains, index=k, total=2))
    return found


def after(name, clip, lessons, method=None):
    method = method or make(name, clip)
    for k, lesson in enumerate(lessons):
        method.begin(lesson, generator("stream", k))
        list(fit(method, lesson, Train(epochs=1, batch=7, lr=0.01, warmup=0), seed=k))
        method.end(lesson)
    return method


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_second_lesson(name, same, clip, lesson):
    """It is learned, its state comes back without data, and an answer still does not depend on its batch."""
    lessons, x = stream(lesson, same), torch.randn(6, 3, 32, 32, generator=generator("z"))
    method, again = after(name, clip, lessons), make(name, clip)
    again.restore(lessons, copy.deepcopy(method.state_dict()))
    whole = logits(method, images(x, f"{name} second"), lesson.train.names)
    assert whole.shape == (6, 10)
    assert whole.isfinite().any(1).all()
    assert torch.equal(whole, logits(again, images(x, f"{name} second"), lesson.train.names))
    alone = [logits(method, images(x[i : i + 1], f"{name} second {i}"), lesson.train.names) for i in range(6)]
    assert torch.allclose(whole, torch.cat(alone), rtol=0, atol=1e-5 * float(whole[whole.isfinite()].abs().max()))


@pytest.mark.parametrize("name", EVERY)
def test_the_first_lesson_begins_anew(name, clip, lesson):
    lessons = stream(lesson, same=False)
    method, fresh = after(name, clip, lessons), make(name, clip)
    for one in (method, fresh):
        one.begin(lessons[0], generator(0))
    mine, new = method.state_dict(), fresh.state_dict()
    assert list(mine) == list(new)
    assert all(torch.equal(mine[k], new[k]) for k in new)
    assert [p.requires_grad for p in method.parameters()] == [p.requires_grad for p in fresh.parameters()]


@pytest.mark.parametrize("name", sorted(STARTS_AS_ZERO_SHOT))
def test_identity_at_the_start(name, clip, lesson):
    method = make(name, clip, **STARTS_AS_ZERO_SHOT[name])
    method.begin(lesson, generator(0))
    x = torch.randn(4, 3, 32, 32)
    found = [logits(m, x, lesson.train.names, f"{name} start") for m in (method, ZeroShot(clip, PLAIN))]
    assert torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_the_constructor_only_stores(name, clip):
    method = make(name, clip)
    assert not list(method.parameters())
    told = describe(method)
    assert told["name"] == name
    for key, value in SMALL.get(name, {}).items():
        assert told[key] == value or value.items() <= told[key].items()
    assert build_method(told, clip) is not method


@pytest.mark.parametrize(
    "task", ["few_shot", "base_to_new", pytest.param("transfer", marks=pytest.mark.slow), "continual", "domain"]
)
@pytest.mark.parametrize("name", EVERY)
def test_its_recipe_runs(name, task, clip, tmp_path, pictures):
    short = ["train.epochs=1", "train.iterations=null"]
    short += {
        "transfer": [f"task.targets=[{pictures}]"],
        "domain": ["task.source=rendered", "task.target=handwritten"],
    }.get(task, [])
    short += {
        "tpt": ["method.views=3", "train.micro_batch=50"],
        "promptsrc": ["method.template=imagenet-7"],
        "coda_prompt": ["method.size=8"],
        "ranpac": ["method.width=100"],
        "upl": ["method.method=coop"],
        "entropy": ["method.method=coop"],
        "dapl": ["method.threshold=0.1"],
    }.get(name, [])
    dataset = "digit_domains" if task == "domain" else "digits"
    [plan] = grid([name], [1], [1], dataset=dataset, task=task, backbone="glyph/random", overrides=short)
    about = build_method(plan["method"], clip), build_task(plan["task"]), Train(**plan["train"]), tmp_path / "run", 1
    if about[0].adapts and task != "domain":
        with pytest.raises(ValueError, match="run it with --source and --target"):
            run(*about)
        return
    knows_no_names = name in ("nearest_mean", "ranpac") or plan["method"].get("reader", {}).get("name") == "linear"
    if knows_no_names and task not in ("few_shot", "continual", "domain"):
        with pytest.raises(ValueError, match="has no column for '"):
            run(*about)
        return
    result = run(*about)
    assert result.config == plan
    assert 0 <= next(iter(result.summary.values())) <= 100


def test_answers_leave_the_method_as_it_was(clip, lesson):
    method = begun("coop", clip, lesson)
    method.train()
    list(answers(method, lesson.train))
    assert method.training
    batch = next(lesson.train.batches(3))
    assert isinstance(batch, Batch)
