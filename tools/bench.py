"""Speed and memory against the written-out form, in one process: tools/bench.py CASES [--device cuda].

CASES is text, vpt, heads, streams, dapl, lm or icl; each of tools/bench_text.py, bench_vpt.py ... says what its forms
are. Times are medians of alternating rounds, of processor time on a CPU, which other programs disturb less. Memory is
the peak of one piece of work in a fresh process above what it held before. The share is the rate of the floating-
point operations that the fast form makes over the rate of one large matrix product timed beside it. `same` is the
largest difference of the two forms' results (gradients, where they make some), relative. `bare` is the tower without
a prompt, where that is a limit.
"""

import argparse
import datetime
import gc
import importlib
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


def clock(work, device):
    now = time.perf_counter if device == "cuda" else time.process_time
    began = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (now() - began) / (1 if device == "cuda" else torch.get_num_threads())


def matrix_rate(device, size):
    """Floating-point operations a second of one large float32 product."""
    a = torch.randn(size, size, device=device)
    clock(lambda: a @ a, device)
    return 2 * size**3 / statistics.median(clock(lambda: a @ a, device) for _ in range(10))


def measure(setting, device, rounds):
    same, forms = setting.same(), [f for f in ("fast", "written_out", "bare") if hasattr(setting, f)]
    with FlopCounterMode(display=False) as counted:
        setting.work("fast")
    times, rate = {form: [] for form in forms}, []
    for _ in range(rounds):
        rate.append(matrix_rate(device, 1024 if device == "cpu" else 8192))
        for form in forms:
            often = 1 if form == "written_out" else getattr(setting, "often", 3)
            times[form] += [clock(lambda form=form: setting.work(form), device) for _ in range(often)]
    found = {form: statistics.median(t) for form, t in times.items()}
    share = counted.get_total_flops() / found["fast"] / statistics.median(rate)
    return found | {"share": share, "same": same}


def memory(setting, device, form):
    """MB of one piece of work above what the process held before it; called in a fresh process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        setting.work(form)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making the model

    def held(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    before = held("VmRSS")
    setting.work(form)
    return (held("VmHWM") - before) / 2**10


def in_fresh_process(what, case, options, form):
    command = [sys.executable, __file__, what, "--device", options.device, "--threads", str(options.threads)]
    done = subprocess.run([*command, "--memory", form, "--case", case], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["text", "vpt", "heads", "streams", "dapl", "lm", "icl"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", help="one of the cases; may be given again")
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument("--memory", choices=["fast", "written_out"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = importlib.import_module(f"bench_{options.what}")
    cases = options.case or list(bench.CASES)
    if strange := [case for case in cases if case not in bench.CASES]:
        parser.error(f"there is no case {strange[0]!r}; there are {', '.join(map(repr, bench.CASES))}")
    if options.memory:
        print(
            json.dumps(memory(bench.Setting(cases[0], options.device, torch.float32), options.device, options.memory))
        )
        return
    cpu = f"{platform.machine()} CPU, {options.threads} thread(s)"
    name = torch.cuda.get_device_name() if options.device == "cuda" else cpu
    head = f"`tools/bench.py {' '.join(sys.argv[1:])}`: {name}, torch {torch.__version__}, {datetime.date.today()}\n"
    columns = ["work", "written out s", "vlprompt s", "ratio", "bare s"]
    columns += ["written out MB", "vlprompt MB", "matrix speed", "same"]
    lines = [head, f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    print("\n".join(lines), flush=True)
    for case in cases:
        m = measure(bench.Setting(case, options.device, torch.float32), options.device, options.rounds)
        mb = [in_fresh_process(options.what, case, options, form) for form in ("written_out", "fast")]
        bare = f"{m['bare']:.4f} (x{m['fast'] / m['bare']:.2f})" if "bare" in m else ""
        cells = f"{m['written_out']:.3f}", f"{m['fast']:.4f}", f"**{m['written_out'] / m['fast']:.2f}**", bare
        more = f"{mb[0]:.0f}", f"{mb[1]:.0f}", f"{m['share']:.0%}", f"{m['same']:.0e}"
        lines.append(f"| {' | '.join([case, *cells, *more])} |")
        print(lines[-1], flush=True)
    if hasattr(bench, "more") and not options.case:
        lines += bench.more(options.device)
        print("\n".join(lines[len(cases) + 3 :]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
