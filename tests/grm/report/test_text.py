"""The page of solutions, as text and in a real browser: Debian's Chromium, where there is one."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from grm.data.stepwise import LabelledSolution
from grm.report.text import worst_first, write_text_page
from grm.reward import ScoredJudgement, ScoreKind
from grm.text.generative import CritiquedJudgement
from grm.text.scoring import sum_up

from .test_browser import CHROMIUM, browser

__all__ = ["browser"]

HOSTILE = "</script><script>alert(1)</script><!-- {{title}} \"' & <b>"


def scored(scores, *, name="", first_error=None, critique="", kind=ScoreKind.CORRECTNESS, text="a step"):
    values = np.array(scores, float)
    labels = [None] * len(values)
    solution = LabelledSolution(
        prompt=f"{text} of {name}",
        steps=tuple(f"{text} {i}" for i in range(len(values))),
        labels=tuple(labels),
        first_error=first_error,
        source=name,
    )
    parts = {"potential": np.clip(values, 0, 1), "spread": values * 0, "judged": ~np.isnan(values)}
    if not critique:
        return sum_up(solution, ScoredJudgement(**parts, score=values, kind=kind))
    return sum_up(
        solution,
        CritiquedJudgement(**parts, score=values, kind=kind, critiques=(critique,), n_samples=3, n_invalid=1),
    )


SOLUTIONS = [
    scored([0.9, 0.9], name="fine", first_error=-1),
    scored([0.9, 0.1, 0.8], name="wrong", first_error=2, critique="Step 1: good.\nStep 2: 3 is not 4."),
    scored([0.9, np.nan], name="silent", critique="no idea"),
]


def write(path: Path, solutions=SOLUTIONS, **settings) -> Path:
    write_text_page(path, solutions, title="T", command="grm text score", numbers=[("steps", 7)], **settings)
    return path


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)

    def handle_data(self, data):
        self.text += data


def test_worst_first_and_the_silent_last():
    assert [one.solution.source for one in worst_first(SOLUTIONS)] == ["wrong", "fine", "silent"]


def test_all_is_said(tmp_path):
    text = Reader(write(tmp_path / "i.html").read_text(encoding="utf-8")).text
    for said in (
        "correctness: P(this step is right)",
        "judge: first error",
        "label: first error",
        "3 is not 4.",
        "no idea",
        "not as labelled",
        "1 of 2 steps abstained",
        "1 without a decision that could be read (left out, not counted as 0)",
        "product",
        "All 3",
        "Error found 1",
        "Not as labelled 1",
        "Abstained 1",
    ):
        assert said in text, said
    advantage = write(tmp_path / "a.html", [scored([-0.5, 0.5], kind=ScoreKind.ADVANTAGE)])
    assert "from −1 to 1" in Reader(advantage.read_text(encoding="utf-8")).text


def test_hostile_text_adds_nothing(tmp_path):
    plain = [scored([0.2, 0.9], name="x", critique="Step 1: x"), scored([0.3], name="x", critique="x")]
    bad = [
        scored([0.2, 0.9], name=HOSTILE, text=HOSTILE, critique=f"Step 1: {HOSTILE}"),
        scored([0.3], name=HOSTILE, text=HOSTILE, critique=HOSTILE),
    ]
    pages = [
        Reader(write(tmp_path / f"{k}.html", one, settings={"a": note}, notes=[note]).read_text(encoding="utf-8"))
        for k, (one, note) in enumerate(((plain, "x"), (bad, HOSTILE)))
    ]
    assert pages[0].seen == pages[1].seen
    assert pages[1].text.count(HOSTILE) >= 8


def test_only_the_worst_of_many_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("grm.report.text.SHOWN", 1)
    reader = Reader(write(tmp_path / "i.html").read_text(encoding="utf-8"))
    assert "The worst 1 of 3 solutions are shown" in reader.text
    assert "a step of fine" not in reader.text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one")
def test_in_a_browser(browser, tmp_path):
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(write(tmp_path / "i.html").as_uri())

    heads = page.locator(".solution > summary").all_inner_texts()
    assert ["wrong" in heads[0], "fine" in heads[1], "silent" in heads[2]] == [True] * 3
    steps = page.locator(".solution").first.locator(".step")
    colours = [steps.nth(i).evaluate("e => getComputedStyle(e).backgroundColor") for i in range(3)]
    assert len(set(colours)) == 3, "each has the colour of its score"
    hatched = page.locator(".solution").nth(2).locator(".step").nth(1)
    assert "repeating-linear-gradient" in hatched.evaluate("e => getComputedStyle(e).backgroundImage")
    cells = page.locator(".strip i")
    backgrounds = [cells.nth(i).evaluate("e => getComputedStyle(e).backgroundImage") for i in range(cells.count())]
    assert [image != "none" for image in backgrounds] == [False] * 6 + [True]

    page.keyboard.press("j")
    assert "wrong" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert page.locator(".solution").nth(1).get_attribute("open") is None, "the keyboard closes it"
    page.keyboard.press("k")
    assert "wrong" in page.evaluate("document.activeElement.innerText")
    page.get_by_role("button", name="Abstained").press("Enter")
    assert page.locator(".solution:visible").count() == 1
    page.get_by_role("button", name="All").click()
    assert page.locator(".solution:visible").count() == 3

    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert said == []
