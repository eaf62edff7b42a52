"""The command `vlprompt attributes`."""

from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.options import (
    BackboneOption,
    DeviceOption,
    FeatureCacheOption,
    RootOption,
    set_data_root,
    set_feature_cache,
)

console = make_console()
N_SHOWN = 5


def attributes(
    dataset: Annotated[str, typer.Argument(help="Its training and validation images are used.", metavar="DATASET")],
    words: Annotated[
        str, typer.Argument(help="The words, such as five that a language model named.", metavar="WORD,WORD[,...]")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of atprompt and of the training.", metavar="[KEY=VALUE]...")
    ] = None,
    method: Annotated[str, typer.Option(help="The method that atprompt is around: coop, cocoop or maple.")] = "coop",
    shots: Annotated[int, typer.Option(min=1, help="Training images per class.")] = 16,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 1,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    root: RootOption = None,
    feature_cache: FeatureCacheOption = None,
) -> None:
    """Search the words of atprompt: weights of their combinations learn on validation images, the prompts on others.

    Each combination trains prompts of its own: five words cost 31 trainings, of 40 epochs where train.epochs is not
    set. No test image is read.
    """
    from vlprompt.backbones import load_backbone
    from vlprompt.config.build import build_method, build_task
    from vlprompt.config.resolve import resolve_grid
    from vlprompt.experiments.searches.attributes import EPOCHS, list_combinations, search_attributes

    set_data_root(root)
    set_feature_cache(feature_cache)
    chosen_words = [word.strip() for word in words.split(",") if word.strip()]
    n_combinations = len(list_combinations(chosen_words))
    given = [f"method.method={method}", *(overrides or [])]
    if not any(setting.startswith(("train.epochs=", "train.iterations=")) for setting in given):
        given.append(f"train.epochs={EPOCHS}")
    names = ["atprompt"]
    [config] = resolve_grid(
        names, [shots], [seed], dataset=dataset, task="few_shot", backbone=backbone, overrides=given
    )
    lesson = next(iter(build_task(config.task).stages())).lesson
    loaded = load_backbone(config.backbone, device)
    settings = config.method["method"], config.method["n_tokens"]
    plural = "" if shots == 1 else "s"
    heading = f"{n_combinations} combinations of {', '.join(chosen_words)}; {method}, {shots} shot{plural}, seed {seed}"
    console.print(heading, highlight=False, markup=False, soft_wrap=True)
    weights = search_attributes(
        lambda: build_method(settings[0], loaded),
        lesson,
        chosen_words,
        config.train_config,
        seed=seed,
        n_tokens=settings[1],
    )
    for combination, weight in list(weights.items())[:N_SHOWN]:
        console.print(f"{weight:6.1%}  {', '.join(combination)}", highlight=False, markup=False)
    best = ",".join(next(iter(weights)))
    command = f"vlprompt run atprompt {dataset} --shots {shots} method.method={method} 'method.attributes=[{best}]'"
    console.print(command, highlight=False, markup=False, soft_wrap=True)
