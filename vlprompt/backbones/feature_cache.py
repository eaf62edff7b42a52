"""Attach the disk feature cache to a backbone, and list what the cache contains."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.backbones.cache.disk import FORMAT_VERSION, CacheNamespace, DiskCache
from vlprompt.backbones.cache.memory import CachedTextTower
from vlprompt.backbones.cache.segment_file import SUFFIX, CorruptSegmentError, Segment, read_metadata
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.input_size import format_size
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.towers import Backbone, Clip, find_input_tower
from vlprompt.runtime.settings import SETTINGS

PROBE_TEXTS = ("a photo of a cat.", "the quick brown fox")  # any fixed texts would do


def attach_disk_cache(backbone: Backbone, folder: str | Path | None) -> Backbone:
    """Cache the frozen features of a newly loaded backbone on the disk, and return it.

    Args:
        backbone: is changed in place. Features of language models are not cached on the disk.
        folder: the cache folder; None for a cache in memory only.
    """
    tower = find_input_tower(backbone)
    if folder is None or not isinstance(tower, ImageTower):
        return backbone
    disk_cache = DiskCache(Path(folder).expanduser().absolute(), SETTINGS.get_cache_bytes())
    tower.feature_cache = tower.feature_cache.new_with_namespace(lambda t: _image_namespace(disk_cache, t), tower)
    if isinstance(backbone, Clip):
        text = cast(CachedTextTower, backbone.text)
        text.disk_namespace = _text_namespace(disk_cache, text)
    return backbone


def _image_namespace(disk_cache: DiskCache, tower: ImageTower) -> CacheNamespace:
    def probe() -> Tensor:
        def decode_fixed(preprocessing: Preprocessing, indices: Any) -> Tensor:
            n_values = 3 * preprocessing.size[0] * preprocessing.size[1]
            return (torch.arange(n_values) * 7919 % 256 / 255).reshape(1, 3, *preprocessing.size)

        return tower.compute_features(Images(decode_fixed, [None]), [0])

    preprocessing = asdict(tower.preprocessing)
    metadata = {"tower": tower.key, "of": "images", "preprocess": preprocessing, "device": tower.device.type}
    return CacheNamespace(disk_cache, metadata | _read_versions("pillow", "torchvision"), probe, tower.device)


def _text_namespace(disk_cache: DiskCache, tower: CachedTextTower) -> CacheNamespace:
    metadata = {"tower": tower.key, "of": "texts", "device": tower.device.type} | _read_versions()
    text_tower_class: Any = type(tower)
    uncached_call = text_tower_class.__call__.__wrapped__
    return CacheNamespace(disk_cache, metadata, lambda: uncached_call(tower, PROBE_TEXTS), tower.device)


def _read_versions(*packages: str) -> dict[str, Any]:
    """Return the versions of the packages that decode images; a change of the model's library shows in the probe."""
    versions: dict[str, Any] = {"format": FORMAT_VERSION}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # installed without metadata
            versions[package] = None
    return versions


@dataclass(frozen=True)
class CachedNamespace:
    """A namespace on the disk: its metadata, number of features, bytes, and last use (seconds since 1970)."""

    path: Path
    metadata: dict[str, Any]
    n_rows: int
    n_bytes: int
    last_used: float

    @property
    def name(self) -> str:
        """The tower's key: its spec and a hash of its weights."""
        return str(self.metadata.get("tower", "unknown"))

    @property
    def description(self) -> str:
        """The kind of inputs; of images the preprocessing."""
        preprocess = self.metadata.get("preprocess")
        if preprocess is None:
            return str(self.metadata.get("of", "unknown"))
        size, crop = format_size(preprocess["size"]), f"{preprocess['crop']:g}"
        return f"{size} {preprocess['resize']} {crop} {preprocess['interpolation']}"

    @property
    def device(self) -> str:
        return str(self.metadata.get("device", "unknown"))

    def clear(self) -> None:
        """Remove the namespace's files and, unless others lie there, its folder."""
        for pattern in (f"*{SUFFIX}", ".*.part", "metadata.json"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # other files, or another process has just written
            self.path.rmdir()


def list_namespaces(root: Path) -> list[CachedNamespace]:
    """Return all namespaces of a disk cache, the last used first."""
    namespaces = list[CachedNamespace]()
    for metadata_path in root.glob("*-*/metadata.json"):
        n_rows, n_bytes, last_used = 0, 0, metadata_path.stat().st_mtime
        for file in metadata_path.parent.glob(f"*{SUFFIX}"):
            with suppress(CorruptSegmentError, OSError):
                n_rows, stat = n_rows + Segment(file).n_rows, file.stat()
                n_bytes, last_used = n_bytes + stat.st_size, max(last_used, stat.st_mtime)
        metadata = read_metadata(metadata_path)
        namespaces.append(CachedNamespace(metadata_path.parent, metadata, n_rows, n_bytes, last_used))
    return sorted(namespaces, key=lambda namespace: -namespace.last_used)
