"""The command `vlprompt data features`, and the option --features. Heavy libraries are imported when they are used."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

out = Console()


def features(
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="Where they are; default: VLPROMPT_FEATURES, else the user's cache folder.", metavar="DIR"),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them.")] = False,
    tower: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only of towers whose name has this in it."),
    ] = None,
) -> None:
    """The frozen features that are kept: of which tower and look, how many, how large, when last used."""
    import time

    from rich.table import Table

    from vlprompt.backbones import feature_cache

    root = folder or feature_cache.usual()
    if root is None:
        raise ValueError("no features are kept: VLPROMPT_FEATURES is none; name a folder")
    found = [one for one in feature_cache.held(root) if tower is None or tower in one.name]
    if clear:
        for one in found:
            one.clear()
    table = Table("tower", "of", "device", "rows", "MB", "last used", box=None, pad_edge=False)
    for one in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        table.add_row(one.name, one.of, one.device, f"{one.rows:,}", f"{one.bytes / 1e6:,.1f}", when)
    if found:
        out.print(table, highlight=False)
    size = sum(one.bytes for one in found) / 1e6
    told = f"{sum(one.rows for one in found):,} features, {size:,.1f} MB"
    told = f"removed {told} from {root}" if clear else f"{told} of at most {feature_cache.most() / 1e6:,.0f} in {root}"
    out.print(told, highlight=False, markup=False, soft_wrap=True)
