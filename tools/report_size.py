"""Measure a report of 300 runs: seconds, and bytes of the page. Thirty runs are real, the others are copies of them.

python tools/report_size.py FOLDER
"""

import json
import resource
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from vlprompt.cli.app import main
from vlprompt.results.run_folder import RunFolder, find_run_folders

METHODS, DATASETS, SHOTS, N_SEEDS = "zero_shot,coop,cocoop,nearest_mean,linear", ("digits", "glyphs"), "1,2,4", 10


def call(*words):
    """Run a command of vlprompt; SystemExit where it fails."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise


def copy_run(source, seed):
    """Copy a run as one of another seed, its scores moved by hundredths of a point."""
    import yaml

    target = source.with_name(source.name.replace("-seed1-", f"-seed{seed}-"))
    shutil.copytree(source, target)
    run = RunFolder(target)
    result = run.read_result()
    config = json.loads(json.dumps(result.config))
    config["seed"] = config["task"]["seed"] = seed
    moved = {name: value - 0.07 * ((7 * seed + len(source.name)) % 11) for name, value in result.summary.items()}
    run.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    run.finish(replace(result, config=config, summary=moved), run.learned_path.read_bytes())


def make_runs(folder):
    """Make thirty runs and 270 copies, once."""
    for dataset in DATASETS:
        call("run", METHODS, dataset, "--shots", SHOTS, "train.epochs=20", "--out", folder)
    for source in [path for path in find_run_folders(folder) if "-seed1-" in path.name]:
        for seed in range(2, N_SEEDS + 1):
            if not list(folder.glob(source.name.replace("-seed1-", f"-seed{seed}-"))):
                copy_run(source, seed)
    return len(find_run_folders(folder))


def measure(folder):
    """Write the report in both forms and return lines with what it took."""
    n_runs = make_runs(folder / "runs")
    lines = ["| form | runs | seconds | CPU seconds | MB of the page |", "|---|---:|---:|---:|---:|"]
    for option, path in (("--out", folder / "report"), ("--single", folder / "page.html")):
        start, cpu = time.perf_counter(), time.process_time()
        call("report", folder / "runs", option, path)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        page = path / "index.html" if path.is_dir() else path
        lines.append(f"| {option} | {n_runs} | {seconds:.0f} | {cpu:.0f} | {page.stat().st_size / 1e6:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*lines, "", f"Peak memory of the process: {peak:.0f} MB."]


if __name__ == "__main__":
    print("\n".join(measure(Path(sys.argv[1]))))
