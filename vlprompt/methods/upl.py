"""UPL: Huang et al., "Unsupervised Prompt Learning for Vision-Language Models", 2022, arXiv:2204.03649.

Of the unlabelled images that the frozen CLIP assigns to a class, the most confident ones become its labelled images,
and a few-shot method learns from them; images with labels are not used. Sites: those of the wrapped method.

Differs from the authors' code in: one CLIP labels, the one that is prompted, and one prompt is learned (theirs can take
several of both); float32. From the paper in: the same.

Expected: no number on a benchmark of two domains was checked.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed
from vlprompt.core.images import Images
from vlprompt.core.method import Method
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.methods._adaptation import require_positive, require_target, zero_shot_probabilities


class UPL(MethodWrapper):
    """A few-shot method trained on the images that CLIP classifies most confidently.

    Args:
        method: the wrapped method, on a CLIP.
        images_per_class: number of pseudo-labelled images of each class (k).
        template: of the pseudo-labelling class texts; default the dataset's own.
        temperature: of the probabilities by which images are ranked.
    """

    needs_unlabelled = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(
        self, method: Method, images_per_class: int = 16, template: TemplateChoice = None, temperature: float = 1.0
    ):
        super().__init__()
        self.method, self.images_per_class = method, images_per_class
        self.template, self.temperature = template, temperature
        self.pseudo_labelled = Split((), (), ())

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(images_per_class=1)
        require_positive(self, "temperature")
        if self.method.needs_unlabelled:
            raise ValueError(
                f"upl: expected a method that learns from labels, got {type(self.method).__name__}, which learns from "
                "unlabelled images. Use a method such as coop."
            )
        require_target(self, lesson)
        if len(lesson.train) and not lesson.unlabelled:
            raise ValueError(
                "upl: expected unlabelled images of the target, got labelled images alone. Where the target comes "
                "after the source (task.setting=source_free), leave the source out: --source none."
            )
        names = lesson.train.names
        self.pseudo_labelled = self._select_confident(lesson.unlabelled) if lesson.unlabelled else Split((), (), names)
        self.method.begin_lesson(self._inner_lesson(lesson), generator)

    def _inner_lesson(self, lesson: Lesson) -> Lesson:
        return replace(lesson, train=self.pseudo_labelled, val=None, unlabelled=None, memory=None)

    def training_lesson(self, lesson: Lesson) -> Lesson:
        return self.method.training_lesson(self._inner_lesson(lesson))

    def end_lesson(self, lesson: Lesson) -> None:
        self.method.end_lesson(self._inner_lesson(lesson))

    @torch.no_grad()
    def _select_confident(self, target: Unlabelled) -> Split:
        """Select the most confidently classified images of each class."""
        text = self.reference_texts(target.names)
        p = torch.cat([self._probabilities(batch.inputs, text) for batch in target.batches(100)]).cpu()  # (N, C)
        confidence, label = p.max(-1)
        indices = list[int]()
        for c in range(len(target.names)):
            of_class = (label == c).nonzero()[:, 0]
            order = confidence[of_class].argsort(descending=True, stable=True)
            indices += of_class[order[: self.images_per_class]].tolist()
        predicted = [target.names[c] for c in sorted(set(label.tolist()))]
        if missing := [str(name) for name in target.names if name not in predicted]:
            warnings.warn(
                f"no confident pseudo-label for {', '.join(map(repr, missing[:5]))}{' ...' * (len(missing) > 5)}: "
                f"{len(missing)} of {len(target.names)} classes have no image to learn from. Change method.template, "
                "or leave these classes out.",
                stacklevel=4,
            )
        labels = tuple(label[indices].tolist())
        return Split(tuple(target.items[i] for i in indices), labels, target.names, augment=target.augment)

    def reference_texts(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E)

    def _probabilities(self, inputs: Images, text: Tensor) -> Tensor:
        return zero_shot_probabilities(self.clip, inputs, text, self.temperature)

    def pseudo_labels(self, inputs: Images, fixed: tuple[Fixed, Tensor]) -> tuple[Tensor, Tensor]:
        selected, p = {item.key for item in self.pseudo_labelled.items}, self._probabilities(inputs, fixed[1])
        is_selected = [  # an augmentation's key is that of its item with two parts appended
            key is not None and (key in selected or key.rsplit("|", 2)[0] in selected) for key in inputs.keys
        ]
        return p, torch.tensor(is_selected, device=p.device)
