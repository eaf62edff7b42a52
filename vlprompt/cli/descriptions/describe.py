"""The command `vlprompt describe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import DeviceOption, LayoutOption, RootOption, expand_home, set_data_root

if TYPE_CHECKING:
    from vlprompt.core.class_names import Names
    from vlprompt.experiments.descriptions.generator import DescriptionFile, Sampling

console = make_console()
DEFAULT_PAIRS = 15  # of random descriptors, as in the paper


def describe(
    dataset: Annotated[str, typer.Argument(help="The images whose classes are described.", metavar="DATASET")],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="The file to write (.json); when stopped, the same command goes on.",
            metavar="FILE.json",
            callback=expand_home,
        ),
    ],
    style: Annotated[
        Literal["cupl", "dclip", "waffle"],
        typer.Option(help="cupl: sentences; dclip: short descriptors; waffle: random words and letters, of no model."),
    ] = "cupl",
    model: Annotated[
        str | None,
        typer.Option(help="The language model that is asked: hf:FOLDER or hf:OWNER/NAME.", metavar="hf:MODEL"),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="Ask this, a text with {name}, instead of the style's questions; may be given again."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Answers to each question (default: cupl 10, dclip 1), or pairs of random descriptors (waffle 15)."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of sampling; 0 takes the likeliest answer. Default: cupl 0.99, dclip 0.7.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 50,
    seed: Annotated[int, typer.Option(help="Random seed of the answers, or of the random descriptors.")] = 1,
    device: DeviceOption = None,
    root: RootOption = None,
    layout: LayoutOption = None,
) -> None:
    """Write descriptions of a dataset's classes: sentences or descriptors of a language model, or random ones.

    Methods read the file by method.template=FILE, and zero_shot, tps and coprompt by method.descriptions=FILE.
    """
    set_data_root(root)
    _require_file_name(out)
    names = _read_class_names(dataset, layout)
    if style == "waffle":
        if model is not None or question or temperature is not None:
            raise ValueError(
                "--style: expected cupl or dclip for a model that is asked, got waffle, which asks none. Leave out "
                "--model, --question and --temperature."
            )
        file = _write_random(out, names, DEFAULT_PAIRS if samples is None else samples, seed)
    else:
        if model is None:
            raise ValueError(
                f"--model: expected a language model for --style {style}, got none. Set --model hf:FOLDER, or "
                "--style waffle."
            )
        from vlprompt.experiments.descriptions.generator import Sampling
        from vlprompt.experiments.descriptions.styles import STYLES

        default = STYLES[style]
        sampling = Sampling(
            tuple(question or default.questions),
            default.n_samples if samples is None else samples,
            default.temperature if temperature is None else temperature,
            max_new_tokens,
            seed,
        )
        file = _ask_model(out, names, model, device, style, sampling)
    n_texts = sum(map(len, file.texts.values()))
    console.print(f"wrote {out}: {n_texts:,} texts of {len(file.texts):,} classes", highlight=False, soft_wrap=True)


def _require_file_name(out: Path) -> None:
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"--out: expected the name of a .json file, got {str(out)!r}. Write --out texts.json.")


def _read_class_names(dataset: str, layout: str | None) -> "Names":
    from vlprompt.data.loading import open_data

    data = open_data(dataset, allow_missing_classes=True, layout=layout)
    if "answer" in data.test.info:
        raise ValueError(f"describe: expected a dataset of images, got the texts {dataset!r}. Name another.")
    return data.test.names


def _write_random(out: Path, names: "Names", n_pairs: int, seed: int) -> "DescriptionFile":
    from vlprompt.experiments.descriptions.generator import DescriptionFile, describe_chance, write_random_descriptions
    from vlprompt.layers.class_descriptions import DESCRIPTOR_TEMPLATE

    file = DescriptionFile(out, names, DESCRIPTOR_TEMPLATE, describe_chance(n_pairs, seed))
    write_random_descriptions(file, names, n_pairs, seed)
    return file


def _ask_model(
    out: Path,
    names: "Names",
    model: str,
    device: str | None,
    style: Literal["cupl", "dclip"],
    sampling: "Sampling",
) -> "DescriptionFile":
    from vlprompt.backbones import load_backbone
    from vlprompt.core.towers import LanguageTower
    from vlprompt.experiments.descriptions.generator import DescriptionFile, describe_model, write_model_descriptions
    from vlprompt.experiments.descriptions.styles import STYLES, fill_questions
    from vlprompt.experiments.learned.local_paths import shorten_backbone

    sampling.validate()
    fill_questions(sampling.questions, names[0])  # its errors, before a model is loaded
    lm = load_backbone(model, device)
    if not isinstance(lm, LanguageTower):
        raise ValueError(f"--model: expected a language model, got {model!r}. Set --model hf:FOLDER.")
    generator = describe_model(lm, shorten_backbone(model)[0], style, sampling)
    file = DescriptionFile(out, names, STYLES[style].template, generator)

    def show(key: str, n_texts: int, was_there: bool) -> None:
        if not was_there:
            console.print(
                f"{len(file.texts):,} of {len(names):,}: {key}, {n_texts} texts", highlight=False, markup=False
            )

    write_model_descriptions(file, names, lm, style, sampling, show)
    return file
