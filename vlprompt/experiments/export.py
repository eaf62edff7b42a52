"""What a run has learned on a language model, written for other programs: PEFT's files, or a whole merged model."""

from pathlib import Path
from typing import Any

from vlprompt.core.introspection import backbone_of
from vlprompt.core.method import OnTower
from vlprompt.core.texts import pieces
from vlprompt.core.towers import LanguageTower
from vlprompt.experiments.restore import restored
from vlprompt.results.run_folder import Folder, tensors_as_bytes, write

HEAD = "head.safetensors"


def export(run: Path, folder: Path, backbone: str | None = None, device: str | None = None,
           merge: bool = False) -> list[str]:  # fmt: skip
    """Writes the adapter of a finished run (merge: the whole model with it) into a folder; gives what to tell of it.

    A head that was trained goes into head.safetensors beside it. ValueError for a run whose method PEFT has no form
    for, a prompt whose tokens stand elsewhere than before the text, or a merge that would not be exact; OSError where
    the folder can't be written or holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{str(folder)!r} is there and not an empty folder: name another")
    method, names = restored(run, backbone, device)
    lm, about = backbone_of(method), Folder(run).prompt()[1]["config"]
    name = about["method"]["name"]
    if not isinstance(lm, LanguageTower) or not isinstance(method, OnTower):
        raise ValueError(f"{name} in {str(run)!r} is no adapter of a language model, so it can't be exported")
    if not merge:
        _before(about)
    told = {"weights": lm.key.partition("#")[2], "backbone": about["backbone"], "method": name}
    adapted = getattr(method, "adapted", None)
    if adapted is None:
        prompt = method.prompt(1)
        lm.save_merged(prompt, folder) if merge else lm.save(prompt, folder, told)
    else:
        adapted.save_merged(folder) if merge else adapted.save(folder, told)
    what = "the whole model with the adapter in its weights" if merge else "the adapter in PEFT's files"
    lines = [f"wrote {what} into {folder}"]
    if merge and lm.base != "fp32":
        lines.append(f"its weights are float32: those of the {lm.base} base were made so before the merge")
    if state := method.reader.state_dict():
        about_head = {"names": [str(n) for n in names], "reader": about["method"]["reader"]}
        write(folder / HEAD, tensors_as_bytes(state, about_head))
        lines.append(f"its head is in {folder / HEAD}: PEFT has no place for it")
    return lines


def _before(about: dict[str, Any]) -> None:
    """ValueError where soft tokens don't stand before the text, as PEFT has them."""
    reader = about["method"].get("reader") or {}
    for template in (about["method"].get("text"), reader.get("template"), about["task"].get("template")):
        if about["method"]["name"] not in ("prompt_tuning", "p_tuning") or not template or "{" not in template:
            continue
        found = [piece for piece in pieces(template, 1) if piece.kind == "tokens"]
        if found and (len(found) > 1 or pieces(template, 1)[0] != found[0]):
            raise ValueError(
                f"the soft tokens of this run stand at places of the text ({template!r}), and PEFT has them before it"
            )
