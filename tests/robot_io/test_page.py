import json
import re
import shutil
import time

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright
from starlette.testclient import TestClient

from robot_io import page
from robot_io.actor import SAYABLE
from robot_io.cameras import to_jpeg
from robot_io.page import make_page
from robot_io.session import Session

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "a-token-of-the-page"


class Pretended:
    pictures = {"front": b"\xff\xd8jpeg"}  # noqa: RUF012

    def __init__(self) -> None:
        self.pressed: list[str] = []

    def press(self, key: str) -> None:
        self.pressed.append(key)

    def state(self) -> dict:
        return {"phase": "running"}


def test_before_anybody_has_said_anything_all_that_the_page_draws_is_there():
    state = Session(robot=None, learner=None).state()
    for path in re.findall(r"\bs\.(\w+)", page._HTML.read_text()):
        assert path in state, path
    json.dumps(state)


def browser(session: Pretended) -> TestClient:
    return TestClient(make_page(session, TOKEN), base_url="http://127.0.0.1:8770")


def test_the_page_its_state_and_its_pictures():
    client = browser(Pretended())
    page = client.get("/")
    assert TOKEN in page.text
    assert "{{token}}" not in page.text
    assert client.get("/state").json() == {"phase": "running"}
    assert client.get("/view/front.jpg").content == b"\xff\xd8jpeg"
    assert client.get("/view/other.jpg").status_code == 404


def test_a_key_needs_the_pages_token_and_a_meaning():
    session = Pretended()
    client = browser(session)
    assert client.post("/key", json={"key": "s"}).status_code == 403
    assert client.post("/key", json={"key": "s"}, headers={"X-Session-Token": "other"}).status_code == 403
    with_token = {"X-Session-Token": TOKEN}
    for body in ({"key": "x"}, {}, [], "s"):
        assert client.post("/key", json=body, headers=with_token).status_code == 422
    assert client.post("/key", content=b"{", headers=with_token).status_code == 422
    assert session.pressed == []
    for key in ("s", "escape", "space", "enter"):
        assert client.post("/key", json={"key": key}, headers=with_token).status_code == 204
    assert session.pressed == ["s", "escape", "space", "enter"]


def test_another_host_name_is_not_this_machine():
    client = TestClient(make_page(Pretended(), TOKEN), base_url="http://evil.example")
    assert client.get("/").status_code == 400
    assert client.get("/state").status_code == 400


FULL = {
    "phase": "running",
    "waits_for": None,
    "session": {"task": "unlock the door", "robot": "grm_sim", "out": "session", "elapsed_s": 75.0},
    "episode": {
        "index": 2, "tick": 3, "evaluation": False, "intervention": True, "time_s": [0.0, 0.05, 0.1, 0.15],
        "phi": [0.1, None, 0.3, 0.4], "spread": [0.05, None, 0.05, 0.05], "done": [0.0, None, 0.1, 0.2],
    },
    "views": ["front"],
    "rollouts": {
        "planned": 5, "done": 2, "success": [False, True], "interventions": [True, False], "evaluation": [False, False],
    },
    "keys": [{"key": key, "does": does, "enabled": key != "enter"} for key, (does, _) in SAYABLE.items()],
    "timing": {
        "rate_hz": 20.0, "measured_hz": 20.01, "ticks": 80, "overruns": 1, "jitter_ms_p99": 2.1,
        "frame_to_phi_ms_p50": 21.0, "frame_to_phi_ms_p99": 40.0,
    },
    "policy": {"version": 4, "age_s": 1.2, "updates": 160},
    "learner": {"connected": True, "backlog": 0, "alive": True},
    "faults": [{"time_s": 31.0, "text": "the newest picture of camera 'front' is 1.02 s old"}],
}  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings one")
def test_in_a_browser_it_shows_the_state_and_takes_keys():
    session = Pretended()
    session.state = lambda: FULL
    picture = np.zeros((16, 16, 3), np.uint8)
    session.pictures = {"front": to_jpeg(picture)}
    with page.served(session, 0) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = chromium.new_page()
        wrong: list[str] = []
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.goto(address)
        expect(shown.locator("#phase")).to_have_text("running", timeout=60_000)
        expect(shown.locator("#task")).to_have_text("unlock the door")
        expect(shown.locator("#episode")).to_contain_text("you are driving")
        expect(shown.locator("#faults")).to_contain_text("1.02 s old")
        expect(shown.locator("#numbers")).to_contain_text("keeping up")
        for key in ("s", "Escape", " ", "Enter"):
            shown.keyboard.press(key)
        shown.locator("#keys button", has_text="success").click()
        expect(shown.locator("#refused")).to_have_text("")
        for _ in range(200):
            if len(session.pressed) == 4:
                break
            time.sleep(0.02)
        chromium.close()
    assert wrong == []
    assert session.pressed == ["s", "escape", "space", "s"], "Enter means nothing now"
