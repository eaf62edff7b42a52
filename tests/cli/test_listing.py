"""`vlprompt list methods` groups methods by what they need and what they are for, from their files alone."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from vlprompt import methods
from vlprompt.cli import listing
from vlprompt.runtime.lazy_classes import find_public_classes

COMMAND = str(Path(sys.executable).with_name("vlprompt"))


def find(name):
    return next(entry for group in listing.group_methods() for entry in group.methods if entry.name == name)


def test_every_method_stands_in_one_group():
    groups = listing.group_methods()
    names = [entry.name for group in groups for entry in group.methods]
    assert sorted(names) == sorted(methods.find_classes())
    assert all((entry.needs, entry.use) == (group.needs, group.use) for group in groups for entry in group.methods)
    assert len({(group.needs, group.use) for group in groups}) == len(groups)
    assert all(
        entry.idea.endswith(".") and entry.title and entry.needs != "nothing" for g in groups for entry in g.methods
    )


def test_needs_and_uses():
    coop = find("coop")
    assert (coop.title, coop.idea) == ("CoOp", "Learned context tokens of the text tower.")
    assert "arXiv:2109.01134" in coop.citation
    assert (coop.needs, coop.use) == ("a CLIP", "few-shot, base to new, transfer")
    assert find("kgcoop").needs == find("upl").needs == find("aper").needs == "another method"
    assert find("vpt").needs == "an image tower"
    assert find("lora").needs == "an image tower or a language model"
    assert find("qlora").needs == "a language model"
    assert {find(name).use for name in ("l2p", "dualprompt", "coda_prompt", "s_prompts", "ranpac")} == {"streams"}
    assert {find(name).use for name in ("dapl", "dann", "upl", "entropy")} == {"unlabelled images, other domains"}
    assert find("tpt").use == "test time"


def test_a_new_file_is_grouped_by_what_it_says(tmp_path, monkeypatch):
    (tmp_path / "coop.py").write_text(Path(methods.__file__).with_name("coop.py").read_text("utf-8"))
    (tmp_path / "both.py").write_text(
        '"""Both: Nobody, 2030.\n\nUse: answers about\npictures. Sites: none."""\n'
        'class Both:\n    """Ask a CLIP and a model."""\n    def __init__(self, clip: Clip, lm: LanguageTower): ...\n'
    )
    (tmp_path / "mine.py").write_text(
        '"""Mine: Nobody, 2030."""\nfrom vlprompt.methods.coop import CoOp\nclass Mine(CoOp):\n    """As CoOp."""\n'
    )
    package = SimpleNamespace(
        __name__="vlprompt.methods",
        __file__=str(tmp_path / "__init__.py"),
        find_classes=lambda: find_public_classes(tmp_path),
    )
    monkeypatch.setattr(listing, "methods", package)
    assert (find("both").needs, find("both").use) == ("a CLIP and a language model", "answers about pictures")
    assert (find("mine").needs, find("mine").use) == (find("coop").needs, find("coop").use)


def test_it_is_instant():
    """Nothing heavy is imported to read some files."""
    for kind in ("methods", "tasks"):
        words = [sys.executable, "-X", "importtime", COMMAND, "list", kind]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & {"torch", "numpy", "transformers", "open_clip", "timm"}
    assert "base_to_new" in done.stdout
