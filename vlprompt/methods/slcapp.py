"""SLCA++: Zhang et al., 2024, arXiv:2408.08295.

The paper is "SLCA++: Unleash the Power of Sequential Fine-tuning for Continual Learning with Pre-training". As SLCA,
but the stream trains low-rank updates of the packed queries, keys and values, the norms, the biases and the class
token (by a shift at pre_norm), each slower than the head; the loss has a cross-entropy from the labels to the answer
too; and features of earlier classes are drawn a little shorter, and answered a little longer, for each lesson that has
passed. Sites: pre_norm, norm, patch and, per layer, norm1 q k v out norm2 up down. Use: streams.

Differs from the authors' code in: the norm behind the last block is the pre-trained one (theirs: a new one); biases and
the class token are shifts, which weight decay pulls to the pre-trained values (theirs: to zero); the updates of the
MLP, which theirs makes and never trains, are left out; the signs of the singular vectors are fixed; each group's
cosine ends at the same fraction of its rate (theirs: at one rate for all); the lesson of a class is the one it came in,
and a class that comes again belongs to the later lesson, as in slca. From the paper in: the same.

Its state has what is trained of the tower, 1.1 MB on a ViT-B/16, and that of slca for each class, 2.4 MB there.

Expected (ViT-B/16 of IN-21k, average and final accuracy): CIFAR-100 of 10 lessons 94.20 91.46 (a survey's table).
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output, ParamGroup
from vlprompt.core.prompt import AdapterFn, Prompt
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import BiasAdapter, NormAdapter
from vlprompt.methods._slow_learner import SlowLearner

UPDATE_SCALE = 0.8  # of the low-rank updates


class _PackedUpdate(nn.Module):
    """A low-rank update and a shift of the packed queries, keys and values of a layer: (3 D, D) and (3 D,).

    down has the first right singular vectors of the frozen weight, up starts at zero.
    """

    def __init__(self, tower: VisionTower, layer: int, rank: int):
        super().__init__()
        maps = [tower.frozen_map(f"{layer}/{kind}") for kind in "qkv"]
        weight = torch.cat([m.weight.detach() for m in maps]).double()
        vectors = torch.linalg.eigh(weight.T @ weight).eigenvectors.flip(1).T[:rank]  # a third of the time of an svd
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        self.down = nn.Parameter((vectors * largest.sign()).float())
        width = sum(len(m.weight) for m in maps)
        self.up = nn.Parameter(self.down.new_zeros(width, len(vectors)))
        self.bias = None if maps[0].bias is None else nn.Parameter(self.down.new_zeros(width))

    def change(self, part: int, given: Tensor, made: Tensor) -> Tensor:
        """Change one of the three parts."""
        update = UPDATE_SCALE * (given @ self.down.T @ self.up.chunk(3)[part].T)
        return made + update if self.bias is None else made + update + self.bias.chunk(3)[part]


class SLCApp(SlowLearner):
    """A slowly trained part of an image tower, with aligned linear heads.

    Args:
        tower: frozen image tower.
        rank: of the low-rank updates.
        tower_lr_factor: the learning rate of what is trained of the tower over that of the heads.
        first_rank_lr_factor: that of the low-rank updates in the first lesson.
        label_weight: of the cross-entropy to the labels.
        reverse_weight: of that from the labels to the answer.
        growth: by which the features are scaled for each lesson that has passed since a class came.
        draws_per_class: features that are drawn of each class in an epoch of the alignment.
        alignment_epochs: epochs of the alignment.
        alignment_lr: its learning rate.
        alignment_weight_decay: its weight decay.
        temperature: of the normalised logits in the alignment's loss.
    """

    def __init__(
        self,
        tower: VisionTower,
        rank: int = 4,
        tower_lr_factor: float = 0.1,
        first_rank_lr_factor: float = 0.5,
        label_weight: float = 1.0,
        reverse_weight: float = 0.1,
        growth: float = 0.02,
        draws_per_class: int = 256,
        alignment_epochs: int = 5,
        alignment_lr: float = 0.01,
        alignment_weight_decay: float = 5e-4,
        temperature: float = 0.1,
    ):
        super().__init__(tower, draws_per_class, alignment_epochs, alignment_lr, alignment_weight_decay, temperature)
        self.rank, self.tower_lr_factor, self.first_rank_lr_factor = rank, tower_lr_factor, first_rank_lr_factor
        self.label_weight, self.reverse_weight, self.growth = label_weight, reverse_weight, growth

    def build(self) -> None:
        names = ("tower_lr_factor", "first_rank_lr_factor", "label_weight", "reverse_weight", "growth")
        self.require_at_least(rank=1, **dict.fromkeys(names, 0))
        tower = self.tower
        self.updates = nn.ModuleList(_PackedUpdate(tower, i, self.rank) for i in range(tower.depth))
        has_pre_norm = "pre_norm" in tower.sites()
        norms = tower.sites("norm1", "norm2", "norm", *(["pre_norm"] if has_pre_norm else []))
        self.norms = nn.ModuleDict({site: NormAdapter(tower.frozen_map(site)) for site in norms})
        maps = {site: width for site, (_, width) in tower.sites("patch", "out", "up", "down").items()}
        with_bias = {site: width for site, width in maps.items() if tower.frozen_map(site).bias is not None}
        self.shifts = nn.ModuleDict({site: BiasAdapter(width, tower.device) for site, width in with_bias.items()})
        has_token = tower.n_special_tokens > 0
        self.class_token = nn.Parameter(torch.zeros(tower.dim, device=tower.device)) if has_token else None

    def encode(self, inputs: Images) -> Tensor:
        adapters: dict[str, AdapterFn] = {
            f"{i}/{kind}": partial(cast(_PackedUpdate, update).change, part)
            for i, update in enumerate(self.updates)
            for part, kind in enumerate("qkv")
        }
        adapters |= {**dict(self.norms.items()), **dict(self.shifts.items())}
        if self.class_token is not None:
            adapters["pre_norm"] = partial(self._shift_class_token, adapters.get("pre_norm"))
        return self.tower(inputs, Prompt(adapters=adapters))

    def _shift_class_token(self, norm: AdapterFn | None, given: Tensor, made: Tensor) -> Tensor:
        shift = F.pad(cast(Tensor, self.class_token)[None], (0, 0, 0, given.shape[1] - 1))  # (N, D)
        return made + shift if norm is None else norm(given + shift, made)

    def loss_terms(self, batch: Batch, fixed: Tensor) -> tuple[LossTerms, Output]:
        """Return the cross-entropies to the labels, and from them to the answer, with 1e-4 for a label of 0."""
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        logits, labels, n = out.logits.float(), batch.labels.to(out.logits.device), len(batch.labels)
        p = logits.softmax(1).clamp(1e-7, 1)
        reverse = -(p * F.one_hot(labels, p.shape[1]).clamp(1e-4, 1).log()).sum(1).mean()
        cross_entropy = F.cross_entropy(logits, labels)
        return {"ce": (self.label_weight * cross_entropy, n), "reverse_ce": (self.reverse_weight * reverse, n)}, out

    def scale_draws(self, features: Tensor, age: Tensor, noise: Tensor) -> Tensor:
        return features / (1 + (self.growth + 0.02 * (noise - 0.5)) * age)[:, None]

    def scale_answer(self, age: Tensor) -> Tensor:
        return 1 + self.growth * age[:, None]

    def param_groups(self) -> list[ParamGroup]:
        """Return the updates, the rest of the tower and the head; all of it has the training's weight decay."""
        low_rank = [getattr(update, name) for update in self.updates for name in ("down", "up")]
        known = {id(p) for p in (*low_rank, self.weight, self.bias)}
        return [
            {"params": low_rank, "lr_factor": self.tower_lr_factor if self.lesson_index else self.first_rank_lr_factor},
            {"params": [p for p in self.parameters() if id(p) not in known], "lr_factor": self.tower_lr_factor},
            {"params": [self.weight, self.bias]},
        ]
