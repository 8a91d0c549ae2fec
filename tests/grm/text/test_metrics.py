import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import AbstainedError, TraceError
from grm.text.metrics import (
    best_threshold,
    first_error,
    first_error_accuracy,
    first_error_f1,
    flaw_recall,
    flawed_share,
    min_at_last_share,
    whole_solution_f1,
)

NAN = math.nan


def test_first_error_of_scores():
    assert first_error([0.9, 0.5, 0.4, 0.1]) == 2
    assert first_error([0.9, 0.5]) == -1
    assert first_error([0.9, NAN, 0.1]) is None
    assert first_error([0.1, NAN]) == 0, "what comes after does not matter"
    assert first_error([0.9, 0.5], threshold=0.6) == 1
    assert first_error([]) == -1


def test_first_error_f1_by_hand():
    truth = [-1, -1, 0, 2, 2, 5]
    found = first_error_f1([-1, 0, 0, 2, 1, None], truth)
    assert (found.accuracy_right, found.accuracy_wrong, found.n_unread) == (0.5, 0.5, 1)
    assert found.f1 == 0.5
    found = first_error_f1([-1, -1, 0, None, -1, 0], truth)
    assert (found.accuracy_right, found.accuracy_wrong) == (1, 0.25)
    assert found.f1 == pytest.approx(2 * 0.25 / 1.25)
    assert first_error_f1([-1] * 6, truth).f1 == 0
    assert first_error_f1([0, 0, 1, 1, 1, 1], truth).f1 == 0, "0 / 0 in the script of ProcessBench"
    assert first_error_f1(truth, truth).f1 == 1


def test_first_error_f1_is_the_harmonic_mean_of_the_accuracies():
    truth = [0] * 1000 + [-1] * 1000
    found = first_error_f1([0] * 480 + [1] * 520 + [-1] * 842 + [0] * 158, truth)
    assert found.f1 == pytest.approx(2 * 0.48 * 0.842 / (0.48 + 0.842))


def test_the_two_f1_differ():
    """Finding the wrong solutions, but never the place, is perfect for one and worth nothing for the other."""
    truth, prediction = [-1, -1, 2, 2], [-1, -1, 1, 1]
    assert whole_solution_f1([p < 0 for p in prediction], [t < 0 for t in truth]).f1 == 1
    assert first_error_f1(prediction, truth).f1 == 0


def test_whole_solution_f1_by_hand():
    found = whole_solution_f1([True, True, False, True, False], [True, True, True, False, False])
    assert (found.precision, found.recall, found.f1) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert math.isnan(whole_solution_f1([False], [True]).precision)
    assert whole_solution_f1([False], [True]).f1 == 0


def test_an_unread_verdict_never_helps():
    truth = [True, True, False, False]
    sure = whole_solution_f1([True, False, False, True], truth)
    for i in range(4):
        unread = [True, False, False, True]
        unread[i] = None
        found = whole_solution_f1(unread, truth)
        assert found.f1 <= sure.f1
        assert found.n_unread == 1
    assert whole_solution_f1([None] * 4, truth).f1 == 0


def test_a_coin_scores_what_the_paper_calls_random():
    """339 of 1,000 Olympiad and 241 of 1,000 Omni solutions are right; the paper has 39.1 and 32.7."""
    rng = np.random.default_rng(0)
    for right, paper in [(339, 0.391), (241, 0.327)]:
        truth = [True] * right + [False] * (1000 - right)
        f1 = np.mean([whole_solution_f1([bool(x) for x in rng.random(1000) < 0.5], truth).f1 for _ in range(50)])
        assert f1 == pytest.approx(paper, abs=0.02)


def test_first_error_accuracy():
    assert first_error_accuracy([-1, 2, None, 1], [-1, 2, 0, 2]) == 0.5


def test_best_threshold():
    scores = [[0.9, 0.8], [0.9, 0.3], [0.35, 0.2], [0.7, 0.6]]
    truth = [-1, 1, 0, -1]
    threshold = best_threshold(scores, truth)
    assert 0.35 < threshold <= 0.6
    assert first_error_f1([first_error(one, threshold) for one in scores], truth).f1 == 1
    with pytest.raises(AbstainedError):
        best_threshold([[NAN]], [0])


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=2, max_size=6), st.floats(0, 1), st.randoms()
)
def test_no_threshold_beats_the_best(scores, other, random):
    truth = [-1, 0, *(random.randrange(-1, len(one)) for one in scores[2:])]
    best = first_error_f1([first_error(one, best_threshold(scores, truth)) for one in scores], truth).f1
    assert best >= first_error_f1([first_error(one, other) for one in scores], truth).f1


def test_min_at_last():
    assert min_at_last_share([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.3, 0.2, 0.1], [0.1], [NAN, 0.1]]) == 0.5
    with pytest.raises(AbstainedError):
        min_at_last_share([[0.1], [NAN, 0.2]])


def test_flaws_behind_right_answers():
    right, truth = [True, True, True, False, True], [-1, 2, 0, 1, -1]
    assert flawed_share(right, truth) == 0.5
    assert flaw_recall([-1, 0, -1, 1, 0], right, truth) == 0.5
    assert flaw_recall([-1, None, -1, 1, 0], right, truth) == 0
    with pytest.raises(AbstainedError):
        flawed_share([False], [1])
    with pytest.raises(AbstainedError):
        flaw_recall([1], [False], [1])


@pytest.mark.parametrize("metric", [first_error_f1, first_error_accuracy, whole_solution_f1, flawed_share])
def test_lengths_must_match_and_something_must_be_there(metric):
    with pytest.raises(TraceError, match="1 predictions for 2"):
        metric([1], [1, -1])
    with pytest.raises(AbstainedError):
        metric([], [])
