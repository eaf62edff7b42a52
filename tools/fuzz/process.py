"""Give a command in this process, as if it had one of its own: output captured, state put back afterwards."""

import contextlib
import gc
import io
import logging
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuzz.guard import install

CPU_SECONDS = 30  # after which a command is interrupted, as by Ctrl-C: settings may ask for an endless training
_calls = [0]
ADDRESS_SPACE = 14 * 2**30  # bytes; settings may ask for any amount of memory


@dataclass(frozen=True)
class Outcome:
    """What a command came to.

    Args:
        status: its exit status; 1 for an exception that left it.
        text: what it printed, standard output first.
        output: standard output alone.
        error: the exception that left it, with its place; "" for none.
        is_interrupted: whether it was stopped because it went on for too long.
    """

    status: int
    text: str
    output: str
    error: str = ""
    is_interrupted: bool = False

    @property
    def line(self) -> str:
        """Return the text in one line."""
        return " ".join(self.text.split())


def call(words: list[str], folder: Path, environment: dict[str, str]) -> Outcome:
    """Call the command line in a folder, with environment variables of its own."""
    from vlprompt.cli.app import main

    output, errors = _open_text("strict"), _open_text("backslashreplace")
    status, error, guard = 0, "", install()
    prints = contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors)
    with _own_state(folder, environment), _limits() as alarms, prints[0], prints[1]:
        guard.is_active = True
        try:
            main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as left:
            status, error = 1, describe_exception(left)
        finally:
            _finish_writing()
            guard.is_active = False
    printed = [_read(stream) for stream in (output, errors)]
    error = "" if alarms and error.startswith("KeyboardInterrupt") else error
    return Outcome(status, "\n".join(printed), printed[0], error, bool(alarms))


def _finish_writing() -> None:
    """Let go of what an error left behind, as the end of a process does; objects of the first calls are libraries'."""
    gc.collect()
    _calls[0] += 1
    if _calls[0] < 20:
        gc.freeze()


def _open_text(errors: str) -> io.TextIOWrapper:
    """Return a stream that encodes what is printed, as a terminal's does."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _read(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


def describe_exception(error: BaseException) -> str:
    """Return type and message of an exception, with the place in vlprompt where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}vlprompt{os.sep}" in frame.filename]
    place = f"{'/'.join(Path(ours[-1].filename).parts[-3:])}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (at {place})"


@contextlib.contextmanager
def _limits() -> Iterator[list[int]]:
    """Bound memory and the processor's seconds of the with-block; yield the list of interruptions."""
    alarms = list[int]()

    def interrupt(number: int, frame: object) -> None:
        alarms.append(number)
        raise KeyboardInterrupt

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, hard))
    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS, CPU_SECONDS)
    try:
        yield alarms
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _own_state(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Put back all that a command may change in its process; nothing that it has cached in memory stays."""
    from vlprompt.data.images.cache import IMAGE_CACHE, default_max_bytes
    from vlprompt.runtime.settings import SETTINGS, RuntimeSettings

    cwd, path, variables, level = os.getcwd(), list(sys.path), dict(os.environ), logging.root.level
    modules, settings = set(sys.modules), dict(vars(SETTINGS))
    vars(SETTINGS).update(vars(RuntimeSettings()))
    IMAGE_CACHE.set_max_bytes(0)
    IMAGE_CACHE.set_max_bytes(default_max_bytes())
    os.environ.update(environment)
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.showwarning = _print_warning  # as Python does, where a test records them instead
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)  # what Python itself ignores
            yield
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        logging.root.setLevel(level)
        vars(SETTINGS).update(settings)
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
        _reset_libraries()


def _print_warning(message, category, filename, lineno, file=None, line=None) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _reset_libraries() -> None:
    random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")
