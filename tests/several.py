"""Makes several runs, one after another: by itself, or as each of the processes that torchrun has started.

several.py FOLDER JSON [WHO]: a list of {"method", "backbone", "settings", ...}, each as `vlprompt run` would make it.
How many features a process has computed is written to FOLDER/computed-RANK; WHO: the process that fails at the end.
"""

import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.experiments.sweep import sweep
from vlprompt.runtime import distributed

NOTHING = {"dataset": "digits", "task": None, "source": None, "target": None, "backbone": "glyph/random", "shots": 4}


def make(folder, plans):
    """The runs' folders are numbered, so that they can be compared; gives how many features were computed."""
    computed, features = [0], ImageTower.computed

    def counted(tower, images, places, after=()):
        computed[0] += len(places)
        return features(tower, images, places, after)

    ImageTower.computed = counted
    for k, plan in enumerate(plans):
        told = {**NOTHING, **plan}
        sweep([told.pop("method")], [told.pop("shots")], [1], file=None, runs=Path(folder) / str(k), device="cpu",
              save_every=told.pop("save_every", 5.0), threads=1, out=Console(quiet=True), **told)  # fmt: skip
    ImageTower.computed = features
    return computed[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.opened("cpu"):
        computed = make(sys.argv[1], json.loads(sys.argv[2]))
        (Path(sys.argv[1]) / f"computed-{distributed.rank()}").write_text(str(computed))
        if sys.argv[3:] == [str(distributed.rank())]:
            raise ValueError(f"process {distributed.rank()} can't go on")
        distributed.gather("where the others would wait for it")
