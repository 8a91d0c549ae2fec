"""Against a real HTTP server on loopback that behaves as badly as endpoints do."""

import contextlib
import email.utils
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from grm.errors import TraceError
from grm.reward import Task, Thought
from grm.text.endpoint import EndpointError, EndpointModel, Prices
from grm.text.generative import ThinkPRM

KEY = "sk-very-secret-1234567890"


class Server:
    """`script` gives what to do with each request in turn, the last for ever; `asked` is what was asked."""

    def __init__(self, *script):
        self.script, self.asked, self.headers, self.times = list(script), [], [], []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked.append((self.path, body))
                    outer.headers.append(dict(self.headers))
                    outer.times.append(time.monotonic())
                    act = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    act(self, body)
                finally:
                    with outer._lock:
                        outer.at_once -= 1

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


def send(handler, content, status=200, headers=()):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def chat(text="fine", finish="stop", tokens=(7, 3), logprobs=None):
    def act(handler, body):
        said = text(body) if callable(text) else text
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": finish}
        choice["logprobs"] = logprobs and {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": logprobs}]}
        answer = {"id": "1", "object": "chat.completion", "choices": [choice]}
        if tokens:
            answer["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        send(handler, answer)

    return act


def plain(text="fine", top=None):
    def act(handler, body):
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": top and {"top_logprobs": [top]}}
        send(handler, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})

    return act


def refuse(status, content=None, **headers):
    body = {"error": {"message": "no"}} if content is None else content
    return lambda handler, _: send(handler, body, status, [(n.replace("_", "-"), v) for n, v in headers.items()])


def drop(handler, body):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drop_half_way(handler, body):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    drop(handler, body)


def slow(seconds, then):
    def act(handler, body):
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            then(handler, body)

    return act


def model_of(server, **settings):
    known = {"key_variable": None, "first_wait_s": 0.01, "timeout_s": 5.0, "attempts": 4}
    return EndpointModel("m", url=server.url, **(known | settings))


def echo(body):
    return body["messages"][0]["content"]


def test_chat_as_published():
    with Server(chat("  a\n")) as server, model_of(server) as model:
        [[one]] = model.generate(["hello"], max_tokens=9, temperature=0.5, stop=["x"], seed=4)
    assert (one.text, one.tokens, one.finish) == ("  a\n", 3, "stop")
    [(path, body)] = server.asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["x"],
        "seed": 4,
    }


def test_completions_as_published():
    with Server(plain(" b")) as server, model_of(server, api="completions", body={"min_p": 0.1}) as model:
        [[one]] = model.generate(["hello"])
    assert one.text == " b"
    [(path, body)] = server.asked
    assert path == "/v1/completions"
    assert (body["prompt"], body["min_p"]) == ("hello", 0.1)
    assert "messages" not in body


def test_answers_keep_their_order_and_requests_their_limit():
    with Server(slow(0.02, chat(echo))) as server, model_of(server, concurrency=3) as model:
        prompts = [f"p{i}" for i in range(9)]
        answers = model.generate(prompts, samples=2)
    assert [[one.text for one in two] for two in answers] == [[p, p] for p in prompts]
    assert sorted({body["seed"] for _, body in server.asked}) == [0, 1]
    assert 1 < server.most_at_once <= 3


def test_usage_and_cost():
    with Server(chat(tokens=(1000, 500)), chat(tokens=None)) as server:
        model = model_of(server, prices=Prices(prompt=2.0, completion=8.0), concurrency=1)
        model.generate(["a"])
        assert model.usage.cost == pytest.approx((1000 * 2 + 500 * 8) / 1e6)
        model.generate(["b"])
    usage = model.usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens, usage.uncounted) == (2, 1000, 500, 1)
    assert (usage.requests, usage.retries) == (2, 0)


def test_a_cut_answer_says_so():
    with Server(chat("half", finish="length"), chat("", finish="content_filter")) as server:
        model = model_of(server, concurrency=1)
        assert [one.finish for [one] in model.generate(["a", "b"])] == ["length", "length"]
    assert model.usage.truncated == 2


def test_stop_strings_beyond_what_the_endpoint_takes_are_cut_here():
    with Server(chat("one STOP two", finish="length")) as server, model_of(server) as model:
        [[one]] = model.generate(["a"], stop=["1", "2", "3", "4", "STOP"])
    assert (one.text, one.finish) == ("one ", "stop")
    assert server.asked[0][1]["stop"] == ["1", "2", "3", "4"]


# What passes


@pytest.mark.parametrize(
    "failure",
    [
        refuse(429),
        refuse(500, b"<html>oops</html>"),
        refuse(503),
        drop,
        drop_half_way,
        lambda handler, body: send(handler, b"<html>welcome</html>"),
        lambda handler, body: send(handler, b'\xff\xfe{"choices"'),
        lambda handler, body: send(handler, {"choices": []}),
        lambda handler, body: send(handler, ["what"]),
        lambda handler, body: send(handler, {"choices": [{"message": {"content": 3}}]}),
    ],
    ids=["429", "500", "503", "drop", "half", "html", "bytes", "empty", "list", "type"],
)
def test_a_failure_that_passes_is_tried_again(failure):
    with Server(failure, failure, chat("at last")) as server, model_of(server) as model:
        assert model.generate(["a"])[0][0].text == "at last"
    assert len(server.asked) == 3
    assert (model.usage.requests, model.usage.retries, model.usage.calls) == (3, 2, 1)


def test_a_slow_endpoint_is_asked_again():
    with Server(slow(0.5, chat("late")), chat("quick")) as server, model_of(server, timeout_s=0.1) as model:
        assert model.generate(["a"])[0][0].text == "quick"


def test_waits_grow():
    with Server(refuse(500)) as server, model_of(server, first_wait_s=0.05, attempts=4) as model:
        began = time.monotonic()
        with pytest.raises(EndpointError, match="4 attempts failed, the last with 500: no"):
            model.generate(["a"])
    assert 0.05 + 0.1 + 0.2 <= time.monotonic() - began < 2


@pytest.mark.parametrize("asked", ["0.3", "date"])
def test_retry_after_is_obeyed_by_all(asked):
    value = email.utils.formatdate(time.time() + 2, usegmt=True) if asked == "date" else asked
    with Server(refuse(429, Retry_After=value), chat(echo)) as server, model_of(server, concurrency=1) as model:
        began = time.monotonic()
        answers = model.generate(["a", "b", "c"])
    assert [one.text for [one] in answers] == ["a", "b", "c"]
    assert time.monotonic() - began >= (0.5 if asked == "date" else 0.3)
    assert len(server.asked) == 4


def test_a_request_that_was_never_sent_waits_too():
    """Of two at once the first is told to wait; the third begins when the second is answered, long before that."""
    with Server(refuse(429, Retry_After="0.5"), slow(0.05, chat(echo)), chat(echo)) as server:
        model_of(server, concurrency=2).generate(["a", "b", "c"])
    assert len(server.times) == 4
    assert all(later - server.times[0] >= 0.45 for later in server.times[2:])


def test_an_endpoint_that_asks_for_too_long_is_given_up():
    with Server(refuse(429, Retry_After="3600")) as server, pytest.raises(EndpointError, match="wait 3600 s"):
        model_of(server, longest_wait_s=5).generate(["a"])
    assert len(server.asked) == 1


# What does not


def test_an_endpoint_that_is_down():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    model = EndpointModel("m", url=f"http://127.0.0.1:{port}/v1", key_variable=None, first_wait_s=0.01, attempts=2)
    with pytest.raises(EndpointError, match="2 attempts failed, the last with ConnectError"):
        model.generate(["a"])


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_final(status):
    with Server(refuse(status)) as server, pytest.raises(EndpointError, match=f"{status}: no"):
        model_of(server).generate(["a"])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        {"error": {"message": "too many tokens", "code": "context_length_exceeded"}},
        {"object": "error", "message": "This model's maximum context length is 64 tokens.", "code": 400},
    ],
)
def test_a_prompt_longer_than_the_context_is_no_answer_and_no_error(content):
    with Server(refuse(400, content), chat("b")) as server, model_of(server, concurrency=1) as model:
        [[one], [two]] = model.generate(["a" * 100, "b"])
        assert (one.text, one.finish, two.text) == ("", "length", "b")
        assert (model.usage.refused, model.usage.truncated) == (1, 0)
    with Server(refuse(400, content)) as server, model_of(server) as model:
        assert np.isnan(model.choices(["a" * 100], ["Yes", "No"])).all()
        assert (model.usage.refused, model.usage.unweighed) == (1, 0)


def test_a_failing_batch_stops_soon():
    """One refusal ends the batch: threads that wait to try again do not, and what had not begun is not sent."""

    def act(handler, body):
        (refuse(401) if echo(body) == "p1" else refuse(500))(handler, body)

    with Server(act) as server, model_of(server, concurrency=2, first_wait_s=30) as model:
        began = time.monotonic()
        with pytest.raises(EndpointError, match="401"):
            model.generate([f"p{i}" for i in range(20)])
    assert time.monotonic() - began < 5
    assert len(server.asked) <= 4


# Nothing paid for is lost


def test_a_run_that_broke_off_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    prompts = [f"p{i}" for i in range(6)]
    with Server(*[chat(echo)] * 4, refuse(401)) as server:
        model = model_of(server, journal=path, concurrency=2)
        with pytest.raises(EndpointError):
            model.generate(prompts)
        assert model.usage.calls == 4
    with Server(chat(echo)) as server:
        model = model_of(server, journal=path)
        assert [one.text for [one] in model.generate(prompts)] == prompts
        assert len(server.asked) == 2
        assert (model.usage.calls, model.usage.resumed) == (2, 4)
        model.generate(prompts)
        assert len(server.asked) == 2
        model.generate(prompts, seed=1)
        assert len(server.asked) == 8, "another seed is another question"


def test_more_samples_ask_only_for_the_further_ones(tmp_path):
    with Server(chat(echo)) as server, model_of(server, journal=tmp_path / "j") as model:
        model.generate(["a"], samples=2)
        model.generate(["a"], samples=5)
    assert sorted(body["seed"] for _, body in server.asked) == [0, 1, 2, 3, 4]


def test_the_same_question_is_asked_once():
    with Server(chat(echo)) as server, model_of(server) as model:
        assert len(model.generate(["a", "a", "a"])) == 3
    assert len(server.asked) == 1


def test_probabilities_are_journalled_too(tmp_path):
    top = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -3.0}]
    with Server(chat(logprobs=top)) as server, model_of(server, journal=tmp_path / "j") as model:
        first = model.choices(["a"], ["Yes", "No"])
    with Server(refuse(500)) as server, model_of(server, journal=tmp_path / "j") as model:
        np.testing.assert_array_equal(model.choices(["a"], ["Yes", "No"]), first)
    assert server.asked == []


# Log-probabilities


def test_choices_of_chat():
    top = [
        {"token": token, "logprob": np.log(p)} for token, p in [("Yes", 0.5), (" Yes", 0.1), ("No", 0.2), ("!", 0.2)]
    ]
    with Server(chat(logprobs=top)) as server, model_of(server) as model:
        np.testing.assert_allclose(model.choices(["a"], ["Yes", "No"]), [[0.75, 0.25]])
    body = server.asked[0][1]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_choices_of_completions():
    with Server(plain(top={" Yes": np.log(0.3), " N": np.log(0.1)})) as server:
        model = model_of(server, api="completions")
        np.testing.assert_allclose(model.choices(["a", "b"], ["Yes", "No"]), [[0.75, 0.25]] * 2)
    assert server.asked[0][1]["logprobs"] == 5


def test_parts_of_options_count_and_what_begins_two_does_not():
    top = [{"token": t, "logprob": np.log(p)} for t, p in [("cor", 0.4), ("in", 0.1), ("", 0.3), ("incorrectly", 0.1)]]
    with Server(chat(logprobs=top)) as server, model_of(server) as model:
        np.testing.assert_allclose(model.choices(["a"], ["correct", "incorrect"]), [[0.8, 0.2]])
    top = [{"token": "No", "logprob": -1.0}]
    with Server(chat(logprobs=top)) as server, model_of(server) as model:
        assert np.isnan(model.choices(["a"], ["Not", "None"])).all()


def test_no_option_among_the_likeliest_is_no_number():
    with Server(chat(logprobs=[{"token": "Maybe", "logprob": 0.0}])) as server, model_of(server) as model:
        assert np.isnan(model.choices(["a"], ["Yes", "No"])).all()
        assert model.usage.unweighed == 1
        assert model.choices([], ["Yes", "No"]).shape == (0, 2)


def test_an_endpoint_without_log_probabilities_is_told_apart():
    with Server(chat()) as server, pytest.raises(EndpointError, match="without log-probabilities"):
        model_of(server).choices(["a"], ["Yes", "No"])
    assert len(server.asked) == 1


# The key


def test_the_key_is_sent_and_never_shown(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    leak = {"error": {"message": f"Incorrect API key provided: {KEY}."}}
    with Server(chat(), refuse(401, leak)) as server:
        model = model_of(server, key_variable="SOME_KEY", journal=tmp_path / "j", concurrency=1)
        model.generate(["a"])
        with pytest.raises(EndpointError) as caught:
            model.generate(["b"])
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: ***" in str(caught.value)
    for text in (str(caught.value), repr(caught.value), repr(model), str(model), (tmp_path / "j").read_text()):
        assert KEY not in text
    assert KEY not in caplog.text


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EndpointError, match="SOME_KEY is not set"):
        EndpointModel("m", key_variable="SOME_KEY")
    with pytest.raises(TraceError, match="concurrency 0"):
        EndpointModel("m", key_variable=None, concurrency=0)


# Judges on a bad endpoint


def test_a_judge_abstains_where_the_endpoint_cuts_and_loses_nothing_where_it_fails(tmp_path):
    solutions = [(Task(instruction=f"problem {i}"), [Thought(text="a"), Thought(text="b")]) for i in range(3)]
    chain = "Step 1: \\boxed{correct}\nStep 2: \\boxed{incorrect}"
    top = [{"token": "Yes", "logprob": np.log(0.2)}, {"token": "No", "logprob": np.log(0.6)}]

    def answer(handler, body):
        cut = "problem 1" in echo(body)
        said = chat(chain[:30] if cut else chain, finish="length" if cut else "stop", logprobs=top)
        said(handler, body)

    with Server(answer, answer, refuse(401)) as server:
        model = model_of(server, journal=tmp_path / "j", concurrency=1)
        with pytest.raises(EndpointError, match="401"):
            ThinkPRM(model).judge_all(solutions)
    with Server(answer) as server:
        model = model_of(server, journal=tmp_path / "j")
        found = ThinkPRM(model).judge_all(solutions)
    assert len(server.asked) == 3, "the chain that was missing, and two verdicts"
    assert [one.judged.all() for one in found] == [True, False, True]
    assert [one.n_invalid for one in found] == [0, 1, 0]
    assert [one.outcome for one in found] == pytest.approx([0.25, np.nan, 0.25], nan_ok=True)
    np.testing.assert_array_equal(found[0].potential, [1, 0])
