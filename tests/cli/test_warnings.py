"""Warnings and log messages of libraries reach the terminal as one line each, from threads and from C++ too."""

import logging
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vlprompt.cli.display.console import make_console
from vlprompt.cli.display.warnings import show_warnings

COMMAND = str(Path(sys.executable).with_name("vlprompt"))
NOISY = """
import logging, threading, warnings
from datetime import timedelta
import numpy as np
import torch
from vlprompt.methods.zero_shot import ZeroShot

def make_noise():
    import huggingface_hub
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(3000, 20))
    LogisticRegression(max_iter=2, C=1e6).fit(rows, rows[:, 0] > 0)  # a real ConvergenceWarning
    try:  # real retries: the server answers 503, then 404
        huggingface_hub.hf_hub_download("owner/name", "config.json")
    except Exception as error:
        print("hub:", type(error).__name__)
    for i in range(3):
        logging.getLogger("urllib3.connectionpool").warning("Retrying (total=%d) after\\n  a broken connection", i)
    logging.getLogger("PIL.PngImagePlugin").info("nothing to see")
    logging.warning("without any logger")  # gives the root logger a handler of its own
    library = logging.getLogger("some_library")
    library.propagate = False
    library.addHandler(logging.StreamHandler())
    library.addHandler(logging.FileHandler("library.log"))
    library.warning("its own handler")
    try:
        torch.distributed.TCPStore("127.0.0.1", 1, is_master=False, timeout=timedelta(milliseconds=100))
    except Exception:
        pass  # [W... TCPStore.cpp] was written from C++

class Noisy(ZeroShot):
    def begin_lesson(self, lesson, generator):
        thread = threading.Thread(target=make_noise)
        thread.start()
        thread.join()
        super().begin_lesson(lesson, generator)
"""


class Unavailable(BaseHTTPRequestHandler):
    requests = 0

    def do_HEAD(self):
        type(self).requests += 1
        self.send_response(503 if self.requests <= 2 else 404)
        self.end_headers()

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def hub():
    Unavailable.requests = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_all_that_libraries_say_is_one_line(tmp_path, hub):
    (tmp_path / "mine.py").write_text(NOISY)
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    env.pop("VLPROMPT_DEBUG", None)
    words = [COMMAND, "run", "mine:Noisy", "digits", "--shots", "1"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hub: " in done.stdout
    assert Unavailable.requests >= 3
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    for beginning in (
        "warning: sklearn: lbfgs failed to converge",
        r"warning: the Hugging Face hub does not answer as it should \(HTTP Error 503 .*HF_HUB_OFFLINE=1",
        r"warning: urllib3: Retrying \(total=0\) after a broken connection$",
        "warning: without any logger$",
        "warning: some_library: its own handler$",
    ):
        assert len([line for line in lines if re.match(beginning, line)]) == 1, (beginning, done.stderr)
    assert len(lines) == 7, lines  # urllib3's three tries differ
    raw = [line for line in done.stderr.splitlines() if line not in lines]
    for part in ("ConvergenceWarning", "Retrying in", "HTTP Error", "WARNING:root", "nothing to see", "[W"):
        assert not any(part in line for line in raw), raw
    assert (tmp_path / "library.log").read_text() == "its own handler\n"


def test_messages_of_logs_are_not_lost(capsys, monkeypatch):
    log = logging.getLogger("beetroot.part")
    log.propagate = False  # pytest's own handler raises
    with show_warnings(make_console(stderr=True)):
        log.addHandler(logging.StreamHandler())
        try:
            for text in ("GPU 0 is broken", "GPU 1 is broken", "GPU 1 is broken", "[red] 100% %s"):
                log.warning(text)
            monkeypatch.setattr(logging, "raiseExceptions", False)
            log.error("%d", "many")  # can't be formatted: ends nothing
            try:
                raise KeyError("the cause")
            except KeyError:
                log.exception("it failed")
            for i in range(9):
                log.warning("step %d", i)
        finally:
            log.handlers.clear()
    lines = capsys.readouterr().err.splitlines()
    expected = ["GPU 0 is broken", "GPU 1 is broken", "[red] 100% %s"]
    assert [line for line in lines if "GPU" in line or "red" in line] == [f"warning: beetroot: {e}" for e in expected]
    assert "error: beetroot: it failed (KeyError: 'the cause')" in lines
    steps = [line for line in lines if line.startswith("warning: beetroot: step") or "more of the kind" in line]
    assert steps[-1] == "warning: beetroot: more of the kind follows (VLPROMPT_DEBUG=1 shows all)"
    assert len(steps) == 4
