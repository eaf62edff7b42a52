"""Contract of methods: small Modules that hold only what is trained, make Prompts, and answer."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, NotRequired, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Inputs, Item
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Head, Prepared
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import find_answer_kind, head_mismatch_message
from vlprompt.core.towers import AnyTower, Backbone, Clip, LanguageTower, VisionTower


class Output(NamedTuple):
    """An answer to B inputs, and what it came from.

    Args:
        logits: (B, C); of items with several labels their sigmoid is the probability of each.
        penalty: a loss term.
        image_features: (B, E), not normalised.
        text_features: (C, E) or (B, C, E), not normalised.
        prompt_usage: of methods with a pool, the fraction (B, M) of each prompt in an answer; rows add up to 1.
        predicted_lesson: of methods that infer it, the lesson (B,) that an image is assigned to.
        targets: (R,), targets of the rows of logits if only the head knows them (responses, tags of words).
        unanswered: (B,), whether a method that may find no answer found none.
        scores: (B, S), how well each input is known, by each of S scores; only an evaluation sets it.
    """

    logits: Tensor
    penalty: Tensor | float = 0.0
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    prompt_usage: Tensor | None = None
    predicted_lesson: Tensor | None = None
    targets: Tensor | None = None
    unanswered: Tensor | None = None
    scores: Tensor | None = None


LossTerms: TypeAlias = dict[str, tuple[Tensor, float]]  # name -> (mean, number of rows it is over)
InputTower = TypeVar("InputTower", bound=AnyTower)  # the towers that a method is for


class ParamGroup(TypedDict):
    """Parameters that the optimizer treats alike, with settings other than those of the training.

    Args:
        params: the parameters.
        weight_decay: theirs, in place of the training's.
        lr_factor: their learning rate over that of the training.
    """

    params: list[nn.Parameter]
    weight_decay: NotRequired[float]
    lr_factor: NotRequired[float]


class Method(nn.Module):
    """A method. The constructor only stores its arguments, under their own names: they are its configuration.

    Vmapped training needs a `precompute` without trained tensors, and `loss_terms` of torch operations whose shapes and
    branches depend on no tensor's values; dropout and buffers changed in place are fine.

    Attributes:
        parameters_without_grad: parameters that may have no gradient in a step (unselected prompts of a pool).
        accumulating_buffers: buffers to which `loss_terms` adds something per image, the only ones it may change.
        needs_whole_batch: whether a step can't be made of micro-batches (batch norms).
        max_vmap_images: images per step, over all settings, up to which vmapped training pays; 0 for never.
        needs_unlabelled: whether it learns from unlabelled images.
        depends_on_class_set: whether the score of a class depends on which other classes there are.
        is_online: whether an answer changes the later ones: `prepare` begins a stream, and `forward` changes what it
            returned, image by image in their order, so that a batch of any size is the images one after the other.
        needs_single_labels: whether its training or its answer needs items that have one label each.
        uses: what it learns from beyond the images of its lesson, such as "llm_texts", for the protocol of results.
        clipped_settings: settings that were clipped, for the result; replaced, never written into.
    """

    parameters_without_grad: tuple[str, ...] = ()
    accumulating_buffers: tuple[str, ...] = ()
    needs_whole_batch: bool = False
    max_vmap_images: int = 0
    needs_unlabelled: bool = False
    depends_on_class_set: bool = False
    is_online: bool = False
    needs_single_labels: bool = False
    uses: tuple[str, ...] = ()
    clipped_settings: Mapping[str, str] = {}

    @property
    def backbone(self) -> Backbone | None:
        """The frozen backbone: a Clip that it or a part of it stores, else an image tower or a language model."""
        stored = [value for part in self.modules() for value in vars(part).values()]
        clip = next((value for value in stored if isinstance(value, Clip)), None)
        named = (value for value in stored if hasattr(value, "spec"))  # whether it is a tower is asked slowly
        return clip or next((value for value in named if isinstance(value, VisionTower | LanguageTower)), None)

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        vars(self)["backbone"] = backbone  # a constructor stores its arguments, whatever they are called

    def _head(self) -> Head | None:
        return self._modules.get("head")  # type: ignore[return-value]  # a class attribute would hide the Module

    def require_at_least(self, **bounds: float) -> None:
        """Raise ValueError for a setting below its bound."""
        for setting, bound in bounds.items():
            if (value := getattr(self, setting)) < bound:
                raise ValueError(f"method.{setting}: expected at least {bound}, got {value}. Set a larger value.")

    def require_at_most(self, **bounds: float) -> None:
        """Raise ValueError for a setting above its bound."""
        for setting, bound in bounds.items():
            if (value := getattr(self, setting)) > bound:
                raise ValueError(f"method.{setting}: expected at most {bound}, got {value}. Set a smaller value.")

    def clip_to_depth(self, setting: str, depth: int, n_above: int = 0) -> int:
        """Return a setting that counts layers, clipped to the tower's depth and noted in `clipped_settings`.

        n_above: layers that must remain above.
        """
        self.require_at_least(**{setting: 1})
        value, limit = getattr(self, setting), depth - n_above
        if value > limit:
            note = f"clipped from {value} to {limit} (the tower has {depth} layers)"
            self.clipped_settings = {**self.clipped_settings, setting: note}
        return min(value, limit)

    def clip_layers(self, setting: str, depth: int) -> list[int]:
        """Return the layers of a setting that the tower has; those that it lacks are noted in `clipped_settings`.

        Raises:
            ValueError: for a negative layer, or if the tower has none of them.
        """
        requested: Sequence[int] = getattr(self, setting)
        layers = [i for i in requested if 0 <= i < depth]
        if not layers or min(requested) < 0:
            raise ValueError(
                f"method.{setting}: expected layers 0 to {depth - 1} of the tower, got {list(requested)}. "
                f"Set method.{setting} to some of these."
            )
        if len(layers) < len(requested):
            note = f"clipped from {list(requested)} to {layers} (the tower has {depth} layers)"
            self.clipped_settings = {**self.clipped_settings, setting: note}
        return layers

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        """Set initial values, heads, pools and caches. Called for every lesson, before the optimizer is made.

        Lesson 0 begins anew, whatever was learned before; later lessons keep it and add to it.
        """

    def training_lesson(self, lesson: Lesson) -> Lesson:
        """Return the lesson to train on. Override it to add pseudo-labelled images."""
        return lesson

    def pseudo_labels(self, inputs: Inputs, fixed: Fixed) -> tuple[Tensor, Tensor] | None:
        """Return probabilities (B, C) of unlabelled images, and which (B,) are confident enough to learn from.

        None for a method without pseudo-labels.
        """
        return None

    def precompute(self, names: Names) -> Fixed:
        """Precompute what depends on class names only and needs no gradient. Called once per list of class names."""
        head = self._head()
        return None if head is None else head.precompute(names)

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        """Compute the input-independent part, with gradients: once per training step, once per evaluation."""
        head = self._head()
        return fixed if head is None else head.prepare(names, fixed)

    def forward(self, inputs: Inputs, prepared: Prepared) -> Output:
        """Answer, without what only training needs."""
        raise NotImplementedError(
            f"{type(self).__name__} says nothing about its answer: define forward(inputs, prepared)"
        )

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        """Return the loss as named means with the rows they are over: micro-batches and processes add up exactly."""
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        targets = batch.labels if out.targets is None else out.targets
        label_loss = batch.label_loss(out.logits.float(), targets.to(out.logits.device))
        terms: LossTerms = {"ce": (label_loss, len(targets))}
        if isinstance(out.penalty, Tensor):
            terms["penalty"] = out.penalty, len(batch.labels)
        return terms, out

    def merge_gradients(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        """Merge the gradients of the terms, one list per term in the order of parameters(): by default their sum."""
        return [g[0] if len(g) == 1 else torch.stack(g).sum(0) for g in zip(*grads.values(), strict=True)]

    def merge_backbone(self) -> Backbone:
        """Return the backbone with all that changes it in its weights, for programs without prompts.

        Raises:
            ValueError: if weights can't hold what the method puts into the backbone.
        """
        raise ValueError(
            f"{type(self).__name__}: expected changes of a backbone that its weights can hold, got others. Export it "
            "as a whole."
        )

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that this step leaves as they are, without weight decay or momentum; none by default.

        Asked after the gradients of the step are computed.
        """
        return ()

    def schedule_starts(self, steps: int) -> Sequence[int]:
        """Return the steps, from 0, at which the learning-rate schedule begins anew; by default the first alone."""
        return (0,)

    def param_groups(self) -> list[ParamGroup]:
        """Return parameter groups without frozen parameters, which may have a gradient from an earlier lesson."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def end_step(self, step: int, steps: int) -> None:
        """Called after each optimizer step, counted from 1; its gradients are still there."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch (to average over epochs, for example); its state are buffers."""

    def end_lesson(self, lesson: Lesson) -> None:
        """Called after training on a lesson (to search on validation, or to choose a ridge)."""

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        """Load a saved state without data: begin the lessons that made it, without items, then load."""
        for lesson in lessons:
            self.begin_lesson(lesson.without_items(), torch.Generator())
        self.load_state_dict(state)


class TowerMethod(Method, Generic[InputTower]):
    """A Method on one tower with one head.

    `build` creates what is trained, `prompt` injects it.

    Attributes:
        is_mergeable: whether its adapters are merged into the weights of an image tower for evaluation, at the cost of
            the plain tower.
    """

    tower: InputTower
    head: Head
    is_mergeable: bool = False

    def build(self, generator: torch.Generator) -> None:
        """Create all trained tensors but the head's, at the first lesson."""

    def prompt(self, n: int) -> Prompt:
        """Return the prompt for a batch of n."""
        return NOTHING

    def compute_features(self, inputs: Inputs, tower: InputTower) -> Tensor:
        """Return what the head takes, (B, E) or (R, E); `tower` may be the merged one."""
        prompt = NOTHING if tower is not self.tower else self.prompt(inputs.n_items)
        return tower(self.prepare_inputs(inputs), prompt, output=self.head.output)

    def prepare_inputs(self, inputs: Inputs) -> Inputs:
        """Return the inputs as the tower should see them, by default as the head asks."""
        return self.head.prepare_inputs(inputs)

    def _require_readable(self, items: Sequence[Item]) -> None:
        """Raise ValueError if the head does not fit how these items are answered."""
        kind, output = find_answer_kind(items), self.head.output
        if items and ((kind == "response") != (output == "response") or (kind == "tags" and output != "words")):
            raise ValueError(head_mismatch_message(kind))

    def generate(self, inputs: Inputs, **settings: object) -> list[str]:
        """Return a language model's responses; settings are those of transformers' `generate`."""
        lm = cast(LanguageTower, self.tower)
        return lm.generate(self.prepare_inputs(inputs), self.prompt(len(inputs)), **settings)

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self._require_readable(lesson.train.items)
        self.head.begin_lesson(lesson, generator, self.tower.feature_dim, self.tower.device)
        if not lesson.index:
            self.build(generator)
            if self.is_mergeable and isinstance(self.tower, VisionTower):
                self.tower.merged(self.prompt(1))  # fails before the training, not after it

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        evaluates = not self.training and not torch.is_grad_enabled()
        merges = self.is_mergeable and evaluates and isinstance(self.tower, VisionTower)
        return self.tower.merged(self.prompt(1)) if merges else self.tower, self.head.prepare(names, fixed)

    def merge_backbone(self) -> Backbone:
        """Return the tower with the prompt in its weights; ValueError for tokens, prefixes and other adapters."""
        return self.tower.merged(self.prompt(1))

    def forward(self, inputs: Inputs, prepared: Prepared) -> Output:
        tower, head_state = prepared
        self._require_readable(getattr(inputs, "items", ()))
        features = self.compute_features(inputs, tower)
        return Output(
            self.head(features, head_state),
            image_features=features,
            text_features=head_state if self.head.reads_class_texts else None,
            targets=self.head.compute_targets(self.prepare_inputs(inputs), lambda: self.prompt(len(inputs))),
        )

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters, without weight decay on vectors (biases, shifts, scales, norms), as is common."""
        trained = [p for p in self.parameters() if p.requires_grad]
        matrices: ParamGroup = {"params": [p for p in trained if p.ndim > 1]}
        vectors: ParamGroup = {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}
        return [group for group in (matrices, vectors) if group["params"]]
