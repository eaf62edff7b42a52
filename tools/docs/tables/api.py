"""The page of the Python interface: the public contract, read by mkdocstrings from the sources."""

import vlprompt
from docs.markdown_text import page_title
from vlprompt.results import plots

GROUPS = {
    "Run": ("load", "run", "fit", "TrainConfig"),
    "Learned prompts": ("load_prompt", "LearnedPrompt", "save_prompt", "push_prompt"),
    "Estimators": ("PromptClassifier", "PromptTextClassifier"),
    "Methods": ("Method", "TowerMethod", "MethodWrapper", "Output", "Prompt"),
    "Towers": ("Clip", "Tower", "VisionTower", "LanguageTower"),
    "Heads": (
        *("Head", "LinearHead", "CosineHead", "TextHead"),
        *("Verbalizer", "SoftVerbalizer", "ResponseHead", "TagHead", "SentenceHead"),
    ),
    "Data": (
        *("Lesson", "Stage", "Split", "Batch", "ClassName"),
        *("Images", "ImageItem", "Preprocessing", "Augmentation", "TextItem", "TextBatch"),
    ),
}
PLOTS = (  # of vlprompt.plots
    *("scan_runs", "build_figures", "Figure", "draw_figure", "render_picture", "save_figure_files"),
)
TESTING = ("check_method", "iter_checks", "parametrize_with_checks", "Check", "CheckResult")  # of vlprompt.testing


def list_public_names() -> dict[str, str]:
    """Return {public name: the module and name that define it}, without the modules of the package.

    Raises:
        ValueError: for a public name that is in no group of the page, and one that is in none of the package.
    """
    names = dict(vlprompt._HOMES)
    grouped = [name for group in GROUPS.values() for name in group]
    if different := sorted(set(names) ^ set(grouped)):
        raise ValueError(
            f"{different[0]}: expected the public names of vlprompt in a group each, got another. Correct GROUPS."
        )
    return {name: f"vlprompt.{names[name]}.{name}" for name in grouped}


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Python",
        "The public contract: what `import vlprompt` gives. Methods, tasks and metrics are in `vlprompt.methods`, "
        "`vlprompt.tasks` and `vlprompt.metrics`; datasets are opened by `vlprompt.data.loading`.",
    )
    homes = list_public_names()
    for title, names in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: {homes[name]}", "    options:", "      heading_level: 3", f'      heading: "{name}"', ""]
    lines += ["## Figures", "", "In `vlprompt.plots`; `vlprompt plot --what` writes them on the command line.", ""]
    for name in PLOTS:
        lines += [f"::: vlprompt.results.{plots._HOMES[name]}.{name}", "    options:", "      heading_level: 3", ""]
    lines += ["## Checks of a method", "", "In `vlprompt.testing`; `vlprompt check` runs them on the command line.", ""]
    for name in TESTING:
        lines += [f"::: vlprompt.testing.suite.{name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)
