"""MaPLe: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.

Learned tokens at the first layers of the text tower, and tokens of the image tower that a linear map per layer computes
from them, so that both towers learn together. Sites: soft tokens at layers 0 to depth - 1 of both towers.

Differs from the authors' code in: widths come from the towers (theirs are written as 512 and 768); `init_text` counts
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
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.initial_values import make_linear
from vlprompt.layers.layer_maps import map_per_layer


class MaPLe(Method):
    """Coupled tokens in both towers.

    Args:
        clip: frozen CLIP.
        n_ctx: tokens at each layer; default as many as `init_text` has, or 2.
        depth: number of layers that have them (J), clipped to the shallower tower's depth.
        init_text: words that the first layer starts from; None: N(0, 0.02), as all others.
        context_template: where context and class name stand; the words around them stay frozen.
    """

    def __init__(
        self,
        clip: Clip,
        n_ctx: int | None = None,
        depth: int = 9,
        init_text: str | None = "a photo",
        context_template: str = "{ctx} of a {name}.",
    ):
        super().__init__()
        self.clip, self.n_ctx, self.depth = clip, n_ctx, depth
        self.init_text, self.context_template = init_text, context_template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if lesson.index:
            return
        text, image, device = self.clip.text, self.clip.image, self.clip.device
        for tower in (text, image):
            tower.require_blocks()
        depth = self.clip_to_depth("depth", min(text.depth, image.depth))
        first = text.init_context(self.n_ctx or (None if self.init_text else 2), self.init_text, generator)  # (P, D)
        later = [text.init_context(len(first), None, generator) for _ in range(depth - 1)]
        self.ctx = nn.ParameterList([first, *later])
        maps = [make_linear(text.dim, image.dim, generator, device) for _ in range(min(depth, 2))]
        for _ in range(depth - 2):  # the authors' later maps all begin as one
            copy = nn.Linear(text.dim, image.dim, device=device)
            copy.load_state_dict(maps[1].state_dict())
            maps.append(copy)
        self.projections = nn.ModuleList(maps)

    def precompute(self, names: Names) -> list[str]:
        return fill_class_texts(self.context_template, names, len(self.ctx[0]))

    def prepare(self, names: Names, fixed: list[str]) -> Tensor:
        return self.clip.text(fixed, Prompt(tokens={i: c[None] for i, c in enumerate(self.ctx)}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        tokens = map_per_layer(self.projections, torch.stack(list(self.ctx)))[:, None]  # (J, 1, P, D)
        image = self.clip.image(inputs, Prompt(tokens=dict(enumerate(tokens))))  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)
