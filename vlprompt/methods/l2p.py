"""L2P: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv:2112.08654.

A pool of prompts, each with a key; an image takes the prompts whose keys are nearest to its frozen feature, which pulls
these keys towards itself. Sites: soft tokens of the image tower at layer 0, another set per image. Use: streams.

The published code chooses for a whole batch, by majority vote, at test too. That is not implemented: the images of a
test batch are all of one task there, so that the vote leaks which one, and an answer would depend on its batch.

Differs from the authors' JAX code in: the choice is made per image; no masks over the pool by the lesson's number, and
no copies of an earlier lesson's prompts; the head starts at its own initial values (at zero there). It trains with
top_k=4, prompt_length=10 and pull_weight=1 where the paper has 5, 5 and 0.5, and has no choice by frequency
(penalize_frequency=True: the paper's Eq. 4). The PyTorch port: add_position_embedding=True, init_range=(-1, 1),
pull_weight=0.1. A CLIP's norm before its first block enlarges tokens as small as the initial ones, so that each step
turns them far: take init_range=(-1, 1) there. From the paper in: with penalize_frequency=True, prompts that cost the
same (all of them in the first lesson, later those never chosen) go by the nearer key.

Expected (class-incremental, ViT-B/16 of IN-21k, final accuracy and forgetting): Split CIFAR-100 of 10 83.83, 7.63;
5-datasets 81.14, 4.64; CORe50 78.33, with the whole tower trained (Tables 1 and 3 of the paper). All with the vote.
"""

from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.core.method import Output, TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import cosine_similarity
from vlprompt.layers.heads import TextHead
from vlprompt.layers.initial_values import draw_uniform


class L2P(TowerMethod[VisionTower]):
    """A pool of prompts selected by keys.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        pool_size: prompts in the pool (M).
        prompt_length: tokens of each prompt (L).
        top_k: prompts of an image (N in the paper; 0: none, the head reads the class token).
        pull_weight: of the cosine between an image and its keys.
        output: mean of the "prompts" as they leave the tower, or "pooled" (the class token).
        penalize_frequency: whether training prefers prompts that earlier lessons selected less often.
        add_position_embedding: whether tokens get the position embedding of the class token.
        init_range: lowest and highest initial value of tokens and keys.
    """

    accumulating_buffers = ("selection_counts",)
    selection_counts: Tensor
    selection_frequencies: Tensor  # when the lesson began

    def __init__(
        self,
        tower: VisionTower,
        head: Head,
        pool_size: int = 10,
        prompt_length: int = 5,
        top_k: int = 5,
        pull_weight: float = 0.5,
        output: Literal["prompts", "pooled"] = "prompts",
        penalize_frequency: bool = False,
        add_position_embedding: bool = False,
        init_range: tuple[float, float] = (0.0, 0.01),
    ):
        super().__init__()
        self.tower, self.head, self.pool_size, self.prompt_length = tower, head, pool_size, prompt_length
        self.top_k, self.pull_weight, self.output = top_k, pull_weight, output
        self.penalize_frequency, self.add_position_embedding = penalize_frequency, add_position_embedding
        self.init_range = init_range

    def validate(self) -> None:
        """Check that the settings agree with each other, the head and the tower; ValueError if not."""
        self.require_at_least(pool_size=1, prompt_length=1, top_k=0, pull_weight=0)
        if self.top_k > self.pool_size:
            raise ValueError(
                f"method.top_k: expected at most {self.pool_size} (method.pool_size), got {self.top_k}. Lower "
                "method.top_k or raise method.pool_size."
            )
        if self.top_k and self.output == "prompts" and isinstance(self.head, TextHead):
            raise ValueError(
                "method.output: expected 'pooled' for a head of class texts, which need the tower's feature, got "
                "'prompts'. Set method.output=pooled."
            )
        if self.top_k:
            self.tower.require_blocks()

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.validate()
        feature_dim = self.tower.dim if self.top_k and self.output == "prompts" else self.tower.feature_dim
        self.head.begin_lesson(lesson, generator, feature_dim, self.tower.device)
        if not lesson.index and self.top_k:
            self.build(generator)
        if lesson.index and self.top_k and self.penalize_frequency:
            self.selection_frequencies.copy_(self.selection_counts / self.selection_counts.sum().clamp(min=1))

    def build(self, generator: torch.Generator) -> None:
        if self.add_position_embedding and not (self.tower.n_special_tokens and len(self.tower.position_embeddings)):
            raise ValueError(
                "method.add_position_embedding: expected false, because this tower has no class token with a position "
                "embedding. Set method.add_position_embedding=false."
            )
        device, draw = self.tower.device, partial(draw_uniform, generator=generator)
        low, high = self.init_range
        self.pool = nn.Parameter(draw((self.pool_size, self.prompt_length, self.tower.dim), low, high).to(device))
        self.keys = nn.Parameter(draw((self.pool_size, self.tower.feature_dim), low, high).to(device))  # (M, E)
        if self.penalize_frequency:
            self.register_buffer("selection_counts", torch.zeros(self.pool_size, device=device))
            self.register_buffer("selection_frequencies", torch.zeros(self.pool_size, device=device))

    def select_prompts(self, similarity: Tensor) -> Tensor:
        """Select the prompts (B, N) of images with these cosines (B, M) to the keys."""
        if not (self.penalize_frequency and self.training):
            return similarity.topk(self.top_k).indices
        nearest = torch.sort(similarity, dim=-1, descending=True, stable=True).indices
        costs = ((1 - similarity) * self.selection_frequencies).gather(1, nearest)
        chosen = nearest.gather(1, torch.sort(costs, dim=-1, stable=True).indices[:, : self.top_k])
        self.selection_counts += torch.bincount(chosen.flatten(), minlength=self.pool_size)
        return chosen

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Tensor]) -> Output:
        query = self.tower(inputs)  # (B, E), without a prompt: from the feature cache
        if not self.top_k:
            return Output(self.head(query, prepared[1]), image_features=query)
        similarity = cosine_similarity(query, self.keys)
        chosen = self.select_prompts(similarity.detach())
        tokens = rearrange(self.pool[chosen], "b n l d -> b (n l) d")
        if self.add_position_embedding:
            tokens = tokens + self.tower.position_embeddings[0]
        image = self.tower(inputs, Prompt(tokens={0: tokens}), output=self.output)
        if self.output == "prompts":
            image = image.mean(1)  # (B, D)
        usage = torch.zeros_like(similarity).scatter_(1, chosen, 1 / self.top_k)
        pull = similarity.gather(1, chosen).sum(1).mean()
        return Output(self.head(image, prepared[1]), -self.pull_weight * pull, image, prompt_usage=usage)
