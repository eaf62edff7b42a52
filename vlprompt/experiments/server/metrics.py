"""Counts and times of a server, as the text that Prometheus reads."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass
class Histogram:
    """Counts of values by upper bounds.

    Args:
        bounds: increasing; values above the last are counted too.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def format(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """Return the lines of this histogram."""
        lines, n = list[str](), 0
        for bound, count in zip((*map("{:g}".format, self.bounds), "+Inf"), self.counts, strict=True):
            n += count
            lines.append(f"{name}_bucket{_format_labels({**labels, 'le': bound})} {n}")
        sums = f"{name}_sum{_format_labels(labels)} {self.total:.9g}", f"{name}_count{_format_labels(labels)} {n}"
        return [*lines, *sums]


class Metrics:
    """Counts and times of a server. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = Counter[tuple[str, str, int]]()
        self._seconds = dict[str, Histogram]()
        self._batch_images, self._images = Histogram(BATCH_BOUNDS), Counter[str]()

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request of a route; route: its template, not what the client sent."""
        with self._lock:
            self._requests[method, route, status] += 1
            self._seconds.setdefault(route, Histogram(LATENCY_BOUNDS)).add(seconds)

    def count_batch(self, n_images: int) -> None:
        """Count a batch that the model answered."""
        with self._lock:
            self._batch_images.add(n_images)

    def count_images(self, model: str, n_images: int) -> None:
        """Count images that a model answered."""
        with self._lock:
            self._images[model] += n_images

    def format(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return the text that Prometheus reads.

        Args:
            gauges: further values by name, each with its meaning.
        """
        lines = list[str]()

        def begin(name: str, kind: str, meaning: str) -> None:
            lines.extend((f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"))

        with self._lock:
            begin("vlprompt_requests_total", "counter", "Requests by route and status.")
            for (method, route, status), n in sorted(self._requests.items()):
                labels = _format_labels({"method": method, "route": route, "status": str(status)})
                lines.append(f"vlprompt_requests_total{labels} {n}")
            begin("vlprompt_request_seconds", "histogram", "Seconds from a request to its answer.")
            for route, histogram in sorted(self._seconds.items()):
                lines += histogram.format("vlprompt_request_seconds", {"route": route})
            begin("vlprompt_batch_images", "histogram", "Images in a batch of the model.")
            lines += self._batch_images.format("vlprompt_batch_images", {})
            begin("vlprompt_images_total", "counter", "Images answered, by model.")
            for model, n in sorted(self._images.items()):
                lines.append(f"vlprompt_images_total{_format_labels({'model': model})} {n}")
        for name, (meaning, value) in gauges.items():
            begin(name, "gauge", meaning)
            lines.append(f"{name} {value:g}")
        return "\n".join(lines) + "\n"


def _format_labels(labels: Mapping[str, str]) -> str:
    def escape(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}" if labels else ""
