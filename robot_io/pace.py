"""Turns at a fixed rate, and how well the rate was kept."""

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How well a rate was kept. Milliseconds."""

    ticks: int
    period_ms: float
    """Mean."""
    jitter_ms_p50: float
    """Of the distance of a period from the one asked for."""
    jitter_ms_p99: float
    jitter_ms_max: float
    overruns: int
    """Ticks that came too late for their turn by more than the tolerance."""

    @property
    def overrun_rate(self) -> float:
        """Share of ticks that came too late."""
        return self.overruns / max(self.ticks, 1)


class Pacer:
    """Turns at a fixed rate, on absolute deadlines: what one turn takes too long is not added to the next ones.

    Args:
        rate_hz: turns per second.
        tolerance: lateness that counts as an overrun, as a share of the period.
        clock, sleep: seconds, monotonic.
    """

    def __init__(
        self,
        rate_hz: float,
        *,
        tolerance: float = 0.1,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not rate_hz > 0:
            raise ValueError(f"rate_hz is {rate_hz}; expected turns per second above 0, such as 20")
        self.period_s = 1 / rate_hz
        self._tolerance_s = tolerance * self.period_s
        self._clock, self._sleep = clock, sleep
        self._deadline: float | None = None
        self._last = 0.0
        self._periods = array("d")
        self._overruns = 0

    def start(self) -> None:
        """The next turn is one period from now: at the beginning of an episode and after every pause."""
        self._last = self._clock()
        self._deadline = self._last + self.period_s

    def wait(self) -> bool:
        """Sleep until the next turn; returns whether it had already passed, and was therefore an overrun."""
        if self._deadline is None:
            self.start()
        assert self._deadline is not None
        early = self._deadline - self._clock()
        if early > 0:
            self._sleep(early)
        now = self._clock()
        overrun = early < -self._tolerance_s
        self._overruns += overrun
        self._periods.append(now - self._last)
        self._last = now
        # Turns that were missed altogether are left out; those that follow stay on the old grid.
        missed = max(0, int((now - self._deadline) // self.period_s))
        self._deadline += (missed + 1) * self.period_s
        return overrun

    def periods_s(self, since: int = 0) -> Float[np.ndarray, " turns"]:
        """How long each turn took, from the one of number `since` on."""
        return np.array(self._periods[since:])

    def timing(self) -> Timing:
        """Over all turns so far."""
        periods = np.frombuffer(self._periods, dtype=np.float64) if self._periods else np.zeros(0)
        jitter = np.abs(periods - self.period_s) * 1000 if len(periods) else np.zeros(1)
        return Timing(
            ticks=len(periods),
            period_ms=float(periods.mean() * 1000) if len(periods) else 0.0,
            jitter_ms_p50=float(np.percentile(jitter, 50)),
            jitter_ms_p99=float(np.percentile(jitter, 99)),
            jitter_ms_max=float(jitter.max()),
            overruns=self._overruns,
        )
