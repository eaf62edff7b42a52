"""Many runs by one command: progress while they go, the table when they are done."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vlprompt.experiments.domain_pairs import ways_of
from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.run_folder import Folder, Result
from vlprompt.results.tables.summary import rows
from vlprompt.results.tables.terminal import show_table
from vlprompt.runtime import distributed


def sweep(
    methods: Sequence[str | None],
    shots: Sequence[int | None],
    seeds: Sequence[int | None],
    *,
    dataset: str | None,
    task: str | None,
    source: str | None = None,
    target: str | None = None,
    backbone: str | None,
    file: Path | None,
    settings: Sequence[str],
    runs: Path,
    device: str | None,
    save_every: float,
    threads: int | None,
    out: Console,
    until: int | None = None,
) -> list[Result]:
    """Every combination, one after another; those that are done are only read.

    Prints the table and gives the results.
    """
    from vlprompt.config.resolve import grid, layered

    how: dict[str, Any] = {"dataset": dataset, "task": task, "backbone": backbone, "file": file}
    kinds = {layered(method, **how, overrides=settings).values["task"]["name"] for method in methods}
    if len(kinds) > 1 and DOMAIN in kinds:  # nobody named a task, and one of the methods allows only this one
        how["task"] = DOMAIN
    plans = [plan for method in methods for way in ways_of(source, target, method, settings, how)
             for plan in grid([method], shots, seeds, **way)]  # fmt: skip
    found = distributed.of_first(lambda: [place(runs, plan).done() for plan in plans])
    if not all(found):
        found = run_all(plans, found, runs, device, save_every, threads, out, until=until)
    results = [result for result in found if result is not None]
    if paused := [r for r in results if "paused" in r.protocol]:
        several = f"{len(paused)} runs" if len(paused) > 1 else "the run"
        out.print(f"{several} paused; the same command without --until-task goes on", style="yellow")
        results = [r for r in results if r not in paused]
    if results or not paused:
        show_table(rows(results), out)
    out.print(f"{len(results)} run{'s' * (len(results) != 1)} under {runs}/", style="dim")
    return results


def place(runs: Path, plan: dict[str, Any]) -> Folder:
    """runs/<method>-<dataset>-<shots>shot-seed<seed>-<hash of the configuration>; only the hash tells runs apart."""
    from vlprompt.config.describe import key_of

    method = plan["method"]["name"].rpartition(":")[2]
    return Folder(runs / f"{method}-{_dataset(plan)}-{_size(plan['task'], '')}-seed{plan['seed']}-{key_of(plan)}")


def _size(task: dict[str, Any], space: str = " ") -> str:
    """How much of the data a run has: shots, or the lessons of a stream."""
    k, stages = task.get("shots"), task.get("stages")
    if task["name"] == STREAM and k is None:
        return "stream" if stages is None else f"{stages if isinstance(stages, int) else len(stages)}{space}stages"
    if task["name"] == DOMAIN and k is None:
        return task["setting"].replace("_", "-")
    return f"{k if k is not None else 'all'}{space}shot" + ("s" if space and k != 1 else "")


SMALL = (
    "glyph",
    "glyph/random",
    "glyph-vit",
    "glyph-vit/random",
    "pixels",
)  # their passes are so short that a second thread only waits for the first


def run_all(plans: list[dict[str, Any]], found: list[Result | None], runs: Path, device: str | None, save_every: float,
            threads: int | None, out: Console, *, clips: dict[str, Any] | None = None,
            failed: dict[int, Exception] | None = None, until: int | None = None) -> list[Result | None]:  # fmt: skip
    """The results of all plans, in place of every None of `found`; clips: backbones by name that are loaded already.

    until: after how many lessons of a stream to pause. With `failed` a run that fails is written there, by its place in
    the plans, and the others go on; else it is raised.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    clips, known = {} if clips is None else clips, dict[str, Any]()
    several = len({_dataset(plan) for plan in plans}) > 1
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress:
        every = progress.add_task("runs", total=len(plans), completed=sum(r is not None for r in found), note="")
        for i, plan in enumerate(plans):
            if found[i] is not None:
                continue
            name = f"{plan['method']['name']} {_size(plan['task'])}, seed {plan['seed']}"
            name = f"{_dataset(plan)}: {name}" if several else name
            bar = progress.add_task(name, total=1, note=f"loading {plan['backbone']}")
            try:
                result = found[i] = _run_one(
                    plan, name, clips, known, runs, device, save_every, threads, until, progress, bar
                )
                if cut := "; ".join(f"{k} {how}" for k, how in result.protocol["cut"].items()):
                    progress.console.print(f"{name}: {cut}", style="yellow", soft_wrap=True)
                scores = "chosen by the oracle  " * ("oracle" in result.protocol["selection"])
                scores += "  ".join(f"{k} {v:.1f}" for k, v in result.summary.items())
                paused = f"[yellow]paused {result.protocol['paused']}[/]  " if "paused" in result.protocol else ""
                told = f"{name}: {paused}{scores} [dim]({result.cost['seconds']:.1f} s)[/]"
            except Exception as error:
                if failed is None:
                    raise
                failed[i], told = error, f"{name}: [red]failed[/]"
            progress.remove_task(bar)
            progress.console.print(told, highlight=False, soft_wrap=True)
            progress.advance(every)
    return found


def _dataset(plan: dict[str, Any]) -> str:
    """What a run is about, as a part of its folder's name."""
    task = plan["task"]
    base = lambda one: Path(str(one)).name.replace(" ", "_")  # noqa: E731
    if task["name"] != DOMAIN:
        return base(task.get("dataset", task["name"]))
    source = (
        task["source"]
        if isinstance(task["source"], list)
        else [task["source"] or ("none" if task["setting"] == "source_free" else "rest")]
    )
    pair = f"{'+'.join(map(base, source))}-to-{base(task['target'])}"
    return f"{base(task['dataset'])}-{pair}" if task["dataset"] else pair


def loaded(plan: dict[str, Any], clips: dict[str, Any], device: str | None, threads: int | None) -> Any:
    """The backbone of a plan, loaded once for all, and the threads that suit it."""
    import torch

    if threads or plan["backbone"].partition(":")[0] in SMALL:
        torch.set_num_threads(threads or 1)
    return _backbone(plan, clips, device)


def _run_one(plan: dict[str, Any], name: str, clips: dict[str, Any], known: dict[str, Any], runs: Path,
             device: str | None, save_every: float, threads: int | None, until: int | None, progress: Any,
             bar: Any) -> Result:  # fmt: skip
    from vlprompt.config.build import build_method, build_task
    from vlprompt.engine.train_config import Train
    from vlprompt.experiments.runner import run

    with distributed.in_turn():
        task = build_task(plan["task"])
        told = task.protocol  # opens the data: what is wrong with it is told before a backbone is loaded
    if short := told.get("short"):
        few = f"{len(short)} classes have fewer images ({', '.join(short[:5])}); all of theirs are taken"
        progress.console.print(f"{name}: {few}", style="yellow", soft_wrap=True)
    for warning in told.get("warnings", []):
        progress.console.print(f"{name}: {warning}", style="yellow", soft_wrap=True)
    with distributed.in_turn():
        backbone = loaded(plan, clips, device, threads)
    method = build_method(plan["method"], backbone)

    def watch(doing: str, done: int, total: int, note: str) -> None:
        progress.update(bar, completed=done, total=total, note=f"{doing}  {note}")

    where, train = place(runs, plan).path, Train(**plan["train"])
    spare = _spared(plan, task, backbone, train, known, lambda text, style: progress.console.print(
        f"{name}: {text}", style=style, soft_wrap=True, highlight=False))  # fmt: skip
    return run(method, task, train, where, plan["seed"], save_every=save_every, watch=watch, until=until, spare=spare)


def _spared(plan: dict[str, Any], task: Any, backbone: Any, train: Any, known: dict[str, Any],
            tell: Callable[[str, str], None]) -> Any:  # fmt: skip
    """The settings by which a run fits into the memory; what it will take is told, where that was measured.

    known: what was told of runs that differ by their seed only.
    """
    from vlprompt.config.build import build_method
    from vlprompt.experiments.memory_plan import plan as planned

    if distributed.size() > 1:
        return {}
    stage = next(iter(task.stages()))
    tested = sum(len(test) for test in stage.tests.values())
    sizes = len(stage.lesson.train.names), len(stage.lesson.train), tested
    key = json.dumps([plan["backbone"], plan.get("look"), plan["method"], plan["train"], *sizes])
    if key in known:
        return known[key].chosen
    try:
        found = known[key] = planned(lambda: build_method(plan["method"], backbone), stage.lesson, train, tested)
    except ValueError as error:  # a few images may be too few for a method; if it is not that, the run will say it
        tell(f"what it takes could not be measured beforehand ({error})", "dim")
        return {}
    if found.seconds or not found.fits:
        tell(f"about {found}", "yellow" if found.chosen or not found.fits else "dim")
    return found.chosen


def _backbone(plan: dict[str, Any], clips: dict[str, Any], device: str | None) -> Any:
    """Loaded once for all plans; each look keeps its features for all plans, too."""
    from vlprompt.backbones import opened
    from vlprompt.backbones.feature_cache import shelved, usual
    from vlprompt.core.towers import look_of, seen
    from vlprompt.data.images.preprocess_presets import look

    spec, given = plan["backbone"], plan.get("look")
    if spec not in clips:
        clips[spec] = shelved(opened(spec, device), usual())  # its notes are printed with each result
    if given is None:
        return clips[spec]
    key = f"{spec} {json.dumps(given)}"
    if key not in clips:
        clips[key] = seen(clips[spec], look(given, look_of(clips[spec])))
    return clips[key]
