import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import AbstainedError, TraceError
from grm.search.vote import majority_vote, weighted_vote
from grm.text.steps import canonical_answer


def test_majority():
    vote = majority_vote(["4", None, "5", "5", "4", "5", None])
    assert (vote.answer, vote.index, vote.n_unread, vote.share) == ("5", 2, 2, 0.6)
    assert vote.votes == {"4": 2, "5": 3}
    assert majority_vote(["b", "a", "a", "b"]).answer == "b", "of a tie the first given"


def test_scores_overrule_numbers():
    vote = weighted_vote(["4", "5", "4", "5", None, "4"], [0.2, 0.5, 0.2, 0.6, 9.0, math.nan])
    assert (vote.answer, vote.index) == ("5", 3)
    assert vote.votes == {"4": pytest.approx(0.4), "5": pytest.approx(1.1)}
    assert (vote.n_unread, vote.n_unscored) == (1, 1)


def test_canonical_answers_vote_together():
    given_ = ["1/2", r"\frac{1}{2}", "0.5", "3", "3"]
    assert majority_vote(given_).answer == "3"
    assert majority_vote([canonical_answer(one) for one in given_]).answer == "1/2"


def test_nothing_to_count():
    with pytest.raises(AbstainedError, match="none of 2"):
        majority_vote([None, None])
    with pytest.raises(AbstainedError):
        weighted_vote(["4", None], [math.nan, 0.3])
    with pytest.raises(AbstainedError):
        majority_vote([])


def test_what_is_no_weight():
    with pytest.raises(TraceError, match=r"-0\.5"):
        weighted_vote(["4", "5"], [0.1, -0.5])
    with pytest.raises(TraceError, match="2 answers"):
        weighted_vote(["4", "5"], [0.1])
    assert math.isnan(weighted_vote(["4"], [0.0]).share)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1).filter(any))
def test_equal_weights_are_a_majority(answers):
    assert weighted_vote(answers, [1.0] * len(answers)) == majority_vote(answers)
