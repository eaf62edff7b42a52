"""Which features a backbone keeps on the disk, where, and what is there."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.cache.disk import FORMAT, MOST, Shelf, Store
from vlprompt.backbones.cache.segment_file import SUFFIX, Broken, Segment, read_about
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.input_size import by
from vlprompt.core.images import Images, Look
from vlprompt.core.towers import Backbone, Clip, tower_of

WHERE, SIZE = "VLPROMPT_FEATURES", "VLPROMPT_FEATURES_GB"
TEXTS = ("a photo of a cat.", "the quick brown fox")  # any would do


def usual() -> Path | None:
    """Where the command line keeps features: VLPROMPT_FEATURES ("none": nowhere), else in the user's cache folder."""
    if told := os.environ.get(WHERE):
        return None if told == "none" else Path(told).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "vlprompt" / "features"


def most() -> int:
    """Bytes: VLPROMPT_FEATURES_GB, else 10 GB; ValueError for what is no number of them."""
    told = os.environ.get(SIZE)
    try:
        size = MOST if not told else int(float(told) * 10**9)
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise ValueError(f"{SIZE} is {told!r}; it is how many GB of features are kept, such as 10 or 0.5")
    return size


def shelved(backbone: Backbone, folder: str | Path | None) -> Backbone:
    """A backbone that was just loaded, its frozen features kept in a folder from now on (None: in memory only).

    Of language models nothing is kept.
    """
    tower = tower_of(backbone)
    if folder is None or not isinstance(tower, ImageTower):
        return backbone
    store = Store(Path(folder).expanduser().absolute(), most())
    tower.kept = tower.kept.like(lambda found: _of_images(store, found), tower)
    if isinstance(backbone, Clip):
        text: Any = backbone.text
        text.shelf = _of_texts(store, text)
    return backbone


def _of_images(store: Store, tower: ImageTower) -> Shelf:
    def probe() -> Tensor:
        def fixed(look: Look, places: Any) -> Tensor:
            each = 3 * look.size[0] * look.size[1]
            return (torch.arange(each) * 7919 % 256 / 255).reshape(1, 3, *look.size)

        return tower.computed(Images(fixed, [None]), [0])

    about = {"tower": tower.key, "of": "images", "look": asdict(tower.look), "device": tower.device.type}
    return Shelf(store, about | _versions("pillow", "torchvision"), probe, tower.device)


def _of_texts(store: Store, tower: Any) -> Shelf:
    about = {"tower": tower.key, "of": "texts", "device": tower.device.type}
    call: Any = type(tower).__call__  # its own, which is not looked up
    return Shelf(store, about | _versions(), lambda: call.__wrapped__(tower, TEXTS), tower.device)


def _versions(*packages: str) -> dict[str, Any]:
    """Of what decodes pictures; what runs the tower is told by what it makes."""
    found: dict[str, Any] = {"format": FORMAT}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # it came in another way
            found[package] = None
    return found


@dataclass(frozen=True)
class Held:
    """A shelf on the disk: what made its features, how many there are, bytes, last use (seconds since 1970)."""

    path: Path
    about: dict[str, Any]
    rows: int
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """The tower: what was loaded, and the hash of its weights."""
        return str(self.about.get("tower", "unknown"))

    @property
    def of(self) -> str:
        """What it looked at, and of images how."""
        look = self.about.get("look")
        if look is None:
            return str(self.about.get("of", "unknown"))
        return f"{by(look['size'])} {look['resize']} {look['crop']:g} {look['interpolation']}"

    @property
    def device(self) -> str:
        return str(self.about.get("device", "unknown"))

    def clear(self) -> None:
        """Remove it; what is not ours stays."""
        for pattern in (f"*{SUFFIX}", ".*.part", "about.json"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # another process has just written into it
            self.path.rmdir()


def held(root: Path) -> list[Held]:
    """All shelves of a store, the last used first."""
    found = list[Held]()
    for about in root.glob("*-*/about.json"):
        rows, size, used = 0, 0, about.stat().st_mtime
        for file in about.parent.glob(f"*{SUFFIX}"):
            with suppress(Broken, OSError):
                rows, stat = rows + Segment(file).rows, file.stat()
                size, used = size + stat.st_size, max(used, stat.st_mtime)
        found.append(Held(about.parent, read_about(about), rows, size, used))
    return sorted(found, key=lambda one: -one.used)
