import json
import subprocess
import sys

import httpx
import numpy as np
import pytest

from grm.client import RewardClient, ServerError
from grm.errors import TraceError
from grm.reward import Frame, Judgement, Task

FRAME = Frame(views={"top": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}, time=0.5)
TASK = Task(instruction="open it")


def client_of(handler) -> RewardClient:
    client = RewardClient("http://robot:1", token="secret")
    client._http = httpx.Client(
        base_url="http://robot:1", headers=client._http.headers, transport=httpx.MockTransport(handler)
    )
    return client


def test_it_imports_numpy_httpx_and_what_types_are_written_in():
    script = (
        "import sys, json, numpy, httpx; before = set(sys.modules); import grm.client; "
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"grm"} <= set(json.loads(done.stdout)) <= {"grm", "numpy", "jaxtyping", "wadler_lindig"}


def test_what_is_asked_and_what_comes_back():
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(
            (request.method, request.url.path, request.headers.get("Authorization"), json.loads(request.content))
        )
        return (
            httpx.Response(
                200, json={"episodes": [{"judged": [True, False], "potential": [0.25, None], "spread": [0.1, None]}]}
            )
            if "score" in request.url.path
            else httpx.Response(500, text="no")
        )

    def complete(request: httpx.Request) -> httpx.Response:
        answer = handler(request).json()
        answer["episodes"][0] |= dict.fromkeys(("incremental", "forward", "backward", "absolute", "success"))
        return httpx.Response(200, json=answer)

    judgement = client_of(complete).judge(TASK, [FRAME, Frame(views={})])
    assert type(judgement) is Judgement, "no perspectives were sent"
    np.testing.assert_array_equal(judgement.potential, [0.25, np.nan])
    np.testing.assert_array_equal(judgement.judged, [True, False])
    [(method, path, token, body)] = asked
    assert (method, path, token) == ("POST", "/v1/score", "Bearer secret")
    picture = {"format": "raw", "height": 2, "width": 2, "data": "AAECAwQFBgcICQoL"}
    assert body == {
        "task": {"instruction": "open it", "goal": None},
        "episodes": [[{"time": 0.5, "views": {"top": picture}}, {"time": 0.0, "views": {}}]],
    }


def test_a_stream_counts_what_was_judged_and_not_what_was_lost():
    indices, fail = [], [False, True, False, False]
    scores = {"judged": [True], "potential": [0.5], "spread": [0.1]}
    scores |= {name: [0.5] for name in ("incremental", "forward", "backward", "absolute", "success")}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/streams":
            return httpx.Response(201, json={"stream": "abc", "idle_s": 300})
        if request.method == "DELETE":
            indices.append("closed")
            return httpx.Response(204)
        indices.append(json.loads(request.content)["index"])
        if fail[len(indices) - 1]:
            raise httpx.ReadTimeout("too late")
        return httpx.Response(200, json=scores)

    with client_of(handler) as client, client.stream(TASK) as stream:
        assert stream.extend([FRAME]).last() == 0.5
        with pytest.raises(ServerError, match="ReadTimeout"):
            stream.extend([FRAME])
        assert stream.extend([FRAME]).success[0] == 0.5
        stream.extend([FRAME])
        with pytest.raises(TraceError, match="at least one"):
            stream.extend([])
    assert indices == [0, 1, 1, 2, "closed"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(409, json={"detail": "step 4 of a stream that has 3 frames"}), "409 .* that has 3 frames"),
        (httpx.Response(502, text="<html>bad gateway</html>"), "502 .*bad gateway"),
        (httpx.Response(500, json=["what?"]), "500"),
    ],
)
def test_refusals_are_told(answer, says):
    with pytest.raises(ServerError, match=says):
        client_of(lambda request: answer).health()


def test_nobody_there():
    with RewardClient("http://127.0.0.1:9", timeout_s=1) as client, pytest.raises(ServerError, match="grm serve"):
        client.health()
