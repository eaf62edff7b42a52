"""Method: a small Module that holds only what is trained, and says what goes into a tower and what comes out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.head import Reader
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import answered, other_reader
from vlprompt.core.towers import VisionTower


class Output(NamedTuple):
    """logits (B, C); penalty; and what the logits came from: image (B, E), text (C, E) or (B, C, E), un-normalised.

    used: of methods with a pool, the share (B, M) that each prompt has in an answer (rows add up to 1); lesson: of
    methods that guess it among several, the number (B,) of the lesson that an image is taken to belong to. target: what
    the rows of logits should be, (R,), where only the reader knows: of texts that are answered by text or word by word.
    silent: of methods that may find no answer, whether they found none (B,).
    """

    logits: Tensor
    penalty: Tensor | float = 0.0
    image: Tensor | None = None
    text: Tensor | None = None
    used: Tensor | None = None
    lesson: Tensor | None = None
    target: Tensor | None = None
    silent: Tensor | None = None


Terms = dict[str, tuple[Tensor, float]]  # name -> (mean, over how many rows)


class Method(nn.Module):
    """The constructor only stores its arguments, under their own names: they are the configuration.

    `dormant` names parameters that may have no gradient in a step (unselected prompts of a pool); `counted` buffers to
    which `terms` adds something for each image, the only ones that it may change. `side_by_side`: the
    images that a step may hold, of all settings that train together (train/side.py), for that to pay; 0 for never, a
    million for what trains on features alone. It promises that `fixed` needs nothing trained and that `terms` is torch
    operations whose shapes and branches depend on no value of a tensor; dropout and buffers changed in place are fine.
    """

    dormant: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    whole_batch: bool = False  # whether a step can't be made of micro-batches (batch norms)
    side_by_side: int = 0
    adapts: bool = False  # whether it learns from unlabelled images
    cuts: Mapping[str, str] = {}  # replaced, never written into

    def _reader(self) -> Reader | None:
        return self._modules.get("reader")  # type: ignore[return-value]  # a class attribute would hide the Module

    def at_least(self, **bounds: float) -> None:
        """ValueError for a setting below its bound."""
        for setting, bound in bounds.items():
            if (value := getattr(self, setting)) < bound:
                raise ValueError(f"method.{setting} must be at least {bound}, not {value}")

    def within(self, setting: str, most: int) -> int:
        """A setting that counts layers, cut to what the tower has; what was cut is told in the result."""
        self.at_least(**{setting: 1})
        wanted = getattr(self, setting)
        if wanted > most:
            self.cuts = {**self.cuts, setting: f"{wanted} cut to {most}, all that the tower has"}
        return min(wanted, most)

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        """For every lesson: initial values, heads, pools, caches. The optimizer is made after this.

        The first lesson (index 0) begins anew, whatever was learned before; later ones keep it and add to it.
        """

    def taught(self, lesson: Lesson) -> Lesson:
        """What it trains on of a lesson that it has begun: all of it, or what it makes of the unlabelled images."""
        return lesson

    def guess(self, inputs: Any, fixed: Any) -> tuple[Tensor, Tensor] | None:
        """What it takes unlabelled images to be: probabilities (B, C), and which (B,) it is sure of and learns from.

        None for a method without pseudo-labels.
        """
        return None

    def fixed(self, names: Names) -> Any:
        """Frozen texts, columns ...: once per list of names, without a gradient."""
        reader = self._reader()
        return None if reader is None else reader.fixed(names)

    def prepare(self, names: Names, fixed: Any) -> Any:
        """What needs no image: once per evaluation, at each step in training."""
        reader = self._reader()
        return fixed if reader is None else reader.prepare(names, fixed)

    def forward(self, inputs: Any, prepared: Any) -> Output:
        """The answer, and nothing that only training needs."""
        raise NotImplementedError(
            f"{type(self).__name__} says nothing about its answer: define forward(inputs, prepared)"
        )

    def terms(self, batch: Batch, fixed: Any) -> tuple[Terms, Output]:
        """The loss as named means with the rows they are over, so that micro-batches and devices add up exactly."""
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        right = batch.labels if out.target is None else out.target
        found: Terms = {"ce": (F.cross_entropy(out.logits.float(), right.to(out.logits.device)), len(right))}
        if isinstance(out.penalty, Tensor):
            found["penalty"] = out.penalty, len(batch.labels)
        return found, out

    def merge(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        """How the gradients of the terms join, one list per term in the order of parameters(): their sum."""
        return [g[0] if len(g) == 1 else torch.stack(g).sum(0) for g in zip(*grads.values(), strict=True)]

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, without what is frozen: it may have a gradient from an earlier lesson."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def end_step(self, step: int, steps: int) -> None:
        """After each step of the optimizer, the first of which is 1; its gradients are still there."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """After each epoch (averaging over epochs, for example); what it keeps are buffers."""

    def end(self, lesson: Lesson) -> None:
        """After training on a lesson (a search on validation, a ridge's choice)."""

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        """Ready with a saved state, without data: begin the lessons that made it, without their items, then load."""
        for lesson in lessons:
            self.begin(lesson.empty(), torch.Generator())
        self.load_state_dict(state)


class OnTower(Method):
    """A Method on one tower, of images or of texts, that a reader reads.

    `build` makes what is trained, `prompt` puts it in.

    merges: its parts are folded into the weights of an image tower for a test, so that it costs what the bare tower
    does.
    """

    tower: Any
    reader: Reader
    merges: bool = False

    def build(self, generator: torch.Generator) -> None:
        """Initial values of all but the reader, at the first lesson."""

    def prompt(self, images: int) -> Prompt:
        """What goes into the tower for so many images."""
        return NOTHING

    def features(self, inputs: Any, tower: Any) -> Tensor:
        """What the reader reads, (B, E) or (R, E); `tower` is the frozen one, perhaps with the parts in it."""
        prompt = NOTHING if tower is not self.tower else self.prompt(len(inputs))
        return tower(self.shown(inputs), prompt, read=self.reader.read)

    def shown(self, inputs: Any) -> Any:
        """The inputs as the tower sees them: as the reader wants them."""
        return self.reader.asked(inputs)

    def _fits(self, items: Sequence[Any]) -> None:
        """ValueError where the reader can't read how these items are answered."""
        kind, read = answered(items), self.reader.read
        if items and ((kind == "response") != (read == "response") or (kind == "tags" and read != "words")):
            raise ValueError(other_reader(kind))

    def write(self, inputs: Any, **settings: Any) -> list[str]:
        """What a language model writes for each of the passages; settings: those of transformers' `generate`."""
        return self.tower.generate(self.shown(inputs), self.prompt(len(inputs)), **settings)

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self._fits(lesson.train.items)  # said before it is trained
        self.reader.begin(lesson, generator, self.tower.width, self.tower.device)
        if not lesson.index:
            self.build(generator)
            if self.merges and isinstance(self.tower, VisionTower):
                self.tower.merged(self.prompt(1))  # what can't be folded is said before it is trained

    def prepare(self, names: Names, fixed: Any) -> Any:
        folds = (
            self.merges and not self.training and not torch.is_grad_enabled() and isinstance(self.tower, VisionTower)
        )
        return self.tower.merged(self.prompt(1)) if folds else self.tower, self.reader.prepare(names, fixed)

    def forward(self, inputs: Any, prepared: Any) -> Output:
        tower, read = prepared
        self._fits(getattr(inputs, "items", ()))
        image = self.features(inputs, tower)
        return Output(self.reader(image, read), image=image, text=read if self.reader.reads_class_texts else None,
                      target=self.reader.target(self.shown(inputs), lambda: self.prompt(len(inputs))))  # fmt: skip

    def groups(self) -> list[dict[str, Any]]:
        """All parameters; no weight decay on vectors (biases, shifts, scales, norms), as the field has it."""
        trained = [p for p in self.parameters() if p.requires_grad]
        vectors = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
        return [group for group in ({"params": [p for p in trained if p.ndim > 1]}, vectors) if group["params"]]
