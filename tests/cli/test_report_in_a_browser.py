"""The page of `vlprompt report` in a browser: sorted, filtered, by keyboard, light and dark, without a network."""

import pytest
from browsers import IN_A_BROWSER

from vlprompt.cli.app import main

pytestmark = IN_A_BROWSER
TOOLS = {"Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


def call(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    assert not exit_.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = folder / "runs"
    options = ["--shots", "1,2", "--seed", "1,2,3", "train.epochs=1", "--out", runs]
    call("run", "zero_shot,coop", "digits", *options)
    call("report", runs, "--out", folder / "report", "--single", folder / "page.html")
    return folder


@pytest.fixture
def open_page(browser, folder):
    """A function that opens a page; the test fails for an error in its console, and for a request to a host."""
    contexts, faults = [], []

    def open_page(name="report/index.html", **options):
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = ("file://", "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.goto((folder / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def read_column(page, table, column):
    rows = page.locator(f"#table-{table} tbody tr:not([hidden])")
    return [row.locator("th, td").nth(column).inner_text() for row in rows.all()]


def draw_all(page):
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('[data-plot]:not([data-drawn])').length === 0")


def test_rows_are_sorted_by_keyboard(open_page):
    page = open_page()
    value = page.locator("#table-runs thead th", has_text="value")
    index = page.locator("#table-runs thead th").all_inner_texts().index("value")
    value.get_by_role("button").focus()
    page.keyboard.press("Enter")
    numbers = [float(text) for text in read_column(page, "runs", index)]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 1
    assert value.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert [float(text) for text in read_column(page, "runs", index)] == sorted(numbers)
    assert value.get_attribute("aria-sort") == "ascending"
    assert "sorted by value, ascending" in page.locator("[role=status]").inner_text()
    method = page.locator("#table-runs thead th", has_text="method").get_by_role("button")
    method.click()
    assert read_column(page, "runs", 3) == ["coop"] * 6 + ["zero_shot"] * 6
    assert value.get_attribute("aria-sort") is None


def test_rows_are_filtered(open_page):
    page = open_page()
    box = page.locator("#table-runs input[type=search]")
    box.fill("COOP seed2")
    assert read_column(page, "runs", 3) == ["coop"] * 2
    assert page.locator("[role=status]").inner_text() == "2 of 12 rows"
    box.fill("")
    assert len(read_column(page, "runs", 3)) == 12


@pytest.mark.parametrize("name", ["report/index.html", "page.html"])
def test_figures_are_drawn_and_lines_chosen(open_page, name):
    page = open_page(name)
    draw_all(page)
    figure = page.locator("figure[id^=figure-shots]")
    assert figure.locator(".plot svg.main-svg").count() > 0
    assert not figure.locator(".picture").is_visible()
    tools = figure.get_by_role("group", name="Interactive figure").get_by_role("button")
    assert {tool.get_attribute("aria-label") for tool in tools.all()} == TOOLS  # none that sends the figure elsewhere
    figure.get_by_text("Choose what is shown").click()
    box = figure.get_by_label("zero_shot")
    box.uncheck()
    plot = "document.querySelector('figure[id^=figure-shots] .plot')"
    page.wait_for_function(f"{plot}.data.some((trace) => trace.visible === 'legendonly')")
    box.check()
    page.wait_for_function(f"{plot}.data.every((trace) => trace.visible !== 'legendonly')")


def test_colours_follow_the_system_and_the_switch(open_page):
    page = open_page(color_scheme="dark")
    draw_all(page)

    def read():
        texts = page.evaluate("[...document.querySelectorAll('[data-drawn]')].map((plot) => plot.layout.font.color)")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), set(texts)

    dark = read()
    assert dark == ("rgb(18, 22, 31)", {"rgb(230, 233, 240)"})
    page.get_by_label("Colours").select_option("light")
    page.wait_for_function("document.querySelector('[data-drawn]').layout.font.color === 'rgb(27, 33, 48)'")
    assert read() == ("rgb(255, 255, 255)", {"rgb(27, 33, 48)"})
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.get_by_label("Colours").select_option("system")
    draw_all(page)
    page.wait_for_function("document.querySelector('[data-drawn]').layout.font.color === 'rgb(230, 233, 240)'")
    assert read() == dark


@pytest.mark.parametrize("width", [360, 700, 1400])
def test_nothing_is_wider_than_the_window(open_page, width):
    page = open_page()
    page.set_viewport_size({"width": width, "height": 800})
    draw_all(page)
    page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_print_has_pictures_and_all_rows(open_page):
    page = open_page(color_scheme="dark")
    draw_all(page)
    page.emulate_media(media="print", color_scheme="dark")
    figure = page.locator("figure").first
    assert figure.locator(".picture").is_visible()
    assert not figure.locator(".plot").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"


def test_without_scripts_everything_is_readable(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("figure .picture svg").first.is_visible()
    assert page.locator("#table-runs tbody tr").count() == 12
    assert page.locator("button").count() == 0
    assert page.get_by_text("Without JavaScript").is_visible()


def test_landmarks_names_and_the_order_of_focus(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.get_by_role("navigation", name="Contents").count() == 1
    assert page.get_by_role("button", name="value", exact=True).count() == 1  # without the arrow beside it
    names = page.locator("main section").evaluate_all(
        "all => all.map((one) => document.getElementById(one.getAttribute('aria-labelledby')).textContent)"
    )
    links = page.get_by_role("navigation").get_by_role("link").all_inner_texts()
    assert names == links
    named = "one.labels?.length || one.textContent.trim() || one.ariaLabel"
    unnamed = f"all => all.filter((one) => !({named})).map((one) => one.outerHTML)"
    assert page.locator("input, select, button").evaluate_all(unnamed) == []
    assert page.locator("table thead th:not([scope])").count() == 0
