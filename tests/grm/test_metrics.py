import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from grm.errors import AbstainedError, TraceError
from grm.hops import hops_between
from grm.metrics import (
    LEVELS,
    Completion,
    Interval,
    area_under_risk_coverage,
    calibration_error,
    change_f1,
    changes,
    completion_accuracy,
    completion_class,
    expected_interval,
    interval_coverage,
    kendall_tau,
    mean_absolute_error,
    risk_coverage,
    roc_auc,
    spearman,
    tpr_at_fpr,
    value_order_correlation,
    voc_pair,
)

NAN = np.nan


def test_spearman_by_hand():
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = .6
    assert spearman([0.1, 0.2, 0.3, 0.4], [20, 10, 40, 30]) == pytest.approx(0.6)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ties share ranks: (1.5, 1.5, 3) against (1, 2, 3)
    assert spearman([0, 0, 1], [1, 2, 3]) == pytest.approx(np.sqrt(3) / 2)


def test_spearman_ignores_what_is_unknown_on_either_side():
    assert spearman([1, NAN, 2, 0, 3], [1, 0, 2, NAN, 3]) == pytest.approx(1)


def test_spearman_of_a_constant_is_undefined():
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([1, 2, 3], [1, 1, 1]))
    assert np.isnan(spearman([1, 2, NAN], [1, 1, 2]))  # constant where it counts


def test_mean_absolute_error_by_hand():
    assert mean_absolute_error([0.0, 0.5, NAN, 1.0], [0.1, 0.2, 0.3, NAN]) == pytest.approx(0.2)


@pytest.mark.parametrize("metric", [spearman, mean_absolute_error])
def test_nothing_left_is_an_error(metric):
    with pytest.raises(AbstainedError, match="0 of 2"):
        metric([NAN, 1.0], [1.0, NAN])
    with pytest.raises(TraceError, match="2 numbers against 3"):
        metric([1, 2], [1, 2, 3])
    with pytest.raises(TraceError, match="vector"):
        metric([[1, 2]], [[1, 2]])


def test_value_order():
    assert value_order_correlation([0.0, 0.1, 0.5, 1.0]) == pytest.approx(1)
    assert value_order_correlation([0.9, 0.5, 0.1]) == pytest.approx(-1)
    assert value_order_correlation([0.5, 0.5, 0.5]) == 0
    assert value_order_correlation([0.0, NAN, 0.2, 0.3]) == pytest.approx(1)
    with pytest.raises(AbstainedError):
        value_order_correlation([NAN, 0.5, NAN])


def test_the_pair_rewards_only_seeing_both_directions():
    truth = np.linspace(0, 1, 12)
    forward, backward = hops_between(truth), hops_between(truth[::-1])[::-1]
    perfect = voc_pair(forward, backward)
    assert perfect == pytest.approx((1, 1))
    assert perfect.both == pytest.approx(1)

    always_more = voc_pair(np.full(11, 0.01), np.full(11, 0.01))
    assert always_more == pytest.approx((1, 0))
    assert always_more.both == 0

    always_less = voc_pair(np.full(11, -0.01), np.full(11, -0.01))
    assert always_less == pytest.approx((0, 1))
    assert always_less.both == 0

    assert voc_pair(np.zeros(11), np.zeros(11)) == (0, 0)
    assert voc_pair(-forward, -backward).both <= 0


def test_reversed_hops_belong_to_their_pair():
    # Potentials 1, .5, .5, .25 going back from the last of four frames: in order .25, .5, .5, 1.
    plus, minus = voc_pair([0.1, 0.1, 0.1], [-0.5, 0.0, -0.5])
    assert plus == pytest.approx(1)
    assert minus == pytest.approx(spearman([0.25, 0.5, 0.5, 1.0], [0, 1, 2, 3]))
    # Asymmetric on purpose: read in the wrong order, these would give 0, 0, 0, 1.
    assert voc_pair([0.1, 0.1, 0.1], [-1.0, -0.9, 0.0]).minus == pytest.approx(spearman([0, 0.1, 1, 1], range(4)))


def test_pair_refuses_missing_hops():
    with pytest.raises(AbstainedError, match="pair at 1 of 3"):
        voc_pair([0.1, NAN, 0.1], [-0.1, -0.1, NAN])
    with pytest.raises(TraceError, match="against"):
        voc_pair([0.1], [0.1, 0.2])


def test_interval_by_hand():
    assert expected_interval([0.25], np.random.default_rng(0)) == Interval(0.25, 0.25, 0.25)
    # Of 0 and 1 the resampled means are 0, .5 and 1 with a quarter in either tail.
    assert expected_interval([0, 1], np.random.default_rng(0)) == Interval(0.5, 0.0, 1.0)
    assert expected_interval([0, 1], np.random.default_rng(0), level=0.4) == Interval(0.5, 0.5, 0.5)


def test_interval_is_seeded_and_shrinks():
    values = np.random.default_rng(1).normal(size=400)
    one, two = (expected_interval(values, np.random.default_rng(7), resamples=500) for _ in range(2))
    assert one == two
    assert one.low < one.value < one.high
    # A normal mean: 2 * 1.96 / sqrt(n)
    assert one.high - one.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    few = expected_interval(values[:25], np.random.default_rng(7), resamples=500)
    assert few.high - few.low > 2 * (one.high - one.low)


@pytest.mark.parametrize("values", [[], [1.0, NAN], [np.inf]])
def test_interval_refuses_failures(values):
    with pytest.raises(TraceError, match="expected at least one, all finite"):
        expected_interval(values, np.random.default_rng(0))


# --- ranking and completion -------------------------------------------------------------------------------------------


def test_kendall_tau_by_hand():
    # Classes 0 0 1 2: five pairs of different class; .3 of class 0 beats .2 of class 1, the other four are in order.
    assert kendall_tau([0.1, 0.3, 0.2, 0.9], [0, 0, 1, 2]) == pytest.approx((4 - 1) / 5)
    assert kendall_tau([0.1, 0.2, 0.2, 0.9], [0, 0, 1, 2]) == pytest.approx(4 / 5), "a tie is neither"
    assert kendall_tau([3, 2, 1], [0, 1, 2]) == -1
    assert kendall_tau([0.5, 0.5, 0.5], [0, 1, 2]) == 0
    assert kendall_tau([NAN, 0.2, 0.3], [2, 0, 1]) == 1
    # A perfect ranking of even classes reaches 1, which neither tau-b nor tau_a with all pairs does.
    scores, classes = np.arange(30), np.repeat([0, 1, 2], 10)
    assert kendall_tau(scores, classes) == 1
    assert stats.kendalltau(scores, classes).statistic < 0.85
    assert kendall_tau(scores, classes) == pytest.approx(stats.somersd(classes, scores).statistic)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=2, max_size=20))
def test_kendall_tau_is_somers_d(pairs):
    scores, classes = zip(*pairs, strict=True)
    if len(set(classes)) == 1:
        with pytest.raises(AbstainedError, match="two classes"):
            kendall_tau(scores, classes)
    elif len(set(scores)) == 1:
        assert kendall_tau(scores, classes) == 0
    else:
        assert kendall_tau(scores, classes) == pytest.approx(stats.somersd(classes, scores).statistic)


def test_completion_class():
    assert completion_class([0.0, 0.2], 0.5) == Completion.SUCCESS, "the success head decides, where there is one"
    assert completion_class([0.0, 1.0], 0.49) == Completion.PARTIAL
    assert completion_class([0.0, 0.5, 0.0], 0.0) == Completion.PARTIAL, "it got there, and lost it again"
    assert completion_class([0.0, 0.49], 0.0) == Completion.FAIL
    assert completion_class([0.0, 0.95], NAN) == Completion.SUCCESS
    assert completion_class([0.94], NAN) == Completion.PARTIAL
    assert completion_class([NAN, 0.1], NAN) == Completion.FAIL
    assert completion_class([0.6, NAN], 0.1) == Completion.PARTIAL
    with pytest.raises(AbstainedError):
        completion_class([0.6, NAN], NAN)
    with pytest.raises(AbstainedError):
        completion_class([NAN], 0.9)


def test_completion_accuracy_weighs_classes_alike():
    assert completion_accuracy([2, 2, 0, 1], [2, 2, 0, 0]) == pytest.approx((1 + 0.5) / 2)
    assert completion_accuracy([2, 2, 2, 2], [2, 2, 2, 0]) == 0.5, "always success is no better than chance"
    assert completion_accuracy([0, NAN, 2], [0, 1, 2]) == 1
    with pytest.raises(AbstainedError):
        completion_accuracy([NAN], [1])


# --- success ----------------------------------------------------------------------------------------------------------


def test_roc_auc_by_hand():
    assert roc_auc([0.9, 0.4], [0.4, 0.1]) == pytest.approx((4 - 0.5) / 4)
    assert roc_auc([0.9, NAN], [0.4, NAN, 0.1]) == 1
    assert roc_auc([0.5], [0.5]) == 0.5
    with pytest.raises(AbstainedError, match="failure scores, none of them judged"):
        roc_auc([0.5], [NAN])
    rng = np.random.default_rng(0)
    done, failed = rng.integers(0, 9, 30), rng.integers(0, 7, 40)
    wins = (done[:, None] > failed).mean() + (done[:, None] == failed).mean() / 2
    assert roc_auc(done, failed) == pytest.approx(wins)


def test_tpr_at_fpr_by_hand():
    failed = [0.1, 0.2, 0.3, 0.8]
    assert tpr_at_fpr([0.9, 0.8, 0.5, 0.25], failed, 0.0) == 0.25, (
        "a success that ties with a failure is not recognised"
    )
    assert tpr_at_fpr([0.9, 0.8, 0.5, 0.25], failed, 0.24) == 0.25, "not one of four may pass"
    assert tpr_at_fpr([0.9, 0.8, 0.5, 0.25], failed, 0.25) == 0.75
    assert tpr_at_fpr([0.9, 0.8, 0.5, 0.25], failed, 0.5) == 1
    assert tpr_at_fpr([1.0, 1.0], [1.0, 0.0], 0.0) == 0, "a constant certainty recognises nothing"
    assert tpr_at_fpr([0.5], [0.4, 0.4, 0.6], 1 / 3) == 1
    assert tpr_at_fpr([0.5], [0.6] * 3 + [0.1] * 297, 0.01) == 1, "three of 300, whatever the rounding"


def test_an_abstention_recognises_nothing():
    assert tpr_at_fpr([0.9, NAN], [0.1, NAN], 0.0) == 0.5
    with pytest.raises(AbstainedError):
        tpr_at_fpr([0.9], [NAN], 0.0)
    with pytest.raises(AbstainedError, match="no success"):
        tpr_at_fpr([], [0.1], 0.0)
    with pytest.raises(TraceError, match=r"fpr is 1"):
        tpr_at_fpr([0.9], [0.1], 1.0)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.floats(0, 0.99),
)
def test_no_threshold_within_the_rate_recognises_more(succeeded, failed, fpr):
    done, not_done = np.array(succeeded), np.array(failed)
    allowed = [t for t in range(-1, 10) if (not_done > t).mean() <= fpr + 1e-9]
    assert tpr_at_fpr(done, not_done, fpr) == max((done > t).mean() for t in allowed)


# --- changes ----------------------------------------------------------------------------------------------------------


def test_changes_by_hand():
    assert changes([0, 0.1, 0.2, 0.2, 0.1, 0.0], window=2, threshold=0.05).tolist() == [1, 1, -1, -1]
    assert changes([0.5, 0.55, 0.5], window=1, threshold=0.05).tolist() == [0, 0], "more than the threshold"
    np.testing.assert_array_equal(changes([0, NAN, 1, 1], window=1), [NAN, NAN, 0])
    assert changes([0.1, 0.2], window=5).tolist() == []
    with pytest.raises(TraceError, match="window is 0"):
        changes([0, 1], window=0)


def test_change_f1_by_hand():
    truth = [1, 1, -1, -1, 0, NAN, -1]
    judged = [1, 0, -1, 1, 0, -1, NAN]
    assert change_f1(judged, truth, -1) == pytest.approx(2 / 3)  # 1 found, 0 false, 1 missed
    assert change_f1(judged, truth, 1) == pytest.approx(2 / 4)  # 1 found, 1 false, 1 missed
    assert change_f1(judged, truth, 0) == pytest.approx(2 / 3)  # 1 found, 1 false, 0 missed
    assert np.isnan(change_f1([1, -1], [1, 1], -1)), "there is nothing to find"
    assert change_f1([1, 1], [-1, -1], -1) == 0
    with pytest.raises(AbstainedError):
        change_f1([NAN], [1], 1)


# --- spread -----------------------------------------------------------------------------------------------------------


def test_coverage_by_hand():
    # Errors 0.5, 1.5, 2.5 spreads: the central 68.27 % are one spread wide, 95.45 % two.
    prediction, truth, spread = [0.5, 0.8, 0.0, 0.3], [0.45, 0.65, 0.5, NAN], [0.1, 0.1, 0.2, 0.1]
    assert interval_coverage(prediction, truth, spread, [0.6827, 0.9545]) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(TraceError, match="spread is -1"):
        interval_coverage([0.5], [0.5], [-1.0])
    with pytest.raises(AbstainedError):
        interval_coverage([0.5], [0.5], [NAN])
    with pytest.raises(TraceError, match="against"):
        interval_coverage([0.5], [0.5, 0.6], [0.1, 0.1])


def test_calibration_error():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.01, 0.1, 20_000)
    error = rng.normal(size=20_000) * spread
    assert calibration_error(error, np.zeros_like(error), spread) < 0.01
    assert calibration_error(error, np.zeros_like(error), spread / 1000) == pytest.approx(0.5, abs=0.01)
    assert calibration_error(error, np.zeros_like(error), spread * 1000) == pytest.approx(0.5, abs=0.01)
    # One error of one spread: the levels from 70 % on hold it, those up to 65 % do not.
    levels = [1 - p if p > 0.6827 else p for p in LEVELS]
    assert calibration_error([0.2], [0.1], [0.1]) == pytest.approx(np.mean(levels))


def test_risk_coverage_by_hand():
    coverage, risk = risk_coverage([0.1, 0.5, 0.9, 0.2], [0.0, 0.3, 0.3, NAN], [0.1, 0.2, 0.3, 0.0])
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0.1, 0.15, 0.3])
    assert area_under_risk_coverage([0.1, 0.5, 0.9], [0.0, 0.3, 0.3], [0.1, 0.2, 0.3]) == pytest.approx(0.55 / 3)
    _, tied = risk_coverage([0.1, 0.5, 0.9], [0.0, 0.3, 0.3], [0.2, 0.2, 0.1])
    assert tied == pytest.approx([0.6, 0.375, 0.3]), "0.6 first, then twice the mean of the tied, 0.15"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_spread_that_says_nothing_gives_the_mean_error(pairs):
    prediction, truth = zip(*pairs, strict=True)
    nothing = np.full(len(pairs), 0.1)
    assert area_under_risk_coverage(prediction, truth, nothing) == pytest.approx(mean_absolute_error(prediction, truth))
