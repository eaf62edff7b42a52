"""What libraries say that nobody needs to know."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and reports; what is wrong with a file is an error of ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def hush_bitsandbytes() -> None:
    """Before it or PEFT is imported: on a CPU it falls back to code of its own, and says so at length."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
