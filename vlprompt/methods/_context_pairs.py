"""Two learned contexts before each class name, which DualCoOp and TaI-DPT have."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.method import Method
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.heads import find_class_indices

FixedPair = tuple[list[list[str]], Tensor | None]  # the texts of both contexts, and which contexts the classes have


class ContextPairMethod(Method):
    """A method with two contexts, shared by all classes or of each class, which reads features of patches.

    Attributes:
        clip: frozen CLIP with features of patches.
        class_specific: whether each class has its own two contexts.
        context_template: where context and class name stand.
        scale: of the cosines.
        learn_scale: whether its logarithm is trained, from this value.
        learn_sharpness: whether that of the sharpness of the softmax over rows is.
    """

    clip: Clip
    class_specific: bool
    context_template: str
    scale: float
    learn_scale: bool
    learn_sharpness: bool
    log_scale: nn.Parameter  # where it is trained
    log_sharpness: nn.Parameter  # likewise
    class_ids: Names = ()  # of class-specific contexts

    @property
    def context_sizes(self) -> Mapping[str, int]:
        """The tokens of each context by the name of its parameter."""
        raise NotImplementedError

    def _learn_scales(self, sharpness: float) -> None:
        """Create the parameters of scales that are trained."""
        starts = (("log_scale", self.learn_scale, self.scale), ("log_sharpness", self.learn_sharpness, sharpness))
        for name, is_trained, start in starts:
            if is_trained:
                setattr(self, name, nn.Parameter(torch.tensor(math.log(start), device=self.clip.device)))

    def get_scales(self, sharpness: float) -> tuple[Tensor | float, Tensor | float]:
        """Return the scale of cosines and the sharpness of the softmax over rows, as set or as trained."""
        scale = self.log_scale.exp() if self.learn_scale else self.scale
        return scale, self.log_sharpness.exp() if self.learn_sharpness else sharpness

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        cast(VisionTower, self.clip.image).require_patch_features()
        if lesson.index and not self.class_specific:
            return
        known_ids = self.class_ids if lesson.index else ()
        added_ids = [i for i in class_ids(lesson.train.names) if i not in known_ids] if self.class_specific else [""]
        for name, n_tokens in self.context_sizes.items():
            contexts = [*getattr(self, name).detach()] if known_ids else []
            contexts += [self.clip.text.init_context(n_tokens, None, generator) for _ in added_ids]
            setattr(self, name, nn.Parameter(torch.stack(contexts)))  # (C, P, D), or (1, P, D) of all classes
        self.class_ids = (*known_ids, *added_ids) if self.class_specific else ()

    def precompute(self, names: Names) -> FixedPair:
        indices = None
        if self.class_specific:
            indices = find_class_indices(self.class_ids, names, "a class-specific context").to(self.clip.device)
        return [fill_class_texts(self.context_template, names, n) for n in self.context_sizes.values()], indices

    def prepare(self, names: Names, fixed: FixedPair) -> tuple[Tensor, Tensor]:
        """Encode the class texts (C, E) of both contexts."""
        contexts = [getattr(self, name) for name in self.context_sizes]
        contexts = contexts if fixed[1] is None else [ctx[fixed[1]][None] for ctx in contexts]
        one, other = (
            self.clip.text(texts, Prompt(tokens={0: ctx}))[0] for texts, ctx in zip(fixed[0], contexts, strict=True)
        )
        return one, other
