"""`vlprompt doctor` says what is installed, seen and missing; `vlprompt` alone says where to start."""

import json
from importlib.metadata import version

import pytest

from vlprompt.cli.app import main
from vlprompt.data.cards import list_cards, load_card
from vlprompt.runtime import installation


@pytest.fixture
def type_in(capsys, monkeypatch, tmp_path):
    for name in ("VLPROMPT_DATA", "VLPROMPT_FEATURE_CACHE", "VLPROMPT_FEATURE_CACHE_GB", "VLPROMPT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        return stop.value.code, capsys.readouterr().out

    return run


def test_it_tells_what_is_here(type_in, tmp_path, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "features"))
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE_GB", "0.5")
    (tmp_path / "features" / "glyph-1").mkdir(parents=True)
    (tmp_path / "features" / "glyph-1" / "a.rows").write_bytes(bytes(3 * 10**6))
    card = next(card for card in map(load_card, list_cards()) if card.kind == "layout")
    (tmp_path / "root" / card.folder / card.images).mkdir(parents=True)
    code, text = type_in("doctor", "--root", str(tmp_path / "root"), "--json")
    report = json.loads(text)
    assert code == 0, report["problems"]
    packages = {(p["name"], p["extra"]): p for p in report["packages"]}
    assert packages["torch", ""]["installed"] == version("torch")
    assert packages["torch", ""]["wanted"].startswith(">=")
    assert packages["transformers", "lm"]["wanted"] != packages["transformers", "hf"]["wanted"]
    assert packages["python", ""]["state"] == "ok"
    assert report["devices"][0]["device"] == "cpu"
    features = report["caches"]["features"]
    assert (features["folder"], features["gb"], features["limit_gb"]) == (str(tmp_path / "features"), 0.003, 0.5)
    assert report["data"]["here"] == [card.name]
    assert "digits" in report["data"]["built_in"]
    assert report["environment"]["VLPROMPT_FEATURE_CACHE_GB"] == "0.5"
    code, text = type_in("doctor", "--root", str(tmp_path / "root"))
    assert code == 0
    for part in (version("torch"), "0.003 of at most 0.5 GB", f"here      {card.name}", "nothing has to be mended"):
        assert part in text


def test_what_is_missing_and_what_for(type_in, monkeypatch):
    lines = ["torch>=2.9", "no_such_thing>=1", 'no_model<3,>=2; extra == "lm"', 'torch>=99; extra == "hf"']
    monkeypatch.setattr(installation, "requires", lambda name: lines)
    code, text = type_in("doctor")
    assert code == 1
    assert "no_such_thing: expected a version >=1, got none. Run pip install 'no_such_thing>=1'." in text
    assert "language models (hf:..., --task text): pip install 'vlprompt[lm]' (no_model missing)" in text
    assert "pip install 'vlprompt[hf]' (torch outside the range)" in text
    assert "nothing has to be mended" not in text


def test_only_extras_missing_is_no_failure(type_in, monkeypatch):
    monkeypatch.setattr(installation, "requires", lambda name: ["torch>=2.9", 'no_model>=2; extra == "lm"'])
    code, text = type_in("doctor")
    assert code == 0
    assert "pip install 'vlprompt[lm]'" in text


def test_variables_that_are_wrong(type_in, monkeypatch):
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE_GB", "much")
    monkeypatch.setenv("VLPROMPT_DTA", "/data")
    code, text = type_in("doctor")
    assert code == 1
    assert "VLPROMPT_FEATURE_CACHE_GB: expected a number of GB, got 'much'" in text
    assert "did you mean 'VLPROMPT_DATA'?" in text


def test_without_arguments_it_says_where_to_start(type_in):
    code, text = type_in()
    assert code == 0
    assert [line.split("  #")[0].split() for line in text.splitlines() if line.startswith("  vlprompt")] == [
        ["vlprompt", "run", "coop", "digits", "--shots", "16"],
        ["vlprompt", "run", "coop", "path/to/images", "--shots", "4", "--backbone", "open_clip:ViT-B-16/openai"],
        ["vlprompt", "list", "methods"],
    ]
    assert "vlprompt --help" in text


def test_places_that_are_no_folders_are_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "file"))
    assert f"--root: expected a folder, got the file '{tmp_path / 'file'}'" in read_problems(capsys)
    monkeypatch.setenv("VLPROMPT_DATA", "~nobody_of_this_name/data")
    assert "VLPROMPT_DATA: expected a folder, got '~nobody_of_this_name/data'" in read_problems(capsys)


def test_a_package_whose_metadata_is_broken_leaves_the_rest_of_the_report(monkeypatch, capsys):
    def fail():
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(installation, "read_packages", fail)
    assert "packages: UnicodeDecodeError" in read_problems(capsys)


def read_problems(capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--json"])
    assert end.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["devices"]
    return " ".join(report["problems"])
