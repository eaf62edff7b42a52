"""Wall time of a sweep: by one process, by several, and by one command for each run; each with its feature cache."""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS, DATASETS, SHOTS, SEEDS = ("coop", "kgcoop", "tip_adapter"), ("digits", "glyphs"), (1, 2, 4), (1, 2, 3)
CODE = "from vlprompt.cli.app import main; main()"


def call(out, *words):
    environment = {**os.environ, "VLPROMPT_FEATURE_CACHE": str(out.with_name(f"{out.name}-features"))}
    command = [sys.executable, "-P", "-c", CODE, *words, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, env=environment)


def run_one_by_one(out, epochs):
    for method, dataset, shots, seed in itertools.product(METHODS, DATASETS, SHOTS, SEEDS):
        call(out, "run", method, dataset, "--shots", str(shots), "--seed", str(seed), f"train.epochs={epochs}")


def sweep(out, epochs, jobs):
    axes = (("method", METHODS), ("dataset", DATASETS), ("shots", SHOTS), ("seed", SEEDS))
    words = [f"{key}={','.join(map(str, values))}" for key, values in axes]
    call(out, "sweep", *words, f"train.epochs={epochs}", "--jobs", str(jobs))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="sweep_times", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--jobs", default="1,2,4")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_one_by_one(Path(folder) / "single", options.epochs)
        single = time.perf_counter() - start
        rows.append(("54 commands, one after another", single))
        for jobs in map(int, options.jobs.split(",")):
            start = time.perf_counter()
            sweep(Path(folder) / str(jobs), options.epochs, jobs)
            rows.append(("`vlprompt sweep`" + f" `--jobs {jobs}`" * (jobs > 1), time.perf_counter() - start))
    lines = ["| how | s | times as fast |", "|---|---:|---:|"]
    lines += [f"| {name} | {seconds:.0f} | {single / seconds:.1f} |" for name, seconds in rows]
    text = "\n".join(lines) + f"\n\n`python tools/sweep_times.py --epochs {options.epochs}`\n"
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
