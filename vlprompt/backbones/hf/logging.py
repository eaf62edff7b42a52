"""Silence log messages of libraries."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and loading reports inside the with-block."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def silence_bitsandbytes() -> None:
    """Silence bitsandbytes' warnings about CPU fallbacks; call it before bitsandbytes or PEFT is imported."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
