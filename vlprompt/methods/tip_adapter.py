"""Tip-Adapter: Zhang et al., "Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2207.09519.

The few training images are a cache: their features are keys, their labels values, and what a test image finds there is
added to the zero-shot logits. Nothing is trained; with finetune=True (Tip-Adapter-F) the keys are. Sites: none.

Differs from the authors' code in: alpha and beta are searched on the lesson's validation images, never on the test; the
last epoch is kept (theirs keeps the epoch that is best on the test: issue 11 of their repository). From the paper in: a
class that the cache does not have answers by its text.

Expected (few-shot, RN50, mean of 11 sets, 1 2 4 8 16 shots, the authors' log): 62.33 64.62 66.54 68.50 70.32; with
finetune=True 64.60 66.65 69.67 72.45 75.83, selected on the test.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import hold
from vlprompt.layers.class_texts import Template, hand

Fixed = tuple[Tensor, Tensor]


class TipAdapter(Method):
    """A cache of the training images beside zero-shot CLIP.

    alpha: weight of what the cache says; beta: how sharply it looks; finetune: train the keys; views: augmented views
    that a key is the mean of (1 where the data is not augmented); search: greatest beta and alpha of the grid of 200 x
    20 that is searched on validation images after training, None for no search; scale: of the text logits, None for the
    CLIP's own; template: the class texts, default the dataset's own.
    """

    keys: Tensor
    values: Tensor
    chosen: Tensor

    def __init__(
        self,
        clip: Clip,
        alpha: float = 1.0,
        beta: float = 1.0,
        finetune: bool = False,
        views: int = 10,
        search: tuple[float, float] | None = (7.0, 3.0),
        scale: float | None = None,
        template: Template = None,
    ):
        super().__init__()
        self.clip, self.alpha, self.beta, self.finetune, self.views = clip, alpha, beta, finetune, views
        self.search, self.scale, self.template = search, scale, template
        self.ids: Names = ()

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(views=1)
        train, device = lesson.train, self.clip.device
        known = self.ids if lesson.index else ()
        self.ids = (*known, *(i for i in ids(train.names) if i not in known))
        seed = int(torch.randint(2**31, (), generator=generator))
        found, labels = torch.zeros(0, self.clip.width, device=device), torch.zeros(0, dtype=torch.long)
        if len(train):
            found, labels = self._keys(train, seed), torch.tensor(train.labels)
        places = torch.tensor([self.ids.index(i) for i in ids(train.names)])[labels].to(device)
        old = (self.keys.detach(), self.values) if lesson.index else (found[:0], places[:0])
        hold(self, "keys", torch.cat([old[0], found]), self.finetune)  # (M, E)
        self.register_buffer("values", torch.cat([old[1], places]))  # (M,): a place in self.ids
        self.register_buffer("chosen", torch.tensor([self.alpha, self.beta], device=device))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *how: Any, **more: Any) -> None:
        """The number of keys is what the state says, for one that goes on with a run too."""
        for held, name in ((self.keys, "keys"), (self.values, "values")):
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                held.data = held.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *how, **more)

    def _keys(self, train: Split, seed: int) -> Tensor:
        """The mean of several views' un-normalised features, normalised (M, E)."""
        views = 1 if train.augment == "none" else self.views
        every = [train.batches(256, seed=seed, epoch=k, shuffle=False) for k in range(views)]
        return self.clip.unit(sum(torch.cat([self.clip.image(b.inputs) for b in batches]) for batches in every))  # type: ignore[arg-type]

    def fixed(self, names: Names) -> Fixed:
        text = hand(self.clip, names, self.template, unit=True)  # (C, E)
        place = {i: k for k, i in enumerate(ids(names))}
        columns = torch.tensor([place.get(i, len(names)) for i in self.ids], device=text.device)
        return text, F.one_hot(columns[self.values], len(names) + 1)[:, :-1].to(text.dtype)  # (M, C)

    def forward(self, inputs: Images, prepared: Fixed) -> Output:
        text, values = prepared
        image = self.clip.image(inputs)  # (B, E)
        alpha, beta = self.chosen
        near = (-beta * (1 - self.clip.unit(image) @ self.keys.T)).exp() @ values  # (B, C)
        return Output(self.clip.logits(image, text, self.scale) + alpha * near, image=image, text=text)

    @torch.no_grad()
    def end(self, lesson: Lesson) -> None:
        """Choose alpha and beta on the validation images; the first of equally good ones."""
        if self.search is None or lesson.val is None or not len(lesson.val):
            return
        text, values = self.fixed(lesson.val.names)
        image = self.clip.unit(torch.cat([self.clip.image(b.inputs) for b in lesson.val.batches(256)]))
        plain, like = self.clip.logits(image, text, self.scale), image @ self.keys.T
        labels, best = torch.tensor(lesson.val.labels, device=image.device), -1.0
        betas, alphas = (torch.linspace(0.1, top, n + 1)[:-1] for top, n in zip(self.search, (200, 20), strict=True))
        for beta in betas.tolist():
            near = (-beta * (1 - like)).exp() @ values
            for alpha in alphas.tolist():
                right = float(((plain + alpha * near).argmax(1) == labels).float().mean())
                if right > best:
                    best, self.chosen[:] = right, torch.tensor([alpha, beta])
