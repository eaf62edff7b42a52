"""Split names and their aliases, shared by the readers of images, texts, lists and tables."""

SPLIT_NAMES = ("train", "val", "test")
SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
SPLIT_CHOICES = "train, val (valid, validation, dev) or test"  # as error messages list them


def parse_split_name(name: object) -> str | None:
    """Return "train", "val" or "test" for any of its aliases, None for anything else."""
    return SPLIT_ALIASES.get(str(name).strip().lower())
