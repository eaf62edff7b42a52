"""The images that a run answered wrongly, grouped by the classes that it confused."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.data.splits.label_hiding import reveal_name
from vlprompt.results.plots.confusion import NO_ANSWER, find_confused_pairs, read_run_answers
from vlprompt.results.report.content import Gallery, ImageGroup, ReportImage
from vlprompt.results.run_folder import Result
from vlprompt.results.test_answers import TestAnswers

THUMBNAIL = Preprocessing((96, 96))
MAX_PAIRS, MAX_IMAGES = 12, 24  # of a run


class MistakesUnknownError(ValueError):
    """The images of a run's test can't be shown."""


@dataclass
class MistakeFinder:
    """Opens the datasets of runs again, each once.

    Args:
        tests: of the last stage, by the settings of the task; an error where they can't be opened.
    """

    tests: dict[str, Mapping[str, Split] | str] = field(default_factory=dict)

    def build_gallery(self, result: Result, label: str) -> Gallery:
        """Build a gallery of the pairs of classes that the run confused most often in its last tests.

        Raises:
            MistakesUnknownError: without answers, images or the same test items.
        """
        answers = read_run_answers(result)
        if not answers:
            raise MistakesUnknownError("the run has no answers of single items")
        tests = self._open_tests(result.config["task"])
        if isinstance(tests, str):
            raise MistakesUnknownError(tests)
        test = _choose_test(answers)
        split = tests.get(test)
        _require_same_items(answers[test], split)
        assert split is not None
        return Gallery(f"{label}, {test}", _build_groups(answers[test], split))

    def _open_tests(self, task: dict[str, Any]) -> Mapping[str, Split] | str:
        key = json.dumps(task, sort_keys=True)
        if key not in self.tests:
            try:
                *_, stage = build_task(task).stages()
                self.tests[key] = stage.tests
            except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
                self.tests[key] = f"the dataset can't be opened here: {error}"
        return self.tests[key]


def _choose_test(answers: Mapping[str, TestAnswers]) -> str:
    """Return the test with the most items: of a stream all that was seen, of base-to-new the larger half."""
    return max(answers, key=lambda name: len(answers[name].labels))


def _require_same_items(answers: TestAnswers, split: Split | None) -> None:
    """MistakesUnknownError where the test of the dataset is not that of the run."""
    if split is None or list(split.labels) != answers.labels.tolist() or tuple(map(str, split.names)) != answers.names:
        raise MistakesUnknownError("the dataset here has other test items than the run had")
    if not all(isinstance(item, ImageItem) for item in split.items):
        raise MistakesUnknownError("its items are no images")


def _build_groups(answers: TestAnswers, split: Split) -> list[ImageGroup]:
    names = [*answers.names, NO_ANSWER]
    by_pair: dict[tuple[str, str], list[int]] = {}
    for i, (true, predicted) in enumerate(zip(answers.labels.tolist(), answers.predicted.tolist(), strict=True)):
        if true != predicted:
            by_pair.setdefault((names[true], names[min(predicted, len(answers.names))]), []).append(i)
    pairs = find_confused_pairs(answers)[:MAX_PAIRS]
    n_images = MAX_IMAGES // max(1, len(pairs))
    groups = []
    for true, predicted, count, percent in pairs:
        indices = sorted(by_pair[true, predicted], key=lambda i: (-float(answers.probabilities[i]), i))
        images = [_make_image(split.items[i], float(answers.probabilities[i])) for i in indices[:n_images]]
        items = f"{count} item{'s' * (count != 1)}, {percent:.1f} % of the class"
        groups.append(ImageGroup(f"{true} answered as {predicted} ({items})", images))
    return groups


def _make_image(item: ImageItem, probability: float) -> ReportImage:
    """Return a small JPEG of an item, captioned by its name and the probability of the wrong answer."""
    from PIL import Image

    try:
        pixels = item.pixels(THUMBNAIL, None).clamp(0, 1)
    except (OSError, ValueError) as error:
        raise MistakesUnknownError(f"an image can't be read: {error}") from error
    stream = io.BytesIO()
    Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy()).save(stream, "JPEG", quality=80)
    return ReportImage(stream.getvalue(), f"{reveal_name(item)}, p {probability:.2f}")


def describe_unknown(reasons: Sequence[tuple[str, str]], noun: str = "images") -> list[str]:
    """Return a line for each reason why something of runs is not shown, with the runs that it is about."""
    labels: dict[str, list[str]] = {}
    for label, reason in reasons:
        labels.setdefault(reason, []).append(label)
    return [f"no {noun} of {', '.join(names)}: {reason}" for reason, names in labels.items()]
