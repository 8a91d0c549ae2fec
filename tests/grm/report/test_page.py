"""The HTML page: complete, self-contained, safe to put any text into."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from grm.data.video import encode_jpeg
from grm.errors import OutputError, TraceError
from grm.report import Clip, Curve, Event, Film, RunPage, write_page
from grm.report.page import moving_average

VOID = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Element counts, text outside scripts, and the tags left open or closed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script" and ("id", "run") in attrs:
            self.open[-1] = "run"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        left = self.open.pop()
        assert left == tag or (left == "run" and tag == "script"), f"</{tag}> closes <{left}>"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "run":
            self.data += data
        elif "script" not in self.open and "style" not in self.open:
            self.text += data


def read(path: Path) -> tuple[Reader, dict]:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [], "elements left open"
    return reader, json.loads(reader.data)


def clip(steps: int = 5, **changes) -> Clip:
    rng = np.random.default_rng(0)
    potential = np.linspace(0.0, 1.0, steps)
    judged = np.ones(steps, bool)
    judged[1] = False
    # Smooth pictures, as a camera gives: JPEG is not asked to keep noise.
    shade = np.linspace(0, 200, steps)[:, None, None, None]
    views = {
        "front": np.broadcast_to(shade + 20, (steps, 24, 32, 3)).astype(np.uint8),
        "wrist": np.broadcast_to(220 - shade, (steps, 16, 16, 3)).astype(np.uint8),
    }
    defaults = {
        "title": "Expert demonstration",
        "views": views,
        "rate_hz": 10.0,
        "potential": np.where(judged, potential, np.nan),
        "spread": np.where(judged, rng.uniform(0, 0.1, steps), np.nan),
        "judged": judged,
        "outcome": True,
    }
    return Clip(**(defaults | changes))


def page(**changes) -> RunPage:
    curve = Curve(arm="shaped", rollout=np.arange(1, 4), success=np.array([0.0, 1.0, 1.0]))
    defaults = {
        "title": "Unlock the door",
        "subtitle": "grm demo",
        "verdict": "It learned.",
        "clips": [clip()],
        "curves": [curve],
        "table_headers": ["arm", "success", "first"],
        "table_rows": [["shaped", 0.123456, "rollout 2"], ["sparse", "–", "–"]],
        "figure": '<svg width="9" height="9"></svg>',
        "settings": {"seed": 3, "weight": 0.5},
        "notes": ["One seed is one seed."],
    }
    return RunPage(**(defaults | changes))


def test_everything_given_is_on_the_page(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "deep" / "run.html")
    reader, data = read(tmp_path / "deep" / "run.html")
    for text in ("Unlock the door", "grm demo", "It learned.", "0.1235", "rollout 2", "seed", "One seed is one seed."):
        assert text in reader.text
    assert data["curves"] == [
        {"arm": "shaped", "rollout": [1, 2, 3], "success": [0, 1, 1], "average": [0, 0.5, 0.6667]}
    ]
    [shown] = data["clips"]
    assert shown["title"] == "Expert demonstration"
    assert shown["outcome"] is True
    assert shown["rate_hz"] == 10
    assert shown["potential"] == [0, None, 0.5, 0.75, 1], "an abstention is null, never a number"
    assert shown["spread"][1] is None
    assert shown["truth"] is None
    assert shown["success"] is None


def test_events_and_rows_lead_into_the_clips(tmp_path: Path) -> None:
    fell = Event(text="Φ fell by 0.3", begin=2, end=3)
    clips = [clip(), clip(events=[fell])]
    write_page(page(clips=clips, rows_of_clips=[1, 0]), tmp_path / "run.html")
    reader, data = read(tmp_path / "run.html")
    assert [each["events"] for each in data["clips"]] == [[], [{"text": "Φ fell by 0.3", "begin": 2, "end": 3}]]
    assert [value for name, value in reader.attributes if name == "data-clip"] == ["1", "0"], "in the rows' order"
    for wrong in (Event(text="x", begin=-1, end=2), Event(text="x", begin=3, end=2), Event(text="x", begin=0, end=5)):
        with pytest.raises(TraceError, match=r"event 'x' .* from 0 to 4"):
            clip(events=[wrong])
    for rows in ([0], [0, 2]):
        with pytest.raises(TraceError, match="rows_of_clips"):
            page(clips=clips, rows_of_clips=rows)


def test_a_film_goes_onto_the_page_as_it_is(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 24, 32, 3), np.uint8)
    film = Film([encode_jpeg(frame, 95) for frame in frames], 24, 32)
    write_page(page(clips=[clip(views={"front": film})]), tmp_path / "run.html")
    [view] = read(tmp_path / "run.html")[1]["clips"][0]["views"]
    assert [base64.b64decode(data) for data in view["frames"]] == list(film.pictures)
    assert (view["height"], view["width"]) == (24, 32)
    with pytest.raises(TraceError, match="has 4 frames for 5 potentials"):
        clip(views={"front": Film(film.pictures[:4], 24, 32)})


def test_the_pictures_decode_back_to_the_frames(tmp_path: Path) -> None:
    original = clip(steps=7)
    write_page(page(clips=[original]), tmp_path / "run.html")
    _, data = read(tmp_path / "run.html")
    views = {view["name"]: view for view in data["clips"][0]["views"]}
    assert list(views) == ["front", "wrist"]
    for name, view in views.items():
        assert len(view["frames"]) == 7
        assert (view["height"], view["width"]) == original.views[name].shape[1:3]
        for encoded, frame in zip(view["frames"], original.views[name], strict=True):
            jpeg = np.frombuffer(base64.b64decode(encoded), np.uint8)
            decoded = cv2.cvtColor(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            np.testing.assert_allclose(decoded.astype(int), frame.astype(int), atol=6)


def test_colours_are_not_swapped(tmp_path: Path) -> None:
    red = np.zeros((1, 16, 16, 3), np.uint8)
    red[..., 0] = 250
    one = np.array([0.5])
    series = {"potential": one, "spread": 0 * one, "judged": one > 0}
    write_page(
        page(clips=[Clip(title="r", views={"v": red}, rate_hz=1.0, outcome=False, **series)]), tmp_path / "run.html"
    )
    _, data = read(tmp_path / "run.html")
    jpeg = np.frombuffer(base64.b64decode(data["clips"][0]["views"][0]["frames"][0]), np.uint8)
    blue, _, red_back = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[8, 8]
    assert red_back > 230
    assert blue < 20


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "run.html")
    reader, _ = read(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[\w.-]+\.\w+/|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket", text)
    sources = [value for name, value in reader.attributes if name in ("src", "href", "action")]
    assert all(value and value.startswith("data:") for value in sources)
    assert any(value and "default-src 'none'" in value for name, value in reader.attributes if name == "content")


HOSTILE = "</script><script>alert(1)</script><!-- {{data}} & \"quoted\" 'too'"


def test_no_text_can_become_markup(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "plain.html")
    plain, _ = read(tmp_path / "plain.html")
    hostile = page(
        title=HOSTILE,
        subtitle=HOSTILE,
        verdict=HOSTILE,
        clips=[clip(title=HOSTILE, views={HOSTILE: clip().views["front"]})],
        curves=[Curve(arm=HOSTILE, rollout=np.arange(2), success=np.zeros(2))],
        table_headers=[HOSTILE, "b", "c"],
        table_rows=[[HOSTILE, HOSTILE, 1.0], ["x", "y", 2.0]],
        settings={HOSTILE: HOSTILE, "b": 1},
        notes=[HOSTILE],
    )
    write_page(hostile, tmp_path / "run.html")
    reader, data = read(tmp_path / "run.html")
    assert reader.seen == plain.seen, "hostile text added elements"
    # <title>, eyebrow, heading, verdict, header cell, two cells, setting and its value, note: ten slots.
    assert reader.text.count(HOSTILE) == 10
    assert data["clips"][0]["title"] == HOSTILE
    assert data["clips"][0]["views"][0]["name"] == HOSTILE
    assert data["curves"][0]["arm"] == HOSTILE
    assert "<" not in reader.data


def test_sections_without_content_are_hidden(tmp_path: Path) -> None:
    write_page(RunPage(title="t", subtitle="s", verdict="v"), tmp_path / "run.html")
    reader, data = read(tmp_path / "run.html")
    assert ("hidden", None) in reader.attributes
    assert sum(name == "hidden" for name, _ in reader.attributes) == 6
    assert data["clips"] == []
    write_page(page(), tmp_path / "full.html")
    reader, _ = read(tmp_path / "full.html")
    assert not any(name == "hidden" for name, _ in reader.attributes)


def test_every_button_has_a_name(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    buttons = re.findall(r"<button[^>]*>", text)
    assert len(buttons) == 4
    # The speed button's name carries the current speed, so the script sets it.
    assert all("aria-label" in button or 'id="speed"' in button for button in buttons)
    assert "$('speed').setAttribute('aria-label'" in text
    assert re.search(r'<input type="range"[^>]*aria-label=', text)


def test_numbers_are_set_right_and_words_left(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert '<td class="number">0.1235</td><td>rollout 2</td>' in text
    assert '<td class="number">–</td><td>–</td>' in text, "a dash follows its column"


def test_a_page_too_heavy_is_encoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    heavy = page(clips=[clip(views={"v": noise})])
    write_page(heavy, tmp_path / "large.html")
    monkeypatch.setattr("grm.report.page.PICTURE_BUDGET_BYTES", 20_000)
    write_page(heavy, tmp_path / "small.html")
    _, large = read(tmp_path / "large.html")
    _, small = read(tmp_path / "small.html")
    sizes = [sum(map(len, data["clips"][0]["views"][0]["frames"])) for data in (large, small)]
    assert sizes[0] > 20_000 >= sizes[1]


def test_moving_average_by_hand() -> None:
    np.testing.assert_allclose(moving_average(np.array([1.0, 0, 0, 1, 1]), 2), [1, 0.5, 0, 0.5, 1])
    np.testing.assert_allclose(moving_average(np.array([1.0, 0, 1]), 20), [1, 1 / 2, 2 / 3])


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(TraceError, match="4 frames for 5 potentials"):
        clip(views={"front": np.zeros((4, 8, 8, 3), np.uint8)})
    with pytest.raises(TraceError, match=r"truth .* expected \(5,\)"):
        clip(truth=np.zeros(6))
    with pytest.raises(TraceError, match="judged of clip"):
        clip(judged=np.ones(4, bool))
    with pytest.raises(TraceError, match="no views"):
        clip(views={})
    with pytest.raises(TraceError, match="RGB in uint8"):
        clip(views={"front": np.zeros((5, 8, 8, 3))})
    with pytest.raises(TraceError, match="one per header"):
        page(table_headers=["only"])


def test_numbers_that_are_not_potentials_are_refused() -> None:
    with pytest.raises(TraceError, match=r"outside \[0, 1\]"):
        clip(potential=np.array([0, 0.5, 1.5, 0, 0]))
    with pytest.raises(TraceError, match=r"outside \[0, 1\]"):
        clip(potential=np.array([0, 0.5, np.nan, 0, 0]))
    with pytest.raises(TraceError, match="rate"):
        clip(rate_hz=0.0)


def test_curves_that_are_not_curves_are_refused() -> None:
    with pytest.raises(TraceError, match="do not increase"):
        Curve(arm="a", rollout=np.array([2, 1]), success=np.zeros(2))
    with pytest.raises(TraceError, match="one length"):
        Curve(arm="a", rollout=np.array([1, 2]), success=np.zeros(3))
    with pytest.raises(TraceError, match="success outside"):
        Curve(arm="a", rollout=np.array([1, 2]), success=np.array([0.0, np.nan]))


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_page(page(), tmp_path / "file" / "run.html")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_page(page(), tmp_path)
