"""Run a table of the literature: plan it, run what is missing, and set it against the published numbers.

tools/reproduce.py --table base-to-new --backbone open_clip:ViT-B-16/openai --plan --calibrate
    prints what it would run, what is done, which data are missing, and by one measured step its time and memory.
tools/reproduce.py --table base-to-new --backbone open_clip:ViT-B-16/openai
    runs it. What is done is not done again and what was stopped goes on, so give it again until it is through.

Recipes are those of configs/<task>/<method>.yaml, with what they say otherwise for a dataset; the precision is
the published one, fp16, where the backbone is on a GPU (--precision). A run that fails loses no other: it is told at
the end and the exit status is 1. Without weights, --backbone open_clip:ViT-B-16/random plans at the same cost.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

TABLES = {"base-to-new": "base_to_new", "few-shot": "few_shot", "cross-dataset": "transfer"}
TABLES["domain-generalisation"] = "transfer"
out = Console()


def options(words=None):
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
    found = parser.parse_args(words)
    found.out = found.out or Path("runs") / found.table
    return found


def chosen(o, known):
    """Methods and datasets: as asked, or what the table has."""
    from vlprompt import methods

    task = TABLES[o.table]
    kinds = {"cross-dataset": 10, "domain-generalisation": 4}
    entries = [e for e in known.entries if e.task == task and (not e.targets or len(e.targets) == kinds[o.table])]
    published = dict.fromkeys(e.method for e in entries if e.method in methods.found())
    return o.methods or list(published), o.datasets or list(entries[0].targets or known.eleven[task])


def plans(o, known):
    """Every configuration of the table, dataset by dataset, so that its images are encoded once."""
    from vlprompt.cli.options import numbers
    from vlprompt.config.resolve import grid

    task, (names, datasets) = TABLES[o.table], chosen(o, known)
    shots = numbers(o.shots or ("1,2,4,8,16" if task == "few_shot" else "16"), "shots")
    precision = o.precision or ("fp16" if on_gpu(o.device) else "fp32")
    found = []
    targets = [f"task.targets={json.dumps(datasets)}"] if task == "transfer" else []
    settings = [*targets, f"train.precision={precision}", *o.set]
    for dataset in [o.source] if targets else datasets:
        found += grid(names, shots, numbers(o.seeds, "seeds"), dataset=dataset, task=task, backbone=o.backbone,
                      overrides=settings)  # fmt: skip
    return found


def on_gpu(device):
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def state(folder):
    """ "done", "begun" or "to do"."""
    if folder.done() is not None:
        return "done"
    return "begun" if folder.last.exists() else "to do"


def show_plan(o, every, sizes, clip):
    """One line per dataset, method and shots; then the sums, and what is missing."""
    from cost_estimate import price, trains, work

    from vlprompt.backbones.glyph import twin
    from vlprompt.experiments.sweep import place
    from vlprompt.results.tables import terminal

    tiny, prices, trained = twin(), {}, {}
    table = Table(title=f"{o.table} with {o.backbone}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("dataset", "method", "shots", "runs", "done", "images", "steps", "tested", "time left", "MB"):
        table.add_column(name, justify="left" if name in ("dataset", "method") else "right", no_wrap=True)
    total = {"runs": 0, "done": 0, "begun": 0, "steps": 0, "seconds": 0.0}
    groups = {}
    for plan in every:
        groups.setdefault((data_of(plan)[0], plan["method"]["name"], plan["task"].get("shots")), []).append(plan)
    for (dataset, method, shots), group in groups.items():
        key = json.dumps([group[0]["method"], group[0]["train"] | {"epochs": 0}])
        if key not in prices:
            out.print(f"measuring a step of {method} ...", style="dim") if clip else None
            prices[key] = price(group[0], clip) if clip else None
            trained[key] = trains(group[0]["method"], clip or tiny)
        each, cost = work(group[0], sizes, trained[key]), prices[key]
        states = [state(place(o.out, plan)) for plan in group]
        left = sum(s != "done" for s in states)
        seconds = cost.seconds(each) * left if cost else 0.0
        for name, value in (("runs", len(group)), ("done", states.count("done")), ("begun", states.count("begun"))):
            total[name] += value
        total["steps"], total["seconds"] = total["steps"] + each.steps * left, total["seconds"] + seconds
        known = sizes[dataset].classes > 0
        cells = [f"{each.images:,}", f"{each.steps:,}", f"{sum(n for n, _ in each.tests):,}"] if known else ["?"] * 3
        cells += [spoken(seconds), f"{cost.megabytes(each):.0f}"] if cost and known else ["?", "?"]
        table.add_row(
            Path(dataset).name, method, str(shots or "all"), str(len(group)), str(states.count("done")), *cells
        )
    terminal.whole(table, out)
    left = f"{total['runs'] - total['done']} left ({total['begun']} of them begun), {total['steps']:,} steps"
    here = (
        f", {spoken(total['seconds'])} here" if clip else "; time and memory are not known: --calibrate measures a step"
    )
    out.print(f"{total['runs']} runs, {total['done']} done, {left}{here}", highlight=False, soft_wrap=True)
    if clip:
        out.print("time = steps x step(C) + tests x (prepare(C) + images x image(C)), each a line over the classes C "
                  "through measurements at 10 and 40; without reading pictures and without what stored features save",
                  style="dim", soft_wrap=True)  # fmt: skip
    for dataset, size in sizes.items():
        if size.missing:
            out.print(f"missing: {Path(dataset).name}: {size.missing}", style="yellow", markup=False, soft_wrap=True)


def spoken(seconds):
    """ "12 s", "3.4 min", "5.6 h"."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:,.1f} h"
    )


def data_of(plan):
    """The datasets of a run: what it trains on first."""
    task = plan["task"]
    return list(dict.fromkeys([task["dataset"], *(task.get("targets") or ())]))


def execute(o, every, clip):
    """Run what is not done; gives the exit status."""
    from vlprompt.experiments import paper_recipes
    from vlprompt.experiments.sweep import place, run_all
    from vlprompt.results.published import report
    from vlprompt.results.tables.summary import rows
    from vlprompt.results.tables.terminal import show_table

    found, failed = [place(o.out, plan).done() for plan in every], {}
    if not all(found):
        clips = {o.backbone: clip} if clip else {}
        found = run_all(every, found, o.out, o.device, o.save_every, o.threads, out, clips=clips, failed=failed)
    results = [result for result in found if result is not None]
    show_table(rows(results), out)
    report.show(*paper_recipes.paired(results), out)
    reasons = {}
    for i, error in failed.items():
        reasons.setdefault(f"{type(error).__name__}: {error}", []).append(place(o.out, every[i]).path.name)
    for reason, names in reasons.items():
        out.print(f"failed: {', '.join(names)}: {reason}", style="red", markup=False, soft_wrap=True)
    if failed:
        out.print(f"{len(results)} of {len(every)} runs are done; the same command tries the others again")
    return 1 if failed else 0


def main(words=None):
    o = options(words)
    if o.root is not None:
        os.environ["VLPROMPT_DATA"] = str(o.root)
    import torch
    from cost_estimate import size_of

    from vlprompt.backbones import load
    from vlprompt.experiments import paper_recipes
    from vlprompt.experiments.sweep import SMALL, place

    try:
        every = plans(o, paper_recipes.reference())
        if o.threads or o.backbone.partition(":")[0] in SMALL:
            torch.set_num_threads(o.threads or 1)
        sizes = {dataset: size_of(dataset) for dataset in dict.fromkeys(d for plan in every for d in data_of(plan))}
        to_run = not o.plan and any(state(place(o.out, plan)) != "done" for plan in every)
        here = any(not size.missing for size in sizes.values())
        clip = load(o.backbone, o.device) if o.calibrate or (to_run and here) else None
        show_plan(o, every, sizes, clip if o.calibrate else None)
        return 0 if o.plan else execute(o, every, clip)
    except (ValueError, OSError) as error:
        out.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        out.print("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
