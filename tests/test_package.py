"""The wheel: cards, recipes and weights travel with it, and it runs from another folder without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert "vlprompt/_cards/digits.yaml" in held
    assert "vlprompt/_configs/few_shot/coop.yaml" in held
    assert "vlprompt/_configs/reference/base_to_new.yaml" in held
    assert {"vlprompt/_configs/groups.yaml", "vlprompt/_configs/preprocess/vpt_vtab.yaml"} <= set(held)
    assert "vlprompt/backbones/glyph.safetensors" in held
    page = "templates/page.html.j2", "templates/parts.html.j2", "assets/report.css", "assets/report.js"
    assert {f"vlprompt/results/report/{name}" for name in page} <= set(held)
    assert not [name for name in held if name.startswith(("datasets/", "tests/", "configs/"))]
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "from vlprompt.cli import app; print(app.__file__); app.main()"
    command = [sys.executable, "-c", code, "run", "coop", "digits", "--shots", "1", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "150"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "few_shot on digits, glyph" in done.stdout
    assert list((work / "runs").glob("coop-digits-1shot-seed1-*/result.json"))
