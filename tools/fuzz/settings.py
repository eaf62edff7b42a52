"""Values of every type in every setting, from the constructors; files of settings; options; search grids."""

import random
import typing
from pathlib import Path
from typing import Any, Literal

from fuzz.draw import COLOURS, draw_scalar, paint
from fuzz.oracle import Facts, check_result, read_results
from fuzz.sandbox import Sandbox, chance

BACKBONES = ("glyph/random", "pixels:2", "glyph-vit/random", "glyph/random", "pixels:x", "pixels:0", "", "glyph:x",
             "open_clip:", "timm:nothing/random", "hf:nowhere", "open_clip:ViT-B-32@nowhere.pt")  # fmt: skip
LONG = ("epochs", "iterations", "steps", "n_steps", "lr_steps", "max_iter")  # larger values only take longer
CHEAP = ("nearest_mean", "linear", "coop", "zero_shot", "vpt", "lora", "taskres", "tip_adapter", "clip_adapter")
TASKS = ("few_shot", "few_shot", "base_to_new", "transfer", "vtab", "continual", "domain", "online", "open_set", "text")
OPTIONS = {  # option -> values; large numbers of threads are not drawn
    "--shots": ("0", "-1", "1", "2,1", "1,1", "x", "1.5", "", "1,", "99999999999999999999"),
    "--seed": ("0", "-1", "1,1", "2,1", "x", "", "99999999999999999999", "1e3"),
    "--threads": ("0", "-1", "1", "2", "x"),
    "--workers": ("0", "-1", "1", "2", "x"),
    "--image-cache": ("0", "-1", "nan", "inf", "0.001", "x"),
    "--memory-limit": ("0", "-1", "nan", "inf", "0.001", "4"),
    "--augmentations": ("0", "1", "2", "-1", "x"),
    "--save-every": ("0", "-1", "nan", "1e-9", "x"),
    "--device": ("cpu", "cuda", "foo", "cuda:99", "meta", "", "cpu:7"),
    "--task": (*TASKS, "few-shot", "", "x"),
    "--targets": ("photos", "digits", "", "nowhere", "photos,photos"),
    "--source": ("a", "rest", "none", "", "cat,dog"),
    "--target": ("a", "", "cat"),
    "--max-lessons": ("0", "1", "-1"),
    "--processes": ("0", "1", "2", "-1"),
    "--root": ("nowhere", ".", "~", ""),
    "--feature-cache": ("none", "", "cache", "photos/cat/0.png"),
}


def list_settings(method: str, task: str) -> dict[str, Any]:
    """Return every setting of a method, a task and the training -> its annotation."""
    from vlprompt.config.build import get_backbone_kind, get_constructor_types, resolve_class
    from vlprompt.engine.train_config import TrainConfig

    classes = {"method": resolve_class("method", method), "task": resolve_class("task", task), "train": TrainConfig}
    settings = {
        f"{section}.{name}": annotation
        for section, cls in classes.items()
        for name, annotation in get_constructor_types(cls).items()
        if not get_backbone_kind(name, annotation)
    }
    return settings | {"seed": int, "backbone": str, "preprocess": Any}


def draw_fitting(annotation: Any, stream: random.Random) -> str:
    """Return a value of an annotation's type, as YAML text."""
    arguments = [one for one in typing.get_args(annotation) if one is not type(None)]
    if typing.get_origin(annotation) is Literal:
        return str(stream.choice(arguments))
    if typing.get_origin(annotation) in (list, tuple):
        return "[" + ", ".join(draw_fitting(one, stream) for one in arguments if one is not ...) + "]"
    if typing.get_origin(annotation) is dict:
        return "{" + ": ".join(draw_fitting(one, stream) for one in arguments) + "}"
    if arguments:
        return draw_fitting(stream.choice(arguments), stream)
    choices = {
        int: ("0", "1", "2", "3", "-1", "5"),
        float: ("0", "0.1", "1e-3", "-1", "1", ".inf", ".nan", "1e30"),
        bool: ("true", "false"),
        str: ("a photo of a {name}.", "x", "{name} #1", "yes", "{name}", "a {name}: b", "none", "end", "7", "null"),
    }
    return stream.choice(choices.get(annotation, ("1", "x")))


def draw_setting(settings: dict[str, Any], stream: random.Random) -> tuple[str, str]:
    """Return a key and a value of any type, mostly of the right one."""
    key = stream.choice(list(settings))
    value = draw_fitting(settings[key], stream) if chance(stream, 0.5) else draw_scalar(stream)
    if chance(stream, 0.08):
        key = stream.choice((key[:-1], f"{key}.x", key.upper(), key.partition(".")[0], f"x.{key}", "", ".", key + "."))
    if any(key.endswith(name) for name in LONG) and value.isdecimal():
        value = "1"
    return key, value


def draw_arguments(stream: random.Random, settings: dict[str, Any], box: Sandbox) -> list[str]:
    """Return settings as key=value, some of them in a file, and options."""
    pairs = [draw_setting(settings, stream) for _ in range(stream.choice((1, 1, 2, 3)))]
    words = [f"{key}={value}" for key, value in pairs]
    if chance(stream, 0.3):
        path = box.work / "settings.yaml"
        path.write_bytes(draw_file(pairs, stream))
        box.commands.append(f"# settings.yaml: {path.read_bytes()[:300]!r}")
        words = ["-c", path.name, *words[:1]]
    if chance(stream, 0.25):
        option = stream.choice(list(OPTIONS))
        words += [option, stream.choice(OPTIONS[option])]
    return [word for word in words if "\0" not in word]


def draw_file(pairs: list[tuple[str, str]], stream: random.Random) -> bytes:
    """Return a file of settings, well formed or not."""
    if chance(stream, 0.25):
        return stream.choice(
            (b"", b"[]", b"3", b"- a", b"method", b"\xff\xfe", b"method: [", b"method: 3", b"train: []", b"task: yes",
             b"a: b: c", b"{method: coop}", b"method: {name: coop, method: {name: coop}}", b"1: 2", b"null: 1",
             b"train: {1: 2}", b"method: {name: 3}", b"task: {name: null}", b"train: {epochs: {1: 2}}", b"seed: yes",
             b"? [a]\n: 1", b"method: !!python/name:os.system", b"search: 3", b"backbone: 3", b"preprocess: [1]",
             b"backbone: {a: 1}", b"\t", b"method: *x", b"<<: {seed: 1}", b"seed: 1\nseed: 2", b"%YAML 9\n---\na: 1",
             b"preprocess: {size: x}", b"preprocess: nothing", b"task: {dataset: 3}", b"task: {dataset: [photos]}"),
        )  # fmt: skip
    text = ""
    for key, value in pairs:
        section, _, name = key.partition(".")
        text += f"{section}:\n  {name}: {value}\n" if name else f"{section}: {value}\n"
    return text.encode("utf-8", "replace")


def write_photos(folder: Path, stream: random.Random, classes: tuple[str, ...] = ("cat", "dog", "owl", "yak")) -> Facts:
    """Write a small dataset of plain names."""
    for name, colour in zip(classes, COLOURS, strict=False):
        for i in range(6):
            paint(folder / name / f"{i}.png", colour, stream)
    return Facts({"all": dict.fromkeys(classes, 6)}, separable=False)


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Run one method with a few settings; hold what the result says they were."""
    from vlprompt.methods import find_classes

    facts = write_photos(box.work / "photos", stream)
    method = stream.choice(CHEAP) if chance(stream, 0.6) else stream.choice(sorted(find_classes()))
    task = stream.choice(TASKS) if chance(stream, 0.4) else "few_shot"
    settings = list_settings(method, task)
    arguments = draw_arguments(stream, settings, box)
    backbone = stream.choice(BACKBONES) if chance(stream, 0.15) else "glyph/random"
    words = [method, "photos", "--task", task, "--backbone", backbone, "--shots", "1", "-o", str(box.out)]
    if chance(stream, 0.1):
        words[0], arguments = (
            stream.choice((f"{method},nearest_mean", f"{method},", ",", "x", f"{method},{method}")),
            [],
        )
    box.writable.append(box.work / "cache")
    if chance(stream, 0.08) and task == "few_shot":
        key, value = stream.choice(list(settings)), f"[{draw_scalar(stream)}, {draw_scalar(stream)}]"
        box.call("search", method, "photos", f"search.{key}={value}", "train.epochs=1", "--backbone", backbone,
                 "--seed", "1", "-o", box.out)  # fmt: skip
        return
    outcome = box.call("run", *words, "train.epochs=1", *arguments, statuses=(0, 1, 2) if "," in words[0] else (0, 2))
    box.check_leftovers(box.out)
    if outcome.status == 0 and not outcome.is_interrupted:
        check_values(box, settings, [word for word in arguments if "=" in word and arguments[0] != "-c"])
        is_plain = task == "few_shot" and len(arguments) == 1 and arguments[0].startswith("train.")
        if is_plain and "," not in words[0] and method in CHEAP:
            check_result(box, outcome, facts, 1)


def check_values(box: Sandbox, settings: dict[str, Any], arguments: list[str]) -> None:
    """Hold that a text is in the configuration as it was typed."""
    typed = {key: text for key, _, text in (word.partition("=") for word in arguments)}
    for key, text in typed.items():
        section, _, name = key.partition(".")
        if settings.get(key) not in (str, str | None) or not name or text in ("null", "~", ""):
            continue
        for result in read_results(box.out):
            if (value := result["config"][section].get(name)) != text:
                box.violate("wrong value", f"{key}: typed {text!r}, the result has {value!r}")
