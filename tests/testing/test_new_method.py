"""vlprompt new method, and vlprompt check: what is written passes in an empty folder, and nothing is overwritten."""

import subprocess
import sys

import pytest

from vlprompt.testing.suite import CHECKS

FILES = ["{0}.py", "{0}.yaml", "test_{0}.py"]


@pytest.fixture(autouse=True)
def own_modules():
    """Forget what a test imported from its folder."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("softer", "rooms", "other", "test_softer"):
            del sys.modules[name]


def only(monkeypatch, *names):
    chosen = tuple(check for check in CHECKS if check.__name__.removeprefix("check_") in names)
    monkeypatch.setattr("vlprompt.testing.suite.CHECKS", chosen)


@pytest.mark.parametrize(
    "kind", ["clip", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tower", "wrapper", "language"))]
)
def test_what_is_written_passes(kind, type_all, tmp_path, folders):
    status, text, _ = type_all("new", "method", "softer", "--kind", kind)
    assert status == 0
    assert text.endswith("now: vlprompt check softer:Softer")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(name.format("softer") for name in FILES)
    status, text, printed = type_all("check", "softer:Softer")
    assert status == 0, printed
    assert " 0 failed (" in text
    more = ["--backbone", f"hf:{folders('llama')}", "method.n_tokens=2"] if kind == "language" else []
    status, text, _ = type_all("run", "-c", "softer.yaml", "train.epochs=1", *more, "-o", "runs")
    assert status == 0, text
    assert "1 run under runs/" in text


@pytest.mark.parametrize(
    "kind", [pytest.param("clip", marks=pytest.mark.slow), pytest.param("language", marks=pytest.mark.slow)]
)
def test_the_written_test_passes_alone(kind, type_all, tmp_path):
    """Pytest in a folder without a configuration, whose packages are others than the working folder."""
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "__init__.py").touch()
    for folder in ("rooms", "plain"):
        assert type_all("new", "method", "softer", folder, "--kind", kind)[0] == 0
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{folder}/test_softer.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout


def test_where_the_files_go(type_in, tmp_path, monkeypatch):
    status, text = type_in("new", "method", "my_own", "rooms/inner", "--kind", "tower")
    assert status == 0
    assert text.endswith("now: vlprompt check rooms.inner.my_own:MyOwn")
    assert '"rooms.inner.my_own:MyOwn"' in (tmp_path / "rooms" / "inner" / "my_own.yaml").read_text()
    assert "class MyOwn(TowerMethod" in (tmp_path / "rooms" / "inner" / "my_own.py").read_text()
    assert "from my_own import MyOwn" in (tmp_path / "rooms" / "inner" / "test_my_own.py").read_text()
    only(monkeypatch, "constructor")
    assert "1 passed, 0 skipped, 0 failed" in type_in("check", "rooms.inner.my_own:MyOwn", "method.rank=1")[1]


def test_what_exists_is_never_overwritten(type_in, tmp_path):
    (tmp_path / "softer.yaml").write_text("softer")
    status, text = type_in("new", "method", "softer")
    assert status == 2
    assert "expected files that do not exist, got softer.yaml. Choose another name or folder" in text
    assert [path.name for path in tmp_path.iterdir()] == ["softer.yaml"]
    (tmp_path / "file").write_text("")
    assert "expected a folder, got the file 'file'" in type_in("new", "method", "other", "file")[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3d", "expected a name that Python can import, got '3d'. Use letters, digits and underscores"),
        ("my-method", "expected a name that Python can import, got 'my-method'"),
        ("class", "expected a name that Python can import, got 'class'"),
        ("__", "expected a name that Python can import, got '__'"),
        ("json", "expected a name that no installed module has, got 'json', which the new file would hide"),
        ("torch", "expected a name that no installed module has, got 'torch'"),
    ],
)
def test_a_name_that_is_none(name, message, type_in, tmp_path):
    status, text = type_in("new", "method", name)
    assert status == 2
    assert message in text
    assert list(tmp_path.iterdir()) == []


MODULE = """
from vlprompt import Clip, Method, MethodWrapper, Output

class Needs(Method):
    def __init__(self, clip: Clip, rank: int):
        super().__init__()
        self.clip, self.rank = clip, rank

    def precompute(self, names):
        return self.clip.text([f"{name}" for name in names])[0]

    def forward(self, inputs, prepared):
        return Output(self.clip.logits(self.clip.image(inputs), prepared))

class Breaks(Needs):
    def __init__(self, clip: Clip):
        raise RuntimeError("never built")

class Fails(Needs):
    def __init__(self, clip: Clip, rank: int = 2):
        super().__init__(clip, rank)

    def forward(self, inputs, prepared):
        return self.nothing

class Wraps(MethodWrapper):
    def __init__(self, method: Method):
        super().__init__()
        self.method = method

class Plain:
    pass

function = len
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "other.py").write_text(MODULE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["other:Needs"], "method.rank: expected a value, got nothing. Set method.rank to one."),
        (["other:Needs", "method.rank=two"], "method.rank=two': method.rank: expected a valid integer"),
        (["other:Needs", "method.rnk=2"], "unknown key 'method.rnk'; did you mean 'rank'?"),
        (
            ["other:Needs", "rank=2"],
            "expected settings of the method as method.KEY=VALUE, got 'rank=2'. Write method.rank=2.",
        ),
        (["other:Plain"], "expected a subclass of vlprompt.Method, got 'other:Plain'"),
        (["other:function"], "function is not a class"),
        (["other:Missing"], "expected module:Class that can be imported from here, got 'other:Missing'"),
        (["others:Needs"], "expected module:Class that can be imported from here, got 'others:Needs'"),
        (["other:Breaks"], "expected no error, got RuntimeError: never built. Correct it there"),
        (["other:Needs", "method.rank=2", "--backbone", "glyph-vit/random"], "other:Needs: expected a CLIP"),
        (["other:Needs", "method.rank=2", "--backbone", "glif"], "expected a known form, got 'glif'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_checked(words, message, type_in, module):
    status, text = type_in("check", *words)
    assert status == 2
    assert message in text


def test_a_failure_is_one_line_and_the_status(type_all, module, monkeypatch):
    """A check that passes, one that fails by an error in the class, one that is skipped; then the status is 1."""
    only(monkeypatch, "constructor", "new_class_names", "learns")
    status, text, printed = type_all("check", "other:Fails")
    assert status == 1
    assert printed.splitlines()[0] == "other:Fails on glyph/random, digits"
    assert "passed constructor The constructor only stores its arguments" in text
    assert "skipped learns nothing is trained" in text
    assert "failed new_class_names Fails.forward (" in text
    assert "has no attribute 'nothing'. Correct it there" in text
    assert "1 passed, 1 skipped, 1 failed (" in text
    assert len(printed.splitlines()) == 5


def test_other_backbones_and_methods_around_others(type_in, module, monkeypatch):
    only(monkeypatch, "constructor", "gradients", "class_order")
    status, text = type_in("check", "vpt", "method.n_tokens=2", "method.head=linear", "--backbone", "glyph-vit/random")
    assert (status, "vpt on glyph-vit/random, digits" in text, "3 passed" in text) == (0, True, True)
    status, text = type_in("check", "other:Wraps")
    assert status == 0
    assert "assumed: method.method=coop method.method.n_ctx=4" in text
