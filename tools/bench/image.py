"""tools/bench image: from JPEG files of 500 x 375 to pixels of 224 x 224, and on to what a ViT-B/16 makes of them.

The written-out form is a plain loop: PIL opens a file, torchvision's transforms (bicubic) make its pixels, image by
image in one thread, every epoch again, and the tower waits for it. Ours has as many threads for decoding as --threads
says. "First" is an epoch over files of which nothing was kept, "later" one after it. Images a second are by the clock
on the wall, which other programs disturb, for what threads save is no time of the processor; beside them are the
milliseconds of the processor that an image takes. The ratio is of the seconds on the wall. `same` is the largest
difference of what the two forms make, relative; of augmented pixels, whose crops are drawn from another stream, it is
against a fresh decode.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bench.rows import number
from vlprompt.backbones.timm.blocks import timm_image
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name
from vlprompt.core.images import Look, View
from vlprompt.core.stage import Lesson
from vlprompt.data.images.cache import HELD, most
from vlprompt.data.images.decoding import file_item, open_picture, pixels
from vlprompt.data.images.prefetch import ahead
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import Train
from vlprompt.layers.frozen_maps import same
from vlprompt.layers.heads import Linear
from vlprompt.methods import VPT
from vlprompt.runtime import threads
from vlprompt.runtime.seeding import generator

CASES = {  # name -> work, augmentation, whether nothing was kept before, images on a CPU and on a GPU
    "pixels, first epoch": ("pixels", "none", True, 256, 2048),
    "pixels, later epoch": ("pixels", "none", False, 256, 2048),
    "pixels, crop-flip, first epoch": ("pixels", "crop-flip", True, 256, 2048),
    "pixels, crop-flip, later epoch": ("pixels", "crop-flip", False, 256, 2048),
    "frozen features, first epoch": ("features", "none", True, 16, 2048),
    "VPT-deep, 10 prompts, training, later epoch": ("vpt", "none", False, 16, 1024),
    "VPT-deep, 10 prompts, crop-flip, training, later epoch": ("vpt", "crop-flip", False, 16, 1024),
}
SHORT = {case: CASES[case] for case in ("pixels, later epoch",)}
BATCH, CLASSES = {"cpu": 8, "cuda": 64}, 10
COLUMNS = {
    "written out images/s": number("written_out_rate:.3g"),
    "vlprompt images/s": number("fast_rate:.3g"),
    "ratio (of rounds)": lambda row: f"**{row['ratio']:.2f}** ({row['least']:.2f}-{row['most']:.2f})",
    "written out processor ms": number("written_out_ms:.2f"),
    "vlprompt processor ms": number("fast_ms:.2f"),
    "same": number("same:.0e"),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOOK = Look((224, 224), MEAN, STD)


def photographs(folder, n):
    """So many JPEG files, each another part of one of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    random, arrays = np.random.default_rng(0), load_sample_images().images
    for i in range(n):
        width = int(random.integers(380, 569))
        x, y = random.integers(0, 641 - width), random.integers(0, 428 - width * 3 // 4)
        shown = Image.fromarray(arrays[i % 2]).crop((x, y, x + width, y + width * 3 // 4))
        shown.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def transform(augment):
    from torchvision import transforms as T

    cubic = T.InterpolationMode.BICUBIC
    first = [T.Resize(224, cubic), T.CenterCrop(224)]
    if augment == "crop-flip":
        first = [T.RandomResizedCrop(224, interpolation=cubic), T.RandomHorizontalFlip()]
    return T.Compose([*first, T.ToTensor(), T.Normalize(MEAN, STD)])


class Setting:
    """One case: the files, and the tower or the method that takes their pixels."""

    def __init__(self, case, device, folder):
        self.kind, self.augment, self.anew, *counts = CASES[case]
        self.device, self.size = device, BATCH[device]
        self.files, self.epochs = photographs(folder, counts[device == "cuda"]), 0
        self.transform, names = transform(self.augment), tuple(Name(str(i)) for i in range(CLASSES))
        self.labels = torch.arange(len(self.files)) % CLASSES
        items = tuple(file_item(path, path.name) for path in self.files)
        self.split = Split(items, tuple(self.labels.tolist()), names, augment=self.augment)
        if self.kind == "pixels":
            return
        import timm

        torch.manual_seed(0)
        trunk = timm.create_model("vit_base_patch16_224", num_classes=0).to(device).eval().requires_grad_(False)
        self.tower = timm_image(trunk, same, 768, LOOK, "bench", torch.device(device))
        self.method = VPT(self.tower, Linear(), n_tokens=10, deep=True, dropout=0.0)
        self.method.begin(Lesson(self.split), generator(0))
        self.method.to(device)

    def decoded(self, files):
        """The written-out form's pixels, image by image."""
        return torch.stack([self.transform(Image.open(path).convert("RGB")) for path in files])

    def batches(self):
        return [self.files[i : i + self.size] for i in range(0, len(self.files), self.size)]

    def fast(self):
        self.epochs += 1
        if self.anew:
            HELD.use(0)
            HELD.use(most())
        if self.kind == "vpt":
            train = Train(epochs=1, batch=self.size, lr=1e-6, warmup=0, drop_last=False)
            return [step.loss for step in fit(self.method, Lesson(self.split), train, seed=self.epochs)]
        if self.kind == "features":
            self.tower.kept = type(self.tower.kept)()
            return torch.cat([self.tower(batch.inputs) for batch in ahead(self.split.batches(self.size))])
        seed = None if self.augment == "none" else self.epochs
        return [batch.inputs.pixels(LOOK) for batch in ahead(self.split.batches(self.size, seed=seed))]

    def written_out(self):
        found = []
        for k, files in enumerate(self.batches()):
            x = self.decoded(files)
            if self.kind == "features":
                with torch.no_grad():
                    x = self.tower.encode(x.to(self.device))
            if self.kind == "vpt":
                features = self.tower._pass(x.to(self.device), self._prompt(), "pooled")
                labels = self.labels[k * self.size :][: len(files)].to(self.device)
                x = F.cross_entropy(self.method.reader(features, self.method.fixed(self.split.names)), labels)
                parameters = list(self.method.parameters())
                for p, g in zip(parameters, torch.autograd.grad(x, parameters), strict=True):
                    p.data -= 1e-6 * g
            found.append(x)
        return found

    def _prompt(self):
        from vlprompt.core.prompt import Prompt

        return Prompt(tokens=dict(enumerate(self.method.tokens)))

    def same(self):
        if self.kind == "vpt":
            return None  # its pixels are those of the rows above
        if self.kind == "pixels" and self.augment != "none":
            items, view = self.split.items[:16], View(self.augment, 5)
            mine = torch.stack([item.pixels(LOOK, view) for item in items for _ in range(2)])[1::2]
            theirs = torch.stack([pixels(open_picture(path), LOOK, view) for path in self.files[:16]])
        else:
            mine, theirs = (
                x if isinstance(x, torch.Tensor) else torch.cat(x) for x in (self.fast(), self.written_out())
            )
        return float((mine - theirs).abs().max() / theirs.abs().max())


def timed(work, device):
    """Seconds on the wall, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def row(case, device, rounds):
    threads.use(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(case, device, Path(folder))
        difference = setting.same()
        setting.fast(), setting.written_out()  # once, so that the files have been read
        fast, slow = zip(*((timed(setting.fast, device), timed(setting.written_out, device)) for _ in range(rounds)),
                         strict=True)  # fmt: skip
    n, found = len(setting.files), {"same": difference}
    for name, times in (("fast", fast), ("written_out", slow)):
        walls, processors = zip(*times, strict=True)
        found |= {name: statistics.median(walls), f"{name}_rate": n / statistics.median(walls)}
        found[f"{name}_ms"] = 1000 * statistics.median(processors) / n
    ratios = [b[0] / a[0] for a, b in zip(fast, slow, strict=True)]
    return found | {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
