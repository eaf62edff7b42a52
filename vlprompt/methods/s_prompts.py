"""S-Prompts: Wang et al., NeurIPS 2022, arXiv:2207.12819.

The paper is "S-Prompts Learning with Pre-trained Transformers: An Occam's Razor for Domain Incremental Learning". Each
lesson has separate tokens and a head, trained apart from all others; a test image goes to the lesson that has the
nearest of a few k-means centres of frozen features. Sites: soft tokens of the image tower at layer 0, another set per
image. Use: streams.

Differs from the authors' code in: only the image side of it (their S-iPrompts; with head=texts the class texts of a
CLIP stay frozen, where S-liPrompts learns a text prompt for each lesson too); one weight decay for all lessons; streams
of new classes too, there an image is offered to the lessons that know a class asked for, and the classes of the others
can't win. As there, centres are of unit features, and near is the sum of the absolute differences. From the paper in:
the same.

Expected: no published number that was checked.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.head import Fixed, Head, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import Output, TowerMethod
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.methods._lesson_checks import require_no_rehearsal, require_task_boundaries


class _LessonCandidates(NamedTuple):
    """The number of names; of each lesson: its index, each name's column (c: none), c names, the head's constants."""

    n_names: int
    lessons: list[tuple[int, Tensor, Names, Fixed]]


class SPrompts(TowerMethod[VisionTower]):
    """Tokens and a head of each lesson, selected by the nearest centroid.

    Args:
        tower: frozen image tower.
        head: cloned for each lesson.
        prompt_length: number of tokens (0: none, the heads read the frozen feature).
        n_centroids: k-means centres of each lesson (k).
    """

    centroids: Tensor

    def __init__(self, tower: VisionTower, head: Head, prompt_length: int = 10, n_centroids: int = 5):
        super().__init__()
        self.tower, self.head, self.prompt_length, self.n_centroids = tower, head, prompt_length, n_centroids

    def validate(self, lesson: Lesson) -> None:
        """Check that the settings, the tower and the stream fit; ValueError if not."""
        self.require_at_least(prompt_length=0, n_centroids=1)
        require_no_rehearsal(lesson, "s_prompts", "each lesson is learned apart")
        if self.prompt_length:
            self.tower.require_blocks()
        require_task_boundaries(lesson, "s_prompts", "for prompts of each lesson")

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.validate(lesson)
        if not lesson.index:
            self.tokens, self.lesson_heads = nn.ParameterList(), nn.ModuleList()
            self.lesson_class_ids = list[Sequence[str]]()
        self.requires_grad_(False)
        head = self.head.clone_untrained()
        head.begin_lesson(replace(lesson, index=0), generator, self.tower.feature_dim, self.tower.device)
        self.lesson_heads.append(head)
        if self.prompt_length:
            bound = 1 / math.sqrt(self.tower.dim)
            tokens = draw_uniform((self.prompt_length, self.tower.dim), -bound, bound, generator)
            self.tokens.append(nn.Parameter(tokens.to(self.tower.device)))  # (P, D)
        self.lesson_class_ids.append(class_ids(lesson.train.names))
        seed = int(torch.randint(2**31, (), generator=generator))
        earlier = [self.centroids] if lesson.index else []
        centroids = self.cluster_features(lesson.train, seed)[None]
        self.register_buffer("centroids", torch.cat([*earlier, centroids]))  # (T, k, E)

    def cluster_features(self, train: Split, seed: int) -> Tensor:
        """Compute the k-means centres (k, E) of the unit features, repeated where there are fewer images."""
        if not len(train):
            return torch.zeros(self.n_centroids, self.tower.feature_dim, device=self.tower.device)
        from sklearn.cluster import KMeans

        features = torch.cat([Clip.unit(self.tower(batch.inputs)) for batch in train.batches(256)]).cpu().double()
        k = min(self.n_centroids, len(features.unique(dim=0)))
        model = KMeans(k, n_init=10, random_state=seed)  # type: ignore[arg-type]
        centres = torch.from_numpy(model.fit(features.numpy()).cluster_centers_)
        return centres[torch.arange(self.n_centroids) % k].to(self.tower.device, torch.float32)

    def get_lesson_head(self, lesson: int) -> Head:
        return cast(Head, self.lesson_heads[lesson])

    def precompute(self, names: Names) -> _LessonCandidates:
        wanted, known = class_ids(names), {i for ids in self.lesson_class_ids for i in ids}
        indices = [d for d, ids in enumerate(self.lesson_class_ids) if not set(ids).isdisjoint(wanted)]
        lessons = []
        for d in indices or range(len(self.lesson_class_ids)):
            columns = [c for c, i in enumerate(wanted) if i in self.lesson_class_ids[d] or i not in known]
            head_names = tuple(names[c] for c in columns)
            constants = self.get_lesson_head(d).precompute(head_names)
            positions = torch.full((len(wanted),), len(columns))
            positions[columns] = torch.arange(len(columns))
            lessons.append((d, positions.to(self.tower.device), head_names, constants))
        return _LessonCandidates(len(names), lessons)

    def prepare(self, names: Names, fixed: _LessonCandidates) -> tuple[int, list[tuple[int, Tensor, Prepared]]]:
        last = len(self.lesson_heads) - 1
        lessons = [lesson for lesson in fixed.lessons if lesson[0] == last] if self.training else fixed.lessons
        return fixed.n_names, [
            (d, positions, self.get_lesson_head(d).prepare(head_names, constants))
            for d, positions, head_names, constants in lessons
        ]

    def forward(self, inputs: Images, prepared: tuple[int, list[tuple[int, Tensor, Prepared]]]) -> Output:
        n_names, lessons = prepared
        indices = torch.tensor([d for d, *_ in lessons], device=self.tower.device)
        query = Clip.unit(self.tower(inputs))
        distances = torch.cdist(query, rearrange(self.centroids[indices], "t k e -> (t k) e"), p=1.0)
        lesson = indices[distances.argmin(1) // self.n_centroids]  # (B,)
        prompt, n_lessons = NOTHING, len(self.lesson_heads)
        if self.prompt_length:
            tokens = torch.stack(list(self.tokens))  # (T, P, D)
            prompt = Prompt(tokens={0: tokens[lesson] if len(lessons) > 1 else tokens[indices]})
        image = self.tower(inputs, prompt)  # (B, E)
        logits = torch.full((image.shape[0], n_names), -math.inf, device=image.device)
        for d, positions, head_input in lessons:
            scores = self.get_lesson_head(d)(image, head_input).to(logits.dtype)  # of all rows: a trace has no others
            scores = nn.functional.pad(scores, (0, 1), value=-math.inf)[:, positions]
            logits = torch.where((lesson == d)[:, None], scores, logits)
        usage = nn.functional.one_hot(lesson, n_lessons).float()
        predicted = lesson if n_lessons > 1 else None
        return Output(logits, image_features=image, prompt_usage=usage, predicted_lesson=predicted)
