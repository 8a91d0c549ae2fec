import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from grm.errors import TraceError
from policies.features import VecViewFeatures
from shaping import ModelPotential
from shaping.sb3 import VecPotentialShaping
from tests.shaping.test_potential import TASK, Brightness, Sighted

from .reaching import Reaching


class Pictured(Reaching):
    """The point's position is its state, and the brightness of its one picture counts the decisions."""

    def __init__(self) -> None:
        super().__init__(horizon=3)
        picture = spaces.Box(0, 255, (4, 5, 3), np.uint8)
        self.observation_space = spaces.Dict({"state": self.observation_space, "pixels.corner": picture})

    def _observe(self):
        state = np.array([self.position, 0.0], np.float32)
        return {"state": state, "pixels.corner": np.full((4, 5, 3), 51 * (self.decisions + 1), np.uint8)}


def make(model) -> VecPotentialShaping:
    return VecPotentialShaping(DummyVecEnv([Pictured]), ModelPotential(model, TASK), gamma=0.9, weight=0.0)


def test_the_state_is_followed_by_what_was_seen_across_an_auto_reset():
    venv = VecViewFeatures(make(Sighted()), 2)
    assert venv.observation_space.shape == (4,)
    first = venv.reset()
    np.testing.assert_allclose(first[0, 2:], [0.2, 1])
    assert first.dtype == np.float32
    for count in (2, 3):
        observation, _, ended, _ = venv.step(np.array([[0.5]]))
        np.testing.assert_allclose(observation[0, 2:], [0.2 * count, count], rtol=1e-6)
        assert not ended[0]
    observation, _, ended, infos = venv.step(np.array([[0.5]]))
    assert ended[0]
    np.testing.assert_allclose(infos[0]["terminal_observation"][2:], [0.8, 4], rtol=1e-6)
    np.testing.assert_allclose(infos[0]["terminal_observation"][0], first[0, 0] + 0.15, rtol=1e-6)
    np.testing.assert_allclose(observation[0, 2:], [0.2, 1])  # the next episode's first picture


def test_a_potential_without_features_is_one_clear_error():
    with pytest.raises(TraceError, match="features are none; expected 2 numbers"):
        VecViewFeatures(make(Brightness()), 2).reset()
    with pytest.raises(TraceError, match=r"of shape \(2,\); expected 3 numbers"):
        VecViewFeatures(make(Sighted()), 3).reset()


def test_observations_without_a_state_are_one_clear_error():
    venv = VecPotentialShaping(DummyVecEnv([Reaching]), ModelPotential(Sighted(), TASK), gamma=0.9)
    with pytest.raises(TraceError, match="expected a Dict with a flat Box 'state'"):
        VecViewFeatures(venv, 2)
