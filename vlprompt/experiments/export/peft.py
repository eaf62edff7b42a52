"""Export what a run has learned on a language model: PEFT's files, or a whole merged model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.core.method import TowerMethod
from vlprompt.core.texts import parse_template
from vlprompt.core.towers import LanguageTower
from vlprompt.experiments.export.decision_file import write_decision
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.refusal import refuse
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.results.tensor_files import serialize_tensors

HEAD_FILE = "head.safetensors"


def write_adapter(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the adapter of a language model in PEFT's files; a trained head goes into head.safetensors.

    Raises:
        ValueError: for a method that PEFT has no form for, or soft tokens elsewhere than before the text.
    """
    method, lm = _require_language_method(prompt, "peft")
    _require_leading_tokens(prompt.state.config)
    with write_whole_folder(folder) as temporary:
        _write_adapter(method, lm, temporary, prompt.state.config, merge=False)
        lines = _write_answer(prompt, method, temporary, folder)
    return [f"wrote the adapter in PEFT's files into {folder}", *lines]


def write_merged(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the language model with the adapter in its weights; a trained head goes into head.safetensors.

    Raises:
        ValueError: for a merge that would not be exact.
    """
    method, lm = _require_language_method(prompt, "transformers")
    with write_whole_folder(folder) as temporary:
        _write_adapter(method, lm, temporary, prompt.state.config, merge=True)
        answer_lines = _write_answer(prompt, method, temporary, folder)
    lines = [f"wrote the whole model with the adapter in its weights into {folder}"]
    if lm.weight_precision != "fp32":
        lines.append(f"its weights are float32: those of the {lm.weight_precision} base were made so before the merge")
    return [*lines, *answer_lines]


def _require_language_method(prompt: LearnedPrompt, to: str) -> tuple[TowerMethod, LanguageTower]:
    method, lm = prompt.method, prompt.method.backbone
    if not isinstance(lm, LanguageTower) or not isinstance(method, TowerMethod):
        reason = "it has no tower" if isinstance(lm, LanguageTower) else "it reads images"
        refuse(prompt, to, "an adapter of a language model", reason)
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


def _write_answer(prompt: LearnedPrompt, method: TowerMethod, temporary: Path, folder: Path) -> list[str]:
    """Write a trained head and the decision, which the other program has no place for; return what to say of them."""
    lines = write_decision(prompt.decision, temporary, folder)
    if not (state := method.head.state_dict()):
        return lines
    metadata = {"names": [str(n) for n in prompt.names], "head": prompt.state.config["method"]["head"]}
    (temporary / HEAD_FILE).write_bytes(serialize_tensors(state, metadata))
    return [f"its head is in {folder / HEAD_FILE}: PEFT has no place for it", *lines]


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
