import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import schemathesis
import torch
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import settings
from PIL import Image
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from grm.client import RewardClient, ServerError
from grm.errors import OutputError, TraceError
from grm.models.multiview import GRM, Architecture, MultiViewNetwork
from grm.reward import Frame, PerspectiveJudgement, Task
from robot_io.server import Limits, check_address, make_app

TINY = Architecture(image_size=16, features=16, text_features=8, text_buckets=64, members=2, bins=5)
TOKEN = "a token of this test"


def make_model() -> GRM:
    torch.manual_seed(4)
    network = MultiViewNetwork(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        network.usable.bias += 10
    return GRM(network)


def frames(seed: int, count: int = 4) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [
        Frame(views={name: rng.integers(0, 255, (16, 16, 3), dtype=np.uint8) for name in ("top", "side")}, time=t / 10)
        for t in range(count)
    ]


def task(seed: int = 99) -> Task:
    return Task(instruction=f"open door {seed}", goal=frames(seed, 1)[0])


def raw(frame: Frame) -> dict:
    return {
        "views": {
            name: {"format": "raw", "height": 16, "width": 16, "data": base64.b64encode(image.tobytes()).decode()}
            for name, image in frame.views.items()
        },
        "time": frame.time,
    }


def file(image: np.ndarray, kind: str) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind.upper())
    return {"format": kind, "data": base64.b64encode(buffer.getvalue()).decode()}


@pytest.fixture(scope="module")
def model() -> GRM:
    return make_model()


@pytest.fixture
def http(model: GRM) -> Iterator[TestClient]:
    with TestClient(make_app(model)) as client:
        yield client


class Served:
    """A real server on loopback, in a thread of this process."""

    def __init__(self, model, **settings) -> None:
        config = uvicorn.Config(make_app(model, **settings), port=0, log_level="error", timeout_graceful_shutdown=10)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def assert_same(one: PerspectiveJudgement, other: PerspectiveJudgement) -> None:
    np.testing.assert_array_equal(one.judged, other.judged)
    for name in ("potential", "spread", "incremental", "forward", "backward", "absolute", "success"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5, err_msg=name)


def test_the_client_is_a_judge_that_says_what_the_model_says(model):
    with Served(model) as url, RewardClient(url) as client:
        assert client.health() == {"status": "ok", "model": "packaged", "streams": 0}
        expected = model.judge(task(), frames(0))
        assert np.ptp(expected.potential) > 0.01
        assert_same(client.judge(task(), frames(0)), expected)
        several = client.score(task(), [frames(1), frames(2, 1), frames(3, 7)])
        for judgement, steps in zip(several, [frames(1), frames(2, 1), frames(3, 7)], strict=True):
            assert_same(judgement, model.judge(task(), steps))
        blind = client.judge(Task(instruction="open it"), [*frames(0, 1), Frame(views={}), *frames(1, 1)])
        np.testing.assert_array_equal(blind.judged, [True, False, True])
        assert np.isnan(blind.potential[1])
        assert np.isnan(blind.backward).all()


def test_many_streams_at_once_are_neither_mixed_up_nor_lost(model):
    answers: dict[int, list] = {}

    def follow(url: str, seed: int) -> None:
        with RewardClient(url, timeout_s=60) as client, client.stream(task(seed)) as stream:
            answers[seed] = [stream.extend([frame]) for frame in frames(seed, 10)]

    with Served(model) as url:
        threads = [threading.Thread(target=follow, args=(url, seed)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = httpx.get(f"{url}/metrics").text
    for seed in range(12):
        whole = model.judge(task(seed), frames(seed, 10))
        np.testing.assert_allclose([a.last() for a in answers[seed]], whole.potential, atol=1e-5)
    finals = [answers[seed][-1].last() for seed in range(12)]
    assert len(np.unique(np.round(finals, 4))) > 8, "streams that say the same cannot be mixed up"
    assert "grm_frames_total 120.0" in metrics
    assert "grm_streams 0.0" in metrics
    assert 'grm_requests_total{route="/v1/streams",status="201"} 12.0' in metrics


def test_long_episodes_are_judged_in_parts_with_the_same_result(model):
    limits = Limits(batch_frames=3)
    with TestClient(make_app(model, limits=limits)) as http:
        body = {"task": {"instruction": "open it"}, "episodes": [[raw(f) for f in frames(5, 8)], []]}
        long, empty = http.post("/v1/score", json=body).json()["episodes"]
    expected = model.judge(Task(instruction="open it"), frames(5, 8))
    np.testing.assert_allclose(long["potential"], expected.potential, atol=1e-5)
    assert long["backward"] == [None] * 8
    assert empty["potential"] == []


def test_pictures_come_as_jpeg_png_or_bare(http, model):
    [frame] = frames(6, 1)
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    for kind, image in (("png", frame.views["top"]), ("jpeg", smooth)):
        moments = [raw(frame), {"views": {"top": file(image, kind)}}]
        body = {"task": {"instruction": "open it"}, "episodes": [moments]}
        [scores] = http.post("/v1/score", json=body).json()["episodes"]
        expected = model.judge(Task(instruction="open it"), [frame, Frame(views={"top": image})])
        np.testing.assert_allclose(scores["potential"], expected.potential, atol=1e-5 if kind == "png" else 0.2)
    grey = io.BytesIO()
    Image.fromarray(smooth[..., 0]).save(grey, "PNG")
    picture = {"format": "png", "data": base64.b64encode(grey.getvalue()).decode()}
    body = {"task": {"instruction": "open it"}, "episodes": [[{"views": {"top": picture}}]]}
    assert http.post("/v1/score", json=body).status_code == 200


def begin(http: TestClient) -> str:
    answer = http.post("/v1/streams", json={"task": {"instruction": "open it", "goal": raw(frames(99, 1)[0])}})
    assert answer.status_code == 201
    return f"/v1/streams/{answer.json()['stream']}"


def test_a_step_that_comes_twice_is_judged_once_and_a_missing_one_is_noticed(http, model):
    path, seen = begin(http), frames(7)
    first = http.post(path, json={"index": 0, "frames": [raw(seen[0]), raw(seen[1])]}).json()
    second = {"index": 2, "frames": [raw(seen[2])]}
    answer = http.post(path, json=second).json()
    assert http.post(path, json=second).json() == answer
    missing = http.post(path, json={"index": 4, "frames": [raw(seen[3])]})
    assert missing.status_code == 409
    assert "expected 3" in missing.json()["detail"]
    third = http.post(path, json={"index": 3, "frames": [raw(seen[3])]}).json()
    expected = model.judge(Task(instruction="open it", goal=frames(99, 1)[0]), seen)
    np.testing.assert_allclose(
        first["potential"] + answer["potential"] + third["potential"], expected.potential, atol=1e-5
    )
    assert http.delete(path).status_code == 204
    gone = http.post(path, json=second)
    assert gone.status_code == 404
    assert "POST /v1/streams" in gone.json()["detail"]
    assert http.delete(path).status_code == 404


def test_streams_expire_and_are_counted(model):
    with TestClient(make_app(model, limits=Limits(streams=2, idle_s=0.2))) as http:
        first = begin(http)
        begin(http)
        full = http.post("/v1/streams", json={"task": {"instruction": "open it"}})
        assert full.status_code == 429
        assert "2 streams are open" in full.json()["detail"]
        assert http.get("/health").json()["streams"] == 2
        time.sleep(0.3)
        assert http.get("/health").json()["streams"] == 0
        assert http.post(first, json={"index": 0, "frames": [raw(frames(0)[0])]}).status_code == 404
        begin(http)


def bad(**picture) -> dict:
    return {"task": {"instruction": "open it"}, "episodes": [[{"views": {"top": picture}}]]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (bad(format="raw", height=16, width=16, data="AAAA"), "expected height * width * 3 bytes"),
        (bad(format="raw", data="AAAA"), "height None"),
        (bad(format="raw", height=16, width=16, data="not base64!"), "data"),
        (bad(format="jpeg", data=base64.b64encode(b"\xff\xd8 no picture").decode()), "no jpeg picture"),
        (bad(format="png", data=""), "no png picture"),
        (bad(**file(np.zeros((16, 16, 3), np.uint8), "png") | {"format": "jpeg"}), "no jpeg picture"),
        (bad(**file(np.zeros((500, 500, 3), np.uint8), "png")), "500 x 500 pixels; expected at most 100,000"),
        (bad(format="raw", height=400, width=400, data=base64.b64encode(bytes(480_000)).decode()), "400 x 400 pixels"),
        (bad(format="gif", data="AAAA"), "'jpeg', 'png' or 'raw'"),
        ({"task": {"instruction": ""}, "episodes": [[]]}, "instruction"),
        ({"task": {"instruction": "   "}, "episodes": [[]]}, "instruction is empty"),
        ({"task": {"instruction": "open it"}, "episodes": []}, "episodes"),
        ({"task": {"instruction": "open it"}, "episodes": [[]], "gaol": 1}, "gaol"),
        ({"task": {"instruction": "open it"}, "episodes": [[{"views": {}}] * 11]}, "11 frames in one request"),
        ([], "dictionary"),
    ],
)
def test_bad_requests_say_what_to_mend(model, body, says):
    with TestClient(make_app(model, limits=Limits(pixels=100_000, frames=10))) as http:
        answer = http.post("/v1/score", json=body)
        assert answer.status_code == 422
        assert says in answer.json()["detail"]
        assert len(answer.text) < 1500
        assert http.get("/health").status_code == 200


def test_a_picture_cut_short_is_refused(http):
    whole = base64.b64decode(file(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8), "jpeg")["data"])
    answer = http.post("/v1/score", json=bad(format="jpeg", data=base64.b64encode(whole[: len(whole) // 2]).decode()))
    assert answer.status_code == 422
    assert "expected a whole file" in answer.json()["detail"]


class Picky(GRM):
    """Refuses episodes that begin with a frame of time 7."""

    def extend(self, carries, steps):
        if any(frame.time == 7 for prefix in steps for frame in prefix):
            raise TraceError("a frame of time 7")
        time.sleep(0.05)  # so that what comes meanwhile is one batch
        return super().extend(carries, steps)


def test_one_bad_episode_of_a_batch_harms_no_other(model):
    bad_frame = Frame(views=frames(0, 1)[0].views, time=7)
    with Served(Picky(model.network)) as url:
        outcomes: dict[int, object] = {}

        def ask(number: int) -> None:
            with RewardClient(url) as client:
                try:
                    outcomes[number] = client.judge(task(), [bad_frame] if number % 3 == 0 else frames(number, 2))
                except ServerError as error:
                    outcomes[number] = error

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, outcome in outcomes.items():
        if number % 3 == 0:
            assert "a frame of time 7" in str(outcome)
        else:
            assert_same(outcome, model.judge(task(), frames(number, 2)))
    assert len(outcomes) == 9


def test_size_rate_and_token(model):
    with TestClient(make_app(model, limits=Limits(body_bytes=1000))) as http:
        large = http.post("/v1/score", content=b"x" * 1001)
        assert large.status_code == 413
        assert "expected at most 1000" in large.json()["detail"]

        def parts():
            yield from [b"x" * 400] * 3

        assert http.post("/v1/score", content=parts()).status_code == 413  # it does not say how long it is
    with TestClient(make_app(model, limits=Limits(per_second=2))) as http:
        codes = [http.get("/health").status_code for _ in range(6)]
        assert codes[:4] == [200] * 4
        assert codes[-1] == 429
        assert int(http.get("/health").headers["Retry-After"]) >= 1
        time.sleep(0.6)
        assert http.get("/health").status_code == 200
    with TestClient(make_app(model, token=TOKEN)) as http:
        assert http.get("/health").status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            for path in ("/metrics", "/docs", "/openapi.json", "/v1/streams/x"):
                assert http.get(path, headers=header).status_code == 401
        assert http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_client_that_dawdles_is_let_go_and_others_do_not_wait(model):
    async def scene(url: str) -> bytes:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-Type: application/json\r\n")
        writer.write(b"\r\n{")
        await writer.drain()
        async with httpx.AsyncClient(base_url=url) as other:
            assert (await other.get("/health")).status_code == 200
        answer = await asyncio.wait_for(reader.read(2000), 5)
        writer.close()
        return answer

    with Served(model, limits=Limits(body_s=0.3)) as url:
        assert b"408" in asyncio.run(scene(url)).split(b"\r\n")[0]


def test_what_was_asked_is_answered_before_the_server_stops(model):
    class Slow(GRM):
        def extend(self, carries, steps):
            time.sleep(0.5)
            return super().extend(carries, steps)

    answers = []

    def ask(url: str) -> None:
        with RewardClient(url) as client:
            answers.append(client.judge(task(), frames(0)))

    with Served(Slow(model.network)) as url:
        thread = threading.Thread(target=ask, args=(url,))
        thread.start()
        time.sleep(0.25)  # it is being judged when the server is told to stop
    thread.join()
    assert_same(answers[0], model.judge(task(), frames(0)))
    with pytest.raises(ServerError, match="no answer from"):
        RewardClient(url).health()


def test_too_much_work_is_refused_and_not_queued_for_ever(model):
    class Stuck(GRM):
        go = threading.Event()

        def extend(self, carries, steps):
            self.go.wait(10)
            return super().extend(carries, steps)

    stuck = Stuck(model.network)

    async def scene(url: str) -> list[int]:
        body = {"task": {"instruction": "open it"}, "episodes": [[raw(frames(0, 1)[0])]]}
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            asked = []
            for _ in range(6):
                asked.append(asyncio.create_task(http.post("/v1/score", json=body)))
                await asyncio.sleep(0.1)
            stuck.go.set()
            return [(await one).status_code for one in asked]

    with Served(stuck, limits=Limits(waiting=2)) as url:
        codes = asyncio.run(scene(url))
    assert codes.count(503) >= 1
    assert codes.count(200) >= 3
    assert set(codes) == {200, 503}


@pytest.mark.parametrize(
    ("host", "token", "fine"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("localhost", None, True),
        ("0.0.0.0", None, False),
        ("192.168.1.4", None, False),
        ("robot.local", None, False),
        ("0.0.0.0", TOKEN, True),
    ],
)
def test_other_machines_need_a_token(host, token, fine):
    if fine:
        check_address(host, token)
    else:
        with pytest.raises(OutputError, match="--token-file"):
            check_address(host, token)


schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(make_model(), limits=Limits(per_second=1e6)))


@schema.parametrize()
@settings(max_examples=25, deadline=None)
def test_whatever_is_sent_the_answer_is_as_described(case):
    # Starlette's Allow header names one route's methods only; and no schema says which bytes are a PNG.
    case.call_and_validate(excluded_checks=[allow_header_conformance, positive_data_acceptance])
