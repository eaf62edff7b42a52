"""Reproduce a published table: plan it, run what is missing, and compare with the published numbers.

tools/reproduce.py --table base-to-new --backbone open_clip:ViT-B-16/openai --plan --calibrate
    prints what it would run, what is done, which data are missing, and by one measured step its time and memory.
tools/reproduce.py --table base-to-new --backbone open_clip:ViT-B-16/openai
    runs it. What is done is not done again and what was stopped goes on, so give it again until it is through.

Recipes are those of configs/<task>/<method>.yaml, with what they say otherwise for a dataset; the precision is
the published one, fp16, where the backbone is on a GPU (--precision). A run that fails loses no other: it is told at
the end and the exit status is 1. Without weights, --backbone open_clip:ViT-B-16/random plans at the same cost.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

TABLES = {"base-to-new": "base_to_new", "few-shot": "few_shot", "cross-dataset": "transfer"}
TABLES["domain-generalisation"] = "transfer"
console = Console(markup=False, emoji=False)  # names may have brackets and colons


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=list(TABLES))
    parser.add_argument("--backbone", required=True, help="for example open_clip:ViT-B-16/openai")
    parser.add_argument("--methods", nargs="+", help="default: those of ours that the table has published numbers of")
    parser.add_argument("--datasets", nargs="+", help="names or folders; default: the table's (a transfer's targets)")
    parser.add_argument("--source", default="imagenet", help="what a transfer is trained on")
    parser.add_argument("--shots", help="default: 16; for few-shot 1,2,4,8,16")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: fp16 on a GPU, else fp32")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as train.epochs=1"
    )
    parser.add_argument("--out", type=Path, help="folder of the runs; default runs/TABLE")
    parser.add_argument("--root", type=Path, help="folder of the datasets (VLPROMPT_DATA)")
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure a step of each method here, for time and memory"
    )
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save-every", type=float, default=5.0)
    found = parser.parse_args(arguments)
    found.out = found.out or Path("runs") / found.table
    return found


def select_methods_and_datasets(options, reference):
    """Return methods, each with the settings that tell a variant apart, and datasets: of the options or the table."""
    from vlprompt import methods

    task = TABLES[options.table]
    kinds = {"cross-dataset": 10, "domain-generalisation": 4}
    entries = [
        e for e in reference.entries if e.task == task and (not e.targets or len(e.targets) == kinds[options.table])
    ]
    ours = methods.find_classes()
    known = [e for e in entries if e.method in ours and all(v in ours for v in [e.arguments.get("method", e.method)])]
    published = {json.dumps([e.method, e.arguments]): (e.method, e.arguments) for e in known}
    variants = [(name, {}) for name in options.methods] if options.methods else list(published.values())
    specific = {name for name, arguments in variants if arguments}
    variants = [(name, arguments) for name, arguments in variants if arguments or name not in specific]
    return variants, options.datasets or list(entries[0].targets or reference.averaged_datasets[task])


def build_configs(options, reference):
    """Resolve every configuration of the table, dataset by dataset, so that images are encoded once."""
    from vlprompt.cli.options import parse_integers
    from vlprompt.config.resolve import resolve_grid

    task, (variants, datasets) = TABLES[options.table], select_methods_and_datasets(options, reference)
    shots = parse_integers(options.shots or ("1,2,4,8,16" if task == "few_shot" else "16"), "shots")
    precision = options.precision or ("fp16" if is_on_gpu(options.device) else "fp32")
    found = []
    targets = [f"task.targets={json.dumps(datasets)}"] if task == "transfer" else []
    settings = [*targets, f"train.precision={precision}", *options.set]
    for dataset, (name, arguments) in itertools.product([options.source] if targets else datasets, variants):
        found += resolve_grid(
            [name],
            shots,
            parse_integers(options.seeds, "seeds"),
            dataset=dataset,
            task=task,
            backbone=options.backbone,
            overrides=[*settings, *(f"method.{key}={json.dumps(value)}" for key, value in arguments.items())],
        )
    return found


def is_on_gpu(device):
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def get_run_state(folder):
    """Return "done", "begun" or "to do"."""
    if folder.read_finished() is not None:
        return "done"
    return "begun" if folder.state_path.exists() else "to do"


def name_variant(method, variants):
    """Name a method with its settings that are others in another variant of the table."""
    differing = [key for key, value in method.items() if any(v.get(key) != value for v in variants)]
    known = [f"{key}={method[key]}" for key in differing if not isinstance(method[key], str | dict | list)]
    inner = [method[key]["name"] for key in differing if isinstance(method[key], dict) and "name" in method[key]]
    return " ".join([method["name"], *known, *inner])


def show_plan(options, configs, sizes, backbone):
    """Print one line per dataset, method and shots, then the totals and missing data."""
    from vlprompt.backbones.glyph import build_tiny_clip
    from vlprompt.cli.display.terminal import print_full_table
    from vlprompt.experiments.planning.cost_model import compute_workload, has_trainable_parameters, measure_costs
    from vlprompt.experiments.sweeps.run_names import get_run_folder

    tiny, prices, trained = build_tiny_clip(), {}, {}
    table = Table(
        title=f"{options.table} with {options.backbone}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("dataset", "method", "shots", "runs", "done", "images", "steps", "tested", "time left", "MB"):
        table.add_column(name, justify="left" if name in ("dataset", "method") else "right", no_wrap=True)
    total = {"runs": 0, "done": 0, "begun": 0, "steps": 0, "seconds": 0.0}
    groups, variants = {}, {}
    for plan in configs:
        where = list_datasets(plan)[0], plan.task.get("shots"), plan.method["name"]
        groups.setdefault((*where, json.dumps(plan.method)), []).append(plan)
        variants.setdefault(where, []).append(plan.method)
    for (dataset, shots, name, _), group in groups.items():
        method = name_variant(group[0].method, variants[dataset, shots, name])
        key = json.dumps([group[0].method, group[0].train | {"epochs": 0}])
        if key not in prices:
            console.print(f"measuring a step of {method} ...", style="dim") if backbone else None
            prices[key] = measure_costs(group[0], backbone) if backbone else None
            trained[key] = has_trainable_parameters(group[0].method, backbone or tiny)
        each, cost = compute_workload(group[0], sizes, trained[key]), prices[key]
        states = [get_run_state(get_run_folder(options.out, plan)) for plan in group]
        left = sum(s != "done" for s in states)
        seconds = cost.estimate_seconds(each) * left if cost else 0.0
        for name, value in (("runs", len(group)), ("done", states.count("done")), ("begun", states.count("begun"))):
            total[name] += value
        total["steps"], total["seconds"] = total["steps"] + each.steps * left, total["seconds"] + seconds
        known = sizes[dataset].classes > 0
        cells = [f"{each.images:,}", f"{each.steps:,}", f"{sum(n for n, _ in each.tests):,}"] if known else ["?"] * 3
        cells += [format_time_left(seconds), f"{cost.estimate_megabytes(each):.0f}"] if cost and known else ["?", "?"]
        table.add_row(
            Path(dataset).name, method, str(shots or "all"), str(len(group)), str(states.count("done")), *cells
        )
    print_full_table(table, console)
    left = f"{total['runs'] - total['done']} left ({total['begun']} of them begun), {total['steps']:,} steps"
    here = (
        f", {format_time_left(total['seconds'])} here"
        if backbone
        else "; time and memory are not known: --calibrate measures a step"
    )
    console.print(f"{total['runs']} runs, {total['done']} done, {left}{here}", highlight=False, soft_wrap=True)
    if backbone:
        console.print(
            "time = steps x step(C) + tests x (prepare(C) + images x image(C)), each a line over the classes C "
            "through measurements at 10 and 40; without reading pictures and without what stored features save",
            style="dim",
            soft_wrap=True,
        )
    for dataset, size in sizes.items():
        if size.missing_reason:
            console.print(
                f"missing: {Path(dataset).name}: {size.missing_reason}", style="yellow", markup=False, soft_wrap=True
            )


def format_time_left(seconds):
    """Format seconds as "12 s", "3.4 min" or "5.6 h"."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:,.1f} h"
    )


def list_datasets(config):
    """List the datasets of a run, the training set first."""
    task = config.task
    return list(dict.fromkeys([task["dataset"], *(task.get("targets") or ())]))


def run_missing(options, configs, backbone):
    """Make the unfinished runs; return the exit status."""
    from vlprompt.cli.display.progress import ProgressDisplay
    from vlprompt.cli.display.terminal import show_comparison, show_results
    from vlprompt.experiments import paper_recipes
    from vlprompt.experiments.sweeps.options import SweepOptions
    from vlprompt.experiments.sweeps.run_names import get_run_folder
    from vlprompt.experiments.sweeps.runs import run_configs
    from vlprompt.results.tables.summary import build_rows

    failed, backbones = {}, {options.backbone: backbone} if backbone else {}
    sweep = SweepOptions(options.out, options.device, options.threads, options.save_every)
    with ProgressDisplay(console) as display:
        found = run_configs(configs, sweep, display, backbones=backbones, failures=failed)
    results = [result for result in found if result is not None]
    show_results(build_rows(results), console)
    show_comparison(*paper_recipes.compare_with_published(results), console)
    reasons = {}
    for i, error in failed.items():
        reasons.setdefault(f"{type(error).__name__}: {error}", []).append(
            get_run_folder(options.out, configs[i]).path.name
        )
    for reason, names in reasons.items():
        console.print(f"failed: {', '.join(names)}: {reason}", style="red", markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(results)} of {len(configs)} runs are done; the same command tries the others again")
    return 1 if failed else 0


def main(arguments=None):
    o = parse_options(arguments)
    import torch

    from vlprompt.backbones import load
    from vlprompt.backbones.schemes import choose_threads
    from vlprompt.experiments import paper_recipes
    from vlprompt.experiments.planning.cost_model import find_dataset_size
    from vlprompt.experiments.sweeps.run_names import get_run_folder
    from vlprompt.runtime.settings import SETTINGS

    SETTINGS.data_root, SETTINGS.threads = o.root, o.threads

    try:
        every = build_configs(o, paper_recipes.load_reference())
        if (threads := choose_threads(o.backbone)) is not None:
            torch.set_num_threads(threads)
        sizes = {
            dataset: find_dataset_size(dataset)
            for dataset in dict.fromkeys(d for plan in every for d in list_datasets(plan))
        }
        to_run = not o.plan and any(get_run_state(get_run_folder(o.out, plan)) != "done" for plan in every)
        here = any(not size.missing_reason for size in sizes.values())
        clip = load(o.backbone, o.device) if o.calibrate or (to_run and here) else None
        show_plan(o, every, sizes, clip if o.calibrate else None)
        return 0 if o.plan else run_missing(o, every, clip)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
