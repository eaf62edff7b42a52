"""The page of preprocessing presets."""

from pathlib import Path

import yaml

from docs.markdown_text import code, escape, fenced, page_title, table
from docs.paths import CONFIGS_FOLDER
from vlprompt.data.images.preprocess_presets import PreprocessingFields

KEYS = ("size", "resize", "interpolation", "antialias", "crop", "mean", "std")


def list_preset_files() -> list[Path]:
    """Return the files of all presets."""
    return sorted((CONFIGS_FOLDER / "preprocess").glob("*.yaml"))


def read_notes(path: Path) -> str:
    """Return the comments of a preset; ValueError if there are none."""
    notes = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    if not notes:
        raise ValueError(f"{path}: expected comments that say where the preset comes from, got none. Write them.")
    return notes


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Preprocessing",
        "How an image becomes pixels. Every tower has the preprocessing that its weights were trained with; "
        "`preprocess=NAME` takes a preset, `preprocess.KEY=VALUE` changes one field, `preprocess=null` undoes what a "
        "recipe says.",
    )
    presets = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in list_preset_files()}
    rows = [[code(name), *(escape(str(values.get(key, ""))) for key in KEYS)] for name, values in presets.items()]
    lines += ["## Presets", "", *table(["preset", *KEYS], rows)]
    lines += [f"- {code(path.stem)}: {escape(read_notes(path))}" for path in list_preset_files()]
    lines += ["", "## Fields", ""]
    fields = PreprocessingFields.model_fields
    rows = [[code(f"preprocess.{name}"), escape(field.description or "")] for name, field in fields.items()]
    lines += [*table(["setting", "what it is"], rows), "A field that is left out stays as it is.", ""]
    lines += fenced("bash", "vlprompt run linear digits --backbone glyph-vit preprocess.interpolation=bilinear")
    return "\n".join(lines)
