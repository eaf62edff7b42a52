"""tools/bench scaling: how time and memory grow with classes, images a step, prompt length and images to encode.

A step is forward, loss and backward to the prompt of a ViT-B/16-size CLIP with random weights, its image features
given; the class names are invented, of two to four tokens. Features are made of decoded pixels, nothing kept. Each
series is one process, small sizes first; seconds are the median of as many passes as fit into a few seconds, memory is
the peak of the first pass above what the process held before it. An exponent e says that ten times the size costs
10**e times as much: by least squares over all sizes on logarithmic axes, and between the two largest sizes. A floor
that does not grow (the shared prefix, the loaded model) makes the first one smaller than the second.
"""

import math
import re
import statistics

import torch

from bench import text
from bench.measure import measure_peak_memory, time_call
from vlprompt.core.images import Images
from vlprompt.methods import CoCoOp, CoOp

WORDS = re.findall(  # each is one token
    r"\w+",
    "red blue green grey gold silver black white wild small giant river stone mountain forest desert winter summer "
    "ocean island bear wolf fox deer horse tiger eagle owl crow shark whale seal frog snake turtle beetle spider moth "
    "rose lily fern oak pine maple apple cherry lemon corn bean rice bread cake tea coffee cup bowl lamp chair table "
    "clock boat train wagon plane bridge tower castle temple",
)
CASES = {  # name -> what grows, its sizes, and what a step of such a size is of
    "coop, 16 tokens, 32 images": (
        "classes",
        (10, 30, 100, 300, 1000, 2000, 4000),
        lambda n: (CoOp, {"n_ctx": 16}, n, 32),
    ),
    "cocoop, 4 tokens, 100 classes": ("images a step", (1, 2, 4, 8, 16, 32), lambda n: (CoCoOp, {"n_ctx": 4}, 100, n)),
    "coop, 100 classes, 32 images": (
        "prompt tokens",
        (1, 2, 4, 8, 16, 32, 64),
        lambda n: (CoOp, {"n_ctx": n}, 100, 32),
    ),
    "image features": ("images", (8, 16, 32, 64, 128), None),
}
MAX_REPEAT_SECONDS = 4.0  # seconds of passes beyond the first
COLUMNS = {
    "what grows": lambda row: row["grows"],
    "from": lambda row: str(row["sizes"][0]),
    "to": lambda row: str(row["sizes"][-1]),
    "time: exponent": lambda row: f"{row['seconds_fit']:.2f}",
    "at the large end": lambda row: f"{row['seconds_end']:.2f}",
    "memory: exponent": lambda row: f"{row['mb_fit']:.2f}",
    "at its large end": lambda row: f"{row['mb_end']:.2f}",
}


def invent_names(n_names):
    """Build n different class names of two to four words."""
    base, found = len(WORDS), []
    for i in range(n_names):
        digits = [i % base, i // base % base, (7 * i + 3) % base, (11 * i + 5) % base]
        found.append(" ".join(WORDS[d] for d in digits[: 2 + i % 3]))
    return found


def fit_exponent(sizes, values):
    """Return the slope of the least-squares line through the logarithms."""
    x, y = [math.log(n) for n in sizes], [math.log(max(v, 1e-9)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def iter_workloads(case, device):
    """Yield (size, work) of each size on the same model."""
    _, sizes, spec = CASES[case]
    setting = text.TextBenchmark((CoOp, {"n_ctx": 16}, 10, 1), device, torch.float32)
    if spec is None:
        tower = setting.full_clip.image
        for n in sizes:
            pixels = torch.randn(n, 3, *tower.preprocessing.size)
            images = Images(lambda look, places, pixels=pixels: pixels[list(places)], [None] * n)
            yield n, lambda images=images: tower(images)
        return
    for n in sizes:
        setting.configure(spec(n), names=invent_names(spec(n)[2]))
        yield n, lambda: setting.run_variant("fast")


def measure_row(case, device, rounds):
    sizes, seconds, mb = [], [], []
    for n, work in iter_workloads(case, device):
        once = time_call(lambda work=work: mb.append(measure_peak_memory(work, device)), device)
        again = [time_call(work, device) for _ in range(max(1, min(2 * rounds, int(MAX_REPEAT_SECONDS / once))))]
        sizes.append(n)
        seconds.append(statistics.median(again))
    found = {"grows": CASES[case][0], "sizes": sizes, "seconds": seconds, "mb": mb}
    for of, values in (("seconds", seconds), ("mb", mb)):
        found |= {f"{of}_fit": fit_exponent(sizes, values), f"{of}_end": fit_exponent(sizes[-2:], values[-2:])}
    return found


def render_details(rows, output_path):
    """Render a table of all points; with an output file also draw the figure next to it."""
    done = [row for row in rows if "sizes" in row]
    lines = ["| work | size | s | MB |", "|---|---:|---:|---:|"]
    for row in done:
        points = zip(row["sizes"], row["seconds"], row["mb"], strict=True)
        lines += [f"| {row['case']} | {n} {row['grows']} | {s:.4f} | {mb:.0f} |" for n, s, mb in points]
    if output_path is None or not done:
        return lines
    draw_plot(done, output_path.with_suffix(".png"))
    return [*lines, "", f"![time and memory as sizes grow]({output_path.with_suffix('.png').name})"]


def draw_plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(rows), figsize=(3.6 * len(rows), 6), squeeze=False, layout="constrained")
    for k, row in enumerate(rows):
        for i, (of, unit, colour) in enumerate((("seconds", "s", "tab:blue"), ("mb", "MB", "tab:orange"))):
            ax, sizes, values = axes[i, k], row["sizes"], [max(v, 0.1 * (of == "mb")) for v in row[of]]
            ax.loglog(sizes, [values[-1] * n / sizes[-1] for n in sizes], ":", color="grey", label="in proportion")
            ax.loglog(sizes, values, "o-", color=colour, markersize=4)
            ax.set_ylim(min(values) / 2, max(values) * 1.5)
            told = f"exponent {row[f'{of}_fit']:.2f}, at the large end {row[f'{of}_end']:.2f}"
            ax.set_title(f"{row['case']}\n{told}" if i == 0 else told, fontsize=9)
            ax.set_xticks(sizes, [str(n) for n in sizes], fontsize=7)
            ax.minorticks_off()
            ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.set_ylabel(unit)
            ax.grid(True, alpha=0.3)
            if i:
                ax.set_xlabel(row["grows"])
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
