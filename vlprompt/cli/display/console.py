"""The console that every command prints on."""

from rich.console import Console


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that shows names and paths as they are: no markup in brackets, no :emoji: in colons."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False)
