"""The page of the server in a real browser: images, class names, bars, neighbours, a token; light, dark, narrow."""

import base64
import io
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from browsers import IN_A_BROWSER
from PIL import Image
from sklearn.datasets import load_digits

from vlprompt.cli.app import main
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.server.app import build_app
from vlprompt.experiments.server.guard import Access
from vlprompt.experiments.server.models import ServedModel, ServedModels
from vlprompt.experiments.server.neighbours import open_training_images
from vlprompt.experiments.server.service import Server, ServerSettings

pytestmark = IN_A_BROWSER
TOKEN = "a long random text"
MAKE_FILE = """
const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "a.png", {type: "image/png"}));
"""


@pytest.fixture(scope="module")
def digit():
    """A handwritten one as PNG."""
    buffer = io.BytesIO()
    pixels = (load_digits().images[1] * 15).astype(np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with pytest.raises(SystemExit):
        main(["run", "coop,linear", "digits", "--shots", "4", "train.epochs=5", "--out", str(root)])
    models = ServedModels()
    for folder in sorted(root.iterdir()):
        models.add(models.load(folder.name.partition("-")[0], folder))
    strict = models.by_name["coop"].prompt.with_decision(Decision(threshold=1.5))
    models.add(ServedModel("strict", strict, True, {}))
    return models


@contextmanager
def serve(models, settings, with_neighbours):
    """The address of a server that runs in a thread."""
    import uvicorn

    training = {"coop": open_training_images(models.by_name["coop"].prompt)} if with_neighbours else {}
    with socket.create_server(("127.0.0.1", 0)) as opened:
        config = uvicorn.Config(build_app(Server(models, settings, training)), log_config=None, log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(models):
    with serve(models, ServerSettings(), True) as address:
        yield address


@pytest.fixture
def expected_errors():
    """Words of errors in the console that a test provokes."""
    return []


@pytest.fixture
def page(browser, expected_errors):
    """A page; the test fails for an error in its console, and for a request to another host."""
    page, faults = browser.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    own = ("http://127.0.0.1:", "blob:", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
    yield page
    page.close()
    assert [fault for fault in faults if not any(words in fault for words in expected_errors)] == []


def choose(page, digit):
    page.set_input_files("#file", {"name": "one.png", "mimeType": "image/png", "buffer": digit})


def read_bars(page):
    """Return the classes with their widths in percent."""
    rows = page.locator("#bars li")
    return {
        row.locator("span").first.inner_text(): float(
            row.locator(".bar").evaluate("bar => parseFloat(bar.style.width)")
        )
        for row in rows.all()
    }


def test_an_image_is_chosen_and_class_names_are_typed(page, address, digit):
    page.goto(address)
    choose(page, digit)
    page.wait_for_selector("#bars li:nth-child(10)")
    assert page.inner_text("#answer") == "one"
    bars = read_bars(page)
    assert max(bars, key=bars.get) == "one"
    assert sum(bars.values()) == pytest.approx(100, abs=0.1)
    page.fill("#classes", "one\nletter l, letter q")
    page.click("#ask")
    page.wait_for_selector("#bars li:nth-child(3):last-child")
    assert set(read_bars(page)) == {"one", "letter l", "letter q"}
    assert page.locator("#near img").count() == 6
    picture = page.locator("#near img[src^='blob:']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
    assert "training image of one" in picture.get_attribute("alt")


def test_class_names_are_shown_as_text(page, address, digit):
    names = ["<img src=x onerror=alert(1)>", "</script><b>b</b>", "שלום 1", "\u202eabc", "\U0001f600" * 3]
    page.goto(address)
    choose(page, digit)
    page.wait_for_selector("#bars li:nth-child(10)")
    page.fill("#classes", "\n".join(names))
    page.click("#ask")
    page.wait_for_selector("#bars li:nth-child(5):last-child")
    assert set(page.locator("#bars li .row span:first-child").all_text_contents()) == set(names)
    assert page.locator("#bars img, #bars b, #answer *").count() == 0
    assert (
        page.locator("#bars li .row").first.evaluate("row => getComputedStyle(row.firstChild).unicodeBidi") == "isolate"
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(page, address, digit, kind):
    page.goto(address)
    page.wait_for_selector("#model option", state="attached")
    event = "new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true})"
    if kind == "paste":
        event = "new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true})"
    page.evaluate(
        f"encoded => {{ {MAKE_FILE} document.body.dispatchEvent({event}); }}", base64.b64encode(digit).decode()
    )
    page.wait_for_selector("#bars li:nth-child(10)")
    assert page.inner_text("#answer") == "one"


def test_models_that_read_no_names_and_unknown_images(page, address, digit):
    page.goto(address)
    choose(page, digit)
    page.wait_for_selector("#bars li:nth-child(10)")
    page.select_option("#model", "linear")
    assert page.is_disabled("#classes")
    assert "Not there" in page.inner_text("#near-hint")
    page.select_option("#model", "strict")
    page.wait_for_selector("#answer.unknown")
    assert page.inner_text("#answer") == "unknown"
    assert "below the threshold" in page.inner_text("#score")


def test_what_is_no_image_is_explained(page, address, digit, expected_errors):
    expected_errors.append("415")
    page.goto(address)
    choose(page, b"no image")
    page.wait_for_selector("#error:not([hidden])")
    assert "another format" in page.inner_text("#error")
    choose(page, digit)
    page.wait_for_selector("#bars li:nth-child(10)")
    assert page.is_hidden("#error")


def test_the_keyboard_reaches_everything(page, address, digit):
    page.on("filechooser", lambda chooser: None)  # asked for in time: the browser is told without an answer
    page.goto(address)
    choose(page, digit)
    page.wait_for_selector("#bars li:nth-child(10)")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["drop", "model", "classes", "ask"]
    page.focus("#drop")
    with page.expect_file_chooser():
        page.keyboard.press("Enter")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_and_is_readable(browser, address, digit, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(address)
    choose(page, digit)
    page.fill("#classes", "x" * 40 + ", one")
    page.click("#ask")
    page.wait_for_selector("#bars li:nth-child(2):last-child")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    text, ground = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert (text < ground) == (scheme == "light")
    page.close()


def test_the_page_asks_for_the_token(page, models, digit, expected_errors):
    expected_errors.append("401")
    with serve(models, ServerSettings(access=Access(TOKEN)), False) as address:
        page.goto(address)
        page.fill("#token", "another")
        page.keyboard.press("Enter")
        page.wait_for_selector("#gate-error:has-text('another token')")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        choose(page, digit)
        page.wait_for_selector("#bars li:nth-child(10)")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert page.is_hidden("#gate")
