"""tools/bench stream_bytes: what each newer stream method stores, on a ViT-B/16 (rapf, proof, engine, gda: 512 wide).

The bytes of the state (`state_dict`) after the first lesson of one class, and by how much they grow at the tenth lesson
for the lesson and for each of its classes, from lessons of one and of two classes. Settings are the methods' own; of
PROOF 20 exemplars a class. A process holds no other tensors of a stream (tests/tasks/test_stream_bytes.py), but for
features of images that the tower keeps, up to a bound, and the latest lists of texts.
"""

import torch

from bench.streams_newer import METHODS, NewerStream
from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead
from vlprompt.methods.hideprompt import HiDePrompt
from vlprompt.runtime.seeding import make_generator

N_LESSONS = 10
MAKERS = {name: case.make for name, case in METHODS.items()}
MAKERS |= {"hideprompt": lambda tower: HiDePrompt(tower, LinearHead()), "gda": lambda clip: m.GDA(clip)}
CASES = dict.fromkeys(MAKERS, 1)
ROUNDS = dict.fromkeys(CASES, 1)
SINGLE_THREADED = True
COLUMNS = {
    "after one lesson": lambda row: format_bytes(row["first"]),
    "a lesson more": lambda row: format_bytes(row["by_lesson"]),
    "a class more": lambda row: format_bytes(row["by_class"]),
}


def format_bytes(n):
    """Format bytes in decimal units, as the methods' files do."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}" if n < 10 * size else f"{n / size:.0f} {unit}"
    return f"{n} B"


def measure_states(method, classes_per_lesson):
    """Return the bytes of the state after each lesson; lessons have classes, but no images."""
    sizes = []
    for k in range(N_LESSONS):
        names = tuple(ClassName(f"class {k} {i}") for i in range(classes_per_lesson))
        method.begin_lesson(Lesson(Split((), (), names), index=k, total=N_LESSONS), make_generator(k))
        sizes.append(sum(tensor.nbytes for tensor in method.state_dict().values()))
    return sizes


def measure_row(case, device, rounds):
    backbone = NewerStream("rapf" if case == "gda" else case, device).backbone
    with torch.no_grad():
        one, two = (measure_states(MAKERS[case](backbone), n) for n in (1, 2))
    growths = [sizes[-1] - sizes[-2] for sizes in (one, two)]
    by_class = growths[1] - growths[0]
    return {"first": one[0], "by_class": by_class, "by_lesson": growths[0] - by_class}
