"""tools/fuzz: a slice of it holds, every rule can be broken, and a case is the same each time."""

import warnings

import pytest
from fuzz import cli, process
from fuzz.case import Case
from fuzz.cli import KINDS, Report, iter_cases, run_cases
from fuzz.guard import Guard
from fuzz.kills import drop_volatile
from fuzz.sandbox import Sandbox

N_CASES = 6  # of each kind, of seed 3


@pytest.fixture(autouse=True)
def apart():
    with cli.own_process():
        yield


@pytest.fixture
def box(tmp_path):
    return Sandbox(tmp_path.resolve(), Case("none", 1, 0))


def rules(box):
    return [violation.rule for violation in box.violations]


@pytest.mark.slow
def test_a_slice_holds(capsys):
    cases = [Case(kind, 3, index) for kind in KINDS for index in range(N_CASES)]
    report = run_cases(iter(cases), Report())
    assert [violation.format() for violation in report.violations] == []
    assert sum(report.n_cases.values()) == len(cases)
    assert {0, 2} <= set(report.statuses)  # some are taken, and some are refused


def fake(monkeypatch, act):
    monkeypatch.setattr("vlprompt.cli.app.main", act)


def leave(status, text=""):
    print(text)
    raise SystemExit(status)


def warn():
    warnings.warn("of a library", stacklevel=1)
    leave(0)


@pytest.mark.parametrize(
    ("act", "rule"),
    [
        (lambda box: {}["x"], "traceback"),
        (lambda box: leave(2, "Traceback (most recent call last)"), "traceback"),
        (lambda box: leave(1, "failed"), "status"),
        (lambda box: leave(2), "silent"),
        (lambda box: leave(2, "error: division by zero"), "message"),
        (lambda box: warn(), "raw warning"),
        (lambda box: box.canary.write_text(""), "executed"),
        (lambda box: (box.work / "x").write_text(""), "wrote outside"),
        (lambda box: (box.root.parent / "x").write_text(""), "wrote outside"),
        (lambda box: (box.home / "x").mkdir(), "wrote outside"),
        (lambda box: (box.work / "given.png").unlink(), "wrote outside"),
        (lambda box: (box.work / "given.png").write_text("other"), "wrote outside"),
    ],
)
def test_every_rule_can_be_broken(act, rule, box, monkeypatch):
    (box.work / "given.png").write_text("x")
    fake(monkeypatch, lambda words: act(box))
    box.call("run")
    assert rule in rules(box)
    assert "vlprompt run" in box.violations[0].format()


def test_what_is_right_breaks_none(box, monkeypatch):
    def act(words):
        (box.out / "result.json").write_text("{}")
        leave(2, "error: train.lr: expected a number, got 'x'. Write train.lr=0.1.")

    fake(monkeypatch, act)
    assert box.call("run").status == 2
    box.check_leftovers(box.out)
    assert rules(box) == []


def test_a_wrong_count_is_found(monkeypatch):
    """A reader that loses an image of each class: the folder's plain cases notice."""
    from vlprompt.data.readers import image_folder

    whole = image_folder.list_image_files
    monkeypatch.setattr(image_folder, "list_image_files", lambda folder: whole(folder)[1:])
    report = run_cases(iter([Case("folders", 3, index) for index in range(6)]), Report())
    assert "wrong data" in [violation.rule for violation in report.violations]


def test_an_endless_command_is_interrupted(box, monkeypatch):
    def act(words):
        try:
            while True:
                pass
        except KeyboardInterrupt:
            leave(130, "stopped")

    monkeypatch.setattr(process, "CPU_SECONDS", 0.1)
    fake(monkeypatch, act)
    outcome = box.call("run")
    assert (outcome.status, outcome.is_interrupted, rules(box)) == (130, True, [])


def test_state_is_put_back(box, monkeypatch):
    import torch

    from vlprompt.runtime.settings import SETTINGS

    def act(words):
        SETTINGS.feature_cache = "x"
        torch.set_default_dtype(torch.float64)
        warnings.simplefilter("ignore")

    fake(monkeypatch, act)
    filters = list(warnings.filters)
    box.call("run")
    assert SETTINGS.feature_cache is None
    assert torch.get_default_dtype() == torch.float32
    assert warnings.filters == filters


def test_a_case_is_the_same_each_time():
    assert [case.index for case in iter_cases(("folders",), 3, 1)] == [0, 1, 2]
    assert list(iter_cases(("folders",), 0, 1, 7)) == [Case("folders", 1, 7)]
    one, other = (Case("folders", 1, 7).stream().random() for _ in range(2))
    assert one == other
    assert one != Case("folders", 1, 8).stream().random()
    assert Case("cards", 2, 5).command == "python tools/fuzz --kind cards --seed 2 --index 5"


def test_the_guard_sees_where_a_path_leads(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    guard = Guard(allowed=[str(tmp_path / "in")], is_active=True)
    guard.hear("os.mkdir", (str(tmp_path / "in" / "a"), 0o777, -1))
    guard.hear("open", (str(tmp_path / "x"), "r", 0))
    assert guard.offences == []
    guard.hear("open", (str(tmp_path / "in" / "link" / "x"), "w", 1))
    guard.hear("pickle.find_class", ("os", "system"))
    assert len(guard.offences) == 2


def test_what_differs_between_processes_is_left_out():
    result = {"scores": [{"accuracy": 1.0}], "cost": {"seconds": 3, "bytes": 5}, "environment": {}}
    assert drop_volatile([result]) == [{"scores": [{"accuracy": 1.0}], "cost": {"bytes": 5}}]


@pytest.mark.parametrize("words", [[], ["--index", "1"], ["--kind", "x", "--cases", "1"]])
def test_what_it_refuses(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2


@pytest.mark.slow
def test_killed_a_few_times(capfd):
    assert cli.main(["--kills", "8", "--seed", "3"]) == 0, capfd.readouterr().out
