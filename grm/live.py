"""A process reward while it happens: one carry, the newest frame, a deadline and no illusions about age.

There are no threads here and no hardware. Whoever owns the loop decides what to do with a late or stale potential;
this module makes sure that it knows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import AbstainedError, TraceError
from .reward import Frame, Judgement, ProcessReward, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePotential:
    """What is known of the newest judged frame, and how old that knowledge is."""

    potential: float
    """Φ in [0, 1]; NaN where the model abstained."""
    spread: float
    """One standard deviation of `potential`; NaN where the model abstained."""
    judged: bool
    """False where the model abstained."""
    time: float
    """The frame's own time, in seconds since the episode began."""
    latency_s: float
    """Seconds the model took."""
    late: bool
    """Whether that was longer than the deadline. A late potential is as true as any: it describes its own frame."""
    age_s: float
    """Seconds since the frame was handed over, on the clock of the one asking; equals `latency_s` when new."""
    judgement: Judgement
    """The model's whole answer for this one step: its success head, its perspectives."""


class LiveReward[C]:
    """Scores frames as they come, with one carry; by the laws of `ProcessReward` it says what `judge` would say.

    One object per episode. Not for use from several threads at once.
    """

    def __init__(
        self,
        model: ProcessReward[Frame, C],
        task: Task,
        *,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start an episode. `deadline_s` is what one frame may take; `clock` gives seconds and never runs backwards."""
        if not deadline_s > 0:
            raise TraceError(f"deadline_s is {deadline_s}; expected seconds above 0, such as one control period")
        self._model = model
        self._carry = model.start(task)
        self._deadline_s = deadline_s
        self._clock = clock
        self._newest: LivePotential | None = None
        self._handed_over = 0.0

    @property
    def carry(self) -> C:
        """The model's memory of every frame fed so far; immutable, so it may be kept and branched from."""
        return self._carry

    def feed(self, frame: Frame) -> LivePotential:
        """Judge the newest frame, and remember it also when that was late: a gap in the carry would cost more.

        Raises `TraceError` if the frame's time is not after that of the frame before; whenever this raises, the carry
        is what it was, and the next frame may be fed.
        """
        if self._newest is not None and frame.time <= self._newest.time:
            raise TraceError(
                f"frame of time {frame.time} s after one of {self._newest.time} s; expected strictly increasing times "
                f"(a new episode needs a new LiveReward)"
            )
        handed_over = self._clock()
        [carry], [judgement] = self._model.extend([self._carry], [[frame]])
        latency_s = self._clock() - handed_over
        self._carry, self._handed_over = carry, handed_over
        self._newest = LivePotential(
            potential=float(judgement.potential[0]),
            spread=float(judgement.spread[0]),
            judged=bool(judgement.judged[0]),
            time=frame.time,
            latency_s=latency_s,
            late=latency_s > self._deadline_s,
            age_s=latency_s,
            judgement=judgement,
        )
        return self._newest

    def latest(self, max_age_s: float) -> LivePotential:
        """The newest potential with its age now, at most `max_age_s` seconds.

        Raises `AbstainedError` if there is none yet or it is older: a potential of a while ago is not the potential.
        """
        if self._newest is None:
            raise AbstainedError("no frame was fed yet; expected at least one before asking for a potential")
        age_s = self._clock() - self._handed_over
        if age_s > max_age_s:
            raise AbstainedError(
                f"the newest potential is {age_s:.3f} s old; expected at most {max_age_s:.3f} s (feed a fresh frame, "
                f"or stop relying on the potential)"
            )
        return replace(self._newest, age_s=age_s)
