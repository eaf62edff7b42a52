"""Where the files of the package lie: dataset cards and recipes, in a checkout or in a wheel."""

from pathlib import Path


def cards_folder() -> Path:
    """datasets/ of a checkout, or what the wheel carries of it."""
    inside = Path(__file__).parents[1] / "_cards"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "datasets"


def configs_folder() -> Path:
    """configs/ of a checkout, or what the wheel carries of it."""
    inside = Path(__file__).parents[1] / "_configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"
