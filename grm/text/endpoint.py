"""A language model behind any OpenAI-compatible endpoint: a hosted one, or vLLM, SGLang, llama.cpp on one's own.

Every answer is journalled as it arrives, so nothing that was paid for is lost: a run that was interrupted, or gave up
on an endpoint that stayed down, asks only for what is missing. The extra is `text`.
"""

import email.utils
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, override

import numpy as np
from jaxtyping import Float

from ..data.journal import Journal, fingerprint
from ..errors import GrmError, MissingExtraError, TraceError
from .language import Completion, Usage

try:
    import httpx
except ImportError as error:
    raise MissingExtraError(
        "grm.text.endpoint needs httpx; install it with `pip install 'grm-robotics[text]'`"
    ) from error

_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
"""What servers call an answer that ended by itself; everything else is a cut."""
_MOMENTARY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same question may be answered."""
_STOPS = 4
"""Stop strings that the published API takes; further ones are cut here."""


class EndpointError(GrmError, ConnectionError):
    """The endpoint could not be reached, or refused; the message is what it said, without the key."""


class _StoppedError(EndpointError):
    """Given up because another request failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What tokens cost, in any currency per million."""

    prompt: float
    completion: float


@dataclass(slots=True)
class EndpointUsage(Usage):
    """What was paid for in this process; what the journal gave for nothing is only counted."""

    requests: int = 0
    """Sent, those that failed among them."""
    retries: int = 0
    """Sent again after a failure that may pass."""
    truncated: int = 0
    """Answers that were cut off at `max_tokens` or the context, not whole."""
    refused: int = 0
    """Prompts longer than the context; answered by an empty completion that was cut off, or NaN."""
    unweighed: int = 0
    """Prompts of `choices` none of whose options was among the likeliest tokens; their rows are NaN."""
    resumed: int = 0
    """Answers that the journal knew."""
    uncounted: int = 0
    """Answers whose tokens the endpoint did not count; they are missing from the sums."""
    cost: float = 0.0
    """In the currency of the prices; 0 without prices."""

    @override
    def __str__(self) -> str:
        known = f", {self.resumed:,} answers known before" if self.resumed else ""
        # Not the bare super(): a dataclass with slots is another class than the one that was written here.
        return Usage.__str__(self) + known + (f", cost {self.cost:.4f}" if self.cost else "")


class EndpointModel:
    """A `LanguageModel` elsewhere. Usable as a context manager; for one thread at a time, it makes its own."""

    usage: EndpointUsage

    def __init__(
        self,
        model: str,
        *,
        url: str = "https://api.openai.com/v1",
        key_variable: str | None = "OPENAI_API_KEY",
        api: Literal["chat", "completions"] = "chat",
        journal: str | Path | None = None,
        prices: Prices | None = None,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        attempts: int = 6,
        first_wait_s: float = 1.0,
        longest_wait_s: float = 60.0,
        likeliest: int | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        """Ask for `model` at `url`, at most `concurrency` requests at once.

        The key is read from the environment variable `key_variable`, None for endpoints that want none. `chat` sends
        a prompt as what a user says; `completions` continues it letter for letter, which a judge that was trained on
        its own format needs. A failure that may pass is tried `attempts` times in all, after `first_wait_s` and then
        twice as long each time, or what the endpoint asks for, up to `longest_wait_s`; for longer it gives up.
        `likeliest` is how many tokens `choices` asks the probabilities of; None for what the published API allows, 20
        of chat and 5 of completions. `body` holds further fields for every request, such as `reasoning_effort`.
        Entries of the journal are told apart by model, prompt and settings, not by url.

        Raises `EndpointError` if the variable is not set, `TraceError` on a journal that cannot be read.
        """
        key = None if key_variable is None else os.environ.get(key_variable, "").strip()
        if key == "":
            raise EndpointError(
                f"the environment variable {key_variable} is not set; expected the endpoint's key in it "
                f"(key_variable=None for an endpoint that wants none)"
            )
        if concurrency < 1 or attempts < 1:
            raise TraceError(f"concurrency {concurrency}, attempts {attempts}; expected at least 1 of each")
        self._key, self._model, self._api = key, model, api
        self._prices, self._concurrency, self._attempts = prices, concurrency, attempts
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._likeliest = likeliest if likeliest is not None else 20 if api == "chat" else 5
        self._body = dict(body or {})
        self._url = url.rstrip("/")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._http = httpx.Client(headers=headers, timeout=timeout_s, limits=limits)
        self._journal = Journal(journal)
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self.usage = EndpointUsage()

    def __repr__(self) -> str:
        return f"EndpointModel({self._model!r}, url={self._url!r}, api={self._api!r})"

    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[Completion]]:
        """`samples` continuations of each prompt, one request each, the seed counting up from `seed`.

        Endpoints need not honour a seed; the journal does. A prompt longer than the context is answered by an empty
        completion that was cut off. Raises `EndpointError` once an endpoint refuses or stays down, after the requests
        on their way have been answered and journalled.
        """
        settings = {"max_tokens": max_tokens, "temperature": temperature}
        if stop:
            settings["stop"] = list(stop)
        asked = [self._request(prompt, settings | {"seed": seed + i}) for prompt in prompts for i in range(samples)]
        answers = [_completion(answer) for answer in self._answers(asked)]
        return [answers[i * samples : (i + 1) * samples] for i in range(len(prompts))]

    def choices(self, prompts: Sequence[str], options: Sequence[str]) -> Float[np.ndarray, "prompts options"]:
        """P(option | prompt) by the first token, normalised over the options; rows sum to 1, or are NaN.

        Only the likeliest tokens are known: an option that none of them begins has probability 0, and where that is
        all of them the row is NaN, as for a prompt longer than the context. Tokens that differ in space around them
        count together. Raises as `generate`, and if the endpoint gives no log-probabilities.
        """
        settings = {"max_tokens": 1, "temperature": 0.0, "likeliest": self._likeliest}
        answers = self._answers([self._request(prompt, settings) for prompt in prompts])
        rows = np.array([_weigh(answer["likeliest"], options) for answer in answers]).reshape(-1, len(options))
        self.usage.unweighed += sum(
            bool(np.isnan(row).any()) and not answer["refused"] for row, answer in zip(rows, answers, strict=True)
        )
        return rows

    def room(self, prompt: str) -> int | None:
        """As `LanguageModel.room`: not known here; what is too long is answered by a refusal."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._model, "api": self._api, "prompt": prompt, **settings, "body": self._body}

    def _answers(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the journal knows, and for the rest what the endpoint says; the same question is asked once."""
        keys = [fingerprint(request) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._journal}
        self.usage.resumed += sum(key not in missing for key in keys)
        stopping = threading.Event()
        with ThreadPoolExecutor(self._concurrency, "endpoint") as pool:
            futures = [pool.submit(self._answer, key, request, stopping) for key, request in missing.items()]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # Nothing is sent any more, but what is on its way is waited for and journalled: it is paid for.
                stopping.set()
                pool.shutdown(cancel_futures=True)
        errors = [future.exception() for future in futures if not future.cancelled()]
        for error in sorted(filter(None, errors), key=lambda error: isinstance(error, _StoppedError)):
            raise error
        return [self._journal.get(key) or {} for key in keys]

    def _answer(self, key: str, request: dict[str, Any], stopping: threading.Event) -> None:
        answer = self._ask(request, stopping)
        self._journal.append(key, {**answer, "request": request})
        with self._lock:
            usage = self.usage
            usage.calls += 1
            usage.truncated += answer["finish"] == "length" and not answer["refused"] and "likeliest" not in request
            usage.refused += answer["refused"]
            if answer["tokens"] is None:
                usage.uncounted += 1
                return
            prompt, completion = answer["tokens"]
            usage.prompt_tokens += prompt
            usage.completion_tokens += completion
            if self._prices is not None:
                usage.cost += (prompt * self._prices.prompt + completion * self._prices.completion) / 1e6

    def _ask(self, request: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
        path, body = _wire(request)
        problem = ""
        for attempt in range(self._attempts):
            pause_s = min(self._first_wait_s * 2 ** (attempt - 1), self._longest_wait_s) if attempt else 0.0
            pause_s = max(pause_s, self._quiet_until - time.monotonic())
            while pause_s > 0 and not stopping.wait(pause_s):
                # A request to wait holds for all: without it, every thread would find out for itself.
                pause_s = self._quiet_until - time.monotonic()
            if stopping.is_set():
                raise _StoppedError(f"{self._url}{path}: another request failed before this one was answered")
            with self._lock:
                self.usage.requests += 1
                self.usage.retries += attempt > 0
            try:
                response = self._http.post(self._url + path, json=body)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 200:
                try:
                    return _read(response.json(), request)
                except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                    problem = f"an answer that is none ({type(error).__name__}): {response.text[:200]!r}"
                    continue
            problem = f"{response.status_code}: {_detail(response)}"
            if response.status_code not in _MOMENTARY:
                if _is_too_long(response):
                    return {"text": "", "finish": "length", "tokens": (0, 0), "refused": True, "likeliest": {}}
                raise self._error(path, problem)
            asked_s = _retry_after_s(response)
            if asked_s is not None:
                if asked_s > self._longest_wait_s:
                    raise self._error(path, f"{problem}; it asks to wait {asked_s:.0f} s, longer than longest_wait_s")
                with self._lock:
                    self._quiet_until = max(self._quiet_until, time.monotonic() + asked_s)
        raise self._error(path, f"{self._attempts} attempts failed, the last with {problem}")

    def _error(self, path: str, problem: str) -> EndpointError:
        text = f"{self._url}{path}: {problem}; answers so far are in the journal, asking again goes on from there"
        return EndpointError(text.replace(self._key, "***") if self._key else text)


def _wire(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of a request as the published API has them."""
    body = {name: value for name, value in request.items() if name not in ("api", "prompt", "body", "likeliest")}
    if "stop" in body:
        body["stop"] = body["stop"][:_STOPS]
    if request["api"] == "chat":
        body["messages"] = [{"role": "user", "content": request["prompt"]}]
        if "likeliest" in request:
            body |= {"logprobs": True, "top_logprobs": request["likeliest"]}
        return "/chat/completions", body | request["body"]
    body["prompt"] = request["prompt"]
    if "likeliest" in request:
        body["logprobs"] = request["likeliest"]
    return "/completions", body | request["body"]


def _read(answer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of an answer. Raises the errors of missing parts; `EndpointError` without probabilities."""
    choice = answer["choices"][0]
    text = (choice["message"]["content"] if request["api"] == "chat" else choice["text"]) or ""
    if not isinstance(text, str):
        raise TypeError("text is not text")
    finish = "stop" if choice.get("finish_reason") in _ENDED else "length"
    cut = min((at for at in (text.find(s) for s in request.get("stop", ())) if at >= 0), default=None)
    if cut is not None:
        text, finish = text[:cut], "stop"
    counted = answer.get("usage")
    tokens = None if not counted else (int(counted["prompt_tokens"]), int(counted.get("completion_tokens") or 0))
    read: dict[str, Any] = {"text": text, "finish": finish, "tokens": tokens, "refused": False}
    if "likeliest" in request:
        read["likeliest"] = _likeliest(choice.get("logprobs"), request)
    return read


def _likeliest(logprobs: Any, request: dict[str, Any]) -> dict[str, float]:
    """Log-probability by first token, of chat (`content`, a list of alternatives) and completions (a mapping)."""
    if not logprobs:
        raise EndpointError(
            f"{request['model']!r} answered without log-probabilities; expected an endpoint that gives `logprobs` "
            f"(judges can read their verdict from text instead)"
        )
    if "content" in logprobs:
        tokens = logprobs["content"][0]["top_logprobs"] if logprobs["content"] else []
        return {token["token"]: float(token["logprob"]) for token in tokens}
    return {token: float(value) for token, value in (logprobs["top_logprobs"] or [{}])[0].items()}


def _weigh(likeliest: Mapping[str, float], options: Sequence[str]) -> list[float]:
    """Probabilities of the options, normalised; a token counts for the one option that it begins, whole or in part."""
    wanted = [option.strip() for option in options]
    weights = [0.0] * len(options)
    for token, value in likeliest.items():
        begins = [i for i, option in enumerate(wanted) if token.strip() and option.startswith(token.strip())]
        if len(begins) == 1:
            weights[begins[0]] += math.exp(value)
    total = sum(weights)
    return [weight / total if total > 0 else math.nan for weight in weights]


def _completion(answer: Mapping[str, Any]) -> Completion:
    tokens = answer["tokens"]
    return Completion(text=answer["text"], tokens=tokens[1] if tokens else 0, finish=answer["finish"])


def _detail(response: httpx.Response) -> str:
    try:
        found = response.json()["error"]
        return str(found["message"] if isinstance(found, dict) else found)[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _is_too_long(response: httpx.Response) -> bool:
    text = response.text.lower()
    return response.status_code in (400, 413, 422) and (
        "context_length_exceeded" in text or "context length" in text or "context window" in text
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait, given as a number or a date."""
    asked = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None
