import numpy as np
import pytest

from grm import aggregate
from grm.errors import AbstainedError, TraceError
from grm.reward import ScoredJudgement, ScoreKind, Task
from grm.search.best_of_n import best_of, best_of_n, score_candidates

TASK = Task(instruction="count")


class Digits:
    """The steps are the scores; None abstains."""

    def __init__(self, kind=ScoreKind.CORRECTNESS):
        self.kind = kind

    def judge(self, task, steps):
        score = np.array([np.nan if step is None else step for step in steps], float)
        return ScoredJudgement(potential=score, spread=score * 0, judged=~np.isnan(score), score=score, kind=self.kind)


def test_best_of():
    best = best_of([0.1, np.nan, 0.7, 0.7, 0.0])
    assert (best.index, best.n_abstained) == (2, 1)
    assert best_of([np.nan, -3.0]).index == 1, "an abstention is no number, not even the lowest"
    with pytest.raises(AbstainedError, match="any of 2"):
        best_of([np.nan, np.nan])
    with pytest.raises(TraceError, match=r"shape \(0,\)"):
        best_of([])


def test_best_of_n_by_the_potential_at_the_end():
    assert best_of_n(Digits(), TASK, [[0.9, 0.2], [0.1, 0.4], [0.9, None]]).index == 1
    assert best_of_n(Digits(), TASK, [[0.9, 0.2], [0.9, None]]).n_abstained == 1


def test_the_aggregate_decides():
    candidates = [[0.9, 0.2], [0.5, 0.5], [0.1, 0.9, 0.9]]
    chosen = [
        best_of(score_candidates(Digits().judge, TASK, candidates, how)).index
        for how in (aggregate.minimum, aggregate.product, aggregate.mean)
    ]
    assert chosen == [1, 1, 2]
    values = Digits(ScoreKind.VALUE)
    assert best_of(score_candidates(values.judge, TASK, candidates, aggregate.last)).index == 2
    with pytest.raises(TraceError, match="minimum of scores of kind value"):
        score_candidates(values.judge, TASK, candidates, aggregate.minimum)
