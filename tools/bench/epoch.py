"""tools/bench epoch: a whole epoch of CoOp from images, on a ViT-B/16-size CLIP with random weights.

The written-out form is what the authors run: every step encodes its 32 images and 77 tokens of every class. Ours finds
the features of all images kept, as every epoch after the first does where images have no augmentation, or views that
were seen before; "first time" is its epoch over images that it never saw. Both take the same steps in the same order:
decoded pixels to features, text pass, cross-entropy, backward to the context, SGD.
"""

import time

import torch
import torch.nn.functional as F

from bench import text
from vlprompt.core.batch import Split
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import CoOp
from vlprompt.runtime.seeding import derive_seed, make_generator

CASES = {  # name -> classes, images, images a step
    "coop, 100 classes, 64 images, kept": (100, 64, 32),
}
SHORT = {"coop, 30 classes, 8 images, kept": (30, 8, 8)}
TARGETS = dict.fromkeys(CASES, ("ratio >= 25",))
KEPT_MEMORY = list(CASES)


class EpochBenchmark(text.TextBenchmark):
    """One case: both forms on the same model, names, images, labels and initial values."""

    def __init__(self, case, device, dtype):
        classes, self.n_images, self.batch_size = (CASES | SHORT)[case]
        super().__init__((CoOp, {"n_ctx": 16}, classes, self.batch_size), device, dtype, with_known_features=False)
        look = self.clip.image.preprocessing.size
        self.pixels = [
            torch.randn(3, *look, generator=make_generator("epoch", i), dtype=dtype) for i in range(self.n_images)
        ]
        self.lesson = self._build_lesson("kept")

    def _build_lesson(self, tag):
        def item(i):
            return ImageItem(f"{tag}/{i}", lambda look, view: self.pixels[i], str(i))

        items = tuple(item(i) for i in range(self.n_images))
        return Lesson(Split(items, tuple(i % len(self.names) for i in range(self.n_images)), self.names))

    def run_epoch(self, lesson, lr):
        train = TrainConfig(
            epochs=1, batch_size=self.batch_size, lr=lr, momentum=0, weight_decay=0, schedule="constant", warmup=0
        )
        for _ in fit(self.method, lesson, train):
            pass

    def run_reference_epoch(self, lr):
        for batch in self.lesson.train.batches(
            self.batch_size, seed=derive_seed(1, 0), drop_last=True
        ):  # the order of `fit`
            with torch.no_grad():
                x = self.model.encode_image(batch.inputs.pixels(self.clip.image.preprocessing).to(self.device))
            labels = batch.labels.to(self.device)
            loss = F.cross_entropy(self._compute_logits(x, self._encode_texts(self.method.ctx)), labels)
            (gradient,) = torch.autograd.grad(loss, [self.method.ctx])
            with torch.no_grad():
                self.method.ctx -= lr * gradient

    def measure_difference(self):
        """Return the relative difference of the parameter changes of an epoch."""
        start, found = self.method.ctx.detach().clone(), []
        for form in (lambda: self.run_epoch(self.lesson, 0.01), lambda: self.run_reference_epoch(0.01)):
            self.method.ctx.data = start.clone()
            form()
            found.append(self.method.ctx.detach() - start)
        self.method.ctx.data = start
        return float((found[0] - found[1]).abs().max() / found[1].abs().max())

    cold = True  # there is a third form: images that were never seen

    def run_variant(self, variant):
        if variant == "reference":
            self.run_reference_epoch(1e-6)
        else:
            self.run_epoch(self.lesson if variant == "fast" else self._build_lesson(f"first/{time.time_ns()}"), 1e-6)


build_benchmark = EpochBenchmark
