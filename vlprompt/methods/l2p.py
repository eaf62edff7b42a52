"""L2P: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv:2112.08654.

A pool of prompts, each with a key; an image takes the prompts whose keys are nearest to its frozen feature, which pulls
these keys towards itself. Sites: soft tokens of the image tower at layer 0, another set per image.

The published code chooses for a whole batch, by the most votes, at test too. That is not built: the images of a test
batch are all of one task there, so that the vote leaks which one, and an answer would depend on its neighbours.

Differs from the authors' JAX code in: the choice is made per image; no masks over the pool by the lesson's number, and
no copies of an earlier lesson's prompts; the head starts as the reader says (at zero there). It trains with top=4,
length=10 and pull=1 where the paper has 5, 5 and 0.5, and has no choice by frequency (frequency=True: the paper's Eq.
4). The PyTorch port: positions=True, init=(-1, 1), pull=0.1. A CLIP's norm before its first block enlarges tokens as
small as the initial ones, so that each step turns them far: take init=(-1, 1) there. From the paper in: with
frequency=True, prompts that cost the same (all of them in the first lesson, later those never chosen) go by the nearer
key.

Expected (class-incremental, ViT-B/16 of IN-21k, final accuracy and forgetting): Split CIFAR-100 of 10 83.83, 7.63;
5-datasets 81.14, 4.64; CORe50 78.33, with the whole tower trained (Tables 1 and 3 of the paper). All with the vote.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import cosines, uniform
from vlprompt.layers.heads import Texts


class L2P(OnTower):
    """A pool of prompts chosen by keys.

    size: prompts in the pool (M); length: tokens of each; top: how many an image takes (N; 0: none, the prompts are
    off and the head reads the class token); pull: weight of the cosine between an image and its keys; read: the mean
    over the "prompts" as they leave the tower, or the class "token"; frequency: in training prompts cost more the more
    often earlier lessons chose them; positions: tokens get the position of the class token; init: least and greatest
    initial value of tokens and keys.
    """

    counted = ("counts",)
    counts: Tensor
    often: Tensor

    def __init__(self, tower: VisionTower, reader: Reader, size: int = 10, length: int = 5, top: int = 5,
                 pull: float = 0.5, read: Literal["prompts", "token"] = "prompts", frequency: bool = False,
                 positions: bool = False, init: tuple[float, float] = (0.0, 0.01)):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.size, self.length, self.top, self.pull = tower, reader, size, length, top, pull
        self.read, self.frequency, self.positions, self.init = read, frequency, positions, init

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(size=1, length=1, top=0, pull=0)
        if self.top > self.size:
            raise ValueError(f"a pool of {self.size} prompts can't give {self.top}: set method.top or method.size")
        rows = self.top and self.read == "prompts"
        if rows and isinstance(self.reader, Texts):
            raise ValueError(
                "class texts are compared with the tower's feature, not with the prompts' mean: set method.read=token"
            )
        if self.top:
            self.tower.sites("patch")  # a tower without blocks says so
        self.reader.begin(lesson, generator, self.tower.dim if rows else self.tower.width, self.tower.device)
        if not lesson.index and self.top:
            self.build(generator)
        if lesson.index and self.top and self.frequency:
            self.often.copy_(self.counts / self.counts.sum().clamp(min=1))

    def build(self, generator: torch.Generator) -> None:
        if self.positions and not (self.tower.special and len(self.tower.positions)):
            raise ValueError("this tower has no class token with a position to give: set method.positions=false")
        device, draw = self.tower.device, lambda *shape: uniform(shape, *self.init, generator)
        self.pool = nn.Parameter(draw(self.size, self.length, self.tower.dim).to(device))  # (M, L, D)
        self.keys = nn.Parameter(draw(self.size, self.tower.width).to(device))  # (M, E)
        if self.frequency:
            for name in ("counts", "often"):  # choices so far; their shares when the lesson began
                self.register_buffer(name, torch.zeros(self.size, device=device))

    def choose(self, like: Tensor) -> Tensor:
        """The prompts (B, N) of images with these cosines (B, M) to the keys."""
        if not (self.frequency and self.training):
            return like.topk(self.top).indices
        near = torch.sort(like, dim=-1, descending=True, stable=True).indices
        cost = ((1 - like) * self.often).gather(1, near)
        chosen = near.gather(1, torch.sort(cost, dim=-1, stable=True).indices[:, : self.top])
        self.counts += torch.bincount(chosen.flatten(), minlength=self.size)
        return chosen

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Tensor]) -> Output:
        query = self.tower(inputs)  # (B, E), bare: from the feature store
        if not self.top:
            return Output(self.reader(query, prepared[1]), image=query)
        like = cosines(query, self.keys)
        chosen = self.choose(like.detach())
        tokens = self.pool[chosen].flatten(1, 2)  # (B, N * L, D)
        if self.positions:
            tokens = tokens + self.tower.positions[0]
        prompt = Prompt(tokens={0: tokens})
        if self.read == "prompts":
            image = self.tower(inputs, prompt, read="prompts").mean(1)  # (B, D)
        else:
            image = self.tower(inputs, prompt)
        used = torch.zeros_like(like).scatter_(1, chosen, 1 / self.top)
        pulled = like.gather(1, chosen).sum(1).mean()
        return Output(self.reader(image, prepared[1]), -self.pull * pulled, image, used=used)
