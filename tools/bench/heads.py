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

from vlprompt.backbones.timm.blocks import timm_image
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name
from vlprompt.core.images import Images, Item, Look
from vlprompt.core.stage import Lesson
from vlprompt.engine.train_config import Train, rate
from vlprompt.engine.vmap_training import fit_side_by_side
from vlprompt.layers.frozen_maps import same
from vlprompt.layers.heads import Linear as Head
from vlprompt.methods import Linear, Partial
from vlprompt.runtime.seeding import generator, number

CASES = {  # name -> classes
    "partial-1, 8 images, step": 100,
    "linear, 10 classes, 1000 images, 40 settings, 100 epochs": 10,
    "linear, 100 classes, 1000 images, 40 settings, 100 epochs": 100,
}
GRID = tuple(product((50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05), (0.01, 0.001, 0.0001, 0.0)))


class _Partial:
    """A step of partial-1."""

    def __init__(self, classes, device, dtype):
        import timm

        torch.manual_seed(0)
        self.trunk = timm.create_model("vit_base_patch16_224", num_classes=0).to(device, dtype).eval()
        self.trunk.requires_grad_(False)
        tower = timm_image(self.trunk, same, 768, Look((224, 224)), "bench", torch.device(device))
        names = tuple(Name(str(i)) for i in range(classes))
        self.method = Partial(tower, Head())
        self.method.begin(Lesson(Split((), (), names)), generator(0))
        self.method.to(dtype)
        pixels = torch.randn(8, 3, 224, 224, device=device, dtype=dtype)
        self.pixels, self.labels = pixels, torch.arange(8, device=device)
        self.images = Images(lambda look, places: pixels[list(places)], [str(i) for i in range(8)])
        self.prepared = tower, self.method.fixed(names)
        self.method.below(self.images)  # kept from here on
        layer = self.method.upper.layers[0].maps
        self.mine = [layer["qkv"].weight, layer["down"].weight, self.method.upper.norm.weight]
        last = self.trunk.blocks[-1]
        self.theirs = [last.attn.qkv.weight, last.mlp.fc2.weight, self.trunk.norm.weight]
        for part in (last, self.trunk.norm):
            part.requires_grad_(True)
        self.all = {"fast": list(self.method.parameters())}
        self.all["written_out"] = [*last.parameters(), *self.trunk.norm.parameters(), *self.method.reader.parameters()]

    def fast(self):
        return self.method(self.images, self.prepared).logits

    def written_out(self):
        with torch.no_grad():
            x = self.trunk._pos_embed(self.trunk.patch_embed(self.pixels))
            for block in self.trunk.blocks[:-1]:
                x = block(x)
        x = self.trunk.norm(self.trunk.blocks[-1](x))[:, 0]
        return F.linear(x, self.method.reader.weight, self.method.reader.bias)

    def same(self):
        mine = torch.autograd.grad(F.cross_entropy(self.fast(), self.labels), self.mine)
        theirs = torch.autograd.grad(F.cross_entropy(self.written_out(), self.labels), self.theirs)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))

    def work(self, form):
        loss = F.cross_entropy(getattr(self, form)(), self.labels)
        gradients = torch.autograd.grad(loss, self.all[form])
        with torch.no_grad():
            for p, g in zip(self.all[form], gradients, strict=True):
                p -= 1e-6 * g


class _Known:
    """An image tower whose features are kept already."""

    width, depth = 768, 0

    def __init__(self, features):
        self.features, self.device = features, features.device

    def __call__(self, images, prompt=None):
        return self.features[torch.tensor([int(key) for key in images.keys], device=self.device)]


class _Linear:
    """40 linear heads."""

    often = 1

    def __init__(self, classes, device, dtype):
        self.classes, centres = classes, torch.randn(classes, 768, generator=generator("centres"))
        self.labels = torch.arange(1000) % classes
        noise = torch.randn(1000, 768, generator=generator("noise"))
        self.features = F.normalize(centres[self.labels] + 3 * noise, dim=-1).to(device, dtype)
        items = tuple(Item(str(i), lambda look, view: torch.empty(0)) for i in range(1000))
        names = tuple(Name(str(i)) for i in range(classes))
        self.lesson = Lesson(Split(items, tuple(self.labels.tolist()), names))
        self.trains = [
            Train(epochs=100, batch=128, lr=lr * 128 / 256, weight_decay=wd, schedule="cosine-rest", warmup=10,
                  warmup_kind="linear", warmup_lr=0.0, drop_last=False)
            for lr, wd in GRID
        ]  # fmt: skip

    def fast(self):
        methods = [Linear(_Known(self.features), Head(), solver="fit") for _ in GRID]
        for method in methods:
            method.begin(self.lesson, generator(0))
        for _ in fit_side_by_side(methods, self.lesson, self.trains, [1] * len(methods)):
            pass
        return torch.stack([m.reader.weight.detach() for m in methods])

    def written_out(self):
        found, batches = [], []
        for epoch in range(100):
            seed = number(1, 0)
            batches.append([b.inputs.keys for b in self.lesson.train.batches(128, seed=seed, epoch=epoch)])
        orders = [[torch.tensor([int(k) for k in keys]) for keys in epoch] for epoch in batches]
        for train in self.trains:
            head = nn.Linear(768, self.classes, device=self.features.device, dtype=self.features.dtype)
            head.weight.data.copy_(torch.randn(self.classes, 768, generator=generator(0)) * 0.01)
            head.bias.data.zero_()
            groups = [{"params": [head.weight]}, {"params": [head.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, train.lr, train.momentum, weight_decay=train.weight_decay)
            for epoch, order in enumerate(orders):
                for group in optimizer.param_groups:
                    group["lr"] = rate(train, epoch, 0, 100, 800)
                for places in order:
                    loss = F.cross_entropy(head(self.features[places]), self.labels[places].to(self.features.device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            found.append(head.weight.detach())
        return torch.stack(found)

    def same(self):
        mine, theirs = self.fast(), self.written_out()
        return float(((mine - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))).max())

    def work(self, form):
        getattr(self, form)()


def Setting(case, device, dtype):
    return (_Partial if case.startswith("partial") else _Linear)(CASES[case], device, dtype)
