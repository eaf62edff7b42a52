"""answers.safetensors of a run: what it predicted for each item of its last tests, and how well it knew each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.results.tensor_files import read_tensors, serialize_tensors


@dataclass(frozen=True)
class TestAnswers:
    """The answers of a test, in the order of its items.

    Args:
        labels: (N,) indices into `names`.
        predicted: (N,) likewise; len(names) where the method found no answer.
        probabilities: (N,) of the predicted class.
        names: class names.
    """

    __test__ = False  # no test of pytest

    labels: Tensor
    predicted: Tensor
    probabilities: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class UnknownScores:
    """How well the items of a test against unknown classes are known, by each score; high for known.

    Args:
        names: of the scores (S).
        known: (N, S) of the items of the known classes.
        unknown: set of items of unknown classes -> (M, S).
    """

    names: tuple[str, ...]
    known: Tensor
    unknown: Mapping[str, Tensor]


def serialize_answers(answers: Mapping[str, TestAnswers], scores: UnknownScores | None = None) -> bytes:
    """Serialize the answers of tests, and the scores of known and unknown items where there are any."""
    tensors = {
        f"{field}/{test}": getattr(one, field)
        for test, one in answers.items()
        for field in ("labels", "predicted", "probabilities")
    }
    metadata: dict[str, Any] = {"names": {test: list(one.names) for test, one in answers.items()}}
    if scores is not None:
        tensors |= {"scores/known": scores.known}
        tensors |= {f"scores/unknown/{i}": values for i, values in enumerate(scores.unknown.values())}
        metadata["scores"] = {"names": list(scores.names), "unknown": list(scores.unknown)}
    return serialize_tensors(tensors, metadata)


def read_answers(path: Path) -> dict[str, TestAnswers]:
    """Return the answers of a file by test, {} where there is no file; ValueError for a broken one."""
    if not path.exists():
        return {}
    tensors, metadata = read_tensors(path)
    try:
        return {
            test: TestAnswers(
                tensors[f"labels/{test}"], tensors[f"predicted/{test}"], tensors[f"probabilities/{test}"], tuple(names)
            )
            for test, names in metadata["names"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _explain(path, error) from error


def read_unknown_scores(path: Path) -> UnknownScores | None:
    """Return the scores of known and unknown items of a file, None without any; ValueError for a broken one."""
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    if "scores" not in metadata:
        return None
    try:
        names, sets = tuple(metadata["scores"]["names"]), metadata["scores"]["unknown"]
        unknown = {name: tensors[f"scores/unknown/{i}"] for i, name in enumerate(sets)}
        return UnknownScores(names, tensors["scores/known"], unknown)
    except (KeyError, TypeError) as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{str(path)!r}: expected the answers of a run, got other content ({error!r}).")
