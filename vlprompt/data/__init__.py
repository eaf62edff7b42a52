"""Datasets: `open_data` for cards and files, `from_torchvision` and `from_huggingface` for objects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.data.dataset import Data
    from vlprompt.data.loading import open_data
    from vlprompt.data.readers.python_objects import from_huggingface, from_torchvision


__all__ = ["Data", "from_huggingface", "from_torchvision", "open_data"]
_EXPORTS = {
    "Data": "dataset",
    "from_huggingface": "readers.python_objects",
    "from_torchvision": "readers.python_objects",
    "open_data": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"vlprompt.data.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'vlprompt.data' has no attribute {name!r}; it has {', '.join(__all__)}")
