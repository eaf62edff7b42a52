"""The command line. Heavy libraries are imported by the commands that use them, so that --help is instant."""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from vlprompt.data_cli import Device, Root, SkipBroken, use_root
from vlprompt.data_cli import app as data_app
from vlprompt.errors import explained
from vlprompt.features_cli import Features, features, use_features
from vlprompt.machine_cli import PictureMemory, Threads, Workers, use_pictures
from vlprompt.results_cli import Where, export, plot, table
from vlprompt.search_cli import search

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prompt learning on frozen vision-language and language models. "
    "Start with:  vlprompt run coop digits --shots 16 --seed 1,2,3",
)
app.add_typer(data_app, name="data")
data_app.command()(features)
for command in (search, table, plot, export):
    app.command()(command)
out, err = Console(), Console(stderr=True)
STOPPED = "stopped; the same command goes on from here"


def numbers(text: str | None, what: str) -> list[int | None]:
    """ "1,2,4" -> [1, 2, 4]; nothing -> [None]."""
    if text is None:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--{what} takes whole numbers with commas between them, such as 1,2,4; got {text!r}"
        ) from None


def _names_methods(text: str) -> bool:
    from vlprompt.methods import found

    return all(part in found() or ":" in part for part in text.split(","))


@app.command()
def run(
    method: Annotated[Optional[str], typer.Argument(help="A method, or several with commas: coop,cocoop.")] = None,  # noqa: UP045
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="A dataset (a card's name, a folder or file of images or texts), then key=value settings.",
            metavar="[DATASET] [KEY=VALUE]...",
        ),
    ] = None,
    dataset: Annotated[Optional[str], typer.Option(help="The dataset, if not given as an argument.")] = None,  # noqa: UP045
    task: Annotated[
        str | None, typer.Option(help="few_shot (default), base_to_new, transfer, vtab, continual, domain, text.")
    ] = None,
    targets: Annotated[Optional[str], typer.Option(help="Of a transfer: datasets with commas.")] = None,  # noqa: UP045
    source: Annotated[
        str | None,
        typer.Option(help="Of domains: one, several at once with commas, rest or none; default each in turn."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Of domains: one, or several in turn with commas.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="glyph (default), open_clip:NAME/TAG, open_clip:NAME@FILE, hf_clip:OWNER/NAME, pixels; without "
            "texts glyph-vit, timm:NAME/TAG, timm:NAME@FILE; hf:FOLDER a language model. All: vlprompt list backbones."
        ),
    ] = None,
    shots: Annotated[Optional[str], typer.Option(help="Images or texts per class; several with commas.")] = None,  # noqa: UP045
    seed: Annotated[Optional[str], typer.Option(help="Random seed; several with commas.")] = None,  # noqa: UP045
    config: Annotated[Optional[Path], typer.Option("-c", "--config", help="A YAML file of settings.")] = None,  # noqa: UP045
    runs: Annotated[Path, typer.Option("-o", "--out", help="Where run folders go.")] = Path("runs"),
    device: Device = None,
    root: Root = None,
    skip_broken: SkipBroken = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between two saved states.")] = 5.0,
    threads: Threads = None,
    workers: Workers = None,
    picture_memory: PictureMemory = None,
    until_task: Annotated[
        int | None, typer.Option(min=1, help="Pause a stream after so many lessons; without it the command goes on.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="How many augmented views of an image exist; default: one per epoch.")
    ] = None,
    features: Features = None,
) -> None:
    """Train and test: every combination of methods, shots and seeds (and pairs of domains), one folder each.

    What is finished is not done again, and what was stopped goes on where it was, so the same command can be given
    until it is through. Settings: recipe of the method < -c file < options < key=value, for example method.n_ctx=4
    train.epochs=20.
    """
    from vlprompt.sweep import sweep

    use_root(root)
    use_features(features)
    use_pictures(workers, picture_memory)
    words = [w for w in (words or []) if w]
    if method and "=" in method:
        method, words = None, [method, *words]
    if config is not None and method and not _names_methods(method):
        method, words = None, [method, *words]  # the file names the method, the argument the dataset
    words = [w.removeprefix("dataset=") for w in words]
    plain = [w for w in words if "=" not in w]
    if len(plain) > 1:
        raise ValueError(f"one dataset at a time: got {', '.join(plain)}; settings are written key=value")
    settings = [f"task.targets=[{targets}]"] if targets else []
    settings += [f"train.views={views}"] if views else []
    settings += [w for w in words if "=" in w] + (["task.skip_broken=true"] if skip_broken else [])
    methods = [m for m in method.split(",") if m] if method else [None]
    sweep(methods, numbers(shots, "shots"), numbers(seed, "seed"), dataset=dataset or (plain[0] if plain else None),
          task=task, source=source, target=target, backbone=backbone, file=config, settings=settings, runs=runs,
          device=device, save_every=save_every, threads=threads, out=out, until=until_task)  # fmt: skip


@app.command()
def show(method: Annotated[str, typer.Argument(help="A method's name; `vlprompt list methods` gives them.")]) -> None:
    """What a method is: its paper, its arguments and their defaults, its recipes with their expected numbers."""
    from vlprompt.listing import describe_method

    for line in describe_method(method):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="methods, tasks, datasets, backbones or looks.")]) -> None:
    """Name what there is."""
    from vlprompt.listing import listing

    for line in listing(what):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("eval")
def eval_(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    dataset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="A card's name, a folder or file of images; its classes are the answers. Default: what the run was "
            "tested on."
        ),
    ] = None,
    backbone: Where = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            help="Also draw 40 test images with their predictions into this PNG; of a target also what the frozen CLIP "
            "says, in brackets where it is not sure enough to be learned from.",
        ),
    ] = None,
    device: Device = None,
    root: Root = None,
    skip_broken: SkipBroken = False,
    features: Features = None,
) -> None:
    """Test a learned prompt on the test split of a dataset, also one with other classes."""
    from vlprompt.use import evaluate_on

    use_root(root)
    use_features(features)
    for name, value in evaluate_on(folder, dataset, backbone, device, skip_broken, picture).items():
        out.print(f"{name:18} {value:.2f}", highlight=False)
    if picture is not None:
        out.print(f"wrote {picture}")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")],
    files: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(
            help="Image files; of a run on texts a .txt or .jsonl with one on each line.", metavar="[FILE]..."
        ),
    ] = None,
    text: Annotated[Optional[list[str]], typer.Option(help="A text; may be given again.")] = None,  # noqa: UP045
    top: Annotated[int, typer.Option(min=1, help="How many classes to tell for each.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="All probabilities (or responses) as JSON.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="All probabilities (or responses) as CSV.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the images with their predictions into this PNG.")
    ] = None,
    backbone: Where = None,
    device: Device = None,
    skip_broken: SkipBroken = False,
    features: Features = None,
) -> None:
    """Say what is in images or texts, with probabilities, or answer texts, by the prompt that a run has learned."""
    from vlprompt import use, use_text

    use_features(features)
    files = files or []
    if text or (files and all(path.suffix in (".txt", ".jsonl") for path in files)):
        if picture is not None:
            raise ValueError("texts can't be drawn into a picture: leave --picture out")
        given = [*(text or []), *(one for path in files for one in use_text.texts_in(path))]
        told = use_text.predict_texts(folder, given, backbone, device)
        form = use_text.as_json(told) if json else use_text.as_csv(told) if csv else use_text.as_lines(told, top)
        sys.stdout.write(form)
        return
    if not files:
        raise ValueError("there is nothing to predict: give image files, or texts by --text or in a .txt or .jsonl")
    found = use.predict_files(folder, files, backbone, device, skip_broken)
    form = use.as_json(found) if json else use.as_csv(found) if csv else use.as_lines(found, top)
    sys.stdout.write(form)
    if picture is not None:
        err.print(f"wrote {use.draw(found, picture)}")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake in the input ends in one line and exit status 2, without a traceback."""
    try:
        status: Any = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, Exception) as error:
        # typer carries a click of its own in newer versions, so usage errors are known by what they can do
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            err.print(STOPPED)
            raise SystemExit(130) from None
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            raise SystemExit(error.exit_code) from None  # pyright: ignore[reportAttributeAccessIssue]
        if (told := explained(error)) is None:
            raise
        err.print("[bold red]error:[/]", end=" ")
        err.print(told, markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)
