"""The hardest attack: a learner that wants Φ and nothing else.

It is the learner of `grm demo`, started from the same cloned policy, with another reward: the increase Φ(s') - Φ(s),
without the task's own. That is what somebody writes who has a progress model and does not know about shaping, and it is
worth optimising: with the learner's discount γ,

    Σ_t γ^t (Φ_{t+1} - Φ_t) = (1 - γ) Σ_{t≥1} γ^{t-1} Φ_t - Φ_0,

the discounted mean of Φ. (The discounted increase, γ Φ(s') - Φ(s), is shaping: by `shaping.potential` it is worth the
same under every policy, and a learner paid with it alone would not attack anything.)
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float
from stable_baselines3.common.vec_env import DummyVecEnv, VecExtractDictObs

from envs.attacks import Attempt, attempt_of, frame_at
from envs.metaworld import MetaWorldEnv, SimulatorState
from grm.data.episodes import Episode
from grm.errors import TraceError
from grm.reward import Frame, ProcessReward, Task

from .collecting import Rollout
from .demonstration import Demonstration
from .offpolicy import DemonstrationSAC
from .one_shot import horizon_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pursuit:
    """One rollout of the learner."""

    number: int
    """1 for the learner's first."""
    attempt: Attempt
    potential: Float[np.ndarray, " T"]
    """Φ after each frame, as it was when it was paid; NaN where the model abstained."""


class PotentialReward(gym.Wrapper):
    """Pays the increase of Φ alone, and remembers the last finished episode.

    Where the model abstains at either end of a transition, nothing is paid for it. Success still ends an episode; what
    Φ rose by on the way there is paid like any other rise.
    """

    def __init__(self, env: MetaWorldEnv, model: ProcessReward[Frame, Any], task: Task) -> None:
        super().__init__(env)
        self.world, self.model, self.task = env, model, task
        self.finished: tuple[Attempt, Float[np.ndarray, " T"]] | None = None
        self._begin()

    def _begin(self) -> None:
        self._carry = self.model.start(self.task)
        self._frames: list[Frame] = []
        self._moments: list[SimulatorState] = []
        self._phi: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode."""
        observation, info = self.world.reset(seed=seed, options=options)
        self._begin()
        return observation, {**info, "phi": self._judge(observation)}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the reward is Φ now - Φ before, and `info` has `phi` and the task's own `task_reward`."""
        observation, task_reward, terminated, truncated, info = self.world.step(action)
        before = self._phi[-1]
        phi = self._judge(observation)
        rise = phi - before
        if terminated or truncated:
            attempt = attempt_of(self.world, self._frames, self._moments)
            self.finished = attempt, np.array(self._phi)
        paid = 0.0 if np.isnan(rise) else rise
        return observation, paid, terminated, truncated, {**info, "phi": phi, "task_reward": task_reward}

    def _judge(self, observation: dict[str, np.ndarray]) -> float:
        frame = frame_at(observation, len(self._frames), self.world)
        [self._carry], [judgement] = self.model.extend([self._carry], [[frame]])
        self._frames.append(frame)
        self._moments.append(self.world.snapshot())
        self._phi.append(float(judgement.potential[0]))
        return self._phi[-1]


def rewarded_by(model: ProcessReward[Frame, Any], task: Task, demonstration: Episode) -> Demonstration:
    """The demonstration's transitions, paid as `PotentialReward` pays."""
    rise = np.diff(model.judge(task, demonstration.frames).potential)
    terminated = np.zeros(len(rise), bool)
    terminated[-1] = demonstration.succeeded
    return Demonstration(
        observations=demonstration.state[:-1],
        actions=demonstration.actions[:-1],
        rewards=np.nan_to_num(rise, nan=0.0),
        next_observations=demonstration.state[1:],
        terminated=terminated,
    )


def environment_of(demonstration: Episode) -> MetaWorldEnv:
    """An environment as the demonstration was recorded in: its task, views, picture size and pace."""
    height, width = next(iter(demonstration.views.values())).shape[1:3]
    return MetaWorldEnv(
        demonstration.task,
        views=tuple(demonstration.views),
        height=height,
        width=width,
        horizon=horizon_of(demonstration),
        action_repeat=round(80 / demonstration.rate_hz),
    )


def maximize(
    env: MetaWorldEnv,
    model: ProcessReward[Frame, Any],
    task: Task,
    demonstration: Episode,
    *,
    rollouts: int,
    keep: int,
    seed: int,
    on_rollout: Callable[[Rollout], bool | None] = lambda rollout: None,
) -> Sequence[Pursuit]:
    """Let a learner maximise Φ for `rollouts` rollouts; returns its last `keep`.

    Those are the ones to look at: by then it does on purpose what pays. It knows of success as little as it can: an
    episode that succeeds ends, but no success is imitated.

    Args:
        env: with the demonstration's views (`environment_of`); it stays open, the truths of what is returned need it.
        model: the judge under attack.
        task: what it is asked.
        demonstration: what the learner's policy is cloned from.
        rollouts: how many, at least 1.
        keep: how many of the last to return, at least 1.
        seed: of the learner and its instances.
        on_rollout: called after each; learning stops early if it returns False.
    """
    if rollouts < 1 or keep < 1:
        raise TraceError(f"{rollouts} rollouts of which {keep} are kept; expected at least 1 of both")
    wrapper = PotentialReward(env, model, task)
    venv = VecExtractDictObs(DummyVecEnv([lambda: wrapper]), "state")
    shown = rewarded_by(model, task, demonstration)
    learner = DemonstrationSAC(venv, shown, seed=seed, imitation_steps=0, cloned_rollouts=min(5, rollouts // 4))
    kept: deque[Pursuit] = deque(maxlen=keep)

    def after(rollout: Rollout) -> bool | None:
        assert wrapper.finished is not None
        attempt, potential = wrapper.finished
        kept.append(Pursuit(number=rollout.number, attempt=attempt, potential=potential))
        return on_rollout(rollout)

    learner.learn_rollouts(rollouts, after)
    return tuple(kept)
