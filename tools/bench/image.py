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

from bench.rows import make_number_column
from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Augmentation, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.data.images.cache import IMAGE_CACHE, default_max_bytes
from vlprompt.data.images.decoding import build_file_item, open_image, preprocess_image
from vlprompt.data.images.prefetch import prefetch_images
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.frozen_maps import identity
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import VPT
from vlprompt.runtime import threads
from vlprompt.runtime.seeding import make_generator

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
BATCH_SIZES, CLASSES = {"cpu": 8, "cuda": 64}, 10
COLUMNS = {
    "written out images/s": make_number_column("reference_rate:.3g"),
    "vlprompt images/s": make_number_column("fast_rate:.3g"),
    "ratio (of rounds)": lambda row: f"**{row['ratio']:.2f}** ({row['min']:.2f}-{row['max']:.2f})",
    "written out processor ms": make_number_column("reference_ms:.2f"),
    "vlprompt processor ms": make_number_column("fast_ms:.2f"),
    "same": make_number_column("difference:.0e"),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = Preprocessing((224, 224), MEAN, STD)


def write_photographs(folder, n_images):
    """Write n JPEG files, each another crop of one of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    random, arrays = np.random.default_rng(0), load_sample_images().images
    for i in range(n_images):
        width = int(random.integers(380, 569))
        x, y = random.integers(0, 641 - width), random.integers(0, 428 - width * 3 // 4)
        shown = Image.fromarray(arrays[i % 2]).crop((x, y, x + width, y + width * 3 // 4))
        shown.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def build_transform(augment):
    from torchvision import transforms as T

    cubic = T.InterpolationMode.BICUBIC
    first = [T.Resize(224, cubic), T.CenterCrop(224)]
    if augment == "crop-flip":
        first = [T.RandomResizedCrop(224, interpolation=cubic), T.RandomHorizontalFlip()]
    return T.Compose([*first, T.ToTensor(), T.Normalize(MEAN, STD)])


class ImageBenchmark:
    """One case: the files, and the tower or the method that takes their pixels."""

    def __init__(self, case, device, folder):
        self.workload, self.augment, self.is_cold, *counts = CASES[case]
        self.device, self.batch_size = device, BATCH_SIZES[device]
        self.files, self.epoch = write_photographs(folder, counts[device == "cuda"]), 0
        self.transform, names = build_transform(self.augment), tuple(ClassName(str(i)) for i in range(CLASSES))
        self.labels = torch.arange(len(self.files)) % CLASSES
        items = tuple(build_file_item(path, path.name) for path in self.files)
        self.split = Split(items, tuple(self.labels.tolist()), names, augment=self.augment)
        if self.workload == "pixels":
            return
        import timm

        torch.manual_seed(0)
        trunk = timm.create_model("vit_base_patch16_224", num_classes=0).to(device).eval().requires_grad_(False)
        self.tower = build_timm_tower(trunk, identity, 768, PREPROCESSING, "bench", torch.device(device))
        self.method = VPT(self.tower, LinearHead(), n_tokens=10, deep=True, dropout=0.0)
        self.method.begin_lesson(Lesson(self.split), make_generator(0))
        self.method.to(device)

    def decode(self, files):
        """Decode with the reference implementation, image by image."""
        return torch.stack([self.transform(Image.open(path).convert("RGB")) for path in files])

    def split_files(self):
        return [self.files[i : i + self.batch_size] for i in range(0, len(self.files), self.batch_size)]

    def fast(self):
        self.epoch += 1
        if self.is_cold:
            IMAGE_CACHE.set_max_bytes(0)
            IMAGE_CACHE.set_max_bytes(default_max_bytes())
        if self.workload == "vpt":
            train = TrainConfig(epochs=1, batch_size=self.batch_size, lr=1e-6, warmup=0, drop_last=False)
            return [step.loss for step in fit(self.method, Lesson(self.split), train, seed=self.epoch)]
        if self.workload == "features":
            self.tower.feature_cache = type(self.tower.feature_cache)()
            return torch.cat(
                [self.tower(batch.inputs) for batch in prefetch_images(self.split.batches(self.batch_size))]
            )
        seed = None if self.augment == "none" else self.epoch
        return [
            batch.inputs.pixels(PREPROCESSING)
            for batch in prefetch_images(self.split.batches(self.batch_size, seed=seed))
        ]

    def reference(self):
        found = []
        for k, files in enumerate(self.split_files()):
            x = self.decode(files)
            if self.workload == "features":
                with torch.no_grad():
                    x = self.tower.encode(x.to(self.device))
            if self.workload == "vpt":
                features = self.tower._encode_with_prompt(x.to(self.device), self._build_prompt(), ("pooled",))[0]
                labels = self.labels[k * self.batch_size :][: len(files)].to(self.device)
                x = F.cross_entropy(self.method.head(features, self.method.precompute(self.split.names)), labels)
                parameters = list(self.method.parameters())
                for p, g in zip(parameters, torch.autograd.grad(x, parameters), strict=True):
                    p.data -= 1e-6 * g
            found.append(x)
        return found

    def _build_prompt(self):
        from vlprompt.core.prompt import Prompt

        return Prompt(tokens=dict(enumerate(self.method.tokens)))

    def measure_difference(self):
        if self.workload == "vpt":
            return None  # its pixels are those of the rows above
        if self.workload == "pixels" and self.augment != "none":
            items, view = self.split.items[:16], Augmentation(self.augment, 5)
            mine = torch.stack([item.pixels(PREPROCESSING, view) for item in items for _ in range(2)])[1::2]
            theirs = torch.stack([preprocess_image(open_image(path), PREPROCESSING, view) for path in self.files[:16]])
        else:
            mine, theirs = (x if isinstance(x, torch.Tensor) else torch.cat(x) for x in (self.fast(), self.reference()))
        return float((mine - theirs).abs().max() / theirs.abs().max())


def time_wall_and_cpu(call, device):
    """Return wall-clock and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def measure_row(case, device, rounds):
    threads.set_workers(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        setting = ImageBenchmark(case, device, Path(folder))
        difference = setting.measure_difference()
        setting.fast(), setting.reference()  # once, so that the files have been read
        fast, slow = zip(
            *(
                (time_wall_and_cpu(setting.fast, device), time_wall_and_cpu(setting.reference, device))
                for _ in range(rounds)
            ),
            strict=True,
        )
    n, found = len(setting.files), {"difference": difference}
    for name, times in (("fast", fast), ("reference", slow)):
        walls, processors = zip(*times, strict=True)
        found |= {name: statistics.median(walls), f"{name}_rate": n / statistics.median(walls)}
        found[f"{name}_ms"] = 1000 * statistics.median(processors) / n
    ratios = [b[0] / a[0] for a, b in zip(fast, slow, strict=True)]
    return found | {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


build_benchmark = ImageBenchmark
