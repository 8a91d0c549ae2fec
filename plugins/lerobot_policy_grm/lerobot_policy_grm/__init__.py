"""Importing this registers the reward model `grm`, the robot `grm_sim` and its expert `grm_sim_expert` with LeRobot.

LeRobot imports it by its distribution's name.
"""

from robot_io.reward_model import GRMConfig, GRMRewardModel
from robot_io.sim import SimExpert, SimExpertConfig, SimRobot, SimRobotConfig

__all__ = ["GRMConfig", "GRMRewardModel", "SimExpert", "SimExpertConfig", "SimRobot", "SimRobotConfig"]
