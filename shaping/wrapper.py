"""Potential-based shaping around one gymnasium environment."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from .ledger import ShapingLedger, check_finite
from .potential import Potential


class PotentialShaping[O, A](gym.Wrapper[O, A, O, A]):
    """Adds `weight * (gamma * Φ(s') - Φ(s))` to the reward and leaves the set of optimal policies as it is.

    Φ is 0 at termination and kept at truncation; each state is judged once, and its potential serves both transitions
    it belongs to. `weight` may be set while training runs: it holds from the next state on, and each state keeps the
    weight it was judged in, so a schedule is as invariant as a constant (`docs/derivations.md`). Keep a handle on
    this object for that: setting an attribute of a wrapper around it does not reach it.

    Where to put it: outside of everything that decides termination or repeats actions, on either side of `TimeLimit`.
    `gamma` is the learner's discount *per decision*; under action repeat that is per repeated action, not per
    simulator step.

    It will not help where successes come early without it, nor where Φ is high and the learner fails, nor where Φ is
    noise to a learner that does not see what it is a function of, nor in so few rollouts that a learner gets on by
    imitation: within a hundred, paid at weight 0.1, it changed nothing for `policies.DemonstrationSAC` that a handful
    of runs could show, and that learner rather asks Φ which failures to imitate (`docs/decisions/0015-*`). PPO from
    scratch, over 60,000 decisions at weight 1, went from 0.56 to 1.00 on one task under a sound Φ, and to 0.36 under
    one that overrates failures (`docs/log.md`, "Does PPO learn faster under the GRM's potential?").

    A transition whose potential the model abstained on, at either end, is not shaped and is counted. Termination needs
    no judgement: its potential is 0 by definition.

    `info` of every step carries:
        task_reward: what the environment paid, without us.
        shaping_reward: what we added, weighted; 0 where the transition was not shaped.
        phi, spread: Φ(s') as judged, unweighted, in [0, 1], and its standard deviation; NaN where the model abstained.
            A terminal state's is the model's opinion too, for the record: the reward does not use it.
        judged: whether the transition was shaped.
        abstentions: transitions not shaped so far in this episode.
    `info` of a reset carries `phi`, `spread` and `judged` of the first state.

    Args:
        env: the environment.
        potential: Φ; it serves this wrapper alone and knows its environment as index 0.
        gamma: the learner's discount per decision, in (0, 1].
        weight: factor of Φ, at least 0. It belongs to the scale of the task reward: scaled together, nothing changes.

    Raises `TraceError` if an observation, a task reward or a judged potential is not finite, or Φ is not in [0, 1];
    `gymnasium.error.ResetNeeded` if stepped before a reset or after termination.

    """

    def __init__(self, env: gym.Env[O, A], potential: Potential[O], *, gamma: float, weight: float = 1.0) -> None:
        super().__init__(env)
        self.potential = potential
        self._ledger = ShapingLedger(1, gamma, weight)

    @property
    def gamma(self) -> float:
        """Discount per decision."""
        return self._ledger.gamma

    @property
    def weight(self) -> float:
        """Factor of Φ; a new one holds from the next state on."""
        return self._ledger.weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self._ledger.weight = weight

    @property
    def abstentions(self) -> int:
        """Transitions not shaped since construction."""
        return self._ledger.abstentions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[O, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        check_finite(observation, "the observation")
        judgement = self.potential.reset([0], [observation])
        self._ledger.begin([0], judgement)
        return observation, {**info, **self._ledger.first_entries(judgement, 0)}

    def step(self, action: A) -> tuple[O, SupportsFloat, bool, bool, dict[str, Any]]:
        """One transition, shaped."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        task_reward = float(reward)
        check_finite(task_reward, "the task reward")
        check_finite(observation, "the observation")
        judgement = self.potential.advance([0], [observation])
        [shaping], [shaped] = self._ledger.settle(judgement, np.array([terminated], dtype=bool))
        entries = self._ledger.entries(judgement, 0, task_reward, float(shaping), bool(shaped))
        return observation, task_reward + float(shaping), terminated, truncated, {**info, **entries}
