"""Loaders of the built-in image datasets, by the `loader` of their card."""

import hashlib
from collections.abc import Callable
from functools import cache, partial

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import ImageItem, persistent_key
from vlprompt.data.dataset import ImageRecord, LabelSet, RawDataset
from vlprompt.data.images.decoding import build_image_item


def _load_digits_dataset(names: Names) -> RawDataset:
    from vlprompt.data.builtin import digits

    labels, keys = digits.load_digit_arrays()[1], class_ids(names)
    parts = {
        part: [ImageRecord(str(i), keys[int(labels[i])]) for i in places]
        for part, places in digits.split_indices().items()
    }
    return RawDataset(names, parts, _build_digit_item)


@cache
def _build_digit_item(path: str) -> ImageItem:
    from vlprompt.data.builtin import digits

    code = hashlib.sha256(digits.load_digit_arrays()[0][int(path)].tobytes()).hexdigest()[:16]
    return build_image_item(
        persistent_key("digits", path, code), partial(digits.open_digit, int(path)), f"digits/{path}"
    )


def _load_glyphs_dataset(names: Names) -> RawDataset:
    from vlprompt.data.builtin.glyphs.dataset import list_glyphs

    drawn, keys = list_glyphs(), class_ids(names)
    openers = {key: open_it for rows in drawn.values() for key, open_it, _ in rows}
    parts = {part: [ImageRecord(key, keys[label]) for key, _, label in rows] for part, rows in drawn.items()}
    return RawDataset(names, parts, lambda path: build_image_item(path, openers[path]))


def _load_digit_domains(names: Names) -> RawDataset:
    from vlprompt.data.builtin import digit_domains, digits
    from vlprompt.data.builtin.glyphs.dataset import IMAGES_PER_CLASS

    labels, keys = digits.load_digit_arrays()[1], class_ids(names)
    parts = {
        part: [ImageRecord(f"{domain}/{i}", keys[int(labels[i])], domain) for domain, i in places]
        for part, places in digit_domains.assign_domains().items()
    }
    for part, size in IMAGES_PER_CLASS.items():  # the first ten of the glyphs are the digits
        parts[part] += [ImageRecord(f"rendered/{part}/{i}", keys[i // size], "rendered") for i in range(10 * size)]
    return RawDataset(names, parts, _build_domain_digit_item, domains=digit_domains.DOMAINS)


@cache
def _build_domain_digit_item(path: str) -> ImageItem:
    from vlprompt.data.builtin import digit_domains
    from vlprompt.data.builtin.glyphs.dataset import open_glyph

    domain, _, place = path.partition("/")
    if domain == "rendered":
        part, _, number = place.partition("/")
        return build_image_item(f"glyphs/{place}", partial(open_glyph, part, int(number)), path)
    return build_image_item(f"digit_domains/{path}", partial(digit_domains.open_domain_digit, domain, int(place)), path)


def _load_scenes_dataset(names: Names) -> RawDataset:
    from vlprompt.data.builtin.glyphs import scenes

    keys, records, label_sets = class_ids(names), dict[str, list[ImageRecord]](), dict[str, LabelSet]()
    for part, labels in scenes.list_scenes().items():
        records[part] = [ImageRecord(f"scenes/{part}/{i}", "") for i in range(len(labels))]
        label_sets |= {
            record.path: LabelSet(frozenset(keys[k] for k in row))
            for record, row in zip(records[part], labels, strict=True)
        }
    return RawDataset(names, records, _build_scene_item, label_sets=label_sets)


@cache
def _build_scene_item(path: str) -> ImageItem:
    from vlprompt.data.builtin.glyphs.scenes import open_scene

    _, part, number = path.split("/")
    return build_image_item(path, partial(open_scene, part, int(number)))


IMAGE_LOADERS: dict[str, Callable[[Names], RawDataset]] = {
    "digits": _load_digits_dataset,
    "digit_domains": _load_digit_domains,
    "glyphs": _load_glyphs_dataset,
    "scenes": _load_scenes_dataset,
}
