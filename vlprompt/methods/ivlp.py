"""IVLP: independent vision-language prompts; Rasheed et al., CVPR 2023, arXiv:2212.03640; the base of PromptSRC.

Learned tokens at the first layers of both towers, with nothing in common; with n_image=0 the deep text prompts, with
n_text=0 the deep image prompts that the MaPLe paper (arXiv:2210.03117) compares with. Sites: soft tokens at layers 0 to
depth - 1 of the text tower and of the image tower.

Differs from the authors' code in: `init` counts tokens, not words; float32. From the papers in: nothing.

Expected (base-to-new, ViT-B/16, 16 shots, mean of 11 sets): base 84.21, new 71.79, harmonic mean 77.51 (PromptSRC's
README); 82.15, 74.07, 77.90 with the MaPLe repository's settings.
"""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import Template, hand, holes


class IVLP(Method):
    """Tokens in both towers, or in one.

    n_text, n_image: tokens a layer, 0 for none; depth_text, depth_image: layers that have them, cut to the tower's;
    init: words that the first text layer starts from (None: N(0, 0.02), as all others); text: where context and name
    stand; template: the texts where n_text is 0, default the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        n_text: int = 4,
        n_image: int = 4,
        depth_text: int = 9,
        depth_image: int = 9,
        init: str | None = "a photo of a",
        text: str = "{ctx} {name}.",
        template: Template = None,
    ):
        super().__init__()
        self.clip, self.n_text, self.n_image, self.init, self.text = clip, n_text, n_image, init, text
        self.depth_text, self.depth_image, self.template = depth_text, depth_image, template

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(n_text=0, n_image=0)
        if not self.n_text + self.n_image:
            raise ValueError("ivlp needs tokens in one tower at least: method.n_text or method.n_image above 0")
        if lesson.index:
            return
        text, image, self.ctx, self.tokens = self.clip.text, self.clip.image, nn.ParameterList(), nn.ParameterList()
        for i in range(self.within("depth_text", text.depth) if self.n_text else 0):
            self.ctx.append(text.context(self.n_text, None if i else self.init, generator))  # (P, D)
        for _ in range(self.within("depth_image", image.depth) if self.n_image else 0):
            tokens = torch.randn(self.n_image, image.dim, generator=generator) * 0.02
            self.tokens.append(tokens.to(image.device))  # (P, D)

    def fixed(self, names: Names) -> Tensor | list[str]:
        return holes(self.text, names, self.n_text) if self.n_text else hand(self.clip, names, self.template)

    def prepare(self, names: Names, fixed: Tensor | list[str]) -> Tensor:
        if isinstance(fixed, Tensor):
            return fixed
        return self.clip.text(fixed, Prompt(tokens={i: c[None] for i, c in enumerate(self.ctx)}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs, Prompt(tokens={i: t[None] for i, t in enumerate(self.tokens)}))  # (B, E)
        return Output(self.clip.logits(image, prepared), image=image, text=prepared)
