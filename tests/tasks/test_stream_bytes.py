"""What a method keeps of a stream: live tensors grow by its state, and by nothing else."""

import gc
import warnings

import pytest
import torch
from stream_methods import MAKERS, SLOW_LEARNER
from torch._subclasses.fake_tensor import is_fake

import vlprompt
from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.evaluate import iter_logits
from vlprompt.engine.loop import fit
from vlprompt.runtime.seeding import make_generator

TRAIN = vlprompt.TrainConfig(epochs=1, batch_size=4, optimizer="adam", lr=0.001, warmup=0)
CHEAP = {  # without what takes long and keeps nothing
    "slca": lambda clip: m.SLCA(clip.image, 0.5, **SLOW_LEARNER | {"alignment_epochs": 0}),
    "slcapp": lambda clip: m.SLCApp(clip.image, 2, **SLOW_LEARNER | {"alignment_epochs": 0}),
    "engine": lambda clip: m.ENGINE(clip, text_weight=0.0, rerank_weight=0.0),
}


def lesson_of(index, total, n_images=2):
    """A lesson of one class, whose pictures are drawn when they are looked at."""

    def item(i):
        draw = lambda look, view: torch.randn(3, 32, 32, generator=make_generator("picture", index, i))  # noqa: E731
        return ImageItem(f"{index}/{i}", draw)

    name = ClassName(f"digit {index}", str(index))
    train = Split(tuple(map(item, range(n_images))), (0,) * n_images, (name,))
    return Lesson(train, index=index, total=total)


def measure_live_tensors():
    """The bytes of all tensors that Python reaches, and how many of them hold a graph."""
    gc.collect()
    things = gc.get_objects()
    # torch keeps tensors without data of what was traced before, as exports are in other tests of the process
    tensors = [thing for thing in things if issubclass(type(thing), torch.Tensor) and not is_fake(thing)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()), sum(tensor.grad_fn is not None for tensor in tensors)


def measure_stream(method, clip, lessons, moments):
    """Bytes of the state and of all live tensors, and the number of graphs, after some numbers of lessons."""
    sizes, seen = [], Split((), (), ())
    for lesson in lessons:
        method.begin_lesson(lesson, make_generator("stream", lesson.index))
        list(fit(method, lesson, TRAIN, seed=1))
        method.end_lesson(lesson)
        seen = seen.concat(lesson.train)
        if lesson.index + 1 in moments:
            list(iter_logits(method, seen.select(range(len(seen) - 2, len(seen)))))
            clip.text._cached_layout.cache_clear()  # of the latest 64 lists of texts, whatever the method
            state = sum(tensor.nbytes for tensor in method.state_dict().values())
            sizes.append((state, *measure_live_tensors()))
    return sizes


def require_that_it_keeps_its_state_alone(name, moments):
    clip = build_tiny_clip()
    clip.image.feature_cache.set_max_bytes(1)  # bounded by itself: it would grow with the images up to there
    method = CHEAP.get(name, MAKERS[name])(clip)
    _, graphs_before = measure_live_tensors()  # of other tests of the process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = measure_stream(method, clip, [lesson_of(k, moments[-1]) for k in range(moments[-1])], moments)
    (state, live, graphs), (later_state, later_live, later_graphs) = sizes
    assert later_live - live <= later_state - state + 64 * (moments[1] - moments[0])  # a few numbers of a lesson
    assert graphs == later_graphs == graphs_before


@pytest.mark.parametrize("name", ["mos", "rapf"])
def test_after_a_few_lessons_the_state_alone_has_grown(name):
    require_that_it_keeps_its_state_alone(name, (2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_after_a_hundred_lessons_the_state_alone_has_grown(name):
    require_that_it_keeps_its_state_alone(name, (50, 100))
