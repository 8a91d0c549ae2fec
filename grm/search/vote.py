"""Votes over the answers of N candidates, with and without their scores.

Answers are compared as they are: make them canonical before (`grm.text.steps.canonical_answer`). A candidate without an
answer, or without a score where scores count, has no vote; it is counted, never taken for an answer or a zero.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AbstainedError, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote[A: Hashable]:
    """The outcome of a vote."""

    answer: A
    """The answer with the most votes; of several the one that was given first."""
    index: int
    """A candidate that gives it: the one with the highest score, or the first."""
    votes: Mapping[A, float]
    """For every answer, in the order in which they were given."""
    n_unread: int
    """Candidates without an answer."""
    n_unscored: int = 0
    """Candidates with an answer that the judge gave no score."""

    @property
    def share(self) -> float:
        """Of the votes, the share for `answer`, in [0, 1]; NaN if all votes weigh 0."""
        total = sum(self.votes.values())
        return self.votes[self.answer] / total if total else math.nan


def majority_vote[A: Hashable](answers: Sequence[A | None]) -> Vote[A]:
    """The most frequent of N answers; None where a candidate gave none. Raises `AbstainedError` if all are None."""
    return _count(answers, np.ones(len(answers)), n_unscored=0)


def weighted_vote[A: Hashable](answers: Sequence[A | None], scores: ArrayLike) -> Vote[A]:
    """The answer with the highest sum of scores (N), which must not be negative; NaN where the judge abstained.

    Source: weighted self-consistency of Li et al. 2023, arXiv 2206.02336, as search-and-learn and ThinkPRM vote.
    Raises `AbstainedError` if no candidate has both an answer and a score, `TraceError` on lengths that differ or a
    negative score: an advantage is no weight.
    """
    weights = np.asarray(scores, np.float64)
    if weights.shape != (len(answers),):
        raise TraceError(f"scores of shape {weights.shape} for {len(answers)} answers; expected one for each")
    if (weights < 0).any():
        raise TraceError(f"a score is {np.nanmin(weights)}; expected weights of at least 0, NaN to abstain")
    unscored = sum(a is not None and math.isnan(w) for a, w in zip(answers, weights, strict=True))
    return _count(answers, weights, n_unscored=unscored)


def _count[A: Hashable](answers: Sequence[A | None], weights: np.ndarray, *, n_unscored: int) -> Vote[A]:
    votes: dict[A, float] = {}
    best: dict[A, int] = {}
    for i, (answer, weight) in enumerate(zip(answers, weights.tolist(), strict=True)):
        if answer is None or math.isnan(weight):
            continue
        votes[answer] = votes.get(answer, 0.0) + weight
        if answer not in best or weight > weights[best[answer]]:
            best[answer] = i
    if not votes:
        raise AbstainedError(f"none of {len(answers)} candidates has both an answer and a vote; expected one at least")
    answer = max(votes, key=lambda one: votes[one])
    return Vote(
        answer=answer,
        index=best[answer],
        votes=votes,
        n_unread=sum(one is None for one in answers),
        n_unscored=n_unscored,
    )
