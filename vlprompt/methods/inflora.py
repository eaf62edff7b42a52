"""InfLoRA: Liang and Li, CVPR 2024, arXiv:2404.00228.

The paper is "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning". Before a lesson the first factor
of its low-rank update is designed: the leading directions of the layer's inputs, outside of those that earlier lessons
took. Only the second factor is trained. After the lesson the directions that hold most of the energy of its inputs
are taken. Sites: k and v of every layer of the image tower; merged into the weights for tests. Use: streams.

Differs from the authors' code in: finished updates are added up in one matrix, exactly; the memory is one projector
onto the directions that are free (there a basis of what was taken, or of what is left from half the width on: the
same space, and theirs fails if the first lesson takes half); lessons of different sizes; a class that comes again
trains its row of the head on. As there, inputs are those of one augmented pass before and one after the training, and
the memory's threshold rises with the number of the lesson, which must be known. The k-means keys that the code
computes and never reads are left out. From the paper in: nothing.

Its state does not grow: 16 fan_in^2 bytes of each layer, 113 MB on a ViT-B/16, and 1.1 MB of the lesson's own update.

Expected (class-incremental, ViT-B/16 of IN-21k, final and average accuracy): CIFAR-100 86.51/91.70 (LibContinual's
table; reproduced there 87.09/91.37); ImageNet-R of 5, 10, 20 76.95/81.81, 74.75/80.67, 69.89/76.68 (SD-LoRA's table).
"""

import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import AdapterFn, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.methods._low_rank import LowRankUpdate, MatrixUpdate


class InfLoRA(TowerMethod[VisionTower]):
    """Low-rank updates whose inputs are directions that no earlier lesson took.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        rank: of a lesson's update.
        threshold: share of the energy of its inputs that the first lesson takes (lamb).
        final_threshold: towards which the share rises, lesson by lesson (lame).
        batch_size: images at once of the passes that collect inputs.
    """

    is_mergeable = True
    free: Tensor
    down: Tensor
    finished: Tensor

    def __init__(self, tower: VisionTower, head: Head, rank: int = 10, threshold: float = 0.95,
                 final_threshold: float = 1.0, batch_size: int = 128):  # fmt: skip
        super().__init__()
        self.tower, self.head, self.rank, self.batch_size = tower, head, rank, batch_size
        self.threshold, self.final_threshold = threshold, final_threshold

    def validate(self, lesson: Lesson) -> None:
        """Check that the settings fit the tower and the stream; ValueError if not."""
        self.tower.require_blocks()
        self.require_at_least(rank=1, threshold=0, batch_size=1)
        self.require_at_most(rank=self.tower.dim, final_threshold=1, threshold=self.final_threshold)
        if lesson.total is None or not lesson.has_task_boundaries:
            raise ValueError(
                "inflora: expected a known number of lessons, whose images are read before and after the training, "
                "got a stream without. Use l2p, or dualprompt with method.pool_size."
            )

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        self.validate(lesson)
        super().begin_lesson(lesson, generator)
        self.seed = int(torch.randint(2**31, (), generator=generator))
        if lesson.index:
            self.finished += self.up.detach() @ self.down[:, None]
            self.up = nn.Parameter(torch.zeros_like(self.up))
        if len(lesson.train):
            self.design(self.collect_moments(lesson), lesson.index)

    def build(self, generator: Generator) -> None:
        depth, d, device = self.tower.depth, self.tower.dim, self.tower.device
        self.up = nn.Parameter(torch.zeros(depth, 2, d, self.rank, device=device))  # of k and v
        self.register_buffer("down", torch.zeros(depth, self.rank, d, device=device))  # of both
        self.register_buffer("finished", torch.zeros(depth, 2, d, d, device=device))
        self.register_buffer("free", torch.eye(d, dtype=torch.float64, device=device).repeat(depth, 1, 1))  # projectors

    def prompt(self, n: int) -> Prompt:
        return self.inject(map(MatrixUpdate, (self.finished + self.up @ self.down[:, None]).flatten(0, 1)))

    def inject(self, updates: Iterable[AdapterFn]) -> Prompt:
        """Put the updates of k and v of each layer, one after the other, where they belong."""
        sites = [f"{layer}/{kind}" for layer in range(self.tower.depth) for kind in "kv"]
        return Prompt(adapters=dict(zip(sites, updates, strict=True)))

    def compute_features(self, inputs: Images, tower: VisionTower) -> Tensor:
        if tower is not self.tower:
            return super().compute_features(inputs, tower)
        finished = tower.merged(self.inject(map(MatrixUpdate, self.finished.flatten(0, 1))))
        updates = self.inject(map(LowRankUpdate, self.down.repeat_interleave(2, 0), self.up.flatten(0, 1).unbind()))
        return finished(self.prepare_inputs(inputs), updates, output=self.head.output)

    @torch.no_grad()
    def collect_moments(self, lesson: Lesson) -> Tensor:
        """Compute X^T X (layers, D, D) of the inputs X of k and v, the rows of all tokens, over the lesson's images."""
        tower, moments = self.tower.merged(self.prompt(1)), torch.zeros_like(self.free)

        def record(moment: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
            rows = inputs.flatten(0, 1)
            moment += (rows.T @ rows).double()
            return outputs

        recorders = Prompt(adapters={f"{i}/k": partial(record, moment) for i, moment in enumerate(moments)})
        for batch in lesson.train.batches(self.batch_size, seed=self.seed, shuffle=False):
            tower(batch.inputs, recorders)
        return moments / len(lesson.train)

    def find_directions(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Find the left singular vectors (layers, D, D) of F C, as columns, and their shares (layers, D) of |C|^2.

        F are the free directions and C the moments; both are in descending order of the shares.
        """
        projected = self.free @ moments
        values, vectors = torch.linalg.eigh(projected @ projected.mT)
        energy = moments.square().sum((1, 2)).clamp(min=1e-300)
        return vectors.flip(-1), values.flip(-1).clamp(min=0) / energy[:, None]

    def design(self, moments: Tensor, index: int) -> None:
        """Set the first factors to the leading free directions."""
        directions, _ = self.find_directions(moments)
        self.down.copy_((self.free @ directions[..., : self.rank]).mT / 3**0.5)
        n_free = round(float(self.free.diagonal(dim1=1, dim2=2).sum(1).min()))
        if n_free < self.rank:
            warnings.warn(
                f"inflora: lesson {index + 1} has {n_free} free directions in a layer for an update of rank "
                f"{self.rank}, so that less of it is trained. Lower method.threshold.",
                stacklevel=3,
            )

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Take the directions that hold most of the energy of the lesson's inputs."""
        rise = (self.final_threshold - self.threshold) * lesson.index / (lesson.total or 1)
        directions, shares = self.find_directions(self.collect_moments(lesson))
        for free, vectors, share in zip(self.free, directions, shares, strict=True):
            before = 1 - share.sum() + share.cumsum(0) - share  # what is taken before each direction
            n = int((before < self.threshold + rise).sum())
            if not lesson.index:  # there the direction that reaches the threshold stays free
                n = max(1, int((share.cumsum(0) < self.threshold).sum()))
            free -= vectors[:, :n] @ vectors[:, :n].T
