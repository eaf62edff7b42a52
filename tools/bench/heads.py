"""tools/bench heads: what is trained above frozen features, at the sizes of VTAB-1k and a ViT-B/16.

partial-1: a step of 8 images on the rows that come into the last block, which are kept; the written-out form is a pass
through the whole trunk of timm, of which the last block and norm are trained. linear: 40 settings (learning rate x
weight decay) of 100 epochs over 1000 features of width 768, side by side; the written-out form trains a torch.nn.Linear
40 times on the same features and batches. Beside it go the forward passes of the trunk: 1000 where features are kept,
4,000,000 where, as in the authors' code, every epoch of every setting makes them again.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Images, Preprocessing
from vlprompt.core.stage import Lesson
from vlprompt.engine.train_config import TrainConfig, compute_learning_rate
from vlprompt.engine.vmap_training import fit_vmapped
from vlprompt.layers.frozen_maps import identity
from vlprompt.layers.heads import LinearHead as Head
from vlprompt.methods import Linear, Partial
from vlprompt.runtime.seeding import derive_seed, make_generator

CASES = {  # name -> classes
    "partial-1, 8 images, step": 100,
    "linear, 10 classes, 1000 images, 40 settings, 100 epochs": 10,
    "linear, 100 classes, 1000 images, 40 settings, 100 epochs": 100,
}
LR_AND_WEIGHT_DECAY = tuple(product((50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05), (0.01, 0.001, 0.0001, 0.0)))


class PartialBenchmark:
    """One case: a training step of partial-1."""

    def __init__(self, classes, device, dtype):
        import timm

        torch.manual_seed(0)
        self.trunk = timm.create_model("vit_base_patch16_224", num_classes=0).to(device, dtype).eval()
        self.trunk.requires_grad_(False)
        tower = build_timm_tower(self.trunk, identity, 768, Preprocessing((224, 224)), "bench", torch.device(device))
        names = tuple(ClassName(str(i)) for i in range(classes))
        self.method = Partial(tower, Head())
        self.method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
        self.method.to(dtype)
        pixels = torch.randn(8, 3, 224, 224, device=device, dtype=dtype)
        self.pixels, self.labels = pixels, torch.arange(8, device=device)
        self.images = Images(lambda look, places: pixels[list(places)], [str(i) for i in range(8)])
        self.prepared = tower, self.method.precompute(names)
        self.method.lower(self.images)  # kept from here on
        layer = self.method.upper.layers[0].maps
        self.our_parameters = [layer["qkv"].weight, layer["down"].weight, self.method.upper.norm.weight]
        last = self.trunk.blocks[-1]
        self.their_parameters = [last.attn.qkv.weight, last.mlp.fc2.weight, self.trunk.norm.weight]
        for part in (last, self.trunk.norm):
            part.requires_grad_(True)
        self.trained_parameters = {"fast": list(self.method.parameters())}
        self.trained_parameters["reference"] = [
            *last.parameters(),
            *self.trunk.norm.parameters(),
            *self.method.head.parameters(),
        ]

    def fast(self):
        return self.method(self.images, self.prepared).logits

    def reference(self):
        with torch.no_grad():
            x = self.trunk._pos_embed(self.trunk.patch_embed(self.pixels))
            for block in self.trunk.blocks[:-1]:
                x = block(x)
        x = self.trunk.norm(self.trunk.blocks[-1](x))[:, 0]
        return F.linear(x, self.method.head.weight, self.method.head.bias)

    def measure_difference(self):
        mine = torch.autograd.grad(F.cross_entropy(self.fast(), self.labels), self.our_parameters)
        theirs = torch.autograd.grad(F.cross_entropy(self.reference(), self.labels), self.their_parameters)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))

    def run_variant(self, variant):
        loss = F.cross_entropy(getattr(self, variant)(), self.labels)
        gradients = torch.autograd.grad(loss, self.trained_parameters[variant])
        with torch.no_grad():
            for p, g in zip(self.trained_parameters[variant], gradients, strict=True):
                p -= 1e-6 * g


class CachedImageTower:
    """An image tower whose features are cached already."""

    feature_dim, depth = 768, 0

    def __init__(self, features):
        self.features, self.device = features, features.device

    def __call__(self, images, prompt=None):
        return self.features[torch.tensor([int(key) for key in images.keys], device=self.device)]


class LinearBenchmark:
    """One case: training 40 linear heads."""

    n_repeats = 1

    def __init__(self, classes, device, dtype):
        self.classes, centres = classes, torch.randn(classes, 768, generator=make_generator("centres"))
        self.labels = torch.arange(1000) % classes
        noise = torch.randn(1000, 768, generator=make_generator("noise"))
        self.features = F.normalize(centres[self.labels] + 3 * noise, dim=-1).to(device, dtype)
        items = tuple(ImageItem(str(i), lambda look, view: torch.empty(0)) for i in range(1000))
        names = tuple(ClassName(str(i)) for i in range(classes))
        self.lesson = Lesson(Split(items, tuple(self.labels.tolist()), names))
        self.train_configs = [
            TrainConfig(
                epochs=100,
                batch_size=128,
                lr=lr * 128 / 256,
                weight_decay=wd,
                schedule="cosine-after-warmup",
                warmup=10,
                warmup_kind="linear",
                warmup_lr=0.0,
                drop_last=False,
            )
            for lr, wd in LR_AND_WEIGHT_DECAY
        ]

    def fast(self):
        methods = [Linear(CachedImageTower(self.features), Head(), solver="fit") for _ in LR_AND_WEIGHT_DECAY]
        for method in methods:
            method.begin_lesson(self.lesson, make_generator(0))
        for _ in fit_vmapped(methods, self.lesson, self.train_configs, [1] * len(methods)):
            pass
        return torch.stack([m.head.weight.detach() for m in methods])

    def reference(self):
        found, batches = [], []
        for epoch in range(100):
            seed = derive_seed(1, 0)
            batches.append([b.inputs.keys for b in self.lesson.train.batches(128, seed=seed, epoch=epoch)])
        orders = [[torch.tensor([int(k) for k in keys]) for keys in epoch] for epoch in batches]
        for train in self.train_configs:
            head = nn.Linear(768, self.classes, device=self.features.device, dtype=self.features.dtype)
            head.weight.data.copy_(torch.randn(self.classes, 768, generator=make_generator(0)) * 0.01)
            head.bias.data.zero_()
            groups = [{"params": [head.weight]}, {"params": [head.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, train.lr, train.momentum, weight_decay=train.weight_decay)
            for epoch, order in enumerate(orders):
                for group in optimizer.param_groups:
                    group["lr"] = compute_learning_rate(train, epoch, 0, 100, 800)
                for places in order:
                    loss = F.cross_entropy(head(self.features[places]), self.labels[places].to(self.features.device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            found.append(head.weight.detach())
        return torch.stack(found)

    def measure_difference(self):
        mine, theirs = self.fast(), self.reference()
        return float(((mine - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))).max())

    def run_variant(self, variant):
        getattr(self, variant)()


def build_benchmark(case, device, dtype):
    return (PartialBenchmark if case.startswith("partial") else LinearBenchmark)(CASES[case], device, dtype)
