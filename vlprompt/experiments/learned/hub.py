"""Names on the Hugging Face hub: download the files of a model folder, and explain the hub's errors in one sentence."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlprompt.experiments.learned.folder_schema import LIBRARY, ModelConfig
from vlprompt.experiments.learned.model_files import CONFIG_FILE, MODEL_FILES, TENSORS_FILE, read_model_config
from vlprompt.runtime.installation import find_version, require_package
from vlprompt.runtime.paths import DEFAULT_RUNS_FOLDER

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BAR_BYTES = 10 * 2**20  # smaller downloads have no progress bar
LOG_IN = "Set HF_TOKEN, or log in by `hf auth login`."


def is_hub_name(source: str) -> bool:
    """Return whether a source is OWNER/NAME or OWNER/NAME@REVISION, and OWNER neither a folder here nor `runs`.

    A mistake in the name of a run thus asks no hub.
    """
    name = source.partition("@")[0]
    owner = Path(name).parent
    return (
        bool(NAME.fullmatch(name)) and not Path(name).exists() and not owner.exists() and owner != DEFAULT_RUNS_FOLDER
    )


def download_model(source: str) -> Path:
    """Download a model folder into huggingface_hub's cache; config.json first, so that no other model is fetched.

    Args:
        source: OWNER/NAME or OWNER/NAME@REVISION.

    Returns:
        The folder of one commit.

    Raises:
        ValueError: for a name without a model of vlprompt, and for one whose method is code of another package.
        OSError: where the hub can't be reached and has left no copy here.
    """
    hub = require_package("huggingface_hub", "hub", f"{source!r}")
    name, _, revision = source.partition("@")
    versions: dict[str, Any] = {"library_name": LIBRARY, "library_version": find_version(LIBRARY)}
    with explain_hub_errors(source), _hide_bars(True):
        folder = Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG_FILE], **versions))
    config = read_model_config(folder / CONFIG_FILE, source)
    _require_known_code(config, source)
    with explain_hub_errors(source), _hide_bars(config.tensors.bytes < BAR_BYTES):
        # of the same commit, whose name the folder has
        return Path(hub.snapshot_download(name, revision=folder.name, allow_patterns=list(MODEL_FILES), **versions))


def _require_known_code(config: ModelConfig, source: str) -> None:
    """ValueError where a method, head or task is a class of another package, which loading would import."""
    for name in _list_class_names(config.run_config):
        if ":" in name:
            raise ValueError(
                f"{source!r}: expected a method of {LIBRARY}, got the class {name!r}, whose code would run on loading. "
                f"Read it, install it, download the folder by `hf download {source.partition('@')[0]} --local-dir "
                "FOLDER`, and name that folder."
            )


def _list_class_names(settings: object) -> list[str]:
    """Return the names of all classes in a configuration."""
    if not isinstance(settings, dict):
        return []
    names = [settings["name"]] if isinstance(settings.get("name"), str) else []
    return names + [name for value in settings.values() for name in _list_class_names(value)]


@contextmanager
def _hide_bars(is_hidden: bool) -> Iterator[None]:
    """Hide the progress bars of huggingface_hub, where they were not hidden before."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not is_hidden or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def explain_hub_errors(name: str) -> Iterator[None]:
    """Turn an error of huggingface_hub in the with-block into an OSError of one sentence that names the remedy."""
    from huggingface_hub import errors

    http_error: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        yield
    except errors.HFValidationError as error:
        raise OSError(
            f"{name!r}: expected a name as the hub has them, got one that it refuses ({_to_line(error)}). Correct it."
        ) from error
    except json.JSONDecodeError as error:  # of requests too, where it is an OSError as well
        raise OSError(
            f"{name!r}: expected an answer of the hub, got a page of another server. Look at what HF_ENDPOINT or a "
            "proxy answers."
        ) from error
    except (OSError, http_error) as error:
        raise OSError(f"{name!r}: {_explain(error, _find_status(error))}") from error
    except ValueError as error:  # of the hub's check of the card
        raise OSError(f"{name!r}: expected what the hub accepts, got: {_to_line(error)}. Correct it.") from error


def _find_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or of its cause; None for an error without an answer."""
    if error is None:
        return None
    response = getattr(error, "response", None)
    return _find_status(error.__cause__) if response is None else response.status_code


def _explain(error: Exception, status: int | None) -> str:
    kind = type(error).__name__
    if kind == "RevisionNotFoundError":
        return "expected a revision that the hub has, got another one (404). Correct what stands after @."
    if status in (401, 403):
        return f"expected a name and a token that the hub accepts, got {status}. Correct the name, or: {LOG_IN}"
    if status == 404:
        return f"expected a model on the hub, got none of this name that you may read (404). Correct it, or: {LOG_IN}"
    if status in (409, 412):
        return (
            f"expected a model that nobody else changes, got one that was made or changed meanwhile ({status}). "
            "Look at it there, and give the command again."
        )
    if status is not None:
        return f"expected an answer of the hub, got its error {status}. Try again later."
    files = f"{CONFIG_FILE} and {TENSORS_FILE}"
    return (
        f"expected a folder here, or a model on the hub, got no such folder and no connection ({kind}). Correct the "
        f"path, or connect, or put its {files} into a folder, and name that folder."
    )


def _to_line(error: Exception) -> str:
    """Return the text of an error in one line without addresses."""
    return " ".join(re.sub(r"https?://\S+", "...", str(error)).split())[:200].rstrip(".")
