"""RAPF: Huang et al., "Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter Fusion".

ECCV 2024, arXiv:2407.14143. One linear map of the frozen image feature is trained through the stream, against the
texts of all classes so far. Features of earlier classes are drawn from their Gaussians: of a few at each step, and of
those whose text is near a new one, which must stay nearer to their own. After a lesson the map is fused with that
before it, in the basis of the earlier one. Sites: none; features are computed once. Use: streams.

Differs from the authors' code in: replayed classes are drawn anew at each step (theirs: a shuffled list whose use hangs
on the number of batches); underscores in names are spaces; float32; a class that comes again is new in that lesson. As
there, the map starts random, so that the first lesson learns CLIP's alignment anew. From the paper in: not compared.
Its state has 4 E^2 + 4 E + 4 bytes a class (E = 512: 1.05 MB), and two maps of 4 E^2.

Expected (ViT-B/16, CIFAR-100 in 10 lessons of 10, average / last): 86.87 / 79.26; LibContinual's run 85.97 / 78.85.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_gaussians import ClassGaussians, GaussianSampler
from vlprompt.layers.class_texts import encode_class_texts
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods import _support as support
from vlprompt.methods._alignment import compute_features
from vlprompt.runtime.seeding import make_generator

MARGIN = 0.1  # by which a drawn feature is nearer to its own text than to a new one; their setting of it is not read


class _Replay(NamedTuple):
    """Texts (C, E) of all classes; rows (k,) of earlier ones, (P, 2) of an earlier and a new one with near texts."""

    text: Tensor
    earlier: Tensor
    pairs: Tensor
    sampler: GaussianSampler


class RAPF(Method):
    """A linear map of the image feature, with drawn features of earlier classes and fused after each lesson.

    Args:
        clip: frozen CLIP.
        start: of the map: "random", as the authors', or "identity".
        n_replay_classes: earlier classes that are drawn at each step.
        draws_per_class: features of each of them (10 beta).
        draws_per_pair: features of the earlier class of each near pair.
        threshold: distance of unit texts below which a pair is near.
        mix_bias: least share of what was learned in the fusion (b).
        shrinkage: whether covariances are shrunk when features are drawn.
        template: of the class texts.
    """

    needs_single_labels = needs_whole_batch = True  # the mean is over the batch and what is drawn for it
    earlier_weight: Tensor

    def __init__(
        self,
        clip: Clip,
        start: Literal["random", "identity"] = "random",
        n_replay_classes: int = 2,
        draws_per_class: int = 20,
        draws_per_pair: int = 40,
        threshold: float = 0.55,
        mix_bias: float = 0.6,
        shrinkage: bool = False,
        template: str | None = "a good photo of a {name}.",
    ):
        super().__init__()
        self.clip, self.start, self.n_replay_classes, self.threshold = clip, start, n_replay_classes, threshold
        self.draws_per_class, self.draws_per_pair, self.mix_bias = draws_per_class, draws_per_pair, mix_bias
        self.shrinkage, self.template, self.gaussians = shrinkage, template, ClassGaussians("covariance")

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(n_replay_classes=0, draws_per_class=1, draws_per_pair=1, threshold=0, mix_bias=0)
        dim, device, names = self.clip.feature_dim, self.clip.device, lesson.train.names
        if not lesson.index:
            drawn = make_linear(dim, dim, generator, device, bias=False).weight.data
            self.weight = nn.Parameter(drawn if self.start == "random" else torch.eye(dim, device=device))
        self.names = support.extend_names(self.names if lesson.index else (), names)
        self.gaussians.begin_lesson(names, not lesson.index, dim, device)
        self.register_buffer("earlier_weight", self.weight.detach().clone())
        self.new_rows = support.find_rows(self.names, names, device)[sorted(set(lesson.train.labels))]
        self.draw_seed, self.replay = support.draw_seed(generator), None

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template)  # (C, E)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = F.linear(self.clip.image(inputs), self.weight)  # (B, E)
        return Output(self.clip.logits(image, prepared), image_features=image, text_features=prepared)

    def build_replay(self) -> _Replay:
        """Collect what the training on a lesson reads of all classes so far."""
        with torch.no_grad(), torch.autocast(self.clip.device.type, enabled=False):
            text = self.precompute(self.names)
            rows, unit = (self.gaussians.counts[:, 0] > 0).nonzero()[:, 0], self.clip.unit(text)
            earlier = rows[~torch.isin(rows, self.new_rows)]
            old, new = (torch.cdist(unit[earlier], unit[self.new_rows]) < self.threshold).nonzero(as_tuple=True)
        pairs = torch.stack([earlier[old], self.new_rows[new]], 1)
        return _Replay(text, earlier, pairs, GaussianSampler(self.gaussians, self.shrinkage))

    def draw(self, replay: _Replay, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw rows (k,) of earlier classes, noise (k, n, E) for them, and noise (P, m, E) for the near pairs."""
        generator, dim, device = make_generator(self.draw_seed, "replay", step), len(self.weight), replay.text.device
        order = torch.randperm(len(replay.earlier), generator=generator)[: self.n_replay_classes]
        noise = torch.randn(len(order), self.draws_per_class, dim, generator=generator)
        pair_noise = torch.randn(len(replay.pairs), self.draws_per_pair, dim, generator=generator)
        return replay.earlier[order.to(device)], noise.to(device), pair_noise.to(device)

    def loss_terms(self, batch: Batch, fixed: Tensor) -> tuple[LossTerms, Output]:
        replay = self.replay = self.replay or self.build_replay()
        rows, noise, pair_noise = self.draw(replay, batch.step)
        new_rows = support.find_rows(self.names, batch.names, rows.device)[batch.labels.to(rows.device)]
        labels = torch.cat([new_rows, rows.repeat_interleave(noise.shape[1])])
        x = torch.cat([self.clip.image(batch.inputs), replay.sampler.draw(rows, noise)])
        logits = self.clip.logits(F.linear(x, self.weight), replay.text)
        terms: LossTerms = {"ce": (F.cross_entropy(logits.float(), labels), len(labels))}
        if len(replay.pairs):
            drawn = F.linear(replay.sampler.draw(replay.pairs[:, 0], pair_noise), self.weight).float()
            text = self.clip.unit(replay.text)[replay.pairs.repeat_interleave(pair_noise.shape[1], 0)]  # (P m, 2, E)
            own, other = (self.clip.unit(drawn)[:, None] * text).sum(-1).unbind(1)
            terms["pairs"] = F.relu(other - own + MARGIN).mean(), len(drawn)
        return terms, Output(logits[: len(batch.labels)])

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Fuse the map with that before the lesson, and add the statistics of the lesson's classes."""
        self.replay = None  # its factors are as large as the statistics
        if lesson.index:
            self.weight.copy_(fuse(self.earlier_weight, self.weight, self.mix_bias))
        if len(lesson.train):
            self.gaussians.add(*compute_features(self.clip.image, lesson.train), lesson.train.names)


def fuse(earlier: Tensor, learned: Tensor, bias: float) -> Tensor:
    """Mix two maps (E, E) in the basis of the earlier one: the more an entry changed, the more of its change stays."""
    basis, values, rows = torch.linalg.svd(earlier.double())
    new, old = basis.T @ learned.double(), values[:, None] * rows
    change = (new - old).abs()
    share = (change / change.max().clamp(min=1e-300) + bias).clamp(max=1)
    return (basis @ torch.lerp(old, new, share)).to(learned.dtype)
