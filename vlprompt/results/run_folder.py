"""The folder of one run.

Every file is written whole, beside its place, and then renamed, so that no reader meets half of one.
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

WHOLE = ("config.yaml", "last.safetensors", "prompt.safetensors", "result.json")  # files that `write` makes in a run


@contextmanager
def written(path: Path) -> Iterator[None]:
    """An OSError in here (a full disk, no permission) says which file it was and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"could not write {str(path)!r} ({error.strerror}); make room or permit writing and give the same command "
            "again: it goes on where the last file was written"
        ) from error


def write(path: Path, data: bytes) -> None:
    """The whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with written(path):
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
    write(path, (json.dumps(value, indent=1) + "\n").encode())


def tensors_as_bytes(tensors: dict[str, Tensor], told: dict[str, Any]) -> bytes:
    """A safetensors file whose metadata holds JSON, under one key: several would be written in any order."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"vlprompt": json.dumps(told)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON metadata of a safetensors file; ValueError when it is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  # it can't be iterated itself
            return tensors, json.loads((file.metadata() or {})["vlprompt"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole safetensors file ({error}); delete it and give the command again"
        ) from error


@dataclass(frozen=True)
class Result:
    """What a run came to: scores per stage and test, their summary, cost, environment and protocol.

    classes: the accuracy of each class by its id, per stage and test. stages: after each lesson its parameters, bytes,
    seconds, and how much each prompt was used. Percent, seconds, bytes.
    """

    config: dict[str, Any]
    scores: list[dict[str, dict[str, float]]]
    summary: dict[str, float]
    cost: dict[str, float]
    environment: dict[str, Any]
    protocol: dict[str, Any]
    classes: list[dict[str, dict[str, float]]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    folder: str | None = None


class Folder:
    """What one run leaves on the disk.

    config.yaml, steps.jsonl, last.safetensors (to resume; goes when the run is done), prompt.safetensors (the learned
    state) and result.json, written last: that it exists means that the run is done.
    """

    def __init__(self, path: Path):
        self.path = path
        self.result_path, self.last, self.steps = path / "result.json", path / "last.safetensors", path / "steps.jsonl"

    @contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Made, claimed for this process, and holding `config`.

        ValueError when it holds another or a process is at work in it.
        """
        import yaml

        with written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        held = claim(self.path)
        try:
            known = self.path / "config.yaml"
            if known.exists() and (found := yaml.safe_load(known.read_text("utf-8"))) != config:
                differs = [k for k in config if not isinstance(found, dict) or found.get(k) != config[k]]
                raise ValueError(
                    f"{str(self.path)!r} holds a run of another configuration (other {', '.join(differs)}); "
                    "name another folder"
                )
            for left in (left for name in WHOLE for left in self.path.glob(f".{name}.*")):
                left.unlink()  # of a process that died while it wrote
            try:
                write(known, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
                yield
            except BaseException:
                self._discard()
                raise
        finally:
            if held is not None:
                os.close(held)

    def _discard(self) -> None:
        """Leave nothing where nothing was learned; files that are not ours stay."""
        if not self.last.exists() and not self.result_path.exists():
            for file in (self.path / "config.yaml", self.steps):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def done(self) -> Result | None:
        """The result, if the run is finished."""
        if not self.result_path.exists():
            return None
        try:
            return Result(**json.loads(self.result_path.read_text("utf-8")), folder=str(self.path))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{str(self.result_path)!r} is broken ({error}); delete it and give the command again"
            ) from error

    def save(self, state: State, told: dict[str, Any]) -> None:
        """Everything a resume needs, in one file: one rename, so that it is never half."""
        cursor = {key: getattr(state, key) for key in ("epoch", "place", "step", "best", "scaler")}
        write(self.last, tensors_as_bytes(state.tensors, {"cursor": cursor, "told": told}))

    def load(self) -> tuple[State, dict[str, Any]] | None:
        if not self.last.exists():
            return None
        tensors, found = read_tensors(self.last)
        return State(tensors=tensors, **found["cursor"]), found["told"]

    def finish(self, result: Result, learned: bytes) -> Result:
        """The learned state, then the result; what was only there to resume goes."""
        write(self.path / "prompt.safetensors", learned)
        write_json(self.result_path, {k: v for k, v in asdict(result).items() if k != "folder"})
        self.last.unlink(missing_ok=True)
        return Result(**{**asdict(result), "folder": str(self.path)})

    def prompt(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The learned state and what it was learned with; ValueError when the run is not finished."""
        path = self.path / "prompt.safetensors"
        if not self.path.is_dir():
            raise ValueError(f"there is no run folder {str(self.path)!r}; `vlprompt table` lists those under runs/")
        if not path.exists() or not self.result_path.exists():
            raise ValueError(
                f"the run in {str(self.path)!r} is not finished: give its command again and it goes on, "
                "or choose another"
            )
        return read_tensors(path)


def claim(path: Path) -> int | None:
    """A lock on the folder that goes with the process; None where the system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        raise ValueError(f"another process is at work in {str(path)!r}; wait for it or name another folder") from error
    return held


def read_all(root: Path) -> tuple[list[Result], list[Path]]:
    """All finished runs under a folder, and the folders of those that are not."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}; `vlprompt run` makes runs/")
    folders = sorted({p.parent for p in root.rglob("config.yaml")})
    results = [(f, Folder(f).done()) for f in folders]
    return [r for _, r in results if r is not None], [f for f, r in results if r is None]
