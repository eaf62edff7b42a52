"""answers.safetensors of a run: what it predicted for each item of its last tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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


def serialize_answers(answers: Mapping[str, TestAnswers]) -> bytes:
    """Serialize the answers of tests."""
    tensors = {
        f"{field}/{test}": getattr(one, field)
        for test, one in answers.items()
        for field in ("labels", "predicted", "probabilities")
    }
    return serialize_tensors(tensors, {"names": {test: list(one.names) for test, one in answers.items()}})


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
        raise ValueError(f"{str(path)!r}: expected the answers of a run, got other content ({error!r}).") from error
