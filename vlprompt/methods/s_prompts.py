"""S-Prompts: Wang et al., NeurIPS 2022, arXiv:2207.12819.

The paper is "S-Prompts Learning with Pre-trained Transformers: An Occam's Razor for Domain Incremental Learning". Each
lesson has tokens and a head of its own, trained apart from all others; a test image goes to the lesson that has the
nearest of a few k-means centres of frozen features. Sites: soft tokens of the image tower at layer 0, another set per
image.

Differs from the authors' code in: only the image side of it (their S-iPrompts; with reader=texts the class texts of a
CLIP stay frozen, where S-liPrompts learns a text prompt for each lesson too); one weight decay for all lessons; streams
of new classes too, there an image is offered to the lessons that know a class asked for, and the classes of the others
can't win. As there, centres are of unit features, and near is the sum of the absolute differences. From the paper in:
the same.

Expected: no published number that was checked.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, ids
from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower, Output
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.adapters import uniform


class _Asked(NamedTuple):
    """How many names are asked for; of each lesson that may answer: number, places, names, its head's part."""

    names: int
    lessons: list[tuple[int, Tensor, Names, Any]]


class SPrompts(OnTower):
    """Tokens and a head of each lesson's own.

    length: tokens (0: none, the heads read the bare feature); k: centres of a lesson.
    """

    centres: Tensor

    def __init__(self, tower: VisionTower, reader: Reader, length: int = 10, k: int = 5):
        super().__init__()
        self.tower, self.reader, self.length, self.k = tower, reader, length, k

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(length=0, k=1)
        if lesson.memory is not None and len(lesson.memory):
            raise ValueError("S-Prompts learns each lesson apart and rehearses nothing: leave task.buffer at 0")
        if self.length:
            self.tower.sites("patch")  # a tower without blocks says so
        if not lesson.announced:
            raise ValueError(
                "this stream does not say where a lesson ends, so there can't be prompts for each: take l2p, or "
                "dualprompt with method.size"
            )
        if not lesson.index:
            self.tokens, self.heads, self.met = nn.ParameterList(), nn.ModuleList(), list[Sequence[str]]()
        self.requires_grad_(False)
        head = self.reader.anew()
        head.begin(replace(lesson, index=0), generator, self.tower.width, self.tower.device)
        self.heads.append(head)
        bound = 1 / math.sqrt(self.tower.dim) if self.length else 0.0
        tokens = uniform((self.length, self.tower.dim), -bound, bound, generator)
        if self.length:
            self.tokens.append(nn.Parameter(tokens.to(self.tower.device)))  # (P, D)
        self.met.append(ids(lesson.train.names))
        seed = int(torch.randint(2**31, (), generator=generator))
        old = [self.centres] if lesson.index else []
        self.register_buffer("centres", torch.cat([*old, self.clustered(lesson.train, seed)[None]]))  # (T, k, E)

    def clustered(self, train: Split, seed: int) -> Tensor:
        """The k-means centres (k, E) of the unit features; of fewer images some are there several times."""
        if not len(train):
            return torch.zeros(self.k, self.tower.width, device=self.tower.device)
        from sklearn.cluster import KMeans

        found = torch.cat([Clip.unit(self.tower(batch.inputs)) for batch in train.batches(256)]).cpu().double()
        few = min(self.k, len(found.unique(dim=0)))
        model = KMeans(few, n_init=10, random_state=seed)  # type: ignore[arg-type]
        made = model.fit(found.numpy()).cluster_centers_
        rows = torch.arange(self.k) % few
        return torch.from_numpy(made)[rows].to(self.tower.device, torch.float32)

    def head(self, lesson: int) -> Reader:
        return cast(Reader, self.heads[lesson])

    def fixed(self, names: Names) -> _Asked:
        asked, known = ids(names), {i for met in self.met for i in met}
        may = [d for d, met in enumerate(self.met) if not known.isdisjoint(asked) and not set(met).isdisjoint(asked)]
        lessons = []
        for d in may or range(len(self.met)):
            mine = [c for c, i in enumerate(asked) if i in self.met[d] or i not in known]
            own = tuple(names[c] for c in mine)
            lessons.append((d, torch.tensor(mine, device=self.tower.device), own, self.head(d).fixed(own)))
        return _Asked(len(names), lessons)

    def prepare(self, names: Names, fixed: _Asked) -> tuple[int, list[tuple[int, Tensor, Any]]]:
        last = len(self.heads) - 1
        chosen = [of for of in fixed.lessons if of[0] == last] if self.training else fixed.lessons
        return fixed.names, [(d, places, self.head(d).prepare(own, part)) for d, places, own, part in chosen]

    def forward(self, inputs: Images, prepared: tuple[int, list[tuple[int, Tensor, Any]]]) -> Output:
        names, lessons = prepared
        numbers = torch.tensor([d for d, *_ in lessons], device=self.tower.device)
        far = torch.cdist(Clip.unit(self.tower(inputs)), self.centres[numbers].flatten(0, 1), p=1.0)  # (B, lessons * k)
        lesson = numbers[far.argmin(1) // self.k]  # (B,)
        prompt = NOTHING
        if self.length:
            every = torch.stack(list(self.tokens))  # (T, P, D)
            prompt = Prompt(tokens={0: every[lesson] if len(lessons) > 1 else every[numbers]})
        image = self.tower(inputs, prompt)  # (B, E)
        logits = torch.full((len(image), names), -math.inf, device=image.device)
        for d, places, part in lessons:
            rows = (lesson == d).nonzero()[:, 0]
            made = self.head(d)(image[rows], part)
            logits = logits.index_put((rows[:, None], places), made.to(logits.dtype))
        used, several = nn.functional.one_hot(lesson, len(self.heads)).float(), len(self.heads) > 1
        return Output(logits, image=image, used=used, lesson=lesson if several else None)
