"""CoOp: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.

The words around the class name are replaced by vectors that are learned from a few images per class; both towers stay
frozen. Sites: soft tokens at layer 0 of the text tower.

Differs from the authors' code in: `init` counts tokens, not words, so initial words of several tokens keep their
meaning; the context is float32, not half precision. From the paper in: nothing.

Expected (few-shot, 16 shots, mean of 11 sets, RN50, 200 epochs): 73.45 (APE's re-tabulation of the authors' numbers).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import holes
from vlprompt.layers.heads import columns


class CoOp(Method):
    """Learned context words for a CLIP's text tower.

    n_ctx: tokens of context (default 16, or as many as `init` has); init: words to start from instead of N(0, 0.02);
    text: where context and name stand: "{ctx} {name}." (end), "{ctx} {name} {ctx}." (middle), "{name} {ctx}." (front),
    without {ctx} the context comes first;
    own: a context for each class (class-specific contexts); such a prompt knows no new classes.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        init: str | None = None,
        text: str = "{ctx} {name}.",
        own: bool = False,
    ):
        super().__init__()
        self.clip, self.n_ctx, self.init, self.text, self.own = clip, n_ctx, init, text, own
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index and not self.own:
            return
        known = self.ids if lesson.index else ()
        new = [i for i in ids(lesson.train.names) if i not in known] if self.own else [""]
        old = [*self.ctx.detach()] if known else []
        contexts = [*old, *(self.clip.text.context(self.n_ctx, self.init, generator) for _ in new)]
        self.ctx = nn.Parameter(torch.stack(contexts) if self.own else contexts[0])  # (P, D) or (C, P, D)
        self.ids = (*known, *new) if self.own else ()

    def fixed(self, names: Names) -> tuple[list[str], Tensor | None]:
        chosen = columns(self.ids, names, "a class-specific context").to(self.ctx.device) if self.own else None
        return holes(self.text, names, self.ctx.shape[-2]), chosen

    def prepare(self, names: Names, fixed: tuple[list[str], Tensor | None]) -> Tensor:
        texts, chosen = fixed
        ctx = self.ctx if chosen is None else self.ctx[chosen]
        return self.clip.text(texts, Prompt(tokens={0: ctx[None]}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
