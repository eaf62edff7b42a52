"""The commands `vlprompt data ...`. Heavy libraries are imported by the commands that use them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import LayoutOption, RootOption, set_data_root

if TYPE_CHECKING:
    from vlprompt.data.cards import Card
    from vlprompt.data.dataset import Data

app = typer.Typer(no_args_is_help=True, help="Get datasets, check them, look at them, keep their splits.")
console = make_console()
DatasetArgument = Annotated[
    str, typer.Argument(help="A dataset: a card's name, or a folder or file of images or texts.", metavar="NAME")
]
AllowMissingClassesOption = Annotated[
    bool, typer.Option("--allow-missing-classes", help="Take the classes that have images; miss no others.")
]
FigureOption = Annotated[
    Path | None,
    typer.Option("--figure", help="Draw samples of the classes into this PNG."),
]


@app.command("list")
def list_(root: RootOption = None) -> None:
    """All datasets with a card, and whether they are here."""
    from rich.table import Table

    from vlprompt.data.cards import list_cards, load_card
    from vlprompt.data.inspection import is_available

    set_data_root(root)
    table = Table("name", "classes", "train / val / test", "hand-written text", "here", box=None, pad_edge=False)
    for name in list_cards():
        card = load_card(name)
        sizes = card.sizes
        parts = ("train", "val", "test")
        told = " / ".join(f"{sizes[part]:,}" if part in sizes else "-" for part in parts)
        kind = card.text.answer if card.kind == "text" else "class"
        if sizes and not set(sizes) & set(parts):
            told = f"{sum(sizes.values()):,} in {len(sizes)} domains"
        here = "yes" if is_available(card) else "no"
        many = str(len(card.listed_classes())) if kind == "class" else kind
        table.add_row(name, many, told if sizes else "", " ".join(card.template.split()), here)
    console.print(table, highlight=False)


@app.command()
def prepare(
    name: DatasetArgument,
    root: RootOption = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is missing.")] = False,
    mirror: Annotated[
        str | None,
        typer.Option("--from", help="A folder or address with files of the same names, instead of the card's."),
    ] = None,
    allow_missing_classes: AllowMissingClassesOption = False,
) -> None:
    """Unpack a dataset into its folder and check it; files are downloaded only when --download is given."""
    from vlprompt.data.cards import is_card, load_card
    from vlprompt.data.inspection import is_available
    from vlprompt.data.loading import open_data
    from vlprompt.data.readers.hub import download_torchvision
    from vlprompt.data.sources import HubName

    set_data_root(root)
    if name.startswith("torchvision:"):
        if download:
            download_torchvision(HubName("torchvision", name.partition(":")[2]))
        console.print(f"{name} is here: {len(open_data(name).train)} images to learn from")
        return
    if not is_card(name):
        raise ValueError(
            f"data prepare: expected a dataset with a card, got {name!r}. Choose one of those of `vlprompt data list`."
        )
    card = load_card(name)
    if card.kind == "loader" or (card.kind == "text" and card.loader is not None):
        console.print(f"{name} comes with vlprompt; there is nothing to get", highlight=False)
        return
    for one in card.members.values() if card.kind == "members" else [name]:
        if one.startswith("torchvision:") and download:
            download_torchvision(HubName("torchvision", one.partition(":")[2]))
        elif is_card(one):
            _prepare_files(one, download, mirror)
    if not is_available(card):
        raise typer.Exit(1)
    _report_dataset(name, allow_missing_classes, with_decoding=False)


def _prepare_files(name: str, download: bool, mirror: str | None) -> None:
    """Unpack the files of a card, download them if `download`, and print what is missing."""
    from vlprompt.data import download as downloads
    from vlprompt.data.cards import load_card
    from vlprompt.data.inspection import is_available
    from vlprompt.data.locations import dataset_folder
    from vlprompt.data.readers.hub import download_torchvision
    from vlprompt.data.sources import HubName

    card = load_card(name)
    if card.kind == "loader" or card.kind == "members":
        return
    if card.kind == "text":
        from vlprompt.data.text.card import prepare_texts

        for line in [] if card.loader is not None else prepare_texts(card, download, mirror):
            console.print(line, soft_wrap=True, markup=False)
        return
    folder, left = dataset_folder(card.folder), []
    if card.kind == "hub":
        if mirror is not None:
            raise ValueError(
                f"--from: expected no mirror for {name}, which torchvision downloads, got {mirror!r}. Leave --from out."
            )
        if download:
            download_torchvision(HubName("torchvision", card.hub.partition(":")[2]))
        elif not is_available(card):
            console.print(f"missing: {folder}  <- {card.hub}", soft_wrap=True, markup=False)
    else:
        with _show_progress() as watch:
            left = downloads.prepare_files(card, folder, download, mirror, watch)
        for step in left:
            came = step.url or "an archive above"
            told = f"missing: {folder / step.produces}  <- {folder / step.file}  <- {came}"
            console.print(told, soft_wrap=True, markup=False)
        short = left or any(not (folder / path).exists() for path in (card.images, *card.lists))
        if card.manual_download is not None and short:
            console.print(f"by hand: {card.manual_download}; all into {folder}", soft_wrap=True, markup=False)
    if not download and (left or (card.kind == "hub" and not is_available(card))):
        console.print(f"licence: {card.licence}. Fetch with: vlprompt data prepare {name} --download", soft_wrap=True)


@app.command()
def check(
    name: DatasetArgument,
    root: RootOption = None,
    allow_missing_classes: AllowMissingClassesOption = False,
    figure: FigureOption = None,
    layout: LayoutOption = None,
) -> None:
    """Count, compare with the card, open every image; exit status 1 when something is wrong."""
    set_data_root(root)
    _report_dataset(name, allow_missing_classes, with_decoding=True, figure=figure, layout=layout)


@app.command()
def show(
    name: DatasetArgument,
    root: RootOption = None,
    allow_missing_classes: AllowMissingClassesOption = False,
    figure: FigureOption = None,
    layout: LayoutOption = None,
) -> None:
    """Describe a dataset: its card, and what is here of it; with --figure also samples of its classes."""
    from vlprompt.data.cards import is_card, load_card
    from vlprompt.data.inspection import is_available
    from vlprompt.data.loading import open_data

    set_data_root(root)
    card = load_card(name) if is_card(name) else None
    lines = [] if card is None else _describe_card(card)
    if card is not None and figure is None and not is_available(card):
        lines += _describe_missing(card, name)
    else:
        data = open_data(name, allow_missing_classes=allow_missing_classes, layout=layout)
        lines += _describe_data(data, card)
        _draw_samples(data, figure)
    for key, value in lines:
        console.print(f"{key:9} {value}", soft_wrap=True, markup=False, highlight=False)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:6])) + (" ..." if len(names) > 6 else "")


def _describe_card(card: "Card") -> list[tuple[str, str]]:
    """Describe a card as (key, text) lines."""
    from vlprompt.data.locations import dataset_folder, describe_source
    from vlprompt.data.readers.card_folder import find_classes
    from vlprompt.data.text.card import describe_required_files

    keys = ("title", "source", "licence", "template", "note")
    lines = [(key, getattr(card, key)) for key in keys if getattr(card, key, "")]
    if card.kind == "layout":
        folder, names = dataset_folder(card.folder), list(find_classes(card).values())
        is_named_by_data = card.is_counted and not (folder / card.images).is_dir()
        examples = "the data name them" if is_named_by_data else _shorten(names)
        lines += [("classes", f"{len(names)}: {examples}"), ("folder", str(folder)), ("from", describe_source(card))]
        lines += [("split", split)] if (split := card.split or ", ".join(card.lists)) else []
        lines += [("sizes", ", ".join(f"{part} {n:,}" for part, n in card.sizes.items()))] if card.sizes else []
    if card.kind == "text" and card.loader is None:
        lines += [("files", describe_required_files(card))]
    if card.kind == "members":
        lines += [("members", ", ".join(f"{member}: {source}" for member, source in card.members.items()))]
    return lines


def _describe_missing(card: "Card", name: str) -> list[tuple[str, str]]:
    """Describe a card whose data are not here, as (key, text) lines."""
    lines = list[tuple[str, str]]()
    if card.kind != "text":
        lines += [("stages", str(card.stages))] if card.stages is not None else []
        lines += [("domains", ", ".join(card.domain_words))] if card.domain_words else []
    download = " --download" if any(getattr(card, key, None) for key in ("downloads", "hub", "members")) else ""
    return [*lines, ("here", f"no: vlprompt data prepare {name}{download}")]


def _describe_data(data: "Data", card: "Card | None") -> list[tuple[str, str]]:
    """Describe the data of a dataset, as (key, text) lines."""
    from vlprompt.data.inspection import describe_stream
    from vlprompt.data.report import nonempty_splits
    from vlprompt.data.text.inspection import describe_texts, is_text_dataset

    lines = [("here", ", ".join(f"{part} {len(split):,}" for part, split in nonempty_splits(data).items()))]
    lines += [("hash", data.hash())] + ([("made", data.note)] if data.note != getattr(card, "note", "") else [])
    lines += [("layout", f"{data.layout}: {data.rule}")] if data.layout else []
    lines += [("remark", remark) for remark in data.remarks]
    if card is None:
        names = data.test.names
        lines += [("classes", f"{len(names)}: {_shorten(names)}"), ("template", data.template)]
    description = describe_texts(data) if is_text_dataset(data) else describe_stream(data)
    return lines + [(key, text) for key, _, text in (line.partition(": ") for line in description)]


@app.command()
def split(
    name: DatasetArgument,
    output: Annotated[
        Path, typer.Option("--save", help="The JSON file to write; a folder: split_vlprompt.json in it.")
    ],
    root: RootOption = None,
    allow_missing_classes: AllowMissingClassesOption = False,
    layout: LayoutOption = None,
) -> None:
    """Save the split of a dataset as a portable file: put into the dataset's folder it is read back exactly."""
    from vlprompt.data.cards import is_card, load_card
    from vlprompt.data.loading import open_data
    from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE, write_split_file
    from vlprompt.data.text.inspection import refuse_texts

    set_data_root(root)
    if name.endswith(".npz") or (is_card(name) and load_card(name).kind != "layout"):
        raise ValueError(
            f"data split: expected a folder of image files, whose split is a list of files, got {name!r}. "
            "Choose such a dataset."
        )
    path = output / SAVED_SPLIT_FILE if output.is_dir() else output
    data = open_data(name, allow_missing_classes=allow_missing_classes, layout=layout)
    refuse_texts(data, "a split file")
    told = write_split_file(data, path)
    console.print(f"wrote {path}, hash {told}", soft_wrap=True, markup=False, highlight=False)


def _report_dataset(
    name: str,
    allow_missing_classes: bool,
    with_decoding: bool,
    figure: Path | None = None,
    layout: str | None = None,
) -> None:
    """Check a dataset and print the report; exit with status 1 when something is wrong."""
    from vlprompt.data.inspection import inspect_dataset as look
    from vlprompt.data.text.inspection import is_text_dataset

    with _show_progress() as watch:
        found = look(
            name,
            None,
            allow_missing_classes,
            with_decoding,
            lambda done, total: watch("opening images", done, total),
            layout,
        )
    counts = ", ".join(f"{part} {n:,}" for part, n in found.counts.items())
    many = len(found.data.test.names)
    classes = f"{many} classes; " if many > 1 else ""  # texts that are answered by text have none
    lines = [f"{found.data.name}: {counts}; {classes}hash {found.data.hash()}"]
    lines += [found.data.note] * bool(found.data.note)
    lines += [f"layout {found.data.layout}: {found.data.rule}"] * bool(found.data.layout) + found.remarks
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in found.problems:
        console.print(f"wrong: {line}", soft_wrap=True, markup=False, highlight=False, style="red")
    _draw_samples(found.data, figure)
    if found.problems:
        raise typer.Exit(1)
    whole = "every text can be read" if is_text_dataset(found.data) else "every image can be opened"
    console.print(whole if with_decoding else "ready", highlight=False)


def _draw_samples(data: Any, figure: Path | None) -> None:
    if figure is None:
        return
    from vlprompt.data.inspection import sample_images
    from vlprompt.data.text.inspection import refuse_texts
    from vlprompt.results.plots.shots import plot_predictions

    refuse_texts(data, "--figure")
    pictures, captions = sample_images(data)
    console.print(
        f"wrote {plot_predictions(pictures, captions, [None] * len(captions), figure)}", soft_wrap=True, markup=False
    )


@contextmanager
def _show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)
