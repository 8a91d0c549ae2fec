import numpy as np
import pytest

from envs.experts import demonstrations
from envs.metaworld import MetaWorldEnv
from grm.errors import TraceError
from grm.models.oracle import Oracle
from policies.maximize import PotentialReward, environment_of, maximize, rewarded_by

NAN = float("nan")


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("reach", views=("corner",), height=16, width=24, horizon=60)
    yield env
    env.close()


@pytest.fixture(scope="module")
def demonstration(env):
    [episode] = demonstrations(env, 1, seed=5)
    return episode


def by_step(*phi):
    """A judge that says these numbers, one after the other, the last for ever."""
    return Oracle(lambda frame: phi[min(round(frame.time * 40), len(phi) - 1)])


def play(wrapper, seed):
    """The expert, through the wrapper: rewards, and the last step's infos."""
    wrapper.reset(seed=seed)
    rewards, infos, done = [], [], False
    while not done:
        _, reward, terminated, truncated, info = wrapper.step(wrapper.world.expert_action())
        rewards.append(reward)
        infos.append(info)
        done = terminated or truncated
    return np.array(rewards), infos


def test_it_pays_the_rise_of_the_potential_and_nothing_else(env, demonstration):
    wrapper = PotentialReward(env, by_step(0.1, 0.3, 0.2, NAN, 0.6, 0.9), demonstration.as_goal())
    rewards, infos = play(wrapper, 3)
    np.testing.assert_allclose(rewards[:5], [0.2, -0.1, 0, 0, 0.3], atol=1e-12)
    assert not rewards[5:].any(), "success pays nothing by itself"
    assert infos[-1]["success"]
    assert infos[-1]["task_reward"] == 1
    assert [info["phi"] for info in infos[:2]] == [0.3, 0.2]


def test_the_finished_episode_knows_its_truth(env, demonstration):
    wrapper = PotentialReward(env, by_step(0.5), demonstration.as_goal())
    rewards, _ = play(wrapper, 3)
    attempt, potential = wrapper.finished
    wrapper.reset(seed=4)  # as a vectorised environment does, before anyone can ask
    assert len(attempt.frames) == len(attempt.moments) == len(potential) == len(rewards) + 1
    truth = [attempt.truth(t) for t in (0, len(rewards) // 2, len(rewards))]
    assert 0 <= truth[0] < 0.1
    assert 0.2 < truth[1] < 0.9
    assert truth[2] == 1
    assert attempt.succeeded


def test_the_demonstration_is_paid_alike(demonstration):
    phi = np.linspace(0, 1, len(demonstration))
    phi[2] = NAN
    shown = rewarded_by(by_step(*phi), demonstration.as_goal(), demonstration)
    expected = np.full(len(demonstration) - 1, phi[1])
    expected[1:3] = 0
    np.testing.assert_allclose(shown.rewards, expected, atol=1e-6)
    assert shown.terminated.tolist() == [False] * (len(shown) - 1) + [True]


def test_the_environment_is_the_demonstrations(demonstration):
    made = environment_of(demonstration)
    observation, _ = made.reset(seed=0)
    assert observation["pixels.corner"].shape == (16, 24, 3)
    assert (made.task, made.action_repeat) == ("reach-v3", 2)
    made.close()


def test_the_last_rollouts_come_back(demonstration):
    made = environment_of(demonstration)
    seen = []
    kept = maximize(
        made,
        by_step(0.2, 0.4),
        demonstration.as_goal(),
        demonstration,
        rollouts=3,
        keep=2,
        seed=0,
        on_rollout=seen.append,
    )
    assert [rollout.number for rollout in seen] == [1, 2, 3]
    assert [pursuit.number for pursuit in kept] == [2, 3]
    for pursuit, rollout in zip(kept, seen[1:], strict=True):
        assert len(pursuit.potential) == len(pursuit.attempt.frames) == rollout.length + 1
        assert rollout.reward == pytest.approx(0.2)
    assert len({p.attempt.moments[0].raw.tobytes() for p in kept}) == 2, "each has an instance of its own"
    with pytest.raises(TraceError, match="0 rollouts of which 2"):
        maximize(made, by_step(0.2), demonstration.as_goal(), demonstration, rollouts=0, keep=2, seed=0)
    made.close()
