"""Search the attribute words of ATPrompt by weights over their combinations: Li et al., ICCV 2025, arXiv:2412.09442.

Each combination of words has prompts of its own. Logits are the sum over combinations, weighted by a softmax; steps of
the prompts on a batch of training images alternate with steps of the weights on a batch of validation images. The
combination with the highest weight is the answer. Differs from the authors' code in: combinations have one word and
more (theirs three and more, which can't give most published results); validation images are drawn anew at each step
(theirs are the first 100 at each).
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Names
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods.atprompt import ATPrompt
from vlprompt.runtime.seeding import derive_seed, make_generator

EPOCHS, WEIGHT_LR, WEIGHT_BETAS = 40, 0.02, (0.5, 0.999)  # the authors'; Adam of the weights has no weight decay
MAX_COMBINATIONS = 63  # of six words


class _Mixture(Method):
    """Prompts with a combination of words each, and the weights of the combinations.

    Args:
        prompts: one of each combination.
        val: validation images, on which the weights are trained.
        batch_size: of validation images.
        weight_lr: learning rate of the weights.
        seed: of the order of validation images.
    """

    def __init__(self, prompts: Sequence[Method], val: Split, batch_size: int, weight_lr: float, seed: int):
        super().__init__()
        self.prompts, self.val, self.batch_size, self.seed = nn.ModuleList(prompts), val, batch_size, seed
        self.weights = torch.zeros(len(prompts), requires_grad=True)  # (K,), no parameter of the prompts' optimizer
        self.weight_optimizer = torch.optim.Adam([self.weights], weight_lr, WEIGHT_BETAS)

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        for prompt in self._list_prompts():
            prompt.begin_lesson(lesson, generator)

    def precompute(self, names: Names) -> list[object]:
        return [prompt.precompute(names) for prompt in self._list_prompts()]

    def loss_terms(self, batch: Batch, fixed: list[object]) -> tuple[LossTerms, Output]:
        pairs = zip(self._list_prompts(), fixed, strict=True)
        logits = self.mix(torch.stack([prompt.loss_terms(batch, own)[1].logits for prompt, own in pairs]), grad=False)
        return {"ce": (batch.label_loss(logits, batch.labels.to(logits.device)), len(batch.labels))}, Output(logits)

    def mix(self, logits: Tensor, grad: bool) -> Tensor:
        """Return the weighted sum (B, C) of logits (K, B, C); `grad`: whether the weights have a gradient."""
        weights = (self.weights if grad else self.weights.detach()).softmax(0).to(logits.device)
        return (weights[:, None, None] * logits).sum(0)

    def end_step(self, step: int, steps: int) -> None:
        """Take a step of the weights on validation images."""
        batch = self.draw_validation_batch(step)
        with torch.no_grad():
            logits = []
            for prompt in self._list_prompts():
                prepared = prompt.prepare(batch.names, prompt.precompute(batch.names))
                logits.append(prompt(batch.inputs, prepared).logits)
        with torch.enable_grad():
            mixed = self.mix(torch.stack(logits), grad=True)
            loss = F.cross_entropy(mixed, batch.labels.to(mixed.device))
            [self.weights.grad] = torch.autograd.grad(loss, [self.weights])
        self.weight_optimizer.step()

    def draw_validation_batch(self, step: int) -> Batch:
        """Return validation images of one step, without augmentation."""
        order = torch.randperm(len(self.val), generator=make_generator(self.seed, "validation", step)).tolist()
        return next(self.val.select(order[: self.batch_size]).batches(self.batch_size))

    def _list_prompts(self) -> list[Method]:
        return cast(list[Method], list(self.prompts))


def search_attributes(
    make_method: Callable[[], Method],
    lesson: Lesson,
    words: Sequence[str],
    config: TrainConfig | None = None,
    *,
    seed: int = 1,
    n_tokens: int = 2,
    weight_lr: float = WEIGHT_LR,
) -> dict[tuple[str, ...], float]:
    """Search the words for `method.attributes` of ATPrompt on a lesson's training and validation images.

    Args:
        make_method: makes the wrapped method, such as a CoOp on a CLIP.
        lesson: with validation images; the weights see no others.
        words: of which combinations are made, such as five that a language model named.
        config: of the training of the prompts; by default 40 epochs of the CoOp family's settings.
        seed: of initial values, batches and validation images.
        n_tokens: learned tokens before each word.
        weight_lr: learning rate of the weights.

    Returns:
        Each combination and its weight, the highest first; the weights sum to one.

    Raises:
        ValueError: for words that are none or equal or too many, and without validation images.
    """
    if lesson.val is None or not len(lesson.val):
        raise ValueError(
            "lesson: expected validation images, on which the words are chosen, got none. Take a dataset with some."
        )
    candidates = list_combinations(words)
    prompts = [ATPrompt(make_method(), candidate, n_tokens) for candidate in candidates]
    config = config or TrainConfig(epochs=EPOCHS)
    mixture = _Mixture(prompts, lesson.val, config.batch_size, weight_lr, derive_seed(seed, "attributes"))
    mixture.begin_lesson(lesson, make_generator(seed, "attributes"))
    for _ in fit(mixture, lesson, config, seed):
        pass
    weights = dict(zip(candidates, mixture.weights.detach().softmax(0).tolist(), strict=True))
    return dict(sorted(weights.items(), key=lambda pair: -pair[1]))


def list_combinations(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all combinations of one word and more, in the order of the words, the shortest first."""
    most = MAX_COMBINATIONS.bit_length()
    if not words or len({*words}) < len(words) or len(words) > most:
        raise ValueError(
            f"words: expected 1 to {most} different words, got {list(words)}. Name those that tell the classes apart."
        )
    return [chosen for size in range(1, len(words) + 1) for chosen in combinations(words, size)]
