"""The ways to add a potential that are not shaping, for comparison: each changes which policy is best.

Why, and from which discount on, is in `docs/derivations.md`; `tests/laws/test_invariance.py` has the trap.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from .onlookers import Watched

Naive = Literal["difference", "added"]


def naive_reward(
    combination: Naive, phi: Float[np.ndarray, " t"], next_phi: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """Φ' - Φ without the discount and with the terminal state's Φ, or Φ' itself; NaN where it needs an abstention's."""
    return next_phi - phi if combination == "difference" else next_phi


class NaiveReward(gym.Wrapper):
    """Adds `weight` times `naive_reward` of the opinions of `env`'s onlooker; nothing where that abstained.

    `info` has `task_reward`, `phi` and `judged` as `shaping.PotentialShaping` has them.
    """

    def __init__(self, env: gym.Env, watched: Watched, combination: Naive, weight: float) -> None:
        super().__init__(env)
        self.watched, self.combination, self.weight = watched, combination, weight
        self._phi = np.nan

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._phi = self._now()
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the reward is the task's and ours."""
        observation, task_reward, terminated, truncated, info = self.env.step(action)
        phi = self._now()
        [paid] = self.weight * naive_reward(self.combination, np.array([self._phi]), np.array([phi]))
        self._phi = phi
        judged = bool(np.isfinite(paid))
        info = {**info, "task_reward": float(task_reward), "phi": phi, "judged": judged}
        return observation, float(task_reward) + (float(paid) if judged else 0.0), terminated, truncated, info

    def _now(self) -> float:
        phi = self.watched.opinion.phi
        return np.nan if phi is None else phi
