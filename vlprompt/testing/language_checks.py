"""Checks of methods on language models alone: texts that are answered by a class, word by word or by a response."""

import copy
import math

import torch

from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.testing.answer_checks import restore_state
from vlprompt.testing.case import MethodCase
from vlprompt.testing.failures import require
from vlprompt.testing.learning_checks import collect_weights, is_same
from vlprompt.testing.texts import draw_texts


def check_text_evaluation(case: MethodCase) -> None:
    """Two steps on texts have finite losses, and the learned state is evaluated to the same finite scores.

    What it holds in addition: the language model is as it was, without gradients, after training and evaluation.
    """
    weights = collect_weights(case.backbone)
    before = [weight.clone() for weight in weights.values()]
    method, losses = case.train(iterations=2, batch_size=8, optimizer="adamw")
    require(all(map(math.isfinite, losses)), f"loss: expected finite losses, got {losses}. Check the scale of values.")
    require(
        all(is_same(a, b) for a, b in zip(before, weights.values(), strict=True))
        and not any(weight.requires_grad or weight.grad is not None for weight in weights.values()),
        "backbone: expected frozen weights without gradients, got others. Give a Prompt to the tower instead.",
    )
    method.end_lesson(case.lesson)
    again = case.build()
    restore_state(again, [case.lesson], copy.deepcopy(method.state_dict()))
    test = draw_texts(10, 5, case.answer_kind)
    if case.answer_kind == "class":
        logits = (torch.cat(list(iter_logits(one, test))) for one in (method, again))
        require(is_same(*logits), "state_dict: expected the same logits after loading, got others. Register the state.")
    scores = evaluate(method, test).metrics
    require(
        scores == evaluate(again, test).metrics,
        "state_dict: expected the same scores after it was loaded, got others. Register what is learned as "
        "nn.Parameter or by register_buffer.",
    )
    require(
        all(map(math.isfinite, scores.values())),
        f"scores: expected finite numbers, got {scores}. Return a logit for each class.",
    )
