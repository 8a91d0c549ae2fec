"""How good a potential is: one function per metric, each with its source.

NaN is an abstention, or an unlabelled step in a truth: it is left out, and `AbstainedError` is raised when what is left
decides nothing. Report the share of abstentions beside any of these; a model that abstains where it is bad looks good.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
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
        """The worse of the two, in [-1, 1]: 1 only for a model that sees progress and its undoing; NaN if one is."""
        return float(np.minimum(self.plus, self.minus))


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


def kendall_tau(scores: ArrayLike, classes: ArrayLike) -> float:
    """Kendall's tau of episodes' scores (n) with their ordinal classes (n), such as 0 fail, 1 partial, 2 success.

    Over the pairs of *different* class: (ordered alike - ordered otherwise) / all of them, in [-1, 1]; a pair that
    shares its score is neither, so a constant scores 0. This is tau_a where every pair is comparable, and Somers' D
    (Am. Sociol. Rev. 27, 1962) in general. The classes hold many ties, which is why it is neither plain tau_a, whose
    denominator counts the pairs of one class too (a perfect ranking of three even classes scores 2/3), nor tau-b,
    which asks a continuous score to tie as often as the classes do (0.82 there). Published figures of ranking by
    quality label (RBM-EVAL, Robometer and RynnValue: tau_a, at best about 0.7) are of their own suites and may count
    ties otherwise. NaN on either side leaves the episode out. Raises `AbstainedError` unless two classes are left,
    `TraceError` on lengths that differ.
    """
    score, order = _both(scores, classes, at_least=2)
    higher = order[:, None] > order[None]
    if not higher.any():
        raise AbstainedError(
            f"all {len(order)} judged episodes are of class {order[0]:g}; expected two classes at least, to rank them"
        )
    return float(np.sign(score[:, None] - score[None])[higher].mean())


class Completion(IntEnum):
    """How an episode ended, in order. The truth's rule and the prediction's are `completion_class`."""

    FAIL = 0
    PARTIAL = 1
    SUCCESS = 2


PARTIAL_FROM = 0.5
"""Largest potential from which on an episode that did not succeed is a partial success."""
SUCCESS_FROM = 0.95
"""Potential that is a success where there is no success head: 1 - delta of Robo-Dopamine's Eq. 14."""


def completion_class(potential: ArrayLike, success: float) -> Completion:
    """Fail, partial or success of one episode, from its potentials (T) and P(done) of its last frame.

    Success if `success` is at least 0.5; where it is NaN (no success head, or it abstained) if the last potential is
    at least `SUCCESS_FROM`. Otherwise partial if the largest potential reached `PARTIAL_FROM`, else fail. The truth's
    class is the same rule on true progress and the true outcome (1 or 0). It was fixed before any model was measured,
    and it replaces Robo-Dopamine's (arXiv 2512.23703, Eq. 58: final above 0.8, last third above 0.6, mean from 0.4),
    whose averages over time take a slow success for a partial one. Raises `AbstainedError` where no potential is known,
    or, without `success`, not the last one.
    """
    values = _vector(potential, "potential")
    if np.isnan(values).all() or (np.isnan(success) and np.isnan(values[-1])):
        raise AbstainedError(
            f"{np.count_nonzero(~np.isnan(values))} of {len(values)} potentials are known, P(done) is {success}; "
            f"expected the last of either (count the episode as not judged)"
        )
    done = values[-1] >= SUCCESS_FROM if np.isnan(success) else success >= 0.5
    if done:
        return Completion.SUCCESS
    return Completion.PARTIAL if np.nanmax(values) >= PARTIAL_FROM else Completion.FAIL


def completion_accuracy(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Accuracy of completion classes (n) in [0, 1], every class that occurs in the truth weighing the same.

    Source: completion judgement of Robo-Dopamine, arXiv 2512.23703, Table 2, whose 20 successes, 20 partial and 20
    failed episodes per task make it the plain accuracy; the mean over classes keeps other mixtures comparable. NaN
    leaves an episode out. Raises `AbstainedError` when none is left, `TraceError` on lengths that differ.
    """
    predicted, true = _both(prediction, truth, at_least=1)
    return float(np.mean([(predicted[true == kind] == kind).mean() for kind in np.unique(true)]))


def roc_auc(succeeded: ArrayLike, failed: ArrayLike) -> float:
    """P(a success scores above a failure) from the scores (n), (m) of either, in [0, 1]; a tie counts one half.

    Source: Hanley & McNeil, Radiology 143, 1982: the area under the ROC curve. NaN leaves an episode out. Raises
    `AbstainedError` unless one of each is left.
    """
    done, not_done = _known(succeeded, "success scores"), _known(failed, "failure scores")
    ranks = stats.rankdata(np.concatenate([done, not_done]))[: len(done)]
    return float((ranks.sum() / len(done) - (len(done) + 1) / 2) / len(not_done))


def tpr_at_fpr(succeeded: ArrayLike, failed: ArrayLike, fpr: float) -> float:
    """Share of successes (n scores) recognised at the lowest threshold that lets at most `fpr` of failures (m) pass.

    A score passes strictly above the threshold, which is the score of a failure: ties count against the model. FPR 0
    therefore asks for more than the best of the m failures, and means the more the larger m is: report it. An
    abstention (NaN) recognises nothing, so that of a success it is a miss; a failure's is left out, which can only
    lower the number let through. In [0, 1]. A point of the ROC curve (Hanley & McNeil 1982), and the one that counts:
    a learner seeks out false successes. Raises `AbstainedError` without a success or a judged failure, `TraceError` on
    `fpr` outside [0, 1).
    """
    if not 0 <= fpr < 1:
        raise TraceError(f"fpr is {fpr}; expected a share of the failures in [0, 1), such as 0.01")
    not_done, done = _known(failed, "failure scores"), _vector(succeeded, "success scores")
    if len(done) == 0:
        raise AbstainedError("no success among the episodes; expected one at least, to recognise")
    passing = int(fpr * len(not_done) + 1e-9)  # 0.01 of 300 is 3, whatever floating point makes of it
    threshold = np.sort(not_done)[::-1][passing]
    return float((done > threshold).mean())


CHANGE_WINDOW = 5
"""Frames over which a change is looked at."""
CHANGE_THRESHOLD = 0.05
"""Change within a window that is more than standing still; above the label noise of single frames."""


def changes(
    values: ArrayLike, *, window: int = CHANGE_WINDOW, threshold: float = CHANGE_THRESHOLD
) -> Float[np.ndarray, " windows"]:
    """Rising (1), falling (-1) or flat (0): what the potentials (T) of one episode do in each of T - window windows.

    Window t goes from frame t to frame t + window, one begins at every frame, and it rises (falls) if the last is more
    than `threshold` above (below) the first; NaN where either is unknown. Runs of windows of one class are the
    intervals of RoboPulse++ (PRM-as-a-Judge 1.5, arXiv 2608.14284, rising and falling intervals), whose own cutting and
    matching are not published with it: here every window counts once, so a long interval weighs what it lasts.
    Raises `TraceError` if the window is shorter than one frame.
    """
    vector = _vector(values, "values")
    if window < 1:
        raise TraceError(f"window is {window}; expected a number of frames of at least 1")
    delta = vector[window:] - vector[:-window]
    # A little slack, so that a change of exactly the threshold is flat whatever its rounding.
    return np.where(np.abs(delta) <= threshold + 1e-6, 0.0, np.sign(delta))


def change_f1(prediction: ArrayLike, truth: ArrayLike, change: int) -> float:
    """F1 of recognising one class of `changes`, 1 rising, -1 falling or 0 flat, over windows (n) of any episodes.

    2 TP / (2 TP + FP + FN), in [0, 1], window by window, without tolerance in time. NaN in either leaves the window
    out; what the caller does not want judged (standing still where the task is done) is set to NaN in the truth.
    NaN if the class does not occur in the truth: there is nothing to find. Source: van Rijsbergen, Information
    Retrieval, 1979, as RoboPulse++ reports it per class. Raises `AbstainedError` when no window is left, `TraceError`
    on lengths that differ.
    """
    predicted, true = _both(prediction, truth, at_least=1)
    found, there = predicted == change, true == change
    return float(2 * (found & there).sum() / (found.sum() + there.sum())) if there.any() else float("nan")


LEVELS = np.arange(0.05, 1, 0.05)
"""Nominal coverages at which a spread is checked."""


def interval_coverage(
    prediction: ArrayLike, truth: ArrayLike, spread: ArrayLike, levels: ArrayLike = LEVELS
) -> Float[np.ndarray, " levels"]:
    """Share of steps (T) whose truth lies within the central normal interval of each level, in [0, 1].

    The interval of level 0.68 is about one spread to either side, that of 0.95 two. A spread that is right covers each
    level's own share. NaN in any of the three leaves the step out. Raises `AbstainedError` when none is left,
    `TraceError` on lengths that differ or a negative spread.
    """
    error, deviation = _errors_and_spread(prediction, truth, spread)
    halves = stats.norm.ppf((1 + np.asarray(levels, np.float64)) / 2)
    return (error[None] <= halves[:, None] * deviation[None]).mean(axis=1)


def calibration_error(prediction: ArrayLike, truth: ArrayLike, spread: ArrayLike) -> float:
    """Mean |coverage - nominal| of the spread's central normal intervals at 5, 10, ... 95 %, in [0, 0.5].

    0 for a spread that is right; 0.5 for one that is always too small, and also for one that is always too large:
    it says that the spread cannot be believed, `interval_coverage` says in which direction. Source: Kuleshov et al.
    2018, arXiv 1807.00263, Eq. 9, with absolute differences as the Uncertainty Toolbox, arXiv 2109.10254, has them.
    Unlike errors normalised by the spread (ENCE) it stays finite where a model claims certainty. Raises as
    `interval_coverage`.
    """
    return float(np.abs(interval_coverage(prediction, truth, spread) - LEVELS).mean())


def risk_coverage(
    prediction: ArrayLike, truth: ArrayLike, spread: ArrayLike
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Coverages 1/n, 2/n, ... 1 and the mean |prediction - truth| of that share of steps, smallest spread first.

    Steps of one spread come in no order: each stands for the mean of all of them. A spread that knows where the model
    errs makes a curve that rises. Source: Geifman & El-Yaniv 2017, arXiv 1705.08500 (selective risk). Raises as
    `interval_coverage`.
    """
    error, deviation = _errors_and_spread(prediction, truth, spread)
    _, group, sizes = np.unique(deviation, return_inverse=True, return_counts=True)
    expected = np.repeat(np.bincount(group, weights=error) / sizes, sizes)
    count = np.arange(1, len(error) + 1)
    return count / len(error), np.cumsum(expected) / count


def area_under_risk_coverage(prediction: ArrayLike, truth: ArrayLike, spread: ArrayLike) -> float:
    """AURC: mean risk over all coverages, in the unit of the prediction, at least 0; the smaller the better.

    A spread that says nothing makes it the mean absolute error: compare the two. Source: Geifman, Uziel & El-Yaniv
    2019, arXiv 1805.08206, with the absolute error as the risk. Raises as `interval_coverage`.
    """
    return float(risk_coverage(prediction, truth, spread)[1].mean())


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


def _known(scores: ArrayLike, name: str) -> np.ndarray:
    vector = _vector(scores, name)
    known = vector[~np.isnan(vector)]
    if len(known) == 0:
        raise AbstainedError(f"{len(vector)} {name}, none of them judged; expected at least one")
    return known


def _errors_and_spread(prediction: ArrayLike, truth: ArrayLike, spread: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    deviation = _vector(spread, "spread")
    if (deviation < 0).any():
        raise TraceError(f"a spread is {deviation.min()}; expected standard deviations of at least 0, NaN to abstain")
    predicted = _vector(prediction, "prediction")
    _check_lengths(predicted, deviation)
    judged = np.where(np.isnan(deviation), np.nan, predicted)
    known = ~np.isnan(judged) & ~np.isnan(_vector(truth, "truth"))
    predicted, true = _both(judged, truth, at_least=1)
    return np.abs(predicted - true), deviation[known]


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
