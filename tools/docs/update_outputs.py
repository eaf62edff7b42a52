"""Run pages and write what their blocks print into the text blocks below them.

python tools/docs/update_outputs.py PAGE ...
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.outputs import rewrite_output
from docs.page_runner import Output, run_page


def update_page(page: Path, outputs: list[Output]) -> int:
    """Write the outputs into a page; return how many text blocks changed."""
    lines, n_changed = page.read_text("utf-8").splitlines(), 0
    for output in reversed(outputs):
        if (shown := output.shown) is None:
            continue
        text = rewrite_output(shown.text, output.text)
        if text != shown.text:
            lines[shown.line : shown.end - 1] = [(" " * shown.indent + line).rstrip() for line in text.splitlines()]
            n_changed += 1
    page.write_text("\n".join(lines) + "\n", "utf-8")
    return n_changed


def main(pages: list[str]) -> None:
    """Update the pages that are named."""
    import torch

    torch.set_num_threads(1)
    for page in map(Path, pages):
        with tempfile.TemporaryDirectory() as place:
            outputs = run_page(page, Path(place).resolve())
        for output in outputs:
            print(f"{page}:{output.block.line}: {output.seconds:.1f} s")
        n_changed = update_page(page, outputs)
        print(f"{page}: {sum(o.seconds for o in outputs):.1f} s of this process; {n_changed} outputs changed")


if __name__ == "__main__":
    main(sys.argv[1:])
