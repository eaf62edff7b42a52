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
    from vlprompt.method import Method
    from vlprompt.prompt import Prompt
    from vlprompt.runner import run
    from vlprompt.train import Train

__all__ = ["Method", "Prompt", "Train", "data", "load", "methods", "run", "tasks"]
_HOMES = {"load": "backbones", "run": "runner", "Method": "method", "Prompt": "prompt", "Train": "train"}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: `import vlprompt` itself costs nothing."""
    if name in _HOMES:
        value = getattr(import_module(f"vlprompt.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in ("data", "methods", "tasks"):
        return import_module(f"vlprompt.{name}")
    raise AttributeError(f"module 'vlprompt' has no attribute {name!r}; it has {', '.join(__all__)}")
