"""Importing this registers the reward model `grm` with LeRobot, which imports it by its distribution's name."""

from robot_io.reward_model import GRMConfig, GRMRewardModel

__all__ = ["GRMConfig", "GRMRewardModel"]
