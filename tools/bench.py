"""Speed and memory against the written-out form, in one process: tools/bench.py text [--device cuda] [--threads 1].

The written-out form is what the authors of CoOp, CoCoOp, MaPLe and PromptSRC run: 77 tokens of every class (and for
CoCoOp of every image, in a loop) through open_clip's own text transformer, rows of deep prompts replaced before each
layer. Both forms make the same step of a ViT-B/16-size CLIP with random weights: forward, cross-entropy with given
image features (and PromptSRC's term on the texts), backward to the prompt, SGD. Times are medians of alternating
rounds. Memory is the peak of a step in a fresh process above what it held before. The share is the rate of the
floating-point operations that the fast form makes over the rate of one large matrix product timed beside it. `same` is
the largest difference of the gradients, relative.
"""

import argparse
import datetime
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vlprompt.method import Output
from vlprompt.methods import IVLP, CoCoOp, CoOp, MaPLe, PromptSRC
from vlprompt.stage import Images, Lesson, Name, Split, generator

CASES = {  # name -> method, its arguments, classes, images a step
    "coop, 100 classes": (CoOp, {"n_ctx": 16}, 100, 32),
    "coop, 100 classes, middle": (CoOp, {"n_ctx": 16, "text": "{ctx} {name} {ctx}."}, 100, 32),
    "coop, 100 classes, front": (CoOp, {"n_ctx": 16, "text": "{name} {ctx}."}, 100, 32),
    "coop, 100 classes, own": (CoOp, {"n_ctx": 16, "own": True}, 100, 32),
    "cocoop, 100 classes, 1 image": (CoCoOp, {"n_ctx": 4}, 100, 1),
    "cocoop, 100 classes, 4 images": (CoCoOp, {"n_ctx": 4}, 100, 4),
    "maple, 100 classes, text part": (MaPLe, {"n_ctx": 2}, 100, 4),
    "promptsrc, 100 classes, text part": (lambda clip, n_ctx: PromptSRC(IVLP(clip, n_ctx, 0)), {"n_ctx": 4}, 100, 4),
}


class Known:
    """An image tower whose features are given: only the text side is measured."""

    def __init__(self, tower, features):
        self.width, self.device, self.features = tower.width, tower.device, features
        self.dim, self.depth = tower.dim, tower.depth

    def __call__(self, images, prompt=None):
        return self.features


class Setting:
    """One case: our method and the written-out form on the same model, names, features, labels and initial values."""

    def __init__(self, case, device, dtype):
        import open_clip
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        from vlprompt.backbones.open_clip import wrap

        cls, self.options, classes, size = CASES[case]
        torch.manual_seed(0)
        self.model = open_clip.create_model("ViT-B-16-quickgelu").to(dtype)
        self.tokenizer, self.device = open_clip.get_tokenizer("ViT-B-16"), device
        self.names = tuple(Name(IMAGENET_CLASSNAMES[i * (1000 // classes)], str(i)) for i in range(classes))
        clip = wrap(self.model, self.tokenizer, "bench", device)
        self.features = torch.randn(size, 512, dtype=dtype, device=device)
        self.labels, self.scale = torch.arange(size, device=device) % classes, clip.scale
        self.method = cls(replace(clip, image=Known(clip.image, self.features)), **self.options)
        self.method.begin(Lesson(Split((), (), self.names)), generator(0))
        self.method.to(dtype)
        self.inner = getattr(self.method, "method", self.method)
        with torch.no_grad():
            self.fixed = self.method.fixed(self.names)
        deep = isinstance(self.inner, MaPLe | IVLP)  # of MaPLe's only the text side: its maps end in the image tower
        self.parameters = list(self.inner.ctx if deep else self.method.parameters())
        self.images = Images(lambda look, places: self.features, [None] * size)
        words = "X " * self.options["n_ctx"] + "of a " * (cls is MaPLe)
        self.ids = self.tokenizer([f"{words}{name}." for name in self.names]).to(device)
        self.embedded = self.model.token_embedding(self.ids).to(dtype)
        self.lengths = [len(self.tokenizer.encode(name)) for name in self.names]

    def fast(self):
        return self.method(self.images, self.method.prepare(self.names, self.fixed))

    def written_out(self):
        ctx = self.inner.ctx
        if isinstance(self.inner, CoCoOp):
            shifts = self.inner.meta(F.normalize(self.features, dim=-1))
            pairs = zip(self.features, shifts, strict=True)
            return Output(torch.cat([self._logits(x[None], self._texts(ctx + shift)) for x, shift in pairs]))
        text = self._texts(ctx) if isinstance(ctx, torch.Tensor) else self._texts(ctx[0], ctx[1:])
        return Output(self._logits(self.features, text), text=text)

    def _logits(self, features, text):
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).T

    def _texts(self, ctx, later=()):
        n, text = ctx.shape[-2], self.options.get("text", "{ctx} {name}.")
        ctx = ctx if ctx.ndim == 3 else ctx.expand(len(self.names), -1, -1)
        start, rest = self.embedded[:, :1], self.embedded[:, 1 + n :]
        if text == "{ctx} {name}.":
            x = torch.cat([start, ctx, rest], 1)
        else:
            before = n // 2 if text.startswith("{ctx}") else 0
            rows = zip(start, ctx, rest, self.lengths, strict=True)
            x = torch.stack([torch.cat([s, c[:before], r[:k], c[before:], r[k:]]) for s, c, r, k in rows])
        x, mask = x + self.model.positional_embedding, self.model.attn_mask
        for i, block in enumerate(self.model.transformer.resblocks):
            if 0 < i <= len(later):
                x = torch.cat([x[:, :1], later[i - 1].expand(len(x), -1, -1), x[:, 1 + n :]], 1)
            x = block(x, attn_mask=mask)
        return self.model.ln_final(x)[torch.arange(len(x)), self.ids.argmax(-1)] @ self.model.text_projection

    def loss(self, out):
        near = 0.0
        if isinstance(self.method, PromptSRC):  # its term on the texts; those on images and answers need the images
            near = self.method.text_weight * (F.normalize(out.text, dim=-1) - self.fixed[1]).abs().mean()
        return F.cross_entropy(out.logits, self.labels) + near

    def gradients(self, form):
        return torch.autograd.grad(self.loss(form()), self.parameters)

    def step(self, form):
        gradients = self.gradients(form)
        with torch.no_grad():
            for p, g in zip(self.parameters, gradients, strict=True):
                p -= 1e-6 * g
        if self.device == "cuda":
            torch.cuda.synchronize()


def clock(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def matrix_rate(device, size):
    """Floating-point operations a second of one large float32 product."""
    a = torch.randn(size, size, device=device)

    def product():
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()

    product()
    return 2 * size**3 / statistics.median(clock(product) for _ in range(10))


def measure(case, device, rounds):
    setting = Setting(case, device, torch.float32)
    fast, slow = setting.gradients(setting.fast), setting.gradients(setting.written_out)
    same = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(fast, slow, strict=True))
    with FlopCounterMode(display=False) as counted:
        setting.loss(setting.fast()).backward()
    setting.method.zero_grad()
    del fast, slow
    times = {"fast": [], "slow": [], "rate": []}
    for _ in range(rounds):
        times["rate"].append(matrix_rate(device, 1024 if device == "cpu" else 8192))
        times["fast"] += [clock(lambda: setting.step(setting.fast)) for _ in range(3)]
        times["slow"].append(clock(lambda: setting.step(setting.written_out)))
    t = {k: statistics.median(v) for k, v in times.items()}
    share = counted.get_total_flops() / t["fast"] / t["rate"]
    return {"fast": t["fast"], "slow": t["slow"], "ratio": t["slow"] / t["fast"], "share": share, "same": same}


def memory(case, device, form):
    """MB of one step above what the process held before it; called in a fresh process."""
    setting = Setting(case, device, torch.float32)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setting.step(getattr(setting, form))
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making the model

    def held(key):
        return int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
        )

    before = held("VmRSS")
    setting.step(getattr(setting, form))
    return (held("VmHWM") - before) / 2**10


def in_fresh_process(case, options, form):
    command = [sys.executable, __file__, "text", "--device", options.device, "--threads", str(options.threads)]
    done = subprocess.run([*command, "--memory", form, "--case", case], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["text"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", choices=list(CASES), help="one of the cases; may be given again")
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--memory", choices=["fast", "written_out"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = options.case or list(CASES)
    if options.memory:
        print(json.dumps(memory(cases[0], options.device, options.memory)))
        return
    cpu = f"{platform.machine()} CPU, {options.threads} thread(s)"
    name = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    head = f"`tools/bench.py {' '.join(sys.argv[1:])}`: {name}, torch {torch.__version__}, {datetime.date.today()}\n"
    columns = ["step", "written out s", "vlprompt s", "ratio", "written out MB", "vlprompt MB", "matrix speed", "same"]
    lines = [head, f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    print("\n".join(lines), flush=True)
    for case in cases:
        m = measure(case, options.device, options.rounds)
        mb = [in_fresh_process(case, options, form) for form in ("written_out", "fast")]
        cells = f"{m['slow']:.3f}", f"{m['fast']:.4f}", f"**{m['ratio']:.1f}**", f"{mb[0]:.0f}", f"{mb[1]:.0f}"
        share, same = f"{m['share']:.0%}", f"{m['same']:.0e}"
        lines.append(f"| {' | '.join([case, *cells, share, same])} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
