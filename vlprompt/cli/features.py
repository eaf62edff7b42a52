"""The command `vlprompt data features`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.runtime.settings import SETTINGS

console = make_console()


def features(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Where they are; default: VLPROMPT_FEATURE_CACHE, else the user's cache folder.", metavar="DIR"
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them.")] = False,
    tower: Annotated[
        str | None,
        typer.Option(help="Only of towers whose name has this in it."),
    ] = None,
) -> None:
    """Cached features of frozen towers: of which tower and preprocessing, how many, how large, when last used."""
    import time

    from rich.table import Table

    from vlprompt.backbones import feature_cache

    root = folder or SETTINGS.get_cache_folder()
    if root is None:
        raise ValueError("VLPROMPT_FEATURE_CACHE: expected a folder, got none. Name the folder of the features.")
    namespaces = [n for n in feature_cache.list_namespaces(root) if tower is None or tower in n.name]
    if clear:
        for namespace in namespaces:
            namespace.clear()
    table = Table("tower", "of", "device", "rows", "MB", "last used", box=None, pad_edge=False)
    for n in namespaces:
        last_used = time.strftime("%Y-%m-%d %H:%M", time.localtime(n.last_used))
        table.add_row(n.name, n.description, n.device, f"{n.n_rows:,}", f"{n.n_bytes / 1e6:,.1f}", last_used)
    if namespaces:
        console.print(table, highlight=False)
    n_megabytes = sum(n.n_bytes for n in namespaces) / 1e6
    total = f"{sum(n.n_rows for n in namespaces):,} features, {n_megabytes:,.1f} MB"
    if clear:
        text = f"removed {total} from {root}"
    else:
        text = f"{total} of at most {SETTINGS.get_cache_bytes() / 1e6:,.0f} in {root}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
