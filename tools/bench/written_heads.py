"""Written-out streams whose heads are aligned on drawn features: SLCA, SLCA++, HiDe-Prompt; see streams_newer.py."""

import copy
from functools import partial

import torch
import torch.nn.functional as F

from bench.written_vit import WrittenStream, align, descend, draw, flatten, group_statistics, leaf, run_vit
from vlprompt.runtime.seeding import make_generator

DRAWS, EPOCHS = 32, 3  # of SLCA


class SlowLearner(WrittenStream):
    """A copy of the tower is trained; aligned heads answer, and the next lesson goes on from those before."""

    def begin(self, start):
        if not self.lesson:
            self.tower = copy.deepcopy(self.trunk)
            self.statistics, self.heads = {}, []
            self.build(start)
        self.heads.append([leaf(start["weight"]), leaf(start["bias"])])

    def encode(self, pixels):
        return run_vit(self.tower, pixels)

    def compute_loss(self, pixels, labels):
        return F.cross_entropy(F.linear(self.encode(pixels), *self.heads[-1]), labels)

    def step(self, pixels, labels, step):
        groups = [(parameters, factor * self.lr) for parameters, factor in self.list_groups()]
        descend(self.compute_loss(pixels, labels), [*groups, (self.heads[-1], self.lr)])

    def end(self, pixels, labels):
        with torch.no_grad():
            found = group_statistics(self.encode(pixels), labels)
        self.statistics |= {self.first + label: values for label, values in found.items()}
        self.aligned = [leaf(torch.cat(parts)) for parts in zip(*self.heads, strict=True)]
        if self.lesson:
            align(self.aligned, self.compute_aligned_loss, self.draw, EPOCHS, 0.01, DRAWS)

    def compute_aligned_loss(self, x, y):
        logits = F.linear(x, *self.aligned)
        norms = torch.stack([part.norm(dim=1) + 1e-7 for part in logits.split(self.size, 1)], 1).mean(1, keepdim=True)
        return F.cross_entropy(logits / norms / 0.1, y)


class SLCA(SlowLearner):
    def build(self, start):
        self.tower.requires_grad_(True)

    def list_groups(self):
        return [([*self.tower.parameters()], 0.01)]

    def draw(self, epoch):
        factors = [0.9 + 0.1 * (c // self.size + 1) / (self.lesson + 1) for c in range(self.n_classes)]
        return draw(self.statistics, DRAWS, make_generator(self.start["seed"], "alignment", epoch), factors)

    def answer(self, pixels):
        return F.linear(self.encode(pixels), *self.aligned)


class SLCApp(SlowLearner):
    """Norms, biases and the class token of the copy, and low-rank updates of packed queries, keys and values."""

    def build(self, start):
        vectors = [name for name, p in self.tower.named_parameters() if p.ndim == 1 or name == "cls_token"]
        self.rest = [p.requires_grad_(True) for name, p in self.tower.named_parameters() if name in vectors]
        self.updates = []
        for i, block in enumerate(self.tower.blocks):
            vectors = torch.linalg.svd(block.attn.qkv.weight, full_matrices=False)[2][:4]
            signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
            self.updates.append([leaf(signs * vectors), leaf(start[f"updates.{i}.up"])])

    def list_groups(self):
        return [(flatten(self.updates), 0.1 if self.lesson else 0.5), (self.rest, 0.1)]

    def encode(self, pixels):
        def add(i, y):
            down, up = self.updates[i]
            return 0.8 * (y @ down.T @ up.T)

        return run_vit(self.tower, pixels, add)

    def compute_loss(self, pixels, labels):
        logits = F.linear(self.encode(pixels), *self.heads[-1])
        p = logits.softmax(1).clamp(1e-7, 1)
        reverse = -(p * F.one_hot(labels, p.shape[1]).clamp(1e-4, 1).log()).sum(1).mean()
        return F.cross_entropy(logits, labels) + 0.1 * reverse

    def draw(self, epoch):
        generator = make_generator(self.start["seed"], "alignment", epoch)
        x, labels = draw(self.statistics, DRAWS, generator)
        noise = torch.rand(len(x), generator=generator)
        return x / (1 + (0.02 + 0.02 * (noise - 0.5)) * (self.lesson - labels // self.size))[:, None], labels

    def answer(self, pixels):
        age = self.lesson - torch.arange(self.n_classes) // self.size
        return F.linear(self.encode(pixels), (1 + 0.02 * age)[:, None] * self.aligned[0], self.aligned[1])


class HiDePrompt(WrittenStream):
    """A frozen pass of every image for the guesser, in training, for its statistics and in tests."""

    def begin(self, start):
        self.prompts = [*self.prompts, leaf(self.prompts[-1])] if self.lesson else [leaf(start["prompts.0"])]
        if not self.lesson:
            self.guesser = {name[8:]: leaf(p) for name, p in start.items() if name.startswith("guesser.")}
            self.guesser |= {f"head.{part}": p[:0] for part, p in self.take(start, "guesser.head").items()}
            self.head = {part: p[:0] for part, p in self.take(start, "head").items()}
            self.frozen, self.prompted = {}, {}
        for part, p in self.take(start, "guesser.head").items():
            self.guesser[f"head.{part}"] = leaf(torch.cat([self.guesser[f"head.{part}"], p[self.first :]]))
        for part, p in self.take(start, "head").items():
            self.head[part] = leaf(torch.cat([self.head[part], p[self.first :]]))

    def take(self, start, name):
        return {part: start[f"{name}.{part}"] for part in ("weight", "bias")}

    def mix(self):
        own = self.prompts[-1]
        return 0.99 * own + 0.01 * torch.stack(self.prompts[:-1]).mean(0) if self.lesson else own

    def encode(self, prompts, pixels):
        """Compute features (B, D) with the prompts (1 or B, layers, 2, P, D)."""
        return run_vit(self.trunk, pixels, prefix={i: prompts[:, i].unbind(1) for i in range(prompts.shape[1])})

    def guess(self, f):
        g = self.guesser
        hidden = F.linear(F.gelu(F.linear(f, g["up.weight"], g["up.bias"])), g["down.weight"], g["down.bias"])
        x = F.layer_norm(f + hidden, f.shape[-1:], g["norm.weight"], g["norm.bias"])
        return F.linear(x, g["head.weight"], g["head.bias"])

    def step(self, pixels, labels, step):
        x = self.encode(self.mix()[None], pixels)
        loss = F.cross_entropy(F.linear(x, **self.head)[:, self.first :], labels)
        rows = torch.cat([*(mean.float()[None] for mean, _ in self.prompted.values()), x])
        loss = loss + 0.1 * F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows)))
        with torch.no_grad():
            f = run_vit(self.trunk, pixels)
        loss = loss + F.cross_entropy(self.guess(f)[:, self.first :], labels)
        groups = [([*self.head.values()], 0.1 * self.lr), ([*self.guesser.values()], self.lr / 60)]
        descend(loss, [([self.prompts[-1]], self.lr), *groups])

    @torch.no_grad()
    def end(self, pixels, labels):
        self.prompts[-1].copy_(self.mix())
        for stored, encode, draws, parameters, classify in (
            (self.frozen, partial(run_vit, self.trunk), 6, self.guesser, self.guess),
            (self.prompted, partial(self.encode, self.prompts[-1][None]), 30, self.head, self.classify),
        ):
            found = group_statistics(encode(pixels), labels)
            stored |= {self.first + label: values for label, values in found.items()}
            if not self.lesson:
                continue
            generator = torch.Generator().manual_seed(self.start["seed"])
            with torch.enable_grad():
                align(
                    [*parameters.values()],
                    lambda x, y, classify=classify: F.cross_entropy(classify(x), y),
                    lambda epoch, stored=stored, n=draws, generator=generator: draw(stored, n, generator),
                    *(6, 0.005, draws),
                    max_steps=self.first,
                )

    def classify(self, x):
        return F.linear(x, **self.head)

    def answer(self, pixels):
        lesson = self.guess(run_vit(self.trunk, pixels)).argmax(1) // self.size
        return self.classify(self.encode(torch.stack(self.prompts)[lesson], pixels))
