"""A hundred lessons of another domain each: what is held grows by its matrix, not by the images that were seen."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch, vlprompt
from vlprompt import methods
from vlprompt.data.dataset import Data
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.layers.heads import LinearHead
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Continual

torch.set_num_threads(1)
LESSONS, NAMES = 100, (ClassName("low"), ClassName("high"))

def pixels(part, domain, i, look, view):
    return torch.randn(3, 32, 32, generator=make_generator(part, domain, i)) * 0.1 + (i % 2) + domain / LESSONS

def split(part, many):
    places = [(d, i) for d in range(LESSONS) for i in range(many)]
    items = tuple(ImageItem(f"{part}/{d}/{i}", lambda look, view, d=d, i=i: pixels(part, d, i, look, view)) for d, i in places)
    info = {"domains": [f"domain {d:03}" for d in range(LESSONS)]}
    return Split(items, tuple(i % 2 for _, i in places), NAMES, tuple(d for d, _ in places), info=info)

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

class Measured(Continual):
    def stages(self):
        for stage in super().stages():
            print(stage.lesson.index, held(), flush=True)
            yield stage

vit = vlprompt.load("glyph-vit/random")
method = {"l2p": lambda: methods.L2P(vit, LinearHead(), pool_size=4, prompt_length=1, top_k=2), "nearest_mean": lambda: methods.NearestMean(vit),
          "linear": lambda: methods.Linear(vit, LinearHead(), solver="fit")}[sys.argv[1]]()
data = Data("synthetic", split("train", 16), None, split("test", 4), "a {name} picture.", "made here")
train = vlprompt.TrainConfig(epochs=2, batch_size=8, optimizer="adam", lr=0.001, schedule="constant", warmup=0)
result = vlprompt.run(method, Measured(data, kind="domain_incremental"), train, sys.argv[2])
print("accuracy", result.summary["accuracy"], flush=True)
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nearest_mean", "linear", "l2p"])
def test_memory_does_not_grow_with_the_lessons(method, tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, method, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 200  # all items are hashed before the first lesson
    held = [float(line.split()[1]) for line in lines[100:]]
    # MB: the matrix of 5050 accuracies, twice while it is saved, and 1400 features; the pixels alone would be 17
    assert held[-1] - held[30] < 13
    assert float(last.split()[1]) > 50
