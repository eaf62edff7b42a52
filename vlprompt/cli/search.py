"""The command `vlprompt search`. Heavy libraries are imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

from vlprompt.cli.options import Device, Features, Root, SkipBroken, use_features, use_root

if TYPE_CHECKING:
    from vlprompt.experiments.search import Study
    from vlprompt.results.run_folder import Result


out = Console()


def search(
    method: Annotated[str, typer.Argument(help="A method, or several with commas: linear,vpt.")],
    datasets: Annotated[
        str,
        typer.Argument(
            help="Datasets (a card's name, a folder or file) or sets of them (vtab, fgvc), with commas.",
            metavar="DATASET|SET[,...]",
        ),
    ],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Settings, and lists to search: 'search.train.lr=[0.1,0.01]'.", metavar="[KEY=VALUE]..."),
    ] = None,
    backbone: Annotated[Optional[str], typer.Option(help="glyph (default), open_clip:NAME/TAG ...")] = None,  # noqa: UP045
    seed: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Seeds of the final runs, with commas; default: search.seeds of the recipe, else 1."),
    ] = None,
    config: Annotated[Optional[Path], typer.Option("-c", "--config", help="A YAML file of settings.")] = None,  # noqa: UP045
    runs: Annotated[Path, typer.Option("-o", "--out", help="Where run folders go.")] = Path("runs"),
    device: Device = None,
    root: Root = None,
    skip_broken: SkipBroken = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two saved states.")] = 5.0,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads.")] = None,  # noqa: UP045
    features: Features = None,
) -> None:
    """Search settings on validation images, then train with the best on all images, seed by seed, and test.

    The grid is the `search` section of configs/vtab/<method>.yaml, of the -c file and of key=value. What is done is not
    done again, and what was stopped goes on where it was.
    """
    from vlprompt.cli.options import numbers
    from vlprompt.results.tables.summary import rows
    from vlprompt.results.tables.terminal import scored, show_scores, show_table

    use_root(root)
    use_features(features)
    given = [w for w in settings or [] if w]
    if strange := [w for w in given if "=" not in w]:
        raise ValueError(f"datasets are one word with commas between them; settings are key=value; got {strange[0]!r}")
    given += ["task.skip_broken=true"] if skip_broken else []
    seeds = [n for n in numbers(seed, "seed") if n is not None]
    results: list[Result] = []
    failed: dict[str, Exception] = {}
    clips: dict[str, Any] = {}
    for name in method.split(","):
        for dataset in _each(datasets):
            how = {"backbone": backbone, "file": config, "overrides": given}
            try:
                results += _one(name, dataset, seeds, how, clips, runs, device, save_every, threads)
            except (ValueError, OSError, ArithmeticError) as error:
                failed[f"{name} on {dataset}"] = error
                out.print(f"{name} on {dataset}: [red]failed[/]", soft_wrap=True)
    scores = scored(results)
    if scores:
        show_scores(scores, out)
    elif results:
        show_table(rows(results), out)
    if failed:
        (first, error), *others = failed.items()
        raise ValueError(f"{first}: {error}" + (f"; failed too: {', '.join(n for n, _ in others)}" if others else ""))


def _each(text: str) -> Sequence[str]:
    """Datasets, those of a set in its place."""
    from vlprompt.data.dataset_groups import members

    return [one for word in text.split(",") if word for one in (members(word) or [word])]


def _one(method: str, dataset: str, seeds: list[int], how: dict[str, Any], clips: dict[str, Any], runs: Path,
         device: str | None, save_every: float, threads: int | None) -> "list[Result]":  # fmt: skip
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from vlprompt.config.build import build_task
    from vlprompt.experiments.search import search as solve
    from vlprompt.experiments.search import study
    from vlprompt.experiments.sweep import loaded, place, run_all

    about = study(method, dataset, seeds, **how)
    where, note = about.place(runs), about.task.protocol["note"]  # what is wrong with the data comes before a backbone
    if note:
        out.print(f"{dataset}: {note}", style="yellow", soft_wrap=True)
    chosen = about.chosen(where)
    if chosen is None:
        clip = loaded(about.settings[0].plan, clips, device, threads)
        bars = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")
        with Progress(*bars, console=out) as progress:
            bar = progress.add_task(f"{dataset}: searching {len(about.settings)} settings", total=1, note="")

            def watch(doing: str, done: int, total: int, note: str) -> None:
                progress.update(bar, completed=done, total=total, note=f"{doing}  {note}")

            chosen = solve(about, where, clip, save_every, watch)
    out.print(_said(method, dataset, about, chosen), highlight=False, soft_wrap=True)
    plans = about.final(chosen)
    found = [place(runs, plan).done() for plan in plans]
    if any(found):
        now = build_task(plans[0]["task"]).protocol["test"]
        if other := [r for r in found if r is not None and r.protocol["test"] != now]:
            raise ValueError(
                f"{len(other)} runs in {str(runs)!r} were tested on other images of {dataset}; give another --out"
            )
    if not all(found):
        found = run_all(plans, found, runs, device, save_every, threads, out, clips=clips)
    return [result for result in found if result is not None]


def _said(method: str, dataset: str, about: "Study", chosen: dict[str, Any]) -> str:
    if chosen["accuracy"] is None:
        return f"{method} on {dataset}: one setting, nothing to choose"
    train, scale = chosen["config"]["train"], about.told.get("scale_lr")
    values = ", ".join(f"{k.partition('.')[2]} {v}" for k, v in chosen["values"].items())
    if scale and "train.lr" in chosen["values"]:
        values += f" (the lr is times {train['batch']}/{scale}: {train['lr']:.4g})"
    out_of = f", {chosen['out']} of them not finite" if chosen["out"] else ""
    tied = f", {chosen['tied']} more as good" if chosen["tied"] else ""
    return (f"{method} on {dataset}: {chosen['settings']} settings{out_of} [dim]({chosen['seconds']:.1f} s)[/]; "
            f"validation {chosen['accuracy']:.1f}{tied} with {values}")  # fmt: skip
