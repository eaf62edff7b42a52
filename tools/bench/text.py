"""tools/bench text: one training step of the text side of CoOp, CoCoOp, MaPLe, PromptSRC, TCP, MMRL and MMRL++.

The written-out form is what the authors run: 77 tokens of every class (and for CoCoOp of every image, in a loop)
through open_clip's own text transformer, rows of deep prompts replaced before each layer. Both forms make the same step
of a ViT-B/16-size CLIP with random weights: forward, cross-entropy with given image features (and the term on the texts
of PromptSRC, TCP and MMRL), backward to the prompt, SGD. The classes are CIFAR-100's unless the case says otherwise:
how much is saved depends on how long their names are.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Images
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.methods import IVLP, MMRL, TCP, CoCoOp, CoOp, MaPLe, MMRLpp, PromptSRC
from vlprompt.runtime.seeding import make_generator

CASES = {  # name -> method, its arguments, classes, images a step
    "coop, 100 classes": (CoOp, {"n_ctx": 16}, 100, 32),
    "coop, 100 classes, middle": (CoOp, {"n_ctx": 16, "context_template": "{ctx} {name} {ctx}."}, 100, 32),
    "coop, 100 classes, front": (CoOp, {"n_ctx": 16, "context_template": "{name} {ctx}."}, 100, 32),
    "coop, 100 classes, own": (CoOp, {"n_ctx": 16, "class_specific": True}, 100, 32),
    "cocoop, 100 classes, 1 image": (CoCoOp, {"n_ctx": 4}, 100, 1),
    "cocoop, 100 classes, 4 images": (CoCoOp, {"n_ctx": 4}, 100, 4),
    "maple, 100 classes, text part": (MaPLe, {"n_ctx": 2}, 100, 4),
    "promptsrc, 100 classes, text part": (lambda clip, n_ctx: PromptSRC(IVLP(clip, n_ctx, 0)), {"n_ctx": 4}, 100, 4),
    "tcp, 100 classes": (TCP, {"n_ctx": 4}, 100, 32),
    "mmrl, 100 classes, text part": (MMRL, {"n_tokens": 5}, 100, 32),
    "mmrlpp, 100 classes, text part": (MMRLpp, {"n_tokens": 5}, 100, 32),
}

SHORT = {
    "coop, 30 classes": (CoOp, {"n_ctx": 16}, 30, 32),
    "cocoop, 30 classes, 1 image": (CoCoOp, {"n_ctx": 4}, 30, 1),
}
TARGETS = dict.fromkeys(CASES, ("ratio >= 28",)) | {
    "coop, 100 classes": ("ratio >= 28", "fraction_of_matmul_rate >= 0.8, 1 thread"),
    "coop, 100 classes, middle": ("ratio >= 9",),
    "coop, 100 classes, front": ("ratio >= 5",),
    "coop, 100 classes, own": ("ratio >= 5",),
    "tcp, 100 classes": ("ratio >= 15",),
    "mmrl, 100 classes, text part": ("ratio >= 15",),
    "mmrlpp, 100 classes, text part": ("ratio >= 15",),
}
REASONS = {
    "coop, 100 classes": "the layers' products run at 90 % of the speed and are 71 % of the time; attention of texts "
    "is 14 %, a third of it products, the activation 4 %; small operations are the rest",
    "cocoop, 100 classes, 1 image": "25.4 by operations; what is above that the written-out form loses to page faults, "
    "less on one processor than on another: 26.8 to 38.5",
    "maple, 100 classes, text part": "25.4 by operations, as CoCoOp: 26.5 to 39.7",
}
KEPT_MEMORY = [case for case in TARGETS if "4 images" not in case]
ROUNDS = {"cocoop, 100 classes, 4 images": 2}  # written out, it takes more than a minute


def load_cifar_names():
    """The names of CIFAR-100's classes, which have 3.2 tokens with the dot and the end; those of ImageNet have 4.2."""
    card = yaml.safe_load((Path(__file__).parents[2] / "datasets" / "vtab_cifar100.yaml").read_text("utf-8"))
    return [name.replace("_", " ") for name in card["classes"]]


def load_imagenet_names():
    """The names of ImageNet's 1000 classes."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return IMAGENET_CLASSNAMES


CASES["coop, 100 classes of ImageNet"] = (CoOp, {"n_ctx": 16}, 100, 32, load_imagenet_names)


class KnownFeatureTower:
    """An image tower with given features, by image index, so that only the text side is measured."""

    def __init__(self, tower, features):
        self.feature_dim, self.device, self.features = tower.feature_dim, tower.device, features
        self.dim, self.depth = tower.dim, tower.depth
        self.require_blocks, self.project_rows = tower.require_blocks, tower.project_rows

    def __call__(self, images, prompt=None):
        return self.features[[int(key) for key in images.keys]]


class TextBenchmark:
    """One case: our method and the written-out form on the same model, names, features, labels and initial values.

    with_known_features: whether the features of the images are given; the image tower is the model's own otherwise.
    """

    def __init__(self, case, device, dtype, with_known_features=True):
        import open_clip

        from vlprompt.backbones.open_clip.towers import wrap_clip

        torch.manual_seed(0)
        self.model = open_clip.create_model("ViT-B-16-quickgelu").to(dtype)
        self.tokenizer, self.device, self.dtype = open_clip.get_tokenizer("ViT-B-16"), device, dtype
        self.full_clip = wrap_clip(self.model, self.tokenizer, "bench", device)
        self.configure((CASES | SHORT)[case] if isinstance(case, str) else case, with_known_features)

    def configure(self, spec, with_known_features=True, names=None):
        """Build another case on the same model; names: by default the first of CIFAR-100's, or of ImageNet's."""
        cls, self.options, classes, size, *source = spec
        every = (
            [] if names else (source[0] if source else load_cifar_names if classes <= 100 else load_imagenet_names)()
        )
        names = names or [every[i * (len(every) // classes)] for i in range(classes)]
        self.names = tuple(ClassName(name, str(i)) for i, name in enumerate(names))
        self.features = torch.randn(size, 512, dtype=self.dtype, device=self.device)
        self.labels, self.scale = torch.arange(size, device=self.device) % classes, self.full_clip.scale
        with_known_features = (
            KnownFeatureTower(self.full_clip.image, self.features) if with_known_features else self.full_clip.image
        )
        self.clip = replace(self.full_clip, image=with_known_features)
        self.method = cls(self.clip, **self.options)
        self.method.begin_lesson(Lesson(Split((), (), self.names)), make_generator(0))
        self.method.to(self.dtype)
        self.inner_method = getattr(self.method, "method", self.method)
        with torch.no_grad():
            self.fixed = self.method.precompute(self.names)
        deep = isinstance(
            self.inner_method, MaPLe | IVLP
        )  # of MaPLe's only the text side: its maps end in the image tower
        self.parameters = list(self.inner_method.ctx if deep else self.method.parameters())
        if isinstance(self.method, MMRL):  # but those of the image tower
            of_image = ("maps.image", "shared.image", "biases.image", "downs.image", "ups.image", "projection")
            self.parameters = [p for name, p in self.method.named_parameters() if not name.startswith(of_image)]
        self.images = Images(lambda look, places: self.features[list(places)], [str(i) for i in range(size)])
        words = "X " * self.options.get("n_ctx", 0) + "of a " * (cls is MaPLe)
        words = "a photo of a " if isinstance(self.method, MMRL) else words
        self.ids = self.tokenizer([f"{words}{name}." for name in self.names]).to(self.device)
        self.lengths = [len(self.tokenizer.encode(name)) for name in self.names]
        self.embedded = None

    def fast(self):
        if isinstance(self.method, MMRL):
            text, *_ = self.method.prepare(self.names, self.fixed)
            return Output(self._compute_logits(self.features, text), text_features=text)
        return self.method(self.images, self.method.prepare(self.names, self.fixed))

    def reference(self):
        if isinstance(self.method, MMRL):
            text = self._encode_texts_with_rows(self.method.prompt("text"))
            return Output(self._compute_logits(self.features, text), text_features=text)
        ctx = self.inner_method.ctx
        if isinstance(self.method, TCP):
            later = [ctx] * 7 + [self.method.class_tokens(self.fixed[1])]
            text = self._encode_texts(ctx, later, replaced_at=(8,))
            return Output(self._compute_logits(self.features, text), text_features=text)
        if isinstance(self.inner_method, CoCoOp):
            shifts = self.inner_method.meta(F.normalize(self.features, dim=-1))
            pairs = zip(self.features, shifts, strict=True)
            return Output(
                torch.cat([self._compute_logits(x[None], self._encode_texts(ctx + shift)) for x, shift in pairs])
            )
        text = self._encode_texts(ctx) if isinstance(ctx, torch.Tensor) else self._encode_texts(ctx[0], ctx[1:])
        return Output(self._compute_logits(self.features, text), text_features=text)

    def _compute_logits(self, features, text):
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).T

    def _encode_texts_with_rows(self, prompt):
        """Texts without soft tokens, behind whose first row new rows come in at the prompt's first layer."""
        first, n = min(prompt.tokens), next(iter(prompt.tokens.values())).shape[1]
        x, mask = self.model.token_embedding(self.ids) + self.model.positional_embedding, self.model.attn_mask
        for i, block in enumerate(self.model.transformer.resblocks):
            if i in prompt.tokens:
                old, carry = x[:, 1 : 1 + n], prompt.carry.get(i, 0.0)
                rows = prompt.tokens[i].expand(len(x), -1, -1)
                rows = carry * old + (1 - carry) * rows if carry else rows
                x = torch.cat([x[:, :1], rows, x[:, 1 + n * (i > first) :]], 1)
            if i == first:
                mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
            x = block(x, attn_mask=mask)
        return self.model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(-1) + n] @ self.model.text_projection

    def _encode_texts(self, ctx, later_tokens=(), replaced_at=None):
        n, text = ctx.shape[-2], self.options.get("context_template", "{ctx} {name}.")
        ctx = ctx if ctx.ndim == 3 else ctx.expand(len(self.names), -1, -1)
        if self.embedded is None:
            self.embedded = self.model.token_embedding(self.ids)
        start, rest = self.embedded[:, :1], self.embedded[:, 1 + n :]
        if text == "{ctx} {name}.":
            x = torch.cat([start, ctx, rest], 1)
        else:
            before = n // 2 if text.startswith("{ctx}") else 0
            rows = zip(start, ctx, rest, self.lengths, strict=True)
            x = torch.stack([torch.cat([s, c[:before], r[:k], c[before:], r[k:]]) for s, c, r, k in rows])
        x, mask = x + self.model.positional_embedding, self.model.attn_mask
        for i, block in enumerate(self.model.transformer.resblocks):
            if 0 < i <= len(later_tokens) and (replaced_at is None or i in replaced_at):
                x = torch.cat([x[:, :1], later_tokens[i - 1].expand(len(x), -1, -1), x[:, 1 + n :]], 1)
            x = block(x, attn_mask=mask)
        return self.model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(-1)] @ self.model.text_projection

    def compute_loss(self, output):
        near = 0.0
        if isinstance(self.method, PromptSRC):  # its term on the texts; those on images and answers need the images
            near = self.method.text_weight * (F.normalize(output.text_features, dim=-1) - self.fixed[1]).abs().mean()
        if isinstance(self.method, TCP | MMRL):
            cosine = (F.normalize(output.text_features, dim=-1) * self.fixed[1]).sum(-1)
            near = self.method.weight * (1 - cosine.mean())
        return F.cross_entropy(output.logits, self.labels) + near

    def compute_gradients(self, run):
        return torch.autograd.grad(self.compute_loss(run()), self.parameters)

    def measure_difference(self):
        fast, slow = self.compute_gradients(self.fast), self.compute_gradients(self.reference)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(fast, slow, strict=True))

    def run_variant(self, variant):
        gradients = self.compute_gradients(getattr(self, variant))
        with torch.no_grad():
            for p, g in zip(self.parameters, gradients, strict=True):
                p -= 1e-6 * g


build_benchmark = TextBenchmark
