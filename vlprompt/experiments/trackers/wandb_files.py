"""Files of Weights & Biases' offline mode, read so that a run that goes on logs no step twice."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

STEP = "train/step"  # of a row: the step of the training
HEADER_BYTES = 7  # of the file
BLOCK_BYTES = 32768  # of LevelDB's log format: no header of a part crosses the end of a block
PART_HEADER = struct.Struct("<IHB")  # checksum, length, kind
LAST_KINDS = (1, 4)  # a whole record, and its last part


def read_last_step(folder: Path, identity: str) -> int | None:
    """Return the last training step in the offline files of a run; None where it has no such file.

    Args:
        folder: that holds the folder wandb.
        identity: of the run.
    """
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    paths = sorted(folder.glob(f"wandb/offline-run-*-{identity}/*.wandb"))
    steps = [0]
    for path in paths:
        for data in _iter_records(path.read_bytes()):
            record = messages.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                steps += [json.loads(row[STEP])] if STEP in row else []
    return max(steps) if paths else None


def _iter_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file; one that a killed process left half written ends it."""
    position, parts = HEADER_BYTES, list[bytes]()
    while position + PART_HEADER.size <= len(data):
        if (left := BLOCK_BYTES - position % BLOCK_BYTES) < PART_HEADER.size:
            position += left
            continue
        _, length, kind = PART_HEADER.unpack_from(data, position)
        part = data[position + PART_HEADER.size : position + PART_HEADER.size + length]
        if not kind or len(part) < length:
            return
        position += PART_HEADER.size + length
        parts.append(part)
        if kind in LAST_KINDS:
            yield b"".join(parts)
            parts = []
