"""Take the picture of the page of `vlprompt serve` for its guide: light and dark, on a wide screen and a narrow one.

python tools/docs/server_page.py [OUT]
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.server import COMMAND, draw_digits, start_server
from PIL import Image

OUT = Path(__file__).parents[1] / "results" / "server-page.png"
DIGIT = 1  # of scikit-learn's digits: a one
COLUMNS = ((("light", 1280), ("dark", 1280)), (("light", 390),), (("dark", 390),))  # colours and width of each page
MARGIN = 24


def photograph(browser, port: int, scheme: str, width: int) -> Image.Image:
    """Return the page with the answer to a digit.

    Args:
        browser: of playwright.
        port: of the server.
        scheme: light or dark.
        width: of the window in pixels.
    """
    page = browser.new_page(viewport={"width": width, "height": 400}, color_scheme=scheme)
    page.goto(f"http://127.0.0.1:{port}/")
    page.set_input_files("#file", {"name": "one.png", "mimeType": "image/png", "buffer": draw_digits()[DIGIT]})
    page.wait_for_selector("#bars li:nth-child(10)")
    page.wait_for_selector("#near li:nth-child(6) img[src^='blob:']")
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    return picture


def join(columns: list[list[Image.Image]]) -> Image.Image:
    """Return pictures in columns on grey."""
    left, places = MARGIN, list[tuple[Image.Image, int, int]]()
    for column in columns:
        top = MARGIN
        for picture in column:
            places.append((picture, left, top))
            top += picture.height + MARGIN
        left += column[0].width + MARGIN
    bottom = max(top + picture.height for picture, _, top in places) + MARGIN
    joined = Image.new("RGB", (left, bottom), "#8a929c")
    for picture, left, top in places:
        joined.paste(picture, (left, top))
    return joined


def main(out: Path = OUT) -> None:
    """Learn two prompts, serve them, and write the picture."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        command = [COMMAND, "run", "coop,linear", "digits", "--shots", "4", "train.epochs=5", "--out", root]
        subprocess.run(command, check=True, capture_output=True)
        sources = [f"{folder.name.partition('-')[0]}={folder}" for folder in sorted(Path(root).iterdir())]
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with start_server(sources[0], [*sources[1:], "--neighbours"]) as (_, port):
            columns = [[photograph(browser, port, *screen) for screen in column] for column in COLUMNS]
        join(columns).quantize(192, dither=Image.Dither.NONE).save(out, optimize=True)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
