"""What stands between a policy and a motor: limits from one readable file, a gate and a watchdog.

Every action goes through `SafeRobot.send_action`. What is no action (NaN, infinite, a joint too few) is refused: it
is not sent, and the robot holds. The rest is clamped, so that by induction no command ever lies beyond the limits: the
first reference is a measured position that was checked, and each command is clamped relative to the one before.

A watchdog thread stops the robot when a command, a camera or the whole loop is late. It lives in the process that
drives: where that process is killed, a robot commanded by positions holds its last goal by itself, and one commanded by
velocities needs a watchdog in its own firmware.
"""

import atexit
import logging
import math
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from lerobot.robots import Robot

from .errors import LimitError, RobotError, StoppedError

POSITION, VELOCITY = ".pos", ".vel"
UNITS = {POSITION: ("deg", "rad", "m", "mm", "percent"), VELOCITY: ("deg/s", "rad/s", "m/s", "mm/s", "percent/s")}
"""By how a joint's name ends, as LeRobot names it; `percent` is its normalised range, -100 to 100 or 0 to 100."""
AXES = ("x.pos", "y.pos", "z.pos")
"""Of the hand in metres, where a robot is commanded by them."""
LOST = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What drivers raise when a bus or a camera does not answer, or answers nonsense; LeRobot's own are OSErrors."""
_POLL_S = 0.02
_HOLD_TRIES = 25

_log = logging.getLogger(__name__)


class Kinematics(Protocol):
    """Where a hand is for given joint positions: what LeRobot's `RobotKinematics` tells, or a robot's own model."""

    def forward(self, positions: Mapping[str, float]) -> Float[np.ndarray, " 3"]:
        """Hand position in metres, by the robot's `.pos` keys."""
        ...


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


class Watchdog:
    """Who was heard of when, on a monotonic clock: a jump of the wall clock does nothing. No thread of its own."""

    def __init__(self) -> None:
        self._deadlines: dict[str, tuple[float, float]] = {}

    def expect(self, name: str, within_s: float, now: float) -> None:
        """From now on, `name` is late if it is not fed within `within_s` seconds."""
        self._deadlines[name] = (now, within_s)

    def feed(self, name: str, now: float) -> None:
        """`name` was heard of; nothing happens if it is not expected."""
        if name in self._deadlines:
            self._deadlines[name] = (now, self._deadlines[name][1])

    def forget(self) -> None:
        """Expect nothing any more."""
        self._deadlines = {}

    def late(self, now: float) -> str | None:
        """What is late and by how much, in words; None if nothing is."""
        for name, (heard, within_s) in list(self._deadlines.items()):
            if now - heard > within_s:
                return f"{name} is late: {now - heard:.2f} s since the last one, at most {within_s:g} s are allowed"
        return None


class SafeRobot:
    """The only way to a robot's motors. Wraps any LeRobot `Robot`.

    It is stopped when made: `connect()`, then `arm()`, which refuses if the robot stands beyond its limits. After a
    `stop()`, whatever its cause, nothing is sent until `arm()` is called again. `rest()` holds the robot without a
    watchdog, for a person to reset the scene; `resume()` ends that.

    Args:
        robot: connected or not; nobody else may send it anything.
        limits: for exactly this robot's actions.
        cameras: names of the views that must keep coming.
        kinematics: where the hand is, for robots not commanded by `x.pos`, `y.pos` and `z.pos` in metres.
        clock: seconds, monotonic.

    Raises:
        LimitError: limits for other joints or in other units than the robot's, or a workspace nobody can check.
    """

    def __init__(
        self,
        robot: Robot,
        limits: SafetyLimits,
        *,
        cameras: Sequence[str] = (),
        kinematics: Kinematics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits.require_robot(robot.action_features)
        _require_units(robot, limits)
        self.robot, self.limits, self.cameras = robot, limits, tuple(cameras)
        self.refused, self.clamped, self.sent = 0, 0, 0
        """How many actions were refused, changed, and sent."""
        self._kinematics = kinematics
        self._cartesian = all(axis in limits.joints and limits.joints[axis].unit == "m" for axis in AXES)
        if limits.workspace is not None and kinematics is None and not self._cartesian:
            raise LimitError(
                "a workspace is declared and nobody knows where this robot's hand is; expected a robot commanded by "
                "x.pos, y.pos and z.pos in metres, or kinematics: pass them, or leave the workspace out"
            )
        self._clock = clock
        self._io = threading.Lock()  # a motor bus is for one thread at a time
        self._watchdog = Watchdog()
        self._reason: str | None = "it was not armed yet"
        self._stops = 0
        self._resting = False
        self._held = True
        self._tries = 0
        self._last: Float[np.ndarray, " n"] | None = None
        self._last_time = 0.0
        self._measured: Float[np.ndarray, " n"] | None = None
        self._measured_time = -math.inf
        self._guard: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing = False

    @property
    def stopped(self) -> str | None:
        """Why nothing is sent, or None while the robot may move."""
        return self._reason

    @property
    def resting(self) -> bool:
        """Whether the robot is held for a reset."""
        return self._resting

    @property
    def last_sent(self) -> dict[str, float] | None:
        """The last command, or where the robot was when it was armed; None before that."""
        return None if self._last is None else self._named(self._last)

    def connect(self) -> None:
        """Connect the robot, which may ask a person to calibrate it. Raises `RobotError` if it does not answer."""
        try:
            if not self.robot.is_connected:
                self.robot.connect()
        except LOST as error:
            raise RobotError(
                f"{self.robot} cannot be connected ({type(error).__name__}: {error}); expected it powered and plugged "
                f"in: check the cable and the port in its config"
            ) from error

    def disconnect(self) -> None:
        """Stop and disconnect; twice is harmless. Some robots then let go of their joints: see their config."""
        self.stop("it was disconnected")
        self._closing = True
        self._wake.set()
        if self._guard is not None and self._guard is not threading.current_thread():
            self._guard.join(timeout=1.0)
        self._guard = None
        atexit.unregister(self._stop_at_exit)
        with self._io:
            if self.robot.is_connected:
                self.robot.disconnect()

    def __enter__(self) -> "SafeRobot":
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def arm(self) -> dict[str, Any]:
        """Allow motion, from where the robot is now; returns its observation.

        Raises `LimitError` if it stands beyond its limits, and `RobotError` if it does not answer; it stays stopped.
        """
        stops = self._stops
        with self._io:
            observation = self._observe()
            self._start_from_measured()
            self._resting, self._held, self._tries, self._closing = False, False, 0, False
            self._expect_all()
            reason, self._reason = self._reason, None
            if self._stops != stops:  # somebody pressed stop while the robot was being armed
                self._reason = reason
            self._require_going()
        if self._guard is None or not self._guard.is_alive():
            atexit.register(self._stop_at_exit)
            self._guard = threading.Thread(target=self._watch, name="robot watchdog", daemon=True)
            self._guard.start()
        return observation

    def rest(self) -> None:
        """Hold the robot and expect nothing of anybody, so that a person can reset the scene. Not a stop."""
        self._resting = True
        self._watchdog.forget()

    def resume(self) -> dict[str, Any]:
        """End a rest, from where the robot is now; returns its observation.

        Raises `StoppedError` if the robot was stopped meanwhile, `LimitError` if it now stands beyond its limits.
        """
        with self._io:
            self._require_going(resting=True)
            observation = self._observe()
            self._start_from_measured()
            self._expect_all()
            self._resting = False
        return observation

    def get_observation(self) -> dict[str, Any]:
        """What the robot and its cameras report. Raises `RobotError` if they do not; that alone stops nothing."""
        with self._io:
            return self._observe()

    def send_action(self, action: Mapping[str, Any]) -> dict[str, float]:
        """Send the nearest action within the limits, and return it: what the robot says it was really told.

        Raises:
            LimitError: not an action; nothing is sent, the robot holds.
            StoppedError: the robot is stopped or rests; nothing is sent.
            RobotError: the robot does not answer; it is stopped.
        """
        with self._io:
            self._require_going()
            try:
                target = self.limits.require_action(action)
            except LimitError:
                self.refused += 1
                raise
            safe = self._confine(self.limits.clamp(target, self._last_position(), self._measured, self._elapsed_s()))
            self.clamped += bool(np.any(safe != target))
            try:
                sent = self._send(safe)
            except LOST as error:
                self._stop_now(f"the robot did not take an action ({type(error).__name__}: {error})")
                raise RobotError(
                    f"{self.robot} did not take an action ({type(error).__name__}: {error}); it is stopped: check its "
                    f"power and cable, then arm it again"
                ) from error
            self.sent += 1
            self._watchdog.feed("a command", self._clock())
            return sent

    def hold(self) -> dict[str, float]:
        """Send the last command again: nothing moves, and the watchdog knows that this is on purpose."""
        self._require_going()
        return self.send_action(self._named(self._last_position()))

    def beat(self) -> None:
        """The control loop is alive."""
        self._watchdog.feed("the control loop", self._clock())

    def saw(self, camera: str) -> None:
        """A camera showed something new."""
        self._watchdog.feed(f"camera {camera}", self._clock())

    def stop(self, reason: str, *, wait: bool = True) -> None:
        """Leave the robot still and send nothing any more, until `arm()`. From any thread, any number of times.

        With `wait` False it returns at once and the watchdog sends the hold: for signal handlers, which may interrupt
        the very thread that is using the robot.
        """
        self._stop_now(reason)
        if wait and not self._held and self._io.acquire(timeout=1.0):
            try:
                self._try_hold()
            finally:
                self._io.release()
        self._wake.set()

    def _stop_at_exit(self) -> None:
        self.stop("the program ended")

    def _stop_now(self, reason: str) -> None:
        self._stops += 1
        if self._reason is None:
            self._reason = reason
            _log.warning("the robot is stopped: %s", reason)

    def _require_going(self, *, resting: bool = False) -> None:
        if self._reason is not None:
            raise StoppedError(
                f"nothing was sent, the robot is stopped: {self._reason}; look at the robot, then arm it again"
            )
        if self._resting and not resting:
            raise StoppedError("nothing was sent, the robot rests for a reset; call resume() when nobody is near it")

    def _observe(self) -> dict[str, Any]:
        try:
            observation = dict(self.robot.get_observation())
        except LOST as error:
            raise RobotError(
                f"{self.robot} did not report ({type(error).__name__}: {error}); expected an answer: check the cables "
                f"of its motors and cameras"
            ) from error
        # A joint that is commanded by velocity has no position to be measured.
        found = [observation.get(name, math.nan) if name.endswith(POSITION) else 0.0 for name in self.limits.names]
        self._measured, self._measured_time = np.array(found, dtype=np.float64), self._clock()
        return observation

    def _start_from_measured(self) -> None:
        assert self._measured is not None
        positions = self._named(self._measured)
        self.limits.require_inside(positions)
        if self.limits.workspace is not None and not self.limits.workspace.contains(self._hand(self._measured)):
            raise LimitError(
                f"the hand is at {self._hand(self._measured).round(3).tolist()} m; expected it in the workspace "
                f"{list(self.limits.workspace.low)} to {list(self.limits.workspace.high)} before any motion: move it "
                f"there by hand"
            )
        # From rest, the first command may go a whole step: there is no velocity yet that it could add to.
        self._last, self._last_time = self._measured.copy(), -math.inf

    def _confine(self, safe: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """As much of the way from the last command as keeps the hand in the workspace."""
        box, last = self.limits.workspace, self._last_position()
        if box is None or box.contains(self._hand(safe)):
            return safe
        if self._cartesian and self._kinematics is None:
            low, high = np.full(len(safe), -np.inf), np.full(len(safe), np.inf)
            for axis, name in enumerate(AXES):
                low[self.limits.names.index(name)] = box.low[axis]
                high[self.limits.names.index(name)] = box.high[axis]
            return np.clip(safe, low, high)
        inside, outside = 0.0, 1.0
        for _ in range(12):
            middle = (inside + outside) / 2
            if box.contains(self._hand(last + middle * (safe - last))):
                inside = middle
            else:
                outside = middle
        return last + inside * (safe - last)

    def _hand(self, positions: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 3"]:
        named = self._named(positions)
        if self._kinematics is not None:
            return np.asarray(self._kinematics.forward(named), dtype=np.float64)
        return np.array([named["x.pos"], named["y.pos"], named["z.pos"]])

    def _send(self, safe: Float[np.ndarray, " n"]) -> dict[str, float]:
        said = self.robot.send_action(self._named(safe))
        # A robot may clamp further, and then the next step starts nearer; what it says is no way past the limits.
        self._last, self._last_time = safe, self._clock()
        return {name: _finite_or(said.get(name), value) for name, value in self._named(safe).items()}

    def _try_hold(self) -> None:
        """Send the command that leaves the robot still; called with the bus in hand."""
        if self._held or self._last is None:
            self._held = True
            return
        fresh = self._clock() - self._measured_time <= self.limits.watchdog.command_s
        try:
            self._send(self._confine(self.limits.still(self._last, self._measured if fresh else None)))
            self._held = True
        except LOST as error:
            self._tries += 1
            if self._tries >= _HOLD_TRIES:
                self._held = True
                _log.error("the robot cannot be told to hold (%s: %s); cut its power", type(error).__name__, error)

    def _watch(self) -> None:
        while not self._closing:
            self._wake.wait(_POLL_S)
            self._wake.clear()
            late = self._watchdog.late(self._clock()) if self._reason is None else None
            if late is not None:
                self._stop_now(late)
            if self._reason is not None and not self._held and self._io.acquire(timeout=_POLL_S):
                try:
                    self._try_hold()
                finally:
                    self._io.release()

    def _expect_all(self) -> None:
        times, now = self.limits.watchdog, self._clock()
        self._watchdog.expect("a command", times.command_s, now)
        self._watchdog.expect("the control loop", times.process_s, now)
        for camera in self.cameras:
            self._watchdog.expect(f"camera {camera}", times.camera_s, now)

    def _last_position(self) -> Float[np.ndarray, " n"]:
        assert self._last is not None, "armed"
        return self._last

    def _elapsed_s(self) -> float:
        return self._clock() - self._last_time

    def _named(self, values: Float[np.ndarray, " n"]) -> dict[str, float]:
        return dict(zip(self.limits.names, values.tolist(), strict=True))


@contextmanager
def stop_on_signals(
    robot: SafeRobot, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGHUP)
) -> Iterator[None]:
    """While this lasts, these signals stop the robot; whoever sends the next action learns why. Main thread only."""

    def stop(number: int, _frame: object) -> None:
        robot.stop(f"the program received {signal.Signals(number).name}", wait=False)

    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite_or(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) and math.isfinite(value) else float(default)


def _require_units(robot: Robot, limits: SafetyLimits) -> None:
    """Where a robot says which units it uses, as LeRobot's arms with `use_degrees` do, the limits must be in them."""
    degrees = getattr(getattr(robot, "config", None), "use_degrees", None)
    if degrees is None:
        return
    expected = "deg" if degrees else "percent"
    for name, joint in limits.joints.items():
        wanted = "percent" if name == "gripper.pos" else expected
        if joint.unit != wanted:
            raise LimitError(
                f"the limits of {name} are in {joint.unit}; expected {wanted}, because this robot's config has "
                f"use_degrees={degrees}: convert the limits, or change the config"
            )
