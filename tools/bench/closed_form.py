"""tools/bench closed_form: classifiers that are computed from kept features, up to the size of ImageNet.

16,000 x 512 are the features of 16 images of each of 1,000 classes, 4,000 validation images beside them. Written out is
what a reader of the papers would write: a loop over classes or pairs of them, each point of a grid from the features
anew, general inverses, the optimizer of torch. ProKeR's system of 16,000 equations takes 2e12 operations in float32 and
three matrices of 1 GB; the search at that size would take them 200 times.
"""

import torch
import torch.nn.functional as F
from torch import nn

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.feature_statistics import compute_channel_similarity
from vlprompt.methods import APE, GDA, LPPlus, ProKeR
from vlprompt.runtime.seeding import make_generator

WIDTH, SHOTS, N_VAL, EPOCHS = 512, 16, 4, 30
GDA_CASE, PROKER_CASE = "gda, 16,000 x 512, 1000 classes", "proker, 16,000 x 512, 1000 classes"
CHANNELS_CASE = "ape, 16,000 x 512, 1000 classes, channels"
CASES = {  # name -> classes
    GDA_CASE: 1000,
    PROKER_CASE: 1000,
    CHANNELS_CASE: 1000,
    f"lpplus, 16,000 x 512, 1000 classes, {EPOCHS} epochs": 1000,
    "proker, 1,600 x 512, 100 classes, grid of 20 x 10": 100,
    "ape, 1,600 x 512, 100 classes, grid of 20 x 20 x 20": 100,
}
TARGETS = dict.fromkeys((GDA_CASE, PROKER_CASE, CHANNELS_CASE), ("fast <= 10, 2 threads",))
REASONS = {
    PROKER_CASE: "16,000 equations with 1000 right sides are 1.9e12 operations, a Cholesky factor the most of it"
}
ROUNDS = dict.fromkeys(CASES, 1)


class FeatureTower:
    """An image tower whose features are the rows of a table, by the keys of the images."""

    feature_dim = WIDTH

    def __init__(self, features):
        self.features, self.device = features, features.device

    def __call__(self, images):
        return self.features[torch.tensor([int(key) for key in images.keys], device=self.device)]


class ClosedFormBenchmark:
    """One case: what a method learns from a lesson, and the tensors that it is."""

    n_repeats = 1

    def __init__(self, case, device, dtype):
        self.kind, n, draw = case.partition(",")[0], CASES[case], make_generator("closed form")
        centres = F.normalize(torch.randn(n, WIDTH, generator=draw), dim=-1)
        self.text = F.normalize(centres + 0.04 * torch.randn(n, WIDTH, generator=draw), dim=-1).to(device, dtype)
        counts = {"train": SHOTS * n, "val": N_VAL * n}
        self.labels = {name: (torch.arange(count) % n).to(device) for name, count in counts.items()}
        common = F.normalize(torch.randn(WIDTH, generator=draw), dim=-1)
        self.features = {
            name: F.normalize(
                common + centres[labels.cpu()] + 0.04 * torch.randn(len(labels), WIDTH, generator=draw), dim=-1
            ).to(device, dtype)
            for name, labels in self.labels.items()
        }
        self.searches = "grid" in case
        names, tower = tuple(ClassName(str(i)) for i in range(n)), FeatureTower(torch.cat([*self.features.values()]))
        self.clip = Clip(tower, lambda texts: self.text[None], 100.0, "bench")
        items = [ImageItem(str(i), lambda look, view: torch.empty(0)) for i in range(sum(counts.values()))]
        parts = {"train": items[: counts["train"]], "val": items[counts["train"] :]}
        splits = [Split(tuple(part), tuple(self.labels[name].tolist()), names) for name, part in parts.items()]
        self.lesson = Lesson(splits[0], splits[1] if self.searches or self.kind == "gda" else None)

    def fast(self):
        if not self.searches and self.kind == "ape":
            return [compute_channel_similarity(self.text, self.features["train"], self.labels["train"])]
        make = {
            "gda": lambda: GDA(self.clip),
            "proker": lambda: ProKeR(self.clip),
            "lpplus": lambda: LPPlus(self.clip, EPOCHS),
            "ape": lambda: APE(self.clip, search_steps=(20, 20, 20)),
        }
        method = make[self.kind]()
        method.begin_lesson(self.lesson, make_generator(0))
        method.end_lesson(self.lesson)
        state = {"gda": ("precision", "chosen_alpha"), "proker": ("coefficients", "beta_lmbda"), "lpplus": ("alpha",)}
        return [getattr(method, name) for name in state.get(self.kind, ("alpha_beta_gamma",))]

    def reference(self):
        if not self.searches and self.kind == "ape":
            return [self.write_out_similarity()]
        return getattr(self, f"write_out_{self.kind}")()

    def count_correct(self, logits):
        return int((logits.argmax(1) == self.labels["val"]).sum())

    def write_out_gda(self):
        x, val, labels, n = self.features["train"].double(), self.features["val"], self.labels["train"], len(self.text)
        means = torch.stack([x[labels == c].mean(0) for c in range(n)])
        centered = torch.cat([x[labels == c] - means[c] for c in range(n)])
        covariance = torch.cov(centered.T)
        identity = torch.eye(WIDTH, dtype=x.dtype, device=x.device)
        precision = WIDTH * torch.linalg.pinv((len(x) - 1) * covariance + covariance.trace() * identity)
        best, chosen = -1, 0.0
        for alpha in (10.0**e for e in range(-4, 3)):
            weight = means @ precision
            bias = torch.stack([-means[c] @ precision @ means[c] / 2 for c in range(n)])
            n_correct = self.count_correct(100 * val @ self.text.T + alpha * (val.double() @ weight.T + bias))
            if n_correct > best:
                best, chosen = n_correct, alpha
        return [precision, torch.tensor(chosen)]

    def write_out_proker(self):
        x, val, text = (part.double() for part in (self.features["train"], self.features["val"], self.text))
        right = F.one_hot(self.labels["train"], len(text)) - x @ text.T
        identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
        best, chosen, points = -1, None, [(1.7, 0.1)]
        if self.searches:
            betas, lmbdas = torch.linspace(0.1, 10.0, 20).tolist(), torch.linspace(0.01, 10.0, 10).tolist()
            points = [(beta, lmbda) for beta in betas for lmbda in lmbdas]
        for beta, lmbda in points:
            kernel = torch.exp(-beta * (1 - x @ x.T))
            coefficients = torch.linalg.solve(kernel / lmbda + identity, right)
            if not self.searches:
                return [coefficients, torch.tensor([beta, lmbda])]
            n_correct = self.count_correct(val @ text.T + torch.exp(-beta * (1 - val @ x.T)) @ coefficients)
            if n_correct > best:
                best, chosen = n_correct, [coefficients, torch.tensor([beta, lmbda])]
        return chosen

    def write_out_lpplus(self):
        x, labels, n = self.features["train"], self.labels["train"], len(self.text)
        generator = make_generator(0)
        torch.randint(2**31, (), generator=generator)  # the seed of augmentations is drawn first
        linear = nn.Linear(WIDTH, n).to(x)
        linear.weight.data = torch.stack([x[labels == c].sum(0) for c in range(n)])
        linear.bias.data = ((torch.rand(n, generator=generator) * 2 - 1) * WIDTH**-0.5).to(x)
        alpha = nn.Parameter(
            250 * torch.stack([(x[labels == c] @ self.text[c]).mean() for c in range(n)]).mean().repeat(n)
        )
        weight_lr = 4 * len(x) / float(torch.linalg.eigvalsh(x.T @ x)[-1])
        alpha_lr = len(x) / (4 * float((x @ self.text.T).square().sum(0).max()))
        optimizer = torch.optim.SGD(linear.parameters(), weight_lr, momentum=0.9)
        for epoch in range(1, EPOCHS + 1):
            optimizer.zero_grad()
            F.cross_entropy(linear(x) + alpha * (x @ self.text.T), labels).backward()
            optimizer.step()
            if epoch % 10 == 0:
                alpha.data -= alpha_lr * alpha.grad
        return [alpha.detach()]

    def write_out_similarity(self):
        """Compute the products of all features of a class with all of every other class."""
        x, n = torch.cat([self.text, self.features["train"]]), len(self.text)
        labels, total = torch.cat([torch.arange(n, device=x.device), self.labels["train"]]), 0.0
        for c in range(n):
            others = x[labels != c]
            total = total + torch.stack([(row * others).mean(0) for row in x[labels == c]]).mean(0)
        return total.double() / n

    def write_out_ape(self):
        x, val, text = self.features["train"], self.features["val"], self.text
        score = 0.5 * text.double().var(0) - 0.5 * self.write_out_similarity()
        chosen = score.topk(round(0.75 * WIDTH)).indices
        keys, queries, texts = (F.normalize(part[:, chosen], dim=-1) for part in (x, val, text))
        one_hot, p = F.one_hot(self.labels["train"], len(text)).to(x), (keys @ texts.T).softmax(1)
        divergence = (one_hot * ((one_hot + 1e-6) / (p + 1e-6)).log2()).sum(1, keepdim=True)
        betas, alphas = ((0.1 + i * 6.9 / 20 for i in range(20)) for _ in range(2))
        best, point, alphas = -1, None, list(alphas)
        for beta in betas:
            for alpha in alphas:
                for gamma in (i / 20 for i in range(20)):
                    cache = (-beta * (1 - queries @ keys.T)).exp() @ (one_hot * (gamma * divergence).exp())
                    n_correct = self.count_correct(100 * val @ text.T + alpha * cache)
                    if n_correct > best:
                        best, point = n_correct, [alpha, beta, gamma]
        return [torch.tensor(point)]

    def measure_difference(self):
        pairs = zip(self.fast(), self.reference(), strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    def run_variant(self, variant):
        getattr(self, variant)()


build_benchmark = ClosedFormBenchmark
