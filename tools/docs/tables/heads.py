"""The page of heads."""

from docs.arguments import arguments_table
from docs.docstrings import read_summary
from docs.markdown_text import fenced, page_title, paragraphs, table
from vlprompt.config.build import resolve_class
from vlprompt.config.sources import HEADS, LANGUAGE_HEADS

OUTPUTS = {  # what a head needs of the tower
    "pooled": "the pooled feature",
    "mask": "the state where the answer stands",
    "response": "the states before each token of the response",
    "words": "the states of the first token of each word",
}


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Heads",
        "A head turns features into logits over class names. Methods on one tower take any that fits: "
        "`method.head=NAME`, its settings are `method.head.NAME=VALUE`.",
    )
    rows = [
        [
            f"[`{name}`](#{name})",
            "language models" if name in LANGUAGE_HEADS else "images and texts",
            OUTPUTS[_output(name)],
        ]
        for name in HEADS
    ]
    lines += table(["head", "for", "what it reads"], rows)
    for name in HEADS:
        cls = resolve_class("head", name)
        lines += [f"## `{name}` {{ #{name} }}", ""]
        lines += paragraphs(read_summary(cls.__doc__ or ""))
        lines += arguments_table(cls, "method.head.")
    lines += ["For example:", "", *fenced("bash", "vlprompt run vpt digits --shots 16 method.head=texts")]
    return "\n".join(lines)


def _output(name: str) -> str:
    return resolve_class("head", name).output
