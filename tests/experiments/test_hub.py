"""Prompts on the hub: pushed by one commit, loaded back the same, never overwritten unasked; its errors in one line."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import give
from hub_endpoint import TOKEN, HubEndpoint, give_commands, open_hub, start_commands
from PIL import Image

import vlprompt
from vlprompt.experiments.learned.state import read_learned_state

FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}


@dataclass
class Session:
    """What a process on the hub did: its answers by the words that were typed, and the hub after it."""

    answers: dict[str, tuple[int, str]]
    hub: HubEndpoint
    folder: Path
    run: str
    environment: dict[str, str]
    first: str  # the commit of me/old before the last one

    def __getitem__(self, words):
        return self.answers[words]


def read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(hub, root, run):
    """Models that are on the hub before: two commits of one, a stranger's, one of another library."""
    vlprompt.save_prompt(read_learned_state(root / run), root / "model", license="mit")
    vlprompt.save_prompt(vlprompt.load_prompt(root / run), root / "edited", license="mit")
    text = (root / "edited" / "README.md").read_text()
    (root / "edited" / "README.md").write_text(text.replace("## Use", "Written by hand.\n\n## Use"))
    vlprompt.save_prompt(read_learned_state(root / run), root / "unlicensed")
    files = read_folder(root / "model")
    first = hub.add_commit("me/old", files)
    hub.add_commit("me/old", {**files, "config.json": files["config.json"].replace(b'"zero"', b'"nought"')})
    evil = json.loads(files["config.json"])
    evil["method"] = {"name": "kgcoop", "method": {"name": "evil:Evil"}}
    hub.add_commit("me/evil", {**files, "config.json": json.dumps(evil).encode()})
    (root / "evil.py").write_text("from pathlib import Path\nPath('was_run').touch()\n")
    hub.add_commit("me/clip", {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"x" * 1000})
    hub.fails |= {
        "GET /api/models/me/page": b"<html>",
        "GET /api/models/me/down": 500,
        "GET /api/models/me/locked": 401,
        "/me/race/commit": 412,
    }
    hub.taken.add("me/taken")
    return first


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    words = ["coop", "digits", "--shots", "2", "--backbone", "glyph/random", "train.epochs=1"]
    assert give("run", *words, cwd=root)[0] == 0
    run = str(next((root / "runs").iterdir()).relative_to(root))
    Image.new("RGB", (32, 32), (200, 10, 10)).save(root / "a.png")
    with open_hub() as hub:
        first = fill(hub, root, run)
        lines = f"""push RUN me/digits
            push RUN me/digits --license mit
            predict me/digits a.png --format json
            predict RUN a.png --format json
            push RUN me/digits --license apache-2.0
            push RUN me/digits --license cc-by-4.0 --force
            push unlicensed me/new
            push edited me/edited
            push model me/model
            push RUN me/mine --license mit --private
            push RUN me/race --license mit
            push RUN me/taken --license mit
            push RUN nobody --license mit
            save me/old@{first} first
            save me/old last
            eval me/mine
            eval me/nix
            eval me/old@nix
            eval me/locked
            eval me/down
            eval me/page
            push RUN me/x.git --license mit
            eval me/evil
            eval me/clip
            HF_TOKEN=wrong
            push RUN me/wrong --license mit
            eval me/mine --backbone glyph/random
            HF_TOKEN=
            push RUN me/none --license mit"""
        commands = [line.strip() for line in lines.splitlines()]
        environment = {**os.environ, **hub.environment(root / "home"), "COLUMNS": "200"}
        results = give_commands([line.replace("RUN", run).split() for line in commands], environment, root)
        asked = [line for line in commands if not line.startswith("HF_TOKEN")]
        assert len(results) == len(asked)
        answers = {
            line: (code, " ".join((out + err).split())) for line, (code, out, err) in zip(asked, results, strict=True)
        }
        yield Session(answers, hub, root, run, environment, first)


@pytest.mark.slow
def test_a_prompt_is_pushed_by_one_commit_and_answers_the_same(session):
    code, text = session["push RUN me/digits --license mit"]
    [(_, new), (first, files), (second, _)] = session.hub.models["me/digits"]
    assert code == 0, text
    assert f"pushed me/digits: {session.hub.url}/me/digits/commit/{first}" in text
    assert new.keys() == {".gitattributes"}
    assert files.keys() == FILES
    assert "license: mit" in files["README.md"].decode()
    assert "vlprompt.load_prompt('me/digits')" in files["README.md"].decode()
    assert session["predict me/digits a.png --format json"] == session["predict RUN a.png --format json"]
    assert session["predict me/digits a.png --format json"][0] == 0
    assert second != first


def test_a_name_that_exists_is_committed_over_only_by_force(session):
    code, text = session["push RUN me/digits --license apache-2.0"]
    assert code == 2
    assert "expected a new name on the hub, got 'me/digits', which exists with 3 files" in text
    assert "--force" in text
    assert session["push RUN me/digits --license cc-by-4.0 --force"][0] == 0
    assert "license: cc-by-4.0" in session.hub.models["me/digits"][-1][1]["README.md"].decode()
    assert len(session.hub.models["me/digits"]) == 3


@pytest.mark.parametrize("words", ["push RUN me/digits", "push unlicensed me/new"])
def test_a_licence_is_asked_for(session, words):
    code, text = session[words]
    assert code == 2
    assert "--license: expected the licence of the prompt, got none. Name it by --license: mit, apache-2.0" in text
    assert "me/new" not in session.hub.models


def test_a_model_folder_goes_as_it_is(session):
    assert session["push edited me/edited"][0] == session["push model me/model"][0] == 0
    pushed = {name: session.hub.models[f"me/{name}"][-1][1] for name in ("edited", "model")}
    for name, files in pushed.items():
        for file in ("config.json", "model.safetensors"):
            assert files[file] == (session.folder / name / file).read_bytes()
    assert pushed["edited"]["README.md"] == (session.folder / "edited" / "README.md").read_bytes()
    assert "vlprompt.load_prompt('me/model')" in pushed["model"]["README.md"].decode()


def test_a_revision_is_loaded_by_its_commit(session):
    for name in ("first", "last"):
        assert session[f"save me/old{f'@{session.first}' if name == 'first' else ''} {name}"][0] == 0
    assert read_learned_state(session.folder / "first").names[0] == "zero"
    assert read_learned_state(session.folder / "last").names[0] == "nought"
    assert "license: mit" in (session.folder / "last" / "README.md").read_text()
    assert "| accuracy |" in (session.folder / "last" / "README.md").read_text()


def test_a_private_model_needs_the_token(session):
    assert session["push RUN me/mine --license mit --private"][0] == session["eval me/mine"][0] == 0
    assert "me/mine" in session.hub.private
    assert "me/digits" not in session.hub.private


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("push RUN nobody --license mit", "push: expected OWNER/NAME, got 'nobody'."),
        (
            "push RUN me/race --license mit",
            "expected a model that nobody else changes, got one that was made or changed",
        ),
        (
            "push RUN me/taken --license mit",
            "expected a model that nobody else changes, got one that was made or changed",
        ),
        ("push RUN me/wrong --license mit", "expected a name and a token that the hub accepts, got 401."),
        (
            "push RUN me/none --license mit",
            "push: expected a token of the hub that may write, got none. Set HF_TOKEN, or",
        ),
        ("eval me/nix", "'me/nix': expected a model on the hub, got none of this name that you may read (404)."),
        ("eval me/old@nix", "'me/old@nix': expected a revision that the hub has, got another one (404)."),
        ("eval me/locked", "'me/locked': expected a name and a token that the hub accepts, got 401."),
        ("eval me/down", "'me/down': expected an answer of the hub, got its error 500"),
        ("eval me/page", "'me/page': expected an answer of the hub, got a page of another server."),
        ("push RUN me/x.git --license mit", "'me/x.git': expected a name as the hub has them, got one that it refuses"),
        ("eval me/clip", "'me/clip': expected a model folder of vlprompt, got a config.json of another program."),
    ],
)
def test_an_error_of_the_hub_is_one_sentence_with_its_remedy(session, words, message):
    code, text = session[words]
    assert code == 2
    assert text.startswith("error: ")
    assert message in text
    assert text.count(". ") <= 2
    assert session.hub.url not in text
    assert len(text) < 400


def test_code_of_strangers_is_not_run(session):
    code, text = session["eval me/evil"]
    assert code == 2
    assert "expected a method of vlprompt, got the class 'evil:Evil', whose code would run on loading" in text
    assert not (session.folder / "was_run").exists()


def test_nothing_but_the_files_of_a_prompt_is_fetched(session):
    fetched = {call.rpartition("/")[2] for call in session.hub.calls if "/resolve/" in call}
    assert fetched == FILES - {".gitattributes"}
    assert not [call for call in session.hub.calls if "/me/clip/resolve" in call and "model.safetensors" in call]
    assert not [call for call in session.hub.calls if "/me/evil/resolve" in call and "model.safetensors" in call]


@pytest.mark.slow
def test_without_a_connection_what_is_in_the_cache_answers(session):
    environment = {**session.environment, "HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN}
    commands = [["predict", "me/digits", "a.png", "--format", "json"], ["predict", "me/other", "a.png"]]
    results = give_commands(commands, environment, session.folder)
    # the last commit that was loaded, before the one that came by --force
    assert " ".join("".join(results[0][1:]).split()) == session["predict RUN a.png --format json"][1]
    assert results[1][0] == 2
    text = " ".join(results[1][2].split())
    assert "'me/other': expected a folder here, or a model on the hub, got no such folder and no connection" in text
    assert "put its config.json and model.safetensors into a folder, and name that folder." in text


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_no_file_and_is_given_again(session):
    hub, words = session.hub, ["push", session.run, "me/killed", "--license", "mit"]
    hub.hangs = "PUT /lfs-store"
    environment = {**session.environment, "HF_TOKEN": TOKEN}
    process = start_commands([words], environment, session.folder)
    assert hub.hanging.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.hangs = None
    hub.released.set()
    assert hub.models["me/killed"][-1][1].keys() == {".gitattributes"}
    [(code, out, err)] = give_commands([words], environment, session.folder)
    assert code == 0, out + err
    assert hub.models["me/killed"][-1][1].keys() == FILES
