import numpy as np
import pytest

from grm.aggregate import last, mean, minimum, product
from grm.errors import AbstainedError, TraceError
from grm.reward import ScoredJudgement, ScoreKind


def scored(score, kind):
    score = np.array(score, dtype=float)
    judged = ~np.isnan(score)
    return ScoredJudgement(
        potential=np.where(judged, 0.5, np.nan),
        spread=np.where(judged, 0.0, np.nan),
        judged=judged,
        score=score,
        kind=kind,
    )


@pytest.mark.parametrize("kind", [ScoreKind.CORRECTNESS, ScoreKind.VERDICT])
def test_correctness_by_hand(kind):
    judgement = scored([0.8, 0.5, 0.5], kind)
    assert product(judgement) == pytest.approx(0.2)
    assert minimum(judgement) == 0.5
    assert mean(judgement) == pytest.approx(0.6)
    with pytest.raises(TraceError, match=f"last of scores of kind {kind.value}; expected value"):
        last(judgement)


def test_value_by_hand():
    judgement = scored([0.2, 0.1, 0.9], ScoreKind.VALUE)
    assert last(judgement) == 0.9
    for wrong in (minimum, product, mean):
        with pytest.raises(TraceError, match=r"kind value; .*right for value: last"):
            wrong(judgement)


def test_advantage_by_hand():
    judgement = scored([0.2, -0.5, 0.6], ScoreKind.ADVANTAGE)
    assert mean(judgement) == pytest.approx(0.1)
    for wrong in (minimum, product, last):
        with pytest.raises(TraceError, match="right for advantage: mean"):
            wrong(judgement)


def test_abstention_is_an_error_where_it_matters():
    holed = scored([0.5, np.nan, 0.5], ScoreKind.CORRECTNESS)
    for aggregator in (minimum, product, mean):
        with pytest.raises(AbstainedError, match="1 of 3 steps"):
            aggregator(holed)
    assert last(scored([np.nan, 0.7], ScoreKind.VALUE)) == 0.7
    with pytest.raises(AbstainedError, match="1 of 1"):
        last(scored([0.7, np.nan], ScoreKind.VALUE))


def test_a_judged_step_without_score_is_no_number_either():
    judgement = ScoredJudgement(
        potential=np.zeros(2),
        spread=np.zeros(2),
        judged=np.ones(2, dtype=bool),
        score=np.array([1.0, np.nan]),
        kind=ScoreKind.VERDICT,
    )
    with pytest.raises(AbstainedError):
        product(judgement)


@pytest.mark.parametrize(
    ("aggregator", "kind"),
    [(last, ScoreKind.VALUE), (minimum, ScoreKind.VERDICT), (product, ScoreKind.VERDICT), (mean, ScoreKind.ADVANTAGE)],
)
def test_no_steps(aggregator, kind):
    with pytest.raises(TraceError, match="without steps"):
        aggregator(scored([], kind))
