"""Export what a run has learned on a language model: PEFT's files, or a whole merged model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.core.method import TowerMethod
from vlprompt.core.texts import parse_template
from vlprompt.core.towers import LanguageTower
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.results.run_folder import serialize_tensors, write_atomically

HEAD_FILE = "head.safetensors"


def write_adapter(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the adapter of a language model in PEFT's files; a trained head goes into head.safetensors.

    Raises:
        ValueError: for a method that PEFT has no form for, or soft tokens elsewhere than before the text.
    """
    method, lm = _require_language_method(prompt)
    _require_leading_tokens(prompt.state.config)
    with write_whole_folder(folder) as temporary:
        _write_adapter(method, lm, temporary, prompt.state.config, merge=False)
        has_head = _write_head(prompt, method, temporary)
    return [f"wrote the adapter in PEFT's files into {folder}", *_describe_head(folder, has_head)]


def write_merged(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the language model with the adapter in its weights; a trained head goes into head.safetensors.

    Raises:
        ValueError: for a merge that would not be exact.
    """
    method, lm = _require_language_method(prompt)
    with write_whole_folder(folder) as temporary:
        _write_adapter(method, lm, temporary, prompt.state.config, merge=True)
        has_head = _write_head(prompt, method, temporary)
    lines = [f"wrote the whole model with the adapter in its weights into {folder}"]
    if lm.weight_precision != "fp32":
        lines.append(f"its weights are float32: those of the {lm.weight_precision} base were made so before the merge")
    return [*lines, *_describe_head(folder, has_head)]


def _require_language_method(prompt: LearnedPrompt) -> tuple[TowerMethod, LanguageTower]:
    method, lm = prompt.method, prompt.method.backbone
    if not isinstance(lm, LanguageTower) or not isinstance(method, TowerMethod):
        raise ValueError(
            f"export: expected an adapter of a language model, got {prompt.state.config['method']['name']} in "
            f"{prompt.state.source!r}. Choose a run of such a method."
        )
    return method, lm


def _write_adapter(
    method: TowerMethod, lm: LanguageTower, output_folder: Path, config: Mapping[str, Any], *, merge: bool
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


def _write_head(prompt: LearnedPrompt, method: TowerMethod, folder: Path) -> bool:
    """Write the state of a trained head; return whether there is one."""
    if not (state := method.head.state_dict()):
        return False
    metadata = {"names": [str(n) for n in prompt.names], "head": prompt.state.config["method"]["head"]}
    write_atomically(folder / HEAD_FILE, serialize_tensors(state, metadata))
    return True


def _describe_head(folder: Path, has_head: bool) -> list[str]:
    return [f"its head is in {folder / HEAD_FILE}: PEFT has no place for it"] if has_head else []


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
