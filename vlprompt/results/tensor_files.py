"""Tensors with metadata in safetensors files."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor


def serialize_tensors(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """Serialize to safetensors, with the metadata as JSON under one key: several would be written in any order."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"vlprompt": json.dumps(metadata)})


def read_tensors(path: Path, with_values: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and JSON metadata of a safetensors file; ValueError if it is broken.

    Args:
        path: the file.
        with_values: else only the header and the length are checked, and no tensors returned.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()} if with_values else {}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {})["vlprompt"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r}: expected a complete safetensors file, got a broken one ({error}). Delete it and give the "
            "command of the run again, which makes it anew."
        ) from error
