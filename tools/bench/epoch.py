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
from vlprompt.core.images import Item
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import Train
from vlprompt.methods import CoOp
from vlprompt.runtime.seeding import generator, number

CASES = {  # name -> classes, images, images a step
    "coop, 100 classes, 64 images, kept": (100, 64, 32),
}
SHORT = {"coop, 30 classes, 8 images, kept": (30, 8, 8)}
WANTED = dict.fromkeys(CASES, ("ratio >= 25",))


class Setting(text.Setting):
    """One case: both forms on the same model, names, images, labels and initial values."""

    def __init__(self, case, device, dtype):
        classes, self.count, self.size = (CASES | SHORT)[case]
        super().__init__((CoOp, {"n_ctx": 16}, classes, self.size), device, dtype, known=False)
        look = self.clip.image.look.size
        self.pixels = [torch.randn(3, *look, generator=generator("epoch", i), dtype=dtype) for i in range(self.count)]
        self.lesson = self._lesson("kept")

    def _lesson(self, tag):
        def item(i):
            return Item(f"{tag}/{i}", lambda look, view: self.pixels[i], str(i))

        items = tuple(item(i) for i in range(self.count))
        return Lesson(Split(items, tuple(i % len(self.names) for i in range(self.count)), self.names))

    def epoch(self, lesson, lr):
        train = Train(epochs=1, batch=self.size, lr=lr, momentum=0, weight_decay=0, schedule="constant", warmup=0)
        for _ in fit(self.method, lesson, train):
            pass

    def epoch_written_out(self, lr):
        for batch in self.lesson.train.batches(self.size, seed=number(1, 0), drop_last=True):  # the order of `fit`
            with torch.no_grad():
                x = self.model.encode_image(batch.inputs.pixels(self.clip.image.look).to(self.device))
            labels = batch.labels.to(self.device)
            loss = F.cross_entropy(self._logits(x, self._texts(self.method.ctx)), labels)
            (gradient,) = torch.autograd.grad(loss, [self.method.ctx])
            with torch.no_grad():
                self.method.ctx -= lr * gradient

    def same(self):
        """The difference of what an epoch changes, relative."""
        start, found = self.method.ctx.detach().clone(), []
        for form in (lambda: self.epoch(self.lesson, 0.01), lambda: self.epoch_written_out(0.01)):
            self.method.ctx.data = start.clone()
            form()
            found.append(self.method.ctx.detach() - start)
        self.method.ctx.data = start
        return float((found[0] - found[1]).abs().max() / found[1].abs().max())

    first = True  # there is a third form: images that were never seen

    def work(self, form):
        if form == "written_out":
            self.epoch_written_out(1e-6)
        else:
            self.epoch(self.lesson if form == "fast" else self._lesson(f"first/{time.time_ns()}"), 1e-6)
