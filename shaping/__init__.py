"""Potentials into rewards: policy-invariant shaping around any environment.

For Stable-Baselines3, `from shaping.sb3 import VecPotentialShaping`.
"""

from .potential import (
    ModelPotential,
    Potential,
    StatePotential,
    frame_of,
    shaping_reward,
)
from .wrapper import PotentialShaping

__all__ = [
    "ModelPotential",
    "Potential",
    "PotentialShaping",
    "StatePotential",
    "frame_of",
    "shaping_reward",
]
