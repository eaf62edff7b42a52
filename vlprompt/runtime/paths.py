"""Where the files of the package are (dataset cards and recipes, in a checkout or in a wheel), and runs by default."""

from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parents[1]
DEFAULT_RUNS_FOLDER = Path("runs")


def require_folder(path: Path, option: str) -> None:
    """Raise a ValueError where a folder of results can't be made, since a file is in its place.

    Args:
        path: of the folder, which need not be there yet.
        option: that named it.
    """
    nearest = next((one for one in (path, *path.parents) if one.exists()), path)
    if nearest.is_file():
        raise ValueError(f"{option}: expected a folder, or one to make, got the file {str(nearest)!r}. Name another.")


def cards_folder() -> Path:
    """Return datasets/ of a checkout, or its copy in the wheel."""
    return _find_folder("_cards", "datasets")


def find_configs_folder() -> Path:
    """Return configs/ of a checkout, or its copy in the wheel."""
    return _find_folder("_configs", "configs")


def _find_folder(packaged: str, checked_out: str) -> Path:
    folder = PACKAGE_FOLDER / packaged
    return folder if folder.is_dir() else PACKAGE_FOLDER.parent / checked_out
