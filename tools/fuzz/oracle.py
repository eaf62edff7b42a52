"""Count a dataset independently, and hold what a command says and writes against it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.process import Outcome
from fuzz.sandbox import Sandbox, shorten

Counts = dict[str, int]  # class -> items
IMAGE_CUT, TEXT_CUT = (0.5, 0.2), (0.7, 0.1)


@dataclass
class Facts:
    """What is in a dataset.

    Args:
        splits: split -> class -> items; the one split "all" is cut 50:20:30, of texts 70:10:20.
        separable: whether the nearest mean of the pixels must be right for every image.
        cut: the fractions of train and val by which "all" is cut.
    """

    splits: dict[str, Counts]
    separable: bool = True
    cut: tuple[float, float] = IMAGE_CUT

    @property
    def classes(self) -> list[str]:
        """Return the classes, sorted."""
        return sorted({name for counts in self.splits.values() for name in counts})

    def expected(self) -> dict[str, Counts]:
        """Return train, val and test, by the documented rules."""
        if "all" in self.splits:
            parts = {part: Counts() for part in ("train", "val", "test")}
            for name, n in self.splits["all"].items():
                train = max(1, round(self.cut[0] * n))
                end = train + round(self.cut[1] * n)
                end = min(end, n - 1) if n > 1 else end
                parts["train"][name], parts["val"][name], parts["test"][name] = train, end - train, n - end
            return parts
        if self.splits.get("val"):
            return self.splits
        train = {name: max(1, round(0.8 * n)) for name, n in self.splits["train"].items()}
        val = {name: n - train[name] for name, n in self.splits["train"].items()}
        return {"train": train, "val": val, "test": self.splits["test"]}


def check_counts(box: Sandbox, outcome: Outcome, facts: Facts) -> None:
    """Hold the counts that `data check` says against those of the dataset."""
    if outcome.status == 2 or outcome.is_interrupted:
        return
    said = {part: re.search(rf"\b{part} ([\d,]+)", outcome.output) for part in ("train", "val", "test")}
    counts = {part: int(match[1].replace(",", "")) for part, match in said.items() if match}
    expected = {part: n for part, names in facts.expected().items() if (n := sum(names.values()))}
    if counts != expected:
        box.violate("wrong data", f"counts {counts}, there are {expected}")
    classes = re.search(r"(\d+) classes", outcome.output)
    if classes and int(classes[1]) != len(facts.classes):
        box.violate("wrong data", f"{classes[1]} classes, there are {len(facts.classes)}")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results below a folder."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.rglob("result.json"))]


def check_result(box: Sandbox, outcome: Outcome, facts: Facts, shots: int | None = None) -> None:
    """Hold the result of one accepted run against its dataset."""
    if outcome.status or outcome.is_interrupted:
        return
    results = read_results(box.out)
    if len(results) != 1:
        box.violate("wrong data", f"exit status 0 with {len(results)} results")
        return
    result, parts = results[0], facts.expected()
    protocol = result["protocol"]
    if sorted(protocol["classes"]) != facts.classes:
        box.violate("wrong data", f"classes {shorten(str(protocol['classes']))}, there are {facts.classes}")
        return
    wanted = sum(n if shots is None else min(n, shots) for n in parts["train"].values())
    if protocol["train_images"] != wanted:
        box.violate("wrong data", f"{protocol['train_images']} training images, there are {wanted}")
    _check_scores(box, result, parts["test"], facts.separable)


def _check_scores(box: Sandbox, result: dict[str, Any], test: Counts, separable: bool) -> None:
    scores = result["class_accuracy"][-1]["test"]
    if len(scores) != len(test):
        box.violate("wrong data", f"scores of {len(scores)} classes, {len(test)} are tested")
        return
    accuracy, n = result["summary"]["accuracy"], sum(test.values())
    if abs(accuracy * n / 100 - round(accuracy * n / 100)) > 1e-6 * n:
        box.violate("wrong data", f"accuracy {accuracy} is no fraction of the {n} test images")
    if separable and accuracy < 100:
        box.violate("wrong number", f"accuracy {accuracy} where the classes are apart by colour")


def row_of(text: str, method: str) -> list[str]:
    """Return the numbers of a method's row in a table on the terminal."""
    lines = [line for line in text.splitlines() if re.match(rf"\s*{re.escape(method)}\s", line) and "seed" not in line]
    return re.findall(r"[\d.]+", lines[-1].replace(method, "", 1)) if lines else []


def mentions(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of the words, line breaks and case aside."""
    line = " ".join(text.split()).lower()
    return any(word.lower() in line for word in words)
