"""What the written-out streams of streams_newer share: timm's ViT row by row, steps, drawn features, alignment."""

import math

import torch
import torch.nn.functional as F

RIDGE = 1e-4  # of a covariance


def run_vit(trunk, pixels, qkv=None, prefix=None, parallel=None, read_inputs=None):
    """Compute all positions of all blocks, with explicit attention, and return the class token (B, D).

    qkv: (layer, input) -> what is added to queries, keys and values; prefix: layer -> keys, values (1 or B, P, D);
    parallel: (layer, input) -> what is added to the MLP's output; read_inputs: (layer, input of the attention) -> None.
    """
    x = trunk._pos_embed(trunk.patch_embed(pixels))
    for i, block in enumerate(trunk.blocks):
        y = block.norm1(x)
        if read_inputs:
            read_inputs(i, y)
        packed = block.attn.qkv(y)
        q, k, v = (packed if qkv is None else packed + qkv(i, y)).chunk(3, -1)
        if prefix and i in prefix:
            k, v = (torch.cat([rows.expand(len(x), -1, -1), t], 1) for rows, t in zip(prefix[i], (k, v), strict=True))
        q, k, v = (t.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        a = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + block.attn.proj(a.transpose(1, 2).flatten(2))
        branch = block.mlp(block.norm2(x))
        x = x + (branch if parallel is None else branch + parallel(i, x))
    return trunk.norm(x)[:, 0]


def unit(x):
    return F.normalize(x, dim=-1)


def leaf(x):
    return x.detach().clone().requires_grad_(True)


def descend(loss, groups):
    """Take a step of plain gradient descent; groups: (parameters, learning rate)."""
    parameters = [p for some, _ in groups for p in some]
    grads = iter(torch.autograd.grad(loss, parameters))
    with torch.no_grad():
        for some, lr in groups:
            for p in some:
                p -= lr * next(grads)


def bottleneck(start, prefix, depth):
    """Return leaves of the bottlenecks (down, bias, up, bias) of all layers from start values by name."""
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    return [[leaf(start[prefix.format(i) + name]) for name in names] for i in range(depth)]


def make_parallel(layers, scale):
    """Return the adapter function of bottlenecks parallel to the MLPs of the first layers."""

    def parallel(i, x):
        if i >= len(layers):
            return 0.0
        down, down_bias, up, up_bias = layers[i][:4]
        factor = layers[i][4] if len(layers[i]) > 4 else scale
        return factor * F.linear(F.linear(x, down, down_bias).relu(), up, up_bias)

    return parallel


def flatten(layers):
    return [p for layer in layers for p in layer]


def group_statistics(features, labels):
    """Return {label: (mean, unbiased covariance + ridge)} of features in float64."""
    found = {}
    for label in labels.unique().tolist():
        x = features[labels == label].double()
        found[label] = x.mean(0), torch.cov(x.T) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return found


def draw(statistics, n, generator, factors=None):
    """Draw n features of each class by the Cholesky factor of its covariance, and shuffle them."""
    features, labels = [], []
    for label, (mean, covariance) in statistics.items():
        noise = torch.randn(n, len(mean), generator=generator).to(mean.device).double()
        mean = mean.float().double() * (1.0 if factors is None else factors[label])
        features.append((noise @ torch.linalg.cholesky(covariance.float().double()).T + mean).float())
        labels += [label] * n
    order = torch.randperm(len(labels), generator=generator).to(mean.device)
    return torch.cat(features)[order], torch.tensor(labels, device=mean.device)[order]


def align(parameters, compute_loss, draws, epochs, lr, batch_size, weight_decay=5e-4, period=None, max_steps=None):
    """Train on drawn features by torch's SGD with momentum 0.9 and a cosine per epoch."""
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=weight_decay)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * epoch / (period or epochs))) / 2
        x, y = draws(epoch)
        parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        for features, labels in parts[:max_steps]:
            optimizer.zero_grad()
            compute_loss(features, labels).backward()
            optimizer.step()


class WrittenStream:
    """A method of a stream as its authors run it: each image goes through the tower in every epoch and for every test.

    Args:
        stream: trunk, starts (of each lesson, start values and seeds by name), epochs, lr, and the images by `batch`.
    """

    def __init__(self, stream):
        self.stream, self.trunk, self.lr = stream, stream.trunk, stream.lr
        self.n_classes, self.size = 0, stream.classes_per_lesson

    def begin(self, start):
        """Make what a lesson adds, from its start values."""

    def step(self, pixels, labels, step):
        """Train on a batch."""

    def end(self, pixels, labels):
        """Take what the lesson leaves: statistics, alignment."""

    def answer(self, pixels):
        raise NotImplementedError

    def run(self):
        """Return the logits of all tests so far after each lesson."""
        answers, stream = [], self.stream
        for k in range(stream.n_lessons):
            self.lesson, self.start, self.first = k, stream.starts[k], k * self.size
            self.n_classes = self.first + self.size
            self.begin(self.start)
            for epoch in range(stream.epochs):
                self.step(*stream.order_batch(k, epoch), epoch)
            self.end(*stream.batch("train", k))
            with torch.no_grad():
                answers.append(torch.cat([self.answer(stream.batch("test", i)[0]) for i in range(k + 1)]))
        return answers
