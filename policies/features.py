"""What a robot acts on: its own state beside what the reward model's frozen encoder saw, encoded once for both."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from grm.errors import TraceError


class VecViewFeatures(VecEnvWrapper):
    """Flat observations: the entry `state` of each dict, followed by the features of the views as just judged.

    Wrap it around a `VecPotentialShaping` whose model says what it saw, such as `grm.GRM`; with a weight of 0 the
    reward stays the task's own. Any environment will do that has `features` in the infos of its steps and resets. The
    observation that ends an episode is treated alike.

    Raises:
        TraceError: the observations have no flat `state`, or the potential no features.
    """

    def __init__(self, venv: VecEnv, features: int) -> None:
        space = venv.observation_space
        state = space.spaces.get("state") if isinstance(space, spaces.Dict) else None
        if not isinstance(state, spaces.Box) or len(state.shape) != 1:
            raise TraceError(f"the observations are {space}; expected a Dict with a flat Box 'state'")
        size = state.shape[0] + features
        super().__init__(venv, observation_space=spaces.Box(-np.inf, np.inf, (size,), np.float32))
        self._features = features

    def reset(self) -> np.ndarray:
        """The first observations."""
        return self._flat(self.venv.reset(), self.venv.reset_infos)

    def step_wait(self) -> VecEnvStepReturn:
        """One step; ended episodes are followed by new ones, whose first views were judged as well."""
        observations, rewards, ended, infos = self.venv.step_wait()
        newest = [self.venv.reset_infos[i] if end else infos[i] for i, end in enumerate(ended)]
        for info, end in zip(infos, ended, strict=True):
            if end:
                info["terminal_observation"] = self._join(info["terminal_observation"]["state"], info)
        return self._flat(observations, newest), rewards, ended, infos

    def _flat(self, observations: VecEnvObs, infos: list[dict[str, Any]]) -> np.ndarray:
        assert isinstance(observations, dict)
        return np.stack([self._join(row, info) for row, info in zip(observations["state"], infos, strict=True)])

    def _join(self, state: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        features = info.get("features")
        if features is None or features.shape != (self._features,):
            found = "none" if features is None else f"of shape {features.shape}"
            raise TraceError(
                f"the potential's features are {found}; expected {self._features} numbers: use a `ModelPotential` of a "
                f"model with `features(carry)`, such as `grm.GRM`"
            )
        return np.concatenate([state, features]).astype(np.float32)
