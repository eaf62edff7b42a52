"""Make runs side by side: which of them may share passes of a tower, where it pays, and a group of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import Event, Listener, ignore_event
from vlprompt.results.comparability import make_group_key
from vlprompt.results.run_folder import Result
from vlprompt.runtime.errors import RunStoppedError

if TYPE_CHECKING:
    from vlprompt.core.method import Method
    from vlprompt.core.stage import Lesson
    from vlprompt.core.towers import Backbone
    from vlprompt.engine.side_by_side import GroupMember
    from vlprompt.experiments.planning.planned_memory import MemoryPlan
    from vlprompt.tasks import Task

# settings of training in which runs of a group may differ
GROUP_KEYS = ("train.lr", "train.weight_decay")
MAX_RUNS = 12  # in one pass; on a CPU more gain little
MAX_TEXT_SIZE = 24_000  # texts x width of the tower, above which one row keeps a CPU busy
MAX_IMAGE_SIZE = 70_000  # images of a batch x tokens x width of the tower, above which one batch does
MEASURED_IMAGES = 2  # in the step that shows what can be shared

MemberJob: TypeAlias = "Callable[[GroupMember, Listener], Result]"


@dataclass(frozen=True)
class GroupRun:
    """A run of a group.

    Args:
        build: builds its method on the backbone that it is passed.
        task: what it is trained and tested on.
        config: its configuration.
        folder: where it is written, None for nowhere.
        on_event: hears of its steps and tests.
    """

    build: "Callable[[Backbone], Method]"
    task: "Task"
    config: RunConfig
    folder: Path | None = None
    on_event: Listener = ignore_event


def get_group_key(config: RunConfig) -> str:
    """Return a key that runs share which may train side by side: they differ by seed, lr or weight decay only."""
    return make_group_key(config.to_dict(), GROUP_KEYS)


def explain_conflict(config: RunConfig) -> str:
    """Return which setting keeps a run from training side by side; "" for none.

    A tower has one value of such a setting at a time, which runs in turns would change for each other.
    """
    from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS

    default = vars(DEFAULT_COMPUTE_OPTIONS)
    changed = [name for name, value in vars(config.train_config.compute_options).items() if value != default[name]]
    return f"they set {', '.join(f'train.{name}' for name in changed)}, which a tower has once" if changed else ""


def group_by_key(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Group runs that differ by seed, learning rate or weight decay only, in the order of the first of each group."""
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(get_group_key(config), []).append(config)
    return list(groups.values())


def group_configs(configs: Sequence[RunConfig], max_size: int | None = None) -> list[list[RunConfig]]:
    """Group runs that may train side by side: those that differ by seed, learning rate or weight decay only.

    Args:
        configs: of the runs, in any order.
        max_size: of a group; None for any.

    Returns:
        Groups in the order of their first run; a run that can't share is alone.
    """
    groups = [
        part
        for group in group_by_key(configs)
        for part in ([[c] for c in group] if explain_conflict(group[0]) else [group])
    ]
    size = max_size or max(len(configs), 1)
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


@dataclass(frozen=True)
class SharedWork:
    """What a training step of a run could share with those of other runs.

    Args:
        n_rows: rows of its largest pass of the text tower that can be joined; 0 where there is none.
        n_texts: texts of such a row.
        width: of the text tower.
        image_size: images x tokens x width of its largest pass of the image tower that can be joined; 0 where there is
            none.
        is_image_alone: whether a step goes through the image tower in a way that runs can't share.
    """

    n_rows: int = 0
    n_texts: int = 0
    width: int = 0
    image_size: int = 0
    is_image_alone: bool = False

    def explain_no_gain(self, device: str) -> str:
        """Return why runs side by side would take as long as one by one; "" where they are faster.

        On a CPU it is a rule of what was measured (tools/bench side_by_side); elsewhere, any shared pass counts.
        """
        if not self.n_rows and not self.image_size:
            return "their steps have no pass with trained tokens or adapters that runs could share"
        if device != "cpu":
            return ""
        if self.is_image_alone:
            return "most of a step is work of the image tower, which runs don't share"
        if self.image_size > MAX_IMAGE_SIZE:
            return "one batch in the image tower keeps the processor busy, so that a pass of more images gains little"
        if self.n_rows > 1:
            return "each image has a row of the text tower already, so that a pass of more rows gains little"
        if self.n_texts * self.width > MAX_TEXT_SIZE:
            return (
                f"one pass of {self.n_texts} texts keeps the processor busy, so that a pass of more rows gains little"
            )
        return ""


def measure_shared_work(
    build: "Callable[[Backbone], Method]", backbone: "Backbone", lesson: "Lesson", batch_size: int
) -> SharedWork:
    """Compute the loss of a few images, and return what of it could be shared.

    Args:
        build: builds the method on the backbone that it is passed.
        backbone: the backbone.
        lesson: what it will train on.
        batch_size: images of its steps.

    Raises:
        ValueError: for a method that does not suit the lesson or the backbone.
    """
    import torch

    from vlprompt.core.towers import LanguageTower
    from vlprompt.experiments.planning.step_measurement import build_batch, subsample_lesson
    from vlprompt.layers.joined_passes import TowerPass, run_alone, watch_passes
    from vlprompt.runtime.seeding import make_generator

    passes = list[TowerPass]()
    if isinstance(backbone, LanguageTower):
        return SharedWork()

    def record(one: TowerPass) -> torch.Tensor:
        passes.append(one)
        return run_alone(one)

    small = subsample_lesson(lesson, len(lesson.train.names), MEASURED_IMAGES)
    method = build(watch_passes(backbone, record))
    with torch.random.fork_rng():
        method.begin_lesson(small, make_generator(0))
        batch = build_batch(method, small)
        if batch is None or not any(p.requires_grad for p in method.parameters()):
            return SharedWork()
        with torch.no_grad():
            fixed = method.train().precompute(batch.names)
        _, output = method.loss_terms(batch, fixed)
    texts = [one for one in passes if not one.takes_images]
    images = [one for one in passes if one.takes_images]
    n_rows, n_texts, width = max(
        ((one.n_rows, len(one.inputs), one.tower.dim) for one in texts),
        key=lambda size: size[0] * size[1],
        default=(0,) * 3,
    )
    per_image = max((one.n_tokens * one.n_rows * one.tower.dim / MEASURED_IMAGES for one in images), default=0)
    is_trained = output.image_features is not None and output.image_features.requires_grad
    return SharedWork(n_rows, n_texts, width, round(per_image * batch_size), is_trained and not images)


def count_runs_that_fit(plan: "MemoryPlan | None") -> int:
    """Return how many runs may train at once: each needs its activations until the backward pass.

    Args:
        plan: of one of them; None where it was not measured.
    """
    from vlprompt.experiments.planning.memory_plan import GLIBC_OVERHEAD

    if plan is None or not plan.tensor_mb:
        return MAX_RUNS
    n_more = int((plan.available_mb - plan.peak_mb) // (GLIBC_OVERHEAD * plan.tensor_mb))
    return max(1, min(MAX_RUNS, 1 + n_more))


def run_group(backbone: "Backbone", runs: Sequence[GroupRun], save_every: float = 5.0) -> list[Result | Exception]:
    """Train runs side by side on one backbone, and test each.

    Each writes the folder that it would write alone, to rounding, and either way of training goes on where the other
    was stopped. A RunStoppedError that a listener raises stops all of them.

    Args:
        backbone: of all.
        runs: what to run.
        save_every: seconds between two saved states of each run.

    Returns:
        The result of each, or the error by which it ended; the others go on.
    """
    from vlprompt.experiments.runner import run

    def make_job(one: GroupRun) -> MemberJob:
        def job(member: "GroupMember", on_event: Listener) -> Result:
            method = one.build(member.backbone)
            return run(
                method, one.task, one.config, one.folder, save_every=save_every, on_event=on_event, member=member
            )

        return job

    jobs = [make_job(one) for one in runs]
    return run_jobs(backbone, jobs, [one.on_event for one in runs], runs[0].config.backbone)


def run_jobs(
    backbone: "Backbone", jobs: Sequence[MemberJob], listeners: Sequence[Listener], name: str
) -> list[Result | Exception]:
    """Do jobs that call `run` for the members of a group in lockstep.

    Args:
        backbone: of all.
        jobs: take their member, and the listener to call.
        listeners: of each job. A RunStoppedError that one raises stops all of them.
        name: of the backbone.
    """
    from vlprompt.engine.side_by_side import TrainingGroup
    from vlprompt.experiments.runner import use_threads

    group, stop = TrainingGroup(backbone, len(jobs)), list[RunStoppedError]()

    def make_job(index: int) -> Callable[[], Result]:
        member = group.members[index]

        def on_event(event: Event) -> None:
            member.require_running()
            if stop:
                raise stop[0]
            try:
                listeners[index](event)
            except RunStoppedError as error:
                stop.append(error)
                raise

        return lambda: jobs[index](member, on_event)

    with use_threads(name):
        return group.run([make_job(i) for i in range(len(jobs))])
