"""Best-of-N: the candidate that its judge scores highest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AbstainedError, TraceError
from ..reward import Judge, Judgement, Task


@dataclass(frozen=True, slots=True)
class Best:
    """The best of N candidates."""

    index: int
    """Of the candidate; of several with one score the first."""
    scores: tuple[float, ...]
    """Of all N; NaN where the judge abstained."""

    @property
    def n_abstained(self) -> int:
        """Candidates that were left out because they have no score."""
        return int(np.isnan(self.scores).sum())


def best_of(scores: ArrayLike) -> Best:
    """The highest of N scores; NaN is no score and is left out, never taken for the lowest one.

    Raises `AbstainedError` if none is left, `TraceError` if there were none.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise TraceError(f"scores of shape {values.shape}; expected one number for each of at least one candidate")
    if np.isnan(values).all():
        raise AbstainedError(f"no score for any of {len(values)} candidates; expected one at least (take the majority)")
    return Best(int(np.nanargmax(values)), tuple(values.tolist()))


def score_candidates[S, J: Judgement](
    judge: Callable[[Task, Sequence[S]], J],
    task: Task,
    candidates: Sequence[Sequence[S]],
    aggregate: Callable[[J], float],
) -> list[float]:
    """One number per candidate: `aggregate` of what `judge` (a `Judge.judge`) says; NaN where it abstains.

    `aggregate` is one of `grm.aggregate` that is right for the judge's kind of score, or `Judgement.last`.
    """
    return [_or_nan(aggregate, judge(task, steps)) for steps in candidates]


def best_of_n[S](
    judge: Judge[S],
    task: Task,
    candidates: Sequence[Sequence[S]],
    aggregate: Callable[[Judgement], float] = Judgement.last,
) -> Best:
    """The best of N finished traces, by default by the potential after their last step. Raises as `best_of`."""
    return best_of(score_candidates(judge.judge, task, candidates, aggregate))


def _or_nan[J: Judgement](aggregate: Callable[[J], float], judgement: J) -> float:
    try:
        return aggregate(judgement)
    except AbstainedError:
        return float("nan")
