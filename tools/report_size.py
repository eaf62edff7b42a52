"""Measure a report of 324 runs: seconds, and bytes of the page. Eighteen runs are real, the others are copies of them.

Three methods, twelve datasets, three numbers of shots and three seeds, as in the papers on CLIP.

python tools/report_size.py FOLDER
"""

import json
import resource
import shutil
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from vlprompt.cli.app import main
from vlprompt.results.run_folder import RunFolder, find_run_folders

METHODS, DATASETS, SHOTS = "zero_shot,coop,cocoop", ("digits", "glyphs"), "1,2,4"
N_COPIES, N_SEEDS = 5, 3  # of each dataset under other names, and of each run


def call(*words):
    """Run a command of vlprompt; SystemExit where it fails."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise


def copy_run(source, copy, seed):
    """Copy a run as one on another dataset or of another seed, its scores moved by hundredths of a point."""
    import yaml

    suffix = f"_{copy}" * (copy > 0)
    method, dataset, rest = source.name.split("-", 2)
    target = source.with_name(f"{method}-{dataset}{suffix}-{rest}".replace("-seed1-", f"-seed{seed}-"))
    if target.exists():
        return
    shutil.copytree(source, target)
    run = RunFolder(target)
    result = run.read_result()
    config = json.loads(json.dumps(result.config))
    config["seed"] = config["task"]["seed"] = seed
    config["task"]["dataset"] += suffix
    moved = {
        name: value - 0.07 * ((7 * seed + 5 * copy + len(source.name)) % 11) for name, value in result.summary.items()
    }
    run.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    protocol = {**result.protocol, "dataset": config["task"]["dataset"]}
    run.finish(replace(result, config=config, summary=moved, protocol=protocol), run.learned_path.read_bytes())


def make_runs(folder):
    """Make the real runs and the copies, once."""
    for dataset in DATASETS:
        call("run", METHODS, dataset, "--shots", SHOTS, "train.epochs=20", "--out", folder)
    real = [path for path in find_run_folders(folder) if "-seed1-" in path.name and path.name.split("-")[1] in DATASETS]
    for source, copy, seed in product(real, range(N_COPIES + 1), range(1, N_SEEDS + 1)):
        copy_run(source, copy, seed)
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
