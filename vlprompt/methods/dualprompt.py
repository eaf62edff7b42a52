"""DualPrompt: Wang et al., ECCV 2022, arXiv:2204.04799.

The paper is "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning". General prompts that
every lesson trains, and an expert prompt of each lesson with a key; a test image takes the expert whose key is nearest
to its frozen feature. Sites: prefixes of the image tower at the general and the expert layers, or soft tokens there
(form="prompt").

Differs from the authors' JAX code in: the expert of a test image is its own choice everywhere (a vote over the test
batch on CIFAR-100, which leaks the task; see l2p); prompts and keys start between -1 and 1 as in the PyTorch port
(theirs between 0 and 0.01: init=(0, 0.01), from where keys need fewer steps to reach their images); as many experts as
lessons, so that their number need not be known; past experts and keys can't be changed by weight decay. From the port
in: keys and values are not mixed up by a reshape. In the prompt form the tokens of a layer replace those of the layer
before, where the authors' add to them. CODA-Prompt's version has own_keys=True and pull=batch size (a sum over the
batch), and counts keys and values together in a length.

Expected (class-incremental, ViT-B/16 of IN-21k, final accuracy and forgetting): Split CIFAR-100 of 10 86.51, 5.16 (with
the vote); Split ImageNet-R of 10, expert=20 68.13, 4.68 (the paper). With every prompt off CIFAR-100 has 70.24 (issue
35 of the authors' repository).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower, Output
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import cosines, uniform
from vlprompt.layers.attention import heads


class DualPrompt(OnTower):
    """General prompts and expert prompts.

    general, expert: lengths, of the keys and again of the values (0: none); general_layers, expert_layers: where, cut
    to the tower's; size: None for an expert for each lesson, frozen when the next begins, or a pool of so many, chosen
    by the keys in training too, for streams that don't tell where a lesson ends; pull: weight of the cosine between an
    image and its key; form: "prefix", or "prompt" for tokens; own_keys: a key, and a choice, for each layer; inherit: a
    new expert begins as the one before; init: least and greatest initial value of prompts and keys.
    """

    def __init__(self, tower: VisionTower, reader: Reader, general: int = 5, expert: int = 5,
                 general_layers: tuple[int, ...] = (0, 1), expert_layers: tuple[int, ...] = (2, 3, 4),
                 size: int | None = None, pull: float = 1.0, form: Literal["prefix", "prompt"] = "prefix",
                 own_keys: bool = False, inherit: bool = True, init: tuple[float, float] = (-1.0, 1.0)):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.general, self.expert = tower, reader, general, expert
        self.general_layers, self.expert_layers, self.size = tuple(general_layers), tuple(expert_layers), size
        self.pull, self.form, self.own_keys, self.inherit, self.init = pull, form, own_keys, inherit, init

    def layers(self, setting: str) -> list[int]:
        """The layers of a setting that the tower has; what was cut is told in the result."""
        wanted, depth = getattr(self, setting), self.tower.depth
        found = [i for i in wanted if 0 <= i < depth]
        if not found or min(wanted) < 0:
            raise ValueError(f"method.{setting}={list(wanted)}, but the tower has layers 0 to {depth - 1}; give some")
        if len(found) < len(wanted):
            self.cuts = {**self.cuts, setting: f"{list(wanted)} cut to {found}, all that the tower has"}
        return found

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(general=0, expert=0, pull=0, **({} if self.size is None else {"size": 1}))
        if self.expert and self.size is None and not lesson.announced:
            raise ValueError(
                "this stream does not say where a lesson ends, so there can't be an expert for each: set method.size, "
                "for example 10, for a pool of experts chosen by their keys"
            )
        if self.form == "prompt" and self.general and self.expert and self.general != self.expert:
            raise ValueError(
                f"in the prompt form tokens replace each other, so method.general={self.general} and "
                f"method.expert={self.expert} must be equal, or one of them 0"
            )
        named = self.general_layers * bool(self.general) + self.expert_layers * bool(self.expert)
        if len(set(named)) < len(named):
            raise ValueError("a layer is named twice in method.general_layers and method.expert_layers: once is enough")
        if self.general or self.expert:
            self.tower.sites("patch")  # a tower without blocks says so
        super().begin(lesson, generator)
        if self.expert:
            self.grow(lesson, generator)

    def build(self, generator: torch.Generator) -> None:
        self.places = [self.layers(f"{kind}_layers") if getattr(self, kind) else [] for kind in ("general", "expert")]
        self.experts, self.keys = nn.ParameterList(), nn.ParameterList()
        if self.general:
            self.shared = nn.Parameter(self.draw(generator, len(self.places[0]), self.form_size, self.general))

    @property
    def form_size(self) -> int:
        return 2 if self.form == "prefix" else 1  # keys and values, or tokens

    def draw(self, generator: torch.Generator, *shape: int, width: int | None = None) -> Tensor:
        shape = *shape, width or self.tower.dim
        return uniform(shape, *self.init, generator).to(self.tower.device)

    def grow(self, lesson: Lesson, generator: torch.Generator) -> None:
        """The experts (M, layers, 2, P, D) and keys (M, layers or 1, E) that this lesson brings."""
        if lesson.index and self.size is not None:
            return
        layers, many = len(self.places[1]), self.size or 1
        expert = self.draw(generator, many, layers, self.form_size, self.expert)
        keys = self.draw(generator, many, layers if self.own_keys else 1, width=self.tower.width)
        if self.inherit and len(self.experts):
            expert = self.experts[-1].detach().clone()
        for held, new in ((self.experts, expert), (self.keys, keys)):
            held.requires_grad_(False)
            held.append(nn.Parameter(new))

    def chosen(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images (B, E): which expert (B, layers or 1), its cosine, and the cosines (B, layers or 1, M)."""
        keys = torch.cat(list(self.keys))  # (M, layers or 1, E)
        like = torch.stack([cosines(query, of_layer) for of_layer in keys.unbind(1)], 1)
        best = like.detach().argmax(-1)
        if self.training and self.size is None:
            best = torch.full_like(best, len(keys) - 1)  # the lesson's own
        return best, like.gather(2, best[..., None])[..., 0], like

    def into(self, prompts: Tensor) -> KV | Tensor:
        """(R, 2, P, D) as keys and values (R, H, P, Dh); (R, 1, P, D) as tokens."""
        if self.form == "prompt":
            return prompts[:, 0]
        return heads(prompts[:, 0], self.tower.heads), heads(prompts[:, 1], self.tower.heads)

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Any]) -> Output:
        told: dict[str, Any] = {}
        places = {
            i: self.into(p[None]) for i, p in zip(self.places[0], self.shared if self.general else (), strict=True)
        }
        if self.expert:
            best, near, like = self.chosen(self.tower(inputs))  # the query is from the feature store
            experts, layers = torch.cat(list(self.experts)), range(len(self.places[1]))
            each = best.expand(-1, len(layers))  # (B, layers)
            places |= {i: self.into(experts[each[:, l], l]) for i, l in zip(self.places[1], layers, strict=True)}
            used = torch.zeros_like(like).scatter_(2, best[..., None], 1.0).mean(1)  # (B, M)
            told = {"penalty": -self.pull * near.sum(1).mean(), "used": used}
            guesses = self.size is None and not self.own_keys and len(self.experts) > 1
            told["lesson"] = best[:, 0] if guesses else None
        prompt = Prompt(prefix=places) if self.form == "prefix" else Prompt(tokens=places)  # type: ignore[arg-type]
        image = self.tower(inputs, prompt)
        return Output(self.reader(image, prepared[1]), image=image, **told)
