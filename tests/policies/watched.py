"""A world of a few numbers, with whoever watches it."""

from typing import Any

import gymnasium as gym
import numpy as np

from policies.onlookers import Onlooker, Opinion, Watched
from policies.stopwatch import Stopwatch


class World(gym.Env):
    """Counts decisions; the simulator sees a success at those named, and would end the episode there."""

    def __init__(self, *, horizon: int = 6, successes: tuple[int, ...] = ()) -> None:
        self.observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.horizon, self.successes = horizon, successes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.decisions = 0
        return {"state": np.zeros(1, np.float32)}, {"success": False}

    def step(self, action):
        self.decisions += 1
        success = self.decisions in self.successes
        truncated = self.decisions >= self.horizon and not success
        return (
            {"state": np.full(1, self.decisions, np.float32)},
            float(success),
            success,
            truncated,
            {"success": success},
        )


class Script(Onlooker):
    """Says one thing after another, from the beginning of each episode; the last one for all that comes later."""

    def __init__(self, *opinions: Opinion) -> None:
        self.opinions = opinions
        self.at = 0

    def begin(self, observation, env):
        self.at = 0
        return self.opinions[0]

    def follow(self, observation, info, env):
        self.at += 1
        return self.opinions[min(self.at, len(self.opinions) - 1)]


def watched(*opinions: Opinion, **world: Any) -> Watched:
    return Watched(World(**world), Script(*opinions), Stopwatch())


def sure(*probabilities: float | None) -> list[Opinion]:
    return [Opinion(success=probability) for probability in probabilities]


def standing(*potentials: float | None) -> list[Opinion]:
    return [Opinion(phi=phi) for phi in potentials]
