"""Draw where a method enters the towers, as SVG in the colours of the site's scheme (light or dark)."""

from dataclasses import dataclass
from html import escape

from docs.site_trace import TowerTrace, Trace

BLOCK_HEIGHT, GAP, CHIP, MARGIN = 20, 6, 9, 8
LEFT = 144  # room for what enters a block from the left
WIDTHS = {1: 310, 2: 205}  # of a block, by the number of towers
INPUTS = {"text": "class texts", "image": "image patches", "language model": "tokens of the text"}
FEATURES = {"text": "text feature", "image": "image feature", "language model": "feature or answer"}


@dataclass(frozen=True)
class _Box:
    """One labelled rectangle; kind is a CSS class."""

    x: float
    y: float
    width: float
    height: float
    label: str
    kind: str

    def svg(self) -> str:
        """Return the rectangle and its label."""
        middle = (self.x + self.width / 2, self.y + self.height / 2 + 4)
        shape = (
            f'<rect class="{self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="4"/>'
        )
        return shape + _text(*middle, self.label, f"label {self.kind}-label", "middle")


def _text(x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _arrow(x: float, y: float, end: float) -> str:
    return f'<path class="flow" d="M{x} {y}V{end + 5}m-4 0l4 -5l4 5z"/>'


def _chips(x: float, y: float, count: int, kind: str) -> str:
    """Return up to four squares, right-aligned at x."""
    shown = min(count, 4)
    return "".join(
        f'<rect class="{kind}" x="{x - (i + 1) * (CHIP + 2)}" y="{y}" width="{CHIP}" height="{CHIP}" rx="2"/>'
        for i in range(shown)
    )


def shorten_layers(layers: list[int]) -> str:
    """Return layers as ranges: [0, 1, 2, 5] -> "0-2, 5"."""
    ranges: list[list[int]] = []
    for layer in sorted(layers):
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _draw_block(tower: TowerTrace, layer: int, x: float, y: float, width: float, kind: str) -> str:
    """Return one block with what enters it."""
    kinds = tower.adapters.get(layer, [])
    is_trained = layer in tower.trained_blocks
    parts = [
        f'<rect class="{"trained-block" if is_trained else "block"}" x="{x}" y="{y}" width="{width}" '
        f'height="{BLOCK_HEIGHT}" rx="4"/>',
        _text(x + 8, y + 14, f"block {layer}", "label" if not is_trained else "label trained-label"),
    ]
    if kinds or is_trained:
        text = "trained copy" if is_trained else " ".join(kinds)
        parts.append(_text(x + width - 8, y + 14, text, f"label {'trained' if is_trained else kind}-label", "end"))
    for entry, offset, word in ((tower.tokens, BLOCK_HEIGHT - 4, "tokens"), (tower.prefix, 5, "K, V")):
        if layer in entry:
            parts.append(_chips(x - 16, y + offset, entry[layer], kind))
            parts.append(_text(x - 66, y + offset + 9, f"{entry[layer]} {word}", f"label {kind}-label", "end"))
            middle = y + offset + CHIP / 2
            parts.append(f'<path class="enter" d="M{x - 14} {middle}H{x - 4}m-4 -3l4 3l-4 3"/>')
    return "".join(parts)


def _draw_tower(tower: TowerTrace, x: float, top: float, width: float, kind: str) -> str:
    """Return one column: the feature on top, the input below."""
    left, pitch = x + LEFT, BLOCK_HEIGHT + GAP
    middle, bottom = left + width / 2, top + 34 + tower.depth * pitch
    parts = [_Box(left, top, width, 22, FEATURES[tower.name], "plain").svg()]
    for layer in range(tower.depth):
        parts.append(_draw_block(tower, layer, left, bottom - (layer + 1) * pitch, width, kind))
    outer = " ".join(tower.adapters.get(None, []))
    label = INPUTS[tower.name] + (", trained embedding" if tower.trains_all else "")
    parts += [_arrow(middle, bottom + 12, bottom - GAP), _Box(left, bottom + 12, width, 22, label, "plain").svg()]
    parts.append(_arrow(middle, top + 34, top + 22))
    if outer:
        parts.append(_text(left - 10, bottom + 27, outer, f"label {kind}-label", "end"))
    title = {"language model": "Language model"}.get(tower.name, f"{tower.name.title()} tower")
    return "".join(parts) + _text(middle, bottom + 52, title, "label strong", "middle")


def _describe_top(trace: Trace) -> tuple[str, bool]:
    """Return what stands above the features, and whether it is trained."""
    names = list(dict.fromkeys(_parameter_group(name) for name in trace.outside))
    if names:
        shown = names if len(names) < 6 else [*names[:5], "..."]
        return f"trained on the features: {', '.join(shown)}", True
    if trace.tower("text") and trace.tower("image"):
        return "scaled cosine of both features: logits", False
    return "answers from the features, nothing trained there", False


def _parameter_group(name: str) -> str:
    """Return the part of a method that a parameter belongs to: "head", "keys", "net"."""
    parts = [part for part in name.split(".") if part != "method" and not part.isdigit()]
    return parts[0].replace("lesson_heads", "head")


def describe_sites(trace: Trace) -> list[str]:
    """Return one sentence for each thing that enters, bottom up, as the picture shows it."""
    lines = []
    for tower in trace.towers:
        name = tower.name if tower.name == "language model" else f"{tower.name} tower"
        each = ", another set for each input" if tower.per_input else ""
        for length in dict.fromkeys(tower.tokens.values()):
            layers = shorten_layers([layer for layer, n in tower.tokens.items() if n == length])
            lines.append(f"{name}: {length} tokens at layer {layers}{each}")
        for length in dict.fromkeys(tower.prefix.values()):
            layers = shorten_layers([layer for layer, n in tower.prefix.items() if n == length])
            lines.append(f"{name}: a prefix of {length} keys and values at layer {layers}{each}")
        blocks = [layer for layer in tower.adapters if layer is not None]
        if blocks:
            lines.append(f"{name}: adapters at {' '.join(tower.adapters[blocks[0]])} of block {shorten_layers(blocks)}")
        if outer := tower.adapters.get(None):
            lines.append(f"{name}: adapters at {' '.join(outer)}, outside of the blocks")
        if tower.trained_blocks:
            more = " and of everything below" if tower.trains_all else ""
            lines.append(f"{name}: a trainable copy of block {shorten_layers(list(tower.trained_blocks))}{more}")
        if not tower.is_changed:
            lines.append(f"{name}: nothing enters, the frozen features are used")
    top, is_trained = _describe_top(trace)
    return [*lines, f"above the features: {top.partition(': ')[2]}" if is_trained else f"above the features: {top}"]


def draw(trace: Trace, title: str) -> str:
    """Return the picture as one line of SVG, inside a figure."""
    kind = "insert" if trace.inside or any(t.trained_blocks for t in trace.towers) else "untrained"
    order = sorted(trace.towers, key=lambda tower: ("text", "image", "language model").index(tower.name))
    block_width = WIDTHS[len(order)]
    column = LEFT + block_width + 2 * MARGIN
    width = column * len(order) + MARGIN
    depth = max(tower.depth for tower in order)
    top_label, is_trained = _describe_top(trace)
    parts = [
        _Box(MARGIN + 20, MARGIN, width - 40 - MARGIN, 24, top_label, "insert-box" if is_trained else "plain").svg()
    ]
    for i, tower in enumerate(order):
        x, top = i * column, 52 + (depth - tower.depth) * (BLOCK_HEIGHT + GAP)
        parts += [_draw_tower(tower, x, top, block_width, kind), _arrow(x + LEFT + block_width / 2, top, MARGIN + 24)]
    height = 52 + 34 + depth * (BLOCK_HEIGHT + GAP) + 60
    described = escape("; ".join(describe_sites(trace)))
    return (
        f'<figure class="sites"><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title><desc>{described}</desc>'
        f"{''.join(parts)}</svg></figure>"
    )
