"""A folder of its own for each case, in which commands are given and the rules are held."""

import hashlib
import os
import random
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from fuzz import process
from fuzz.case import Case, Violation
from fuzz.guard import install
from fuzz.process import Outcome

CANARY = "canary"  # the file that code in a pickle would write
STATUSES = (0, 2)
LIBRARY_FOLDERS = ("MPLCONFIGDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR")  # where libraries keep what is theirs
RAW_WARNING = re.compile(r"\.py:\d+: \w*Warning|^\s*_warn\(", re.MULTILINE)
PYTHON_MESSAGES = re.compile(  # what Python says of a mistake in a program, not of a mistake in its input
    r"^(error: *)?(\w+ on \S+: )?(division by zero|float division|zip\(\) argument|(min|max)\(\) (arg|iterable)|"
    r"not enough values to unpack|too many values to unpack|invalid literal for int|could not convert string|"
    r"math (domain|range) error|cannot convert float|list index|string index|"
    r".{0,20}takes? \d+ positional|Integer (out of range|overflow)|cannot (reshape|unpack)|"
    r"embedded null byte|'\w+' codec can't|.{0,40}has no attribute|Expecting value|'[^']*' is not in list$|"
    r"Sample larger than population|negative (shift|dimensions)|empty range|Exceeds the limit)",
    re.MULTILINE,
)


class Sandbox:
    """The folders of a case: work (the current folder), home, out (results), data, tmp.

    Args:
        root: where the folder of the case is made; it is removed by `close`.
        case: the case.
    """

    def __init__(self, root: Path, case: Case):
        self.case, self.violations, self.commands = case, list[Violation](), list[str]()
        self.root = root / f"{case.kind}-{case.seed}-{case.index}"
        shutil.rmtree(self.root, ignore_errors=True)
        names = ("work", "home", "out", "data", "tmp")
        self.work, self.home, self.out, self.data, self.tmp = folders = [self.root / name for name in names]
        for folder in folders:
            folder.mkdir(parents=True)
        (self.home / ".cache").mkdir()
        self.writable = [self.out, self.home / ".cache" / "vlprompt", self.tmp]
        self.n_calls, self.statuses = 0, list[int]()

    @property
    def canary(self) -> Path:
        """Return the file that nothing may write."""
        return self.root / CANARY

    def environment(self) -> dict[str, str]:
        """Return the variables of a command in this sandbox."""
        return {"HOME": str(self.home), "TMPDIR": str(self.tmp), "VLPROMPT_DATA": str(self.data)}

    def call(
        self, *arguments: object, statuses: Sequence[int] = STATUSES, folder: Path | None = None, fresh: bool = False
    ) -> Outcome:
        """Give a command in this process and hold the rules that every command has.

        Args:
            *arguments: of `vlprompt`.
            statuses: the exit statuses that are documented for it.
            folder: the current folder; default work.
            fresh: without the feature cache.
        """
        words = [str(argument) for argument in arguments]
        self.commands.append("vlprompt " + shlex.join(words))
        environment = self.environment() | ({"VLPROMPT_FEATURE_CACHE": "none"} if fresh else {})
        before = self.snapshot()
        guard = install()
        libraries = [os.environ[name] for name in LIBRARY_FOLDERS if name in os.environ]
        guard.allowed[:], guard.offences[:] = [os.path.realpath(path) for path in [*self.writable, *libraries]], []
        outcome = process.call(words, folder or self.work, environment)
        self.statuses.append(outcome.status)
        self._judge(outcome, statuses)
        for offence in dict.fromkeys(guard.offences):
            self.violate("wrote outside" if not offence.startswith("unpickles") else "unpickled", offence)
        self._compare(before)
        return outcome

    def _judge(self, outcome: Outcome, statuses: Sequence[int]) -> None:
        text = outcome.text
        if outcome.error:
            self.violate("traceback", outcome.error)
        elif "Traceback (most recent call last)" in text:
            self.violate("traceback", f"in the output: {text[-600:]}")
        elif outcome.status not in statuses and not outcome.is_interrupted:
            self.violate("status", f"{outcome.status}: {shorten(text)}")
        elif outcome.status == 2 and not text.strip():
            self.violate("silent", "exit status 2 without a word")
        if outcome.status and (match := PYTHON_MESSAGES.search(text)):
            self.violate("message", f"says nothing of the input: {shorten(text[match.start() :])}")
        if match := RAW_WARNING.search(text):
            self.violate("raw warning", shorten(text[max(0, match.start() - 60) :]))
        if self.canary.exists():
            self.violate("executed", "code in a file was executed")
            self.canary.unlink()

    def violate(self, rule: str, text: str) -> None:
        """Note a broken rule, after the commands so far."""
        root = f"{self.root}/"
        commands = tuple(command.replace(root, "") for command in self.commands)
        self.violations.append(Violation(self.case, rule, text.replace(root, ""), commands))

    def snapshot(self) -> dict[str, str]:
        """Return what stands in the sandbox outside of what may be written: path -> type and hash."""
        writable, entries = {str(path) for path in self.writable}, dict[str, str]()
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in writable]
            for name in files + folders:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    entries[path] = f"link {os.readlink(path)}"
                elif os.path.isfile(path):
                    entries[path] = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
                elif not any(place.startswith(path) for place in writable):
                    entries[path] = "folder"
        return entries

    def _compare(self, before: dict[str, str]) -> None:
        after = self.snapshot()
        for path in sorted(before.keys() | after.keys()):
            if (old := before.get(path)) != (new := after.get(path)):
                what = "appeared" if old is None else "is gone" if new is None else "was changed"
                self.violate("wrote outside", f"{os.path.relpath(path, self.root)!r} {what}")

    def check_leftovers(self, folder: Path, but: str = "") -> None:
        """Hold that no temporary file stays below a folder of runs, but one of a name."""
        for path in folder.rglob(".*"):
            if path.is_file() and path.name != but:
                self.violate("leftover", f"{path.relative_to(folder)} stays behind")

    def close(self) -> None:
        """Remove the folder of the case."""
        shutil.rmtree(self.root, ignore_errors=True)


def shorten(text: str, length: int = 300) -> str:
    """Return a text in one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 4] + " ..."


def chance(stream: random.Random, probability: float) -> bool:
    """Return True with a probability."""
    return stream.random() < probability
