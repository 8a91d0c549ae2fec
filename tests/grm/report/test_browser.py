"""The page in a real browser: Debian's Chromium, where there is one."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from grm.inspection import Inspection
from grm.report.inspection import FilmMaker, kept_frames, write_inspection
from grm.reward import Frame

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one")

LENGTH = 60


def episode(number: int, *, falls: bool) -> tuple[Inspection, dict]:
    """Sixty frames from two cameras whose brightness is the number of the frame."""
    rise = np.linspace(0, 0.95, LENGTH)
    if falls:
        rise[30:40] -= 0.4
    maker = FilmMaker(("front", "wrist"), kept_frames(LENGTH), 60, 5000)
    for t in range(LENGTH):
        image = np.full((60, 80, 3), 4 * t, np.uint8)
        maker.see(t, Frame(views={"front": image, "wrist": image[:, :60]}, time=t / 10))
    one = Inspection(
        name=f"episode {number}",
        time_s=np.arange(LENGTH) / 10,
        frame=np.arange(LENGTH),
        potential=rise,
        spread=np.full(LENGTH, 0.05),
        judged=np.ones(LENGTH, bool),
        incremental=rise,
        forward=rise,
        backward=rise,
        absolute=rise,
        success=rise,
        succeeded=True,
    )
    return one, maker.films()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Twenty episodes; the one that lost progress is the worst and so comes first."""
    episodes = [episode(number, falls=number == 7) for number in range(20)]
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_inspection(
        path,
        [one for one, _ in episodes],
        {one.name: films for one, films in episodes},
        command="grm inspect everything",
        settings={"model": "packaged"},
        notes=["A note."],
    )
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, written: Path) -> Iterator[Page]:
    """The page, opened; no error may have been said by the time it is closed."""
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        # That of this test's own looking at canvases apart.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            said.append(message.text)

    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tab = context.new_page()
    tab.on("console", listen)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    tab.goto(written.as_uri())
    yield tab
    context.close()
    assert said == []


def frame_shown(page: Page) -> int:
    return int(page.input_value("#scrub"))


def brightness(page: Page, view: int = 0) -> float:
    """Of the middle of a camera's picture, as a number of the frame: what is seen, and not what is said."""
    script = (
        "v => [...document.querySelectorAll('#views canvas')][v].getContext('2d').getImageData(20, 20, 1, 1).data[0]"
    )
    return page.evaluate(script, view) / 4


def wait_for_picture(page: Page, number: int) -> None:
    end = time.monotonic() + 5
    while abs(brightness(page) - number) > 1 and time.monotonic() < end:
        page.wait_for_timeout(20)
    assert brightness(page, 0) == pytest.approx(number, abs=1)
    assert brightness(page, 1) == pytest.approx(number, abs=1), "all cameras at the same instant"


def test_it_opens_with_the_worst_and_everything_said(page: Page) -> None:
    assert page.locator("#tabs button").count() == 20
    assert "episode 7" in page.locator("#tabs [aria-selected=true]").inner_text()
    assert page.locator("#views canvas").count() == 2
    assert page.locator("#events button").all_inner_texts() == ["Φ fell by 0.38 from 2.9 to 3.0 s"]
    assert "20 episodes inspected" in page.locator("h1").inner_text()
    assert page.locator(".figure svg polyline").count() > 0
    assert frame_shown(page) == LENGTH - 1
    wait_for_picture(page, LENGTH - 1)


def test_a_click_on_a_regression_shows_it(page: Page) -> None:
    page.click("#events button")
    assert frame_shown(page) == 29
    wait_for_picture(page, 29)
    assert "2.9 /" in page.locator("#clock").inner_text()
    page.keyboard.press("End")
    page.keyboard.press("n")
    assert frame_shown(page) == 29
    assert page.locator("#phi .event").count() == 1


def test_it_plays_and_stops(page: Page) -> None:
    page.keyboard.press("Home")
    page.click("#play")
    page.wait_for_timeout(700)
    page.keyboard.press("k")  # means nothing
    page.click("#play")
    stopped = frame_shown(page)
    assert 2 <= stopped < LENGTH - 1, "ten a second"
    page.wait_for_timeout(300)
    assert frame_shown(page) == stopped
    wait_for_picture(page, stopped)


def test_it_is_scrubbed_on_the_curve_and_the_slider(page: Page) -> None:
    page.locator("#phi").scroll_into_view_if_needed()
    box = page.locator("#phi").bounding_box()
    assert box is not None
    middle = box["x"] + 30 + (box["width"] - 38) / 2
    page.mouse.move(middle, box["y"] + 60)
    page.mouse.down()
    assert frame_shown(page) in (29, 30)
    page.mouse.move(middle + (box["width"] - 38) / 4, box["y"] + 60, steps=10)
    page.mouse.up()
    there = frame_shown(page)
    assert there in (44, 45)
    wait_for_picture(page, there)
    page.locator("#scrub").fill("12")
    wait_for_picture(page, 12)


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Home")
    for key, expected in (("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10), ("End", LENGTH - 1)):
        page.keyboard.press(key)
        assert frame_shown(page) == expected
    page.locator("#tabs [aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    assert "episode 0" in page.locator("#tabs [aria-selected=true]").inner_text()
    assert page.evaluate("document.activeElement.id") == "tab-1"
    assert page.locator("#events").is_hidden(), "nothing happened there"


def test_the_table_leads_to_the_film(page: Page) -> None:
    button = page.locator("tbody button").nth(5)
    name = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    assert name in page.locator("#tabs [aria-selected=true]").inner_text()
    assert page.locator("#clip").is_visible()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_hangs_over_the_edge(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#views canvas").first.is_visible()
    assert page.locator("#play").bounding_box()["height"] >= 40, "large enough for a thumb"
