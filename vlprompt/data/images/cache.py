"""In-memory cache of decoded images."""

import os
import threading

import numpy as np
from PIL import Image

from vlprompt.runtime.bounded_cache import ENTRY_OVERHEAD_BYTES, BoundedCache


def default_max_bytes() -> int:
    """Return the default bound of the cache in bytes: 1 GB (2**30), but no more than an eighth of the memory."""
    has_memory_size = hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names)
    return min(2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8) if has_memory_size else 2**30


class DecodedImageCache(BoundedCache[object, np.ndarray]):
    """Decoded RGB images by key, three bytes a pixel. Threads may share it."""

    def __init__(self, max_bytes: int):
        super().__init__(max_bytes)
        self._lock = threading.Lock()

    def get(self, key: object) -> np.ndarray | None:
        """Return the pixels (height, width, 3) of an image, read-only by convention, or None."""
        return self.lookup(key)

    def add(self, key: object, image: Image.Image) -> None:
        """Add an image, unless it is not RGB, larger than the whole cache, or there already."""
        width, height = image.size
        if image.mode != "RGB" or 3 * width * height + ENTRY_OVERHEAD_BYTES > self.max_bytes:
            return
        pixels = np.array(image)
        with self._lock:
            self.insert(key, pixels)

    def set_max_bytes(self, max_bytes: int) -> None:
        """Change the bound and evict down to it; 0 empties and disables the cache."""
        with self._lock:
            super().set_max_bytes(max_bytes)


IMAGE_CACHE = DecodedImageCache(default_max_bytes())  # of this process
