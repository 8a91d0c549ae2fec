"""A reward server: for robots and clusters whose own process should not import torch.

Episodes are scored whole, or frame by frame in a stream that remembers its carry. All requests share one model, which
runs in one thread: whatever waits when it gets free is judged in one batch, nobody waits for a batch to fill. A bad
request is answered by what to mend, and harms no other. `grm.client` is the other end.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grm.errors import GrmError, OutputError, TraceError
from grm.reward import Frame, Judgement, ProcessReward

from .wire import Batch, Health, Moment, Opened, Opening, Problem, Scored, Scores, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may ask for; beyond it, a refusal that names the limit."""

    body_bytes: int = 32 * 2**20
    """Size of a request."""
    body_s: float = 10.0
    """Seconds in which a request must have arrived."""
    pixels: int = 2_000_000
    """Of one picture."""
    frames: int = 1000
    """In one request."""
    streams: int = 256
    """Open at once, of all clients."""
    idle_s: float = 300.0
    """Seconds after which a stream that is not used is closed."""
    waiting: int = 1024
    """Requests that may wait for the model."""
    per_second: float = 500.0
    """Requests of one client; twice as many may come in one burst."""
    batch_frames: int = 128
    """Judged in one pass; longer episodes are cut, so that a stream never waits for all of one."""


class Batcher[C]:
    """One model, one thread, many askers."""

    def __init__(self, model: ProcessReward[Frame, C], limits: Limits, sizes: Histogram) -> None:
        self._model, self._limits, self._sizes = model, limits, sizes
        self._waiting: asyncio.Queue[_Asked[C]]
        self._thread: ThreadPoolExecutor
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self._waiting.qsize() if self.alive else 0

    @property
    def alive(self) -> bool:
        """Whether anybody works on what waits."""
        return self._worker is not None and not self._worker.done()

    def open(self) -> None:
        """Begin to work; needs a running event loop."""
        self._waiting, self._thread = asyncio.Queue(self._limits.waiting), ThreadPoolExecutor(1, "model")
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Answer all that waits, then stop."""
        await self._waiting.join()
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown()

    async def run[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """Call `function` in the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def extend(self, carry: C, frames: Sequence[Frame]) -> tuple[C, Judgement]:
        """Lengthen one prefix, in a batch with whatever else waits. Raises HTTP 503 if too much does."""
        asked = _Asked(carry, frames, asyncio.get_running_loop().create_future())
        try:
            self._waiting.put_nowait(asked)
        except asyncio.QueueFull as error:
            raise HTTPException(
                503, f"{self._waiting.qsize()} requests wait for the model; try again later", {"Retry-After": "1"}
            ) from error
        return await asked.answer

    async def _work(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while not self._waiting.empty() and sum(len(a.frames) for a in batch) < self._limits.batch_frames:
                batch.append(self._waiting.get_nowait())
            self._sizes.observe(sum(len(asked.frames) for asked in batch))
            for asked, answer in zip(batch, await self.run(self._judge, batch), strict=True):
                if asked.answer.cancelled():  # its client has gone
                    continue
                if isinstance(answer, GrmError):
                    asked.answer.set_exception(answer)
                else:
                    asked.answer.set_result(answer)
            for _ in batch:
                self._waiting.task_done()

    def _judge(self, batch: "Sequence[_Asked[C]]") -> "list[tuple[C, Judgement] | GrmError]":
        """All at once; one by one if that fails, so that an asker never pays for another's frame."""
        try:
            carries, judgements = self._model.extend([a.carry for a in batch], [a.frames for a in batch])
            return list(zip(carries, judgements, strict=True))
        except GrmError as error:
            return [error] if len(batch) == 1 else [self._judge([asked])[0] for asked in batch]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked[C]:
    carry: C
    frames: Sequence[Frame]
    answer: asyncio.Future[tuple[C, Judgement]]


@dataclass(slots=True, eq=False)
class _Stream[C]:
    carry: C
    frames: int = 0
    used: float = field(default_factory=time.monotonic)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    last: tuple[int, int, Scores] | None = None
    """Index, length and answer of the newest step."""


def make_app[C](
    model: ProcessReward[Frame, C], *, name: str = "packaged", token: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application; `token` is what clients must present, None for anybody."""
    limits = limits or Limits()
    registry = CollectorRegistry()
    seconds = Histogram("grm_request_seconds", "Time to answer", ["route"], registry=registry)
    requests = Counter("grm_requests", "Requests answered", ["route", "status"], registry=registry)
    sizes = Histogram(
        "grm_batch_frames", "Frames judged in one pass", buckets=[2**k for k in range(9)], registry=registry
    )
    judged = Counter("grm_frames", "Frames judged", registry=registry)
    batcher = Batcher(model, limits, sizes)
    streams: OrderedDict[str, _Stream[C]] = OrderedDict()  # the least recently used comes first
    Gauge("grm_streams", "Open streams", registry=registry).set_function(lambda: len(streams))
    Gauge("grm_waiting", "Requests that wait for the model", registry=registry).set_function(lambda: batcher.waiting)

    def expire() -> None:
        """Close what nobody uses; a step in progress keeps its stream."""
        now = time.monotonic()
        for key in [k for k, s in streams.items() if now - s.used > limits.idle_s and not s.turn.locked()]:
            del streams[key]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.open()
        yield
        await batcher.close()

    app = FastAPI(
        title="GRM reward server",
        version="1",
        description="How far along is this? Frames in, progress out.",
        lifespan=lifespan,
        responses={status: {"model": Problem, "description": text} for status, text in REFUSALS.items()},
    )
    app.add_middleware(_Guard, token=token, limits=limits, seconds=seconds, requests=requests)

    @app.exception_handler(GrmError)
    async def refuse(request: Request, error: GrmError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input itself, which may be megabytes of a picture.
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        return JSONResponse({"detail": "; ".join(found)}, 422)

    def frames_of(moments: Sequence[Moment]) -> list[Frame]:
        return [moment.frame(limits.pixels) for moment in moments]

    def check_count(count: int) -> None:
        if count > limits.frames:
            raise TraceError(f"{count} frames in one request; expected at most {limits.frames}: send them in parts")

    def stream_of(key: str) -> _Stream[C]:
        expire()
        if key not in streams:
            raise HTTPException(
                404,
                f"there is no stream {key!r}: it was closed, not used for {limits.idle_s:g} s, or is of a server that "
                f"was started anew; open another with POST /v1/streams",
            )
        return streams[key]

    @app.post("/v1/score", summary="Judge whole episodes")
    async def score(batch: Batch) -> Scored:
        check_count(sum(map(len, batch.episodes)))
        task = await asyncio.to_thread(batch.task.task, limits.pixels)
        episodes = [await asyncio.to_thread(frames_of, moments) for moments in batch.episodes]
        start = await batcher.run(model.start, task)

        async def judge(frames: Sequence[Frame]) -> Scores:
            carry, parts = start, []
            for begin in range(0, max(1, len(frames)), limits.batch_frames):
                carry, part = await batcher.extend(carry, frames[begin : begin + limits.batch_frames])
                parts.append(Scores.of(part))
            return _joined(parts)

        answers = await asyncio.gather(*map(judge, episodes))
        judged.inc(sum(map(len, episodes)))
        return Scored(episodes=answers)

    @app.post("/v1/streams", status_code=201, summary="Begin a stream")
    async def begin(opening: Opening) -> Opened:
        task = await asyncio.to_thread(opening.task.task, limits.pixels)
        carry = await batcher.run(model.start, task)
        expire()
        if len(streams) >= limits.streams:
            raise HTTPException(
                429, f"{len(streams)} streams are open; expected at most {limits.streams}: close one with DELETE"
            )
        key = secrets.token_urlsafe(16)
        streams[key] = _Stream(carry)
        return Opened(stream=key, idle_s=limits.idle_s)

    @app.post("/v1/streams/{key}", summary="Judge the next frames of a stream")
    async def extend(key: str, step: Step) -> Scores:
        check_count(len(step.frames))
        stream = stream_of(key)
        async with stream.turn:
            stream.used = time.monotonic()
            streams.move_to_end(key)
            if stream.last is not None and stream.last[:2] == (step.index, len(step.frames)):
                return stream.last[2]
            if step.index != stream.frames:
                raise HTTPException(
                    409, f"step {step.index} of a stream that has {stream.frames} frames; expected {stream.frames}"
                )
            frames = await asyncio.to_thread(frames_of, step.frames)
            stream.carry, judgement = await batcher.extend(stream.carry, frames)
            scores = Scores.of(judgement)
            stream.last, stream.frames = (step.index, len(frames), scores), step.index + len(frames)
            stream.used = time.monotonic()
            judged.inc(len(frames))
            return scores

    @app.delete("/v1/streams/{key}", status_code=204, summary="End a stream")
    async def end(key: str) -> None:
        stream_of(key)
        del streams[key]

    @app.get("/health", summary="Whether the server can judge")
    async def health() -> Health:
        expire()
        if not batcher.alive:
            raise HTTPException(503, "the model's worker has ended; start the server again and see its log")
        return Health(status="ok", model=name, streams=len(streams))

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


REFUSALS = {
    400: "Not JSON",
    401: "No token, or a wrong one",
    404: "No such stream",
    408: "The request came too slowly",
    409: "A frame is missing before this one",
    413: "The request is too large",
    422: "Something in the request cannot be judged",
    429: "Too many requests or streams",
    503: "Too much waits for the model",
}


class _Guard:
    """Token, rate, size and time of a request, before anything else sees it; and the count of what was answered."""

    def __init__(self, app: ASGIApp, token: str | None, limits: Limits, seconds: Histogram, requests: Counter) -> None:
        self._app, self._token, self._limits = app, token, limits
        self._seconds, self._requests = seconds, requests
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, noting)
            else:
                await self._app(scope, self._bounded(receive), noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._requests.labels(route, status).inc()
            self._seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] != "/health":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                return JSONResponse(
                    {"detail": "no token, or a wrong one; expected the header `Authorization: Bearer <token>`"},
                    401,
                    {"WWW-Authenticate": "Bearer"},
                )
        wait = self._wait(scope["client"][0] if scope.get("client") else "")
        if wait > 0:
            return JSONResponse(
                {"detail": f"more than {self._limits.per_second:g} requests a second; wait {wait:.2g} s"},
                429,
                {"Retry-After": str(math.ceil(wait))},
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            return JSONResponse({"detail": _too_long(length.decode("latin-1"), self._limits.body_bytes)}, 413)
        return None

    def _wait(self, client: str) -> float:
        """Seconds until the client may ask again, 0 for now: a bucket that fills at the allowed rate."""
        now, rate = time.monotonic(), self._limits.per_second
        left, then = self._allowances.pop(client, (2 * rate, now))
        left = min(2 * rate, left + (now - then) * rate)
        self._allowances[client] = (left - 1 if left >= 1 else left, now)
        while len(self._allowances) > 10_000:  # of the clients that asked longest ago
            self._allowances.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / rate

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, up to the allowed size and time. Raises HTTP 413 and 408."""
        end, size, whole = time.monotonic() + self._limits.body_s, 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:  # only the end of the connection can come, and that may take long
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the request did not arrive within {self._limits.body_s:g} s; send fewer frames at once"
                ) from error
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._limits.body_bytes:
                raise HTTPException(413, _too_long(f"more than {self._limits.body_bytes}", self._limits.body_bytes))
            return message

        return bounded


def _too_long(found: str, limit: int) -> str:
    return f"a request of {found} bytes; expected at most {limit}: send fewer frames at once, or JPEG pictures"


def _joined(parts: Sequence[Scores]) -> Scores:
    """The scores of an episode's parts, one after another."""
    columns = {
        name: [number for part in parts for number in getattr(part, name)]
        for name in Scores.model_fields
        if getattr(parts[0], name) is not None
    }
    return Scores(**columns)


def check_address(host: str, token: str | None) -> None:
    """Raises `OutputError` for an address that others can reach unless there is a token to ask them for."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and token is None:
        raise OutputError(
            f"{host} can be reached from other machines, and no token is asked for; expected --token-file with a file "
            f"that holds one, or --host 127.0.0.1"
        )
