"""tools/bench: its command line, rows that are kept through a kill, targets, what it measures, growth."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from kills import killed_when

TOOLS = Path(__file__).parents[2] / "tools"
HELP = ["startup", "--case", "vlprompt --help", "--rounds", "1"]  # the quickest row there is
TARGETED = ("text", "vpt", "epoch", "startup", "memory", "streams_newer", "operations", "precision", "side_by_side",
            "processes", "transport", "closed_form", "dapl", "streams")  # fmt: skip


@pytest.fixture
def tool(monkeypatch):
    """A module of the tool by its name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return import_module


def bench(*words, **how):
    command = [sys.executable, str(TOOLS / "bench"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, **how)


def kept(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_help_names_every_table_and_loads_nothing():
    done = bench("--help")
    assert done.returncode == 0
    for word in (
        "text",
        "image",
        "vpt",
        "epoch",
        "startup",
        "memory",
        "scaling",
        "streams",
        "all",
        "--short",
        "--fresh",
    ):
        assert word in done.stdout
    code = "import sys, bench.__main__; print(sorted({'torch', 'vlprompt', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOOLS, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["startup", "--case", "run"], "--case: expected one of 'vlprompt run, to the first step'"),
        (["startup", "--case", "run"], "got 'run'. Name one of these."),
        (["startup", "--threads", "0"], "--rounds, --threads: expected at least 1, got less. Set 1 or more."),
        (["all", "--case", "vlprompt --help"], "--case: expected one table, got all. Name the table instead of all."),
        (["scaling", "--short"], "--short: expected a table with short cases, got scaling. Leave --short out."),
    ],
)
def test_what_it_refuses(words, told, tool, capsys):
    with pytest.raises(SystemExit) as left:
        tool("bench.__main__").main(words)
    assert (left.value.code, told in capsys.readouterr().err) == (2, True)


@pytest.mark.slow
def test_rows_are_kept_until_they_are_asked_anew(tmp_path):
    out = tmp_path / "table.md"
    first = bench(*HELP, "--out", out)
    assert first.returncode == 0, first.stderr
    ((key, row),) = kept(tmp_path / "table.jsonl")
    assert key[:2] == ["startup", "vlprompt --help"]
    assert 0 < row["min"] <= row["seconds"] <= row["max"]
    assert out.read_text() == first.stdout
    assert f"| vlprompt --help | 1 | {row['seconds']:.2f} |" in first.stdout
    with (tmp_path / "table.jsonl").open("a") as file:
        file.write('[["startup", "torn')  # a kill in the middle of a line
    again = bench(*HELP, "--out", out)
    assert "kept from before" in again.stderr
    assert again.stdout == first.stdout
    assert kept(tmp_path / "table.jsonl") == [[key, row]]
    fresh = bench(*HELP, "--out", out, "--fresh")
    assert "kept from before" not in fresh.stderr
    ((_, other),) = kept(tmp_path / "table.jsonl")
    assert other != row


@pytest.mark.slow
def test_a_killed_table_goes_on(tmp_path):
    words, rows = [*HELP, "--threads", "1,2,3", "--out", tmp_path / "t.md"], tmp_path / "t.jsonl"
    killed_when(tmp_path, '(folder / "t.jsonl").exists() and (folder / "t.jsonl").read_text()', TOOLS / "bench", *words)
    before = kept(rows)
    assert 1 <= len(before) < 3
    done = bench(*words)
    assert done.stderr.count("kept from before") == len(before)
    assert [row["threads"] for _, row in kept(rows)] == [1, 2, 3]
    assert kept(rows)[: len(before)] == before


def test_a_row_is_made_anew_when_the_code_changes(tool, tmp_path, monkeypatch):
    rows = tool("bench.rows")
    for name in (
        "tools/bench/measure.py",
        "tools/bench/text.py",
        "vlprompt/layers/blocks/block.py",
        "vlprompt/backbones/towers/text.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass")
    (tmp_path / "tools" / "bench" / "epoch.py").write_text(
        "from bench import text\nfrom bench.rows import make_number_column"
    )
    monkeypatch.setattr(rows, "HERE", tmp_path / "tools" / "bench")
    found = [rows.hash_code("text")]
    for name in ("vlprompt/layers/blocks/block.py", "vlprompt/backbones/towers/text.py", "tools/bench/text.py"):
        epoch = rows.hash_code("epoch")
        (tmp_path / name).write_text("other")
        found.append(rows.hash_code("text"))
    assert len(set(found)) == 4
    (tmp_path / "tools" / "bench" / "vpt.py").write_text("of another table")
    (tmp_path / "tools" / "bench" / "rows.py").write_text("how tables look")
    assert rows.hash_code("text") == found[-1]
    assert rows.hash_code("epoch") != epoch  # it is made with the settings of text


def test_a_row_that_failed_says_why_and_is_made_again(tmp_path):
    (tmp_path / "rich.py").write_text("raise RuntimeError('no colours today')")  # the command line can't start so
    out, path = tmp_path / "t.md", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = bench(*HELP, "--out", out, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    assert "no colours today" in done.stderr
    assert "at most 0.50 s: ? |" in out.read_text()
    assert "no colours today |" in out.read_text()
    assert kept(tmp_path / "t.jsonl") == []
    again = bench(*HELP, "--out", out)
    assert (again.returncode, "no colours" in out.read_text()) == (0, False)


@pytest.mark.parametrize("what", TARGETED)
def test_every_target_is_of_a_case(tool, what):
    rows, module = tool("bench.rows"), tool(f"bench.{what}")
    assert module.TARGETS.keys() <= module.CASES.keys()
    assert getattr(module, "ROUNDS", {}).keys() <= module.CASES.keys()
    assert getattr(module, "REASONS", {}).keys() <= module.CASES.keys()
    assert set(getattr(module, "KEPT_MEMORY", ())) <= module.TARGETS.keys()
    for wanted in module.TARGETS.values():
        assert all(rows.TARGET_PATTERN.fullmatch(one) for one in wanted)


def test_targets_are_judged(tool):
    rows = tool("bench.rows")
    row = {"table": "text", "case": "a", "threads": 1, "ratio": 27.9, "fraction_of_matmul_rate": 0.8, "mb": 614.0}
    told = rows.judge_row(
        (
            "ratio >= 28",
            "fraction_of_matmul_rate >= 0.8, 1 thread",
            "mb <= 614",
            "fraction_of_matmul_rate >= 0.5, 2 threads",
        ),
        row,
    )
    assert told == [
        ("at least 28.0x", "27.9x", False),
        ("at least 80% of the matrix speed", "80% of the matrix speed", True),
        ("at most 614 MB", "614 MB", True),
    ]
    wanted, case = {("text", "a"): ("ratio >= 28", "mb <= 614")}, ("text", "a")
    for reason in ("limit", lambda row: "limit" * (row["ratio"] == 27.9)):
        missed, reached = rows.render_targets([row], wanted, {case: reason})[-2:]
        assert missed == "| text: a | 1 | at least 28.0x | 27.9x | **no** | limit |"
        assert reached == "| text: a | 1 | at most 614 MB | 614 MB | yes |  |"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told to keep memory")
def test_a_ratio_is_measured_again_with_memory_that_is_kept(tool, monkeypatch):
    """The second process of the row has the allocator's settings, and its ratio stands in a column of its own."""
    job = tool("bench.__main__").Job("text", "coop, 30 classes", 1, "cpu", 1)
    text = tool("bench.text")
    monkeypatch.setattr(text, "KEPT_MEMORY", ["coop, 30 classes"])
    row = job.measure_row()
    assert row["kept_min"] <= row["kept"] <= row["kept_max"]
    assert row["kept"] != row["ratio"]
    rows = tool("bench.rows")
    assert f"| {row['kept']:.2f} (" in rows.render_table([row], rows.TIMING_COLUMNS, {})[-1]
    assert "memory kept" in rows.render_table([row], rows.TIMING_COLUMNS, {})[0]
    code = "import os; a = bytearray(100 * 2**20); del a; print(open('/proc/self/statm').read().split()[1])"
    keeps = {**os.environ, "GLIBC_TUNABLES": tool("bench.__main__").KEEP_MEMORY}
    pages = [int(subprocess.check_output([sys.executable, "-c", code], env=env)) for env in (os.environ, keeps)]
    assert pages[1] - pages[0] > 20_000  # of 25,600 that were touched


def test_all_is_one_row_for_each_target_and_number_of_threads(tool):
    main = tool("bench.__main__")
    jobs = main.plan_jobs(main.parse_options(["all"]))
    for what in TARGETED:
        module, mine = tool(f"bench.{what}"), [job for job in jobs if job.table == what]
        threads = [1] if getattr(module, "SINGLE_THREADED", False) else [1, 2]
        threads = [2] if what == "closed_form" else threads  # whose targets are of two
        assert {(j.case, j.threads) for j in mine} == {(case, t) for case in module.TARGETS for t in threads}
    assert len(set(jobs)) == len(jobs)
    assert main.parse_options(["all"]).out.name == "all-cpu.md"


def test_recorded_passes_are_rows_of_a_gpu_alone(tool):
    main = tool("bench.__main__")
    options = main.parse_options(["all"])
    assert "recorded" not in {job.table for job in main.plan_jobs(options)}
    options.device = "cuda"  # which this machine need not have
    jobs = main.plan_jobs(options)
    assert {job.case for job in jobs if job.table == "recorded"} == set(tool("bench.recorded").CASES)
    assert "processes" not in {job.table for job in jobs}


@pytest.mark.parametrize("case", ["vpt, deep, 50 prompts, 8 images", "clip_lora, 4 images", "maple, 4 images"])
def test_recorded_steps_are_compared_with_plain_ones(tool, case):
    """By what stands in the place of a CUDA graph."""
    from replays import Twin

    from vlprompt.backbones.glyph import build_tiny_clip
    from vlprompt.layers.blocks.cuda_graphs import CudaGraphCache

    recorded, clip = tool("bench.recorded"), build_tiny_clip()
    steps = recorded.RecordedSteps(recorded.CASES[case], clip)
    with pytest.raises(AttributeError):  # a CPU has no recordings
        steps.record()
    steps.caches = {tower: CudaGraphCache(Twin) for tower in steps.caches}
    steps.record()
    made = Twin.made
    assert steps.measure_difference() < 1e-5
    assert Twin.made == made


def test_the_short_form_is_small(tool):
    main = tool("bench.__main__")
    jobs = main.plan_jobs(main.parse_options(["all", "--short"]))
    assert {"text", "vpt", "epoch", "startup"} <= {job.table for job in jobs}
    assert {(job.threads, job.rounds) for job in jobs} == {(1, 3)}
    assert all("30 classes" in job.case for job in jobs if job.table in ("text", "epoch"))
    assert main.parse_options(["all", "--short"]).out is None


def test_measure_counts_operations_and_takes_turns(tool):
    torch, measure = import_module("torch"), tool("bench.measure")
    a, took = torch.randn(300, 300), []

    class Setting:
        fast = reference = n_repeats = 1

        def run_variant(self, form):
            took.append(form)
            for _ in range(1 if form == "fast" else 40):
                a @ a

        def measure_difference(self):
            self.run_variant("fast")
            self.run_variant("reference")
            return 1e-7

    row = measure.measure_benchmark(Setting(), "cpu", 3)
    assert took[3:] == ["fast", "reference"] * 3
    assert (row["flops"], row["flop_ratio"], row["difference"]) == (2 * 300**3, 40, 1e-7)
    assert row["min"] <= row["ratio"] <= row["max"]
    assert 5 < row["ratio"] < 300
    assert 0.05 < row["fraction_of_matmul_rate"] < 20


@pytest.mark.slow
def test_memory_is_what_the_work_holds():
    code = """
import torch
from bench.measure import measure_peak_memory
large = torch.ones(2**22)
del large  # from now on MBs are parts of the heap
spent, last = [torch.ones(2**18) for _ in range(100)], torch.ones(2**18)
del spent  # 100 MB of the heap that are free again are no part of what is held
print(measure_peak_memory(lambda: [torch.ones(2**18) for _ in range(64)], "cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOLS, capture_output=True, text=True, check=True)
    assert 63 < float(done.stdout) < 75


def test_a_measurement_ends_with_the_tool_that_asked_for_it(tmp_path):
    inner = (
        "import os, bench.measure as b; print(os.getpid(), flush=True)\nwhile True: b.time_call(lambda: None, 'cpu')"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    tool = subprocess.Popen([sys.executable, "-c", outer], cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    measuring = int(tool.stdout.readline())
    tool.kill()
    tool.wait()
    until = time.monotonic() + 600
    while running(measuring) and time.monotonic() < until:
        time.sleep(0.02)
    if running(measuring):
        os.kill(measuring, signal.SIGKILL)
        pytest.fail("it goes on alone")


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_exponents_and_names(tool):
    scaling = tool("bench.scaling")
    sizes = (10, 30, 100, 1000)
    assert scaling.fit_exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert scaling.fit_exponent(sizes, [7.0] * 4) == pytest.approx(0)
    for n in (10, 998, 21000):
        assert len(set(scaling.make_names(n))) == n
    longest = max(scaling.make_names(21000), key=len)
    assert len(import_module("open_clip").get_tokenizer("ViT-B-16").encode(longest)) < 58  # behind 16 tokens


def test_growth_is_told_and_drawn(tool, tmp_path):
    scaling = tool("bench.scaling")
    work = "coop, 16 tokens, 32 images"
    rows = [
        {"case": f"{work}: {n} classes", "threads": 1, "seconds": s, "mb": 1.0 * n, "settings": settings}
        for n, s, settings in ((10, 0.1, {}), (100, 0.5, {}), (1000, 5.0, {"text_micro_batch": 64}))
    ]
    lost = {"case": f"{work}: 4000 classes", "threads": 1, "failed": "killed"}
    lines = scaling.render_details([*rows, lost], tmp_path / "scaling.md")
    assert f"| {work} | 1 | classes | 10 | 1000 | 0.85 | 1.00 | 1.00 | 1.00 |" in lines
    assert lines[-1] == "![time and memory as sizes grow](scaling.png)"
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    told = tool("bench.rows").render_table([*rows, lost], scaling.COLUMNS, {})
    assert told[-2] == f"| {work}: 1000 classes | 1 | 5.0000 | 1000 | text_micro_batch=64 |  |"
    assert told[-1].endswith("| killed |")


def test_the_digits_are_read_without_what_takes_seconds_to_load():
    code = (
        "import sys; from vlprompt.data.builtin.digits import load_digit_arrays; load_digit_arrays(); "
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    from sklearn.datasets import load_digits

    from vlprompt.data.builtin.digits import load_digit_arrays

    pictures, labels = load_digit_arrays()
    assert (pictures == (load_digits().images * (255 / 16)).round()).all()
    assert (labels == load_digits().target).all()
    assert labels.dtype == load_digits().target.dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "case"),
    [
        ("text", "coop, 30 classes"),
        ("text", "cocoop, 30 classes, 1 image"),
        ("vpt", "deep, 50 prompts, 2 images, step"),
        ("epoch", "coop, 30 classes, 8 images, kept"),
    ],
)
def test_both_forms_are_one(what, case, tmp_path):
    done = bench(what, "--short", "--rounds", "1", "--case", case, "--out", tmp_path / "t.md")
    assert done.returncode == 0, done.stderr
    ((_, row),) = kept(tmp_path / "t.jsonl")
    assert row["difference"] < 1e-4
    assert row["ratio"] > 1
    assert row["flop_ratio"] > 1


@pytest.mark.gpu
def test_recorded_steps_are_measured_on_a_gpu():
    done = bench("recorded", "--device", "cuda", "--case", "clip_lora, 4 images, bf16", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "| clip_lora, 4 images, bf16 |" in done.stdout


@pytest.mark.gpu
def test_runs_side_by_side_are_measured_on_a_gpu():
    done = bench("side_by_side", "--device", "cuda", "--case", "coop, embedded CLIP, 3 seeds", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "| coop, embedded CLIP, 3 seeds |" in done.stdout
