"""The command `vlprompt look`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    DeviceOption,
    FeatureCacheOption,
    MovedBackboneOption,
    RootOption,
    expand_home,
    set_data_root,
    set_feature_cache,
)

console = make_console()


def look(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of finished runs, model folders, or OWNER/NAME on the hub.", metavar="RUN..."),
    ],
    what: Annotated[
        str | None,
        typer.Option(
            help="words, similarity, tsne, umap, attention, usage, pseudo; several with commas. Default: all that the "
            "method has."
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="An image whose attention is drawn; may be given again. Default: four test images."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: look in the run's folder.", callback=expand_home)
    ] = None,
    output_format: Annotated[str, typer.Option("--format", help="png, pdf, svg; several with commas.")] = "png",
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
    root: RootOption = None,
    feature_cache: FeatureCacheOption = None,
) -> None:
    """Draw what was learned: nearest words, text similarity, features, attention, use of a pool, pseudo-labels."""
    from vlprompt.data.images.image_inputs import build_image_items
    from vlprompt.experiments.learned.prompt import load_prompt
    from vlprompt.experiments.look.figures import iter_look_figures, require_pictures
    from vlprompt.results.plots.figure import Figure, require_picture_formats, save_figure_files

    set_data_root(root)
    set_feature_cache(feature_cache)
    names = None if what is None else [name.strip() for name in what.split(",")]
    formats = [name.strip() for name in output_format.split(",")]
    require_pictures(names or ())
    require_picture_formats(formats)
    items = build_image_items(images) if images else ()
    for run in runs:
        folder = _choose_folder(run, out, len(runs) > 1)
        for figure in iter_look_figures(load_prompt(run, backbone, device), names, items=items):
            if isinstance(figure, Figure):
                for path in save_figure_files(figure, folder, (*formats, "csv")):
                    console.print(f"wrote {path}", soft_wrap=True, markup=False, highlight=False)
                if figure.name == "words":
                    console.print(figure.description, style="yellow", soft_wrap=True, markup=False)
            else:
                console.print(f"left out: {figure}", soft_wrap=True, markup=False, highlight=False)


def _choose_folder(run: str, out: Path | None, is_one_of_several: bool) -> Path:
    """Return where the pictures of a run go."""
    path = Path(run).expanduser()
    if out is None:
        return path / "look" if path.is_dir() else Path("look") / path.name
    return out / path.name if is_one_of_several else out
