"""Cards of images and texts: keys and values of every type, class names that YAML reads otherwise, archives."""

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

from fuzz.draw import COLOURS, draw_scalar, paint
from fuzz.oracle import TEXT_CUT, Facts, check_counts, check_result, read_results
from fuzz.sandbox import Sandbox, chance

YAML_NAMES = ("yes", "no", "on", "off", "true", "null", "~", "1e3", "010", "0x10", "1_000", "1:30", "2026-01-01",
              "cat", "dog", "7", "1.50", "été", "n", "y", "Yes", "NULL", "0o7", "12e3", "-0", "+1")  # fmt: skip
IMAGE_KEYS = ("title", "source", "licence", "classes", "sizes", "note", "template", "augment", "names", "stages",
              "domain", "transductive", "pairs", "incomplete_splits", "loader", "hub", "folder", "members", "layout",
              "images", "split", "lists", "custom_order", "downloads", "manual_download", "domains")  # fmt: skip
TEXT_KEYS = ("text", "template", "classes", "words", "plain", "metric", "loader", "folder", "file", "hub", "title")
ESCAPES = ("../escaped", "/tmp/vlprompt-fuzz-escaped", "~/escaped", "a/../../../escaped", "..", ".", "")
HEAD = {"title": "pictures", "source": "nobody", "licence": "none"}


def draw_image_card(box: Sandbox, stream: random.Random) -> tuple[dict[str, str], Facts]:
    """Write class folders below the data root; return the card's keys with their YAML text, and the facts."""
    names = stream.sample(YAML_NAMES, stream.randrange(2, 5))
    for name, colour in zip(names, COLOURS, strict=False):
        for i in range(5):
            paint(box.data / "pictures" / "images" / name / f"{i}.png", colour, stream)
    quoted = [f"'{name}'" if chance(stream, 0.2) else name for name in names]
    classes = stream.choice(
        (
            "[" + ", ".join(quoted) + "]",
            "\n" + "".join(f"- {name}\n" for name in quoted),
            "{" + ", ".join(f"{name}: {name}" for name in quoted) + "}",
            "\n" + "".join(f"- {{{name}: {name}}}\n" for name in quoted),
        )
    )
    card = HEAD | {"folder": "pictures", "images": "images", "layout": "folders", "classes": classes}
    card |= {"template": "'a photo of a {name}.'"}
    return card, Facts({"all": dict.fromkeys(names, 5)})


def draw_text_card(box: Sandbox, stream: random.Random) -> tuple[dict[str, str], Facts]:
    """Write a table beside the card; return the card's keys with their YAML text, and the facts."""
    names = stream.sample(YAML_NAMES, 3)
    lines = [f"text {i} of {k},{name}" for k, name in enumerate(names) for i in range(6)]
    (box.work / "texts.csv").write_text("sentence,answer\n" + "\n".join(lines) + "\n", "utf-8")
    card = HEAD | {"file": "texts.csv", "template": "'{text} It is {mask}.'"}
    card |= {"text": "{fields: {text: sentence}, answer: class, label: answer}", "classes": f"[{', '.join(names)}]"}
    if chance(stream, 0.4):
        card["words"] = "{" + ", ".join(f"{name}: [{json.dumps(name)}]" for name in names) + "}"
    return card, Facts({"all": dict.fromkeys(names, 6)}, cut=TEXT_CUT)


def write_archive(path: Path, stream: random.Random) -> str:
    """Write an archive with a good class folder and perhaps a bad member; return the bad one's name."""
    bad = stream.choice(("", "../escaped.png", "/escaped.png", "a/../../../escaped", "link", "hard", "", "../../x"))
    good = paint(path.with_name("p.png"), COLOURS[0], stream).read_bytes()
    members = {f"images/{name}/{i}.png": good for name in ("cat", "dog") for i in range(5)}
    members |= {bad: b"bad"} if bad not in ("", "link", "hard") else {}
    path.with_name("p.png").unlink()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
            if bad == "link":
                info = zipfile.ZipInfo("images/link")
                info.external_attr = 0o120777 << 16
                archive.writestr(info, "../../../..")
        return bad
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if bad in ("link", "hard"):
            info = tarfile.TarInfo("images/cat/out")
            info.type = tarfile.SYMTYPE if bad == "link" else tarfile.LNKTYPE
            info.linkname = "../../../../../work" if bad == "link" else "../../secret"
            archive.addfile(info)
    return bad


def prepare_case(stream: random.Random, box: Sandbox) -> None:
    """Unpack or fetch an archive that a card names, by paths that may lead out of the data root."""
    source = box.work / "mirror"
    source.mkdir()
    archive = source / stream.choice(("a.zip", "a.tar.gz"))
    bad = write_archive(archive, stream)
    step = {"produces": "images", "url": archive.as_uri(), "file": archive.name}
    if chance(stream, 0.4):
        step[stream.choice(("produces", "file", "extract_to"))] = stream.choice(ESCAPES)
    if chance(stream, 0.2):
        step["md5"] = "0" * 32
    if chance(stream, 0.2):
        step["strip_components"] = stream.choice(("0", "1", "-1", "9", "x"))
    text = ", ".join(f"{key}: {value}" for key, value in step.items())
    card = HEAD | {"folder": "pictures", "images": "images", "layout": "folders", "classes": "[cat, dog]",
                   "template": "'a {name}.'", "downloads": f"[{{{text}}}]"}  # fmt: skip
    if chance(stream, 0.2):
        card["folder"] = stream.choice(ESCAPES)
    write_card(box, card)
    box.writable.append(box.data)
    words = ["data", "prepare", "card.yaml", "--download"]
    words += ["--from", stream.choice((str(source), source.as_uri(), "nowhere"))] if chance(stream, 0.3) else []
    outcome = box.call(*words, statuses=(0, 1, 2))
    if bad not in ("", "hard", "/escaped.png") and outcome.status == 0:  # what tar may make harmless
        box.violate("in silence", f"the archive's member {bad!r} was not refused")
    box.call(*words, statuses=(0, 1, 2))


def write_card(box: Sandbox, card: dict[str, str]) -> None:
    """Write a card of keys and YAML texts."""
    lines = [f"{key}:{value}" if value.startswith("\n") else f"{key}: {value}\n" for key, value in card.items()]
    (box.work / "card.yaml").write_text("".join(lines), "utf-8", "replace")
    box.commands.append(f"# card.yaml: {''.join(lines)[:600]!r}")


def spoil(card: dict[str, str], stream: random.Random, keys: tuple[str, ...]) -> None:
    """Change, add or drop a few keys."""
    for _ in range(stream.choice((1, 1, 2, 3))):
        kind = stream.randrange(5)
        if kind == 0:
            card.pop(stream.choice(list(card)), None)
        elif kind == 1:
            card[stream.choice(keys)[:-1] or "x"] = draw_scalar(stream)
        elif kind == 2 and {"folder", "images", "file"} & card.keys():
            card[stream.choice(sorted({"folder", "images", "file"} & card.keys()))] = stream.choice(ESCAPES) or "''"
        else:
            card[stream.choice(keys)] = draw_scalar(stream)


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Check, show and run a card, whole or spoiled."""
    if chance(stream, 0.2):
        prepare_case(stream, box)
        return
    is_text = chance(stream, 0.3)
    card, facts = draw_text_card(box, stream) if is_text else draw_image_card(box, stream)
    is_whole = chance(stream, 0.35)
    if not is_whole:
        spoil(card, stream, TEXT_KEYS if is_text else IMAGE_KEYS)
    write_card(box, card)
    if chance(stream, 0.3):
        box.call("data", "show", "card.yaml")
    check = box.call("data", "check", "card.yaml", statuses=(0, 1, 2))
    if is_whole:
        if check.status == 0:  # 1: it says that the data are not those of the card
            check_counts(box, check, facts)
        if check.status == 2:
            box.violate("refused", check.line[-300:])
    if is_text:
        return
    run = box.call("run", "nearest_mean", "card.yaml", "--backbone", "pixels:2", "task.shots=null", "-o", box.out)
    if is_whole:
        check_result(box, run, facts)
    elif run.status == 0 and "template" in card:
        template = read_results(box.out)[0]["protocol"]["template"]
        if "{name}" not in template:
            box.violate("wrong data", f"the template {template!r} names no class")
