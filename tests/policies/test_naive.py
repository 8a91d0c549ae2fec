import numpy as np
import pytest

from grm.errors import TraceError
from policies.naive import NaiveReward, naive_reward
from shaping import PotentialShaping

from .watched import standing, watched

ACTION = np.zeros(1, np.float32)
PHI = (0.1, 0.4, None, 0.3, 0.9, 0.9)


def paid(env, steps):
    env.reset(seed=0)
    return [env.step(ACTION)[1] for _ in range(steps)]


@pytest.mark.parametrize(
    ("combination", "expected"),
    [("difference", [0.15, 0.0, 0.0, 1.3]), ("added", [0.2, 0.0, 0.15, 1.45])],
)
def test_what_is_paid_by_hand(combination, expected):
    inner = watched(*standing(*PHI), successes=(4,))
    env = NaiveReward(inner, inner, combination, 0.5)
    assert paid(env, 4) == pytest.approx(expected), "the end is paid like any other rise, an abstention not at all"
    env.reset(seed=0)
    infos = [env.step(ACTION)[4] for _ in range(4)]
    assert [info["judged"] for info in infos] == [combination != "unknown" and e != 0 for e in expected]
    assert [info["task_reward"] for info in infos] == [0.0, 0.0, 0.0, 1.0]


def test_the_demonstration_is_paid_alike():
    phi = np.array([np.nan if value is None else value for value in PHI])
    np.testing.assert_allclose(naive_reward("difference", phi[:-1], phi[1:]), [0.3, np.nan, np.nan, 0.6, 0.0])
    np.testing.assert_allclose(naive_reward("added", phi[:-1], phi[1:]), phi[1:])


def test_differences_differ_from_shaping_by_the_discount_and_the_end():
    naive, ours = (watched(*standing(0.2, 0.6, 0.8), successes=(2,)) for _ in range(2))
    difference = paid(NaiveReward(naive, naive, "difference", 1.0), 2)
    shaping = paid(PotentialShaping(ours, ours.potential(), gamma=0.9), 2)
    np.testing.assert_allclose(np.subtract(difference, shaping), [0.1 * 0.6, 0.8])


def test_a_potential_that_is_no_number_stops_the_learner():
    inner = watched(*standing(0.1, float("nan")))
    env = PotentialShaping(inner, inner.potential(), gamma=0.9)
    env.reset(seed=0)
    with pytest.raises(TraceError, match="the potential is nan"):
        env.step(ACTION)


def test_an_abstention_is_counted_and_pays_nothing():
    inner = watched(*standing(None, None, None), successes=(2,))
    env = PotentialShaping(inner, inner.potential(), gamma=0.9)
    assert paid(env, 2) == [0.0, 1.0]
    assert env.abstentions == 2
