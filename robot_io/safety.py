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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from lerobot.robots import Robot

from .errors import LimitError, RobotError, StoppedError
from .limits import AXES, POSITION, SafetyLimits

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
