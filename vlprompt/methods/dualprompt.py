"""DualPrompt: Wang et al., ECCV 2022, arXiv:2204.04799.

The paper is "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning". General prompts that every
lesson trains, and an expert prompt of each lesson with a key; a test image takes the expert whose key is nearest to its
frozen feature. Sites: prefixes of the image tower at the general and the expert layers, or soft tokens there.
Use: streams.

Differs from the authors' JAX code in: the expert of a test image is its own choice everywhere (a vote over the test
batch on CIFAR-100, which leaks the task; see l2p); prompts and keys start between -1 and 1 as in the PyTorch port
(theirs between 0 and 0.01: init_range=(0, 0.01), from where keys need fewer steps to reach their images); as many
experts as lessons, so that their number need not be known; past experts and keys can't be changed by weight decay. From
the port in: keys and values are not mixed up by a reshape. With prompt_type="tokens" the tokens of a layer replace
those of the layer before, where the authors' add to them. CODA-Prompt's version has layer_specific_keys=True and
pull_weight=batch size (a sum over the batch), and counts keys and values together in a length.

Expected (class-incremental, ViT-B/16 of IN-21k, final accuracy and forgetting): Split CIFAR-100 of 10 86.51, 5.16 (with
the vote); Split ImageNet-R of 10, expert_length=20 68.13, 4.68 (the paper). With every prompt off CIFAR-100 has 70.24
(issue 35 of the authors' repository).
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.head import Head, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import Output, TowerMethod
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import cosine_similarity
from vlprompt.layers.initial_values import draw_uniform


class DualPrompt(TowerMethod[VisionTower]):
    """General prompts and expert prompts.

    Args:
        tower, head: frozen image tower, and what maps its features to class logits.
        general_length, expert_length: of the keys and again of the values (0: none).
        general_layers, expert_layers: where they are inserted, clipped to the tower's layers.
        pool_size: experts in a pool chosen by keys in training too; None: one of each lesson, frozen after it.
        pull_weight: of the cosine between an image and its key.
        prompt_type: "prefix" or "tokens".
        layer_specific_keys: whether each layer has a key and a choice.
        init_from_previous: whether an expert starts as the previous one.
        init_range: lowest and highest initial value of prompts and keys.
    """

    def __init__(self, tower: VisionTower, head: Head, general_length: int = 5, expert_length: int = 5,
                 general_layers: tuple[int, ...] = (0, 1), expert_layers: tuple[int, ...] = (2, 3, 4),
                 pool_size: int | None = None, pull_weight: float = 1.0,
                 prompt_type: Literal["prefix", "tokens"] = "prefix", layer_specific_keys: bool = False,
                 init_from_previous: bool = True, init_range: tuple[float, float] = (-1.0, 1.0)):  # fmt: skip
        super().__init__()
        self.tower, self.head, self.general_length, self.expert_length = tower, head, general_length, expert_length
        self.general_layers, self.expert_layers, self.pool_size = tuple(general_layers), tuple(expert_layers), pool_size
        self.pull_weight, self.prompt_type, self.layer_specific_keys = pull_weight, prompt_type, layer_specific_keys
        self.init_from_previous, self.init_range = init_from_previous, init_range

    def validate(self, lesson: Lesson) -> None:
        """Check that the settings agree with each other and with the stream; ValueError if not."""
        lengths = f"method.general_length={self.general_length} and method.expert_length={self.expert_length}"
        if self.expert_length and self.pool_size is None and not lesson.has_task_boundaries:
            raise ValueError(
                "dualprompt: expected a stream with lesson boundaries, for an expert of each lesson, got a stream "
                "without them. Set method.pool_size, for example 10."
            )
        if self.prompt_type == "tokens" and 0 < self.general_length != self.expert_length > 0:
            raise ValueError(
                "method.prompt_type=tokens: expected equal lengths of general and expert tokens, which replace each "
                f"other, got {lengths}. Make them equal, or one of them 0."
            )
        layers = self.general_layers * bool(self.general_length) + self.expert_layers * bool(self.expert_length)
        if repeated := [i for i in layers if layers.count(i) > 1]:
            raise ValueError(
                f"method.general_layers, method.expert_layers: expected each layer once, got layer {repeated[0]} "
                "twice. Leave it out of one of them."
            )

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        bounds = {} if self.pool_size is None else {"pool_size": 1}
        self.require_at_least(general_length=0, expert_length=0, pull_weight=0, **bounds)
        self.validate(lesson)
        if self.general_length or self.expert_length:
            self.tower.require_blocks()
        super().begin_lesson(lesson, generator)
        if self.expert_length and not (lesson.index and self.pool_size is not None):
            self.add_expert(generator)

    def build(self, generator: torch.Generator) -> None:
        self.n_tensors = 2 if self.prompt_type == "prefix" else 1  # keys and values, or tokens
        settings, depth = {"general_layers": self.general_length, "expert_layers": self.expert_length}, self.tower.depth
        self.prompt_layers = [self.clip_layers(name, depth) if length else [] for name, length in settings.items()]
        self.expert_prompts, self.keys = nn.ParameterList(), nn.ParameterList()
        if self.general_length:
            shape = len(self.prompt_layers[0]), self.n_tensors, self.general_length, self.tower.dim
            self.general_prompts = nn.Parameter(self._draw(generator, *shape))

    def _draw(self, generator: torch.Generator, *shape: int) -> Tensor:
        return draw_uniform(shape, *self.init_range, generator).to(self.tower.device)

    def add_expert(self, generator: torch.Generator) -> None:
        """Add experts (M, layers, 2, P, D) and their keys (M, layers or 1, E), and freeze the earlier ones."""
        n_layers, n_experts = len(self.prompt_layers[1]), self.pool_size or 1
        experts = self._draw(generator, n_experts, n_layers, self.n_tensors, self.expert_length, self.tower.dim)
        keys = self._draw(generator, n_experts, n_layers if self.layer_specific_keys else 1, self.tower.feature_dim)
        if self.init_from_previous and len(self.expert_prompts):
            experts = self.expert_prompts[-1].detach().clone()
        for params, added in ((self.expert_prompts, experts), (self.keys, keys)):
            params.requires_grad_(False)
            params.append(nn.Parameter(added))

    def select_experts(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the expert (B, layers or 1) of images (B, E), and return the cosines (B, layers or 1, M) too."""
        keys = torch.cat(list(self.keys))  # (M, layers or 1, E)
        similarity = torch.stack([cosine_similarity(query, layer_keys) for layer_keys in keys.unbind(1)], 1)
        chosen = similarity.detach().argmax(-1)
        if self.training and self.pool_size is None:
            chosen = torch.full_like(chosen, len(keys) - 1)  # the lesson's own
        return chosen, similarity

    def to_prompt_entry(self, prompts: Tensor) -> KV | Tensor:
        """(R, 2, P, D) as keys and values (R, H, P, Dh); (R, 1, P, D) as tokens."""
        if self.prompt_type == "tokens":
            return prompts[:, 0]
        keys, values = rearrange(prompts, "r kv p (h d) -> kv r h p d", h=self.tower.n_heads)
        return keys, values

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Prepared]) -> Output:
        general, penalty, usage, predicted = self.general_prompts if self.general_length else (), 0.0, None, None
        entries = {i: self.to_prompt_entry(p[None]) for i, p in zip(self.prompt_layers[0], general, strict=True)}
        if self.expert_length:
            chosen, similarity = self.select_experts(self.tower(inputs))  # the query is from the feature cache
            experts, layers = torch.cat(list(self.expert_prompts)), self.prompt_layers[1]
            per_layer = chosen.expand(-1, len(layers))  # (B, layers)
            entries |= {i: self.to_prompt_entry(experts[per_layer[:, l], l]) for l, i in enumerate(layers)}
            penalty = -self.pull_weight * similarity.gather(2, chosen[..., None])[..., 0].sum(1).mean()
            usage = torch.zeros_like(similarity).scatter_(2, chosen[..., None], 1.0).mean(1)  # (B, M)
            if self.pool_size is None and not self.layer_specific_keys and len(self.expert_prompts) > 1:
                predicted = chosen[:, 0]
        prompt = Prompt(prefix=entries) if self.prompt_type == "prefix" else Prompt(tokens=entries)  # type: ignore[arg-type]
        image = self.tower(inputs, prompt)
        return Output(self.head(image, prepared[1]), penalty, image, prompt_usage=usage, predicted_lesson=predicted)
