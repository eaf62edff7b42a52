"""Make Jupyter notebooks of the first tutorials from their Markdown sources."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.page_blocks import Block, parse_blocks

if TYPE_CHECKING:
    from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = ("first_prompt", "own_images", "base_to_new", "stream")
COMMENT = re.compile(r"^ *<!--.*?--> *\n?", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)[^)]*\)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")
BEFORE = (
    "*A notebook of a tutorial of vlprompt. Install vlprompt into the environment of this kernel, and start in an "
    "empty folder. The outputs are those of the tutorial until you run the cells.*"
)
SETUP = """import os

os.environ.pop("FORCE_COLOR", None)  # the kernel sets it, and commands would draw progress bars as on a terminal"""
DOWNLOAD = "[Download as a notebook]({name}.ipynb)"


def notebook_files() -> dict[str, str]:
    """Return the content of each notebook by its path on the site."""
    import nbformat

    return {
        f"tutorials/{name}.ipynb": nbformat.writes(build_notebook(TUTORIALS / f"{name}.md")) + "\n" for name in NAMES
    }


def build_notebooks(site_dir: str | Path) -> list[Path]:
    """Write the notebooks into the folder of a site; return their paths."""
    paths = []
    for path, content in notebook_files().items():
        paths.append(Path(site_dir) / path)
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_text(content, "utf-8")
    return paths


def on_files(files: Any, config: Any) -> None:
    """Add the notebooks to a site that mkdocs builds, and a link below the title of each of their pages."""
    from mkdocs.structure.files import File

    for path, content in notebook_files().items():
        files.append(File.generated(config, path, content=content))
    for name in NAMES:
        page = files.get_file_from_path(f"tutorials/{name}.md")
        page.content_string = add_link(page.content_string, name)


def add_link(markdown: str, name: str) -> str:
    """Return a page with a link to its notebook below its title."""
    title, separator, rest = markdown.partition("\n")
    return f"{title}\n\n{DOWNLOAD.format(name=name)}\n{separator}{rest.lstrip()}"


def build_notebook(page: Path) -> "NotebookNode":
    """Return the notebook of a page: a cell for each block that is run, its output stored in it."""
    from nbformat import v4

    markdown = page.read_text("utf-8")
    lines, blocks = markdown.splitlines(), parse_blocks(markdown, str(page))
    cells, prose, line = [v4.new_markdown_cell(BEFORE), v4.new_code_cell(SETUP)], list[str](), 0
    for block in blocks:
        prose += lines[line : block.line - 1]
        line = block.end
        if block.is_output and cells[-1].cell_type == "code" and not "".join(prose).strip():
            cells[-1].outputs = [v4.new_output("stream", name="stdout", text=block.text)]
        elif block.is_run or block.title:
            cells += _make_markdown_cells(prose)
            prose = []
            cells.append(v4.new_code_cell(write_code(block).rstrip("\n")))
        else:
            prose += lines[block.line - 1 : block.end]
    cells += _make_markdown_cells(prose + lines[line:])
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"  # the same for the same page
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def _make_markdown_cells(lines: list[str]) -> "list[NotebookNode]":
    """Return a cell of prose, none for empty lines; links to other pages lead nowhere from a notebook."""
    from nbformat import v4

    text = COMMENT.sub("", "\n".join(lines)).strip()
    text = LINK.sub(r"\1", PICTURE.sub(r"*(A picture of the tutorial: \1.)*", text))
    return [v4.new_markdown_cell(text)] if text else []


def write_code(block: Block) -> str:
    """Return the code of the cell that does what a block does."""
    if block.title:
        return f"%%writefile {block.title}\n{block.text}"
    if block.kind == "python":
        return block.text
    # not !vlprompt: IPython replaces {name} in it, and goes on after an error
    return f"%%bash{' --no-raise-error' if block.exit_status else ''}\n{block.text}"
