"""Connections that send the head of a request too slowly are closed: uvicorn itself waits for it without end."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class HeadDeadline(H11Protocol):
    """HTTP/1.1 in which a request's line and headers must arrive in time.

    So must the rest of a body whose request was answered before it was read.

    Args:
        head_seconds: from the connection, or the first byte of a further request, to the end of its headers.
        arguments: of uvicorn.
    """

    def __init__(self, *arguments: Any, head_seconds: float = HEAD_SECONDS, **settings: Any):
        super().__init__(*arguments, **settings)
        self.head_seconds, self._deadline = head_seconds, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the time where a head, or the rest of an answered body, is on its way; end it where none is."""
        sent = self.conn.their_state
        if sent is not h11.IDLE and not (sent is h11.SEND_BODY and self.conn.our_state is h11.DONE):
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
