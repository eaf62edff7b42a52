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
from vlprompt.experiments.runner import run
from vlprompt.experiments.side_by_side import GroupRun, group_configs, run_group
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
    checkpointed = resolve("coop", [1, 2], "train.activation_checkpointing=true")
    assert [len(group) for group in group_configs(checkpointed)] == [1, 1]
