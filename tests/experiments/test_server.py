"""The routes of the server, in process: answers, models, class names, limits, and every kind of bad request."""

import asyncio
import base64
import io
import json
import random
import re
import shutil
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from vlprompt import load_prompt
from vlprompt.cli.app import main
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.data.images.decoding import build_file_item
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.server.app import build_app
from vlprompt.experiments.server.batching import BatchingWorker
from vlprompt.experiments.server.guard import Access
from vlprompt.experiments.server.limits import Limits, RateLimiter, RefusedError
from vlprompt.experiments.server.models import ServedModel, ServedModels
from vlprompt.experiments.server.neighbours import open_training_images
from vlprompt.experiments.server.service import Server, ServerSettings
from vlprompt.experiments.server.uploads import UploadedImage, build_upload_item

SMALL = Limits(body_bytes=200_000, images=8, pixels=10_000, classes=5, class_characters=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs on the small random CLIP, and one on the embedded CLIP, by method."""
    root = tmp_path_factory.mktemp("served")
    for methods, backbone in (("coop,linear,vpt", "glyph/random"), ("zero_shot", "glyph")):
        arguments = ["--shots", "1", "--backbone", backbone, "train.epochs=1", "--out", str(root)]
        with pytest.raises(SystemExit) as left:
            main(["run", methods, "digits", *arguments])
        assert left.value.code == 0
    return {folder.name.partition("-")[0]: folder for folder in root.iterdir()}


@contextmanager
def serve(*sources, settings=None, with_neighbours=False, **options):
    """A client of a server of these (name, source or model)."""
    models = ServedModels()
    for name, source in sources:
        models.add(models.load(name, source))
    training = {n: open_training_images(m.prompt) for n, m in models.by_name.items()} if with_neighbours else {}
    server = Server(models, settings or ServerSettings(SMALL), training)
    with TestClient(build_app(server), "http://127.0.0.1", **options) as client:
        client.server = server
        yield client


@pytest.fixture(scope="module")
def client(runs):
    with serve(("coop", runs["coop"]), ("linear", runs["linear"]), with_neighbours=True) as client:
        yield client


@pytest.fixture(scope="module")
def lone(runs):
    """A client of a server of one model."""
    with serve(("coop", runs["coop"])) as client:
        yield client


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of three random pictures."""
    folder, random_pixels = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{k}.png" for k in range(3)]
    for path in paths:
        Image.fromarray(random_pixels.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def send(client, paths, **fields):
    return client.post("/predict", files=[("image", (p.name, p.read_bytes())) for p in paths], data=fields)


@contextmanager
def hold_model(client):
    """Let the thread of the model wait until the block ends, so that requests wait."""
    is_over = threading.Event()
    client.server.worker.call(is_over.wait)
    try:
        yield
    finally:
        is_over.set()


def wait_for_queue(client, n_images):
    """Wait until images wait for the model, by the server's own count."""
    while client.server.worker.n_queued < n_images:
        assert client.get("/health").is_success


def draw_png(width, height):
    """A PNG of one colour, which takes few bytes whatever its size."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("method", ["coop", "linear", "vpt"])
def test_answers_are_those_of_the_prompt(runs, pictures, method):
    prompt = load_prompt(runs[method])
    expected = prompt.answer([build_file_item(path) for path in pictures])
    with serve((method, runs[method])) as client:
        answer = send(client, pictures, top_k=10).json()
        encoded = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        same = client.post("/predict", json={"images": [*encoded[:2], f"data:image/png;base64,{encoded[2]}"]}).json()
    for k, prediction in enumerate(answer["predictions"]):
        assert prediction["image"] == pictures[k].name
        by_name = {entry["name"]: entry["probability"] for entry in prediction["classes"]}
        torch.testing.assert_close(torch.tensor([by_name[str(n)] for n in prompt.names]), expected.probabilities[k])
        assert prediction["label"] == str(prompt.names[int(expected.probabilities[k].argmax())])
        assert prediction["score"] == pytest.approx(float(expected.scores[k]))
        assert prediction["classes"][:5] == same["predictions"][k]["classes"]


def test_new_class_names_are_read_by_methods_that_can(client, pictures, runs):
    names = ["one", "letter a"]
    prompt = load_prompt(runs["coop"])
    expected = prompt.answer([build_file_item(pictures[0])], prompt.resolve_classes(names)).probabilities[0]
    answer = send(client, pictures[:1], model="coop", classes=names).json()["predictions"][0]
    assert {c["name"]: c["probability"] for c in answer["classes"]} == pytest.approx(
        dict(zip(names, expected.tolist(), strict=True))
    )
    stored = client.post("/classes", json={"model": "coop", "classes": names}).json()
    again = send(client, pictures[:1], model="coop", classes_id=stored["id"]).json()["predictions"][0]
    assert again == answer
    lists = client.get("/classes").json()
    assert {"model": "coop", "id": stored["id"], "classes": names} in lists
    assert [entry["model"] for entry in lists if entry["id"] == ""] == ["coop", "linear"]
    refused = send(client, pictures[:1], model="linear", classes=names)
    assert (refused.status_code, "no weights for class" in refused.json()["error"]) == (422, True)


def test_models_are_described(client):
    coop, linear = client.get("/models").json()
    assert (coop["method"], coop["reads_names"], linear["reads_names"]) == ("coop", True, False)
    assert coop["backbone"] == linear["backbone"]
    assert 0 <= coop["summary"]["accuracy"] <= 100
    assert coop["decision"] == {"temperature": 1.0, "score": "msp", "threshold": None, "labels": None}
    assert client.get("/health").json() == {"status": "ok", "models": 2}


def test_an_image_below_the_threshold_is_unknown(client, pictures):
    coop = client.server.models.by_name["coop"]
    prompt = coop.prompt.with_decision(Decision(threshold=1.1))
    client.server.models.add(ServedModel("strict", prompt, True, {}))
    try:
        prediction = send(client, pictures[:1], model="strict").json()["predictions"][0]
        assert (prediction["label"], prediction["is_unknown"]) == ("unknown", True)
        assert client.get("/models").json()[2]["decision"]["threshold"] == 1.1
    finally:
        assert client.delete("/models/strict").status_code == 200


def test_nearest_training_images(client, pictures, runs):
    training = open_training_images(load_prompt(runs["coop"]))
    buffer = io.BytesIO(training.draw_thumbnail(3))
    size = Image.open(buffer).size
    answer = client.post("/predict", files={"image": buffer.getvalue()}, data={"model": "coop", "neighbours": 2}).json()
    nearest, second = answer["predictions"][0]["neighbours"]
    assert (nearest["image"], nearest["class_name"]) == ("/neighbours/coop/3", training.classes[3])
    assert 1.001 > nearest["similarity"] > second["similarity"]
    thumbnail = client.get(nearest["image"])
    assert (thumbnail.headers["content-type"], Image.open(io.BytesIO(thumbnail.content)).size) == ("image/png", size)
    assert client.get("/neighbours/coop/99999").status_code == 404
    assert client.get("/neighbours/coop/x").status_code == 422


def test_models_are_swapped_by_name(runs, pictures, tmp_path):
    shelf = tmp_path / "shelf"
    shutil.copytree(runs["linear"], shelf / "one")
    shutil.copytree(runs["zero_shot"], shelf / "foreign")
    shutil.copytree(runs["linear"], tmp_path / "outside")
    (shelf / "link").symlink_to(tmp_path / "outside")
    (shelf / "broken").mkdir()
    with serve(("digits", runs["coop"]), settings=ServerSettings(SMALL, models_folder=shelf)) as client:
        before = client.server.models.by_name["digits"].prompt.method.backbone
        answer = client.post("/models", json={"name": "digits", "folder": "one"})
        assert (answer.status_code, answer.json()["method"]) == (200, "linear")
        assert client.server.models.by_name["digits"].prompt.method.backbone.spec == before.spec
        assert send(client, pictures[:1]).json()["model"] == "digits"
        refused = {
            "../outside": 404,
            str(tmp_path / "outside"): 404,
            "link": 404,
            "nothing": 404,
            "broken": 422,
            "foreign": 422,
        }
        for folder, status in refused.items():
            answer = client.post("/models", json={"name": "new", "folder": folder})
            assert (folder, answer.status_code) == (folder, status)
            assert str(tmp_path) not in answer.json()["error"].replace(folder, "")
        answer = client.post("/models", json={"name": "a/b", "folder": "one"})
        assert answer.status_code == 422
        assert client.delete("/models/digits").json()["models"] == 0
        assert client.delete("/models/digits").status_code == 404
        assert send(client, pictures[:1]).status_code == 422
        assert client.post("/models", json={"name": "again", "folder": "one"}).status_code == 200
        assert send(client, pictures[:1]).status_code == 200


def test_requests_that_wait_are_answered_by_the_model_they_named(runs, pictures):
    settings = ServerSettings(SMALL, models_folder=runs["linear"].parent)
    with serve(("digits", runs["coop"]), settings=settings) as client, ThreadPoolExecutor(3) as threads:
        old = send(client, pictures[:1]).json()
        with hold_model(client):
            waiting = threads.submit(send, client, pictures[:1], model="digits")
            wait_for_queue(client, 1)
            replacing = threads.submit(client.post, "/models", json={"name": "digits", "folder": runs["linear"].name})
            assert client.get("/models").json()[0]["method"] == "coop"
        assert waiting.result(60).json() == old
        assert replacing.result(60).json()["method"] == "linear"
        new = send(client, pictures[:1]).json()
        assert new["predictions"] != old["predictions"]
        with hold_model(client):
            waiting = threads.submit(send, client, pictures[:1], model="digits")
            wait_for_queue(client, 1)
            assert client.delete("/models/digits").is_success
            assert send(client, pictures[:1], model="digits").status_code == 404
        assert waiting.result(60).json() == new


def test_a_body_counts_until_its_request_is_answered(client, pictures):
    size = sum(path.stat().st_size for path in pictures)
    with ThreadPoolExecutor(1) as threads:
        with hold_model(client):
            waiting = threads.submit(send, client, pictures, model="coop")
            wait_for_queue(client, 3)
            assert client.server.bodies.n_bytes > size
        assert waiting.result(60).is_success
    assert client.server.bodies.n_bytes == 0


def test_a_model_folder_shows_the_scores_of_its_run(runs, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(SystemExit):
        main(["save", str(runs["coop"]), str(folder)])
    models = ServedModels()
    saved, trained = models.load("saved", folder), models.load("trained", runs["coop"])
    assert saved.summary == trained.summary
    assert saved.summary["accuracy"] > 0


@pytest.mark.parametrize("antialias", [True, False])
def test_an_upload_is_stored_at_the_size_of_the_tower(pictures, antialias):
    preprocessing = Preprocessing((32, 32), antialias=antialias)
    item = build_upload_item(UploadedImage("a", pictures[0].read_bytes()), 1, SMALL, preprocessing)
    resized = item.pixels.resized
    assert (resized.size if antialias else resized.shape[1:]) == (32, 32)
    expected = build_file_item(pictures[0])
    torch.testing.assert_close(item.pixels(preprocessing, None), expected.pixels(preprocessing, None))
    other = Preprocessing((16, 16), antialias=antialias)
    torch.testing.assert_close(item.pixels(other, None), expected.pixels(other, None))
    with pytest.raises(RefusedError, match="sides of a ratio"):
        build_upload_item(
            UploadedImage("strip", draw_png(1, 9999)), 1, SMALL, Preprocessing((224, 224), antialias=antialias)
        )


def test_no_model_is_loaded_without_a_folder_that_was_allowed(client):
    assert client.post("/models", json={"name": "new", "folder": "one"}).status_code == 403


def test_two_backbones_are_refused_with_both_keys(runs):
    models = ServedModels()
    models.add(models.load("coop", runs["coop"]))
    with pytest.raises(ValueError, match=r"zero_shot.*backbone.*glyph/random#.*glyph#.*second server") as caught:
        models.load("other", runs["zero_shot"])
    assert "\n" not in str(caught.value)


BOMB = draw_png(14_000, 14_000)
BAD_REQUESTS = {  # name -> (status, words of the answer, arguments of the request)
    "text": (415, "another format", {"files": {"image": ("a.txt", b"hello")}}),
    "empty file": (422, "empty file", {"files": {"image": ("a.png", b"")}}),
    "postscript": (415, "another format", {"files": {"image": ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n")}}),
    "truncated": (422, "truncated", {"files": {"image": ("a.png", draw_png(90, 90)[:-30])}}),
    "bomb": (413, "million pixels", {"files": {"image": ("bomb.png", BOMB)}}),
    "large": (413, "101 x 100", {"files": {"image": ("large.png", draw_png(101, 100))}}),
    "second is bad": (415, "image 2 ('b')", {"files": [("i", ("a", draw_png(9, 9))), ("i", ("b", b"x"))]}),
    "many files": (413, "at most 8", {"files": [("image", (f"{k}", b"x")) for k in range(9)]}),
    "10,000 images": (413, "at most 8", {"json": {"images": ["x"] * 10_000}}),
    "many class names": (
        422,
        "at most 5 names",
        {"files": {"image": draw_png(9, 9)}, "data": {"classes": [f"n{k}" for k in range(50)]}},
    ),
    "both are truncated": (
        422,
        "image 1",
        {"files": [("i", ("a", draw_png(99, 99)[:-30])), ("i", ("b", draw_png(90, 90)[:-30]))]},
    ),
    "long body": (413, "MB", {"content": b"x" * 200_001, "headers": {"Content-Type": "application/json"}}),
    "no images": (422, "images", {"json": {"images": []}}),
    "no files": (422, "images", {"files": {"model": (None, "coop")}}),
    "not base64": (422, "images.0", {"json": {"images": ["***"]}}),
    "not JSON": (422, "JSON", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    "deep JSON": (422, "JSON", {"content": b"[" * 90_000, "headers": {"Content-Type": "application/json"}}),
    "not UTF-8": (422, "JSON", {"content": b'"\xff"', "headers": {"Content-Type": "application/json"}}),
    "other JSON": (422, "images", {"json": {"image": 3}}),
    "no type": (415, "Content-Type", {"content": b"x"}),
    "no boundary": (422, "multipart", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    "broken form": (422, "", {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}),
    "unknown model": (404, "'cat'", {"files": {"image": draw_png(9, 9)}, "data": {"model": "cat"}}),
    "top_k": (422, "top_k: expected at least 1, got '0'", {"files": {"image": draw_png(9, 9)}, "data": {"top_k": "0"}}),
    "top_k of letters": (
        422,
        "top_k: expected a whole number, got 'x'",
        {"files": {"image": draw_png(9, 9)}, "data": {"top_k": "x"}},
    ),
    "images are no list": (422, "images: expected a list, got 'x'", {"json": {"images": "x"}}),
    "unknown field": (422, "colour", {"files": {"image": draw_png(9, 9)}, "data": {"colour": "red"}}),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_in_one_sentence(lone, name):
    status, words, request = BAD_REQUESTS[name]
    answer = lone.post("/predict", **request)
    error = answer.json()["error"]
    assert (answer.status_code, words in error) == (status, True), error
    assert re.fullmatch(r"[^\n]+: expected [^\n]+, got [^\n]+\.", error)
    assert len(error) < 300


@pytest.mark.parametrize(("method", "path"), [("GET", "/no/such"), ("GET", "/predict"), ("GET", "/neighbours/coop/x")])
def test_a_wrong_path_or_method_is_refused_in_one_sentence(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code in (404, 405, 422)
    assert re.fullmatch(r"'/[^\n]+: expected [^\n]+, got [^\n]+\.", answer.json()["error"])


def test_images_of_too_many_pixels_together_are_refused_before_one_is_decoded(runs):
    images = [("image", draw_png(100, 100)) for _ in range(9)]
    with serve(("coop", runs["coop"]), settings=ServerSettings(Limits(pixels=10_000))) as client:
        assert client.post("/predict", files=images[:8]).status_code == 200
        broken = [("image", draw_png(100, 100)[:-30]), *images[1:]]
        answer = client.post("/predict", files=broken)
    assert (answer.status_code, "0.08 million pixels" in answer.json()["error"]) == (413, True)


def test_one_of_several_models_must_be_named(client, pictures):
    answer = send(client, pictures[:1])
    assert (answer.status_code, "coop, linear" in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["a", " "], "empty"),
        ([], "empty"),
        (["a", "b", " a "], "'a' twice"),
        (["one", "1"], "'one' and '1' of one"),
        (list("abcdef"), "at most 5"),
        (["a"], "at least 2 names"),
        (["a", "x" * 21], "at most 20"),
        (["a", "語" * 20], "tokens"),
    ],
)
def test_bad_class_names(client, classes, words):
    image = base64.b64encode(draw_png(9, 9)).decode()
    for path, body in (("/predict", {"images": [image]}), ("/classes", {})):
        answer = client.post(path, json={"model": "coop", "classes": classes, **body})
        assert (answer.status_code, words in answer.json()["error"]) == (422, True), answer.json()


def test_classes_of_a_form_are_separated_by_commas_or_repeated(client):
    for classes in ("zero, one", ["zero", "one"]):
        answer = client.post("/predict", files={"image": draw_png(9, 9)}, data={"model": "coop", "classes": classes})
        assert {entry["name"] for entry in answer.json()["predictions"][0]["classes"]} == {"zero", "one"}


def test_a_list_of_classes_and_an_id_are_refused(client, pictures):
    assert send(client, pictures[:1], model="coop", classes=["a"], classes_id="b").status_code == 422
    assert send(client, pictures[:1], model="coop", classes_id="b").status_code == 404


def ask(app, parts, headers=()):
    """Send parts of a body without its length, as ASGI gives them; return the status and how many were read."""
    n_read, status = 0, None

    async def receive():
        nonlocal n_read
        part = next(parts, None)
        if part is None:
            await asyncio.Event().wait()
        n_read += 1
        return {"type": "http.request", "body": part, "more_body": True}

    async def send_answer(message):
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1"), *headers],
    }
    asyncio.run(app(scope, receive, send_answer))
    return status, n_read


@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=a"])
def test_a_body_without_a_length_is_read_no_further_than_allowed(client, kind):
    head = b'--a\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' if b"form" in kind else b" "
    endless = (head if k == 0 else b"x" * 10_000 for k in range(10_000))
    status, n_read = ask(client.app, endless, [(b"content-type", kind)])
    assert (status, n_read) == (413, 21)
    assert client.server.bodies.n_bytes == 0


def test_a_slow_upload_ends(runs):
    with serve(("coop", runs["coop"]), settings=ServerSettings(Limits(upload_seconds=0.01))) as client:
        assert ask(client.app, iter([b"{"]), [(b"content-type", b"application/json")])[0] == 408


def test_a_client_that_asks_too_often_waits():
    now = 0.0
    limiter = RateLimiter(rate=2, clock=lambda: now)
    for _ in range(4):
        limiter.take("a")
    with pytest.raises(RefusedError) as caught:
        limiter.take("a")
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    limiter.take("b")
    now = 0.5
    limiter.take("a")
    with pytest.raises(RefusedError):
        limiter.take("a")


def test_the_rate_is_that_of_the_routes(runs):
    with serve(("coop", runs["coop"]), settings=ServerSettings(Limits(rate=0.001))) as client:
        answers = [client.get("/health") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert int(answers[1].headers["retry-after"]) > 100


def test_other_hosts_and_sites_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert client.get("/models", headers={"Host": host}).status_code == 421
    for host in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert client.get("/models", headers={"Host": host}).status_code == 200
    assert client.get("/models", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/models", headers={"Origin": "null"}).status_code == 403
    assert client.get("/models", headers={"Origin": "http://["}).status_code == 403
    assert client.get("/models", headers={"Origin": "http://127.0.0.1"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/models").headers


def test_a_token_is_asked_for(runs, pictures):
    access = Access("a long random text", loopback_only=False)
    with serve(("coop", runs["coop"]), settings=ServerSettings(access=access)) as client:
        assert [client.get(path).status_code for path in ("/", "/health")] == [200, 200]
        for path in ("/models", "/metrics", "/openapi.json", "/docs", "/classes"):
            assert client.get(path).status_code == 401
        for value in ("Bearer another", "a long random text", "Basic a long random text", "Bearer ä"):
            answer = client.get("/models", headers={"Authorization": value.encode()})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        client.headers["Authorization"] = "Bearer a long random text"
        assert send(client, pictures[:1]).status_code == 200


class BrokenPrompt(LearnedPrompt):
    """Fails on every image, as a bug would."""

    def answer(self, items, names=None):
        raise RuntimeError("a secret of the server")


def test_a_failure_of_the_model_is_answered_with_an_id_and_the_server_goes_on(client, pictures, caplog):
    coop = client.server.models.by_name["coop"].prompt
    client.server.models.add(ServedModel("broken", BrokenPrompt(coop.method, coop.state), True, {}))
    try:
        answer = send(client, pictures[:1], model="broken")
    finally:
        client.delete("/models/broken")
    error = answer.json()["error"]
    assert (answer.status_code, "secret" in error) == (500, False)
    error_id = error.rstrip(".").rpartition(" ")[2]
    [record] = [record for record in caplog.records if error_id in record.getMessage()]
    assert "a secret of the server" in str(record.exc_info[1])
    assert send(client, pictures[:1], model="coop").status_code == 200


def test_requests_are_joined_and_one_that_fails_breaks_no_other(runs, pictures):
    prompt, sizes = load_prompt(runs["coop"]), []

    def fail(*_):
        raise RuntimeError("no pixels")

    items = [build_file_item(path) for path in pictures]
    alone = [prompt.answer([item]).probabilities for item in items]
    worker = BatchingWorker(3, 1000.0, sizes.append)  # only a full batch is answered at once
    try:
        futures = [worker.submit(prompt, None, [item]) for item in items]
        for future, expected in zip(futures, alone, strict=True):
            torch.testing.assert_close(future.result(60).probabilities, expected)
        assert sizes == [3]
        futures = [worker.submit(prompt, None, [item]) for item in (items[0], ImageItem("bad", fail), items[1])]
        assert torch.equal(futures[0].result(60).probabilities, alone[0])
        assert torch.equal(futures[2].result(60).probabilities, alone[1])
        with pytest.raises(RuntimeError, match="no pixels"):
            futures[1].result(60)
        lists = [prompt.resolve_classes(texts) for texts in (["one", "new"], ["new", "one"], ["one", "new"])]
        sizes.clear()
        futures = [worker.submit(prompt, names, [item]) for names, item in zip(lists, items, strict=True)]
        futures.append(worker.submit(prompt, lists[0], items[1:2]))
        answers = [future.result(60).probabilities for future in (futures[0], futures[2], futures[3])]
        assert sizes == [3]  # of one list; the other waits
        torch.testing.assert_close(torch.cat(answers), prompt.answer([items[0], items[2], items[1]], lists[0])[0])
        last = worker.submit(prompt, None, items[:2])
        cancelled = worker.submit(prompt, prompt.resolve_classes(["one", "new"]), items[:1])
        assert cancelled.cancel()
    finally:
        worker.close()
    torch.testing.assert_close(
        last.result(0).probabilities, torch.cat(alone[:2])
    )  # what waits is answered before the end


def test_metrics_are_counted(runs, pictures):
    with serve(("coop", runs["coop"])) as client:
        send(client, pictures)
        client.get("/no/such/path")
        client.request("BREW", "/health")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert lines['vlprompt_requests_total{method="POST",route="/predict",status="200"}'] == "1"
    assert lines['vlprompt_requests_total{method="GET",route="unmatched",status="404"}'] == "1"
    assert 'method="BREW"' not in text
    assert lines['vlprompt_request_seconds_bucket{route="/predict",le="+Inf"}'] == "1"
    assert lines['vlprompt_batch_images_bucket{le="2"}'] == "0"
    assert lines['vlprompt_batch_images_bucket{le="4"}'] == "1"
    assert lines['vlprompt_images_total{model="coop"}'] == "3"
    assert lines["vlprompt_queued_images"] == "0"


def test_the_routes_are_described_without_a_network(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    page = client.get("/docs").text
    assert all(path in page for path in schema["paths"])
    for text in (page, client.get("/").text):
        assert "http://" not in text
        assert "https://" not in text


def test_random_bytes_end_nothing(client):
    generator = random.Random(0)
    good = draw_png(50, 50)
    for _ in range(60):
        data = bytearray(good)
        for _ in range(generator.randrange(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        answer = client.post("/predict", files={"image": bytes(data)}, data={"model": "coop"})
        assert answer.status_code in (200, 413, 415, 422), answer.text
    text = b"tEXt" + b"a\0" + b"x" * 50
    chunk = len(text[4:]).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    assert client.post("/predict", files={"image": good[:33] + chunk + good[33:]}, data={"model": "coop"}).is_success
    assert json.loads(client.get("/health").text)["status"] == "ok"
