"""Streams of odd lessons, run by every stream method: one class, one image, classes that come back, another order."""

from dataclasses import replace

import pytest
import torch
from stream_methods import MAKERS

import vlprompt
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.engine.evaluate import iter_logits
from vlprompt.tasks import Continual

TRAIN = vlprompt.TrainConfig(epochs=1, batch_size=4, lr=0.01, warmup=0, drop_last=False)
SINGLE = "expected two images of a class for its covariance, got one of "
COVARIANCES = ("fecam", "slca", "slcapp", "mos", "tuna", "rapf")  # of each class


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


@pytest.fixture(scope="module")
def digits():
    data = open_data("digits")
    return replace(data, test=data.test.select(range(0, len(data.test), 40)))


@pytest.fixture(scope="module")
def domains(digits):
    """Three digits that come in two domains: the second lesson brings no new class."""

    def divide(split, n):
        places = [[i for i, label in enumerate(split.labels) if label == c][:n] for c in range(3)]
        chosen = split.select([i for part in places for i in part]).select_classes(range(3))
        domains = tuple(i % 2 for i in range(len(chosen)))
        return replace(chosen, domains=domains, info={"domains": ["even", "odd"]})

    return Data(
        "digits", divide(digits.train, 4), None, divide(open_data("digits").test, 4), digits.template, "made here"
    )


@pytest.mark.filterwarnings("ignore:lesson. expected", "ignore:inflora")
@pytest.mark.parametrize("name", MAKERS)
def test_a_lesson_of_one_class_and_classes_of_one_image(name, clip, digits):
    method = MAKERS[name](clip)
    task = Continual(digits, shots=1, stages=[["3"], ["1", "2"]], with_val=False)
    result = vlprompt.run(method, task, TRAIN)
    assert len(result.scores) == 2
    assert result.scores[0]["seen"]["accuracy"] == 100  # there is one class
    assert all(torch.isfinite(tensor).all() for tensor in method.state_dict().values())


@pytest.mark.parametrize("name", COVARIANCES)
def test_a_class_of_one_image_is_told_by_its_name(name, clip, digits):
    task = Continual(digits, shots=1, stages=[["3"], ["1"]], with_val=False)
    with pytest.warns(UserWarning, match=SINGLE) as told:
        vlprompt.run(MAKERS[name](clip), task, TRAIN)
    texts = [str(warning.message) for warning in told if SINGLE in str(warning.message)]
    names = [str(digits.train.names[int(i)]) for i in "31"]
    assert [text.partition(SINGLE)[2].partition(", so")[0] for text in texts] == names


@pytest.mark.filterwarnings("ignore:lesson. expected", "ignore:inflora")
@pytest.mark.parametrize("name", MAKERS)
def test_classes_that_come_back(name, clip, domains):
    method = MAKERS[name](clip)
    result = vlprompt.run(method, Continual(domains, kind="domain_incremental"), TRAIN)
    assert len(result.scores) == 2
    logits = torch.cat(list(iter_logits(method, domains.test)))
    assert logits.shape == (12, 3)  # a class has one row
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.filterwarnings("ignore:lesson. expected", "ignore:inflora")
def test_another_order_does_not_resume(name, clip, digits, tmp_path):
    stages = [["3", "1"], ["2", "0"]]
    vlprompt.run(MAKERS[name](clip), Continual(digits, shots=1, stages=stages), TRAIN, tmp_path, max_lessons=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"expected the same configuration, got a run with other .* Name another"):
        vlprompt.run(MAKERS[name](clip), Continual(digits, shots=1, stages=stages[::-1]), TRAIN, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
