"""Streams of SimpleCIL, APER, FeCAM, SLCA and SLCA++: stopped anywhere they end with the same bits."""

from dataclasses import replace

import pytest
from kills import interrupted, same_but_for_time

import vlprompt
from vlprompt import methods as m
from vlprompt.data.loading import open_data
from vlprompt.layers.heads import CosineHead
from vlprompt.tasks import Continual

TRAIN = vlprompt.TrainConfig(
    epochs=2, batch_size=16, optimizer="sgd", lr=0.05, schedule="constant", warmup=0, drop_last=False
)
QUICK = {"draws_per_class": 4, "alignment_epochs": 2}
MAKERS = {
    "simplecil": m.SimpleCIL,
    "fecam": m.FeCAM,
    "aper": lambda vit: m.APER(m.AdaptFormer(vit, CosineHead(), 4)),
    "slca": lambda vit: m.SLCA(vit, 0.5, **QUICK),
    "slcapp": lambda vit: m.SLCApp(vit, 2, **QUICK),
}


def stop(name, tmp_path, choose):
    vit, moments, data = vlprompt.load("glyph-vit/random"), [], open_data("digits")
    task = Continual(replace(data, test=data.test.select(range(0, len(data.test), 20))), shots=4, stages=3)
    make = lambda: MAKERS[name](vit)  # noqa: E731
    vlprompt.run(make(), task, TRAIN, tmp_path / "whole", on_event=lambda *event: moments.append(event))
    interrupted(make, task, TRAIN, tmp_path / "parts", choose(len(moments)), len(moments))
    same_but_for_time(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", MAKERS)
def test_stopped_it_ends_with_the_same_bits(name, tmp_path):
    stop(name, tmp_path, lambda n: [n // 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_stopped_seven_times_it_ends_with_the_same_bits(name, tmp_path):
    stop(name, tmp_path, lambda n: [1, n // 2, 3, n // 3, 2, n // 2, n // 4])


def test_another_class_order_does_not_resume(tmp_path):
    vit, task = vlprompt.load("glyph-vit/random"), Continual("digits", stages=5, shots=2)
    vlprompt.run(m.SimpleCIL(vit), task, TRAIN, tmp_path, max_lessons=2)
    for method, other in (
        (m.SimpleCIL(vit), Continual("digits", stages=5, shots=2, order="seeded")),
        (m.FeCAM(vit), task),
    ):
        with pytest.raises(ValueError, match=r"expected the same configuration, got a run with other .* Name another"):
            vlprompt.run(method, other, TRAIN, tmp_path)
