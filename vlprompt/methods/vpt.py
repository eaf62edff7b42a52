"""VPT: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119.

Learned tokens among the patches of a frozen image tower, at its first layer (shallow) or at every layer (deep); a
reader makes answers of the feature: a linear head as in the paper, or the class texts of a CLIP. Sites: soft tokens of
the image tower at layer 0 or at all layers.

Differs from the authors' code in: the tokens have no projection. From the paper in: nothing.

Expected (base-to-new with class texts, ViT-B/16, 16 shots, mean of 11 sets): base 80.24, new 73.43, harmonic mean 76.68
(the MaPLe paper's ablation, deep image prompts).
"""

import math
from typing import Any

import torch
from torch import nn

from vlprompt.method import Method, Output
from vlprompt.prompt import Prompt
from vlprompt.readers import Reader, Texts
from vlprompt.stage import Images, Lesson
from vlprompt.tower import Tower


class VPT(Method):
    """Tokens in an image tower, and any reader.

    tower: a ViT; reader: Texts (a CLIP's class texts) or Linear; n_tokens: a layer; deep: at every layer; dropout: on
    the tokens, another mask for each image.
    """

    side_by_side = 128  # measured: twice as quick at batches of 4, half as quick at 64, where one setting fills the CPU

    def __init__(self, tower: Tower, reader: Reader, n_tokens: int = 10, deep: bool = True, dropout: float = 0.1):
        super().__init__()
        self.tower, self.reader, self.n_tokens, self.deep = tower, reader, n_tokens, deep
        self.dropout, self.drop = dropout, nn.Dropout(dropout)

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.reader.begin(lesson, generator, self.tower.width, self.tower.device)
        if lesson.index:
            return
        self.at_least(n_tokens=1)
        dim, depth = self.tower.dim, self.tower.depth if self.deep else 1
        bound = math.sqrt(6 / (3 * getattr(self.tower, "patch", 16) ** 2 + dim))  # Xavier's, of the patch map
        tokens = (torch.rand(max(depth, 1), 1, self.n_tokens, dim, generator=generator) * 2 - 1) * bound
        self.tokens = nn.Parameter(tokens.to(self.tower.device))  # (layers, 1, P, D)

    def forward(self, inputs: Images, prepared: Any) -> Output:
        tokens = self.drop(self.tokens.expand(-1, len(inputs), -1, -1)) if self.training else self.tokens
        image = self.tower(inputs, Prompt(tokens=dict(enumerate(tokens))))  # (B, E)
        text = prepared if isinstance(self.reader, Texts) else None  # (C, E)
        return Output(self.reader(image, prepared), image=image, text=text)
