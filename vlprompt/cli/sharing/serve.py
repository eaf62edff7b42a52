"""The command `vlprompt serve`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import DeviceOption, MovedBackboneOption, RootOption, expand_home, set_data_root
from vlprompt.experiments.server.limits import Limits

error_console = make_console(stderr=True)
DEFAULTS, REMOTE_RATE = Limits(), 20.0  # requests a second of one client on a host that other machines reach


def serve(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Finished runs or model folders, all on one backbone; NAME=FOLDER names the model.", metavar="RUN..."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Where to listen; other hosts than this machine need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="VLPROMPT_TOKEN", show_envvar=True, help="What clients send as Authorization: Bearer TOKEN."
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="A folder from which clients may load models.", callback=expand_home),
    ] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Open the runs' datasets, to return the nearest training images.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images up to which requests are joined.")] = 64,
    batch_wait: Annotated[
        float, typer.Option(min=0, max=60_000, help="Milliseconds that a request waits for others to be joined with.")
    ] = 2.0,
    max_images: Annotated[int, typer.Option(min=1, help="Images in a request.")] = DEFAULTS.images,
    max_mb: Annotated[int, typer.Option(min=1, help="Size of a request (2**20 bytes).")] = DEFAULTS.body_bytes >> 20,
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, max=10_000, help="Millions of pixels of an image.")
    ] = DEFAULTS.pixels / 1e6,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e6,
            help=f"Requests a second of a client; 0: any number. Default: {REMOTE_RATE:g}, on this machine 0.",
        ),
    ] = None,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
    root: RootOption = None,
) -> None:
    """Answer images over HTTP by learned prompts, with a page to try them on."""
    from vlprompt.runtime.installation import require_package

    for package in ("fastapi", "uvicorn", "python_multipart"):
        require_package(package, "serve", "serve")

    from vlprompt.experiments.server.guard import Access, is_loopback
    from vlprompt.experiments.server.listening import Listening, listen
    from vlprompt.experiments.server.service import ServerSettings

    set_data_root(root)
    is_local = is_loopback(host)
    if models is not None and not models.is_dir():
        raise ValueError(f"--models: expected a folder, got {str(models)!r}. Name one that is there.")
    limits = Limits(
        body_bytes=max_mb << 20,
        images=max_images,
        pixels=int(max_megapixels * 1e6),
        rate=rate if rate is not None else 0.0 if is_local else REMOTE_RATE,
    )
    settings = ServerSettings(limits, Access(token, is_local), models, batch_size, batch_wait)
    listening = Listening(host, port, name_sources(sources), backbone, device, neighbours, settings)
    listen(listening, lambda line: error_console.print(line, markup=False, highlight=False, soft_wrap=True))


def name_sources(sources: list[str]) -> list[tuple[str, str]]:
    """Return (name, source) of each argument: NAME=SOURCE, or a source that is named as its folder, or on the hub.

    Raises:
        ValueError: for two models of one name.
    """
    from vlprompt.experiments.learned.hub import is_hub_name

    named = list[tuple[str, str]]()
    for text in sources:
        name, separator, source = text.partition("=")
        if not separator or Path(text).exists():
            name, source = Path(text).expanduser().resolve().name, text
            name = name.partition("@")[0] if is_hub_name(text) else name
        if name in dict(named):
            raise ValueError(f"serve: expected a name for each model, got {name!r} twice. Write NAME=FOLDER.")
        named.append((name, str(Path(source).expanduser())))
    return named
