"""Commands that are killed: runs, a stream, a search, a filling feature cache, a download."""

import contextlib
import http.server
import os
import random
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fuzz.draw import COLOURS, paint
from fuzz.sandbox import Sandbox
from fuzz.settings import write_photos

ADDRESS = ["", ""]  # of the server, and its folder


def _runs(box: Sandbox) -> list[str]:
    write_photos(box.work / "photos", random.Random(0))
    return ["run", "coop", "photos", "--backbone", "glyph/random", "--shots", "2", "--seed", "1,2", "--save-every", "0",
            "train.epochs=4", "train.batch_size=4", "-o", str(box.out)]  # fmt: skip


def _stream(box: Sandbox) -> list[str]:
    write_photos(box.work / "photos", random.Random(0))
    return ["run", "coop,nearest_mean", "photos", "--task", "continual", "--backbone", "glyph/random", "--shots", "2",
            "--save-every", "0", "task.stages=2", "train.epochs=3", "-o", str(box.out)]  # fmt: skip


def _search(box: Sandbox) -> list[str]:
    write_photos(box.work / "photos", random.Random(0))
    return ["search", "linear", "photos", "search.train.lr=[0.1,0.01]", "--backbone", "glyph-vit/random", "--seed",
            "1,2", "--save-every", "0", "train.epochs=3", "-o", str(box.out)]  # fmt: skip


def _search_prompts(box: Sandbox) -> list[str]:
    write_photos(box.work / "photos", random.Random(0))
    return ["search", "vpt", "photos", "search.train.lr=[0.1,0.01]", "--backbone", "glyph-vit/random", "--seed", "1",
            "--save-every", "0", "train.epochs=2", "-o", str(box.out)]  # fmt: skip


def _features(box: Sandbox) -> list[str]:
    write_photos(box.work / "photos", random.Random(0))
    return ["run", "nearest_mean,linear,zero_shot", "photos", "--backbone", "glyph/random", "--shots", "2",
            "train.epochs=1", "--feature-cache", str(box.root / "features"), "-o", str(box.out)]  # fmt: skip


def _download(box: Sandbox) -> list[str]:
    box.data = box.out  # what is fetched is what is compared
    card = f"""title: pictures
source: nobody
licence: none
folder: pictures
images: images
layout: folders
classes: [cat, dog]
template: 'a {{name}}.'
downloads: [{{produces: images, url: '{ADDRESS[0]}/images.zip'}}]
"""
    (box.work / "card.yaml").write_text(card)
    return ["data", "prepare", "card.yaml", "--download"]


SCENARIOS = {
    "runs": _runs,
    "stream": _stream,
    "search": _search,
    "features": _features,
    "search of prompts": _search_prompts,
    "download": _download,
}


def write_archive(folder: Path) -> None:
    """Write an archive of a few megabytes."""
    stream = random.Random(0)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, colour in zip(("cat", "dog"), COLOURS, strict=False):
            for i in range(8):
                picture = paint(folder / "p.png", colour, stream)
                archive.write(picture, f"images/{name}/{i}.png")
            archive.writestr(f"images/{name}/notes.bin", stream.randbytes(1 << 21))
    (folder / "p.png").unlink()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file slowly, also from a place in it on."""

    def do_GET(self) -> None:
        """Send the file."""
        data = (Path(ADDRESS[1]) / "images.zip").read_bytes()
        span = self.headers.get("Range", "")
        begin = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        self.send_response(206 if span and begin < len(data) else 416 if span else 200)
        self.send_header("Content-Length", str(max(0, len(data) - begin)))
        self.end_headers()
        with contextlib.suppress(OSError):
            for place in range(begin, len(data), 1 << 17):
                self.wfile.write(data[place : place + (1 << 17)])
                time.sleep(0.005)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[None]:
    """Serve an archive from a process of its own."""
    home = folder / "server"
    home.mkdir()
    write_archive(home)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ADDRESS[:] = [f"http://127.0.0.1:{server.server_port}", str(home)]
    if (process := os.fork()) == 0:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.server_close()
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
