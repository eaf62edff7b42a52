"""MaPLe: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.

Learned tokens at the first layers of the text tower, and tokens of the image tower that a linear map per layer makes
from them, so that both sides learn together. Sites: soft tokens at layers 0 to depth - 1 of both towers.

Differs from the authors' code in: widths come from the towers (theirs are written as 512 and 768); `init` counts
tokens, not words; float32 throughout (theirs mixes half and single precision). From the paper in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 82.28, new 75.14, harmonic mean 78.55.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import dense
from vlprompt.layers.class_texts import holes


class MaPLe(Method):
    """Coupled tokens in both towers.

    n_ctx: tokens a layer (default as many as `init` has, or 2); depth: layers that have them (J), cut to the shallower
    tower's; init: words that the first layer starts from (None: N(0, 0.02), as all others); text: where context and
    name stand; the words around them stay as they are.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        depth: int = 9,
        init: str | None = "a photo",
        text: str = "{ctx} of a {name}.",
    ):
        super().__init__()
        self.clip, self.n_ctx, self.depth, self.init, self.text = clip, n_ctx, depth, init, text

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        text, image, device = self.clip.text, self.clip.image, self.clip.device
        depth = self.within("depth", min(text.depth, image.depth))
        first = text.context(self.n_ctx or (None if self.init else 2), self.init, generator)  # (P, D)
        later = [text.context(len(first), None, generator) for _ in range(depth - 1)]
        self.ctx = nn.ParameterList([first, *later])
        maps = [dense(text.dim, image.dim, generator, device) for _ in range(min(depth, 2))]
        for _ in range(depth - 2):  # the authors' later maps all begin as one
            copy = nn.Linear(text.dim, image.dim, device=device)
            copy.load_state_dict(maps[1].state_dict())
            maps.append(copy)
        self.maps = nn.ModuleList(maps)

    def fixed(self, names: Names) -> list[str]:
        return holes(self.text, names, len(self.ctx[0]))

    def prepare(self, names: Names, fixed: list[str]) -> Tensor:
        return self.clip.text(fixed, Prompt(tokens={i: c[None] for i, c in enumerate(self.ctx)}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        tokens = {i: f(c)[None] for i, (f, c) in enumerate(zip(self.maps, self.ctx, strict=True))}  # (1, P, D)
        image = self.clip.image(inputs, Prompt(tokens=tokens))  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
