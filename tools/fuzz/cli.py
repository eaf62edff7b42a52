"""The command line of the fuzz."""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.case import Case, Violation
from fuzz.process import describe_exception
from fuzz.sandbox import LIBRARY_FOLDERS, Sandbox

KINDS = ("settings", "cards", "tables", "folders", "images", "checkpoints", "results")


@dataclass
class Report:
    """What came of many cases."""

    n_cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    n_kills: int = 0

    def summarize(self) -> str:
        """Return one line."""
        kinds = ", ".join(f"{kind} {n}" for kind, n in self.n_cases.items())
        statuses = ", ".join(f"{n} with {status}" for status, n in sorted(self.statuses.items()))
        kills = f", {self.n_kills} kills" if self.n_kills else ""
        return (
            f"{sum(self.n_cases.values())} cases ({kinds}), {sum(self.statuses.values())} commands ({statuses}){kills}:"
            f" {len(self.violations)} violations"
        )


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Keep this process off the network and out of the user's folders; put its variables back."""
    variables, writes = dict(os.environ), sys.dont_write_bytecode
    _set_variables()
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        os.environ.clear()
        os.environ.update(variables)


def _set_variables() -> None:
    scratch = Path(tempfile.gettempdir()) / f"vlprompt-fuzz-{os.getuid()}"
    for variable in LIBRARY_FOLDERS:
        (scratch / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(scratch / variable)
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for variable in ("VLPROMPT_FEATURE_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)


def run_case(case: Case, root: Path, report: Report) -> list[Violation]:
    """Run one case and add it to the report."""
    module = importlib.import_module(f"fuzz.{case.kind}")
    box = Sandbox(root, case)
    try:
        module.run_case(case.stream(), box)
    except Exception as error:
        box.violate("fuzz", f"the fuzz itself failed: {describe_exception(error)}")
    finally:
        box.close()
    report.n_cases[case.kind] += 1
    report.statuses.update(box.statuses)
    report.violations += box.violations
    return box.violations


def iter_cases(kinds: Sequence[str], n: int, seed: int, index: int | None = None) -> Iterator[Case]:
    """Yield n cases, the kinds in turn; or the one of an index."""
    if index is not None:
        yield Case(kinds[0], seed, index)
        return
    for i in range(n):
        yield Case(kinds[i % len(kinds)], seed, i // len(kinds))


def run_cases(cases: Iterator[Case], report: Report, verbose: bool = False) -> Report:
    """Run cases in this process, one after another, and print what breaks a rule at once."""
    with tempfile.TemporaryDirectory(prefix="vlprompt-fuzz-") as folder:
        for case in cases:
            start = time.monotonic()
            for violation in run_case(case, Path(folder).resolve(), report):
                print(violation.format(), flush=True)
            if verbose:
                print(f"{case.command}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    return report


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description="Attack the command line.")
    parser.add_argument("--cases", type=int, default=0, help="how many cases, the kinds in turn")
    parser.add_argument("--kills", type=int, default=0, help="how many kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=(*KINDS, "kills"), help="one kind alone")
    parser.add_argument("--index", type=int, help="one case of --kind alone")
    parser.add_argument("--verbose", action="store_true", help="name every case with its seconds")
    options = parser.parse_args(words)
    if options.index is not None and options.kind is None:
        parser.error("--index is of a --kind")
    if options.index is None and options.cases < 1 and options.kills < 1:
        parser.error("give --cases N, --kills N, or --kind KIND --index I")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the fuzz; 1 when a rule was broken."""
    options, report = parse_options(words), Report()
    with own_process():
        run_options(options, report)
    print(report.summarize())
    return 1 if report.violations else 0


def run_options(options: argparse.Namespace, report: Report) -> None:
    """Run what the options name."""
    if options.kind != "kills" and (options.cases or options.index is not None):
        kinds = (options.kind,) if options.kind else KINDS
        run_cases(iter_cases(kinds, options.cases, options.seed, options.index), report, options.verbose)
    if options.kills or options.kind == "kills":
        from fuzz.kills import run_kills

        run_kills(options.kills, options.seed, options.index, report)
