"""Run the blocks of a page from top to bottom in an empty folder, in one process, and collect what they print."""

import contextlib
import importlib
import io
import os
import runpy
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from docs.outputs import clean_output
from docs.page_blocks import Block, read_blocks
from docs.shell_lines import has_only_simple_commands, split_commands, split_redirection, split_words

ROOT = Path(__file__).parents[2]
WIDTH = "100"
QUIET_CATEGORIES = DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning  # as Python has them


class PageError(Exception):
    """A block of a page that did not do what the page says; the message has the line."""


@dataclass(frozen=True)
class Output:
    """What a block printed.

    Args:
        block: the block that was run.
        shown: the block that shows its output, None where the page shows none.
        text: what was printed.
        seconds: of the processor, in this process.
    """

    block: Block
    shown: Block | None
    text: str
    seconds: float


def run_page(page: Path, place: Path) -> list[Output]:
    """Run a page in an empty folder.

    Args:
        page: a Markdown file.
        place: an empty folder; the page is run in `place/work`, and features are cached beside it.

    Raises:
        PageError: where a block exits with another status than the page says, or raises.
    """
    folder = place / "work"
    folder.mkdir()
    blocks, outputs = read_blocks(page), list[Output]()
    namespace = types.ModuleType("__main__")
    with _page_environment(folder):
        for i, block in enumerate(blocks):
            if block.title:
                _write_file(folder, block)
            if not block.is_run:
                continue
            start = time.process_time()
            text = _run_block(block, page, namespace, folder)
            seconds = time.process_time() - start
            shown = blocks[i + 1] if i + 1 < len(blocks) and blocks[i + 1].is_output else None
            outputs.append(Output(block, shown, clean_output(text, str(folder)), seconds))
    return outputs


@contextlib.contextmanager
def _page_environment(folder: Path) -> Iterator[None]:
    """Stand in the folder with its own cache; variables, search path and modules of the page go with it."""
    environment, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    os.environ.pop("VLPROMPT_DATA", None)
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1", MPLBACKEND="agg", PYTHONHASHSEED="0")
    os.environ["VLPROMPT_FEATURE_CACHE"] = str(folder.parent / "features")
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        _forget_modules(folder, set(sys.modules) - modules)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


def _forget_modules(folder: Path, names: set[str]) -> None:
    for name in names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]
    importlib.invalidate_caches()


def _write_file(folder: Path, block: Block) -> None:
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, "utf-8")
    _forget_modules(folder, set(sys.modules))  # an older text of the same module


def _run_block(block: Block, page: Path, namespace: types.ModuleType, folder: Path) -> str:
    """Run one block; return what it printed.

    Raises:
        PageError: where it exits with another status than the page says, or raises.
    """
    buffer = io.StringIO()
    try:
        if block.kind == "python":
            status = _run_python(block, page, namespace, buffer)
        elif has_only_simple_commands(block.text):
            status = _run_commands(block, buffer)
        else:
            status = _run_bash(block.text, buffer)
    except Exception as error:
        printed = clean_output(buffer.getvalue(), str(folder))
        raise PageError(f"{page}:{block.line}: {type(error).__name__}: {error}\n{printed}") from error
    if status != block.exit_status:
        printed = clean_output(buffer.getvalue(), str(folder))
        raise PageError(f"{page}:{block.line}: exit status {status}, expected {block.exit_status}\n{printed}")
    return buffer.getvalue()


def _run_commands(block: Block, buffer: io.StringIO) -> int:
    """Run the commands of a block until one fails; return the last exit status."""
    status = 0
    for command in split_commands(block.text):
        command, file = split_redirection(command)
        words = split_words(command)
        if words[0] == "vlprompt":
            status = run_vlprompt(words[1:], buffer, file)
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            status = _run_script(words[1:], buffer)
        else:
            status = _run_bash(command, buffer)
        if status:
            break
    return status


def _run_bash(text: str, buffer: io.StringIO) -> int:
    command = ["bash", "-e", "-o", "pipefail", "-c", text]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    buffer.write(done.stdout)
    return done.returncode


def run_vlprompt(words: list[str], buffer: io.StringIO, file: str = "") -> int:
    """Run `vlprompt WORDS` in this process as a new process would; return its exit status.

    Args:
        words: of the command line.
        buffer: where its output and its errors go.
        file: where its output goes instead.
    """
    from vlprompt.cli.app import main
    from vlprompt.runtime.settings import SETTINGS

    settings = dict(vars(SETTINGS))
    try:
        with open(file, "w") if file else contextlib.nullcontext(buffer) as stdout, _as_new_process(buffer, stdout):
            main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        vars(SETTINGS).update(settings)
    return 0


def _run_script(words: list[str], buffer: io.StringIO) -> int:
    argv, sys.argv = sys.argv, words
    try:
        with _as_new_process(buffer):
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv = argv
    return 0


def _run_python(block: Block, page: Path, namespace: types.ModuleType, buffer: io.StringIO) -> int:
    # empty lines above make a traceback name the line of the page
    code = compile("\n" * block.line + block.text, str(page), "exec")
    main, sys.modules["__main__"] = sys.modules["__main__"], namespace
    try:
        with _as_new_process(buffer):
            exec(code, vars(namespace))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.modules["__main__"] = main
    return 0


@contextlib.contextmanager
def _as_new_process(buffer: io.StringIO, stdout: TextIO | None = None) -> Iterator[None]:
    """Write both streams into one buffer (or output elsewhere), and show every warning once more."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(stdout or buffer), contextlib.redirect_stderr(buffer):
        warnings.resetwarnings()
        for category in QUIET_CATEGORIES:
            warnings.simplefilter("ignore", category)
        yield
