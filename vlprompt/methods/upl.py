"""UPL: Huang et al., "Unsupervised Prompt Learning for Vision-Language Models", 2022, arXiv:2204.03649.

Of the unlabelled images that the frozen CLIP takes to be of a class, those that it is surest of become its labelled
images, and a few-shot method learns from them; images with labels are not used. Sites: those of the method inside.

Differs from the authors' code in: one CLIP labels, the one that is prompted, and one prompt is learned (theirs can take
several of both); float32. From the paper in: the same.

Expected: no number on a benchmark of two domains was checked.
"""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Split, Unlabelled
from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method
from vlprompt.core.method_wrapper import Around
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import Template, hand
from vlprompt.methods._adaptation import needs_target


class UPL(Around):
    """A method that learns from labels, taught by the images that CLIP is surest of.

    method: the one inside, on a CLIP; k: images a class; template: the text that labels, default the dataset's own;
    temperature: of its probabilities, by which images are ranked.
    """

    adapts = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, method: Method, k: int = 16, template: Template = None, temperature: float = 1.0):
        super().__init__()
        self.method, self.k, self.template, self.temperature = method, k, template, temperature
        self.chosen = Split((), (), ())

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(k=1)
        if self.temperature <= 0:
            raise ValueError(f"method.temperature must be above 0, not {self.temperature}")
        if self.method.adapts:
            raise ValueError(
                f"UPL gives the method inside nothing but labelled images, and {type(self.method).__name__} learns "
                "from unlabelled ones: take a method that learns from labels, such as coop"
            )
        needs_target(self, lesson)
        if len(lesson.train) and not lesson.unlabelled:
            raise ValueError(
                "UPL learns from the target's images alone, and this lesson has none: where the target comes after the "
                "source (setting=source_free), leave the source out: --source none"
            )
        names = lesson.train.names
        self.chosen = self._labelled(lesson.unlabelled) if lesson.unlabelled else Split((), (), names)
        self.method.begin(self._inner(lesson), generator)

    def _inner(self, lesson: Lesson) -> Lesson:
        return replace(lesson, train=self.chosen, val=None, unlabelled=None, memory=None)

    def taught(self, lesson: Lesson) -> Lesson:
        return self.method.taught(self._inner(lesson))

    def end(self, lesson: Lesson) -> None:
        self.method.end(self._inner(lesson))

    @torch.no_grad()
    def _labelled(self, target: Unlabelled) -> Split:
        """The images that are surest to be of the class they are taken for, k of each or as many as there are."""
        text = self.own(target.names)
        p = torch.cat([self._seen(batch.inputs, text) for batch in target.batches(100)]).cpu()  # (N, C)
        sure, label = p.max(-1)
        places = list[int]()
        for c in range(len(target.names)):
            mine = (label == c).nonzero()[:, 0]
            places += mine[sure[mine].argsort(descending=True, stable=True)[: self.k]].tolist()
        found = [target.names[c] for c in sorted(set(label.tolist()))]
        if without := [str(name) for name in target.names if name not in found]:
            warnings.warn(
                f"no unlabelled image is taken for {', '.join(map(repr, without[:5]))}{' ...' * (len(without) > 5)}: "
                f"{len(without)} of {len(target.names)} classes have no image to learn from",
                stacklevel=4,
            )
        labels = tuple(label[places].tolist())
        return Split(tuple(target.items[i] for i in places), labels, target.names, augment=target.augment)

    def own(self, names: Names) -> Tensor:
        return hand(self.clip, names, self.template)  # (C, E)

    def _seen(self, inputs: Images, text: Tensor) -> Tensor:
        return (self.clip.logits(self.clip.image(inputs), text).float() / self.temperature).softmax(-1)

    def guess(self, inputs: Images, fixed: Any) -> tuple[Tensor, Tensor]:
        known, p = {item.key for item in self.chosen.items}, self._seen(inputs, fixed[1])
        sure = [key is not None and (key in known or key.rsplit("|", 2)[0] in known) for key in inputs.keys]  # a view's
        return p, torch.tensor(sure, device=p.device)
