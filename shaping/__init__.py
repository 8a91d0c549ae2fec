"""Potentials into rewards: policy-invariant shaping around any environment.

For Stable-Baselines3, `from shaping.sb3 import VecPotentialShaping`.
"""

from .potential import (
    ModelPotential,
    Potential,
    StatePotential,
    ValueScale,
    frame_of,
    shaping_reward,
    value_scale,
)
from .wrapper import PotentialShaping

__all__ = [
    "ModelPotential",
    "Potential",
    "PotentialShaping",
    "StatePotential",
    "ValueScale",
    "frame_of",
    "shaping_reward",
    "value_scale",
]
