"""The paper of a method, read from the header of its file; the method is not imported."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from vlprompt import methods

QUOTED, PAPER = re.compile(r'"([^"]+)"'), re.compile(r'The paper is\s+"([^"]+)"')
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Citation:
    """The paper of a method.

    Args:
        name: the paper's name of the method ("CoOp").
        citation: authors, title where the header has it there, and venue.
        title: of the paper; "" for a method without one.
        arxiv: its number; "" for none.
        idea: the method in one sentence.
    """

    name: str
    citation: str
    title: str
    arxiv: str
    idea: str


def read_citation(method: str) -> Citation | None:
    """Return the paper of a method by its name in configurations; None for a class of another package."""
    if method not in (classes := methods.find_classes()):
        return None
    tree = ast.parse((Path(str(methods.__file__)).parent / f"{method}.py").read_text("utf-8"))
    header = ast.get_docstring(tree) or ""
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == classes[method])
    citation, _, rest = header.partition("\n")
    description = header.partition("Sites:")[0]
    title, arxiv = QUOTED.search(citation) or PAPER.search(rest), ARXIV.search(description)
    idea = (ast.get_docstring(cls) or "").partition("\n")[0]
    return Citation(
        citation.partition(":")[0],
        citation,
        "" if title is None else " ".join(title[1].split()),
        "" if arxiv is None else arxiv[1],
        idea,
    )
