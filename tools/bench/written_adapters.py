"""Written-out streams with adapters and low-rank updates: APER, EASE, MOS, TUNA, LAE, SD-LoRA, InfLoRA."""

import torch
import torch.nn.functional as F

from bench.written_vit import (
    WrittenStream,
    align,
    bottleneck,
    descend,
    draw,
    flatten,
    group_statistics,
    leaf,
    make_parallel,
    run_vit,
    unit,
)

ALIGN_EPOCHS, ALIGN_SAMPLES = 6, 32


class APER(WrittenStream):
    """Two passes of every image, of the frozen and of the tuned tower."""

    def begin(self, start):
        if not self.lesson:
            self.layers = bottleneck(start, "method.adapters.{}/mlp+.", len(self.trunk.blocks))
            self.head, self.gain, self.means = leaf(start["method.head.weight"]), leaf(start["method.head.gain"]), []

    def tune(self, pixels):
        return run_vit(self.trunk, pixels, parallel=make_parallel(self.layers, 0.1))

    def step(self, pixels, labels, step):
        if not self.lesson:
            logits = self.gain * unit(self.tune(pixels)) @ unit(self.head).T
            descend(F.cross_entropy(logits, labels), [([*flatten(self.layers), self.head, self.gain], self.lr)])

    @torch.no_grad()
    def encode(self, pixels):
        return torch.cat([run_vit(self.trunk, pixels), self.tune(pixels)], 1)

    def end(self, pixels, labels):
        features = self.encode(pixels)
        self.means += [features[labels == label].mean(0) for label in labels.unique().tolist()]

    def answer(self, pixels):
        return unit(self.encode(pixels)) @ unit(torch.stack(self.means)).T


class WithSets(WrittenStream):
    """A set of bottlenecks for each lesson; only the newest is trained."""

    def begin(self, start):
        self.sets = self.sets if self.lesson else []
        copied = self.sets[-1] if self.goes_on and self.lesson else None
        path = f"bank.sets.{self.lesson}." + "{}/mlp+."
        fresh = bottleneck(start, path, len(self.trunk.blocks))
        self.sets.append([[leaf(p) for p in layer] for layer in copied] if copied else fresh)

    def encode(self, index, pixels):
        return run_vit(self.trunk, pixels, parallel=make_parallel(self.sets[index], 0.1))


class EASE(WithSets):
    goes_on = False

    def begin(self, start):
        super().begin(start)
        self.head, self.gain = leaf(start["head.weight"]), leaf(start["head.gain"])
        self.means = self.means if self.lesson else {}  # (class, subspace) -> mean

    def step(self, pixels, labels, step):
        logits = self.gain * unit(self.encode(-1, pixels)) @ unit(self.head).T
        descend(F.cross_entropy(logits, labels), [([*flatten(self.sets[-1]), self.head, self.gain], self.lr)])

    @torch.no_grad()
    def end(self, pixels, labels):
        for j in range(self.lesson + 1):
            x = self.encode(j, pixels).double()
            for label in labels.unique().tolist():
                self.means[self.first + label, j] = x[labels == label].mean(0)
        for i in range(self.lesson):
            for k in range(i + 1, self.lesson + 1):
                later = range(k * self.size, self.n_classes)
                for c in range(i * self.size, (i + 1) * self.size):
                    own, others = self.means[c, i], torch.stack([self.means[d, i] for d in later])
                    weights = (unit(others) @ unit(own)).softmax(0)
                    self.means[c, k] = weights @ torch.stack([self.means[d, k] for d in later])

    def answer(self, pixels):
        features, t = [self.encode(j, pixels) for j in range(self.lesson + 1)], self.lesson
        logits = []
        for c in range(self.n_classes):
            cosines = [unit(f) @ unit(self.means[c, j]).float() for j, f in enumerate(features)]
            logits.append(sum((1.0 if j == c // self.size else 0.1 / t) * x for j, x in enumerate(cosines)))
        return torch.stack(logits, 1)


class Aligned(WithSets):
    """Statistics with the newest set, and an alignment of the head on draws."""

    goes_on = True

    def begin(self, start):
        super().begin(start)
        self.statistics = self.statistics if self.lesson else {}

    def add_statistics(self, pixels, labels):
        with torch.no_grad():
            found = group_statistics(self.encode(-1, pixels), labels)
        self.statistics |= {self.first + label: values for label, values in found.items()}

    def align_head(self, parameters, compute_logits, period=None):
        generator = torch.Generator().manual_seed(self.start["seed"])
        align(
            parameters,
            lambda x, y: F.cross_entropy(compute_logits(x), y),
            lambda epoch: draw(self.statistics, ALIGN_SAMPLES, generator),
            *(ALIGN_EPOCHS, 0.005, ALIGN_SAMPLES),
            period=period,
        )


class MOS(Aligned):
    def begin(self, start):
        super().begin(start)
        if not self.lesson:
            self.weight, self.bias, self.first_means = start["head.weight"][:0], start["head.bias"][:0], []
        self.weight, self.bias = (
            leaf(torch.cat([old, start[f"head.{name}"][self.first :]]))
            for name, old in (("weight", self.weight), ("bias", self.bias))
        )

    def step(self, pixels, labels, step):
        x = self.encode(-1, pixels)
        loss = F.cross_entropy(F.linear(x, self.weight[self.first :], self.bias[self.first :]), labels)
        rows = torch.cat([*(mean.float()[None] for mean, _ in self.statistics.values()), x])
        loss = loss + 0.1 * F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows)))
        descend(loss, [(flatten(self.sets[-1]), self.lr), ([self.weight, self.bias], 0.1 * self.lr)])
        with torch.no_grad():
            for i, layer in enumerate(self.sets[-1] if self.lesson else ()):
                for j, p in enumerate(layer):
                    mean = torch.stack([earlier[i][j] for earlier in self.sets[:-1]]).mean(0)
                    p.copy_(0.9 * p + 0.1 * mean)

    def end(self, pixels, labels):
        self.add_statistics(pixels, labels)
        with torch.no_grad():
            x = self.encode(0, pixels)
        self.first_means += [x[labels == label].double().mean(0) for label in labels.unique().tolist()]
        if self.lesson:
            self.align_head([self.weight, self.bias], lambda x: F.linear(x, self.weight, self.bias))

    def answer(self, pixels):
        cosines = unit(self.encode(0, pixels)) @ unit(torch.stack(self.first_means)).float().T
        chosen, logits = cosines.argmax(1) // self.size, cosines.new_zeros(len(pixels), self.n_classes)
        used = torch.full_like(chosen, -1)
        for _ in range(4):
            changed = chosen != used
            for k in chosen[changed].unique().tolist():
                mine = changed & (chosen == k)
                logits[mine] = F.linear(self.encode(k, pixels[mine]), self.weight, self.bias)
            used, chosen = chosen, logits.argmax(1) // self.size
        return ((logits.softmax(1) + ((self.lesson + 1) * cosines).softmax(1)) / 2).log()


class TUNA(Aligned):
    def begin(self, start):
        super().begin(start)
        old = self.weight if self.lesson else start["head.weight"][:0]
        self.weight = leaf(torch.cat([old, start["head.weight"][self.first :]]))

    def step(self, pixels, labels, step):
        logits = 20 * unit(self.encode(-1, pixels)) @ unit(self.weight[self.first :]).T
        descend(F.cross_entropy(logits, labels), [([*flatten(self.sets[-1]), self.weight], self.lr)])

    def end(self, pixels, labels):
        self.add_statistics(pixels, labels)
        if self.lesson:
            self.align_head([self.weight], lambda x: 20 * unit(x) @ unit(self.weight).T, period=5)

    def fuse(self):
        layers = []
        for layer in zip(*self.sets, strict=True):
            stacks = [torch.stack(parts) for parts in zip(*layer, strict=True)]
            signs = [torch.where(x.mean(0) > 0, 1.0, -1.0) for x in stacks]
            layers.append([s * (s * x).clamp(min=0).amax(0) for s, x in zip(signs, stacks, strict=True)])
        return layers

    def answer(self, pixels):
        vectors = unit(self.weight).T
        p = torch.stack([(20 * unit(self.encode(k, pixels)) @ vectors).softmax(1) for k in range(self.lesson + 1)])
        universal = run_vit(self.trunk, pixels, parallel=make_parallel(self.fuse(), 0.1))
        best = -(p * p.log()).sum(-1)
        own = p[best.argmin(0), torch.arange(len(pixels))]
        return ((own + (20 * unit(universal) @ vectors).softmax(1)) / 2).log()


class WithLinearHead(WrittenStream):
    """A linear head that grows; each lesson trains its own rows."""

    def grow_head(self, start):
        for name in ("weight", "bias"):
            old = getattr(self, name) if self.lesson else start[f"head.{name}"][:0]
            setattr(self, name, leaf(torch.cat([old, start[f"head.{name}"][self.first :]])))

    def compute_own_loss(self, x, labels):
        return F.cross_entropy(F.linear(x, self.weight[self.first :], self.bias[self.first :]), labels)


class LAE(WithLinearHead):
    """The online module rests in the first three fifths of the steps, without a graph."""

    def begin(self, start):
        self.grow_head(start)
        if not self.lesson:
            self.online = bottleneck(start, "online.{}.bottleneck.", 5)
            for i, layer in enumerate(self.online):
                layer.append(leaf(start[f"online.{i}.scale"]))
            self.offline = [[p.detach().clone() for p in layer] for layer in self.online]

    def encode(self, layers, pixels):
        return run_vit(self.trunk, pixels, parallel=make_parallel(layers, None))

    def step(self, pixels, labels, step):
        rests = step / self.stream.epochs < 0.6
        with torch.set_grad_enabled(not rests):
            x = self.encode(self.online, pixels)
        trained = [] if rests else flatten(self.online)
        descend(self.compute_own_loss(x, labels), [([self.weight, self.bias, *trained], self.lr)])
        with torch.no_grad():
            for average, p in zip(flatten(self.offline), flatten(self.online), strict=True):
                average.copy_(0.9999 * average + 0.0001 * p)

    def answer(self, pixels):
        parts = [F.linear(self.encode(x, pixels), self.weight, self.bias) for x in (self.online, self.offline)]
        return torch.maximum(parts[0].softmax(1), parts[1].softmax(1)).log()


class SDLoRA(WithLinearHead):
    """A product of its own for each lesson's direction in q and v of every layer."""

    def begin(self, start):
        self.grow_head(start)
        self.directions = self.directions if self.lesson else []
        self.magnitudes = self.magnitudes if self.lesson else []
        sites = [(f"{i}/{kind}", i, kind) for i in range(len(self.trunk.blocks)) for kind in "qv"]
        self.directions.append({
            (i, kind): [leaf(start[f"directions.{site}.{part}.{self.lesson}"]) for part in ("downs", "ups")]
            for site, i, kind in sites
        })  # fmt: skip
        self.magnitudes.append(leaf(start[f"magnitudes.{self.lesson}"]))

    def add_updates(self, i, y):
        q, v = (self.sum_updates(i, kind, y) for kind in "qv")
        return torch.cat([q, torch.zeros_like(q), v], -1)

    def sum_updates(self, i, kind, y):
        total, last = 0.0, len(self.directions) - 1
        for t, (directions, magnitude) in enumerate(zip(self.directions, self.magnitudes, strict=True)):
            down, up = directions[i, kind]
            length = 1.0 if t == last else (down.norm() * up.norm()).clamp(min=1e-12)
            total = total + magnitude * (y @ down.T @ up.T) / length
        return total

    def encode(self, pixels):
        return run_vit(self.trunk, pixels, self.add_updates)

    def step(self, pixels, labels, step):
        newest = [p for pair in self.directions[-1].values() for p in pair]
        loss = self.compute_own_loss(self.encode(pixels), labels)
        descend(loss, [([self.weight, self.bias, *newest, *self.magnitudes], self.lr)])

    def answer(self, pixels):
        return F.linear(self.encode(pixels), self.weight, self.bias)


class InfLoRA(WithLinearHead):
    """The memory is a basis of the directions that were taken; singular values of each layer's moments."""

    def begin(self, start):
        self.grow_head(start)
        depth, dim = len(self.trunk.blocks), self.trunk.num_features
        if not self.lesson:
            self.finished, self.taken = [], [torch.zeros(dim, 0, dtype=torch.double) for _ in range(depth)]
        self.downs, moments = [], self.collect_moments(self.stream.batch("train", self.lesson)[0])
        for basis, moment in zip(self.taken, moments, strict=True):
            vectors = torch.linalg.svd(moment - basis @ (basis.T @ moment))[0][:, :10]
            self.downs.append((vectors.T / 3**0.5).float())
        self.ups = [[leaf(torch.zeros(dim, 10)) for _ in "kv"] for _ in range(depth)]
        self.finished.append((self.downs, self.ups))

    def add_updates(self, i, y):
        k, v = (sum(y @ downs[i].T @ ups[i][j].T for downs, ups in self.finished) for j in range(2))
        return torch.cat([torch.zeros_like(k), k, v], -1)

    def encode(self, pixels, read_inputs=None):
        qkv = self.add_updates if self.finished else None
        return run_vit(self.trunk, pixels, qkv, read_inputs=read_inputs)

    @torch.no_grad()
    def collect_moments(self, pixels):
        found = {}

        def read(i, y):
            rows = y.flatten(0, 1)
            found[i] = (rows.T @ rows).double() / len(pixels)

        self.encode(pixels, read)
        return [*found.values()]

    def step(self, pixels, labels, step):
        loss = self.compute_own_loss(self.encode(pixels), labels)
        descend(loss, [([self.weight, self.bias, *flatten(self.ups)], self.lr)])

    def end(self, pixels, labels):
        threshold = 0.95 + 0.05 * self.lesson / self.stream.n_lessons
        for i, moment in enumerate(self.collect_moments(pixels)):
            basis = self.taken[i]
            vectors, values, _ = torch.linalg.svd(moment - basis @ (basis.T @ moment))
            share = values.square() / moment.square().sum()
            reached, n = 1 - float(share.sum()), 0
            if not self.lesson:
                n = max(1, int((share.cumsum(0) < threshold).sum()))
            while self.lesson and reached < threshold:
                reached, n = reached + float(share[n]), n + 1
            self.taken[i] = torch.cat([basis, vectors[:, :n]], 1)

    def answer(self, pixels):
        return F.linear(self.encode(pixels), self.weight, self.bias)
