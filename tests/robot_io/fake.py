"""A robot of numbers: remembers every command, moves as told, and fails when asked to."""

import math
from typing import Any

import numpy as np

from robot_io.limits import JointLimits, SafetyLimits, WatchdogTimes, Workspace

JOINTS = {
    "shoulder.pos": JointLimits(unit="deg", low=-90, high=90, max_step=4, max_velocity=50, max_lead=12),
    "elbow.pos": JointLimits(unit="deg", low=0, high=120, max_step=2, max_velocity=1000),
    "gripper.pos": JointLimits(unit="percent", low=0, high=100, max_step=30, max_velocity=300),
}
CARTESIAN = {
    axis: JointLimits(unit="m", low=-1, high=1, max_step=0.02, max_velocity=1) for axis in ("x.pos", "y.pos", "z.pos")
}
LONG = WatchdogTimes(command_s=1e6, camera_s=1e6, process_s=1e6)
SHORT = WatchdogTimes(command_s=0.15, camera_s=0.3, process_s=0.6)


def limits(joints=None, watchdog=LONG, workspace: Workspace | None = None) -> SafetyLimits:
    return SafetyLimits(joints or JOINTS, watchdog, workspace)


class Clock:
    """Time passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRobot:
    """Follows each command by `follow` of the way; positions by joint, `commands` in order."""

    def __init__(self, names=tuple(JOINTS), *, start: float = 10.0, follow: float = 1.0) -> None:
        self.action_features = dict.fromkeys(names, float)
        self.observation_features = {name: float for name in names if name.endswith(".pos")}
        self.positions: dict[str, float] = dict.fromkeys(names, start)
        self.follow = follow
        self.commands: list[dict[str, float]] = []
        self.is_connected = True
        self.broken: Exception | None = None
        self.deaf: Exception | None = None

    def connect(self, calibrate: bool = True) -> None:
        if self.broken:
            raise self.broken
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def get_observation(self) -> dict[str, Any]:
        if self.broken:
            raise self.broken
        return {name: self.positions[name] for name in self.observation_features}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        if self.broken or self.deaf:
            raise self.broken or self.deaf
        self.commands.append(dict(action))
        for name, value in action.items():
            self.positions[name] += self.follow * (value - self.positions[name])
        return action


def beyond(commands: list[dict[str, float]], start: dict[str, float], joints, dt_s: float | np.ndarray) -> int:
    """How many of these commands, sent `dt_s` seconds apart, lie beyond the limits: worked out anew, from the table."""
    names = list(joints)
    rows = np.array([[start[name] for name in names], *([c[name] for name in names] for c in commands)])
    low, high = (np.array([getattr(joints[name], key) for name in names]) for key in ("low", "high"))
    step = np.array([joints[name].max_step for name in names])
    velocity = np.array([joints[name].max_velocity for name in names])
    change, slack = np.abs(np.diff(rows, axis=0)), 1e-9
    wrong = ~np.isfinite(rows[1:]) | (rows[1:] < low) | (rows[1:] > high) | (change > step + slack)
    dt = np.broadcast_to(np.asarray(dt_s, dtype=float).reshape(-1, 1), change.shape)
    finite = [i for i, value in enumerate(velocity) if math.isfinite(value)]
    wrong[:, finite] |= change[:, finite] > velocity[finite] * dt[:, finite] + slack
    return int(wrong.any(axis=1).sum())
