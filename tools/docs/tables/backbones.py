"""The page of backbones."""

from docs.markdown_text import code, escape, fenced, page_title, table
from vlprompt.backbones.hf.architectures import ARCHITECTURES
from vlprompt.backbones.schemes import SCHEMES
from vlprompt.core.towers import WEIGHT_PRECISIONS

KINDS = {  # scheme -> what it gives, and which of its towers are block-wise
    "glyph": "A CLIP, or its image tower alone. Both towers are block-wise.",
    "pixels": "An image tower without a network. It is used as it is.",
    "open_clip": "A CLIP. Its ViTs (also timm's ViT and Eva) and open_clip's own text transformers are block-wise; "
    "other towers are used as they are.",
    "hf_clip": "A CLIP. Both towers are block-wise.",
    "timm": "An image tower. ViT and Eva are block-wise; other networks are used as they are.",
    "hf": "A language model. All are block-wise; types of model:",
}


def build() -> str:
    """Return the page as Markdown."""
    lines = page_title(
        "Backbones",
        "What `--backbone` and `vlprompt.load` take. A block-wise tower takes every kind of prompt (tokens, prefixes, "
        "adapters); one that is used as it is takes none and says so. Which model has which towers: "
        "[backbones](../guides/backbones.md).",
    )
    for scheme in SCHEMES:
        name = scheme.names[0]
        families = f" {', '.join(ARCHITECTURES)}." if name == "hf" else ""
        lines += [f"## {name}", "", escape(KINDS[name] + families), ""]
        lines += table(["spec", "what it loads"], [[code(form), escape(text)] for form, text in scheme.forms.items()])
    lines += ["Precision of the frozen weights of a language model, by the scheme:", ""]
    lines += table(["scheme", "weights"], [[code(f"{name}:"), value] for name, value in WEIGHT_PRECISIONS.items()])
    lines += fenced("bash", "vlprompt list backbones\nvlprompt run coop digits --backbone glyph --shots 16")
    return "\n".join(lines)
