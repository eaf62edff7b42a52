"""The files of a model folder: model.safetensors, config.json and README.md, written completely or not at all."""

import hashlib
import json
import os
import shutil
from glob import escape
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from vlprompt.backbones.cache.segment_file import NODE, is_process_alive
from vlprompt.data.validation import validate
from vlprompt.experiments.learned.folder_schema import FORMAT_VERSION, LIBRARY, MAX_CONFIG_BYTES, ModelConfig
from vlprompt.results.atomic_files import explain_write_errors, write_atomically
from vlprompt.results.tensor_files import read_tensors

TENSORS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"  # huggingface_hub's names
MODEL_FILES = (TENSORS_FILE, CONFIG_FILE, CARD_FILE)
MAX_ERROR = 500  # characters of a message, which else may hold all classes
SAVE_AGAIN = "Save it again by `vlprompt save`, or get its files again together."


def is_model_folder(path: Path) -> bool:
    """Return whether a folder has a file that only a model folder has, even if it is half of one."""
    return (path / CONFIG_FILE).is_file() or (path / TENSORS_FILE).is_file()


def hash_tensors(data: bytes) -> str:
    """Return the SHA-256 of a file, which the hub shows for large files too."""
    return hashlib.sha256(data).hexdigest()


def read_model_config(path: Path, source: str) -> ModelConfig:
    """Read a config.json.

    Args:
        path: the file.
        source: the folder or name that errors name.

    Raises:
        ValueError: for a file that is no JSON, of another library or version, or with a wrong value.
    """
    if not path.is_file():
        raise ValueError(
            f"{source!r}: expected a model folder, got one without its {path.name}, half of one. {SAVE_AGAIN}"
        )
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise ValueError(
            f"{source!r}: expected a {path.name} of at most {MAX_CONFIG_BYTES} bytes, got {size}. {SAVE_AGAIN}"
        )
    try:
        values = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{source!r}: expected JSON in {path.name}, got a broken file ({error}). {SAVE_AGAIN}"
        ) from error
    _require_version(values, source)
    try:
        return validate(ModelConfig, values, f"{source!r}: {path.name}")
    except (ValueError, RecursionError) as error:
        text = str(error)
        raise ValueError(text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]} ... {SAVE_AGAIN}") from error


def read_model_tensors(path: Path, config: ModelConfig, source: str) -> dict[str, Tensor]:
    """Read model.safetensors; ValueError where it is missing, truncated, or not the one of the config.json."""
    if not path.is_file():
        raise ValueError(
            f"{source!r}: expected a model folder, got one without its {path.name}, half of one. {SAVE_AGAIN}"
        )
    data, expected = path.read_bytes(), config.tensors
    if len(data) != expected.bytes or hash_tensors(data) != expected.sha256:
        found = f"{len(data)} bytes" if len(data) != expected.bytes else f"SHA-256 {hash_tensors(data)[:12]}..."
        wanted = f"{expected.bytes} bytes" if len(data) != expected.bytes else f"{expected.sha256[:12]}..."
        raise ValueError(
            f"{source!r}: expected the {path.name} that its {CONFIG_FILE} names ({wanted}), got another one or a part "
            f"of it ({found}). {SAVE_AGAIN}"
        )
    return read_tensors(path)[0]


def write_model_files(folder: Path, files: dict[str, bytes], *, force: bool) -> None:
    """Write the files of a model folder: a new folder appears complete, by one rename.

    Args:
        folder: new or empty; a model folder with `force`, whose other files stay.
        files: name -> content.
        force: replace a model folder.

    Raises:
        OSError: for a folder that holds something else, or can't be written.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name of its own
    _require_free_folder(folder, force)
    _remove_leftovers(folder)
    if folder.exists() and any(folder.iterdir()):
        (folder / CONFIG_FILE).unlink(missing_ok=True)  # until it is whole again, it is known as half of one
        for name in sorted(files, key=lambda name: name == CONFIG_FILE):
            write_atomically(folder / name, files[name])
        return
    temporary = folder.with_name(f".{folder.name}.{NODE}-{os.getpid()}")
    with explain_write_errors(folder):
        try:
            temporary.mkdir(parents=True)
            for name, data in files.items():
                write_atomically(temporary / name, data)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine left of a folder when they died while they wrote it."""
    for left in folder.parent.glob(f".{escape(folder.name)}.{NODE}-*"):
        process_id = left.name.rpartition("-")[2]
        if process_id.isdigit() and not is_process_alive(int(process_id)):
            shutil.rmtree(left, ignore_errors=True)
    for left in (left for name in MODEL_FILES for left in folder.glob(f".{name}.*")):
        process_id = left.name.rpartition(".")[2]
        if process_id.isdigit() and not is_process_alive(int(process_id)):
            left.unlink(missing_ok=True)


def _require_free_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OSError(f"save: expected a new or empty folder, got the file {str(folder)!r}. Name another folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_model_folder(folder):
        raise OSError(
            f"save: expected a new or empty folder, got {str(folder)!r}, which holds other files. Name another folder."
        )
    if not force:
        raise OSError(
            f"save: expected a new or empty folder, got {str(folder)!r}, which holds a model. Name another folder, or "
            "replace it by --force."
        )
    if (folder / CONFIG_FILE).is_file():
        try:
            read_model_config(folder / CONFIG_FILE, str(folder))
        except ValueError as error:
            raise OSError(
                f"save: expected a folder that vlprompt wrote, got another one ({error}) Name another folder."
            ) from error


def _require_version(values: Any, source: str) -> None:
    """ValueError for a config.json of another library, or of another version of the format."""
    if not isinstance(values, dict) or values.get("library_name") != LIBRARY:
        raise ValueError(
            f"{source!r}: expected a model folder of {LIBRARY}, got a {CONFIG_FILE} of another program. "
            "Name the folder of a run, or one written by `vlprompt save`."
        )
    version = values.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        writer = values.get("vlprompt_version")
        raise ValueError(
            f"{source!r}: expected a model folder of format version {FORMAT_VERSION}, got version "
            f"{str(version)[:40]!r}, written by vlprompt {str(writer)[:40]}. Install a vlprompt that reads it."
        )


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")
