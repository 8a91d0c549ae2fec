"""Limits of a robot, from one readable file: of joints, speed, place and patience, and what they make of an action."""

import math
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import LimitError

POSITION, VELOCITY = ".pos", ".vel"
UNITS = {POSITION: ("deg", "rad", "m", "mm", "percent"), VELOCITY: ("deg/s", "rad/s", "m/s", "mm/s", "percent/s")}
"""By how a joint's name ends, as LeRobot names it; `percent` is its normalised range, -100 to 100 or 0 to 100."""
AXES = ("x.pos", "y.pos", "z.pos")
"""Of the hand in metres, where a robot is commanded by them."""


EXAMPLE = """\
[joints."shoulder_pan.pos"]   # one table for each action of the robot
unit = "deg"
min = -90.0
max = 90.0
max_step = 4.0                # per command
max_velocity = 60.0           # per second
max_lead = 15.0               # optional: of the command before the measured position

[workspace]                   # optional: the hand's box, where its pose is known
unit = "m"
min = [0.05, -0.25, 0.02]
max = [0.40, 0.25, 0.40]

[watchdog]
command_s = 0.5
camera_s = 1.0
process_s = 1.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointLimits:
    """One joint's limits, in `unit`; steps are per command."""

    unit: str
    low: float
    high: float
    max_step: float
    """Largest change from one command to the next."""
    max_velocity: float = math.inf
    """Largest change per second, whatever the rate of commands; for positions only."""
    max_lead: float = math.inf
    """How far a command may run ahead of the measured position: a blocked arm then does not wind up force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The box in metres that the hand may not leave."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def contains(self, point: Float[np.ndarray, " 3"]) -> bool:
        """Whether a point, in metres, is in the box; one that is not finite is not."""
        return bool(np.all((point >= self.low) & (point <= self.high)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogTimes:
    """Seconds after which something is late."""

    command_s: float
    """The next command."""
    camera_s: float
    """A camera's next picture."""
    process_s: float
    """The control loop's next turn."""


class SafetyLimits:
    """The limits of one robot: per joint, of the hand's workspace, and of time. Immutable.

    Raises `LimitError` for limits that contradict each other.
    """

    def __init__(
        self, joints: Mapping[str, JointLimits], watchdog: WatchdogTimes, workspace: Workspace | None = None
    ) -> None:
        if not joints:
            raise LimitError(
                'the limits name no joint; expected a table [joints."<name>.pos"] for each of the robot\'s'
            )
        for name, joint in joints.items():
            _require_joint(name, joint)
        for name in WatchdogTimes.__dataclass_fields__:
            _require_positive(f"watchdog.{name}", getattr(watchdog, name))
        if workspace is not None and not all(a < b for a, b in zip(workspace.low, workspace.high, strict=True)):
            raise LimitError(
                f"workspace.min is {list(workspace.low)} and workspace.max {list(workspace.high)}; expected three "
                f"finite numbers of metres each, every min below its max"
            )
        if workspace is not None and any(name.endswith(VELOCITY) for name in joints):
            raise LimitError(
                "a workspace is declared for joints commanded by velocity; expected positions: declare the limits in "
                "`.pos`, or leave the workspace out and limit the velocities"
            )
        self.joints = dict(joints)
        self.watchdog = watchdog
        self.workspace = workspace
        self.names = tuple(joints)
        columns = ("low", "high", "max_step", "max_velocity", "max_lead")
        table = np.array([[getattr(joint, column) for column in columns] for joint in joints.values()])
        self._low, self._high, self._step, self._velocity, self._lead = table.T

    @classmethod
    def read(cls, path: Path) -> "SafetyLimits":
        """From a TOML file, strictly: a key that is not known is as wrong as one that is missing.

        Raises `LimitError` with what was found, what was expected and what would work.
        """
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LimitError(
                f"{path} cannot be read as TOML ({error}); expected a limits file such as\n{EXAMPLE}"
            ) from error
        try:
            return _parse(found)
        except LimitError as error:
            raise LimitError(f"{path}: {error}") from error

    def require_robot(self, action_features: Mapping[str, Any]) -> None:
        """Raise `LimitError` unless every action of the robot is limited, and nothing else is."""
        missing = [name for name in action_features if name not in self.joints]
        surplus = [name for name in self.joints if name not in action_features]
        if missing or surplus:
            found = f"no limits for {missing}" if missing else f"limits for {surplus}, which the robot does not have"
            raise LimitError(
                f'{found}; expected one table [joints."<name>"] for each of the robot\'s actions: '
                f"{', '.join(action_features)}"
            )

    def require_inside(self, positions: Mapping[str, float]) -> None:
        """Raise `LimitError` unless a measured position is finite and within the limits of every joint."""
        for name, joint in self.joints.items():
            if not name.endswith(POSITION):
                continue
            value = positions[name]
            if not joint.low <= value <= joint.high:
                raise LimitError(
                    f"{name} stands at {value:.4g} {joint.unit}; expected {joint.low:.4g} to {joint.high:.4g} before "
                    f"any motion: move the robot there by hand, or widen its limits after looking at why"
                )

    def require_action(self, action: Any) -> Float[np.ndarray, " n"]:
        """An action's numbers in the order of `names`. Raises `LimitError` for what cannot be sent."""
        if not isinstance(action, Mapping):
            raise LimitError(f"the action is a {type(action).__name__}; expected a number for each of {self.names}")
        if len(action) != len(self.names) or any(name not in action for name in self.names):
            missing = [name for name in self.names if name not in action]
            surplus = [name for name in action if name not in self.joints]
            raise LimitError(
                f"the action lacks {missing} and has {surplus} too many; expected one number for each of {self.names}"
            )
        values = np.empty(len(self.names))
        for index, name in enumerate(self.names):
            value: Any = action[name]
            try:
                if isinstance(value, (bool, str, bytes)) or getattr(value, "shape", ()) != ():
                    raise TypeError(f"{type(value).__name__} of shape {getattr(value, 'shape', ())}")
                values[index] = value
            except (TypeError, ValueError, OverflowError) as error:
                raise LimitError(f"the action's {name} is no number ({error}); expected a finite one") from error
        if not np.isfinite(values).all():
            wrong = {
                name: value for name, value in zip(self.names, values.tolist(), strict=True) if not math.isfinite(value)
            }
            raise LimitError(f"the action has {wrong}; expected finite numbers: nothing was sent, the robot holds")
        return values

    def clamp(
        self,
        target: Float[np.ndarray, "*b n"],
        last: Float[np.ndarray, "*b n"],
        measured: Float[np.ndarray, "*b n"] | None,
        elapsed_s: float,
    ) -> Float[np.ndarray, "*b n"]:
        """The nearest command to `target` that may follow `last`, which itself lies within the limits.

        `measured` is where the joints are (None or NaN where nobody knows), `elapsed_s` the seconds since the last
        command, of which negative ones count as none. Columns are `names`.
        """
        step = np.minimum(self._step, self._velocity * max(elapsed_s, 1e-9))  # infinite times 0 would be NaN
        safe = target
        if measured is not None:
            led = np.clip(target, measured - self._lead, measured + self._lead)
            safe = np.where(np.isnan(led), target, led)
        # The step comes after the lead, because it bounds motion where the lead bounds force; the range comes last, and
        # cannot lengthen the step, as `last` is within it.
        return np.clip(np.clip(safe, last - step, last + step), self._low, self._high)

    def still(self, last: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"] | None) -> Float[np.ndarray, " n"]:
        """The command that leaves the robot where it is: measured positions as far as one step allows, velocity 0."""
        goal = last if measured is None else np.where(np.isnan(measured), last, measured)
        held = np.clip(np.clip(goal, last - self._step, last + self._step), self._low, self._high)
        return np.where([name.endswith(VELOCITY) for name in self.names], 0.0, held)


def _parse(found: dict[str, Any]) -> SafetyLimits:
    tables = _keys("the file", found, {"joints", "watchdog"}, {"workspace"})
    joints = {}
    for name, entry in _table("joints", tables["joints"]).items():
        where = f'joints."{name}"'
        entry = _keys(where, entry, {"unit", "min", "max", "max_step"}, {"max_velocity", "max_lead"})
        joints[name] = JointLimits(
            unit=_text(f"{where}.unit", entry["unit"]),
            low=_number(f"{where}.min", entry["min"]),
            high=_number(f"{where}.max", entry["max"]),
            max_step=_number(f"{where}.max_step", entry["max_step"]),
            **{key: _number(f"{where}.{key}", entry[key]) for key in ("max_velocity", "max_lead") if key in entry},
        )
        if name.endswith(POSITION) and "max_velocity" not in entry:
            raise LimitError(f"{where} has no max_velocity; expected one in {entry['unit']} per second")
    times = _keys("watchdog", tables["watchdog"], set(WatchdogTimes.__dataclass_fields__))
    workspace = None
    if "workspace" in tables:
        box = _keys("workspace", tables["workspace"], {"unit", "min", "max"})
        if box["unit"] != "m":
            raise LimitError(f"workspace.unit is {box['unit']!r}; expected 'm': convert the box to metres")
        workspace = Workspace(low=_point("workspace.min", box["min"]), high=_point("workspace.max", box["max"]))
    watchdog = WatchdogTimes(**{key: _number(f"watchdog.{key}", value) for key, value in times.items()})
    return SafetyLimits(joints, watchdog, workspace)


def _table(where: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise LimitError(f"{where} is {found!r}; expected a table [{where}], as in\n{EXAMPLE}")
    return found


def _keys(where: str, found: Any, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
    table = _table(where, found)
    missing, unknown = sorted(required - set(table)), sorted(set(table) - required - set(optional))
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown {', '.join(unknown)}"
        choices = ", ".join([*sorted(required), *(f"{key} (optional)" for key in sorted(optional))])
        raise LimitError(f"{where} {wrong}; expected {choices}, as in\n{EXAMPLE}")
    return table


def _number(where: str, found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise LimitError(f"{where} is {found!r}; expected a finite number, such as 5.0")
    return float(found)


def _text(where: str, found: Any) -> str:
    if not isinstance(found, str):
        raise LimitError(f"{where} is {found!r}; expected text, such as 'deg'")
    return found


def _point(where: str, found: Any) -> tuple[float, float, float]:
    if not isinstance(found, list) or len(found) != 3:
        raise LimitError(f"{where} is {found!r}; expected three numbers: x, y and z")
    x, y, z = (_number(where, value) for value in found)
    return x, y, z


def _require_positive(where: str, value: float) -> None:
    if not value > 0:
        raise LimitError(f"{where} is {value}; expected a number above 0")


def _require_joint(name: str, joint: JointLimits) -> None:
    kind = next((kind for kind in UNITS if name.endswith(kind)), None)
    if kind is None:
        raise LimitError(f"joint {name!r} ends neither in .pos nor in .vel; expected the name LeRobot's robot gives it")
    if joint.unit not in UNITS[kind]:
        raise LimitError(f"the unit of {name} is {joint.unit!r}; expected one of {', '.join(UNITS[kind])}")
    if not (math.isfinite(joint.low) and math.isfinite(joint.high) and joint.low < joint.high):
        raise LimitError(f"{name} has min {joint.low} and max {joint.high}; expected finite numbers, min below max")
    for key in ("max_step", "max_velocity", "max_lead"):
        _require_positive(f"{name}: {key}", getattr(joint, key))
    if kind == VELOCITY and not joint.low <= 0 <= joint.high:
        raise LimitError(f"{name} allows {joint.low} to {joint.high}; expected 0 within, so that it can stand still")
    if kind == VELOCITY and (math.isfinite(joint.max_velocity) or math.isfinite(joint.max_lead)):
        raise LimitError(f"{name} is a velocity and has max_velocity or max_lead; expected min, max and max_step only")
