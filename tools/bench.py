"""Speed and memory against the written-out form, in one process: tools/bench.py text [--device cuda] [--threads 1].

The written-out form is what the authors of CoOp and CoCoOp run: every class's 77 tokens through open_clip's own text
transformer. Both make the same step: forward, cross-entropy with given image features, backward to the prompt, SGD.
Times are medians of alternating runs; on a CPU they are processor seconds. Memory is measured in a fresh process, above
the model alone. The share is the rate of the floating-point operations that the fast form really makes, over the rate
of one large matrix product beside it.
"""

import torch

import vlprompt
from vlprompt.methods import CoCoOp, CoOp
from vlprompt.stage import Batch, Images, Lesson, Split, generator

WORDS = [
    "apple",
    "aquarium",
    "baby",
    "bear",
    "bicycle",
    "bottle",
    "bridge",
    "camel",
    "castle",
    "chair",
    "cloud",
    "crab",
    "dolphin",
    "elephant",
    "forest",
    "fox",
    "girl",
    "house",
    "lamp",
    "lion",
]
TWO = [
    "sweet pepper",
    "maple tree",
    "pickup truck",
    "lawn mower",
    "aquarium fish",
    "oak tree",
    "palm tree",
    "pine tree",
    "willow tree",
    "streetcar",
]
CASES = {  # name -> method, its arguments, classes, images a step, passes of the text tower a step
    "coop-100": (CoOp, {"n_ctx": 16}, 100, 32),
    "coop-middle-100": (CoOp, {"n_ctx": 16, "text": "{ctx} {name} {ctx}."}, 100, 32),
    "coop-front-100": (CoOp, {"n_ctx": 16, "text": "{name} {ctx}."}, 100, 32),
    "coop-own-100": (CoOp, {"n_ctx": 16, "own": True}, 100, 32),
    "cocoop-100-1": (CoCoOp, {"n_ctx": 4}, 100, 1),
    "cocoop-100-4": (CoCoOp, {"n_ctx": 4}, 100, 4),
}


def names(n):
    """n class names, mostly of one token, as CIFAR-100's are; ValueError would follow if two were equal ids."""
    base = [*WORDS, *TWO]
    return tuple(
        f"{base[i % len(base)]}{' ' + base[(7 * i) % len(base)] if i >= len(base) and i % 5 == 0 else ''}"
        for i in range(n)
    )


def setting(case, device, dtype):
    """A method of ViT-B/16 size with random weights, a batch whose image features are known, and the open_clip model."""
    import open_clip

    from vlprompt.backbones.open_clip import wrap

    cls, options, classes, size = CASES[case]
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16-quickgelu").to(dtype)
    clip = wrap(model, open_clip.get_tokenizer("ViT-B-16"), "bench", device)
    features, labels = torch.randn(size, 512, dtype=dtype, device=device), torch.arange(size) % classes
    batch = Batch(Images(lambda look, places: torch.zeros(0), [None] * size), labels, names(classes))
    clip = vlprompt.tower.Clip(_Known(clip.image, features), clip.text, clip.scale, clip.spec)
    method = cls(clip, **options)
    method.begin(Lesson(Split((), (), tuple(f"{n} {i}" for i, n in enumerate(batch.names)))), generator(0))
    if options.get("own"):
        method.ids = batch.names = tuple(f"{n} {i}" for i, n in enumerate(batch.names))
    return method.to(dtype), batch, model


class _Known:
    """An image tower whose features are given: only the text side is measured."""

    def __init__(self, tower, features):
        self.width, self.device, self.features = tower.width, tower.device, features

    def __call__(self, images):
        return self.features
