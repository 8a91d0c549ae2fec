"""Rollouts as they are collected: what is checked at every step, what is reported, and a world that is elsewhere."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from grm.errors import TraceError

from .rollout import succeeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What `learn_rollouts` reports after each rollout and its updates."""

    number: int
    """1 for the learner's first rollout, also after a resume."""
    success: bool
    length: int
    """Decisions."""
    reward: float
    """Undiscounted sum of what the learner was paid, shaping included, before `reward_scale`."""
    task_reward: float
    """Undiscounted sum of what the task paid."""
    mean_phi: float | None
    """Mean of the judged `phi` in the infos; None if there was none."""
    elapsed_s: float
    """Seconds this learner has spent in finished rollouts and their updates, resumed sessions included."""


class Watch(BaseCallback):
    """Checks every step and adds up what a `Rollout` reports."""

    def __init__(self) -> None:
        super().__init__()
        self._begin()

    def _begin(self) -> None:
        self.length, self.reward, self.task_reward, self.success = 0, 0.0, 0.0, False
        self.phi: list[float] = []

    def _on_rollout_start(self) -> None:
        self._begin()

    def _on_step(self) -> bool:
        [info], [reward], [ended] = self.locals["infos"], self.locals["rewards"], self.locals["dones"]
        observation = info["terminal_observation"] if ended else self.locals["new_obs"]
        self.length += 1
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise TraceError(
                f"the observation or the reward of decision {self.length} is not finite; check the sensor or "
                f"the simulation"
            )
        self.reward += float(reward)
        self.task_reward += float(info.get("task_reward", reward))
        phi = info.get("phi")
        self.phi.append(np.nan if phi is None else float(phi))
        if ended:
            self.success = succeeded(info)
        return True


class _Elsewhere(gym.Env):
    """Spaces without a world."""

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Box) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise gym.error.Error(
            "this learner has no environment to run; collect episodes elsewhere and give them to `learn_from`"
        )

    step = render = reset


def elsewhere(observation_space: spaces.Box, action_space: spaces.Box) -> VecEnv:
    """What to give a learner as its environment if its episodes are collected elsewhere; running it raises."""
    return DummyVecEnv([lambda: _Elsewhere(observation_space, action_space)])
