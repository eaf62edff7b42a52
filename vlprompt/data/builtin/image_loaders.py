"""Datasets that come with the package, by the `loader` that their card names."""

import hashlib
from collections.abc import Callable
from functools import partial

from vlprompt.core.class_names import Names, ids
from vlprompt.core.images import Item, lasting
from vlprompt.data.dataset import Found, Row
from vlprompt.data.images.decoding import picture_item


def _digits(names: Names) -> Found:
    from vlprompt.data.builtin import digits

    labels, keys = digits.arrays()[1], ids(names)
    parts = {part: [Row(str(i), keys[int(labels[i])]) for i in places] for part, places in digits.halves().items()}
    return Found(names, parts, _digit)


def _digit(path: str) -> Item:
    from vlprompt.data.builtin import digits

    code = hashlib.sha256(digits.arrays()[0][int(path)].tobytes()).hexdigest()[:16]
    return picture_item(lasting("digits", path, code), partial(digits.picture, int(path)), f"digits/{path}")


def _glyphs(names: Names) -> Found:
    from vlprompt.data.builtin.glyphs.dataset import pictures

    drawn, keys = pictures(), ids(names)
    openers = {key: open_it for rows in drawn.values() for key, open_it, _ in rows}
    parts = {part: [Row(key, keys[label]) for key, _, label in rows] for part, rows in drawn.items()}
    return Found(names, parts, lambda path: picture_item(path, openers[path]))


def _digit_domains(names: Names) -> Found:
    from vlprompt.data.builtin import digit_domains, digits
    from vlprompt.data.builtin.glyphs.dataset import SIZES

    labels, keys = digits.arrays()[1], ids(names)
    parts = {
        part: [Row(f"{domain}/{i}", keys[int(labels[i])], domain) for domain, i in places]
        for part, places in digit_domains.places().items()
    }
    for part, size in SIZES.items():  # the first ten of the glyphs are the digits
        parts[part] += [Row(f"rendered/{part}/{i}", keys[i // size], "rendered") for i in range(10 * size)]
    return Found(names, parts, _digit_in_its_domain, domains=digit_domains.DOMAINS)


def _digit_in_its_domain(path: str) -> Item:
    from vlprompt.data.builtin import digit_domains
    from vlprompt.data.builtin.glyphs.dataset import picture

    domain, _, place = path.partition("/")
    if domain == "rendered":
        part, _, number = place.partition("/")
        return picture_item(f"glyphs/{place}", partial(picture, part, int(number)), path)
    return picture_item(f"digit_domains/{path}", partial(digit_domains.picture, domain, int(place)), path)


LOADERS: dict[str, Callable[[Names], Found]] = {
    "digits": _digits,
    "digit_domains": _digit_domains,
    "glyphs": _glyphs,
}
