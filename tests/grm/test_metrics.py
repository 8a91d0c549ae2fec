import numpy as np
import pytest

from grm.errors import AbstainedError, TraceError
from grm.hops import hops_between
from grm.metrics import Interval, expected_interval, mean_absolute_error, spearman, value_order_correlation, voc_pair

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
