"""Step labels: the potential every step of an episode is trained towards, by where the knowledge comes from.

from_keyframes      a person marked the sub-tasks                     Robo-Dopamine, arXiv 2512.23703, Eq. 1
from_time           nothing but a successful demonstration            time-contrastive practice (GVL, ReWIND)
from_time_to_go     a prover said how long it needs from each state   exact up to the prover
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from .errors import TraceError


class KeyframeLabels(NamedTuple):
    """Labels of one episode from its sub-tasks."""

    frames: Int[np.ndarray, " samples"]
    """Indices of the sampled frames, increasing: what to train on."""
    potentials: Float[np.ndarray, " samples"]
    """Their potentials i/M, from 0 to 1."""
    every_frame: Float[np.ndarray, " length"]
    """Linear interpolation to each frame of the episode; 0 before the first sub-task, 1 after the last."""


def from_keyframes(segments: Sequence[tuple[int, int]], length: int, chunk: int = 20) -> KeyframeLabels:
    """Sample frames adaptively inside each of N sub-tasks and label them i/M, i = 0…M. Eq. 1.

    `segments` are (first, last) frame indices in order, without gaps or overlaps: each begins at the end of the one
    before or at the next frame. Every segment gets the same number of points, floor(floor(L / chunk) / N) where L is
    the number of frames annotated, at least 1 and at most one per frame, so that each sub-task receives about the same
    share of progress however long it takes. (The official code samples likewise but rounds where the paper floors.)
    `chunk` is in frames; the default is the official code's. Raises `TraceError` on segments that are none of this.
    """
    if not segments:
        raise TraceError("no segments; expected (first, last) frame indices of at least one sub-task")
    if chunk < 1:
        raise TraceError(f"chunk is {chunk}; expected at least one frame")
    keyframes = [segments[0][0]]
    for i, (first, last) in enumerate(segments):
        if last <= first:
            raise TraceError(f"segment {i} is ({first}, {last}); expected its last frame after its first")
        if i > 0 and first - keyframes[-1] not in (0, 1):
            raise TraceError(
                f"segment {i} begins at frame {first} and the one before ends at {keyframes[-1]}; expected the same "
                f"frame or the next (extend one of them over a gap)"
            )
        keyframes.append(last)
    if keyframes[0] < 0 or keyframes[-1] >= length:
        raise TraceError(
            f"segments span frames {keyframes[0]} to {keyframes[-1]}; expected 0 to {length - 1} in an episode of "
            f"{length} frames"
        )
    points = max(1, (keyframes[-1] - keyframes[0]) // chunk // len(segments))
    samples = [
        np.rint(np.linspace(start, stop, min(points, stop - start) + 1)).astype(np.int64)
        for start, stop in itertools.pairwise(keyframes)
    ]
    frames = np.unique(np.concatenate(samples))
    potentials = np.linspace(0.0, 1.0, len(frames))
    return KeyframeLabels(frames, potentials, np.interp(np.arange(length), frames, potentials))


def from_time(length: int) -> Float[np.ndarray, " length"]:
    """Potential of each frame of a *successful* episode as its share of the time, from 0 to 1.

    Wrong wherever the demonstrator hesitates, and for every failure. Raises `TraceError` below two frames.
    """
    if length < 2:
        raise TraceError(f"an episode of {length} frames; expected at least a beginning and an end")
    return np.linspace(0.0, 1.0, length)


def from_time_to_go(time_to_go: ArrayLike, horizon: float, gamma: float | None = None) -> Float[np.ndarray, " T"]:
    """Potential from the control steps a prover still needs from each of T states.

    `time_to_go` is 0 at success, inf where the prover fails from there and NaN where nobody asked; `horizon` is a
    reference for the task or instance, in the same control steps: the prover's own time from the initial state. Then

        Φ = max(0, 1 - ttg / horizon)                        without a discount, the limit γ → 1 of
        Φ = max(0, (γ^ttg - γ^horizon) / (1 - γ^horizon))    with one

    Both are 1 at success and nowhere else, 0 at the start, strictly decreasing in between; states worse than the start
    have undone nothing that can be measured in shares of the work, and are 0 like states the prover fails from. (The
    slope is one instance's pace: dividing by the length of the episode instead would tell a slow demonstrator from a
    fast one in the same state.) `gamma` in (0, 1) puts Φ on the scale of a value; with an infinite horizon it is the
    value γ^ttg itself, and then 0 only where the prover fails. NaN stays NaN, unlabelled. Raises `TraceError` on a
    negative time, a horizon that is not positive, or an infinite one without a discount.
    """
    ttg = np.asarray(time_to_go, dtype=np.float64)
    if (ttg < 0).any():
        raise TraceError(f"a time-to-go is {ttg[ttg < 0].flat[0]}; expected control steps, 0 at success")
    if not horizon > 0 or (gamma is None and np.isinf(horizon)):
        raise TraceError(f"horizon is {horizon}; expected control steps above 0, infinite only with a discount")
    if gamma is None:
        return np.maximum(0.0, 1.0 - ttg / horizon)
    if not 0 < gamma < 1:
        raise TraceError(f"gamma is {gamma}; expected a discount in (0, 1), or None for none")
    worst = gamma**horizon
    return np.maximum(0.0, (gamma**ttg - worst) / (1.0 - worst))


def smooth_time_to_go(time_to_go: ArrayLike, window: int) -> Float[np.ndarray, " T"]:
    """Median of each time-to-go over a centred window, against a brittle prover.

    A single scripted prover jitters by a few steps and falls to "never" for short stretches in the middle of a
    promising rollout; labelled as it stands, such a state has Φ = 0 between neighbours at .6. A median that takes inf
    as larger than everything undoes any such stretch shorter than half the window, and keeps longer ones: they are
    real. `window` is odd, in samples. Towards the ends the window shrinks on both sides alike, because a lopsided
    median of a falling sequence is biased; the first and the last value are kept. NaN stays NaN and does not vote; a
    tie between a number and inf is inf. Raises `TraceError` on an even or negative window or a negative time.
    """
    ttg = np.asarray(time_to_go, dtype=np.float64)
    if window < 1 or window % 2 == 0:
        raise TraceError(f"window is {window}; expected an odd number of samples, so that it has a centre")
    if (ttg < 0).any():
        raise TraceError(f"a time-to-go is {ttg[ttg < 0].flat[0]}; expected control steps, 0 at success")
    smooth = ttg.copy()
    for t in np.flatnonzero(~np.isnan(ttg)):
        half = min(window // 2, t, len(ttg) - 1 - t)
        around = ttg[t - half : t + half + 1]
        smooth[t] = np.median(around[~np.isnan(around)])
    return smooth
