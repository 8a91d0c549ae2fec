"""Where the time of a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("simulate", "render", "judge", "save", "learn")
"""`learn` is what is left: acting, the updates, imitation."""


class Stopwatch:
    """Seconds by part; a part timed within another is not counted twice."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._running = ["learn"]
        self._last = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what is done inside."""
        self._switch()
        self._running.append(part)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def lap(self) -> dict[str, float]:
        """Seconds by part since the last lap."""
        self._switch()
        lap, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return lap

    def _switch(self) -> None:
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._last
        self._last = now
