"""Save a learned prompt as a model folder: safetensors, config.json and a model card."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlprompt.config.build import resolve_class
from vlprompt.config.run_config import hash_config
from vlprompt.data.validation import validate
from vlprompt.experiments.inputs import hash_named_files
from vlprompt.experiments.learned.folder_schema import FORMAT_VERSION, LIBRARY, ModelConfig
from vlprompt.experiments.learned.local_paths import get_dataset_keys, shorten_backbone, shorten_settings
from vlprompt.experiments.learned.model_files import (
    CARD_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    hash_tensors,
    write_model_files,
)
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.experiments.model_cards.card import build_model_card
from vlprompt.experiments.model_cards.result_entry import build_result_entry
from vlprompt.results.run_folder import Result
from vlprompt.results.tensor_files import serialize_tensors
from vlprompt.runtime.installation import find_version

OPTIONAL_KEYS = ("preprocess", "result")  # of config.json, left out where there is nothing to say


def save_prompt(
    prompt: LearnedPrompt | LearnedState,
    folder: str | Path,
    *,
    result: Result | None = None,
    license: str | None = None,
    force: bool = False,
) -> None:
    """Save a learned prompt as a model folder, which `load_prompt` reads on any machine.

    Args:
        prompt: the prompt, or its state.
        folder: new or empty; it appears complete or not at all.
        result: of its run, for the model card; default: that of the folder that it was read from.
        license: the identifier of the prompt's licence ("mit", "cc-by-4.0" ...); default: that of the model folder
            that it was read from, else the card has none.
        force: replace a model folder.

    Raises:
        ValueError: for a method that reads files of this machine.
        OSError: for a folder that holds something else, or can't be written.
    """
    state = prompt.state if isinstance(prompt, LearnedPrompt) else prompt
    path = Path(folder).expanduser()
    write_model_files(path, build_model_files(state, path.absolute().name, result, license), force=force)


def build_model_files(
    state: LearnedState, name: str, result: Result | None = None, license: str | None = None
) -> dict[str, bytes]:
    """Return the files of a model folder.

    Args:
        state: what was learned.
        name: by which the card loads it, the folder's or OWNER/NAME.
        result: as in `save_prompt`.
        license: as in `save_prompt`.

    Raises:
        ValueError: for a method that reads files of this machine or whose answers depend on their order, and for a
            licence that is no identifier.
    """
    _require_no_order(state)
    _require_no_files(state)
    tensors = serialize_tensors(dict(state.tensors), {"format_version": FORMAT_VERSION})
    config = build_model_config(state, tensors, result)
    values = {key: value for key, value in config.model_dump().items() if value is not None or key not in OPTIONAL_KEYS}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    card = build_model_card(config, name, license or state.provenance.get("license"))
    return {TENSORS_FILE: tensors, CONFIG_FILE: text.encode(), CARD_FILE: card.encode()}


def build_model_config(state: LearnedState, tensors: bytes, result: Result | None) -> ModelConfig:
    """Describe a learned state as the config.json of a model folder, without paths of this machine."""
    run, metadata = state.config, state.metadata
    spec, is_local = shorten_backbone(run["backbone"])
    key_spec, separator, identity = state.backbone_key.partition("#")
    key = f"{shorten_backbone(key_spec)[0]}{separator}{identity}"
    domains = metadata.get("domains", [[]] * len(metadata["lessons"]))
    lessons = [
        {"classes": [_describe_class(*name) for name in names], "domains": list(parts)}
        for names, parts in zip(metadata["lessons"], domains, strict=True)
    ]
    values = {
        "library_name": LIBRARY,
        "format_version": FORMAT_VERSION,
        "vlprompt_version": find_version(LIBRARY),
        "backbone": {"spec": spec, "key": key, "is_local": is_local or state.is_backbone_local},
        **shorten_settings({name: run[name] for name in ("preprocess", "method", "train") if name in run}),
        "task": shorten_settings(run["task"], dataset_keys=get_dataset_keys(run["task"])),
        "seed": run["seed"],
        "config_hash": state.provenance.get("config_hash") or hash_config(dict(run)),
        "lessons": lessons,
        "total": metadata.get("total", 1),
        "has_task_boundaries": metadata.get("has_task_boundaries", True),
        "text_protocol": dict(state.text_protocol),
        "decision": shorten_settings(asdict(state.decision)),
        "tensors": {"sha256": hash_tensors(tensors), "bytes": len(tensors)},
        "result": build_result_entry(state, result),
    }
    return validate(ModelConfig, json.loads(json.dumps(values)), "save")


def _describe_class(name: str, id: str, template: str | None, words: Any) -> dict[str, Any]:
    return {"name": name, "id": id, "template": template, "words": list(words)}


def _require_no_order(state: LearnedState) -> None:
    """ValueError where answers depend on the images before them: what such a method holds ends with its stream."""
    settings: Any = state.config["method"]
    while isinstance(settings, Mapping):
        if resolve_class("method", settings["name"]).is_online is True:
            raise ValueError(
                f"save: expected a prompt that answers each input by itself, got {settings['name']}, which learns from "
                "the stream of its test images and begins anew with each. Share the command of its run instead."
            )
        settings = settings.get("method")


def _require_no_files(state: LearnedState) -> None:
    """ValueError where the method reads a file that is not in the folder."""
    method: Mapping[str, Any] = state.config["method"]
    if files := sorted(hash_named_files({key: value for key, value in method.items() if key != "name"}, "method")):
        raise ValueError(
            f"save: expected a prompt that answers without other files, got {files[0]}, which names a file of this "
            "machine. Share the command of its run and that file instead."
        )
