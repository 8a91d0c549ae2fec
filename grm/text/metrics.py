"""How good a judge of reasoning is: finding the first error, telling right solutions from wrong, and known biases.

Two metrics are called "ProcessBench F1": `first_error_f1` is that of ProcessBench itself, the harmonic mean of two
accuracies; `whole_solution_f1` is the binary one that ThinkPRM reports on the same data. They are not comparable.

A prediction that could not be read is None. It counts as wrong, whatever the truth, and is counted by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AbstainedError, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstErrorF1:
    """ProcessBench's metric and its parts, each in [0, 1]; a part is NaN if there are no such solutions."""

    f1: float
    accuracy_wrong: float
    """Of the solutions with an error, those whose first error was found at its place."""
    accuracy_right: float
    """Of the solutions without, those that were found to have none."""
    n_unread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeSolutionF1:
    """Binary F1 and its parts, each in [0, 1]."""

    f1: float
    precision: float
    """NaN if nothing was called right."""
    recall: float
    n_unread: int


def first_error(scores: ArrayLike, threshold: float = 0.5) -> int | None:
    """Index of the first of T scores below `threshold`, -1 for none; None if the judge abstains (NaN) before it."""
    for i, score in enumerate(np.asarray(scores, np.float64).tolist()):
        if math.isnan(score):
            return None
        if score < threshold:
            return i
    return -1


def first_error_f1(prediction: Sequence[int | None], truth: Sequence[int]) -> FirstErrorF1:
    """F1 of first errors (n), by index from 0, -1 for none: 2 a b / (a + b) of the accuracies a on wrong, b on right.

    0 if both accuracies are, where ProcessBench's script divides 0 by 0. Source: ProcessBench, arXiv 2412.06559.
    Raises `AbstainedError` unless there are solutions of both kinds, `TraceError` on lengths that differ.
    """
    _check(prediction, truth)
    hits = np.array([p == t for p, t in zip(prediction, truth, strict=True)], bool)
    wrong = np.array([t >= 0 for t in truth], bool)
    if not wrong.any() or wrong.all():
        raise AbstainedError(
            f"{wrong.sum()} of {len(wrong)} solutions have an error; expected some with and some without one"
        )
    on_wrong, on_right = float(hits[wrong].mean()), float(hits[~wrong].mean())
    total = on_wrong + on_right
    return FirstErrorF1(
        f1=2 * on_wrong * on_right / total if total else 0.0,
        accuracy_wrong=on_wrong,
        accuracy_right=on_right,
        n_unread=sum(p is None for p in prediction),
    )


def first_error_accuracy(prediction: Sequence[int | None], truth: Sequence[int]) -> float:
    """Share of solutions (n) whose first error, or its absence, is found at its place, in [0, 1].

    Depends on how many are wrong: a labeller that finds no error anywhere scores the share of right ones. Raises
    `AbstainedError` without a solution, `TraceError` on lengths that differ.
    """
    _check(prediction, truth)
    if not truth:
        raise AbstainedError("no solutions; expected one at least")
    return float(np.mean([p == t for p, t in zip(prediction, truth, strict=True)]))


def whole_solution_f1(prediction: Sequence[bool | None], truth: Sequence[bool]) -> WholeSolutionF1:
    """F1 of calling whole solutions (n) right; True, the positive class, is a right one.

    That the papers count right ones is inferred: the random baseline of ThinkPRM, arXiv 2504.16828, of 39.1 and 32.7 is
    what a coin scores on the share of right solutions (34 and 24 %) of those sets. There an unread verdict passes for
    "wrong", which is right for free on every wrong solution; here it is a miss or a false alarm. 0 if no right
    solution is called right. Raises `AbstainedError` without a right solution, `TraceError` on lengths that differ.
    """
    _check(prediction, truth)
    if not any(truth):
        raise AbstainedError(f"none of {len(truth)} solutions is right; expected one at least, to recognise")
    pairs = list(zip(prediction, truth, strict=True))
    hits = sum(p is True and t for p, t in pairs)
    alarms = sum(p is not False and not t for p, t in pairs)
    return WholeSolutionF1(
        f1=2 * hits / (hits + alarms + sum(truth)),
        precision=hits / (hits + alarms) if hits + alarms else math.nan,
        recall=hits / sum(truth),
        n_unread=sum(p is None for p in prediction),
    )


def best_threshold(scores: Sequence[ArrayLike], truth: Sequence[int]) -> float:
    """The threshold of `first_error` with the highest `first_error_f1` on these solutions; of several the middle one.

    To be chosen on one set and used on the others: ProcessBench takes GSM8K's. Raises as `first_error_f1`.
    """
    finite = np.concatenate([np.asarray(one, np.float64).ravel() for one in scores]) if len(scores) else np.empty(0)
    values = np.unique(finite[~np.isnan(finite)])
    # Between neighbours nothing changes, so one threshold for each gap will do.
    tried = [*((values[1:] + values[:-1]) / 2).tolist(), *(() if len(values) == 0 else (values[0], values[-1] + 1e-9))]
    f1 = {t: first_error_f1([first_error(one, t) for one in scores], truth).f1 for t in sorted(tried)}
    if not f1:
        raise AbstainedError("no score was judged; expected one at least, to choose a threshold")
    top = max(f1.values())
    among = [t for t, value in f1.items() if value == top]
    return float(among[len(among) // 2])


def min_at_last_share(scores: Sequence[ArrayLike]) -> float:
    """Share of solutions whose lowest score is that of the last step, in [0, 1].

    High for a judge that has drifted from process to outcome: it waits for the answer (17 to 18 % for Qwen's PRMs, 42
    to 55 % for others). Source: Qwen "Lessons", arXiv 2501.07301. Strictly the lowest: a judge that says
    one thing throughout says nothing of the last. Solutions of one step, or with an abstention, are left out; raises
    `AbstainedError` if all are.
    """
    vectors = [np.asarray(one, np.float64) for one in scores]
    known = [one for one in vectors if len(one) > 1 and not np.isnan(one).any()]
    if not known:
        raise AbstainedError(
            f"none of {len(vectors)} solutions has two steps or more, all judged; expected one at least"
        )
    return float(np.mean([one[-1] < one[:-1].min() for one in known]))


def flawed_share(final_answer_correct: Sequence[bool], truth: Sequence[int]) -> float:
    """Of the solutions (n) whose final answer is right, the share that has an error, in [0, 1].

    5.1 % on GSM8K, 43.4 % on Omni-MATH: the answers that best-of-N cannot see through. Source: Qwen "Lessons",
    arXiv 2501.07301. Raises `AbstainedError` without a right answer, `TraceError` on lengths that differ.
    """
    _check(final_answer_correct, truth)
    errors = [t >= 0 for right, t in zip(final_answer_correct, truth, strict=True) if right]
    if not errors:
        raise AbstainedError(f"none of {len(truth)} final answers is right; expected one at least")
    return float(np.mean(errors))


def flaw_recall(prediction: Sequence[int | None], final_answer_correct: Sequence[bool], truth: Sequence[int]) -> float:
    """Of the solutions with a right final answer and an error, the share in which one is found, at any step.

    The second bias of best-of-N: 3.8 % for Math-Shepherd's PRM, 53.9 % for Qwen's. Source: Qwen "Lessons", 2501.07301.
    Raises `AbstainedError` without such a solution, `TraceError` on lengths that differ.
    """
    _check(prediction, truth)
    _check(final_answer_correct, truth)
    rows = zip(prediction, final_answer_correct, truth, strict=True)
    found = [p is not None and p >= 0 for p, right, t in rows if right and t >= 0]
    if not found:
        raise AbstainedError(f"none of {len(truth)} solutions has a right answer and an error; expected one at least")
    return float(np.mean(found))


def _check(prediction: Sequence[object], truth: Sequence[object]) -> None:
    if len(prediction) != len(truth):
        raise TraceError(f"{len(prediction)} predictions for {len(truth)} solutions; expected one for each")
