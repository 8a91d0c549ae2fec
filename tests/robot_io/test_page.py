from starlette.testclient import TestClient

from robot_io.page import make_page

TOKEN = "a-token-of-the-page"


class Pretended:
    pictures = {"front": b"\xff\xd8jpeg"}  # noqa: RUF012

    def __init__(self) -> None:
        self.pressed: list[str] = []

    def press(self, key: str) -> None:
        self.pressed.append(key)

    def state(self) -> dict:
        return {"phase": "running"}


def browser(session: Pretended) -> TestClient:
    return TestClient(make_page(session, TOKEN), base_url="http://127.0.0.1:8770")  # type: ignore[arg-type]


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
    client = TestClient(make_page(Pretended(), TOKEN), base_url="http://evil.example")  # type: ignore[arg-type]
    assert client.get("/").status_code == 400
    assert client.get("/state").status_code == 400
