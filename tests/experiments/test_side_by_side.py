"""Runs side by side are the runs one by one, to rounding, whichever way they are stopped and go on."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from written_out import double  # noqa: F401  # a fixture

from vlprompt.backbones import load_backbone
from vlprompt.config.build import build_method, build_task
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.side_by_side import TrainingGroup
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.planning.planned_memory import MemoryPlan
from vlprompt.experiments.runner import run
from vlprompt.experiments.side_by_side import (
    MAX_RUNS,
    GroupRun,
    SharedWork,
    count_runs_that_fit,
    group_configs,
    measure_shared_work,
    run_group,
)
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.methods import SSF, VPT, CLIPLoRA, CoCoOp, CoOp, KgCoOp, MaPLe, ProGrad
from vlprompt.runtime.errors import NonFiniteError, RunStoppedError


@pytest.fixture(scope="module")
def clip():
    return load_backbone("glyph/random")


def resolve(method, seeds, *overrides, backbone="glyph/random"):
    # eps: a smaller one makes whole steps of gradients that are nearly rounding beside the others of their tensor
    settings = ["train.epochs=3", "train.eps=0.01", *overrides]
    return resolve_sweep([method], [1], seeds, dataset="digits", backbone=backbone, overrides=settings)


def set_rate(config, lr):
    return replace(config, train={**config.train, "lr": lr})


def run_alone(clip, config, folder, **options):
    return run(build_method(config.method, clip), build_task(config.task), config, folder, **options)


def make_group_run(config, folder, **options):
    return GroupRun(lambda clip: build_method(config.method, clip), build_task(config.task), config, folder, **options)


def read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text("utf-8").splitlines()]


def assert_same(result, folder, other_result, other_folder):
    assert result.config == other_result.config
    assert result.protocol == other_result.protocol
    assert result.cost["trained_parameters"] == other_result.cost["trained_parameters"]
    tensors, others = (load_file(path / "prompt.safetensors") for path in (folder, other_folder))
    for name, tensor in tensors.items():
        assert (tensor - others[name]).abs().max() <= 1e-4 * others[name].abs().max(), name
    for step, other in zip(read_steps(folder), read_steps(other_folder), strict=True):
        assert step == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("coop", "glyph/random"),
        ("prograd", "glyph/random"),
        ("maple", "glyph/random"),
        ("vpt", "glyph-vit/random"),
    ],
)
def test_runs_side_by_side_equal_runs_one_by_one(tmp_path, method, backbone):
    tower, configs = load_backbone(backbone), resolve(method, [1, 2], backbone=backbone)
    configs.append(set_rate(configs[0], 0.003))  # Adam enlarges rounding where a gradient is small, by the rate
    runs = [make_group_run(config, tmp_path / f"group{i}") for i, config in enumerate(configs)]
    for i, result in enumerate(run_group(tower, runs)):
        alone = run_alone(tower, configs[i], tmp_path / f"alone{i}")
        assert_same(result, tmp_path / f"group{i}", alone, tmp_path / f"alone{i}")
        assert result.environment["trained_side_by_side"] == 3
        assert "trained_side_by_side" not in alone.environment


METHODS = {
    "coop": CoOp,
    "kgcoop": lambda clip: KgCoOp(CoOp(clip)),
    "prograd": lambda clip: ProGrad(CoOp(clip)),
    "maple": MaPLe,
    "cocoop": CoCoOp,
    "vpt, dropout": lambda clip: VPT(clip.image, LinearHead(), 3, dropout=0.2),
    "vpt, shallow and biases": lambda clip: VPT(clip.image, LinearHead(), 3, deep=False, dropout=0.0, bias=True),
    "vpt, class texts": lambda clip: VPT(clip.image, TextHead(clip), 3, dropout=0.0),
    "clip_lora, dropout": CLIPLoRA,
    "ssf": lambda clip: SSF(clip.image, LinearHead()),
}
NAMES = tuple(ClassName(name, name) for name in ("cat", "dog", "sea horse"))


def begin(make, clip, seed):
    method, generator = make(clip), torch.Generator().manual_seed(seed)
    method.begin_lesson(Lesson(Split((), (), NAMES)), generator)
    method.double()
    for p in method.parameters():  # an update that starts as nothing would say nothing of the gradients of its inputs
        if not p.any():
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.02
    return method


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_a_step_are_those_of_one_training(double, name):  # noqa: F811
    """In float64: terms to 1e-12, gradients to 1e-11; with the same dropout."""
    _, clip = double
    pixels = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def compute(i, clip, **options):
        torch.manual_seed(i)
        images = Images(lambda _, places: pixels[i][list(places)], [None] * 4)
        loop = Loop(
            begin(METHODS[name], clip, i), Lesson(Split((), (), NAMES)), TrainConfig(micro_batch_size=3), i, **options
        )
        return loop.compute_gradients(Batch(images, torch.tensor([0, 1, 2, i]), NAMES))

    group = TrainingGroup(clip, 2)
    jobs = [partial(compute, m.index, m.backbone, differentiate=m.differentiate) for m in group.members]
    for i, (terms, gradients) in enumerate(group.run(jobs)):
        alone_terms, alone_gradients = compute(i, clip)
        assert terms == pytest.approx(alone_terms, rel=1e-12)
        assert any(gradient.any() for gradient in gradients)
        for gradient, alone in zip(gradients, alone_gradients, strict=True):
            bound = 1e-11 * alone.abs().max() + 1e-17  # of a bias of keys, which changes no softmax, there is rounding
            assert (gradient - alone).abs().max() <= bound
    assert [member.n_joined for member in group.members] == [2, 2]


@pytest.mark.parametrize("changes", [{"alpha": 3.0}, {"dropout": 0.0}, {"rank": 3}, {"training": False}])
def test_low_rank_updates_of_other_settings_keep_them(double, changes):  # noqa: F811
    """In one pass with those of another scale, dropout or rank, or of a training that is in evaluation."""
    _, clip = double

    def compute(i, clip, differentiate):
        settings = dict(changes) if i else {}
        training = settings.pop("training", True)
        method = begin(partial(CLIPLoRA, **settings), clip, i).train(training)
        torch.manual_seed(i)
        features = clip.text(["a cat.", "a dog."], method.prompt("text"))
        return features.detach(), *differentiate(features.square().sum(), list(method.parameters())[-2:])

    group = TrainingGroup(clip, 2)
    jobs = [partial(compute, m.index, m.backbone, m.differentiate) for m in group.members]
    for i, found in enumerate(group.run(jobs)):
        for joined, alone in zip(found, compute(i, clip, torch.autograd.grad), strict=True):
            assert (joined - alone).abs().max() <= 1e-11 * alone.abs().max()
    assert [member.n_joined for member in group.members] == [2, 2]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("coop", [{"seed": 1}, {"seed": 2}, {"seed": 3}]),
        ("coop", [{"lr": 0.002}, {"lr": 0.01}, {"lr": 0.05}]),
        ("coop", [{"weight_decay": 0.0}, {"weight_decay": 0.01}, {"weight_decay": 0.1}]),
        ("vpt, dropout", [{"seed": 1}, {"lr": 0.01}, {"weight_decay": 0.1}]),
        ("clip_lora, dropout", [{"seed": 1}, {"seed": 2}, {"seed": 2, "lr": 0.05}]),
        ("maple", [{"seed": 1}, {"seed": 2}, {"seed": 2, "lr": 0.05}]),
    ],
)
def test_trainings_that_differ_by_one_setting_equal_those_one_by_one(double, name, changes):  # noqa: F811
    """In float64, after four steps of Adam: to 1e-9."""
    _, clip = double
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, lesson = Images(lambda _, places: pixels[list(places)], [None] * 4), Lesson(Split((), (), NAMES))

    def train(settings, clip, **options):
        settings = {"seed": 1, "lr": 0.01, **settings}
        seed = settings.pop("seed")
        torch.manual_seed(seed)
        config = TrainConfig(optimizer="adamw", **settings)
        loop = Loop(begin(METHODS[name], clip, seed), lesson, config, seed, **options)
        for _ in range(4):
            loop.take_step(Batch(images, torch.tensor([0, 1, 2, seed % 3]), NAMES), config.lr)
        return [p.detach() for p in loop.parameters]

    group = TrainingGroup(clip, len(changes))
    jobs = [
        partial(train, one, m.backbone, differentiate=m.differentiate)
        for one, m in zip(changes, group.members, strict=True)
    ]
    found = group.run(jobs)
    assert [member.n_joined for member in group.members] == [3, 3, 3]
    for tensors, one in zip(found, changes, strict=True):
        for tensor, alone in zip(tensors, train(one, clip), strict=True):
            assert (tensor - alone).abs().max() <= 1e-9 * alone.abs().max()
    assert not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found[1], found[2], strict=True))


def test_stopped_run_goes_on_the_other_way(clip, tmp_path):
    """Begun side by side and finished alone, and the other way round."""
    configs = resolve("coop", [1, 2])

    def stop(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise RunStoppedError("stop")

    runs = [make_group_run(config, tmp_path / f"group{i}", on_event=stop) for i, config in enumerate(configs)]
    assert all(isinstance(result, RunStoppedError) for result in run_group(clip, runs))
    for i, config in enumerate(configs):
        with pytest.raises(RunStoppedError):
            run_alone(clip, config, tmp_path / f"alone{i}", on_event=stop)
    runs = [make_group_run(config, tmp_path / f"alone{i}") for i, config in enumerate(configs)]
    for i, begun_alone in enumerate(run_group(clip, runs)):
        reference = run_alone(clip, configs[i], tmp_path / f"reference{i}")
        begun_in_group = run_alone(clip, configs[i], tmp_path / f"group{i}")
        assert_same(begun_alone, tmp_path / f"alone{i}", reference, tmp_path / f"reference{i}")
        assert_same(begun_in_group, tmp_path / f"group{i}", reference, tmp_path / f"reference{i}")
        assert begun_in_group.environment["trained_side_by_side"] == 2


def test_run_that_is_not_finite_drops_out(clip, tmp_path):
    [config] = resolve("coop", [1])
    broken = set_rate(config, 1e30)
    runs = [make_group_run(broken, tmp_path / "broken"), make_group_run(config, tmp_path / "group")]
    error, result = run_group(clip, runs)
    assert isinstance(error, NonFiniteError)
    assert_same(result, tmp_path / "group", run_alone(clip, config, tmp_path / "alone"), tmp_path / "alone")


def test_each_training_draws_its_own_random_numbers(clip):
    """One pass serves all, and between two passes each goes on with its own stream."""
    group, tokens = TrainingGroup(clip, 2), torch.randn(2, 1, 4, clip.text.dim)

    def make_job(i):
        def job():
            torch.manual_seed(i)
            first = torch.rand(3)
            leaf = tokens[i].clone().requires_grad_()
            features = group.members[i].backbone.text(["{4} a.", "{4} b."], Prompt(tokens={0: leaf}))
            [gradient] = group.members[i].differentiate(features.square().sum(), [leaf])
            return torch.cat([first, torch.rand(3)]), features, gradient

        return job

    for i, (numbers, features, gradient) in enumerate(group.run([make_job(0), make_job(1)])):
        assert torch.equal(numbers, torch.rand(6, generator=torch.Generator().manual_seed(i)))
        leaf = tokens[i].clone().requires_grad_()
        alone = clip.text(["{4} a.", "{4} b."], Prompt(tokens={0: leaf}))
        torch.testing.assert_close(features, alone)
        torch.testing.assert_close(gradient, torch.autograd.grad(alone.square().sum(), leaf)[0])


class Shift(nn.Module):
    """An adapter with dropout; a broken one raises."""

    def __init__(self, is_broken):
        super().__init__()
        self.shift, self.is_broken = nn.Parameter(torch.ones(1)), is_broken

    def forward(self, given, made):
        if self.is_broken:
            raise ValueError("broken")
        return made + self.shift * nn.functional.dropout(given)


def test_an_adapter_that_raises_ends_its_own_training_only(clip):
    """The others go on with the random numbers that they would have alone."""

    def train(i, text, differentiate):
        torch.manual_seed(i)
        found, adapter = list[torch.Tensor](), Shift(False)
        for step in range(3):
            adapter.is_broken = (i, step) == (1, 1)
            features = text(["a", "b"], Prompt(adapters={"0/q": adapter}))
            found += [features.detach(), *differentiate(features.square().sum(), [adapter.shift])]
        return found

    group = TrainingGroup(clip, 3)
    jobs = [partial(train, m.index, m.backbone.text, m.differentiate) for m in group.members]
    first, broken, last = group.run(jobs)
    assert isinstance(broken, ValueError)
    for i, found in ((0, first), (2, last)):
        for mine, alone in zip(found, train(i, clip.text, torch.autograd.grad), strict=True):
            torch.testing.assert_close(mine, alone)


def test_trainings_that_see_the_same_images_decode_them_once(clip):
    """Those of other images, or without keys, decode their own; in the next pass nothing of this one is left."""
    pixels, decoded = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []

    def make_job(member, key, place):
        def decode(_, indices):
            decoded.append(key)
            return pixels[[place for _ in indices]]

        def job():
            leaf = torch.ones(1, 2, clip.image.dim, requires_grad=True)
            for _ in range(2):
                features = member.backbone.image(Images(decode, [key]), Prompt(tokens={0: leaf}))
                member.differentiate(features.sum(), [leaf])
            return features

        return job

    group = TrainingGroup(clip, 4)
    wanted = [("a", 0), ("a", 0), ("b", 1), (None, 2)]
    found = group.run([make_job(member, *one) for member, one in zip(group.members, wanted, strict=True)])
    assert Counter(decoded) == {"a": 2, "b": 2, None: 2}
    for features, (key, place) in zip(found, wanted, strict=True):
        alone = Images(lambda _, indices, place=place: pixels[[place for _ in indices]], [key])
        prompt = Prompt(tokens={0: torch.ones(1, 2, clip.image.dim)})
        torch.testing.assert_close(features, clip.image(alone, prompt))


def test_only_runs_that_differ_by_seed_and_rates_are_grouped():
    configs = [*resolve("coop", [1, 2]), *resolve("kgcoop", [1]), *resolve("coop", [1], "train.batch_size=8")]
    configs.append(set_rate(configs[0], 0.05))
    assert [[configs.index(config) for config in group] for group in group_configs(configs)] == [[0, 1, 4], [2], [3]]
    assert [len(group) for group in group_configs(configs, max_size=2)] == [2, 1, 1, 1]
    for setting in ("activation_checkpointing=true", "cuda_graphs=false"):
        assert [len(group) for group in group_configs(resolve("coop", [1, 2], f"train.{setting}"))] == [1, 1]


@pytest.mark.parametrize(
    ("method", "backbone", "settings", "reason"),
    [
        ("coop", "glyph/random", {}, ""),
        ("kgcoop", "glyph/random", {}, ""),
        ("maple", "glyph/random", {"train.batch_size": 4}, ""),
        ("vpt", "glyph-vit/random", {"train.batch_size": 4}, ""),
        ("clip_lora", "glyph/random", {"train.batch_size": 4}, ""),
        ("clip_lora", "glyph/random", {"train.batch_size": 32}, ""),
        ("cocoop", "glyph/random", {}, "each image has a row"),
        ("maple", "glyph/random", {"train.batch_size": 128}, "one batch in the image tower"),
        ("vpt", "glyph-vit/random", {"train.batch_size": 128}, "one batch in the image tower"),
        ("clip_lora", "glyph/random", {"train.batch_size": 128}, "one batch in the image tower"),
        ("mmrl", "glyph/random", {}, "which runs don't share"),
        ("taskres", "glyph/random", {}, "no pass with trained"),
        ("linear", "glyph/random", {}, "no pass with trained"),
    ],
)
def test_what_a_step_could_share_says_where_it_pays(method, backbone, settings, reason):
    overrides = [f"{name}={value}" for name, value in settings.items()]
    [config] = resolve_sweep([method], [1], [1], dataset="digits", backbone=backbone, overrides=overrides)
    lesson = next(iter(build_task(config.task).stages())).lesson
    work = measure_shared_work(
        lambda backbone: build_method(config.method, backbone),
        load_backbone(backbone),
        lesson,
        config.train_config.batch_size,
    )
    assert reason in work.explain_no_gain("cpu")
    assert bool(reason) == bool(work.explain_no_gain("cpu"))
    assert bool(work.explain_no_gain("cuda")) == ("no pass" in reason)


def test_one_row_of_many_texts_is_work_enough_for_a_cpu():
    many, few = SharedWork(n_rows=1, n_texts=100, width=512), SharedWork(n_rows=1, n_texts=30, width=512)
    assert "one pass of 100 texts keeps the processor busy" in many.explain_no_gain("cpu")
    assert [few.explain_no_gain("cpu"), many.explain_no_gain("cuda")] == ["", ""]


def test_as_many_runs_train_at_once_as_the_memory_has_room_for():
    plan = MemoryPlan(peak_mb=300.0, available_mb=700.0, seconds=1.0, tensor_mb=100.0)
    assert count_runs_that_fit(plan) == 3
    assert count_runs_that_fit(replace(plan, peak_mb=690.0)) == 1
    assert count_runs_that_fit(replace(plan, available_mb=1e6)) == count_runs_that_fit(None) == MAX_RUNS


@pytest.mark.gpu
def test_runs_on_a_gpu_share_passes_too(tmp_path):
    clip, configs = load_backbone("glyph/random", "cuda"), resolve("coop", [1, 2])
    results = run_group(clip, [make_group_run(config, tmp_path / f"group{i}") for i, config in enumerate(configs)])
    for i, result in enumerate(results):
        alone = run_alone(clip, configs[i], tmp_path / f"alone{i}")
        assert_same(result, tmp_path / f"group{i}", alone, tmp_path / f"alone{i}")
        assert result.environment["trained_side_by_side"] == 2
