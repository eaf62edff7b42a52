"""The guide of ONNX files is run from top to bottom, its script without vlprompt too."""

from pathlib import Path

import pytest
from docs.outputs import find_difference
from docs.page_runner import run_page

PAGE = Path(__file__).parents[2] / "docs/guides/export_onnx.md"


@pytest.mark.slow
def test_the_guide_prints_what_it_shows(tmp_path):
    outputs = run_page(PAGE, tmp_path)
    for output in outputs:
        if output.shown:
            difference = find_difference(output.shown.text, output.text)
            assert not difference, f"{PAGE.name}:{output.shown.line}: other output\n{difference}"
    assert "vlprompt" not in (tmp_path / "work/answer.py").read_text()
