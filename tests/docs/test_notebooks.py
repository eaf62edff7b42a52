"""The notebooks of the first tutorials are valid, hold what the pages hold, and print what they store."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from docs.notebooks import NAMES, TUTORIALS, add_link, build_notebook, build_notebooks, notebook_files, on_files
from docs.outputs import clean_output, find_difference
from docs.page_blocks import read_blocks

ROOT = Path(__file__).parents[2]
PAGE = """# Title

Read [more](../guides/memory.md#title), [this](https://example.org) and ![a picture](../../x.png).

```python title="mine.py"
x = 1
```
```bash
# all of them
vlprompt list \\
  tasks
ls
```
```text
shown
```
<!-- exits 2 -->
```bash
vlprompt show '{x}' | cat
```
Prose.

<!-- not run: downloads weights -->
```bash
vlprompt run coop digits --backbone open_clip:ViT-B-16/openai
```
```python
print(1)
```
"""


def test_cells_of_a_page(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    notebook = build_notebook(tmp_path / "page.md")
    nbformat.validate(notebook)
    cells = notebook.cells[2:]
    assert [c.source for c in cells if c.cell_type == "code"] == [
        "%%writefile mine.py\nx = 1",
        "%%bash\n# all of them\nvlprompt list \\\n  tasks\nls",
        "%%bash --no-raise-error\nvlprompt show '{x}' | cat",
        "print(1)",
    ]
    assert cells[0].source.endswith(
        "Read more, [this](https://example.org) and *(A picture of the tutorial: a picture.)*."
    )
    assert cells[2].outputs[0].text == "shown\n"
    [prose] = [c.source for c in cells if c.source.startswith("Prose.")]
    assert "```bash\nvlprompt run coop" in prose
    assert "<!--" not in "".join(c.source for c in cells)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_what_its_page_holds(name):
    notebook = nbformat.reads(notebook_files()[f"tutorials/{name}.ipynb"], 4)
    nbformat.validate(notebook)
    blocks = read_blocks(TUTORIALS / f"{name}.md")
    code = [cell for cell in notebook.cells[2:] if cell.cell_type == "code"]
    assert len(code) == sum(block.is_run or bool(block.title) for block in blocks) >= 5
    stored = [output.text for cell in code for output in cell.outputs]
    assert stored == [block.text for before, block in pairwise(blocks) if block.is_output and before.is_run]
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_notebooks_of_a_site(tmp_path):
    paths = build_notebooks(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [f"tutorials/{name}.ipynb" for name in NAMES]
    assert paths[0].read_text() == notebook_files()["tutorials/first_prompt.ipynb"]
    page = add_link("# First prompt\n\nYou start.\n", "first_prompt")
    assert page == "# First prompt\n\n[Download as a notebook](first_prompt.ipynb)\n\nYou start.\n"


def test_the_site_offers_them(tmp_path):
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.plugins import PluginCollection
    from mkdocs.structure.files import File, Files

    config = MkDocsConfig()
    config.load_dict({"docs_dir": str(ROOT / "docs"), "site_dir": str(tmp_path), "use_directory_urls": False})
    config.plugins = PluginCollection()
    config.plugins._current_plugin = None  # as within a hook
    pages = [File(f"tutorials/{name}.md", str(ROOT / "docs"), str(tmp_path), False) for name in NAMES]
    files = Files(pages)
    on_files(files, config)
    for name in NAMES:
        notebook = files.get_file_from_path(f"tutorials/{name}.ipynb")
        assert notebook.content_string == notebook_files()[notebook.src_uri]
        page = files.get_file_from_path(f"tutorials/{name}.md").content_string
        assert page.splitlines()[2] == f"[Download as a notebook]({name}.ipynb)"
        assert page.startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_prints_what_it_stores(name, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "features"))
    for variable, value in {"COLUMNS": "100", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "work").mkdir()
    notebook = build_notebook(TUTORIALS / f"{name}.md")
    expected = {cell.id: cell.outputs[0].text for cell in notebook.cells if cell.get("outputs")}
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    for cell in notebook.cells:
        printed = "".join(output.get("text", "") for output in cell.get("outputs", []))
        if cell.id in expected:
            difference = find_difference(expected[cell.id], clean_output(printed, str(tmp_path / "work")))
            assert not difference, f"{cell.source}\n{difference}"
        else:
            assert "error:" not in printed, f"{cell.source}\n{printed}"
