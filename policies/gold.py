"""r_gold where no environment pays: a model says when the task is done, pays for it and ends the episode.

A real robot has no simulator to ask. The truth is only measured here: it neither pays nor ends anything.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from .onlookers import Watched

SUCCESS_THRESHOLD = 0.6
STABLE_STEPS = 3
"""A success is believed after `STABLE_STEPS` decisions in a row at `SUCCESS_THRESHOLD` or above: what
`benchmarks.success_threshold` found on training tasks."""
PATIENCE = 8
"""Decisions for which whoever stands by leaves it to the onlooker to see that it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a person said at the end of a rollout."""

    done_for: int
    """For how many decisions it has been done, 0 for a no."""
    claimed: bool
    """Whether the head had said that it is done; if not, the person spoke up unasked."""

    @property
    def right(self) -> bool:
        """Whether the head was."""
        return self.claimed and self.done_for > 0


class StableSuccess:
    """Believes in a success after N steps in a row with P(done) at or above a threshold.

    A single frame that looks done is often a hand in front of a camera (after HIL-SERL's classifiers, Luo et al. 2024,
    which fire on single frames and are trained until they do not). An abstention begins the count anew.
    """

    def __init__(self, threshold: float = SUCCESS_THRESHOLD, steps: int = STABLE_STEPS) -> None:
        self.threshold, self.steps = threshold, steps
        self._count = 0

    def begin(self) -> None:
        """Forget what was seen; an episode begins."""
        self._count = 0

    def __call__(self, probability: float | None) -> bool:
        """Whether the task is done, after one more step with this P(done); None is an abstention."""
        self._count = self._count + 1 if probability is not None and probability >= self.threshold else 0
        return self._count >= self.steps


class JudgedSuccess(gym.Wrapper):
    """Pays 1 and terminates when the onlooker of `env` is sure that the task is done, and never otherwise.

    The episode goes on where the simulator sees a success that the onlooker does not, up to the horizon. `info` has
    `success`, what the onlooker said, and `true_success`, whether the simulator saw one at any step so far.

    While `attended` is set, somebody stands by, here the simulator. Asked when the onlooker is sure, they say whether
    the task is done now; a no ends the episode, too, unpaid and truncated. Unasked they say that it is done, once it
    has been for `PATIENCE` decisions and the onlooker has not noticed. `info` has the `answer` then.
    """

    def __init__(self, env: Watched, stable: StableSuccess | None = None) -> None:
        super().__init__(env)
        self.watched, self.stable, self.attended = env, stable or StableSuccess(), False
        self._decisions, self._done_for, self._true_success = 0, 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.stable.begin()
        self._decisions, self._done_for, self._true_success = 0, 0, False
        return observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the reward is the onlooker's, or what was answered."""
        observation, _, _, _, info = self.env.step(action)
        self._decisions += 1
        self._true_success |= bool(info["success"])
        self._done_for = self._done_for + 1 if info["success"] else 0
        claimed = done = self.stable(self.watched.opinion.success)
        answer: dict[str, Answer] = {}
        if self.attended and (claimed or self._done_for >= PATIENCE):
            done = bool(info["success"])
            answer = {"answer": Answer(done_for=self._done_for, claimed=claimed)}
        truncated = not done and (claimed or self._decisions >= self.watched.world.horizon)
        info = {**info, "success": done, "true_success": self._true_success, **answer}
        return observation, float(done), done, truncated, info
