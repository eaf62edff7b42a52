"""IVLP: independent vision-language prompts; Rasheed et al., CVPR 2023, arXiv:2212.03640; the base of PromptSRC.

Learned, independent tokens at the first layers of both towers; with n_image_tokens=0 the deep text prompts, with
n_text_tokens=0 the deep image prompts that the MaPLe paper (arXiv:2210.03117) compares with. Sites: soft tokens
at layers 0 to depth - 1 of the text tower and of the image tower.

Differs from the authors' code in: `init_text` counts tokens, not words; float32. From the papers in: nothing.

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
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts, fill_class_texts


class IVLP(Method):
    """Independent tokens in both towers, or in one.

    Args:
        clip: frozen CLIP.
        n_text_tokens, n_image_tokens: tokens at each layer, 0 for none.
        depth_text, depth_image: number of layers that have them, clipped to the tower's depth.
        init_text: words that the first text layer starts from; None: N(0, 0.02), as all others.
        context_template: where context and class name stand.
        template: of the class texts where n_text_tokens is 0; default the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        n_text_tokens: int = 4,
        n_image_tokens: int = 4,
        depth_text: int = 9,
        depth_image: int = 9,
        init_text: str | None = "a photo of a",
        context_template: str = "{ctx} {name}.",
        template: TemplateChoice = None,
    ):
        super().__init__()
        self.clip, self.n_text_tokens, self.n_image_tokens = clip, n_text_tokens, n_image_tokens
        self.depth_text, self.depth_image, self.init_text = depth_text, depth_image, init_text
        self.context_template, self.template = context_template, template

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_text_tokens=0, n_image_tokens=0)
        if not self.n_text_tokens + self.n_image_tokens:
            raise ValueError(
                "ivlp: expected tokens in at least one tower, got 0 in both. Set method.n_text_tokens or "
                "method.n_image_tokens above 0."
            )
        if lesson.index:
            return
        text, image = self.clip.text, self.clip.image
        for tower, n_tokens in ((text, self.n_text_tokens), (image, self.n_image_tokens)):
            if n_tokens:
                tower.require_blocks()
        self.ctx, self.image_tokens = nn.ParameterList(), nn.ParameterList()
        for i in range(self.clip_to_depth("depth_text", text.depth) if self.n_text_tokens else 0):
            self.ctx.append(text.init_context(self.n_text_tokens, None if i else self.init_text, generator))  # (P, D)
        for _ in range(self.clip_to_depth("depth_image", image.depth) if self.n_image_tokens else 0):
            tokens = torch.randn(self.n_image_tokens, image.dim, generator=generator) * 0.02
            self.image_tokens.append(tokens.to(image.device))  # (P, D)

    def precompute(self, names: Names) -> Tensor | list[str]:
        if self.n_text_tokens:
            return fill_class_texts(self.context_template, names, self.n_text_tokens)
        return encode_class_texts(self.clip, names, self.template)

    def prepare(self, names: Names, fixed: Tensor | list[str]) -> Tensor:
        if isinstance(fixed, Tensor):
            return fixed
        return self.clip.text(fixed, Prompt(tokens={i: c[None] for i, c in enumerate(self.ctx)}))[0]  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs, Prompt(tokens={i: t[None] for i, t in enumerate(self.image_tokens)}))  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)
