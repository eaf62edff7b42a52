"""The commands `vlprompt data ...`. Heavy libraries are imported by the commands that use them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from vlprompt.cli.options import Root, use_root

app = typer.Typer(no_args_is_help=True, help="Get datasets, check them, look at them, keep their splits.")
out = Console()
Name = Annotated[
    str, typer.Argument(help="A dataset: a card's name, or a folder or file of images or texts.", metavar="NAME")
]
OnlyThere = Annotated[bool, typer.Option("--only-there", help="Take the classes that have images; miss no others.")]
Picture = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--picture", help="Draw samples of the classes into this PNG."),
]


@app.command("list")
def list_(root: Root = None) -> None:
    """All datasets with a card, and whether they are here."""
    from rich.table import Table

    from vlprompt.data.cards import card_ids, cards, read_card
    from vlprompt.data.inspection import is_here

    use_root(root)
    table = Table("name", "classes", "train / val / test", "hand-written text", "here", box=None, pad_edge=False)
    for name in cards():
        card = read_card(name)
        sizes = card.get("sizes", {})
        parts = ("train", "val", "test")
        told = " / ".join(f"{sizes[part]:,}" if part in sizes else "-" for part in parts)
        kind = card["text"]["answer"] if "text" in card else "class"
        if sizes and not set(sizes) & set(parts):
            told = f"{sum(sizes.values()):,} in {len(sizes)} domains"
        here = "yes" if is_here(card) else "no"
        many = str(len(card_ids(card))) if kind == "class" else kind
        table.add_row(name, many, told if sizes else "", " ".join(card["template"].split()), here)
    out.print(table, highlight=False)


@app.command()
def prepare(
    name: Name,
    root: Root = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is missing.")] = False,
    base: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--from", help="A folder or address with files of the same names, instead of the card's."),
    ] = None,
    only_there: OnlyThere = False,
) -> None:
    """Unpack a dataset into its folder and check it; files are downloaded only when --download is given."""
    from vlprompt.data.cards import is_card, read_card
    from vlprompt.data.inspection import is_here
    from vlprompt.data.readers.hub import get_hub, open_hub

    use_root(root)
    if name.startswith("torchvision:"):
        out.print(f"{name} is here: {len(open_hub(name, download=download).train)} images to learn from")
        return
    if not is_card(name):
        raise ValueError(f"{name!r} is no card; only datasets with a card can be prepared: `vlprompt data list`")
    card = read_card(name)
    if "loader" in card:
        out.print(f"{name} comes with vlprompt; there is nothing to get", highlight=False)
        return
    for one in map(str, card["members"].values() if "members" in card else [name]):
        if one.startswith("torchvision:") and download:
            get_hub(one)
        elif is_card(one):
            _get(one, download, base)
    if not is_here(card):
        raise typer.Exit(1)
    _tell(name, only_there, decode=False)


def _get(name: str, download: bool, base: str | None) -> None:
    """Unpacks and, when it may, fetches the files of a card, and says what is missing."""
    from vlprompt.data import download as downloads
    from vlprompt.data.cards import read_card
    from vlprompt.data.inspection import is_here
    from vlprompt.data.locations import folder_of
    from vlprompt.data.readers.hub import get_hub

    card = read_card(name)
    if "loader" in card or "members" in card:
        return
    if "text" in card:
        from vlprompt.data.text.card import prepared

        for line in prepared(card, name, download, base):
            out.print(line, soft_wrap=True, markup=False)
        return
    folder, left = folder_of(card), []
    if "hub" in card:
        if base is not None:
            raise ValueError(f"{name} is fetched by torchvision, which takes it from nowhere else; leave out --from")
        if download:
            get_hub(card["hub"])
        elif not is_here(card):
            out.print(f"missing: {folder}  <- {card['hub']}", soft_wrap=True, markup=False)
    else:
        with _progress() as watch:
            left = downloads.prepare(card, folder, download, base, watch)
        for step in left:
            came = step.url or "an archive above"
            told = f"missing: {folder / step.gives}  <- {folder / step.file}  <- {came}"
            out.print(told, soft_wrap=True, markup=False)
        short = left or any(not (folder / path).exists() for path in (card["images"], *card.get("lists", ())))
        if "by_hand" in card and short:
            out.print(f"by hand: {card['by_hand']}; all into {folder}", soft_wrap=True, markup=False)
    if not download and (left or ("hub" in card and not is_here(card))):
        out.print(f"licence: {card['licence']}. Fetch with: vlprompt data prepare {name} --download", soft_wrap=True)


@app.command()
def check(name: Name, root: Root = None, only_there: OnlyThere = False, picture: Picture = None) -> None:
    """Count, compare with the card, open every image; exit status 1 when something is wrong."""
    use_root(root)
    _tell(name, only_there, decode=True, picture=picture)


@app.command()
def show(name: Name, root: Root = None, only_there: OnlyThere = False, picture: Picture = None) -> None:
    """What a dataset is: its card, and what is here of it; with --picture also samples of its classes."""
    from vlprompt.data.cards import is_card, read_card
    from vlprompt.data.inspection import is_here, stream
    from vlprompt.data.loading import open_data
    from vlprompt.data.locations import folder_of, source_of
    from vlprompt.data.readers.card_folder import classes_of
    from vlprompt.data.report import splits
    from vlprompt.data.text.card import wanted_files
    from vlprompt.data.text.inspection import described, is_text

    use_root(root)
    card = read_card(name) if is_card(name) else {}
    lines = [(key, str(card[key])) for key in ("title", "source", "licence", "template", "note") if key in card]
    if "layout" in card:
        names = list(classes_of(card).values())
        some = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        if isinstance(card["classes"], int) and not (folder_of(card) / card["images"]).is_dir():
            some = "the data name them"
        lines += [("classes", f"{len(names)}: {some}"), ("folder", str(folder_of(card))), ("from", source_of(card))]
        lines += [("split", told)] if (told := card.get("split") or ", ".join(card.get("lists", ()))) else []
        lines += [("sizes", ", ".join(f"{part} {n:,}" for part, n in card["sizes"].items()))] if "sizes" in card else []
    if "text" in card and "loader" not in card:
        lines += [("files", wanted_files(card))]
    if "members" in card:
        lines += [("members", ", ".join(f"{member}: {one}" for member, one in card["members"].items()))]
    if card and picture is None and not is_here(card):
        get = " --download" if {"downloads", "hub", "members"} & set(card) else ""
        lines += [("stages", str(card["stages"]))] if "stages" in card else []
        lines += [("domains", ", ".join(card["domains"].values()))] if "domains" in card else []
        lines.append(("here", f"no: vlprompt data prepare {name}{get}"))
    else:
        data = open_data(name, only_there=only_there)
        lines += [("here", ", ".join(f"{part} {len(split):,}" for part, split in splits(data).items()))]
        lines += [("hash", data.hash())] + ([("made", data.note)] if data.note != card.get("note", "") else [])
        if not card:
            some = ", ".join(map(str, data.test.names[:6])) + (" ..." if len(data.test.names) > 6 else "")
            lines += [("classes", f"{len(data.test.names)}: {some}"), ("template", data.template)]
        told = described(data) if is_text(data) else stream(data)
        lines += [(key, told) for key, _, told in (line.partition(": ") for line in told)]
        _draw(data, picture)
    for key, value in lines:
        out.print(f"{key:9} {value}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def split(
    name: Name,
    save: Annotated[Path, typer.Option("--save", help="The JSON file to write; a folder: split_vlprompt.json in it.")],
    root: Root = None,
    only_there: OnlyThere = False,
) -> None:
    """Keep the split of a dataset as a portable file: put into the dataset's folder it is read back exactly."""
    from vlprompt.data.cards import is_card, read_card
    from vlprompt.data.loading import open_data
    from vlprompt.data.readers.split_file import OWN, write_split
    from vlprompt.data.text.inspection import refuse_texts

    use_root(root)
    if name.endswith(".npz") or (is_card(name) and "layout" not in read_card(name)):
        raise ValueError(f"{name!r} is no folder of files, so its split can't be kept as a list of files")
    path = save / OWN if save.is_dir() else save
    data = open_data(name, only_there=only_there)
    refuse_texts(data, "a split file")
    told = write_split(data, path)
    out.print(f"wrote {path}, hash {told}", soft_wrap=True, markup=False, highlight=False)


def _tell(name: str, only_there: bool, decode: bool, picture: Path | None = None) -> None:
    """Checks and prints what was found; leaves with status 1 when something is wrong."""
    from vlprompt.data.inspection import check as look
    from vlprompt.data.text.inspection import is_text

    with _progress() as watch:
        found = look(name, None, only_there, decode, lambda done, total: watch("opening images", done, total))
    counts = ", ".join(f"{part} {n:,}" for part, n in found.counts.items())
    many = len(found.data.test.names)
    classes = f"{many} classes; " if many > 1 else ""  # texts that are answered by text have none
    lines = [f"{found.data.name}: {counts}; {classes}hash {found.data.hash()}"]
    lines += [found.data.note] * bool(found.data.note) + found.told
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in found.wrong:
        out.print(f"wrong: {line}", soft_wrap=True, markup=False, highlight=False, style="red")
    _draw(found.data, picture)
    if found.wrong:
        raise typer.Exit(1)
    whole = "every text can be read" if is_text(found.data) else "every image can be opened"
    out.print(whole if decode else "ready", highlight=False)


def _draw(data: Any, picture: Path | None) -> None:
    if picture is None:
        return
    from vlprompt.data.inspection import samples
    from vlprompt.data.text.inspection import refuse_texts
    from vlprompt.results.plots.shots import predictions

    refuse_texts(data, "--picture")
    pictures, captions = samples(data)
    out.print(f"wrote {predictions(pictures, captions, [None] * len(captions), picture)}", soft_wrap=True, markup=False)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, silence elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
                  console=out, transient=True, disable=not out.is_terminal) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)
