"""Runs side by side are the runs one by one, to rounding, whichever way they are stopped and go on."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
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
from vlprompt.experiments.planning.memory_plan import MemoryPlan
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
from vlprompt.methods import CoCoOp, CoOp, KgCoOp, MaPLe, ProGrad
from vlprompt.runtime.errors import NonFiniteError, RunStoppedError


@pytest.fixture(scope="module")
def clip():
    return load_backbone("glyph/random")


def resolve(method, seeds, *overrides):
    settings = ["train.epochs=3", *overrides]
    return resolve_sweep([method], [1], seeds, dataset="digits", backbone="glyph/random", overrides=settings)


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


@pytest.mark.parametrize("method", ["coop", "prograd", "maple"])
def test_runs_side_by_side_equal_runs_one_by_one(clip, tmp_path, method):
    configs = resolve(method, [1, 2])
    configs.append(set_rate(configs[0], 0.003))  # Adam enlarges rounding where a gradient is small, by the rate
    runs = [make_group_run(config, tmp_path / f"group{i}") for i, config in enumerate(configs)]
    for i, result in enumerate(run_group(clip, runs)):
        alone = run_alone(clip, configs[i], tmp_path / f"alone{i}")
        assert_same(result, tmp_path / f"group{i}", alone, tmp_path / f"alone{i}")
        assert result.environment["trained_side_by_side"] == 3
        assert "trained_side_by_side" not in alone.environment


@pytest.mark.parametrize(
    "make", [CoOp, lambda clip: KgCoOp(CoOp(clip)), lambda clip: ProGrad(CoOp(clip)), MaPLe, CoCoOp]
)
def test_gradients_of_a_step_are_those_of_one_training(double, make):  # noqa: F811
    """In float64: terms to 1e-12, gradients to 1e-11."""
    _, clip = double
    names = tuple(ClassName(name, name) for name in ("cat", "dog", "sea horse"))
    pixels = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config, lesson = TrainConfig(micro_batch_size=3), Lesson(Split((), (), names))

    def compute(i, clip, **options):
        method = make(clip)
        method.begin_lesson(lesson, torch.Generator().manual_seed(i))
        images = Images(lambda _, places: pixels[i][list(places)], [None] * 4)
        loop = Loop(method.double(), lesson, config, i, **options)
        return loop.compute_gradients(Batch(images, torch.tensor([0, 1, 2, i]), names))

    group = TrainingGroup(clip, 2)
    jobs = [partial(compute, m.index, m.clip, differentiate=m.differentiate) for m in group.members]
    for i, (terms, gradients) in enumerate(group.run(jobs)):
        alone_terms, alone_gradients = compute(i, clip)
        assert terms == pytest.approx(alone_terms, rel=1e-12)
        for gradient, alone in zip(gradients, alone_gradients, strict=True):
            assert (gradient - alone).abs().max() <= 1e-11 * alone.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        [{"seed": 1}, {"seed": 2}, {"seed": 3}],
        [{"lr": 0.002}, {"lr": 0.01}, {"lr": 0.05}],
        [{"weight_decay": 0.0}, {"weight_decay": 0.01}, {"weight_decay": 0.1}],
    ],
    ids=["seed", "lr", "weight_decay"],
)
def test_trainings_that_differ_by_one_setting_equal_those_one_by_one(double, changes):  # noqa: F811
    """In float64, after four steps of Adam: to 1e-9."""
    _, clip = double
    names = tuple(ClassName(name, name) for name in ("cat", "dog", "sea horse"))
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, lesson = Images(lambda _, places: pixels[list(places)], [None] * 4), Lesson(Split((), (), names))

    def train(settings, clip, **options):
        settings = {"seed": 1, "lr": 0.01, **settings}
        seed = settings.pop("seed")
        method, config = CoOp(clip), TrainConfig(optimizer="adamw", **settings)
        method.begin_lesson(lesson, torch.Generator().manual_seed(seed))
        loop = Loop(method.double(), lesson, config, seed, **options)
        for _ in range(4):
            loop.take_step(Batch(images, torch.tensor([0, 1, 2, seed % 3]), names), config.lr)
        return method.ctx.detach()

    group = TrainingGroup(clip, len(changes))
    jobs = [
        partial(train, one, m.clip, differentiate=m.differentiate)
        for one, m in zip(changes, group.members, strict=True)
    ]
    contexts = group.run(jobs)
    assert [member.n_joined for member in group.members] == [3, 3, 3]
    for context, one in zip(contexts, changes, strict=True):
        alone = train(one, clip)
        assert (context - alone).abs().max() <= 1e-9 * alone.abs().max()
    assert not torch.allclose(contexts[0], contexts[1], rtol=1e-4)


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
            features = group.members[i].clip.text(["{4} a.", "{4} b."], Prompt(tokens={0: leaf}))
            [gradient] = group.members[i].differentiate(features.square().sum(), [leaf])
            return torch.cat([first, torch.rand(3)]), features, gradient

        return job

    for i, (numbers, features, gradient) in enumerate(group.run([make_job(0), make_job(1)])):
        assert torch.equal(numbers, torch.rand(6, generator=torch.Generator().manual_seed(i)))
        leaf = tokens[i].clone().requires_grad_()
        alone = clip.text(["{4} a.", "{4} b."], Prompt(tokens={0: leaf}))
        torch.testing.assert_close(features, alone)
        torch.testing.assert_close(gradient, torch.autograd.grad(alone.square().sum(), leaf)[0])


def test_only_runs_that_differ_by_seed_and_rates_are_grouped():
    configs = [*resolve("coop", [1, 2]), *resolve("kgcoop", [1]), *resolve("coop", [1], "train.batch_size=8")]
    configs.append(set_rate(configs[0], 0.05))
    assert [[configs.index(config) for config in group] for group in group_configs(configs)] == [[0, 1, 4], [2], [3]]
    assert [len(group) for group in group_configs(configs, max_size=2)] == [2, 1, 1, 1]
    for setting in ("activation_checkpointing=true", "cuda_graphs=false"):
        assert [len(group) for group in group_configs(resolve("coop", [1, 2], f"train.{setting}"))] == [1, 1]


@pytest.mark.parametrize(
    ("method", "n_rows", "reason", "reason_on_cuda"),
    [
        ("coop", 1, "", ""),
        ("kgcoop", 1, "", ""),
        ("cocoop", 2, "each image has a row", ""),
        ("maple", 1, "work of the image tower", ""),
        ("taskres", 0, "no pass of the text tower", "no pass of the text tower"),
        ("linear", 0, "no pass of the text tower", "no pass of the text tower"),
    ],
)
def test_what_a_step_could_share_says_where_it_pays(clip, method, n_rows, reason, reason_on_cuda):
    [config] = resolve(method, [1])
    lesson = next(iter(build_task(config.task).stages())).lesson
    work = measure_shared_work(lambda clip: build_method(config.method, clip), clip, lesson)
    assert work.n_rows == n_rows
    for device, wanted in (("cpu", reason), ("cuda", reason_on_cuda)):
        assert wanted in work.explain_no_gain(device)
        assert bool(wanted) == bool(work.explain_no_gain(device))


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
