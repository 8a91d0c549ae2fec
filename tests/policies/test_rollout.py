import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from grm.errors import TraceError
from policies.rollout import evaluate, instance_seeds

from .reaching import Reaching, reaching


class Constant:
    def __init__(self, action: float) -> None:
        self.action, self.asked = action, set()

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.asked.add(deterministic)
        return np.full((len(observation), 1), self.action, np.float32), None


def test_seeds_are_prefixes_and_streams_are_disjoint():
    evaluation, training = instance_seeds(3, 50, "evaluation"), instance_seeds(3, 150, "training")
    assert evaluation[:20] == instance_seeds(3, 20, "evaluation")
    assert len(set(evaluation) | set(training)) == 200
    assert evaluation != instance_seeds(4, 50, "evaluation")


def test_success_length_and_task_return_by_hand():
    env = reaching()
    policy = Constant(-2.0)  # 0.2 a decision, from [1, 2]: at most ten decisions
    outcome = evaluate(policy, env, episodes=5, seed=0)
    [inner] = env.envs
    starts = [Reaching() for _ in range(5)]
    for start, seed in zip(starts, instance_seeds(0, 5, "evaluation"), strict=True):
        start.reset(seed=seed)
    np.testing.assert_array_equal(outcome.length, [int(np.ceil(s.position / 0.2)) for s in starts])
    np.testing.assert_array_equal(outcome.task_return, np.ones(5))  # task_reward, not the shaped reward
    assert outcome.success_rate == 1
    assert policy.asked == {True}
    assert len(inner.starts) >= 5


def test_failures_count_and_the_same_instances_come_again():
    policy = Constant(-1.0)  # 0.1 a decision for 15: solves the instances that start below 1.5
    first, again = (evaluate(policy, reaching(), episodes=20, seed=1) for _ in range(2))
    assert 0 < first.success_rate < 1
    np.testing.assert_array_equal(first.success, again.success)
    assert (first.length[~first.success] == 15).all()


def test_what_cannot_be_evaluated_is_refused():
    policy = Constant(0.0)
    with pytest.raises(TraceError, match="at least 1"):
        evaluate(policy, reaching(), episodes=0)
    with pytest.raises(TraceError, match="expected one"):
        evaluate(policy, DummyVecEnv([Reaching, Reaching]))
    with pytest.raises(TraceError, match="VecExtractDictObs"):
        evaluate(policy, Reaching())
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Silent(), 2)])
    with pytest.raises(TraceError, match="expected 'success'"):
        evaluate(policy, env)


class Silent(Reaching):
    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {}
