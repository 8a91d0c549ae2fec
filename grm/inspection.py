"""What happened in recorded episodes: where progress was made, where it was lost, which ones to look at first.

A recording is judged as a stream, some frames at a time, so memory does not grow with it. What is said of an episode
follows from the judged potentials by fixed rules, each documented where it is computed; nothing here is learned.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .data.recordings import Recording
from .data.video import thumbnail
from .errors import TraceError
from .metrics import SUCCESS_FROM, Completion, completion_class
from .reward import Frame, Judgement, PerspectiveJudgement, ProcessReward, Task

REGRESSION = 0.1
"""Fall of Φ from its last peak that is lost progress and not noise; also what ends one: a rise as large."""
STALL_S = 2.0
"""Shortest time without progress that is a stall."""
STALL_CHANGE = 0.05
"""Largest change of Φ within a stall, as in `grm.metrics.changes`."""
MILESTONES = (0.25, 0.5, 0.75, SUCCESS_FROM)
"""Potentials whose first moment is reported."""
DUPLICATE = 0.004
"""Mean difference of two fingerprints, of 1, below which they are of one and the same episode: compressed anew, a
picture differs by about as much."""
_CHUNK = 32
_FINGERS, _FINGER_SIDE = 16, 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of an episode, by the times of its first and last judged frame."""

    start_s: float
    end_s: float
    depth: float
    """How far Φ fell from the start to the end; 0 for a stall."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """One episode of T judged frames. Where `judged` is False the model abstained, and all series are NaN."""

    name: str
    time_s: Float[np.ndarray, " T"]
    frame: Int[np.ndarray, " T"]
    """Number of each in the recording's stream."""
    potential: Float[np.ndarray, " T"]
    spread: Float[np.ndarray, " T"]
    judged: Bool[np.ndarray, " T"]
    incremental: Float[np.ndarray, " T"]
    forward: Float[np.ndarray, " T"]
    backward: Float[np.ndarray, " T"]
    absolute: Float[np.ndarray, " T"]
    success: Float[np.ndarray, " T"]
    """P(done); NaN throughout for a model without such a head, like the three perspectives."""
    fingerprint: Float[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    """Some of its pictures, small and grey, in [0, 1]: see `near_duplicates`."""
    succeeded: bool | None = None
    """As recorded; None where nobody said."""

    @property
    def final(self) -> float:
        """Φ of the last judged frame; NaN where none was."""
        known = self.potential[self.judged]
        return float(known[-1]) if len(known) else float("nan")

    @property
    def best(self) -> float:
        """Largest Φ; NaN where no frame was judged."""
        known = self.potential[self.judged]
        return float(known.max()) if len(known) else float("nan")

    @property
    def verdict(self) -> Completion | None:
        """Success, partial or fail by `completion_class`; None where the end was not judged."""
        if not self.judged.any() or not self.judged[-1]:
            return None
        return completion_class(self.potential, float(self.success[-1]))

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict is what was recorded; None where either is unknown."""
        if self.succeeded is None or self.verdict is None:
            return None
        return self.succeeded == (self.verdict is Completion.SUCCESS)

    @property
    def regressions(self) -> list[Stretch]:
        """See `regressions`."""
        return regressions(self.time_s[self.judged], self.potential[self.judged])

    @property
    def stalls(self) -> list[Stretch]:
        """See `stalls`."""
        return stalls(self.time_s[self.judged], self.potential[self.judged])

    @property
    def milestones_s(self) -> dict[float, float]:
        """When Φ first reached each of `MILESTONES`; those it never reached are absent."""
        time, known = self.time_s[self.judged], self.potential[self.judged]
        return {level: float(time[known >= level][0]) for level in MILESTONES if (known >= level).any()}

    @property
    def advice(self) -> str:
        """What to do with it in training: keep; weight (frame by frame, as RA-BC does); drop; or look at it first.

        Look: the verdict contradicts the record, or the end was not judged. Drop: it failed. Weight: it succeeded in
        part, or on the way lost progress once or more. Keep: all others.
        """
        if self.verdict is None or self.agrees is False:
            return "look"
        if self.verdict is Completion.FAIL:
            return "drop"
        return "weight" if self.verdict is Completion.PARTIAL or self.regressions else "keep"


def inspect(
    model: ProcessReward[Frame, Any],
    recording: Recording,
    goal: Frame | None,
    *,
    stride: int = 1,
    after_each: Callable[[int], None] = lambda frames: None,
    watch: Callable[[int, Frame], None] = lambda number, frame: None,
) -> Inspection:
    """Judge every `stride`-th frame of the stream, and the last.

    `after_each` hears how many frames were judged; `watch` is shown each of them, with its number among the judged, in
    another thread.

    Raises `TraceError` where the recording cannot be read to its end, or holds no frame.
    """
    carry = model.start(Task(instruction=recording.instruction, goal=goal))
    parts: list[Judgement] = []
    times: list[float] = []
    sampled = recording.sampled(stride)
    shown = np.linspace(0, max(0, len(sampled) - 1), _FINGERS).round().astype(int)
    fingers: list[np.ndarray] = []
    chunks = batched(recording.frames(stride), _CHUNK)

    def look() -> tuple[Frame, ...]:
        frames = next(chunks, ())
        for number, frame in enumerate(frames, len(times)):
            watch(number, frame)
            fingers.extend([_finger(frame, recording.views)] * int((shown == number).sum()))
        times.extend(frame.time for frame in frames)
        return frames

    with ThreadPoolExecutor(1) as reader:  # reads the next frames while these are judged
        ahead = reader.submit(look)
        while frames := ahead.result():
            ahead = reader.submit(look)
            [carry], [judgement] = model.extend([carry], [frames])
            parts.append(judgement)
            after_each(len(frames))
    if not parts:
        raise TraceError(f"{recording.name} holds no frame; expected at least one")

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    perspectives = isinstance(parts[0], PerspectiveJudgement)
    unknown = np.full(len(times), np.nan)
    return Inspection(
        name=recording.name,
        time_s=np.array(times),
        frame=sampled,
        potential=column("potential"),
        spread=column("spread"),
        judged=column("judged"),
        **{
            name: column(name) if perspectives else unknown
            for name in ("incremental", "forward", "backward", "absolute", "success")
        },
        fingerprint=np.concatenate(fingers) if fingers else np.zeros(0),
        succeeded=recording.succeeded,
    )


def near_duplicates(inspections: Sequence[Inspection]) -> list[tuple[str, str]]:
    """Names of pairs that show the same: a recording that was copied, or compressed anew."""
    found = []
    for k, one in enumerate(inspections):
        for other in inspections[:k]:
            same = len(one.fingerprint) == len(other.fingerprint) > 0
            if same and np.abs(one.fingerprint - other.fingerprint).mean() < DUPLICATE:
                found.append((other.name, one.name))
    return found


def regressions(
    time_s: Float[np.ndarray, " T"], potential: Float[np.ndarray, " T"], depth: float = REGRESSION
) -> list[Stretch]:
    """Falls of Φ by at least `depth` in [0, 1], each from the peak before it to the lowest point after it.

    A fall is over when Φ has risen by `depth` from its lowest point: smaller wiggles neither end a fall nor are one.
    """
    found: list[Stretch] = []
    peak = low = 0
    falling = False
    for t in range(len(potential)):
        if not falling:
            if potential[t] >= potential[peak]:
                peak = t
            elif potential[peak] - potential[t] >= depth - 1e-9:
                falling, low = True, t
            continue
        if potential[t] <= potential[low]:
            low = t
        elif potential[t] - potential[low] >= depth - 1e-9:
            found.append(_stretch(time_s, peak, low, potential[peak] - potential[low]))
            falling, peak = False, t
    if falling:
        found.append(_stretch(time_s, peak, low, potential[peak] - potential[low]))
    return found


def stalls(
    time_s: Float[np.ndarray, " T"],
    potential: Float[np.ndarray, " T"],
    *,
    seconds: float = STALL_S,
    change: float = STALL_CHANGE,
) -> list[Stretch]:
    """Longest stretches of at least `seconds` in which Φ changes by no more than `change`, in order, without overlap.

    Standing still where the task is done (Φ of at least `SUCCESS_FROM`) is none.
    """
    found: list[Stretch] = []
    start = 0
    while start < len(potential):
        low = high = potential[start]
        end = start
        for t in range(start + 1, len(potential)):
            low, high = min(low, potential[t]), max(high, potential[t])
            if high - low > change + 1e-9:
                break
            end = t
        if time_s[end] - time_s[start] >= seconds - 1e-9 and potential[start] < SUCCESS_FROM:
            found.append(_stretch(time_s, start, end, 0.0))
            start = end + 1
        else:
            start += 1
    return found


def triage(inspections: Iterable[Inspection]) -> list[Inspection]:
    """Worst first: those to look at, failures, partial successes, successes; within each by Φ at the end."""
    order = {"look": 0, "drop": 1, "weight": 2, "keep": 3}
    return sorted(inspections, key=lambda one: (order[one.advice], np.nan_to_num(one.final, nan=-1.0), one.name))


def every_frame(inspection: Inspection, length: int) -> Float[np.ndarray, " length"]:
    """Φ of each frame of the stream: judged, or on the line between two judged neighbours; NaN elsewhere.

    Nothing is drawn across an abstention. The last frame of the stream is a judged one.
    """
    values = np.full(length, np.nan)
    values[inspection.frame] = inspection.potential
    for (a, va), (b, vb) in zip(
        zip(inspection.frame[:-1], inspection.potential[:-1], strict=True),
        zip(inspection.frame[1:], inspection.potential[1:], strict=True),
        strict=True,
    ):
        values[a : b + 1] = np.linspace(va, vb, b - a + 1)
        values[b] = vb  # a NaN at one end must not blot out the number at the other
        values[a] = va
    return values


def _finger(frame: Frame, views: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Each view's picture, small and grey, in [0, 1]; 0 where it shows nothing."""
    nothing = np.zeros((_FINGER_SIDE, _FINGER_SIDE), np.uint8)
    pictures = [thumbnail(frame.views[name], _FINGER_SIDE) if name in frame.views else nothing for name in views]
    return np.array(pictures).ravel() / 255


def _stretch(time_s: Sequence[float] | np.ndarray, start: int, end: int, depth: float) -> Stretch:
    return Stretch(float(time_s[start]), float(time_s[end]), round(float(depth), 4))
