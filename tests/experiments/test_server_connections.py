"""Connections of the server: a head that never comes ends them, a slow answer does not."""

import socket
import threading
from functools import partial

import pytest

HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def answering():
    """Set when the server may answer."""
    return threading.Event()


@pytest.fixture
def connect(answering):
    """Connect to a server whose clients have little time for the head of a request."""
    import uvicorn

    from vlprompt.experiments.server.connections import HeadDeadline

    async def answer(scope, receive, send):
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, answering.wait)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    http = partial(HeadDeadline, head_seconds=0.05)
    with socket.create_server(("127.0.0.1", 0)) as opened:
        server = uvicorn.Server(uvicorn.Config(answer, http=http, lifespan="off", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        yield partial(socket.create_connection, opened.getsockname(), timeout=60)
        answering.set()
        server.should_exit = True
        thread.join()


def read_answer(connection):
    """Read an answer to its end."""
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        part = connection.recv(1000)
        assert part
        received += part


def test_a_head_that_never_comes_ends_the_connection_and_a_slow_answer_does_not(connect, answering):
    with connect() as asking:
        asking.sendall(HEAD)
        for sent in (b"", HEAD[:-2]):
            with connect() as slow:
                slow.sendall(sent)
                assert slow.recv(100) == b""
        answering.set()
        read_answer(asking)


def test_so_do_the_rest_of_a_body_that_was_answered_and_a_further_head(connect, answering):
    answering.set()
    for sent in (b"POST" + HEAD[3:-2] + b"Content-Length: 9\r\n\r\nx", HEAD):
        with connect() as slow:
            slow.sendall(sent)
            read_answer(slow)
            slow.sendall(b"G")
            assert slow.recv(100) == b""
