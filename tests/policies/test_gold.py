import numpy as np
import pytest

from policies.gold import JudgedSuccess, StableSuccess

from .watched import sure, watched

ACTION = np.zeros(1, np.float32)


def test_a_success_is_believed_after_so_many_steps_in_a_row():
    stable = StableSuccess(0.8, 3)
    said = [stable(p) for p in (0.9, 0.9, 0.7, 0.8, 0.95, None, 0.9, 0.9, 0.9, 0.9, 0.1)]
    assert said == [False] * 8 + [True, True, False], "0.8 counts, less does not, and an abstention begins anew"
    assert [stable(1.0), stable(1.0)] == [False, False]
    stable.begin()
    assert [stable(1.0), stable(1.0), stable(1.0)] == [False, False, True], "an episode inherits nothing"


def episode(env):
    env.reset(seed=0)
    rows, ended = [], False
    while not ended:
        _, reward, terminated, truncated, info = env.step(ACTION)
        rows.append((reward, terminated, truncated, info["success"], info["true_success"]))
        ended = terminated or truncated
    return rows


def test_the_head_pays_and_ends_and_the_simulator_does_neither():
    env = JudgedSuccess(watched(*sure(0, 0, 0, 0, 1, 1, 1), successes=(2,)), StableSuccess(0.5, 2))
    assert episode(env) == [
        (0.0, False, False, False, False),
        (0.0, False, False, False, True),  # true, unseen, unpaid, and the episode goes on
        (0.0, False, False, False, True),  # what was a success once stays one, for the record
        (0.0, False, False, False, True),
        (1.0, True, False, True, True),
    ]


def test_a_false_success_is_paid_and_known_to_be_one():
    env = JudgedSuccess(watched(*sure(0, 1, 1, 1, 1, 1, 1)), StableSuccess(0.5, 2))
    assert episode(env)[-1] == (1.0, True, False, True, False)
    assert len(episode(env)) == 2, "and again in the next episode"


@pytest.mark.parametrize("successes", [(), (3,)])
def test_a_silent_head_lets_an_episode_run_to_the_horizon(successes):
    env = JudgedSuccess(watched(*sure(*[None] * 4), horizon=3, successes=successes), StableSuccess(0.5, 1))
    rows = episode(env)
    assert [row[:4] for row in rows] == [(0.0, False, False, False)] * 2 + [(0.0, False, True, False)]
    assert rows[-1][4] == bool(successes), "also where the simulator sees it in the very last decision"


def test_what_looks_done_from_the_outset_is_not_believed_at_once():
    env = JudgedSuccess(watched(*sure(1, 1, 1, 1)), StableSuccess(0.5, 3))
    assert len(episode(env)) == 3, "the first picture does not count: nothing has been done"
