"""tools/bench transport: one training step of PLOT with several contexts beside as many of CoOp's.

Both are ours, on the text tower of a ViT-B/16-size CLIP with random weights and given image features: 49 patches of
each image for PLOT, the pooled one for CoOp, which takes a step with each of PLOT's contexts alone. So the ratio says
what the texts of several contexts in one pass save, less the transport plan. same: the class texts of PLOT's contexts
beside CoOp's. The classes are CIFAR-100's.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from bench.text import load_cifar_names
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.methods import PLOT, CoOp
from vlprompt.runtime.seeding import make_generator

N_CTX, N_PATCHES, WIDTH = 16, 49, 512
CASES = {  # name -> contexts, classes, images a step
    "plot, 4 contexts, 100 classes": (4, 100, 32),
    "plot, 4 contexts, 100 classes, 128 images": (4, 100, 128),
}
SHORT = {"plot, 4 contexts, 30 classes": (4, 30, 32)}
SINGLE_THREADED = True
TARGETS = {"plot, 4 contexts, 100 classes": ("ratio >= 1",)}
ROUNDS = dict.fromkeys(CASES, 3)


class GivenFeatures:
    """An image tower with given features of all images: of their patches, and pooled ones."""

    feature_dim = WIDTH

    def __init__(self, patches):
        self.patches, self.device = patches, patches.device

    def __call__(self, images):
        return self.patches.mean(1)

    def require_patch_features(self):
        pass

    def read(self, images, prompt, outputs):
        return (self.patches,)


class TransportBenchmark:
    """One case: a step of PLOT, and one of CoOp with each of its contexts."""

    n_repeats = 1

    def __init__(self, case, device, dtype):
        import open_clip

        from vlprompt.backbones.open_clip.towers import wrap_clip

        torch.manual_seed(0)
        n_prompts, n_classes, n_images = (CASES | SHORT)[case]
        model = open_clip.create_model("ViT-B-16-quickgelu").to(dtype)
        clip = wrap_clip(model, open_clip.get_tokenizer("ViT-B-16"), "bench", device)
        common = torch.randn(WIDTH, dtype=dtype, device=device)
        patches = common + torch.randn(n_images, N_PATCHES, WIDTH, dtype=dtype, device=device)
        clip, every = replace(clip, image=GivenFeatures(patches)), load_cifar_names()
        chosen = [every[i * (len(every) // n_classes)] for i in range(n_classes)]
        self.names = tuple(ClassName(name, str(i)) for i, name in enumerate(chosen))
        self.labels = torch.arange(n_images, device=device) % n_classes
        self.images = Images(lambda look, places: patches, [str(i) for i in range(n_images)])
        self.plot, self.coops = PLOT(clip, n_prompts, N_CTX), [CoOp(clip, N_CTX) for _ in range(n_prompts)]
        for method in (self.plot, *self.coops):
            method.begin_lesson(Lesson(Split((), (), self.names)), make_generator(0))
            method.to(dtype)
        for coop, ctx in zip(self.coops, self.plot.ctx, strict=True):
            coop.ctx.data = ctx.detach().clone()
        self.fixed = self.plot.precompute(self.names)

    def take_step(self, method, fixed):
        output = method(self.images, method.prepare(self.names, fixed))
        [gradient] = torch.autograd.grad(F.cross_entropy(output.logits, self.labels), [method.ctx])
        method.ctx.data -= 1e-6 * gradient

    def fast(self):
        self.take_step(self.plot, self.fixed)

    def reference(self):
        for coop in self.coops:
            self.take_step(coop, (self.fixed, None))

    def measure_difference(self):
        texts = self.plot.prepare(self.names, self.fixed)
        alone = torch.stack([coop.prepare(self.names, (self.fixed, None)) for coop in self.coops])
        return float((texts - alone).detach().abs().max() / alone.detach().abs().max())

    def run_variant(self, variant):
        getattr(self, variant)()


build_benchmark = TransportBenchmark
