"""Looking at a dataset: what is there against what its card says, and a few of its images."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ids
from vlprompt.data.cards import card_classes, card_ids, is_card, read_card
from vlprompt.data.dataset import LEAST, Data
from vlprompt.data.loading import open_data
from vlprompt.data.locations import data_root, folder_of
from vlprompt.data.readers.card_folder import classes_of
from vlprompt.data.report import PARTS, Report, splits


def check(
    dataset: str,
    root: str | Path | None = None,
    only_there: bool = False,
    decode: bool = True,
    watch: Callable[[int, int], None] | None = None,
) -> Report:
    """Opens a dataset with the classes that have images, and compares; decode: opens every image.

    only_there: that classes are missing is then not wrong. Texts were all read when they were opened. ValueError and
    OSError as open_data has them.
    """
    data = open_data(dataset, root=root, only_there=True)
    if "answer" in data.test.info:
        from vlprompt.data.text.inspection import compare

        return compare(dataset, data, only_there)
    parts = splits(data)
    counts = {part: len(split) for part, split in parts.items()}
    card: dict[str, Any] = read_card(dataset) if is_card(dataset) else {}
    classes = (classes_of(card, root) if "layout" in card else card_classes(card)) if card else {}
    if "members" in card:
        classes = dict(zip(ids(data.test.names), data.test.names, strict=True))
    missing = tuple(name for key, name in classes.items() if key not in ids(data.test.names))
    many = max(len(classes), len(card_ids(card))) if card else 0  # a card may count classes that only the data name
    missing += ("of unknown name",) * (many - len(classes))
    expected = card.get("sizes", {})
    wrong, told = list[str](), list[str]()
    if missing:
        some = ", ".join(missing[:20]) + " ..." * (len(missing) > 20)
        line = f"{len(missing)} of {many} classes have no images: {some}"
        (told if only_there else wrong).append(line)
    if "val" not in expected and {"train", "val"} <= counts.keys():  # our val is a share of the train that it counts
        counts = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    if expected and not set(expected) & set(PARTS):  # the card counts the images of each domain
        named: Any = data.test.info.get("domains", [])
        of_domain = Counter(named[k] for split in parts.values() for k in split.domains or ())
        counts = {domain: of_domain[domain] for domain in expected}
    if expected and counts != expected and not missing:
        theirs = "not the literature's split" not in data.note
        (wrong if theirs else told).append(
            f"the card has {_sizes(expected)} images in {'/'.join(expected)}, here are {_sizes(counts)}"
        )
    alike = sorted({str(name) for name in data.test.names if data.test.names.count(name) > 1})
    if alike:
        told.append(f"several classes are called {', '.join(alike)}; they are told apart by their ids")
    broken = _broken(parts, watch) if decode else ()
    if broken:
        some = ", ".join(broken[:20]) + " ..." * (len(broken) > 20)
        wrong.append(
            f"{len(broken)} images can't be decoded: {some}; replace them, or run without them by --skip-broken"
        )
    return Report(data, {k: len(v) for k, v in parts.items()}, expected, missing, broken, wrong, told + stream(data))


def stream(data: Data) -> list[str]:
    """How the data can be met, where they say so: lines of stages, of domains with their images, of their use."""
    lines, info = list[str](), data.test.info
    stages, domains = info.get("stages"), info.get("domains")
    if isinstance(stages, list):
        lines.append(f"stages: {len(stages)}, of {', '.join(str(len(stage)) for stage in stages)} classes")
    elif stages is not None:
        lines.append(f"stages: {stages}, of {len(data.test.names)} classes in all")
    if isinstance(domains, list):
        counts = {part: Counter(split.domains) for part, split in splits(data).items()}
        told = (f"{name} {_sizes({p: c[k] for p, c in counts.items()})}" for k, name in enumerate(domains))
        lines.append(f"domains: {', '.join(told)} in {'/'.join(counts)}")
    if info.get("transductive"):
        lines.append(
            "transductive: all images of a domain are adapted to and tested on; only other tasks take the parts"
        )
    return lines


def _sizes(counts: dict[str, int]) -> str:
    return "/".join(f"{n:,}" for n in counts.values())


def _broken(parts: dict[str, Split], watch: Callable[[int, int], None] | None) -> tuple[str, ...]:
    every = [item for split in parts.values() for item in split.items]
    found = []
    for done, item in enumerate(every, 1):
        try:
            item.once(LEAST, None)
        except (ValueError, OSError):
            found.append(item.name)
        if watch is not None and (done % 50 == 0 or done == len(every)):
            watch(done, len(every))
    return tuple(found)


def samples(data: Data, most: int = 40) -> tuple[list[Any], list[str]]:
    """Pictures (h, w, 3) of 0..1 from as many classes as fit, spread over all of them, and the name of each class.

    A few from each where there are few classes. The items come from train, or from test where there is no train.
    """
    from vlprompt.core.images import Look

    split = data.train if len(data.train) else data.test
    n = len(split.names)
    chosen = range(n) if n <= most else [i * n // most for i in range(most)]
    each = max(1, min(4, most // n))
    of_class: dict[int, list[int]] = {}
    for place, label in enumerate(split.labels):
        of_class.setdefault(label, []).append(place)
    pictures, captions = [], []
    for label in chosen:
        places = of_class.get(label, [])
        for place in places[:: max(1, len(places) // each)][:each]:
            pixels = split.items[place].pixels(Look((96, 96)), None)
            pictures.append(pixels.clamp(0, 1).permute(1, 2, 0).numpy())
            captions.append(f"{label} {str(split.names[label]).replace('_', ' ')}")
    return pictures, captions


def is_here(card: dict[str, Any], root: str | Path | None = None) -> bool:
    """Whether its data lie on this machine; of a member that a library reads this is known when it is opened."""
    if "text" in card:
        from vlprompt.data.text.card import texts_here

        return texts_here(card, root)
    if "members" in card:
        return all(_is_here(str(member), root) for member in card["members"].values())
    if "hub" in card:
        return folder_of(card, root).exists()
    return "loader" in card or (folder_of(card, root) / card["images"]).is_dir()


def _is_here(member: str, root: str | Path | None) -> bool:
    if is_card(member):
        return "members" not in (card := read_card(member)) and is_here(card, root)
    return member.startswith("torchvision:") or (data_root(root) / member).exists()
