"""Load learned prompts and answer requests on a socket until the process is asked to end."""

import logging
import signal
import socket
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vlprompt.backbones.schemes import choose_threads
from vlprompt.experiments.server.guard import is_loopback
from vlprompt.experiments.server.limits import Limits
from vlprompt.experiments.server.models import ServedModels
from vlprompt.experiments.server.neighbours import TrainingImages, open_training_images
from vlprompt.experiments.server.service import Server, ServerSettings

MAX_CONNECTIONS = 1024
SECONDS_TO_FINISH = 30  # for requests that run when the process is asked to end
IDLE_SECONDS = 30  # of a connection between requests: longer than clients wait, who else send one as it is closed
MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and what it answers by.

    Args:
        host: an address or name of this machine.
        port: 0 for any free one.
        sources: learned prompts by the names of the models.
        backbone: where their backbone is now; None for where it was.
        device: as `load` takes it.
        shows_neighbours: whether the training images of the sources are opened.
        settings: how to answer.
    """

    host: str
    port: int
    sources: Sequence[tuple[str, Path | str]]
    backbone: str | None = None
    device: str | None = None
    shows_neighbours: bool = False
    settings: ServerSettings = field(default_factory=ServerSettings)


def require_token(host: str, token: str | None) -> None:
    """Raise ValueError for a host that other machines reach without a token, or a token that is easy to guess."""
    if token is None and not is_loopback(host):
        raise ValueError(
            f"--host: expected a token for {host}, which other machines reach, got none. Set VLPROMPT_TOKEN to a "
            "long random text, or leave --host out."
        )
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable()):
        raise ValueError(
            f"--token: expected at least {MIN_TOKEN_LENGTH} printable ASCII characters, got {len(token)} or others. "
            "Take a long random text."
        )


def open_socket(host: str, port: int) -> socket.socket:
    """Bind a host and port; ValueError where the port is in use or the host is not of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # named, since asyncio sends small answers at once (TCP_NODELAY) on sockets of this protocol only
        opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ValueError(
            f"--host: expected an address of this machine, got {host!r} ({error}). Use 127.0.0.1."
        ) from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(MAX_CONNECTIONS)
    except OSError as error:
        opened.close()
        raise ValueError(
            f"--port: expected a free port of {host}, got {port} ({error.strerror}). Name another by --port, or "
            "--port 0 for any."
        ) from error
    return opened


def listen(listening: Listening, report: Callable[[str], None]) -> None:
    """Load the prompts and answer until SIGTERM or Ctrl-C, which let the requests that run finish.

    Args:
        listening: where, and by what.
        report: receives a line for each model, and one when requests are answered.

    Raises:
        ValueError: for a host without a token, a port in use, or a prompt that can't be loaded beside the others.
    """
    require_token(listening.host, listening.settings.access.token)
    with open_socket(listening.host, listening.port) as opened:
        models = ServedModels(listening.backbone, listening.device)
        for name, source in listening.sources:
            model = models.load(name, source)
            models.add(model)
            report(f"{name}: {model.describe()['method']}, {len(model.prompt.names)} classes, on {models.spec}")
        training_images = _open_training_images(models, report) if listening.shows_neighbours else {}
        _leave_pixels_to(listening.settings.limits)
        server = Server(models, listening.settings, training_images, choose_threads(models.spec))
        try:
            _run_uvicorn(server, opened, listening.host, report)
        finally:
            server.close()


def _open_training_images(models: ServedModels, report: Callable[[str], None]) -> dict[str, TrainingImages]:
    """Return the training images of each model; what can't be opened is reported and left out."""
    opened = dict[str, TrainingImages]()
    for name, model in models.by_name.items():
        try:
            opened[name] = open_training_images(model.prompt)
            report(f"{name}: {len(opened[name].items)} training images")
        except (ValueError, OSError) as error:
            report(f"{name}: no training images: {error}")
    return opened


def _leave_pixels_to(limits: Limits) -> None:
    """Let Pillow open what the limits allow, and be silent about the rest, which they refuse."""
    Image.MAX_IMAGE_PIXELS = max(limits.pixels, Image.MAX_IMAGE_PIXELS or 0)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _run_uvicorn(server: Server, opened: socket.socket, host: str, report: Callable[[str], None]) -> None:
    import uvicorn

    from vlprompt.experiments.server.app import build_app
    from vlprompt.experiments.server.connections import HeadDeadline

    logging.basicConfig(format="%(message)s")
    config = uvicorn.Config(
        build_app(server),
        http=HeadDeadline,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # a client could write the address by which it is counted
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    name = f"[{host}]" if ":" in host else host
    report(f"serving on http://{name}:{opened.getsockname()[1]} (Ctrl-C ends it)")
    # uvicorn raises the signal that ended it once more when all is done; by then the process is to end with 0
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(config).run(sockets=[opened])
