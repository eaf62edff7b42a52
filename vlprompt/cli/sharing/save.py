"""The command `vlprompt save`."""

from pathlib import Path
from typing import Annotated

import typer

from vlprompt.cli.display.console import make_console
from vlprompt.cli.display.evaluation_lines import format_decision
from vlprompt.cli.options import (
    CalibrateOption,
    DeviceOption,
    FeatureCacheOption,
    ForceOption,
    LicenseOption,
    MovedBackboneOption,
    RejectOption,
    RootOption,
    RunArgument,
    ScoreOption,
    UnknownOption,
    ValidationOption,
    expand_home,
    parse_scores,
    set_data_root,
    set_feature_cache,
)

console = make_console()


def save(
    run_folder: RunArgument,
    output_folder: Annotated[
        Path, typer.Argument(help="Where to write; a new or empty folder.", metavar="FOLDER", callback=expand_home)
    ],
    license: LicenseOption = None,
    force: ForceOption = False,
    reject: RejectOption = None,
    calibrate: CalibrateOption = False,
    score: ScoreOption = None,
    unknown: UnknownOption = None,
    validation: ValidationOption = None,
    backbone: MovedBackboneOption = None,
    device: DeviceOption = None,
    root: RootOption = None,
    feature_cache: FeatureCacheOption = None,
) -> None:
    """Save a learned prompt as a model folder: safetensors, config.json and a model card, to share it.

    With --reject and --calibrate, threshold and temperature are chosen on validation items and saved too.
    """
    from vlprompt.experiments.calibration.choice import Selection, choose_for_state
    from vlprompt.experiments.learned.model_folder import save_prompt
    from vlprompt.experiments.learned.state import read_learned_state

    set_data_root(root)
    set_feature_cache(feature_cache)
    selection = Selection(unknown, parse_scores(score), calibrate, reject, validation)
    selection.require_use("save")
    state = read_learned_state(run_folder)
    if selection.needs_validation:
        state = choose_for_state(state, selection, backbone, device)
    save_prompt(state, output_folder, license=license, force=force)
    lines = [f"wrote {output_folder}: what was learned, its configuration and its card"]
    lines += format_decision(state.decision)
    if ":" in (name := state.config["method"]["name"]):
        lines.append(f"its method {name} is code that is not in the folder: it must be importable where it is loaded")
    if license is None and state.provenance.get("license") is None:
        lines.append("the card has no licence; name one by --license before you share it")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
