import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from policies import Demonstration


class Reaching(gym.Env):
    """A point walks along a line to 0, in steps of at most 0.2; the instance is where it starts, in [1, 2]."""

    def __init__(self, *, horizon: int = 15, size: int = 2, broken_at: int | None = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.horizon, self.broken_at = horizon, broken_at
        self.starts: list[float] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.decisions = self.np_random.uniform(1, 2), 0
        self.starts.append(self.position)
        return self._observe(), {}

    def step(self, action):
        self.position += 0.1 * float(np.clip(action[0], -2, 2))
        self.decisions += 1
        success = self.position <= 0
        info = {"success": success, "phi": 0.5 if self.decisions % 2 else np.nan, "task_reward": float(success)}
        return self._observe(), float(success) - 0.01, success, not success and self.decisions >= self.horizon, info

    def _observe(self):
        observation = np.zeros(self.observation_space.shape, np.float32)
        observation[0] = np.nan if self.decisions == self.broken_at else self.position
        return observation


def reaching(**settings) -> DummyVecEnv:
    return DummyVecEnv([lambda: Reaching(**settings)])


def demonstration(*, size: int = 2, steps: int = 10) -> Demonstration:
    position = np.zeros((steps + 1, size), np.float32)
    position[:, 0] = np.linspace(1.5, 0, steps + 1)
    return Demonstration(
        observations=position[:-1],
        actions=np.full((steps, 1), -1.5),
        rewards=np.eye(steps)[-1],
        next_observations=position[1:],
        terminated=np.eye(steps, dtype=bool)[-1],
    )
