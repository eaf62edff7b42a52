"""What a prediction was asked for: prompts, inputs, classes, and what its rows depend on."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.experiments.predict.inputs import (
    STANDARD_INPUT,
    count_image_inputs,
    is_single_file,
    iter_image_inputs,
    list_packed_files,
    require_images,
)
from vlprompt.experiments.predict.prediction_input import PredictionInput, describe_stamp
from vlprompt.experiments.predict.prompts import (
    Ensemble,
    identify_prompt,
    load_prompts,
    read_classes,
    require_same_kind,
    split_sources,
)
from vlprompt.experiments.predict.rows import DEFAULT_TOP_K, RowLayout
from vlprompt.experiments.predict.texts import iter_text_inputs, require_texts


class PredictionRequest:
    """The prompts and inputs of a prediction, read as far as is possible without a backbone.

    Args:
        words: prompts, then inputs.
        texts: texts to predict before those of files.
        classes: a file of class names, or names separated by commas; None for the learned ones.
        top_k: how many classes stand in a row; None for DEFAULT_TOP_K, of prompts for several labels for all.
        has_each: whether the prediction of each prompt stands beside that of all.
        threshold: of prompts for several labels, the probability (0 to 1) that a label must exceed; None for that of
            each prompt.

    Raises:
        ValueError: for prompts that can't be read or don't go together, and inputs that don't fit them.
    """

    def __init__(
        self,
        words: Sequence[str],
        texts: Sequence[str],
        classes: str | None,
        top_k: int | None = None,
        has_each: bool = False,
        threshold: float | None = None,
    ):
        self.sources, self.inputs = split_sources([os.path.expanduser(word) for word in words])
        self.texts = texts
        self.states = [read_learned_state(source) for source in self.sources]
        require_same_kind(self.states)
        if threshold is not None:
            self.states = [_set_threshold(state, threshold) for state in self.states]
        has_several_labels = self.states[0].decision.labels is not None
        self.layout = RowLayout(top_k or (None if has_several_labels else DEFAULT_TOP_K), has_each)
        self.takes_texts = bool(self.states[0].text_protocol)
        self.classes = None if classes is None else read_classes(classes)
        if classes is not None and self.states[0].text_protocol.get("answer") == "response":
            raise ValueError(
                f"--classes: expected prompts that choose among classes, got {self.sources[0]!r}, which writes "
                "responses. Leave --classes out."
            )
        if self.takes_texts:
            require_texts(texts, self.inputs, self.sources[0])
        elif texts:
            raise ValueError(
                f"{self.sources[0]!r}: expected image files for a run on images, got texts. Give it image files."
            )
        else:
            require_images(self.inputs)

    def iter_inputs(self, stdin: BinaryIO | None, notify: Callable[[str], None]) -> Iterator[PredictionInput]:
        """Yield the inputs one by one.

        Args:
            stdin: what "-" reads.
            notify: receives what a user should know of an input.
        """
        if self.takes_texts:
            return iter_text_inputs(self.texts, self.inputs, stdin)
        return iter_image_inputs(self.inputs, stdin, notify)

    def count_inputs(self) -> int | None:
        """Count the inputs; None where only reading them would tell."""
        return None if self.takes_texts else count_image_inputs(self.inputs)

    def describe_settings(self) -> dict[str, Any]:
        """Return what the rows depend on, by name; single image files may come and go."""
        return {
            "prompts": [identify_prompt(state) for state in self.states],
            "classes": self.classes,
            "top_k": self.layout.top_k,
            "each": self.layout.has_each,
            "inputs": [word for word in self.inputs if self.takes_texts or not is_single_file(word)],
            "files": {path: describe_stamp(path) for path in self._list_packed_files()},
            "texts": list(self.texts),
            "folder": os.getcwd(),
        }

    def _list_packed_files(self) -> list[str]:
        """Return the files of many inputs, whose change would be seen in no row: lists, arrays, shards, texts."""
        if self.takes_texts:
            return [word for word in self.inputs if word != STANDARD_INPUT]
        return list_packed_files(self.inputs)

    def require_other_file(self, path: Path) -> None:
        """ValueError where the rows would be written over an input."""
        if path.is_file() and any(os.path.isfile(word) and path.samefile(word) for word in self.inputs):
            raise ValueError(f"--out: expected a file that is no input, got {str(path)!r}. Name another one.")

    def load(self, backbone: str | None, device: str | None) -> Ensemble:
        """Load the prompts on their backbones, and compute what depends on class names alone.

        Raises:
            ValueError: as `load_prompts`.
            UnknownClassError: for a class that a prompt can't answer.
        """
        ensemble = load_prompts(self.sources, self.classes, backbone, device, self.states)
        ensemble.prepare()
        return ensemble


def _set_threshold(state: LearnedState, probability: float) -> LearnedState:
    """Return a learned state that gives the labels of a probability above this one."""
    if not 0 < probability < 1:
        raise ValueError(
            f"--threshold: expected a probability between 0 and 1, got {probability:g}. Write --threshold 0.5."
        )
    if (labels := state.decision.labels) is None:
        raise ValueError(
            f"--threshold: expected prompts that give several labels, got {state.source!r}, which answers with one "
            "class or a text. Leave it out; of unknown classes `vlprompt save --reject` chooses one."
        )
    return replace(state, decision=replace(state.decision, labels=labels.with_probability(probability)))
