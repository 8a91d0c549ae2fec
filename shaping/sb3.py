"""Potential-based shaping around a Stable-Baselines3 vectorised environment, all environments judged in one call."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from grm.errors import TraceError

from .ledger import ShapingLedger, check_finite
from .potential import Potential


class VecPotentialShaping(VecEnvWrapper):
    """`PotentialShaping` for N environments: the same rewards, the same `info`, one judgement call per step.

    A vectorised environment resets itself: at an episode's end the observation it returns belongs to the *next*
    episode, and the last one of this episode waits in `infos[i]["terminal_observation"]`. Φ(s') is judged on that
    one, and counts as 0 if the episode terminated (`TimeLimit.truncated` false) and in full if it was truncated. The
    returned observation then begins a new episode. A final observation is judged also where it terminated: for the
    record, not for the reward.

    The environments must return fresh arrays: `DummyVecEnv` keeps the terminal observation by reference and resets
    before anyone can look, so an environment that reuses one buffer shows the next episode's first picture there.

    Wrap it around the environments themselves, inside of anything that drops images (`VecExtractDictObs`), stacks
    frames or normalises rewards. N-step returns (`NStepReplayBuffer`) telescope if `gamma` is theirs.
    `reset_infos[i]` carries what `info` of a reset carries. Both also carry `features`, what the potential's model saw
    in the state just judged, if it says so: `policies.features` makes it a policy's observation.

    Args:
        venv: the vectorised environment; observations may be arrays, dicts or tuples of arrays.
        potential: Φ; it serves this wrapper alone and knows its environments as indices 0 … N-1.
        gamma: the learner's discount per decision, in (0, 1].
        weight: factor of Φ, at least 0; may be set while training runs, on this object.

    Raises as `PotentialShaping` does, and `TraceError` if an episode ended without its terminal observation. Where it
    will not help is said there, too.

    """

    def __init__(self, venv: VecEnv, potential: Potential[Any], *, gamma: float, weight: float = 1.0) -> None:
        super().__init__(venv)
        self.potential = potential
        self._ledger = ShapingLedger(venv.num_envs, gamma, weight)

    @property
    def gamma(self) -> float:
        """Discount per decision."""
        return self._ledger.gamma

    @property
    def weight(self) -> float:
        """Factor of Φ; a new one holds from the next states on."""
        return self._ledger.weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self._ledger.weight = weight

    @property
    def abstentions(self) -> int:
        """Transitions not shaped since construction, all environments together."""
        return self._ledger.abstentions

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        observations = self.venv.reset()
        self._begin(list(range(self.num_envs)), observations)
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """One transition in every environment, shaped; ended episodes are followed by new ones."""
        observations, rewards, ended, infos = self.venv.step_wait()
        reached = [
            _terminal_observation(infos[i], i) if ended[i] else _observation_of(observations, i)
            for i in range(self.num_envs)
        ]
        for i, observation in enumerate(reached):
            check_finite(float(rewards[i]), f"the task reward of environment {i}")
            check_finite(observation, f"the observation of environment {i}")
        terminated = np.array(
            [bool(ended[i]) and not infos[i].get("TimeLimit.truncated", False) for i in range(self.num_envs)]
        )
        judgement = self.potential.advance(list(range(self.num_envs)), reached)
        shaping, shaped = self._ledger.settle(judgement, terminated)
        for i, info in enumerate(infos):
            info.update(self._ledger.entries(judgement, i, float(rewards[i]), float(shaping[i]), bool(shaped[i])))
            info.update(self._features(i))
        new = np.flatnonzero(ended).tolist()
        if new:
            self._begin(new, observations)
        return observations, (rewards + shaping).astype(rewards.dtype), ended, infos

    def _begin(self, indices: list[int], observations: VecEnvObs) -> None:
        first = [_observation_of(observations, i) for i in indices]
        for i, observation in zip(indices, first, strict=True):
            check_finite(observation, f"the observation of environment {i}")
        judgement = self.potential.reset(indices, first)
        self._ledger.begin(indices, judgement)
        for row, i in enumerate(indices):
            entries = self._ledger.first_entries(judgement, row)
            self.reset_infos[i] = {**self.venv.reset_infos[i], **entries, **self._features(i)}

    def _features(self, index: int) -> dict[str, np.ndarray]:
        features = self.potential.features(index)
        return {} if features is None else {"features": features}


def _observation_of(observations: VecEnvObs, index: int) -> Any:
    """One environment's part of a batch."""
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    if isinstance(observations, tuple):
        return tuple(value[index] for value in observations)
    return observations[index]


def _terminal_observation(info: dict[str, Any], index: int) -> Any:
    if info.get("terminal_observation") is None:
        raise TraceError(
            f"environment {index} ended an episode without infos[{index}]['terminal_observation']; expected the last "
            f"observation there, as every Stable-Baselines3 VecEnv leaves it"
        )
    return info["terminal_observation"]
