"""tools/bench operations: how many operations a training step starts, which is what it costs where they are small.

Counted on a CPU in the form of the pass that a GPU has (texts padded to few groups, or all rows under one mask):
forward, cross-entropy, backward to the prompt, SGD, of a ViT-B/16-size CLIP with random weights and CIFAR-100's names.
Counted is what torch dispatches; views and allocations, which start nothing, are counted apart. SGD is the engine's,
over all parameters at once as on a GPU. `by groups`: the same with attention a group of texts at a time, as texts of
many rows have it. `before`: what was counted by groups when this was first measured. The pixels of four images are
given.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.rows import make_number_column
from bench.text import load_cifar_names
from vlprompt.backbones.towers.text import GROUP_OVERHEAD_TOKENS, MASKED_PRODUCTS
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.engine.optimizers import build_optimizer
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.blocks.shared_prefix import PackingRule
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import IVLP, MMRL, VPT, CoCoOp, CoOp, MaPLe, PromptSRC
from vlprompt.runtime.seeding import make_generator

CASES = {  # name -> method on a CLIP, classes
    "coop, 100 classes": (lambda clip: CoOp(clip, 16), 100),
    "cocoop, 100 classes, 4 images": (lambda clip: CoCoOp(clip, 4), 100),
    "maple, 100 classes, both towers": (lambda clip: MaPLe(clip, 2), 100),
    "promptsrc, 100 classes, both towers": (lambda clip: PromptSRC(IVLP(clip, 4, 4)), 100),
    "mmrl, 100 classes, both towers": (lambda clip: MMRL(clip, 5), 100),
    "vpt-deep, 10 prompts": (lambda clip: VPT(clip.image, LinearHead(), 10, deep=True, dropout=0.0), 100),
}
BEFORE = {  # counted on 2026-11-30 by groups, the prompts of each layer and SGD of each parameter by themselves
    "coop, 100 classes": 980,
    "cocoop, 100 classes, 4 images": 1095,
    "maple, 100 classes, both towers": 1533,
    "promptsrc, 100 classes, both towers": 1479,
    "mmrl, 100 classes, both towers": 1133,
    "vpt-deep, 10 prompts": 482,
}
HALVED = ("share <= 0.5",)
TARGETS = dict.fromkeys(CASES, HALVED) | {"coop, 100 classes": ("operations <= 500", *HALVED)}
REASONS = {
    "vpt-deep, 10 prompts": "278 are its twelve blocks, 12 forward and 11 backward each; torch has no joined residual "
    "and norm"
}
ROUNDS, N_IMAGES, SINGLE_THREADED = dict.fromkeys(CASES, 1), 4, True
TEXT_WIDTH, OVERHEAD = 512, GROUP_OVERHEAD_TOKENS["cuda"]
RULES = {  # a GPU's, for texts of this width
    "operations": PackingRule(OVERHEAD, int((MASKED_PRODUCTS["cuda"] / TEXT_WIDTH) ** 0.5)),
    "by_groups": PackingRule(OVERHEAD, 0),
}
COLUMNS = {
    "operations": make_number_column("operations:d"),
    "by groups": make_number_column("by_groups:d"),
    "before": make_number_column("before:d"),
    "share": make_number_column("share:.2f"),
    "views and allocations": make_number_column("views:d"),
}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}


class OperationCounter(TorchDispatchMode):
    """Count what torch dispatches: operations by name, and views and allocations."""

    def __init__(self):
        super().__init__()
        self.operations, self.n_views = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in ALLOCATIONS or name.startswith(("_unsafe_view", "_reshape_alias", "_record_func")):
            self.n_views += 1
        else:
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))


def build_step(make, n_classes, rule, device):
    """Return a training step of a method with texts packed by a rule."""
    import open_clip

    from vlprompt.backbones.open_clip.towers import wrap_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu")
    clip = wrap_clip(model, open_clip.get_tokenizer("ViT-B-16"), "bench", device)
    clip.text.packing_rule = rule
    names = tuple(ClassName(name, str(i)) for i, name in enumerate(load_cifar_names()[:n_classes]))
    pixels, labels = torch.randn(N_IMAGES, 3, 224, 224, device=device), torch.arange(N_IMAGES, device=device)
    images = Images(lambda look, places: pixels[list(places)], [str(i) for i in range(N_IMAGES)])
    method = make(clip)
    method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
    with torch.no_grad():
        fixed = method.precompute(names)
    optimizer = build_optimizer(method.param_groups(), TrainConfig(lr=1e-6), device)
    for group in optimizer.param_groups:
        group["foreach"] = True  # torch's default on a GPU

    def step():
        output = method(images, method.prepare(names, fixed))
        optimizer.zero_grad()
        (F.cross_entropy(output.logits, labels) + output.penalty).backward()
        optimizer.step()

    return step


def measure_row(case, device, rounds):
    row = {}
    for key, rule in RULES.items():
        step = build_step(*CASES[case], rule, torch.device(device))
        for _ in range(2):  # what is kept from the first steps, such as momentum, is made once
            step()
        with OperationCounter() as counter:
            step()
        row[key] = counter.operations.total()
        row.setdefault("views", counter.n_views)
    return row | {"before": BEFORE[case], "share": row["operations"] / BEFORE[case]}
