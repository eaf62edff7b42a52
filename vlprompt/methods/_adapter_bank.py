"""One set of AdaptFormer's bottlenecks per lesson, chosen for each image, as EASE, MOS and TUNA store them."""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Split
from vlprompt.core.method import Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.adapters import ParallelBottleneck
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._lesson_checks import require_no_rehearsal, require_task_boundaries


class BottleneckWeights(NamedTuple):
    """Weights of the bottlenecks of T sets at one site, for r hidden units: (T, r, D), (T, r), (T, D, r) and (T, D)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


StackedSets = Mapping[str, BottleneckWeights]  # by site


class AdapterBank(nn.Module):
    """Sets of bottlenecks parallel to the MLPs of an image tower, one for each lesson; the newest alone is trained.

    Each lesson adds 4 (2 D r + D + r) bytes a layer: 4.8 MB to a ViT-B/16 for 64 hidden units, 1.2 MB for 16.

    Args:
        tower: the frozen tower.
        bottleneck_dim: hidden units of a bottleneck (r).
        scale: factor of what the bottlenecks add.
        dropout: of hidden units, in training.
    """

    def __init__(self, tower: VisionTower, bottleneck_dim: int, scale: float, dropout: float):
        super().__init__()
        self.tower, self.bottleneck_dim, self.scale, self.dropout = tower, bottleneck_dim, scale, dropout
        self.sets = nn.ModuleList()

    def __len__(self) -> int:
        return len(self.sets)

    def add_set(self, generator: torch.Generator, copies_newest: bool = False) -> None:
        """Freeze the sets so far and add one, which begins as nothing, or as a copy of the newest."""
        self.requires_grad_(False)
        options = (self.bottleneck_dim, nn.ReLU(), None, self.dropout, generator, self.tower.device)
        sites = self.tower.sites("mlp+")
        added = nn.ModuleDict({site: ParallelBottleneck(self.scale, d, *options) for site, (_, d) in sites.items()})
        if copies_newest and len(self):
            added.load_state_dict(self.sets[-1].state_dict())
        self.sets.append(added)

    def get_prompt(self, index: int) -> Prompt:
        """Return the prompt of one set for all images."""
        return Prompt(adapters=cast(nn.ModuleDict, self.sets[index]))

    def compute_features(self, index: int, train: Split) -> tuple[Tensor, Tensor]:
        """Compute the features (N, E) of a lesson's images with one set, and return them with their labels (N,)."""
        self.eval()
        return compute_features(lambda inputs: self.tower(inputs, self.get_prompt(index)), train)

    def stack(self) -> StackedSets:
        """Return the weights of all sets, without gradient."""
        return {
            site: BottleneckWeights(
                torch.stack([part.down.weight.detach() for part in parts]),
                torch.stack([part.down.bias.detach() for part in parts]),
                torch.stack([part.up.weight.detach() for part in parts]),
                torch.stack([part.up.bias.detach() for part in parts]),
            )
            for site, parts in self._list_parts()
        }

    def _list_parts(self) -> list[tuple[str, list[ParallelBottleneck]]]:
        """Return the bottlenecks of all sets at each site."""
        sets = [cast(nn.ModuleDict, one) for one in self.sets]
        return [(site, [cast(ParallelBottleneck, one[site]) for one in sets]) for site in self.tower.sites("mlp+")]

    def select(self, stacked: StackedSets, rows: Tensor) -> Prompt:
        """Return the prompt that takes for each image the set whose index `rows` (B,) has; (1,): one for all.

        A batch of several sets costs one pass.
        """

        def make_adapter(weights: BottleneckWeights):
            down, down_bias, up, up_bias = (w[rows] for w in weights)

            def adapt(inputs: Tensor, outputs: Tensor) -> Tensor:
                hidden = (inputs @ down.mT + down_bias[:, None]).relu()
                return outputs + self.scale * (hidden @ up.mT + up_bias[:, None])

            return adapt

        return Prompt(adapters={site: make_adapter(weights) for site, weights in stacked.items()})

    def fuse(self) -> Prompt:
        """Return the prompt of one set for all images: the largest values of all sets that have the mean's sign."""
        fused = {site: BottleneckWeights(*map(_fuse, weights)) for site, weights in self.stack().items()}
        return self.select(fused, torch.zeros(1, dtype=torch.long, device=self.tower.device))

    def compute_overlap(self) -> Tensor:
        """Compute how much the newest set's `up` overlaps with the others', as in TUNA.

        The mean over layers of |mean(U V^T)|, summed over the others, for U and V (D, r) with rows of unit length. That
        mean is the product of the mean rows.
        """
        means = [torch.stack([Clip.unit(part.up.weight).mean(0) for part in parts]) for _, parts in self._list_parts()]
        rows = torch.stack(means, 1)  # (T, layers, r)
        return (rows[:-1] * rows[-1]).sum(-1).abs().mean(1).sum()

    @torch.no_grad()
    def merge_newest(self, momentum: float) -> None:
        """Move the newest set by a fraction towards the mean of the others."""
        *earlier, newest = (list(one.parameters()) for one in self.sets)
        for p, *others in zip(newest, *earlier, strict=True):
            p.lerp_(torch.stack(others).mean(0), momentum)


def _fuse(weights: Tensor) -> Tensor:
    """(T, ...) -> (1, ...)."""
    sign = torch.where(weights.mean(0, keepdim=True) > 0, 1.0, -1.0)
    return sign * (sign * weights).clamp(min=0).amax(0, keepdim=True)


def build_output(logits: Tensor, image: Tensor, chosen: Tensor, n_lessons: int) -> Output:
    """Return an answer with the lesson (B,) whose adapters each image has."""
    usage = F.one_hot(chosen, n_lessons).float()
    predicted = chosen if n_lessons > 1 else None
    return Output(logits, image_features=image, prompt_usage=usage, predicted_lesson=predicted)


def validate_stream(name: str, tower: VisionTower, lesson: Lesson) -> None:
    """Check that a tower takes adapters, and that a stream has lessons apart from each other; ValueError if not."""
    tower.require_blocks()
    require_no_rehearsal(lesson, name, "the adapters of a lesson learn its classes alone")
    require_task_boundaries(lesson, name, "for adapters of each lesson")
