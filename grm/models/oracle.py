"""The reference implementation of `ProcessReward`: the truth, plus noise. For documentation, tests and ceilings."""

from collections.abc import Callable, Sequence
from typing import override

import numpy as np
from numpy.typing import ArrayLike

from ..errors import TraceError
from ..reward import Frame, Judgement, ProcessReward, Task


class Oracle[S](ProcessReward[S, int]):
    """Answers with the true progress of each step, plus Gaussian noise clipped to [0, 1].

    The noise is a function of the seed and the index of the step within its trace, not of a generator's state: the
    same carry and steps get the same answer, in whatever portions the steps arrive. So the carry is that index.
    """

    def __init__(self, progress: Callable[[S], float], *, noise: float = 0.0, seed: int = 0) -> None:
        """Ask `progress` for the true progress of a step: in [0, 1], or NaN to abstain.

        A table works through its lookup: `Oracle(table.__getitem__)`; a recorded episode through `progress_by_time`.
        `noise` is a standard deviation in potential, and the spread of every judgement.
        """
        if not noise >= 0:
            raise TraceError(f"noise is {noise}; expected a standard deviation of at least 0")
        self._progress = progress
        self._noise = noise
        self._seed = seed

    @override
    def start(self, task: Task) -> int:
        """No steps seen, whatever the task."""
        return 0

    @override
    def extend(self, carries: Sequence[int], steps: Sequence[Sequence[S]]) -> tuple[list[int], list[Judgement]]:
        """Raises `TraceError` if the true progress is outside [0, 1]."""
        judgements = [self._judge_from(seen, new) for seen, new in zip(carries, steps, strict=True)]
        return [seen + len(new) for seen, new in zip(carries, steps, strict=True)], judgements

    def _judge_from(self, seen: int, steps: Sequence[S]) -> Judgement:
        truth = np.array([self._progress(step) for step in steps], dtype=np.float64)
        wrong = np.flatnonzero((truth < 0) | (truth > 1))
        if len(wrong):
            raise TraceError(
                f"the true progress of step {seen + wrong[0]} is {truth[wrong[0]]}; expected a value in [0, 1], or NaN "
                f"to abstain"
            )
        noise = np.array([np.random.default_rng((self._seed, seen + i)).normal() for i in range(len(steps))])
        judged = ~np.isnan(truth)
        return Judgement(
            potential=np.clip(truth + self._noise * noise, 0.0, 1.0),
            spread=np.where(judged, self._noise, np.nan),
            judged=judged,
        )


def progress_by_time(times: ArrayLike, progress: ArrayLike) -> Callable[[Frame], float]:
    """True progress of a frame by its time: linear between `times` (T, seconds, increasing), held beyond its ends.

    Raises `TraceError` on times that do not increase or on lengths that differ.
    """
    at, value = np.asarray(times, dtype=np.float64), np.asarray(progress, dtype=np.float64)
    if at.ndim != 1 or at.shape != value.shape or len(at) == 0 or not (np.diff(at) > 0).all():
        raise TraceError(
            f"times of shape {at.shape} for progress of shape {value.shape}; expected two vectors of one length, at "
            f"least 1, times strictly increasing"
        )
    return lambda frame: float(np.interp(frame.time, at, value))
