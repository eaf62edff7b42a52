"""The folder of one run.

Every file is written completely under a temporary name and then renamed, so that no reader sees half of one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from vlprompt.engine.loop import State
from vlprompt.results.atomic_files import explain_write_errors, write_atomically, write_json
from vlprompt.results.prediction_files import PredictionFile, write_predictions
from vlprompt.results.run_inputs import ChangedInputsError, Inputs, list_differences
from vlprompt.results.tensor_files import read_tensors, serialize_tensors
from vlprompt.results.test_answers import (
    TestAnswers,
    UnknownScores,
    read_answers,
    read_unknown_scores,
    serialize_answers,
)
from vlprompt.runtime.errors import FolderInUseError, RunLostError

ATOMIC_FILES = (
    "answers.safetensors",
    "config.yaml",
    "inputs.json",
    "last.safetensors",
    "predictions-*",
    "prompt.safetensors",
    "result.json",
)  # files that `write_atomically` makes in a run
MAX_NAMED_RUNS = 5  # in an error


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
        confusion: of the last tests: classes (ids), and counts: true class, answered class (the number of classes for
            no answer) and items, where there are any.
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
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def accuracy_matrix(self) -> list[list[float]]:
        """Accuracy (T, T) of a stream after lesson t (row) on the test images of lesson i (column), as far as seen."""
        return [[t["accuracy"] for name, t in tests.items() if name.startswith("seen/")] for tests in self.scores]


class RunFolder:
    """The files of one run.

    config.yaml, inputs.json (what it stands on beside the configuration, by content), steps.jsonl, last.safetensors
    (to resume; goes when the run is done), answers.safetensors (predictions of the last tests), on request
    predictions-TEST.parquet (with logits), prompt.safetensors (the learned state) and result.json, written last: that
    it exists means that the run is done.

    Args:
        path: of the folder.
        before_write: called before each file of the run is written; a RunLostError that it raises keeps the file.
    """

    def __init__(self, path: Path, before_write: Callable[[], None] | None = None):
        self.path, self.before_write = path, before_write or _allow
        self.config_path, self.result_path, self.state_path = (
            path / "config.yaml",
            path / "result.json",
            path / "last.safetensors",
        )
        self.steps_path, self.inputs_path, self.learned_path, self.answers_path = (
            path / "steps.jsonl",
            path / "inputs.json",
            path / "prompt.safetensors",
            path / "answers.safetensors",
        )

    @contextmanager
    def open(self, config: dict[str, Any], inputs: Inputs) -> Iterator[None]:
        """Make the folder, lock it for this process, and write the configuration and the inputs of its run.

        Raises:
            ValueError: when it holds a run of another configuration, or a process is at work in it.
            ChangedInputsError: when it holds a run on other inputs.
        """
        import yaml

        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path):
            self._require_config(config)
            self.require_inputs(inputs)
            for left in (left for name in ATOMIC_FILES for left in self.path.glob(f".{name}.*")):
                left.unlink()  # of a process that died while it wrote
            try:
                write_atomically(self.config_path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
                write_json(self.inputs_path, inputs)
                yield
            except RunLostError:  # what lies there is of the process that has the run now
                raise
            except BaseException:
                self._discard_if_empty()
                raise

    def _require_config(self, config: dict[str, Any]) -> None:
        """ValueError if the folder holds a run of another configuration, or one that can't be read."""
        if not self.config_path.exists():
            return
        if (stored := self.read_config()) != config:
            differing = [k for k in config if stored.get(k) != config[k]]
            raise ValueError(
                f"{str(self.path)!r}: expected the same configuration, got a run with other "
                f"{', '.join(differing) or 'settings'}. Name another folder."
            )

    def read_config(self) -> dict[str, Any]:
        """Return the configuration of the run; ValueError where its file is broken."""
        import yaml

        try:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast, where libyaml is installed
            config = yaml.load(self.config_path.read_text("utf-8"), Loader=loader)
            if not isinstance(config, dict):
                raise ValueError(f"it holds a {type(config).__name__}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"{str(self.config_path)!r}: expected the configuration of a run, got a broken file "
                f"({' '.join(str(error).split())}). Remove the folder {str(self.path)!r}, or name another."
            ) from error
        return config

    def _discard_if_empty(self) -> None:
        """Remove the files of a run that has learned nothing; other files stay."""
        if not self.state_path.exists() and not self.result_path.exists():
            for file in (self.config_path, self.inputs_path, self.steps_path, self.answers_path):
                file.unlink(missing_ok=True)

    def read_inputs(self) -> Inputs:
        """Return what the run in this folder stood on; OSError or ValueError for a file that is not to be read."""
        return json.loads(self.inputs_path.read_text("utf-8"))

    def list_changed_inputs(self, inputs: Inputs) -> list[str]:
        """Return what differs between the inputs of the run in this folder and these, by name with old and new."""
        if not self.state_path.exists() and not self.result_path.exists():
            return []  # nothing was learned
        try:
            return list_differences(self.read_inputs(), json.loads(json.dumps(inputs)))  # tuples are lists in JSON
        except FileNotFoundError:
            return [f"{self.inputs_path.name}, which says what the run stood on, is gone"]
        except (OSError, ValueError, AttributeError) as error:
            return [f"{self.inputs_path.name}: not to be read ({error})"]

    def require_inputs(self, inputs: Inputs) -> None:
        """Raise ChangedInputsError if the run in this folder stood on other inputs than these."""
        if changes := self.list_changed_inputs(inputs):
            raise ChangedInputsError(
                f"{str(self.path)!r}: expected a run on the same inputs, got one on others ({'; '.join(changes)}). "
                "Give --fresh to run in a new folder beside it, name another by --out, or put the old inputs back."
            )

    def read_result(self) -> Result | None:
        """Return the result, or None if the run is not finished; ValueError for a damaged or foreign file."""
        from vlprompt.results.result_schema import validate_result

        if not self.result_path.exists():
            return None
        try:
            content = json.loads(self.result_path.read_text("utf-8"))
            checksum = content.pop("checksum", None) if isinstance(content, dict) else None
            if checksum not in (None, _compute_checksum(content)):
                raise ValueError("it was edited after the run wrote it")
            if isinstance(content, dict):
                content.pop("files", None)  # digests, which `_require_same_files` compares
            content = validate_result(content)
            return Result(**content, folder=str(self.path))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{str(self.result_path)!r}: expected a result, got a broken file ({error}). Delete it and give the "
                "command of the run again, which makes it anew."
            ) from error

    def find_damage(self) -> str:
        """Return which file of a finished run is broken or missing, so that it must run again; "" for none."""
        try:
            self._read_whole()
        except ValueError as error:
            return str(error)
        return ""

    def read_finished(self) -> Result | None:
        """Return the result; None where the run is not finished, or its files are damaged."""
        with suppress(ValueError):
            return self._read_whole()
        return None

    def _read_whole(self) -> Result | None:
        """Return the result of a finished run, None for another; ValueError for any broken or missing file of it."""
        result = self.read_result()
        if result is not None:
            self.read_config()
            read_tensors(self.learned_path, with_values=False)
            self._require_same_files(self.learned_path, self.answers_path)
        return result

    def _require_same_files(self, *paths: Path) -> None:
        """Raise ValueError for a file that is not the one that the run wrote; one that is gone is none."""
        if not self.result_path.exists():
            return
        content = json.loads(self.result_path.read_text("utf-8"))
        digests = content.get("files", {}) if isinstance(content, dict) else {}
        for path in (path for path in paths if path.name in digests and path.exists()):
            if digests[path.name] != compute_digest(path.read_bytes()):
                raise ValueError(
                    f"{str(path)!r}: expected the file that the run wrote, got another. Put it back, or delete "
                    f"{self.result_path.name} and give the command of the run again, which makes it anew."
                )

    def save_state(self, state: State, progress: dict[str, Any]) -> None:
        """Write all that a resume needs into one file: a single rename is never half done."""
        self.before_write()
        cursor = {key: getattr(state, key) for key in ("epoch", "batch_index", "step", "best_score", "scaler")}
        write_atomically(self.state_path, serialize_tensors(state.tensors, {"cursor": cursor, "progress": progress}))

    def load_state(self) -> tuple[State, dict[str, Any]] | None:
        if not self.state_path.exists():
            return None
        tensors, metadata = read_tensors(self.state_path)
        return State(tensors=tensors, **metadata["cursor"]), metadata["progress"]

    def save_answers(self, answers: dict[str, TestAnswers], scores: UnknownScores | None = None) -> None:
        self.before_write()
        write_atomically(self.answers_path, serialize_answers(answers, scores))

    def save_predictions(self, predictions: Mapping[str, PredictionFile]) -> None:
        """Write a file of predictions for each test, predictions-TEST.parquet; those of earlier tests go."""
        paths = {self.path / f"predictions-{quote(test, safe=' ')}.parquet": test for test in predictions}
        for path in set(self.path.glob("predictions-*.parquet")) - paths.keys():
            self.before_write()
            path.unlink(missing_ok=True)
        for path, test in paths.items():
            self.before_write()
            write_predictions(predictions[test], path)

    def read_answers(self) -> dict[str, TestAnswers]:
        """Return the answers of the last tests by test, {} for a run that has none; ValueError for those of another."""
        self.verify_answers()
        return read_answers(self.answers_path)

    def read_unknown_scores(self) -> UnknownScores | None:
        """Return the scores of known and unknown items of the last test, None for a run without any; likewise."""
        self.verify_answers()
        return read_unknown_scores(self.answers_path)

    def verify_answers(self) -> None:
        """Raise ValueError for a file of answers that the run did not write."""
        self._require_same_files(self.answers_path)

    def finish(self, result: Result, learned: bytes) -> Result:
        """Write the learned state, then the result, and remove what only a resume needs."""
        self.before_write()
        write_atomically(self.learned_path, learned)
        content = {k: v for k, v in asdict(result).items() if k != "folder"}
        content["files"] = {self.learned_path.name: compute_digest(learned)}
        if self.answers_path.exists():
            content["files"][self.answers_path.name] = compute_digest(self.answers_path.read_bytes())
        write_json(self.result_path, {**content, "checksum": _compute_checksum(content)})
        self.state_path.unlink(missing_ok=True)
        return Result(**{**asdict(result), "folder": str(self.path)})

    def remove_leftovers(self) -> None:
        """Remove what a process left that was killed between the last file of a finished run and the end."""
        if self.result_path.exists() and (self.state_path.exists() or (self.path / ".lock").exists()):
            with suppress(ValueError, OSError), lock_folder(self.path):  # another process may be at it
                self.state_path.unlink(missing_ok=True)

    def read_learned_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the learned state and its metadata; ValueError if the run is not finished or its state is broken."""
        if not self.config_path.exists():
            raise ValueError(self._explain_no_run())
        if not self.result_path.exists():
            raise ValueError(
                f"{str(self.path)!r}: expected a finished run, got an unfinished one. Give its command again and it "
                "goes on, or choose another run."
            )
        if not self.learned_path.exists():
            raise ValueError(
                f"{str(self.learned_path)!r}: expected what the run has learned, got no such file. Give the command "
                "of the run again, which makes it anew."
            )
        self._require_same_files(self.learned_path)
        return read_tensors(self.learned_path)

    def _explain_no_run(self) -> str:
        """Return why this is no folder of a run, with the runs that are in it."""
        if not self.path.is_dir():
            return (
                f"run: expected the folder of a run, got {str(self.path)!r}, which does not exist. "
                "List those under runs/ by `vlprompt table`."
            )
        if self.result_path.exists():
            return (
                f"{str(self.path)!r}: expected the folder of a run, got one without its {self.config_path.name}. Give "
                "the command of the run again, which makes it anew."
            )
        folders = find_run_folders(self.path)
        if not folders:
            return (
                f"run: expected the folder of a run, got {str(self.path)!r}, which holds none. "
                "List those under runs/ by `vlprompt table`."
            )
        names = ", ".join(str(folder) for folder in folders[:MAX_NAMED_RUNS]) + " ..." * (len(folders) > MAX_NAMED_RUNS)
        return (
            f"run: expected the folder of one run, got {str(self.path)!r}, which holds {len(folders)}. "
            f"Name one: {names}."
        )


def _allow() -> None:
    """Let a file be written."""


def _compute_checksum(content: Any) -> str:
    """Hash JSON values, whatever the order of keys: it tells a result that was edited by hand."""
    return compute_digest(json.dumps(content, sort_keys=True).encode())


def compute_digest(content: bytes) -> str:
    """Hash the bytes of a file."""
    return blake2b(content, digest_size=16).hexdigest()


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Hold a folder for this process until the with-block ends; a process that dies releases it.

    A folder that is empty at the end goes.

    Raises:
        FolderInUseError: when another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
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


def find_run_folders(root: Path) -> list[Path]:
    """Return the folders of all runs at or under a folder, but those in hidden folders, where trackers have copies."""
    paths = {path.parent for name in ("config.yaml", "result.json") for path in root.rglob(name)}
    return sorted(path for path in paths if not any(p.startswith(".") for p in path.relative_to(root).parts))
