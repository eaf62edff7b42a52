"""`vlprompt serve` as a user starts it: a real process that answers on a port, and ends when it is asked to."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from forks import Fork

from vlprompt.cli.app import main
from vlprompt.cli.sharing.serve import name_sources

COMMAND = Path(sys.executable).parent / "vlprompt"
ROOT = Path(__file__).parents[2]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, made once."""
    root = tmp_path_factory.mktemp("served")
    with pytest.raises(SystemExit) as left:
        main(["run", "coop", "digits", "--shots", "1", "--backbone", "glyph/random", "train.epochs=1", "-o", str(root)])
    assert left.value.code == 0
    return next(root.iterdir())


@contextmanager
def start(*arguments, is_fresh=True, **environment):
    """A server's process, as a user starts it or in a fork, and a client of it, when it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    words = ["serve", "--port", "0", *map(str, arguments)]
    if is_fresh:
        command = [sys.executable, str(COMMAND), *words]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, env=environment, **streams)
    else:
        process = Fork(main, words, env=environment)
    try:
        for line in process.stdout:
            if url := re.search(r"http://\S+", line):
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}")
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        with httpx.Client(base_url=url[0], timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("n_bad", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_it_outlives_bad_requests_and_finishes_what_runs(run, n_bad):
    wait = 700  # ms that a request waits for others, so that it runs when the process is asked to end
    with start(run, "--max-mb", "1", "--batch-wait", wait, is_fresh=n_bad > 20) as (process, client):
        assert client.get("/models").json()[0]["name"] == run.name
        for k in range(n_bad):
            path, content = ("/predict", b"x" * (k % 50)) if k % 2 else (f"/no/{k}", b"{")
            answer = client.post(path, content=content, headers={"Content-Type": "multipart/form-data; boundary=a"})
            assert 400 <= answer.status_code < 500
        status, n_sent = send_endless_body(client.base_url.port)
        assert status == b"HTTP/1.1 413"
        assert n_sent < 16 * 2**20  # what the sockets' buffers take
        send_garbage(client.base_url.port)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(client.post("/predict", files={"image": PIXEL})))
        asking.start()
        with httpx.Client(base_url=client.base_url) as other:
            while "vlprompt_queued_images 1" not in other.get("/metrics").text:
                assert asking.is_alive()
        process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].json()["predictions"][0]["classes"]
        assert process.wait(60) == 0


def send_endless_body(port):
    """Send a body in chunks until the server answers; return the beginning of the answer and the bytes sent."""
    n_sent, chunk = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.setblocking(False)
        while n_sent < 64 * 2**20:
            try:
                return connection.recv(12), n_sent
            except BlockingIOError:
                pass
            try:
                n_sent += connection.send(chunk)
            except BlockingIOError:
                time.sleep(0.001)
    return b"", n_sent


def send_garbage(port):
    """Send what is no HTTP, and a request whose body breaks off."""
    for data in (b"\x16\x03\x01\xff" * 50, b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\nx"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(data)


@pytest.fixture
def type_in(type_all):
    return lambda *words: type_all(*words)[:2]


def test_a_port_in_use(type_in, run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, text = type_in("serve", run, "--port", port)
    assert code == 2
    assert f"--port: expected a free port of 127.0.0.1, got {port} (Address already in use). Name another" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "expected a token for 0.0.0.0"),
        (["--host", "0.0.0.0", "--token", "short"], "at least 16 printable"),
        (["--host", "no.such.host.invalid"], "expected a token"),
        (["--host", "no.such.host.invalid", "--token", "a long random text"], "expected an address of this machine"),
        (["--models", "nowhere"], "--models: expected a folder"),
        (["--batch-wait", "nan"], "60000"),
        (["--batch-wait", "inf"], "60000"),
        (["--max-megapixels", "nan"], "10000"),
        (["--rate", "nan"], "1000000"),
        (["--port", "70000"], "65535"),
    ],
)
def test_bad_options(type_in, run, arguments, words):
    code, text = type_in("serve", run, *(arguments if "--port" in arguments else ["--port", "0", *arguments]))
    assert (code, words in text) == (2, True), text


def test_a_model_of_the_hub_is_named_without_owner_and_revision():
    sources = ["owner/name@v1", "other=owner/name"]
    assert name_sources(sources) == [("name", "owner/name@v1"), ("other", "owner/name")]


def test_a_token_of_the_environment(type_in, run, monkeypatch):
    monkeypatch.setenv("VLPROMPT_TOKEN", "short")
    code, text = type_in("serve", run, "--port", "0", "--host", "0.0.0.0")
    assert (code, "at least 16 printable" in text) == (2, True)


def test_bad_sources(type_in, run, tmp_path):
    for sources, words in (
        ([run, run], "a name for each model"),
        ([f"a/b={run}"], "a name of letters"),
        ([tmp_path], "expected the folder of a run"),
        (["a=nowhere"], "does not exist"),
    ):
        code, text = type_in("serve", *sources, "--port", "0")
        assert (code, words in text) == (2, True), text


def test_a_missing_package_names_its_extra(type_in, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, text = type_in("serve", run)
    assert code == 2
    assert 'serve: expected uvicorn, got no such package. Install it by: pip install "vlprompt[serve]".' in text
