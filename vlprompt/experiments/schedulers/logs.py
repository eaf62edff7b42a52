"""Logs of workers."""

from pathlib import Path

LOG_BYTES = 2000  # of the end of a log, in an error


def add_log_end(text: str, path: Path) -> str:
    """Return a text with the end of a log behind it, where there is one."""
    end = path.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace").strip() if path.exists() else ""
    return f"{text}: {end}" if end else text
