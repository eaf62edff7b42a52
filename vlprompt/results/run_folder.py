"""The folder of one run.

Every file is written completely under a temporary name and then renamed, so that no reader sees half of one.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.engine.loop import State

ATOMIC_FILES = (
    "config.yaml",
    "last.safetensors",
    "prompt.safetensors",
    "result.json",
)  # files that `write_atomically` makes in a run


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Add the file and the remedy to an OSError of the with-block (a full disk, no permission)."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{str(path)!r}: expected a file that can be written, got an error ({error.strerror}). Free space or "
            "permit "
            "writing, and give the same command again: it goes on where the last file was written."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_write_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def serialize_tensors(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """Serialize to safetensors, with the metadata as JSON under one key: several would be written in any order."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"vlprompt": json.dumps(metadata)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and JSON metadata of a safetensors file; ValueError if it is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # it can't be iterated itself
            return tensors, json.loads((file.metadata() or {})["vlprompt"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r}: expected a complete safetensors file, got a broken one ({error}). Delete it and give the "
            "command again."
        ) from error


@dataclass(frozen=True)
class Result:
    """The result of a run, in percent, seconds and bytes.

    Args:
        config: the resolved configuration.
        scores: per stage and test.
        summary: the scores that tables show.
        cost: seconds, parameters, memory.
        environment: versions and hardware.
        protocol: what makes results comparable.
        class_accuracy: the accuracy of each class by its id, per stage and test.
        stages: after each lesson its parameters, bytes, seconds and prompt usage.
        folder: where it was read from.
    """

    config: dict[str, Any]
    scores: list[dict[str, dict[str, float]]]
    summary: dict[str, float]
    cost: dict[str, float]
    environment: dict[str, Any]
    protocol: dict[str, Any]
    class_accuracy: list[dict[str, dict[str, float]]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    folder: str | None = None

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """Accuracy (T, T) of a stream after lesson t (row) on the test images of lesson i (column), as far as seen."""
        return [[t["accuracy"] for name, t in tests.items() if name.startswith("seen/")] for tests in self.scores]


class RunFolder:
    """The files of one run.

    config.yaml, steps.jsonl, last.safetensors (to resume; removed when the run is done), prompt.safetensors (the
    learned state) and result.json, written last: a run is finished if it exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.result_path, self.state_path, self.steps_path = (
            path / "result.json",
            path / "last.safetensors",
            path / "steps.jsonl",
        )

    @contextmanager
    def open(self, config: dict[str, Any]) -> Iterator[None]:
        """Create the folder, lock it for this process, and write `config` into it.

        Raises:
            ValueError: when it holds another configuration, or another process has locked it.
        """
        import yaml

        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path):
            known = self.path / "config.yaml"
            if known.exists() and (stored := yaml.safe_load(known.read_text("utf-8"))) != config:
                differing = [k for k in config if not isinstance(stored, dict) or stored.get(k) != config[k]]
                raise ValueError(
                    f"{str(self.path)!r}: expected the same configuration, got a run with other "
                    f"{', '.join(differing)}. "
                    "Name another folder."
                )
            for left in (left for name in ATOMIC_FILES for left in self.path.glob(f".{name}.*")):
                left.unlink()  # of a process that died while it wrote
            try:
                write_atomically(known, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
                yield
            except BaseException:
                self._discard_if_empty()
                raise

    def _discard_if_empty(self) -> None:
        """Remove the files of a run that has learned nothing; other files stay."""
        if not self.state_path.exists() and not self.result_path.exists():
            for file in (self.path / "config.yaml", self.steps_path):
                file.unlink(missing_ok=True)

    def read_result(self) -> Result | None:
        """Return the result, or None if the run is not finished."""
        if not self.result_path.exists():
            return None
        try:
            return Result(**json.loads(self.result_path.read_text("utf-8")), folder=str(self.path))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{str(self.result_path)!r}: expected a result, got a broken file ({error}). Delete it and give the "
                "command again."
            ) from error

    def save_state(self, state: State, progress: dict[str, Any]) -> None:
        """Write all that a resume needs into one file: a single rename is never half done."""
        cursor = {key: getattr(state, key) for key in ("epoch", "batch_index", "step", "best_score", "scaler")}
        write_atomically(self.state_path, serialize_tensors(state.tensors, {"cursor": cursor, "progress": progress}))

    def load_state(self) -> tuple[State, dict[str, Any]] | None:
        if not self.state_path.exists():
            return None
        tensors, metadata = read_tensors(self.state_path)
        return State(tensors=tensors, **metadata["cursor"]), metadata["progress"]

    def finish(self, result: Result, learned: bytes) -> Result:
        """Write the learned state, then the result, and remove what only a resume needs."""
        write_atomically(self.path / "prompt.safetensors", learned)
        write_json(self.result_path, {k: v for k, v in asdict(result).items() if k != "folder"})
        self.state_path.unlink(missing_ok=True)
        return Result(**{**asdict(result), "folder": str(self.path)})

    def read_learned_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the learned state and its metadata; ValueError if the run is not finished."""
        path = self.path / "prompt.safetensors"
        if not self.path.is_dir():
            raise ValueError(
                f"run: expected the folder of a run, got {str(self.path)!r}, which does not exist. "
                "List those under runs/ by `vlprompt table`."
            )
        if not path.exists() or not self.result_path.exists():
            raise ValueError(
                f"{str(self.path)!r}: expected a finished run, got an unfinished one. Give its command again and it "
                "goes "
                "on, or choose another run."
            )
        return read_tensors(path)


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold a folder for this process until the with-block ends; a process that dies releases it.

    A folder that is empty at the end goes.

    Raises:
        ValueError: when another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{str(path)!r}: expected a folder that no process uses, got one that another process has locked. "
            "Wait for it, or name another folder."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems can't remove an open file
            Path(lock.lock_file).unlink()  # before the release, so that it is nobody else's
            path.rmdir()
        lock.release()


def read_runs(root: Path) -> tuple[list[Result], list[Path]]:
    """Return all finished runs under a folder, and the folders of unfinished ones."""
    if not root.is_dir():
        raise ValueError(
            f"runs: expected a folder of runs, got {str(root)!r}, which does not exist. Make runs/ by `vlprompt run`."
        )
    folders = sorted({p.parent for p in root.rglob("config.yaml")})
    results = [(f, RunFolder(f).read_result()) for f in folders]
    return [r for _, r in results if r is not None], [f for f, r in results if r is None]
