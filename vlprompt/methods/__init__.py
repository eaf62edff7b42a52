"""One paper, one file, one public class, imported on first access."""

from pathlib import Path

from vlprompt.runtime.lazy_classes import lazy_package

find_classes, __getattr__, __dir__ = lazy_package(__name__, Path(__file__).parent)
