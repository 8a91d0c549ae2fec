"""Any LeRobot `Robot` as a gymnasium environment: the same words as a simulated task, at a fixed rate, within limits.

Time passes in `step`: it sends, waits for its turn on an absolute grid, and only then looks, so that what is chosen
from an observation is chosen from a fresh one. What `step` was asked for and what was really sent differ whenever a
limit was touched; `info` tells both, and a learner should learn from the latter.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from .cameras import Freshness, resize
from .errors import LimitError, RobotError, StaleFrameError
from .limits import POSITION, VELOCITY
from .pace import Pacer, Timing
from .rollout import Verdict
from .safety import Kinematics, SafeRobot

PIXELS = "pixels."
"""Prefix of the observation keys that hold images, as in `envs.cameras`."""
GRIPPER = "gripper"
"""A joint whose name begins so is commanded by where it should be, also where the others are by differences."""
LEAD = ".lead"
"""Suffix of the state's numbers that tell how far the last command is ahead of a joint."""
_HOME_S = 20.0

Observation = dict[str, np.ndarray]
Control = Literal["absolute", "delta", "hand"]


class SolvableKinematics(Kinematics, Protocol):
    """Kinematics that also find joint positions for a place of the hand."""

    def inverse(self, positions: Mapping[str, float], goal: Float[np.ndarray, " 3"]) -> Mapping[str, float]:
        """Joint positions near `positions`, by `.pos` key, that bring the hand to `goal` in metres."""
        ...


class RobotEnv(gym.Env):
    """A robot as a gymnasium environment.

    Observation: a flat dict of `state` (float32, in the robot's own units: its scalars, then, for each joint commanded
    by differences, how far the last command is ahead of the joint: `<name>.lead`, without which what an action does
    cannot be told) and one `pixels.<view>` (height, width, 3) uint8 for each view. Action: float32 in [-1, 1]; see
    `control`. Reward: 1 when the task is done, else 0. `terminated` on success and failure, `truncated` at the horizon
    and on discard. `info` has

    - `sent`: the command really sent, by the robot's keys; `action`: the same in the environment's range (float32);
      `clamped`: whether that is not what was asked for;
    - `time`: seconds since the episode began; `ages`: by view, seconds since the picture was first seen;
    - `overrun`: whether this step came too late for its turn; `verdict`; `success`.

    Args:
        robot: within its limits; armed by the caller, who stands beside it.
        rate_hz: steps per second.
        success: called with the observation and `info` after each step; says whether the task is done.
        reset_scene: called with the seed of `reset` (a person ignores it) while the robot rests; returns when it is
            safe to move again.
        horizon: steps until truncation.
        control: `absolute`: from a joint's lowest to its highest; `delta`: of the last command, 1 being the largest
            step, which is end-effector control where the robot is commanded so; `hand`: x, y and z of the hand by
            `hand_step_m` metres through `kinematics`, then the grippers.
        views: which cameras, all that give colour unless named.
        size: height and width of the views in pixels, the cameras' own unless given.
        home: where the robot goes before and after a reset of the scene, by its keys; nowhere unless given.

    Raises:
        LimitError: an action of the wrong shape, or with NaN in it: nothing is sent.
        StaleFrameError: a camera shows nothing new; the robot is stopped.
        RobotError: the robot does not answer; it is stopped.
        StoppedError: the robot is stopped, by whomever; `robot.arm()` first.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        robot: SafeRobot,
        *,
        rate_hz: float,
        success: Callable[[Observation, Mapping[str, Any]], Verdict],
        reset_scene: Callable[[int | None], None],
        horizon: int = 200,
        control: Control = "delta",
        kinematics: SolvableKinematics | None = None,
        hand_step_m: float = 0.02,
        views: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        home: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        features = robot.robot.observation_features
        cameras = [name for name, kind in features.items() if isinstance(kind, tuple) and kind[2] == 3]
        unknown = [name for name in views or () if name not in cameras]
        if unknown:
            raise RobotError(f"the robot has no camera {unknown[0]!r}; it has {', '.join(cameras) or 'none'}")
        if control == "hand" and kinematics is None:
            raise LimitError("control is 'hand' and there are no kinematics; expected them, or control='delta'")
        if home is not None:
            robot.limits.require_action(home)
            robot.limits.require_inside(home)
        self.robot, self.horizon, self.control, self.render_mode = robot, horizon, control, "rgb_array"
        self.views = tuple(cameras if views is None else views)
        self.robot.cameras = self.views
        self._kinematics, self._hand_step_m = kinematics, hand_step_m
        self._success, self._reset_scene, self._home = success, reset_scene, home
        self._size = size
        self._clock = clock
        self._pacer = Pacer(rate_hz, clock=clock, sleep=sleep)
        self._freshness = Freshness(self.views)
        names = robot.limits.names
        self._grippers = [name for name in names if name.startswith(GRIPPER)]
        self.commanded = tuple(names) if control != "hand" else ("x", "y", "z", *self._grippers)
        """What the numbers of an action are of, in order."""
        self._measured = tuple(name for name, kind in features.items() if kind is float)
        joints = () if control == "absolute" else names
        self._leading = tuple(name for name in joints if name in self._measured and not self._is_absolute(name))
        self.scalars = (*self._measured, *(f"{name}{LEAD}" for name in self._leading))
        """What the numbers of `state` are of, in order."""
        self.action_space = gym.spaces.Box(-1.0, 1.0, (len(self.commanded),), np.float32)
        images = {PIXELS + name: (size or features[name][:2]) for name in self.views}
        self.observation_space = gym.spaces.Dict(
            {
                "state": gym.spaces.Box(-np.inf, np.inf, (len(self.scalars),), np.float32),
                **{key: gym.spaces.Box(0, 255, (*shape, 3), np.uint8) for key, shape in images.items()},
            }
        )
        self._state: Float[np.ndarray, " n"] | None = None
        self._state_time = 0.0
        self._began = 0.0
        self._steps = 0
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Go home, hand over to whoever resets the scene, and look. Raises `StoppedError` unless the robot is armed."""
        super().reset(seed=seed)
        if not self.robot.resting:
            self.robot.hold()
            self._go_home()
        self.robot.rest()
        self._reset_scene(seed)
        self.robot.resume()
        self._go_home()
        self._freshness.forget()
        self._pacer.start()
        self._began = self._clock()
        self._steps, self._over = 0, False
        self.robot.beat()
        observation = self._look()
        return observation, self._info(self.robot.last_sent or {}, np.zeros(len(self.commanded), np.float32), {})

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Send, wait for the next turn, look."""
        if self._over:
            raise gym.error.ResetNeeded("step() was called before reset(), or after the episode's end; call reset()")
        reference = self._reference()
        asked = self.command(action)
        sent = self.robot.send_action(asked)
        overrun = self._pacer.wait()
        self.robot.beat()
        observation = self._look()
        self._steps += 1
        info = self._info(sent, self._encode(sent, reference), asked) | {"overrun": overrun}
        verdict = self._success(observation, info)
        terminated = verdict in (Verdict.SUCCESS, Verdict.FAILURE)
        truncated = not terminated and (verdict is Verdict.DISCARD or self._steps >= self.horizon)
        self._over = terminated or truncated
        info |= {"verdict": verdict, "success": verdict is Verdict.SUCCESS}
        return observation, float(verdict is Verdict.SUCCESS), terminated, truncated, info

    def hold(self) -> None:
        """Let one period pass without moving: a pause. Looks, too, so that the cameras are watched."""
        self.robot.hold()
        self._pacer.wait()
        self.robot.beat()
        self._look()

    def command(self, action: np.ndarray) -> dict[str, float]:
        """What an action asks for, in the robot's keys and units. Raises `LimitError` for one of the wrong shape."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (len(self.commanded),) or not np.isfinite(action).all():
            self.robot.refused += 1
            found = f"{action.tolist()}" if action.shape == (len(self.commanded),) else f"of shape {action.shape}"
            raise LimitError(
                f"the action is {found}; expected {len(self.commanded)} finite numbers in [-1, 1], for "
                f"{', '.join(self.commanded)}: nothing was sent, the robot holds"
            )
        reference, limits = self._reference(), self.robot.limits.joints
        asked = dict(zip(self.commanded, np.clip(action, -1, 1).tolist(), strict=True))
        if self.control == "hand":
            assert self._kinematics is not None
            goal = self._kinematics.forward(reference) + self._hand_step_m * np.clip(action[:3], -1, 1)
            found = self._kinematics.inverse(reference, goal)
            joints = {name: found.get(name, reference[name]) for name in limits}
            return joints | {name: _share(asked[name], limits[name]) for name in self._grippers}
        return {
            name: _share(value, limits[name])
            if self._is_absolute(name)
            else reference[name] + value * limits[name].max_step
            for name, value in asked.items()
        }

    def encode(self, command: Mapping[str, Any]) -> Float[np.ndarray, " a"]:
        """The action, in [-1, 1], that comes nearest to a command in the robot's keys, such as a leader arm's.

        Also understands the differences of LeRobot's gamepads and keyboards (`delta_x`, `delta_y`, `delta_z` in [-1, 1]
        and `gripper`: 0 closes, 1 stays, 2 opens) where the hand is commanded. Raises `LimitError` for other keys.
        """
        if all(f"delta_{axis}" in command for axis in "xyz"):
            return self._encode_differences(command)
        try:
            return self._encode({name: float(command[name]) for name in self.robot.limits.names}, self._reference())
        except (KeyError, TypeError, ValueError) as error:
            raise LimitError(
                f"the command has {', '.join(command)}; expected a number for each of "
                f"{', '.join(self.robot.limits.names)}, or delta_x, delta_y and delta_z: use a teleoperator made for "
                f"this robot"
            ) from error

    @property
    def timing(self) -> Timing:
        """How well the rate was kept, over all episodes."""
        return self._pacer.timing()

    def periods_s(self, since: int = 0) -> Float[np.ndarray, " steps"]:
        """How long each step took, from the one of number `since` of all episodes on."""
        return self._pacer.periods_s(since)

    @property
    def rejected(self) -> dict[str, int]:
        """By view, how many pictures were repeated, older or black."""
        return self._freshness.rejected

    def render(self) -> np.ndarray | None:
        """The newest picture of the first view."""
        pictures = self._freshness.pictures(self._clock(), np.inf)
        return pictures[self.views[0]] if self.views and self.views[0] in pictures else None

    def close(self) -> None:
        """Stop and disconnect the robot; twice is harmless."""
        self._over = True
        self.robot.disconnect()

    def _look(self) -> Observation:
        """What there is to see now. One missed answer is no reason to stop, as long as nothing gets too old."""
        limit, error = self.robot.limits.watchdog.camera_s, None
        try:
            found = self.robot.get_observation()
        except RobotError as caught:
            if not self.robot.robot.is_connected:
                self.robot.stop(str(caught))
                raise
            error, found = caught, {}
        now = self._clock()
        for camera in self._freshness.look(found, now):
            self.robot.saw(camera)
        if found:
            ahead = [(self.robot.last_sent or found)[name] - found[name] for name in self._leading]
            self._state = np.array([*(found[name] for name in self._measured), *ahead], np.float32)
            self._state_time = now
        try:
            if self._state is None or now - self._state_time > limit:
                raise error or RobotError("the robot reported no position; expected one at every reading")
            pictures = self._freshness.pictures(now, limit)
        except (RobotError, StaleFrameError) as caught:
            self.robot.stop(str(caught))
            raise caught from error
        shown = {PIXELS + name: self._sized(picture) for name, picture in pictures.items()}
        return {"state": self._state.copy(), **shown}

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        return picture.copy() if self._size is None else resize(picture, *self._size)

    def _go_home(self) -> None:
        """To `home`, within the limits of step and velocity."""
        if self._home is None:
            return
        self._pacer.start()
        for _ in range(round(_HOME_S / self._pacer.period_s)):
            sent = self.robot.send_action(self._home)
            if all(abs(sent[name] - goal) < 1e-6 + 1e-3 * abs(goal) for name, goal in self._home.items()):
                return
            self._pacer.wait()
            self.robot.beat()
            for camera in self._freshness.look(self.robot.get_observation(), self._clock()):
                self.robot.saw(camera)
        self.robot.stop("it did not get home")
        raise RobotError(f"the robot did not get home in {_HOME_S:g} s; expected a free way: look at what it touches")

    def _info(self, sent: Mapping[str, float], action: np.ndarray, asked: Mapping[str, float]) -> dict[str, Any]:
        now = self._clock()
        return {
            "sent": dict(sent),
            "action": action,
            "clamped": any(abs(sent[name] - value) > 1e-9 for name, value in asked.items()),
            "time": now - self._began,
            "ages": self._freshness.ages(now),
            "overrun": False,
            "verdict": Verdict.GOING,
            "success": False,
        }

    def _reference(self) -> dict[str, float]:
        reference = self.robot.last_sent
        if reference is None:
            raise LimitError("the robot was never armed, so that nobody knows where it is; call robot.arm() first")
        return reference

    def _is_absolute(self, name: str) -> bool:
        return self.control == "absolute" or name.startswith(GRIPPER) or name.endswith(VELOCITY)

    def _encode(self, command: Mapping[str, float], reference: Mapping[str, float]) -> Float[np.ndarray, " a"]:
        limits = self.robot.limits.joints
        values = []
        if self.control == "hand":
            assert self._kinematics is not None
            moved = self._kinematics.forward(command) - self._kinematics.forward(reference)
            values += (moved / self._hand_step_m).tolist()
        for name in self._grippers if self.control == "hand" else self.commanded:
            joint = limits[name]
            if self._is_absolute(name):
                values.append(2 * (command[name] - joint.low) / (joint.high - joint.low) - 1)
            else:
                values.append((command[name] - reference[name]) / joint.max_step)
        return np.clip(values, -1, 1).astype(np.float32)

    def _encode_differences(self, command: Mapping[str, Any]) -> Float[np.ndarray, " a"]:
        reference, limits = self._reference(), self.robot.limits.joints
        cartesian = self.control == "hand" or all(f"{axis}{POSITION}" in limits for axis in "xyz")
        if not cartesian or self.control == "absolute":
            raise LimitError(
                "the teleoperator commands differences of the hand and this robot its joints; expected control='hand' "
                "with kinematics, or a leader arm"
            )
        values = {name: self._encode(reference, reference)[i] for i, name in enumerate(self.commanded)}
        for axis in "xyz":
            values[axis if self.control == "hand" else axis + POSITION] = float(command[f"delta_{axis}"])
        for name in self._grippers:
            wish = int(command.get("gripper", 1))
            values[name] = {0: -1.0, 2: 1.0}.get(wish, values[name])
        return np.clip([values[name] for name in self.commanded], -1, 1).astype(np.float32)


def _share(value: float, joint: Any) -> float:
    """From [-1, 1] onto a joint's range."""
    return joint.low + (value + 1) / 2 * (joint.high - joint.low)
