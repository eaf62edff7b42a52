"""The task of data in Python: it draws shots and sets augmentation and templates as it does for a dataset."""

from typing import Any

from vlprompt.config.run_config import RunConfig
from vlprompt.core.batch import Split
from vlprompt.data.dataset import Data
from vlprompt.experiments.estimator.settings import TASK_SETTINGS
from vlprompt.tasks import FewShot, Text


def build_task(task: str, train: Split, val: Split | None, config: RunConfig) -> FewShot | Text:
    """Build the task of data in Python, which has one lesson; those of a stream come one by one.

    Args:
        task: its name: few_shot, continual or text.
        train: all training items.
        val: validation items.
        config: the resolved configuration, of which the task's settings are read.
    """
    empty = Split((), (), train.names, augment=train.augment, info=train.info)
    template = getattr(train.names[0], "template", "")
    data = Data("texts" if task == "text" else "images", train, val, empty, template, "given in Python")
    names = [name for name in TASK_SETTINGS[task] if name != "stages"]
    arguments: dict[str, Any] = {name: config.task[name] for name in names}
    return (Text if task == "text" else FewShot)(data, **arguments)
