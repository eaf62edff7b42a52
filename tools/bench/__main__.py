"""Benchmark speed and memory against a reference implementation: tools/bench WHAT [--device cuda].

WHAT is a table, each of which tools/bench/WHAT.py explains, or `all`: every row that something is wanted of, with one
thread and where that matters with two (hours), whether it is reached, and what was found where it is not; or with
--short a few small ones (`make bench`, under five minutes). Each row is made in a fresh process, both forms in
the same one, so by the same memory allocator.

ratio: the written-out form's seconds over ours, the median of alternating rounds, with the least and the largest.
memory kept: the ratio where the process never gives memory back to the system, as written-out forms of several GB do
in every step. counted: the ratio of the floating-point operations of their matrix products. GFLOP: those of our form;
matrix speed: their rate as a share of the rate of one large matrix product timed beside it. bare: the tower without a
prompt, where that is a limit. MB: the peak of one piece of work above what its process held before, in 2**20 bytes.
same: the largest relative difference of the two forms' results (gradients, where they make some). Seconds are of the
processor on a CPU, divided by the threads.
"""

import argparse
import datetime
import functools
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # `python tools/bench` puts this folder there; its modules are bench.NAME

from bench import rows as row_store  # noqa: E402
from bench.rows import RowStore  # noqa: E402

TARGETED_TABLES = (
    "text",
    "image",
    "vpt",
    "recorded",
    "epoch",
    "startup",
    "memory",
    "plan",
    "cache",
    "operations",
    "precision",
    "side_by_side",
    "processes",
    "transport",
    "closed_form",
    "dapl",
    "streams",
    "streams_newer",
    "lm",
    "icl",
)
TABLES = (*TARGETED_TABLES, "scaling", "heads", "stream_bytes", "predict", "server", "tracking")
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"  # no block of its own, no trimming
EXTRA = "extra"  # the lines that some tables have below them


@dataclass(frozen=True)
class Job:
    """A row to measure: its table, case and settings; `measures_memory` adds the peak memory of each form."""

    table: str
    case: str
    threads: int
    device: str
    rounds: int
    measures_memory: bool = False

    def make_key(self):
        """Return the key under which a finished row is stored."""
        return [
            self.table,
            self.case,
            self.threads,
            self.device,
            self.rounds,
            self.measures_memory,
            describe_machine(self.device),
            row_store.hash_code(self.table),
        ]

    def run_subprocess(self, variant=None, environment=None):
        """Measure the row in a fresh process, or with `variant` only its memory; RuntimeError if the process fails."""
        command = [sys.executable, __file__, self.table, "--case", self.case, "--threads", self.threads]
        command += [
            "--device",
            self.device,
            "--rounds",
            self.rounds,
            "--worker",
            *(["--variant", variant] if variant else []),
        ]
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), **(environment or {})}
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
        if done.returncode < 0:
            raise RuntimeError(f"killed by signal {-done.returncode}, perhaps because memory was full")
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1])
        return json.loads(done.stdout.splitlines()[-1])

    def measure_row(self):
        found = {"table": self.table, "case": self.case, "threads": self.threads, "date": str(datetime.date.today())}
        try:
            found |= self.run_subprocess()
        except RuntimeError as error:
            return found | {"failed": str(error)}
        if self.case in getattr(import_benchmark(self.table), "KEPT_MEMORY", ()):
            found |= self.measure_kept_memory()
        for form in ("reference", "fast") if self.measures_memory else ():
            try:
                found[f"{form}_mb"] = self.run_subprocess(form)
            except RuntimeError as error:
                found[f"{form}_mb"] = str(error)
        if isinstance(found.get("reference_mb"), float) and isinstance(found.get("fast_mb"), float):
            found["memory_share"] = found["fast_mb"] / found["reference_mb"]
        return found

    def measure_kept_memory(self):
        """Measure the ratio where the process never gives memory back, so that neither form waits for pages."""
        if self.device == "cuda" or self.threads > 1 or platform.libc_ver()[0] != "glibc":
            return {}
        try:
            row = self.run_subprocess(environment={"GLIBC_TUNABLES": KEEP_MEMORY})
        except RuntimeError as error:
            return {"kept": str(error)}
        return {"kept": row["ratio"], "kept_min": row["min"], "kept_max": row["max"]}


def run_worker(job, variant):
    """Measure a row, or the memory of a form, in this process."""
    bench = import_benchmark(job.table)
    if (torch := sys.modules.get("torch")) is not None:  # the start-up of other processes is measured without it
        torch.set_num_threads(job.threads)
    if job.case == EXTRA:
        return {"lines": bench.extra(job.device)}
    if hasattr(bench, "measure_row"):
        return bench.measure_row(job.case, job.device, job.rounds)
    import torch

    from bench.measure import measure_benchmark, measure_peak_memory

    setting = bench.build_benchmark(job.case, job.device, torch.float32)
    return (
        measure_peak_memory(lambda: setting.run_variant(variant), job.device)
        if variant
        else measure_benchmark(setting, job.device, job.rounds)
    )


def import_benchmark(table):
    return importlib.import_module(f"bench.{table}")


def has_cuda():
    import torch

    return torch.cuda.is_available()


def describe_machine(device):
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


@functools.cache
def describe_commit():
    """Return the commit; asked once at the start, since the table that is written may be a file of it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def format_header(options, dates):
    """Format machine, versions, commit, allocator and the dates of the rows as one line."""
    loaded = ", ".join(Path(name).name for name in os.environ.get("LD_PRELOAD", "").replace(":", " ").split())
    words = " ".join(f"'{word}'" if " " in word else word for word in sys.argv[1:])
    where = f"{describe_machine(options.device)}, torch {version('torch')}, commit {describe_commit()}"
    setting = f"both forms in one process, by one allocator ({loaded or 'the usual'})"
    if options.what != "all":
        setting = getattr(import_benchmark(options.what), "SETTING", setting)
    return f"`tools/bench {words}`: {where}, {' and '.join(dates)}; {setting}."


def select_cases(table, options):
    """Return the cases of a table: those of --case, the short ones, or all (for `all` those with a target)."""
    bench, many = import_benchmark(table), options.what == "all"
    short = getattr(bench, "SHORT", {})
    if options.case:
        return options.case
    if options.short:
        return list(short)
    return [case for case in bench.CASES if not many or case in getattr(bench, "TARGETS", {})]


def plan_jobs(options):
    """List all jobs; for `all`, tables that don't depend on the number of threads are measured with one."""
    many, jobs = options.what == "all", []
    for what in (
        [kind for kind in TARGETED_TABLES if importlib.util.find_spec(f"bench.{kind}")] if many else [options.what]
    ):
        bench = import_benchmark(what)
        if many and getattr(bench, "ON_CPU_ALONE" if options.device == "cuda" else "ON_GPU_ALONE", False):
            continue
        alone = many and getattr(bench, "SINGLE_THREADED", False)
        for threads in options.threads[:1] if alone else options.threads:
            for case in select_cases(what, options):
                targets = getattr(bench, "TARGETS", {}).get(case, ())
                if many and not options.short and not row_store.judge_row(targets, {"threads": threads}):
                    continue  # nothing is wanted of it with these threads
                rounds = options.rounds or (3 if options.short else getattr(bench, "ROUNDS", {}).get(case, 3))
                wants_memory = any("memory_share" in wanted for wanted in targets)
                memory = (wants_memory or not many) and not options.short and not hasattr(bench, "measure_row")
                jobs.append(Job(what, case, threads, options.device, rounds, memory))
            if hasattr(bench, EXTRA) and not options.case and not many:
                jobs.append(Job(what, EXTRA, threads, options.device, 1))
    return jobs


def render_report(rows, options):
    """Render the report: targets and whether they are reached, then one table of each kind."""
    lines = [format_header(options, sorted({row["date"] for row in rows})), ""]
    if options.what == "all":
        benches = {what: import_benchmark(what) for what in dict.fromkeys(row["table"] for row in rows)}
        targets, reasons = (
            {(what, case): told for what, bench in benches.items() for case, told in getattr(bench, name, {}).items()}
            for name in ("TARGETS", "REASONS")
        )
        lines += [*row_store.render_targets(rows, targets, reasons), ""]
    for what in dict.fromkeys(row["table"] for row in rows):
        bench, mine = import_benchmark(what), [row for row in rows if row["table"] == what]
        lines += [f"## {what}", "", *bench.__doc__.splitlines()[2:], ""] if options.what == "all" else []
        if plain := [row for row in mine if "lines" not in row]:
            columns, wanted = getattr(bench, "COLUMNS", row_store.TIMING_COLUMNS), getattr(bench, "TARGETS", {})
            lines += [*row_store.render_table(plain, columns, wanted), ""]
        lines += [line for row in mine for line in row.get("lines", ())]
        lines += bench.render_details(plain, options.out) if hasattr(bench, "render_details") else []
    return lines


def parse_thread_counts(text):
    return [int(part) for part in text.split(",")]


def parse_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*TABLES, "all"], metavar="WHAT", help=f"{', '.join(TABLES)} or all")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--threads", type=parse_thread_counts, help="one number or several: 1,2 (default 1; of all 1,2)"
    )
    parser.add_argument(
        "--rounds", type=int, help="how often the forms take turns (default: as the cases say, mostly 3)"
    )
    parser.add_argument("--case", action="append", help="one of the cases; may be given again")
    parser.add_argument("--short", action="store_true", help="the small cases, one thread, three rounds")
    parser.add_argument(
        "--out",
        type=Path,
        help="also write the tables here; finished rows are stored in a .jsonl next to it, so that the same command "
        "goes on where it was stopped (default of all: tools/results/all-DEVICE.md)",
    )
    parser.add_argument("--fresh", action="store_true", help="make all rows anew")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=["fast", "reference"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    many = options.what == "all"
    options.threads = options.threads or ([1, 2] if many and not options.short and options.device == "cpu" else [1])
    if (options.rounds is not None and options.rounds < 1) or min(options.threads) < 1:
        parser.error("--rounds, --threads: expected at least 1, got less. Set 1 or more.")
    if many and options.case:
        parser.error("--case: expected one table, got all. Name the table instead of all.")
    if options.device == "cuda" and not options.worker and not has_cuda():
        parser.error("--device: expected a CUDA device, got none on this machine. Leave --device out.")
    if many and options.out is None and not options.short:
        options.out = Path(__file__).parents[1] / "results" / f"all-{options.device}.md"
    if options.short and not many and not hasattr(import_benchmark(options.what), "SHORT"):
        parser.error(f"--short: expected a table with short cases, got {options.what}. Leave --short out.")
    every = {} if many else import_benchmark(options.what).CASES | getattr(import_benchmark(options.what), "SHORT", {})
    if strange := [case for case in options.case or () if case not in every and not options.worker]:
        parser.error(f"--case: expected one of {', '.join(map(repr, every))}, got {strange[0]!r}. Name one of these.")
    return options


def main(arguments=None):
    options = parse_options(arguments)
    if options.worker:
        job = Job(options.what, options.case[0], options.threads[0], options.device, options.rounds)
        print(json.dumps(run_worker(job, options.variant)))
        return
    describe_commit()
    jobs, rows, began = plan_jobs(options), [], time.monotonic()
    kept = RowStore(options.out and options.out.with_suffix(".jsonl"), options.fresh)
    for i, job in enumerate(jobs):
        name = f"[{i + 1}/{len(jobs)}] {job.table}: {job.case}, {job.threads} thread{'s' * (job.threads > 1)}"
        print(name, end=" ", file=sys.stderr, flush=True)
        if (row := kept.get(job.make_key())) is not None:
            told = "kept from before"
        else:
            since, row = time.monotonic(), job.measure_row()
            told = row.get("failed") or f"{time.monotonic() - since:.0f} s"
            if "failed" not in row:
                kept.add(job.make_key(), row)
        print(f"... {told} ({(time.monotonic() - began) / 60:.1f} min in all)", file=sys.stderr, flush=True)
        rows.append(row)
        if options.out:
            options.out.write_text("\n".join(render_report(rows, options)).rstrip() + "\n", "utf-8")
    print("\n".join(render_report(rows, options)).rstrip())
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
