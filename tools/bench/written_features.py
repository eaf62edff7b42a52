"""Written-out streams on frozen features: SimpleCIL, FeCAM, RAPF, PROOF, ENGINE; see streams_newer.py."""

import math

import torch
import torch.nn.functional as F

from bench.written_vit import WrittenStream, descend, group_statistics, leaf, run_vit, unit
from vlprompt.runtime.seeding import make_generator

TEMPLATE = "a photo of a {}."


def add_means(means, features, labels, first):
    for label in labels.unique().tolist():
        means[first + label] = features[labels == label].mean(0)


class SimpleCIL(WrittenStream):
    def begin(self, start):
        pixels, labels = self.stream.batch("train", self.lesson)
        self.means = {} if not self.lesson else self.means
        add_means(self.means, run_vit(self.trunk, pixels), labels, self.first)

    def answer(self, pixels):
        return unit(run_vit(self.trunk, pixels)) @ unit(torch.stack([*self.means.values()])).T


class FeCAM(WrittenStream):
    """A pseudo-inverse of each class's correlation."""

    def begin(self, start):
        self.means, self.inverses = ([], []) if not self.lesson else (self.means, self.inverses)
        pixels, labels = self.stream.batch("train", self.lesson)
        features = unit(run_vit(self.trunk, pixels)).double()
        for label in labels.unique().tolist():
            x = features[labels == label]
            covariance = torch.cov(x.T).float().double()
            shrunk = covariance + covariance.diagonal().mean() * torch.eye(len(covariance), dtype=x.dtype)
            deviations = shrunk.diagonal().sqrt()
            self.inverses.append(torch.linalg.pinv((shrunk / torch.outer(deviations, deviations)).float()))
            self.means.append(unit(x.mean(0).float()))

    def answer(self, pixels):
        x, pairs = unit(run_vit(self.trunk, pixels)), zip(self.means, self.inverses, strict=True)
        return torch.stack([-((x - mean) @ inverse * (x - mean)).sum(1) for mean, inverse in pairs], 1)


class OnClip(WrittenStream):
    """A stream on a CLIP; texts are encoded once a lesson."""

    def encode(self, pixels):
        """Compute raw features (B, E)."""
        with torch.no_grad():
            return run_vit(self.trunk, pixels) @ self.stream.projection.T

    def encode_texts(self):
        return self.stream.encode_texts([TEMPLATE.format(name) for name in self.stream.names[: self.n_classes]])[0]

    def map(self, x, maps):
        return sum(F.linear(x, weight, bias) for weight, bias in maps)

    def add_maps(self, start):
        """Add the start values of a lesson's maps; only these are leaves."""
        if not self.lesson:
            self.image_maps, self.text_maps = [], []
        for maps, name in ((self.image_maps, "image_maps"), (self.text_maps, "text_maps")):
            maps.append([leaf(start[f"{name}.{self.lesson}.{part}"]) for part in ("weight", "bias")])


class RAPF(OnClip):
    def begin(self, start):
        if not self.lesson:
            self.weight, self.statistics = leaf(start["weight"]), {}
        self.text, self.before = self.encode_texts(), self.weight.detach().clone()
        new = torch.arange(self.first, self.n_classes)
        old, other = (torch.cdist(unit(self.text[: self.first]), unit(self.text[new])) < 2.0).nonzero(as_tuple=True)
        self.pairs = torch.stack([old, new[other]], 1)

    def draw(self, row, noise):
        mean, covariance = self.statistics[row]
        return noise @ torch.linalg.cholesky(covariance.float().double()).float().T + mean.float()

    def step(self, pixels, labels, step):
        generator = make_generator(self.start["draw_seed"], "replay", step)
        rows = torch.randperm(self.first, generator=generator)[:2].tolist()
        noise = torch.randn(len(rows), 20, len(self.weight), generator=generator)
        pair_noise = torch.randn(len(self.pairs), 40, len(self.weight), generator=generator)
        drawn = [self.draw(row, z) for row, z in zip(rows, noise, strict=True)]
        features = torch.cat([self.encode(pixels), *drawn])
        labels = torch.cat([labels + self.first, *(torch.full((20,), row) for row in rows)])
        loss = F.cross_entropy(100 * unit(F.linear(features, self.weight)) @ unit(self.text).T, labels)
        losses = []
        for (old, new), z in zip(self.pairs.tolist(), pair_noise, strict=True):
            x, text = unit(F.linear(self.draw(old, z), self.weight)), unit(self.text)
            losses.append(F.relu(x @ text[new] - x @ text[old] + 0.1))
        descend(loss + torch.cat(losses).mean() if losses else loss, [([self.weight], self.lr)])

    def end(self, pixels, labels):
        if self.lesson:
            basis, values, rows = torch.linalg.svd(self.before.double())
            new, old = basis.T @ self.weight.detach().double(), values.diag() @ rows
            share = ((new - old).abs() / (new - old).abs().max() + 0.6).clamp(max=1)
            self.weight = leaf((basis @ (new * share + old * (1 - share))).float())
        found = group_statistics(self.encode(pixels), labels)
        self.statistics |= {self.first + label: values for label, values in found.items()}

    def answer(self, pixels):
        return 100 * unit(F.linear(self.encode(pixels), self.weight)) @ unit(self.text).T


class PROOF(OnClip):
    """Each image stands in a sequence of its own with all texts, prototypes and contexts; exemplars are images."""

    def begin(self, start):
        self.add_maps(start)
        if not self.lesson:
            self.fusion = {name[7:]: leaf(p) for name, p in start.items() if name.startswith("fusion.")}
            self.log_scale, self.contexts, self.exemplars, self.means = leaf(start["log_scale"]), [], [], {}
        self.contexts.append(leaf(start[f"contexts.{self.lesson}"]))
        self.text = self.encode_texts()
        pixels, labels = self.stream.batch("train", self.lesson)
        add_means(self.means, unit(self.encode(pixels)), labels, self.first)

    def map_texts(self):
        return unit(self.map(self.text, self.text_maps))

    def share_rows(self, text):
        prototypes = unit(self.map(torch.stack([*self.means.values()]), self.image_maps))
        return torch.cat([text, prototypes, *self.contexts])

    def fuse(self, image, shared):
        """Return the fused image (B, E), texts and prototypes (B, C, E)."""
        f = self.fusion
        x = torch.cat([image[:, None], shared.expand(len(image), -1, -1)], 1)
        q, k, v = (F.linear(x, f[f"{name}.weight"]) for name in ("query", "key", "value"))
        seen = (q @ k.mT * x.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + F.linear(seen, f["out.weight"], f["out.bias"])
        x = F.layer_norm(x, x.shape[-1:], f["norm.weight"], f["norm.bias"])
        return x[:, 0], x[:, 1 : 1 + self.n_classes], x[:, 1 + self.n_classes : 1 + 2 * self.n_classes]

    def step(self, pixels, labels, step):
        earlier = [one for images, _ in self.exemplars for one in images]
        rows = [row for _, rows in self.exemplars for row in rows]
        pixels = torch.cat([pixels, torch.stack(earlier)]) if earlier else pixels
        labels = torch.cat([labels + self.first, torch.tensor(rows, dtype=torch.long)])
        text = self.map_texts()
        image = unit(self.map(self.encode(pixels), self.image_maps))
        fused, texts, prototypes = self.fuse(image, self.share_rows(text))
        loss = F.cross_entropy(fused @ texts.mean(0).T, labels) + F.cross_entropy(fused @ prototypes.mean(0).T, labels)
        similarity, pairs = self.log_scale.exp() * image @ text[labels].T, torch.arange(len(labels))
        loss = loss + (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
        trained = [*self.image_maps[-1], *(p for one in self.text_maps for p in one), *self.fusion.values()]
        descend(loss, [([*trained, self.log_scale, self.contexts[-1]], self.lr)])

    def end(self, pixels, labels):
        """Herd up to twenty images of a class, of which there are fewer: all of them, in another order."""
        features = unit(self.encode(pixels))
        for label in labels.unique().tolist():
            x, images = features[labels == label].double(), pixels[labels == label]
            order, total = [], torch.zeros_like(x[0])
            for k in range(1, len(x) + 1):
                left = [i for i in range(len(x)) if i not in order]
                order.append(min(left, key=lambda i: float(((total + x[i]) / k - x.mean(0)).norm())))
                total = total + x[order[-1]]
            self.exemplars.append((images[order], [self.first + label] * len(order)))

    def answer(self, pixels):
        text, image = self.map_texts(), self.map(self.encode(pixels), self.image_maps)
        fused, texts, prototypes = self.fuse(image, self.share_rows(text))
        return image @ text.T + ((texts + prototypes) @ fused[..., None])[..., 0]


class ENGINE(OnClip):
    """Two passes a step: of the images, and of noisy ones."""

    def begin(self, start):
        self.add_maps(start)
        pixels, labels = self.stream.batch("train", self.lesson)
        rows = run_vit(self.trunk, pixels)
        if not self.lesson:
            self.means, self.centres, self.precision = {}, [], 0.0
        self.text = self.encode_texts()
        add_means(self.means, rows @ self.stream.projection.T, labels, self.first)
        x = unit(rows).double()
        centres = torch.stack([x[labels == label].mean(0) for label in labels.unique().tolist()])
        scatter, identity = torch.cov((x - centres[labels]).T) * (len(x) - 1), torch.eye(x.shape[1], dtype=x.dtype)
        precision = x.shape[1] * torch.linalg.pinv(scatter + scatter.trace() / (len(x) - 1) * identity)
        self.centres.append(centres)
        self.precision = self.precision + len(centres) / self.n_classes * (precision - self.precision)

    def step(self, pixels, labels, step):
        seed, n = self.start["draw_seed"], len(pixels)
        noise = torch.randn(self.first, len(self.stream.projection), generator=make_generator(seed, "prototypes", step))
        prototypes = torch.stack([*self.means.values()])[: self.first] + 0.25 * noise
        image = unit(self.map(torch.cat([self.encode(pixels), prototypes]), self.image_maps))
        text = unit(self.map(self.text, self.text_maps))[torch.cat([labels + self.first, torch.arange(self.first)])]
        noise = torch.randn(pixels.shape, generator=make_generator(seed, "pixels", step))
        noisy = unit(self.encode((pixels + 0.25 * noise).clamp(0, 1)))
        similarity, pairs = math.log(100) * image @ text.T, torch.arange(len(text))
        loss = (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
        loss = loss + 2 * F.cross_entropy(image[:n] @ noisy.T, pairs[:n])
        descend(loss, [([*self.image_maps[-1], *self.text_maps[-1]], self.lr)])

    def answer(self, pixels):
        row, means = run_vit(self.trunk, pixels), torch.cat(self.centres)
        image = self.map(row @ self.stream.projection.T, self.image_maps)
        cosines = unit(image) @ unit(self.map(self.text, self.text_maps)).T
        bias = -((means @ self.precision) * means).sum(1) / 2 - math.log(self.n_classes)
        gaussian = unit(unit(row).double() @ (means @ self.precision).T + bias)
        return torch.lerp(cosines.double(), gaussian, 0.8)
