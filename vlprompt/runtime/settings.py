"""Settings of the process: where things lie and how much of the machine is used; no result depends on them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

DATA_ROOT_VARIABLE = "VLPROMPT_DATA"
CACHE_FOLDER_VARIABLE, CACHE_SIZE_VARIABLE = "VLPROMPT_FEATURE_CACHE", "VLPROMPT_FEATURE_CACHE_GB"
DEFAULT_CACHE_BYTES = 10 * 10**9


def expand_home(folder: Path | str, setting: str) -> Path:
    """Return a path with ~ replaced; ValueError for the home of nobody."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{setting}: expected a folder, got {str(folder)!r} ({error}). Name it without ~.") from error


@dataclass
class RuntimeSettings:
    """What the command line sets once; environment variables stand in for what is not set.

    Args:
        data_root: the folder of the datasets' folders; default VLPROMPT_DATA, else ./data.
        feature_cache: the folder of cached features, or "none"; default VLPROMPT_FEATURE_CACHE, else the user's cache.
        decode_workers: threads that decode images; default one for each CPU.
        verify_data: read every file again to compare contents, instead of trusting sizes and times.
        memory_limit_mb: how much the process may take (2**20 bytes).
        threads: of torch's operations in a run; None for one with a small backbone, else as many as torch has.
    """

    data_root: Path | None = None
    feature_cache: str | None = None
    decode_workers: int | None = None
    verify_data: bool = False
    memory_limit_mb: float = math.inf
    threads: int | None = None

    def get_data_root(self) -> Path:
        return expand_home(self.data_root or os.environ.get(DATA_ROOT_VARIABLE) or "data", DATA_ROOT_VARIABLE)

    def get_cache_folder(self) -> Path | None:
        """Return the folder of cached features; None for nowhere."""
        if folder := self.feature_cache or os.environ.get(CACHE_FOLDER_VARIABLE):
            return None if folder == "none" else expand_home(folder, CACHE_FOLDER_VARIABLE)
        user_cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(user_cache) if user_cache else Path("~/.cache").expanduser()) / "vlprompt" / "features"

    def get_cache_bytes(self) -> int:
        """Return the size of the feature cache: VLPROMPT_FEATURE_CACHE_GB (10**9 bytes), else 10 GB."""
        text = os.environ.get(CACHE_SIZE_VARIABLE)
        try:
            size = int(float(text) * 10**9) if text else DEFAULT_CACHE_BYTES
        except (ValueError, OverflowError):
            size = -1
        if size < 0:
            raise ValueError(
                f"{CACHE_SIZE_VARIABLE}: expected a number of GB, got {text!r}. "
                f"Set it to the size of the feature cache, such as {CACHE_SIZE_VARIABLE}=10 or 0.5."
            )
        return size


SETTINGS = RuntimeSettings()
