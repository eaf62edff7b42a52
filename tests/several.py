"""Makes several runs, one after another: by itself, or as each of the processes that torchrun has started.

several.py FOLDER JSON [WHO]: a list of {"method", "backbone", "overrides", ...}, each as `vlprompt run` would make it.
How many features a process has computed, and how many texts it has trained on, is written to FOLDER/computed-RANK; WHO:
the process that fails at the end.
"""

import json
import sys
from pathlib import Path

import torch

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.text import TransformerTextTower
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.runs import run_configs
from vlprompt.runtime import distributed

NOTHING = {"dataset": "digits", "task": None, "source": None, "target": None, "backbone": "glyph/random", "shots": 4}


def make(folder, plans):
    """The runs' folders are numbered, so that they can be compared; gives the numbers of features and of texts."""
    computed, features, encode = [0, 0], ImageTower.compute_features, TransformerTextTower._encode_layout

    def counted(tower, images, places, after=(), output="pooled"):
        computed[0] += len(places)
        return features(tower, images, places, after, output)

    def counted_texts(tower, *rest):
        rows = encode(tower, *rest)
        computed[1] += rows.shape[1] * torch.is_grad_enabled()
        return rows

    ImageTower.compute_features, TransformerTextTower._encode_layout = counted, counted_texts
    for k, plan in enumerate(plans):
        told = {**NOTHING, **plan}
        options = SweepOptions(
            Path(folder) / str(k), "cpu", 1, told.pop("save_every", 5.0), told.pop("max_lessons", None)
        )
        run_configs(resolve_sweep([told.pop("method")], [told.pop("shots")], [1], config_file=None, **told), options)
    ImageTower.compute_features, TransformerTextTower._encode_layout = features, encode
    return computed


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.open_process_group("cpu"):
        computed = make(sys.argv[1], json.loads(sys.argv[2]))
        (Path(sys.argv[1]) / f"computed-{distributed.get_rank()}").write_text(json.dumps(computed))
        if sys.argv[3:] == [str(distributed.get_rank())]:
            raise ValueError(f"process {distributed.get_rank()} can't go on")
        distributed.all_gather("where the others would wait for it")
