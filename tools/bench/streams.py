"""tools/bench streams: prompt pools on a ViT with random weights, against the two-pass form of the published codes.

The written-out form queries a frozen twin of the tower at every step and every test, computes all rows of every block
with explicit softmax attention, and CODA-Prompt's weights by products of (images, components, width). A step: sixteen
images on a ViT-B/16, forward, cross-entropy of a linear head over 100 classes and the method's own term, backward, SGD;
"first sight" is a step on images whose queries are not kept yet. The stream: five lessons of sixteen images, two
epochs, after each lesson a test of all sixteen-image tests so far, on a ViT-Ti/16 or a ViT-B/16, which finds no query
kept when it begins. `bare`: the same passes of the tower with a prompt that is given (share of the limit: at least
0.85).
"""

import torch
import torch.nn.functional as F

from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, Images, Preprocessing
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.frozen_maps import identity
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import L2P, CODAPrompt, DualPrompt
from vlprompt.runtime.seeding import make_generator

CASES = {  # name -> method, whether queries are kept
    "l2p, step": (L2P, True),
    "l2p, step, first sight": (L2P, False),
    "dualprompt, step": (DualPrompt, True),
    "coda_prompt, step": (CODAPrompt, True),
    "l2p, stream of 5 lessons": (L2P, True),
    "l2p, stream of 5 lessons, ViT-B/16": (L2P, True),
}
SINGLE_THREADED = True
TARGETS = {"l2p, stream of 5 lessons, ViT-B/16": ("limit_share >= 0.85",)}
ROUNDS = {"l2p, stream of 5 lessons, ViT-B/16": 1}
BATCH_SIZE, N_CLASSES, N_LESSONS, N_EPOCHS = 16, 100, 5, 2
TRAIN_CONFIG = TrainConfig(
    epochs=N_EPOCHS,
    batch_size=BATCH_SIZE,
    optimizer="sgd",
    lr=1e-6,
    momentum=0,
    weight_decay=0,
    schedule="constant",
    warmup=0,
)


class ContinualBenchmark:
    """One case: the method and its reference on the same tower, images, labels and initial values."""

    n_repeats = 1

    def __init__(self, case, device, dtype):
        import timm

        kind, kept = CASES[case]
        self.is_stream = "stream" in case
        torch.manual_seed(0)
        name = "vit_tiny_patch16_224" if case.endswith("lessons") else "vit_base_patch16_224"
        if self.is_stream:
            self.tower_only = self.run_bare_stream
        self.trunk = timm.create_model(name, num_classes=0).to(device, dtype).eval().requires_grad_(False)
        self.dim, self.device = self.trunk.num_features, torch.device(device)
        self.tower = build_timm_tower(self.trunk, identity, self.dim, Preprocessing((224, 224)), "bench", self.device)
        self.names = tuple(ClassName(str(i)) for i in range(N_CLASSES))
        self.lessons = (
            [self._build_split(f"train{k}") for k in range(N_LESSONS)]
            if self.is_stream
            else [self._build_split("train")]
        )
        self.tests = [self._build_split(f"test{k}") for k in range(N_LESSONS)] if self.is_stream else []
        self.method = kind(self.tower, LinearHead())
        self.method.begin_lesson(Lesson(Split((), (), self.names)), make_generator(0))
        self.method.to(dtype).train()
        self.batch = next(self.lessons[0].batches(BATCH_SIZE))
        pixels = self.batch.inputs.pixels(self.tower.preprocessing).to(device)
        self.pixels, self.labels = pixels, self.batch.labels.to(device)
        if not kept:
            self.batch = Batch(
                Images(lambda look, places: pixels[list(places)], [None] * BATCH_SIZE), self.labels, self.names
            )
        self.fixed = self.method.precompute(self.names)

    def _build_split(self, tag):
        def item(i):
            pixels = torch.randn(3, 224, 224, generator=make_generator(tag, i))
            return ImageItem(f"{tag}/{i}", lambda look, view: pixels)

        return Split(tuple(item(i) for i in range(BATCH_SIZE)), tuple(range(BATCH_SIZE)), self.names)

    def fast(self):
        terms, _ = self.method.loss_terms(self.batch, self.fixed)
        return sum(value for value, _ in terms.values())

    def run_blocks(self, x, prefix):
        """Compute all positions in all blocks; prefix: layer -> keys, values (B, P, D)."""
        for i, block in enumerate(self.trunk.blocks):
            y = block.norm1(x)
            q, k, v = block.attn.qkv(y).chunk(3, -1)
            if i in prefix:
                k, v = torch.cat([prefix[i][0], k], 1), torch.cat([prefix[i][1], v], 1)
            q, k, v = (t.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
            a = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
            x = x + block.attn.proj(a.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return self.trunk.norm(x)

    def compute_logits(self, pixels):
        """Return logits (B, C) and the method's own loss term, in two passes."""
        m, t = self.method, self.trunk
        with torch.no_grad():
            query = self.run_blocks(t._pos_embed(t.patch_embed(pixels)), {})[:, 0]
        x, prefix, term = t._pos_embed(t.patch_embed(pixels)), {}, 0.0
        if isinstance(m, L2P):
            like = F.normalize(query, dim=-1) @ F.normalize(m.keys, dim=-1).T
            best = like.topk(m.top_k)
            x = torch.cat([m.pool[best.indices].flatten(1, 2), x], 1)
            term = -m.pull_weight * best.values.sum(1).mean()
        elif isinstance(m, DualPrompt):
            like = F.normalize(query, dim=-1) @ F.normalize(m.keys[0][:, 0], dim=-1).T
            term = -m.pull_weight * like[:, 0].mean()
            every = dict(zip(m.general_layers, m.general_prompts, strict=True))
            every |= dict(zip(m.expert_layers, m.expert_prompts[0][0], strict=True))
            prefix = {i: [part.expand(len(pixels), -1, -1) for part in kv] for i, kv in every.items()}
        else:
            for i, (pool, keys, focus) in enumerate(
                zip(m.components[0], m.keys[0], m.attention_vectors[0], strict=True)
            ):
                seen = torch.einsum("bd,kd->bkd", query, focus)
                weights = torch.einsum("bkd,kd->bk", F.normalize(seen, dim=2), F.normalize(keys, dim=1))
                prefix[i] = torch.einsum("bk,kld->bld", weights, pool).chunk(2, 1)
                for rows in (pool.flatten(1), keys, focus):
                    term = (
                        term
                        + m.orthogonality_weight
                        * ((rows @ rows.T - torch.eye(len(rows), device=rows.device)) ** 2).mean()
                    )
        x = self.run_blocks(x, prefix)
        feature = x[:, : m.top_k * m.prompt_length].mean(1) if isinstance(m, L2P) else x[:, 0]
        return F.linear(feature, m.head.weight, m.head.bias), term

    def reference(self):
        logits, term = self.compute_logits(self.pixels)
        return F.cross_entropy(logits, self.labels) + term

    def compute_gradients(self, compute_loss):
        return torch.autograd.grad(compute_loss(), list(self.method.parameters()))

    def measure_difference(self):
        if self.is_stream:
            return abs(self.run_stream("fast") - self.run_stream("reference")) / 100
        pairs = zip(self.compute_gradients(self.fast), self.compute_gradients(self.reference), strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    def run_variant(self, variant):
        if self.is_stream:
            self.run_bare_stream() if variant == "tower_only" else self.run_stream(variant)
            return
        gradients = self.compute_gradients(getattr(self, variant))
        with torch.no_grad():
            for p, g in zip(self.method.parameters(), gradients, strict=True):
                p -= 1e-6 * g

    def run_bare_stream(self):
        """Make the passes of the stream by the tower alone: queries once, and a given prompt in place of the pool's."""
        m, tower = self.method, self.tower
        tokens = torch.randn(BATCH_SIZE, m.top_k * m.prompt_length, self.dim, requires_grad=True)
        prompt = Prompt({0: tokens}, is_embedded=False)
        for k, lesson in enumerate(self.lessons):
            batches = [next(split.batches(BATCH_SIZE)).inputs for split in (lesson, *self.tests[: k + 1])]
            for inputs in (batches[0], batches[-1]):
                with torch.no_grad():
                    tower.compute_features(inputs, list(range(BATCH_SIZE)))
            for _ in range(N_EPOCHS):
                torch.autograd.grad(tower(batches[0], prompt, "prompts").sum(), tokens)
            for inputs in batches[1:]:
                with torch.no_grad():
                    tower(inputs, prompt, "prompts")

    def run_stream(self, variant):
        """Train and test all lessons; return the mean accuracy of the last row."""
        self.tower.feature_cache.__init__()
        right = []
        for k, lesson in enumerate(self.lessons):
            if variant == "fast":
                for _ in fit(self.method, Lesson(lesson, index=k, total=N_LESSONS), TRAIN_CONFIG):
                    pass
                right = [evaluate(self.method, test).metrics["accuracy"] for test in self.tests[: k + 1]]
                continue
            for _ in range(N_EPOCHS):
                batch = next(lesson.batches(BATCH_SIZE))
                logits, term = self.compute_logits(batch.inputs.pixels(self.tower.preprocessing).to(self.device))
                loss = F.cross_entropy(logits, batch.labels.to(self.device)) + term
                with torch.no_grad():
                    for p, g in zip(
                        self.method.parameters(), torch.autograd.grad(loss, list(self.method.parameters())), strict=True
                    ):
                        p -= 1e-6 * g
            with torch.no_grad():
                found = [
                    (
                        self.compute_logits(b.inputs.pixels(self.tower.preprocessing).to(self.device))[0]
                        .argmax(1)
                        .cpu()
                        == b.labels
                    )
                    for test in self.tests[: k + 1]
                    for b in test.batches(BATCH_SIZE)
                ]
            right = [100 * float(one.float().mean()) for one in found]
        return sum(right) / len(right)


build_benchmark = ContinualBenchmark
