"""The SVG of a figure inside a page, in the colours of the page's theme."""

import re
from typing import Any

TEXT_COLOUR = "#010203"  # of no line: on the page it becomes the colour of the text
MAX_INLINE_BYTES = 300_000
THEME: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT_COLOUR),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
}
IDS = re.compile(r'(\bid="|xlink:href="#|url\(#)')


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG as part of a page: its ids are its own, its texts have the colour of the page's text."""
    body = svg[svg.index("<svg") :]
    body = IDS.sub(lambda match: f"{match[1]}{name}-", body).replace(TEXT_COLOUR, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r">\n\s*<", "><", body)
    return body.replace("<svg ", '<svg fill="currentColor" focusable="false" aria-hidden="true" ', 1).strip()
