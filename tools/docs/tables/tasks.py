"""The page of tasks."""

from docs.arguments import arguments_table
from docs.docstrings import read_module_docstring, read_summary
from docs.markdown_text import escape, fenced, page_title, paragraphs, table
from docs.paths import ROOT
from vlprompt import tasks
from vlprompt.config.build import resolve_class

COMMANDS = {  # one that runs on data of the package
    "few_shot": "vlprompt run coop digits --shots 16",
    "base_to_new": "vlprompt run coop digits --task base_to_new",
    "transfer": "vlprompt run coop glyphs --task transfer --targets digits",
    "vtab": "vlprompt run vpt digits --task vtab --backbone glyph-vit",
    "continual": "vlprompt run l2p digits --task continual task.stages=5",
    "domain": "vlprompt run dapl --source glyphs --target digits",
    "online": "vlprompt run zero_shot,tda digits --task online task.orders=3",
    "open_set": "vlprompt run locoop digits --task open_set --unknown glyphs",
    "multi_label": "vlprompt run dualcoop scenes --task multi_label",
    "text": "vlprompt run prompt_tuning docstrings --task text --backbone hf:FOLDER",
}


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Tasks", "What is trained on and tested on. Choose one with `--task NAME`; its settings are `task.NAME=VALUE`."
    )
    heads = {name: read_module_docstring(ROOT / "vlprompt" / "tasks" / f"{name}.py") for name in tasks.find_classes()}
    lines += table(
        ["task", "what it is"],
        [[f"[`{name}`](#{name})", escape(text.split("\n\n")[0])] for name, text in heads.items()],
    )
    for name, text in heads.items():
        cls = resolve_class("task", name)
        lines += [f"## `{name}` {{ #{name} }}", ""]
        lines += paragraphs(text) + paragraphs(read_summary(cls.__doc__ or ""))
        lines += fenced("bash", COMMANDS[name])
        lines += arguments_table(cls, "task.")
    return "\n".join([*lines, "What a result of each task holds: [metrics](metrics.md).", ""])
