"""The reward of a `grm serve` elsewhere: for a robot's own process, which then needs neither torch nor a checkpoint.

Imports NumPy, httpx and what `grm.reward` is written in (jaxtyping). The extra is `client`.
"""

import base64
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from .errors import GrmError, MissingExtraError, TraceError
from .reward import Frame, Judgement, PerspectiveJudgement, Task

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("grm.client needs httpx; install it with `pip install 'grm-robotics[client]'`") from error

_PARTS = ("incremental", "forward", "backward", "absolute", "success")


class ServerError(GrmError, ConnectionError):
    """The server could not be reached, or refused; the message is what it said."""


class RewardClient:
    """A `Judge` whose model is on another machine; `stream` follows an episode as it happens.

    Pictures travel as they are, without loss. Usable as a context manager. Not for several threads at once.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8750", *, token: str | None = None, timeout_s: float = 10.0
    ) -> None:
        """`timeout_s` is what one request may take; `token` what the server was started with."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def judge(self, task: Task, steps: Sequence[Frame]) -> Judgement:
        """Judge a whole episode of T frames. Raises `ServerError`."""
        [judgement] = self.score(task, [steps])
        return judgement

    def score(self, task: Task, episodes: Sequence[Sequence[Frame]]) -> list[Judgement]:
        """Judge whole episodes of one task, in one request. Raises `ServerError`."""
        body = {"task": _task(task), "episodes": [[_frame(frame) for frame in frames] for frames in episodes]}
        return [_judgement(scores) for scores in self._ask("POST", "/v1/score", body)["episodes"]]

    def stream(self, task: Task) -> "Stream":
        """Begin an episode. Raises `ServerError`."""
        return Stream(self._ask, self._ask("POST", "/v1/streams", {"task": _task(task)})["stream"])

    def health(self) -> dict[str, Any]:
        """What the server says of itself. Raises `ServerError`."""
        return self._ask("GET", "/health", None)

    def close(self) -> None:
        """Close the connection; streams that are open stay so until they expire."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(
                f"no answer from {self._http.base_url}{path.lstrip('/')} ({type(error).__name__}: {error}); expected a "
                f"`grm serve` there"
            ) from error
        if answer.is_error:
            try:
                detail = answer.json()["detail"]
            except (ValueError, KeyError, TypeError):
                detail = answer.text[:200]
            raise ServerError(f"{answer.status_code} from {self._http.base_url}{path.lstrip('/')}: {detail}")
        return answer.json() if answer.content else {}


class Stream:
    """One episode on the server. After a `ServerError` the same frame may be sent again: it is judged once."""

    def __init__(self, ask: Any, key: str) -> None:
        self._ask, self._key = ask, key
        self._sent = 0

    def extend(self, frames: Sequence[Frame]) -> Judgement:
        """Judge the episode's next frames, at least one. Raises `ServerError`."""
        if not frames:
            raise TraceError("no frames to judge; expected at least one")
        body = {"index": self._sent, "frames": [_frame(frame) for frame in frames]}
        judgement = _judgement(self._ask("POST", f"/v1/streams/{self._key}", body))
        self._sent += len(frames)
        return judgement

    def close(self) -> None:
        """Free its place on the server. Raises `ServerError`."""
        self._ask("DELETE", f"/v1/streams/{self._key}", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


def _task(task: Task) -> dict[str, Any]:
    return {"instruction": task.instruction, "goal": None if task.goal is None else _frame(task.goal)}


def _frame(frame: Frame) -> dict[str, Any]:
    return {"time": frame.time, "views": {name: _picture(image) for name, image in frame.views.items()}}


def _picture(image: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode("ascii")
    return {"format": "raw", "height": image.shape[0], "width": image.shape[1], "data": data}


def _judgement(scores: Mapping[str, Any]) -> Judgement:
    def numbers(name: str) -> np.ndarray:
        return np.array([np.nan if number is None else number for number in scores[name]], np.float64)

    known = {
        "potential": numbers("potential"),
        "spread": numbers("spread"),
        "judged": np.array(scores["judged"], bool),
    }
    if any(scores[name] is None for name in _PARTS):
        return Judgement(**known)
    return PerspectiveJudgement(**known, **{name: numbers(name) for name in _PARTS})
