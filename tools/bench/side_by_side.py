"""tools/bench side_by_side: trainings that differ by their seed, in lockstep against one after another.

Both train CoOp (KgCoOp where the case says so) with 16 tokens on 4 images (a ViT-B/16: 1) of each of the ten
handwritten digits, whose features are cached before; tests are not timed. Seconds are of all trainings together; in
lockstep their prompts are the rows of one pass of the text tower. same: the largest relative difference of learned
tensors.
"""

import statistics
from functools import partial

from bench.measure import time_call
from bench.rows import make_number_column
from vlprompt.backbones import load_backbone
from vlprompt.engine.loop import fit
from vlprompt.engine.side_by_side import TrainingGroup
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import CoOp, KgCoOp
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import FewShot

CASES = {  # name -> backbone, build the method, trainings, steps, images of each class
    "coop, embedded CLIP, 3 seeds": ("glyph", CoOp, 3, 50, 4),
    "coop, embedded CLIP, 8 seeds": ("glyph", CoOp, 8, 50, 4),
    "kgcoop, embedded CLIP, 3 seeds": ("glyph", lambda clip: KgCoOp(CoOp(clip)), 3, 50, 4),
    "coop, ViT-B/16, 3 seeds": ("open_clip:ViT-B-16/random", CoOp, 3, 4, 1),
}
SETTING = "image features cached, tests not timed"
COLUMNS = {
    "one by one s": make_number_column("reference:.2f"),
    "side by side s": make_number_column("fast:.2f"),
    "ratio": make_number_column("ratio:.2f"),
    "least": make_number_column("min:.2f"),
    "largest": make_number_column("max:.2f"),
    "same": make_number_column("difference:.0e"),
}


def measure_row(case, device, rounds):
    backbone, build, n_runs, n_steps, shots = CASES[case]
    clip, config = load_backbone(backbone, device), TrainConfig(iterations=n_steps)
    lessons = [next(iter(FewShot("digits", shots=shots, seed=seed).stages())).lesson for seed in range(n_runs)]
    for lesson in lessons:
        for batch in lesson.train.batches(40):
            clip.image(batch.inputs)

    def train(index, clip, **options):
        method = build(clip)
        method.begin_lesson(lessons[index], make_generator(index))
        for _ in fit(method, lessons[index], config, index, **options):
            pass
        return method.state_dict()

    def train_alone():
        return [train(i, clip) for i in range(n_runs)]

    def train_together():
        group = TrainingGroup(clip, n_runs)
        return group.run([partial(train, m.index, m.clip, differentiate=m.differentiate) for m in group.members])

    pairs = [(a[k], b[k]) for a, b in zip(train_alone(), train_together(), strict=True) for k in a]
    slow, fast = [], []
    for _ in range(rounds):
        slow.append(time_call(train_alone, device))
        fast.append(time_call(train_together, device))
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "reference": statistics.median(slow),
        "fast": statistics.median(fast),
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "difference": max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs),
    }
