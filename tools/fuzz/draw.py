"""Draw names, YAML values and pictures."""

import random
import string
from pathlib import Path

PLAIN_NAMES = ("cat", "dog", "sea bird", "old_house", "Zebra", "7", "tree-frog", "apple pie")
STRANGE_NAMES = (
    "a [/i] b",
    "[bold]x",
    "[/b]",
    "{name}",
    "{}",
    "a{b",
    "50% off",
    "été",
    "été",
    "北京",
    "🦊 fox",
    "\u202ertl",
    "yes",
    "no",
    "null",
    "1e3",
    "012",
    "1:30",
    "2026-01-01",
    "true",
    "~",
    "-x",
    "--help",
    "a=b",
    "a,b",
    "it's",
    'say "hi"',
    "#hash",
    "a #b",
    "a:b",
    "tab\there",
    "line\nbreak",
    "ß",
    "İ",
    "ﬁsh",
    " lead",
    "trail ",
    "...dots",
    "%s%n",
    "$HOME",
    "${oc.env:HOME}",
    "`id`",
    "\\back",
    "*",
    "?",
    "con",
    "x" * 200,
    "é" * 120,
    "\x07bell",
    "zero\u200bwidth",
)
SCALARS = (  # as YAML writes them
    "0", "1", "2", "3", "-1", "7", "1.5", "-0.0", "1e-3", "1e400", ".inf", "-.inf", ".nan", "1_000", "010", "0x10",
    "1:30", "2026-01-01", "2026-01-01 10:00:00", "true", "false", "yes", "no", "on", "null", "~", "''", '""', "[]",
    "{}", "[1, 2]", "[a, b]", "[[1], [2]]", "{a: 1}", "{name: linear}", "{name: coop, n_ctx: 2}", "text",
    "'a {name} #1'", "a photo of a {name}.", "'{name}'", "{name}", "'{kind}'", "'${oc.env:HOME}'", "100", "65536",
    "99999999999999999999", "-99999999999999999999", "!!python/object/apply:os.system ['touch canary']",
    "!!binary aGVsbG8=", "!!set {a, b}", "&a [*a]", "*a", "'\\0'", '"\\ud800"', "|", "? a", "[", "{", "'", "@x", "%x",
    "<<", "=", "'a' 'b'", "1 2", "- 1", "été", "'🦊'", "!!float 3", "!!str 3", "!!int '3'",
)  # fmt: skip
COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30), (30, 220, 220), (220, 30, 220))


def draw_scalar(stream: random.Random) -> str:
    """Return a value as YAML text, of any type."""
    if stream.random() < 0.9:
        return stream.choice(SCALARS)
    kind = stream.randrange(5)
    if kind == 0:
        return "[" * 300 + "]" * 300
    if kind == 1:
        return "x" * 5000
    if kind == 2:
        return "[" + ",".join(["1"] * 500) + "]"
    if kind == 3:
        return "{a: &a [1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a], c: [*b,*b,*b,*b,*b,*b]}"
    return "".join(stream.choice(string.printable[:95]) for _ in range(stream.randrange(1, 30)))


def draw_names(stream: random.Random, count: int, strange: float = 0.3) -> list[str]:
    """Return different names, some of them strange."""
    names = dict[str, None]()
    while len(names) < count:
        names.setdefault(stream.choice(STRANGE_NAMES if stream.random() < strange else PLAIN_NAMES))
    return list(names)


def paint(path: Path, colour: tuple[int, int, int], stream: random.Random, side: int = 6) -> Path:
    """Write a picture of a colour with a little noise, so that no two are the same; return its path."""
    from PIL import Image

    pixels = [tuple(c + stream.randrange(-20, 21) for c in colour) for _ in range(side * side)]
    image = Image.new("RGB", (side, side))
    image.putdata(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def damage(data: bytes, stream: random.Random) -> tuple[bytes, str]:
    """Return bytes that are cut, flipped, emptied or replaced, and what was done."""
    kind = stream.choice(("flip", "flip", "flips", "cut", "cut", "empty", "junk", "append", "hole"))
    if not data or kind == "empty":
        return b"", "empty"
    place = stream.randrange(len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << stream.randrange(8)]) + data[place + 1 :], f"flip {place}"
    if kind == "flips":
        changed = bytearray(data)
        for _ in range(8):
            changed[stream.randrange(len(data))] ^= 1 << stream.randrange(8)
        return bytes(changed), kind
    if kind == "cut":
        return data[:place], f"cut {place}"
    if kind == "append":
        return data + stream.randbytes(stream.randrange(1, 50)), kind
    if kind == "hole":
        return data[:place] + bytes(len(data) - place), f"hole {place}"
    return stream.randbytes(min(len(data), 500)), kind
