"""Make runs side by side: which of them may share the passes of the text tower, and one group of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import Event, Listener, ignore_event
from vlprompt.results.comparability import make_group_key
from vlprompt.results.run_folder import Result
from vlprompt.runtime.errors import RunStoppedError

if TYPE_CHECKING:
    from vlprompt.core.method import Method
    from vlprompt.core.towers import Clip
    from vlprompt.tasks import Task

# settings of training in which runs of a group may differ
GROUP_KEYS = ("train.lr", "train.weight_decay")
# settings that a tower holds during a step, so that runs in turns would change them for each other
TOWER_SETTINGS = ("activation_checkpointing", "text_micro_batch", "compile")


@dataclass(frozen=True)
class GroupRun:
    """A run of a group.

    Args:
        build: builds its method on the CLIP that it is passed.
        task: what it is trained and tested on.
        config: its configuration.
        folder: where it is written, None for nowhere.
        on_event: hears of its steps and tests.
    """

    build: "Callable[[Clip], Method]"
    task: "Task"
    config: RunConfig
    folder: Path | None = None
    on_event: Listener = ignore_event


def group_configs(configs: Sequence[RunConfig], max_size: int | None = None) -> list[list[RunConfig]]:
    """Group runs that may train side by side: those that differ by seed, learning rate or weight decay only.

    Args:
        configs: of the runs, in any order.
        max_size: of a group; None for any.

    Returns:
        Groups in the order of their first run; a run that can't share is alone.
    """
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        key = make_group_key(config.to_dict(), GROUP_KEYS) if _may_share(config) else config.hash
        groups.setdefault(key, []).append(config)
    size = max_size or max(len(configs), 1)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _may_share(config: RunConfig) -> bool:
    return not any(config.train.get(setting) for setting in TOWER_SETTINGS)


def run_group(clip: "Clip", runs: Sequence[GroupRun], save_every: float = 5.0) -> list[Result | Exception]:
    """Train runs side by side on one CLIP, and test each.

    Each writes the folder that it would write alone, to rounding, and either way of training goes on where the other
    was stopped. A RunStoppedError that a listener raises stops all of them.

    Args:
        clip: the backbone of all.
        runs: what to run.
        save_every: seconds between two saved states of each run.

    Returns:
        The result of each, or the error by which it ended; the others go on.
    """
    from vlprompt.engine.side_by_side import TrainingGroup
    from vlprompt.experiments.runner import run, use_threads

    group, stop = TrainingGroup(clip, len(runs)), list[RunStoppedError]()

    def make_job(index: int) -> Callable[[], Result]:
        mine, member = runs[index], group.members[index]

        def on_event(event: Event) -> None:
            if stop:
                raise stop[0]
            try:
                mine.on_event(event)
            except RunStoppedError as error:
                stop.append(error)
                raise

        def job() -> Result:
            method = mine.build(member.clip)
            return run(
                method, mine.task, mine.config, mine.folder, save_every=save_every, on_event=on_event, member=member
            )

        return job

    with use_threads(runs[0].config.backbone):
        return group.run([make_job(i) for i in range(len(runs))])
