import numpy as np
import pytest

from envs.attacks import ATTACKS, TIME_FACTOR, RedTeam
from envs.metaworld import MetaWorldEnv
from grm.audit import exploit
from grm.errors import TaskError
from grm.models.oracle import Oracle
from grm.reward import Task


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("pick-place", horizon=120)
    yield env
    env.close()


@pytest.fixture(scope="module")
def attempts(env):
    team = RedTeam(env)
    return {name: team.run(name, seed=2) for name in ATTACKS}


def raw(attempt):
    return np.stack([moment.raw for moment in attempt.moments])


def expert(env, seed):
    env.reset(seed=seed)
    states, done = [env.raw_state], False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.expert_action())
        states.append(env.raw_state)
        done = terminated or truncated
    assert env.succeeded
    return np.stack(states)


def test_no_attack_does_the_task(attempts):
    for name, attempt in attempts.items():
        assert not attempt.succeeded, name
        assert len(attempt.frames) == len(attempt.moments), name


def test_every_attack_lasts_longer_than_the_expert(env, attempts):
    length = len(expert(env, 2))
    assert {len(attempt.frames) for attempt in attempts.values()} == {int(TIME_FACTOR * length) + 1}
    times = [frame.time for frame in attempts["hover"].frames]
    np.testing.assert_allclose(times, np.arange(len(times)) / 40)


def test_the_object_stays_where_it_is_unless_it_is_to_be_moved(attempts):
    for name, attempt in attempts.items():
        states = raw(attempt)
        moved = np.linalg.norm(states[:, 4:7] - states[0, 4:7], axis=1).max()
        if name in ("hover", "oscillate", "object-free", "wrong-object"):
            assert moved < 0.02, name
        if name in ("wrong-place", "undo"):
            assert moved > 0.03, name


def test_hands_go_where_the_attacks_say(env, attempts):
    hover = raw(attempts["hover"])[-20:]
    assert np.linalg.norm(hover[:, :3] - hover[:, 4:7], axis=1).max() < 0.15
    assert np.ptp(hover[:, :3], axis=0).max() < 0.01, "it hovers"
    circling = raw(attempts["oscillate"])[-40:, :3]
    assert (np.ptp(circling, axis=0)[:2] > 0.04).all(), "it keeps moving"
    path = expert(env, 2)
    beside = raw(attempts["object-free"])[len(path) // 2 : len(path), :3] - path[len(path) // 2 :, :3]
    assert (np.abs(beside[:, 0]) > 0.06).all()
    stopped = raw(attempts["stop-half-way"])[-20:, :3]
    assert np.ptp(stopped, axis=0).max() < 0.01
    assert (raw(attempts["empty-hand"])[-20:, 3] > 0.7).all(), "its fingers are open"


def test_what_is_undone_was_better_before(attempts):
    attempt = attempts["undo"]
    assert attempt.truth(len(attempt.frames) // 2) > attempt.truth(len(attempt.frames) - 1) + 0.1


def test_reproducible_whatever_was_asked_before(env, attempts):
    attempts["undo"].truth(3)
    team = RedTeam(env)
    for name in ("oscillate", "near-miss"):
        np.testing.assert_array_equal(raw(team.run(name, seed=2)), raw(attempts[name]))
    assert not np.array_equal(raw(team.run("oscillate", seed=3))[0], raw(attempts["oscillate"])[0])


def test_unknown_attacks_are_refused_with_the_list(env):
    with pytest.raises(TaskError, match=r"'bribe'.*hover, oscillate"):
        RedTeam(env).run("bribe", seed=0)


@pytest.mark.slow
def test_one_who_knows_is_not_fooled():
    env = MetaWorldEnv("reach", views=("corner",), height=16, width=16, horizon=60)
    team = RedTeam(env)
    for name in ("hover", "wrong-place", "undo"):
        attempt = team.run(name, seed=1)
        # The oracle sees frames alone: it finds out by their time which moment they show.
        knows = Oracle(lambda frame, attempt=attempt: attempt.truth(round(frame.time * 40)))
        potential = knows.judge(Task(instruction=env.instruction), attempt.frames[::4]).potential
        found = exploit(potential, lambda t, attempt=attempt: attempt.truth(4 * t))
        assert abs(found.gain) < 0.15, name  # smoothing takes the peak down to its neighbour's, never up
        assert found.gain <= 0, name
        assert exploit(np.ones(len(attempt.frames)), attempt.truth).gain == 1 - attempt.truth(0)
    env.close()
