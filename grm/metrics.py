"""How good a potential is: one function per metric, each with its source.

NaN is an abstention, or an unlabelled step in a truth: it is left out, and `AbstainedError` is raised when what is left
decides nothing. Report the share of abstentions beside any of these; a model that abstains where it is bad looks good.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import AbstainedError, TraceError
from .hops import fold_hops


class ValueOrder(NamedTuple):
    """Value-order correlation of an episode watched forwards and backwards, each in [-1, 1]."""

    plus: float
    """VOC+: of the potentials folded from 0 over the hops as they happened."""
    minus: float
    """VOC-: of the potentials folded back from 1 over the same pairs swapped, in the original order."""

    @property
    def both(self) -> float:
        """The worse of the two, in [-1, 1]: 1 only for a model that sees progress and its undoing."""
        return min(self.plus, self.minus)


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    high: float


def value_order_correlation(potential: ArrayLike) -> float:
    """Spearman correlation of the potentials (T) of a successful episode with time, in [-1, 1].

    Source: GVL, arXiv 2411.04549; VOC+ of Robo-Dopamine, arXiv 2512.23703, Table 1. A constant potential orders
    nothing and scores 0. Never report it alone: any model that always says "a bit further" scores 1 (see `voc_pair`),
    and errors of calibration do not show at all (see `mean_absolute_error`). Raises `AbstainedError` below two judged
    steps.
    """
    values = _vector(potential, "potential")
    correlation = spearman(values, np.where(np.isnan(values), np.nan, np.arange(len(values))))
    return 0.0 if np.isnan(correlation) else correlation


def voc_pair(hops_forward: ArrayLike, hops_reversed: ArrayLike) -> ValueOrder:
    """VOC+ and VOC- of a hop model on a successful episode of T + 1 frames.

    `hops_forward[t]` is H(t, t + 1) and `hops_reversed[t]` is H(t + 1, t), both (T) in [-1, 1]: the same pair asked
    both ways. The first are folded from 0 towards the end, the second from 1 at the last frame back to the first; a
    perfect model scores +1 on both. A model that always says "+1 %" orders the first perfectly and leaves the second
    at 1 throughout: (1, 0), and `both` is 0. Source: Robo-Dopamine-Bench, protocol of the released evaluation code.

    Raises `AbstainedError` if a hop is missing (everything beyond it would be unknown), `TraceError` on values out of
    range or lengths that differ.
    """
    forward, backward = _vector(hops_forward, "hops"), _vector(hops_reversed, "hops")
    _check_lengths(forward, backward)
    missing = np.flatnonzero(np.isnan(forward) | np.isnan(backward))
    if len(missing):
        raise AbstainedError(
            f"the model abstained on the pair at {missing[0]} of {len(forward)}; expected all hops, since potentials "
            f"beyond a missing one are unknown (leave the frame out and ask for the pair around it)"
        )
    return ValueOrder(
        plus=value_order_correlation(fold_hops(0.0, forward)),
        minus=value_order_correlation(fold_hops(1.0, backward[::-1])[::-1]),
    )


def mean_absolute_error(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Mean |prediction - truth| over the steps (T) where neither is NaN, in the unit of both. At least 0.

    Source: ProgressCompass reports it (x 100) next to the rank correlation, which is blind to calibration. Raises
    `AbstainedError` when no step is left, `TraceError` on lengths that differ.
    """
    predicted, true = _both(prediction, truth, at_least=1)
    return float(np.abs(predicted - true).mean())


def spearman(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Spearman's rank correlation over the steps (T) where neither is NaN, in [-1, 1]; ties share their mean rank.

    NaN if prediction or truth is constant there: a correlation with a constant is undefined, and neither 0 nor 1 would
    be true. Raises `AbstainedError` below two steps, `TraceError` on lengths that differ.
    """
    predicted, true = _both(prediction, truth, at_least=2)
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(predicted), stats.rankdata(true))[0, 1])


def expected_interval(
    values: ArrayLike, rng: np.random.Generator, *, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Mean of independent values (n), one per episode or seed, with its percentile bootstrap interval.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13. Too narrow for a handful of values: it
    cannot see beyond them, and of a single one it makes a point. Raises `TraceError` if there is none or one is not
    finite: leaving out what failed is the caller's decision, to be reported.
    """
    sample = _vector(values, "values")
    if len(sample) == 0 or not np.isfinite(sample).all():
        raise TraceError(
            f"{len(sample)} values of which {np.count_nonzero(~np.isfinite(sample))} are not finite; expected at least "
            f"one, all finite (leave out abstentions and report how many)"
        )
    means = [rng.choice(sample, len(sample)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise TraceError(f"{name} of shape {vector.shape}; expected a vector, one number per step of one episode")
    return vector


def _check_lengths(one: np.ndarray, other: np.ndarray) -> None:
    if one.shape != other.shape:
        raise TraceError(f"{len(one)} numbers against {len(other)}; expected one of each per step")


def _both(prediction: ArrayLike, truth: ArrayLike, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = _vector(prediction, "prediction"), _vector(truth, "truth")
    _check_lengths(predicted, true)
    known = ~(np.isnan(predicted) | np.isnan(true))
    if known.sum() < at_least:
        raise AbstainedError(
            f"{known.sum()} of {len(known)} steps are judged and labelled; expected at least {at_least} (count the "
            f"episode as not judged)"
        )
    return predicted[known], true[known]
