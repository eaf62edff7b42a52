"""vlprompt: prompt learning on frozen vision-language models.

clip = vlprompt.load("glyph")
task = vlprompt.tasks.FewShot("digits", shots=16, seed=1)
print(vlprompt.run(vlprompt.methods.CoOp(clip), task).summary)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt import data, methods, tasks
    from vlprompt.backbones import load
    from vlprompt.core.method import Method
    from vlprompt.core.prompt import Prompt
    from vlprompt.engine.train_config import Train
    from vlprompt.experiments.runner import run


__all__ = ["Method", "Prompt", "Train", "data", "load", "methods", "run", "tasks"]
_HOMES = {
    "load": "backbones",
    "run": "experiments.runner",
    "Method": "core.method",
    "Prompt": "core.prompt",
    "Train": "engine.train_config",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: `import vlprompt` itself costs nothing."""
    if name in _HOMES:
        value = getattr(import_module(f"vlprompt.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in ("data", "methods", "tasks"):
        return import_module(f"vlprompt.{name}")
    raise AttributeError(f"module 'vlprompt' has no attribute {name!r}; it has {', '.join(__all__)}")
