"""Limits on what one request, one client and all requests together may take."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

MAX_CLIENTS = 10_000  # whose buckets are stored; the least recent one goes first
MAX_BODIES = 8  # bodies of the largest size that are in memory at once
MAX_LARGEST_IMAGES = 8  # images of the most pixels that a request may have


@dataclass(frozen=True)
class Limits:
    """What a request and a client may take.

    Args:
        body_bytes: of one request.
        images: of one request.
        pixels: of one image, before it is resized; all of a request may have `MAX_LARGEST_IMAGES` times as many.
        classes: names of one request.
        class_characters: of one name.
        upload_seconds: in which a body must have arrived.
        rate: requests a second of one client, in bursts of twice as many; 0 for any number.
    """

    body_bytes: int = 32 * 2**20
    images: int = 256
    pixels: int = 50_000_000
    classes: int = 1000
    class_characters: int = 200
    upload_seconds: float = 60.0
    rate: float = 0.0


class RefusedError(Exception):
    """A request that is refused.

    Args:
        status: the HTTP status.
        message: one sentence for the client.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass
class RateLimiter:
    """A token bucket for each client.

    Args:
        rate: tokens a second; 0 for no limit.
        clock: returns seconds.
    """

    rate: float
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, client: str) -> None:
        """Take a token of a client; RefusedError (429) with Retry-After when there is none."""
        if not self.rate:
            return
        now, capacity = self.clock(), max(1.0, 2 * self.rate)
        tokens, since = self._buckets.pop(client, (capacity, now))
        tokens = min(capacity, tokens + (now - since) * self.rate)
        is_empty = tokens < 1
        self._buckets[client] = (tokens if is_empty else tokens - 1, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if is_empty:
            seconds = max(1, round((1 - tokens) / self.rate + 0.5))
            raise RefusedError(
                429,
                f"rate: expected at most {self.rate:g} requests a second of one client, got more. "
                f"Wait {seconds} s, or send several images in one request.",
                {"Retry-After": str(seconds)},
            )


@dataclass
class _Body:
    """A body that is being read: how much of it has arrived."""

    n_bytes: int = 0


class BodyReader:
    """Read bodies of requests in parts, within the limits; none is read further than it may be long.

    Args:
        limits: of a request; all bodies together may take `MAX_BODIES` times as much.
    """

    def __init__(self, limits: Limits):
        self.limits, self.n_bytes = limits, 0

    @contextmanager
    def open(self, stream: AsyncIterator[bytes], declared: str | None) -> Iterator[AsyncIterator[bytes]]:
        """Open a body, whose bytes count until the with-block ends.

        Args:
            stream: its parts as they arrive.
            declared: the header Content-Length, None for a chunked body.
        """
        if declared is not None and declared.isdecimal() and int(declared) > self.limits.body_bytes:
            raise self._make_size_error()
        body = _Body()
        try:
            yield self._read(stream, body)
        finally:
            self.n_bytes -= body.n_bytes

    async def _read(self, stream: AsyncIterator[bytes], body: "_Body") -> AsyncIterator[bytes]:
        """Yield the parts of a body and count their bytes."""
        deadline = asyncio.get_running_loop().time() + self.limits.upload_seconds
        parts = aiter(stream)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise RefusedError(
                    408,
                    f"body: expected all of it within {self.limits.upload_seconds:g} s, got a part. "
                    "Send smaller images, or fewer.",
                    {"Connection": "close"},
                ) from None
            body.n_bytes += len(part)
            self.n_bytes += len(part)
            if body.n_bytes > self.limits.body_bytes:
                raise self._make_size_error()
            if self.n_bytes > MAX_BODIES * self.limits.body_bytes:
                raise RefusedError(
                    503,
                    "server: expected memory for the body of the request, got too many at once. Send it again later.",
                    {"Retry-After": "1"},
                )
            yield part

    def _make_size_error(self) -> RefusedError:
        megabytes = self.limits.body_bytes / 2**20
        return RefusedError(
            413, f"body: expected at most {megabytes:g} MB, got more. Send fewer or smaller images in a request."
        )
