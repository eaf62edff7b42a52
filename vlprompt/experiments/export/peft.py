"""Export what a run has learned on a language model: PEFT's files, or a whole merged model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Names
from vlprompt.core.method import TowerMethod
from vlprompt.core.texts import parse_template
from vlprompt.core.towers import LanguageTower
from vlprompt.experiments.learned.prompt import restore_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.results.run_folder import serialize_tensors, write_atomically

HEAD_FILE = "head.safetensors"


def export_run(
    run_folder: Path, output_folder: Path, backbone: str | None = None, device: str | None = None, merge: bool = False
) -> list[str]:
    """Write the adapter of a finished run; a trained head goes into head.safetensors.

    Args:
        run_folder: of the run.
        output_folder: new or empty.
        backbone: where the run's backbone is now; default where it was.
        device: as `load` takes it.
        merge: write the whole model with the adapter in its weights.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: for a method that PEFT has no form for, soft tokens elsewhere than before the text, or a merge that
            would not be exact.
        OSError: where the folder can't be written or holds something.
    """
    if output_folder.exists() and (not output_folder.is_dir() or any(output_folder.iterdir())):
        raise OSError(f"--out: expected a new or empty folder, got {str(output_folder)!r}. Name another folder.")
    state = read_learned_state(run_folder)
    prompt = restore_prompt(state, backbone, device)
    method, lm, config = prompt.method, prompt.method.backbone, state.config
    if not isinstance(lm, LanguageTower) or not isinstance(method, TowerMethod):
        name = config["method"]["name"]
        raise ValueError(
            f"export: expected an adapter of a language model, got {name} in {str(run_folder)!r}. "
            "Choose a run of such a method."
        )
    if not merge:
        _require_leading_tokens(config)
    _write_adapter(method, lm, output_folder, config, merge)
    content = "the whole model with the adapter in its weights" if merge else "the adapter in PEFT's files"
    lines = [f"wrote {content} into {output_folder}"]
    if merge and lm.weight_precision != "fp32":
        lines.append(f"its weights are float32: those of the {lm.weight_precision} base were made so before the merge")
    if head_path := _write_head(method, prompt.names, output_folder, config):
        lines.append(f"its head is in {head_path}: PEFT has no place for it")
    return lines


def _write_adapter(
    method: TowerMethod, lm: LanguageTower, output_folder: Path, config: Mapping[str, Any], merge: bool
) -> None:
    base = {
        "weights": lm.key.partition("#")[2],
        "backbone": config["backbone"],
        "method": config["method"]["name"],
    }
    adapted = getattr(method, "adapter", None)
    if adapted is not None:
        adapted.save_merged(output_folder) if merge else adapted.save(output_folder, base)
    elif merge:
        lm.save_merged(method.prompt(1), output_folder)
    else:
        lm.save_as_peft(method.prompt(1), output_folder, base)


def _write_head(method: TowerMethod, names: Names, output_folder: Path, config: Mapping[str, Any]) -> Path | None:
    """Write the state of a trained head; None where it has none."""
    if not (state := method.head.state_dict()):
        return None
    metadata = {"names": [str(n) for n in names], "head": config["method"]["head"]}
    write_atomically(output_folder / HEAD_FILE, serialize_tensors(state, metadata))
    return output_folder / HEAD_FILE


def _require_leading_tokens(config: Mapping[str, Any]) -> None:
    """ValueError where soft tokens don't stand before the text, as PEFT has them."""
    if config["method"]["name"] not in ("prompt_tuning", "p_tuning"):
        return
    head = config["method"].get("head") or {}
    for template in (config["method"].get("template"), head.get("template"), config["task"].get("template")):
        if not template or "{" not in template:
            continue
        pieces = parse_template(template, 1)
        tokens = [piece for piece in pieces if piece.kind == "tokens"]
        if tokens and (len(tokens) > 1 or pieces[0] != tokens[0]):
            raise ValueError(
                f"template: expected soft tokens before the text, the only place that PEFT's files allow, got "
                f"{template!r}. Train with such a template."
            )
