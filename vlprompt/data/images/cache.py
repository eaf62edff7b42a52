"""Pictures that were decoded, as bytes in memory."""

import os
import threading
from random import Random

import numpy as np
from PIL import Image

EACH = 700  # bytes of a key and of what holds a picture besides its own bytes, as measured


def most() -> int:
    """Bytes by default: 1 GB (2**30), and no more than an eighth of the machine's memory."""
    known = hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names)
    return min(2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8) if known else 2**30


class Decoded:
    """Pictures by key, up to `most` bytes; then some go, at random (the oldest are what the next epoch wants first).

    Only those in RGB; three bytes a pixel. Threads may share it.
    """

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self._held, self._order = dict[object, np.ndarray](), list[object]()
        self._chance, self._lock = Random(0), threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: object) -> np.ndarray | None:
        """Its bytes (H, W, 3), not to be written into."""
        return self._held.get(key)

    def keep(self, key: object, picture: Image.Image) -> None:
        width, height = picture.size
        if picture.mode != "RGB" or 3 * width * height + EACH > self.most:
            return
        array = np.array(picture)
        with self._lock:
            if key in self._held:
                return
            self._held[key] = array
            self._order.append(key)
            self.bytes += array.nbytes + EACH
            self._shrink()

    def use(self, most: int) -> None:
        """At most so many bytes from now on; 0 keeps nothing."""
        with self._lock:
            self.most = most
            self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self.most:
            i = self._chance.randrange(max(1, len(self._order) - 1))  # the newest stays
            self._order[i], self._order[-1] = self._order[-1], self._order[i]
            self.bytes -= self._held.pop(self._order.pop()).nbytes + EACH


HELD = Decoded(most())  # of this process
