"""Run folders with flipped bits, cuts, foreign and copied files; then table, plot, predict, eval, export and run."""

import csv
import json
import random
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fuzz.draw import damage, draw_names, draw_scalar
from fuzz.guard import install
from fuzz.oracle import mentions
from fuzz.process import call
from fuzz.sandbox import Sandbox, chance
from fuzz.settings import write_photos

RUNS = {  # method -> the command that made its run; one is damaged, the others must stay what they are
    "nearest_mean": ("run", "nearest_mean", "photos", "--backbone", "pixels:2", "--shots", "2"),
    "linear": ("run", "linear", "photos", "--backbone", "pixels:2", "--shots", "2", "train.epochs=1"),
    "coop": ("run", "coop", "photos", "--backbone", "glyph/random", "--shots", "1", "train.epochs=1"),
}
FILES = ("config.yaml", "result.json", "prompt.safetensors", "steps.jsonl")
RESULT = "result.json"
VOLATILE = ("seconds", "peak_memory_mb", "feature_cache_misses", "feature_cache_hits", "git_commit")
FOREIGN = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b'{"config": 3}',
    b'{"scores": []}',
    b"\xff\xfe\x00",
    b"a: b",
    b'{"config": {}, "scores": [], "summary": {}, "cost": {}, "environment": {}, "protocol": {}}',
    b'{"name": "another tool", "accuracy": 1}',
    b'[{"loss": 1}]',
    b"[" * 5000,
    b"{" * 5000,
    b"!!python/name:os.system",
)


@cache
def template_folder() -> Path:
    """Make the runs of RUNS once in this process; return the folder with photos and out."""
    import atexit

    root = Path(mkdtemp(prefix="vlprompt-fuzz-runs-")).resolve()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_photos(root / "photos", random.Random(0), ("cat", "dog", "owl"))
    guard = install()
    guard.allowed[:] = [str(root)]
    for words in RUNS.values():
        outcome = call([*words, "-o", "out"], root, {"HOME": str(root / "home"), "VLPROMPT_FEATURE_CACHE": "none"})
        assert outcome.status == 0, outcome.text
    for path in (root / "out").glob(f"*/{RESULT}"):
        content = json.loads(path.read_text())
        del content["checksum"]  # which is right for the values that are now made alike only
        path.write_text(json.dumps(fix_volatile(content), indent=1) + "\n")
    return root


def fix_volatile(value: Any) -> Any:
    """Return a result with the same times and sizes in every process, so that a case damages the same places."""
    if isinstance(value, dict):
        return {key: 1.5 if key in VOLATILE else fix_volatile(one) for key, one in value.items()}
    return [fix_volatile(one) for one in value] if isinstance(value, list) else value


def find_run(out: Path, method: str) -> Path:
    """Return the folder of a method's run."""
    return next(path for path in sorted(out.iterdir()) if path.name.startswith(f"{method}-"))


def edit_json(path: Path, stream: random.Random) -> str:
    """Give one value of a JSON file another type; return what was done."""
    content = json.loads(path.read_text())
    holder, key = stream.choice(list(iterate(content)))
    value = stream.choice((None, "x", -1, float("nan"), [], {}, "[/i]", True, 10**400, {"a": [1]}, draw_scalar(stream)))
    if chance(stream, 0.3) and isinstance(holder, dict):
        del holder[key]
        value = "(gone)"
    else:
        holder[key] = value
    path.write_text(json.dumps(content))
    return f"{path.name}: {key!r} is {str(value)[:30]!r}"


def iterate(value: Any) -> Iterable[tuple[Any, Any]]:
    """Yield (holder, key) of every value in nested mappings and lists."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from iterate(value[key])


def spoil(run: Path, out: Path, stream: random.Random) -> tuple[str, str]:
    """Damage a run folder or put another beside it; return the kind, and what was done."""
    kind = stream.choice(
        ("damage", "damage", "damage", "json", "json", "gone", "foreign", "beside", "copy", "mixed", "name")
    )
    path = run / stream.choice(FILES)
    if kind == "damage":
        data, how = damage(path.read_bytes(), stream)
        path.write_bytes(data)
        return kind, f"{path.name}: {how}"
    if kind == "json":
        return kind, edit_json(run / RESULT, stream)
    if kind == "gone":
        path.unlink()
    elif kind == "foreign":
        path.write_bytes(stream.choice(FOREIGN))
    elif kind == "beside":
        path = out / stream.choice(("foreign", "a [/i] b", ".hidden", "x.yaml")) / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.choice(FOREIGN))
        (path.parent / "config.yaml").write_bytes(stream.choice(FOREIGN))
    elif kind == "copy":
        path = run.parent / stream.choice((f"{run.name} copy", "backup", "a [/i] b", *draw_names(stream, 1, 1)))
        shutil.copytree(run, path)
    elif kind == "mixed":
        other = stream.choice([folder for folder in sorted(out.iterdir()) if folder != run])
        shutil.copy(other / path.name, path)
    else:
        path = run.parent / stream.choice(("a [/i] b", "renamed", "[bold]", "été"))
        path.parent.mkdir(exist_ok=True)
        run.rename(path)
    return kind, str(path.relative_to(out))


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Spoil one run, then give commands on all of them."""
    shutil.copytree(template_folder() / "photos", box.work / "photos")
    shutil.copytree(template_folder() / "out", box.out, dirs_exist_ok=True)
    method = stream.choice(list(RUNS))
    run = find_run(box.out, method)
    others = {path.parent: path.read_bytes() for path in box.out.glob(f"*/{RESULT}") if path.parent != run}
    kind, how = spoil(run, box.out, stream)
    run = box.out / how if kind == "name" else run
    box.commands.append(f"# {method}: {kind} {how}")
    command = stream.choice((hold_table, hold_table, hold_predict, hold_again, hold_rest))
    command(stream, box, method, run, kind)
    for folder, content in others.items():
        if not (folder / RESULT).exists() or (folder / RESULT).read_bytes() != content:
            box.violate("lost", f"the result of {folder.name} is gone or changed")


def open_folder(box: Sandbox) -> Path:
    """Return a folder in which a command may write tables."""
    folder = box.root / "tables"
    folder.mkdir()
    box.writable.append(folder)
    return folder


def hold_table(stream: random.Random, box: Sandbox, method: str, run: Path, kind: str) -> None:
    """The whole runs stand in the table with their numbers; a copy counts once; what is left out is named."""
    path = open_folder(box) / "t.csv"
    outcome = box.call("table", box.out, "--csv", path, statuses=(0, 1, 2))
    if not path.exists():
        box.violate("lost", f"no table at all for one folder: {outcome.line[-200:]}")
        return
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    for other in RUNS.keys() - {method}:
        folder = find_run(template_folder() / "out", other)
        wanted = json.loads((folder / RESULT).read_text())["summary"]["accuracy"]
        found = [row for row in rows if row["method"] == other and row["n"] == "1"]
        if not found or float(found[0]["accuracy"]) != wanted:
            is_mixed = kind in ("mixed", "beside") and bool(found)
            box.violate(
                "lost", f"{other} has {[row['accuracy'] for row in found]}, it is {wanted}"
            ) if not is_mixed else 0
    copies = [row["n"] for row in rows if row["method"] == method]
    if kind == "copy" and copies != ["1"]:
        box.violate("wrong data", f"a copied run is counted: n is {copies}")
    if kind in ("damage", "json", "gone", "foreign") and not copies and not mentions(outcome.text, [run.name, method]):
        box.violate("in silence", f"{run.name} is not in the table, and not named")


def hold_predict(stream: random.Random, box: Sandbox, method: str, run: Path, kind: str) -> None:
    """A damaged state is refused, or it predicts what the whole one does."""
    photos = [f"photos/{name}/0.png" for name in ("cat", "dog", "owl")]
    outcome = box.call("predict", run, *photos, "--csv", fresh=True)
    if outcome.status or kind not in ("damage", "foreign", "gone", "name", "copy"):
        return
    whole = find_run(template_folder() / "out", method)
    expected = call(
        ["predict", str(whole), *photos, "--csv"], box.work, box.environment() | {"VLPROMPT_FEATURE_CACHE": "none"}
    )
    if outcome.output != expected.output:
        box.violate("wrong number", f"the damaged run predicts otherwise in silence ({kind})")


def hold_again(stream: random.Random, box: Sandbox, method: str, run: Path, kind: str) -> None:
    """The command of the run refuses, or leaves what it came to at first; it is no dead end."""
    words = [*RUNS[method], "-o", box.out]
    again = box.call(*words, statuses=(0, 1, 2))
    if again.status or kind in ("mixed", "json", "foreign"):
        return
    runs = [path.parent for path in box.out.glob(f"{method}-*/{RESULT}")]
    whole = json.loads((find_run(template_folder() / "out", method) / RESULT).read_text())
    found = [json.loads((path / RESULT).read_text()) for path in runs]
    if whole["scores"] not in [one.get("scores") for one in found] and kind != "damage":
        box.violate("lost", f"{[one.get('scores') for one in found]}, it was {whole['scores']}")
    use = box.call("predict", runs[0], "photos/cat/0.png", fresh=True) if runs else None
    if use is not None and use.status and "name" not in kind:
        box.violate("dead end", f"the command ends well, and predict says: {use.line[-250:]}")


def hold_rest(stream: random.Random, box: Sandbox, method: str, run: Path, kind: str) -> None:
    """Other commands on the same folders."""
    path = open_folder(box) / "x"
    commands = (
        ("plot", box.out),
        ("eval", run),
        ("eval", run, "photos"),
        ("export", run, path, "--to", "peft"),
        ("table", box.out, "--against", "published"),
        ("table", box.out, "--markdown", path),
        ("table", box.out, "--latex", path),
        ("table", box.out, "--json", path),
        ("predict", box.out, "photos/cat/0.png"),
        ("predict", run, "photos/cat/0.png", "--format", "json"),
    )
    box.call(*stream.choice(commands), statuses=(0, 1, 2))
