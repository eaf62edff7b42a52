"""The files of a run that stores get as its artifact."""

from collections.abc import Sequence
from pathlib import Path

FILES = ("config.yaml", "inputs.json", "result.json", "steps.jsonl", "prompt.safetensors", "answers.safetensors")
MAX_FILE_BYTES = 100 * 2**20


def list_run_files(folder: Path, max_bytes: int = MAX_FILE_BYTES) -> tuple[list[Path], list[str]]:
    """Return the files of a run to copy, and a text for each that is too large for a store."""
    paths = [path for name in FILES if (path := folder / name).exists()]
    sizes = {path: path.stat().st_size for path in paths}
    texts = [
        f"{path.name} has {size / 2**20:.0f} MB, and stores get files of at most {max_bytes / 2**20:.0f} MB"
        for path, size in sizes.items()
        if size > max_bytes
    ]
    return [path for path, size in sizes.items() if size <= max_bytes], texts


def describe_left_out(texts: Sequence[str], name: str) -> str:
    """Return what a user should know of files that were not copied."""
    return f"--track: {'; '.join(texts)}. It stays in the folder of {name} alone."
