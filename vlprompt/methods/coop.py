"""CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.

The words around the class name are replaced by vectors that are learned from a few images per class; both towers stay
frozen. Sites: soft tokens at layer 0 of the text tower.

Differs from the authors' code in: `init_text` counts tokens, not words, so initial words of several tokens keep their
meaning; the context is float32, not half precision. From the paper in: nothing.

Expected (few-shot, 16 shots, mean of 11 sets, RN50, 200 epochs): 73.45 (APE's re-tabulation of the authors' numbers).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.heads import find_class_indices


class CoOp(Method):
    """Learned context tokens of the text tower.

    Args:
        clip: frozen CLIP.
        n_ctx: number of context tokens; default 16, or as many as `init_text` has.
        init_text: words to start from instead of N(0, 0.02).
        context_template: where context and class name stand: "{ctx} {name}." (end), "{ctx} {name} {ctx}." (middle),
            "{name} {ctx}." (front); without {ctx} the context comes first.
        class_specific: whether each class has its own context (CSC); such a prompt cannot classify new classes.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init_text: str | None = None,
        context_template: str = "{ctx} {name}.",
        class_specific: bool = False,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init_text = clip, n_ctx, init_text
        self.context_template, self.class_specific = context_template, class_specific
        self.class_ids: Names = ()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index and not self.class_specific:
            return
        known_ids = self.class_ids if lesson.index else ()
        added_ids = [i for i in class_ids(lesson.train.names) if i not in known_ids] if self.class_specific else [""]
        contexts = [*self.ctx.detach()] if known_ids else []
        contexts += [self.clip.text.init_context(self.n_ctx, self.init_text, generator) for _ in added_ids]
        self.ctx = nn.Parameter(torch.stack(contexts) if self.class_specific else contexts[0])  # (P, D) or (C, P, D)
        self.class_ids = (*known_ids, *added_ids) if self.class_specific else ()

    def precompute(self, names: Names) -> tuple[list[str], Tensor | None]:
        indices = None
        if self.class_specific:
            indices = find_class_indices(self.class_ids, names, "a class-specific context").to(self.ctx.device)
        return fill_class_texts(self.context_template, names, self.ctx.shape[-2]), indices

    def prepare(self, names: Names, fixed: tuple[list[str], Tensor | None]) -> Tensor:
        texts, indices = fixed
        ctx = self.ctx if indices is None else self.ctx[indices]
        return self.clip.text(texts, Prompt(tokens={0: ctx[None]}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)
