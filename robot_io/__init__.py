"""The real world: robots with limits, cameras that fail, people who take over, and recordings of it all.

Names are imported when they are first asked for: whoever scores from another machine needs no robot's drivers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import LimitError, RobotError, StaleFrameError, StoppedError
    from .learner import LearnerSide
    from .limits import SafetyLimits
    from .loop import ControlLoop
    from .operator import Operator
    from .plan import RobotSide
    from .recorder import Recorder
    from .robot import RobotEnv
    from .rollout import Ending, Tick, Verdict
    from .safety import SafeRobot
    from .session import Session
    from .sim import SimExpert, SimExpertConfig, SimRobot, SimRobotConfig

_HOMES = {
    "ControlLoop": "loop",
    "Ending": "rollout",
    "LearnerSide": "learner",
    "LimitError": "errors",
    "Operator": "operator",
    "Recorder": "recorder",
    "RobotEnv": "robot",
    "RobotError": "errors",
    "RobotSide": "plan",
    "SafeRobot": "safety",
    "SafetyLimits": "limits",
    "Session": "session",
    "SimExpert": "sim",
    "SimExpertConfig": "sim",
    "SimRobot": "sim",
    "SimRobotConfig": "sim",
    "StaleFrameError": "errors",
    "StoppedError": "errors",
    "Tick": "rollout",
    "Verdict": "rollout",
}

__all__ = [
    "ControlLoop",
    "Ending",
    "LearnerSide",
    "LimitError",
    "Operator",
    "Recorder",
    "RobotEnv",
    "RobotError",
    "RobotSide",
    "SafeRobot",
    "SafetyLimits",
    "Session",
    "SimExpert",
    "SimExpertConfig",
    "SimRobot",
    "SimRobotConfig",
    "StaleFrameError",
    "StoppedError",
    "Tick",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    """A public name, from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
