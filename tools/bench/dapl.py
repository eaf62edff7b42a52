"""tools/bench dapl: DAPL on a ViT-B/16-size CLIP with random weights, against the authors' form written out.

Theirs encodes 3C texts of 77 tokens (source, target and naive) for the source's images and again for the target's, all
with autograd, and the images of every step; a test encodes its images and, for every batch of them, all texts. A step
of the text side: 32 source and 32 target features are given; both losses, backward to the tokens, SGD. An epoch: two
such steps with images of ViT-B/16 and a test of 64 target images; ours finds all features kept from an epoch before,
as a second epoch over the same views does, or a second run; "first sight" is an epoch that finds none, and `bare` the
image tower alone on the same images, which is its limit (share of the limit: at least 0.85).
"""

import torch
import torch.nn.functional as F

from vlprompt.core.batch import Batch, Split, Unlabelled
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.evaluate import iter_logits
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import DAPL
from vlprompt.runtime.seeding import derive_seed, make_generator

CASES = {"text, 65 classes": 65, "text, 12 classes": 12, "epoch, 12 classes": 12, "epoch, 12 classes, first sight": 12}
SINGLE_THREADED = True
TARGETS = {"epoch, 12 classes, first sight": ("limit_share >= 0.85",)}
BATCH_SIZE, STEPS, N_TEST_IMAGES, N_TOKENS = 32, 2, 64, 16
DOMAINS = ("art", "real_world")


class DaplBenchmark:
    """One case: the method and its reference on the same model, names, images, labels and initial values."""

    n_repeats = 1

    def __init__(self, case, device, dtype):
        import open_clip
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        from vlprompt.backbones.open_clip.towers import wrap_clip

        classes, self.is_epoch, self.is_first = CASES[case], case.startswith("epoch"), case.endswith("first sight")
        if self.is_first:
            self.tower_only = self.encode_images
        torch.manual_seed(0)
        self.model = open_clip.create_model("ViT-B-16-quickgelu").to(device, dtype).requires_grad_(False)
        self.device, self.scale = torch.device(device), self.model.logit_scale.exp()
        tokenizer = open_clip.get_tokenizer("ViT-B-16")
        self.clip = wrap_clip(self.model, tokenizer, "bench", device)
        self.names = tuple(ClassName(IMAGENET_CLASSNAMES[i * (1000 // classes)], str(i)) for i in range(classes))
        self.source, self.target, self.test = (
            self._build_items(tag, n)
            for tag, n in (("s", BATCH_SIZE * STEPS), ("t", BATCH_SIZE * STEPS), ("v", N_TEST_IMAGES))
        )
        labels = tuple(i % classes for i in range(BATCH_SIZE * STEPS))
        train = Split(self.source, labels, self.names)
        self.lesson = Lesson(train, unlabelled=Unlabelled(self.target, self.names), domains=DOMAINS)
        self.method = DAPL(self.clip, N_TOKENS, N_TOKENS, threshold=0.0)
        self.method.begin_lesson(Lesson(Split((), (), self.names), domains=DOMAINS), make_generator(0))
        self.method.to(dtype)
        rows = [f"{'X ' * 2 * N_TOKENS}{name} , a {domain} image." for domain in DOMAINS for name in self.names]
        rows += [f"a photo of a {name}." for name in self.names]
        self.ids = tokenizer(rows).to(device)
        with torch.no_grad():
            self.embedded = self.model.token_embedding(self.ids)
            self.fixed = self.method.precompute(self.names)
        x, u = (next(iter(split.batches(BATCH_SIZE))) for split in (train, self.lesson.unlabelled))
        self.batch = Batch(x.inputs, x.labels.to(device), self.names, unlabelled=u)
        if not self.is_epoch:  # the features are given: the tower keeps them
            with torch.no_grad():
                self.known_features = [self.clip.image(part.inputs) for part in (x, u)]

    def _build_items(self, tag, n):
        def item(i):
            pixels = torch.randn(3, 224, 224, generator=make_generator(tag, i))
            return ImageItem(f"{tag}/{i}", lambda look, view: pixels)

        return tuple(item(i) for i in range(n))

    def encode_texts(self):
        """Encode all 3C rows of 77 tokens with autograd."""
        m, c = self.method, len(self.names)
        x = self.embedded.clone()
        for k in range(2):
            x[k * c : (k + 1) * c, 1 : 1 + 2 * N_TOKENS] = torch.cat([m.ctx, m.domain_ctx[k]]).expand(c, -1, -1)
        x = x + self.model.positional_embedding
        for block in self.model.transformer.resblocks:
            x = block(x, attn_mask=self.model.attn_mask)
        return self.model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(-1)] @ self.model.text_projection

    def compute_logits(self, features):
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(self.encode_texts(), dim=-1).T

    def compute_loss(self, x, u, labels):
        c = len(self.names)
        source, target = self.compute_logits(x), self.compute_logits(u)
        guess = target[:, 2 * c :].detach().softmax(-1).argmax(-1)  # every image is sure here
        return F.cross_entropy(source[:, :c], labels) + F.cross_entropy(target[:, c : 2 * c], guess)

    def reference(self):
        return self.compute_loss(*self.known_features, self.batch.labels)

    def fast(self):
        terms, _ = self.method.loss_terms(self.batch, self.fixed)
        return sum(value for value, _ in terms.values())

    def take_step(self, loss):
        gradients = torch.autograd.grad(loss, list(self.method.parameters()))
        with torch.no_grad():
            for p, g in zip(self.method.parameters(), gradients, strict=True):
                p -= 1e-6 * g
        return gradients

    def measure_difference(self):
        parameters = list(self.method.parameters())
        if not self.is_epoch:
            fast, slow = (torch.autograd.grad(form(), parameters) for form in (self.fast, self.reference))
            return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(fast, slow, strict=True))
        first, found = [p.detach().clone() for p in parameters], []
        for form in (self.run_epoch, self.run_reference_epoch):  # from the same values
            for p, start in zip(parameters, first, strict=True):
                p.data = start.clone()
            found.append(form())
        return float((found[0] - found[1]).abs().max() / found[1].abs().max())

    def encode_images(self):
        """Encode every image of the epoch once, and nothing else."""
        with torch.no_grad():
            for items in (self.source, self.target, self.test):
                for begin in range(0, len(items), self.clip.image.pass_size):
                    pixels = [item.pixels(None, None) for item in items[begin : begin + self.clip.image.pass_size]]
                    self.clip.image.encode(torch.stack(pixels).to(self.device))

    def run_epoch(self):
        if self.is_first:
            self.clip.image.feature_cache.__init__()
        train = TrainConfig(
            epochs=1, batch_size=BATCH_SIZE, lr=1e-6, momentum=0, weight_decay=0, schedule="constant", warmup=0
        )
        for _ in fit(self.method, self.lesson, train):
            pass
        test = Unlabelled(self.test, self.names)
        return torch.cat(list(iter_logits(self.method, test, BATCH_SIZE)))

    def run_reference_epoch(self):
        size, c, seed = self.clip.image.preprocessing, len(self.names), derive_seed(1, 0)  # the order that `fit` draws
        beside = self.lesson.unlabelled.sample_batches(BATCH_SIZE, seed)
        for x in self.lesson.train.batches(BATCH_SIZE, seed=seed, drop_last=True):
            u = next(beside)
            with torch.no_grad():
                given = [self.model.encode_image(part.inputs.pixels(size).to(self.device)) for part in (x, u)]
            self.take_step(self.compute_loss(*given, x.labels.to(self.device)))
        found = []
        with torch.no_grad():
            for batch in Unlabelled(self.test, self.names).batches(BATCH_SIZE):
                features = self.model.encode_image(batch.inputs.pixels(size).to(self.device))
                found.append(self.compute_logits(features)[:, c : 2 * c])
        return torch.cat(found)

    def run_variant(self, variant):
        if variant == "tower_only":
            self.encode_images()
        elif self.is_epoch:
            self.run_epoch() if variant == "fast" else self.run_reference_epoch()
        else:
            self.take_step(getattr(self, variant)())


build_benchmark = DaplBenchmark
