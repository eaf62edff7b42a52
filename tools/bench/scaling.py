"""tools/bench scaling: how time and memory grow with classes, images a step, prompt length and images to encode.

A step is what `fit` makes of a batch for a ViT-B/16-size CLIP with random weights, its image features given; above 998
classes the names are those of ImageNet and pairs of them. Features are made of decoded pixels, nothing kept. Each point
is a process of its own; where classes grow, its settings are those that the memory plan chooses within 24 GB and what
the machine has free. Seconds are the median of as many passes as fit into a few seconds after the first, or the first
one where that takes longer; memory is the peak of the first pass above what the process held before it, so that it
contains what libraries take at their first use. An exponent e says that ten times the size costs 10**e times as much:
by least squares over all sizes on logarithmic axes, and between the two largest sizes. A floor that does not grow (the
shared prefix, the libraries) makes the first one smaller than the second.
"""

import math
import statistics

import torch

from bench import text
from bench.measure import measure_peak_memory, time_call
from bench.plan import build_lesson
from bench.rows import make_number_column, render_markdown
from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import Images
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.planning.memory_plan import plan_memory
from vlprompt.methods import CoCoOp, CoOp
from vlprompt.runtime import memory

PLANNED_GB, SETTING = 24.0, "each point in a process of its own"
SERIES = {  # name -> what grows, its sizes, and what a step of such a size is of (None: encoding images)
    "coop, 16 tokens, 32 images": (
        "classes",
        (10, 30, 100, 300, 1000, 4000, 10000, 21000),
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
CASES = {f"{name}: {n} {grows}": (name, n) for name, (grows, sizes, _) in SERIES.items() for n in sizes}
MAX_REPEAT_SECONDS = 4.0  # seconds of passes beyond the first
COLUMNS = {
    "s": make_number_column("seconds:.4f"),
    "MB": make_number_column("mb:.0f"),
    "told MB": make_number_column("planned:.0f"),
    "settings": lambda row: ", ".join(f"{name}={value}" for name, value in row.get("settings", {}).items()),
}


def make_names(n_names):
    """Build n different class names: ImageNet's, and then pairs of them."""
    base = list(dict.fromkeys(text.load_imagenet_names()))  # two of its thousand are there twice
    m = len(base)
    if n_names <= m:
        return [base[i * m // n_names] for i in range(n_names)]
    return base + [f"{base[i % m]} {base[(i + 1 + i // m) % m]}" for i in range(n_names - m)]


def fit_exponent(sizes, values):
    """Return the slope of the least-squares line through the logarithms."""
    x, y = [math.log(n) for n in sizes], [math.log(max(v, 1e-9)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def plan_settings(setting, spec):
    """Return what the memory plan tells of a step (MB above the model), and the settings with which it fits."""
    method_class, options, _, size = spec
    memory.set_limit(PLANNED_GB)
    before = memory.measure_used(torch.device("cpu"))
    lesson = build_lesson(setting.names, size)
    config = TrainConfig(batch_size=size, epochs=1, warmup=0)
    plan = plan_memory(lambda: method_class(setting.full_clip, **options), lesson, config)
    return plan.peak_mb - before, plan.overrides


def make_work(case, device):
    """Return the work of a point, what is told of its memory (None: nothing), and its settings."""
    series, n = CASES[case]
    grows, _, make_spec = SERIES[series]
    setting = text.TextBenchmark((CoOp, {"n_ctx": 16}, 10, 1), device, torch.float32)
    if make_spec is None:
        tower = setting.full_clip.image
        pixels = torch.randn(n, 3, *tower.preprocessing.size)
        images = Images(lambda look, places: pixels[list(places)], [None] * n)
        return lambda: tower(images), None, {}
    spec, told, settings = make_spec(n), None, {}
    setting.configure(spec, names=make_names(spec[2]))
    if grows == "classes":
        told, settings = plan_settings(setting, spec)
    config = TrainConfig(batch_size=spec[-1], **settings)
    loop = Loop(setting.method, Lesson(Split((), (), setting.names)), config, 0)
    batch = Batch(setting.images, setting.labels, setting.names)
    return lambda: loop.take_step(batch, 1e-6), told, settings


def measure_row(case, device, rounds):
    work, told, settings = make_work(case, device)
    mb = []
    once = time_call(lambda: mb.append(measure_peak_memory(work, device)), device)
    n_repeats = min(2 * rounds, int(MAX_REPEAT_SECONDS / once)) or once < 10 * MAX_REPEAT_SECONDS
    again = [time_call(work, device) for _ in range(n_repeats)]
    return {"seconds": statistics.median(again or [once]), "mb": mb[0], "planned": told, "settings": settings}


def collect_series(rows):
    """Collect the points that were measured: series and threads -> sizes, seconds, MB, and their exponents."""
    collected = {}
    for row in rows:
        if "seconds" in row:
            name, size = CASES[row["case"]]
            points = collected.setdefault((name, row["threads"]), {"sizes": [], "seconds": [], "mb": []})
            for key, value in (("sizes", size), ("seconds", row["seconds"]), ("mb", row["mb"])):
                points[key].append(value)
    collected = {key: points for key, points in collected.items() if len(points["sizes"]) > 1}
    for points in collected.values():
        for of in ("seconds", "mb"):
            points[f"{of}_fit"] = fit_exponent(points["sizes"], points[of])
            points[f"{of}_end"] = fit_exponent(points["sizes"][-2:], points[of][-2:])
    return collected


def render_details(rows, output_path):
    """Render a table of the exponents; with an output file also draw the figure next to it."""
    series = collect_series(rows)
    if not series:
        return []
    columns = {
        "work": lambda key, points: key[0],
        "threads": lambda key, points: str(key[1]),
        "what grows": lambda key, points: SERIES[key[0]][0],
        "from": lambda key, points: str(points["sizes"][0]),
        "to": lambda key, points: str(points["sizes"][-1]),
        "time: exponent": lambda key, points: f"{points['seconds_fit']:.2f}",
        "at the large end": lambda key, points: f"{points['seconds_end']:.2f}",
        "memory: exponent": lambda key, points: f"{points['mb_fit']:.2f}",
        "at its large end": lambda key, points: f"{points['mb_end']:.2f}",
    }
    lines = render_markdown({title: [cell(*one) for one in series.items()] for title, cell in columns.items()})
    if output_path is None:
        return lines
    draw_plot(series, output_path.with_suffix(".png"))
    return [*lines, "", f"![time and memory as sizes grow]({output_path.with_suffix('.png').name})"]


def draw_plot(series, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(series), figsize=(3.6 * len(series), 6), squeeze=False, layout="constrained")
    for k, ((name, _), points) in enumerate(series.items()):
        for i, (of, unit, colour) in enumerate((("seconds", "s", "tab:blue"), ("mb", "MB", "tab:orange"))):
            ax, sizes, values = axes[i, k], points["sizes"], [max(v, 0.1 * (of == "mb")) for v in points[of]]
            ax.loglog(sizes, [values[-1] * n / sizes[-1] for n in sizes], ":", color="grey", label="in proportion")
            ax.loglog(sizes, values, "o-", color=colour, markersize=4)
            ax.set_ylim(min(values) / 2, max(values) * 1.5)
            told = f"exponent {points[f'{of}_fit']:.2f}, at the large end {points[f'{of}_end']:.2f}"
            ax.set_title(f"{name}\n{told}" if i == 0 else told, fontsize=9)
            ax.set_xticks(sizes, [f"{n // 1000}k" if n >= 10_000 else str(n) for n in sizes], fontsize=7)
            ax.minorticks_off()
            ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.set_ylabel(unit)
            ax.grid(True, alpha=0.3)
            if i:
                ax.set_xlabel(SERIES[name][0])
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
