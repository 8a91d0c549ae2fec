"""Any gymnasium environment as a LeRobot `Robot`, with cameras that fail on request, and an expert to teleoperate it.

`--robot.type=grm_sim` and `--teleop.type=grm_sim_expert` work in LeRobot's own commands. The simulation stands in for
an arm that is commanded by positions: between two commands it holds, as servos do.
"""

import json
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from jaxtyping import Float, UInt8
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig, TeleopEvents
from lerobot.utils.errors import DeviceNotConnectedError

from envs.cameras import PIXELS
from envs.metaworld import MetaWorldEnv

from .limits import SafetyLimits

_CONTROL_HZ = 80
"""Meta-World's control steps per second of simulated time."""
_METRES_PER_STEP = 0.01
"""How far its hand goes in one of them at full speed."""
_KEPT = 4
"""Pictures a camera that delivers them out of order goes back."""


@dataclass(kw_only=True)
class Fault:
    """Something that breaks: in a camera, in the connection, or in how fast it answers."""

    kind: Literal["frozen", "dropped", "reordered", "black", "disconnect", "slow"]
    view: str | None = None
    """Which camera; None for all of them. A disconnection and a slow reading are of the whole robot."""
    start: int = 0
    """Reading, counted from the connection, at which it begins."""
    readings: int | None = None
    """How many it lasts; None for ever."""
    seconds: float = 0.0
    """How much longer a slow reading takes."""

    def active(self, reading: int) -> bool:
        """Whether it breaks this reading."""
        return self.start <= reading and (self.readings is None or reading < self.start + self.readings)


@RobotConfig.register_subclass("grm_sim")
@dataclass(kw_only=True)
class SimRobotConfig(RobotConfig):
    """A simulated arm in front of a Meta-World task."""

    task: str = "door-unlock"
    views: list[str] = field(default_factory=lambda: ["corner", "gripperPOV"])
    height: int = 128
    width: int = 128
    rate_hz: int = 20
    """Commands per second that the simulated time of one command is made for; a divisor of 80."""
    seed: int = 0
    """Of the scenes; each reset shows the next."""
    faults: list[Fault] = field(default_factory=list)
    audit: str | None = None
    """File to which every command that reaches the motors is added, with where the arm was: it outlives a kill."""


class Body(Protocol):
    """How an environment's arm is spoken to as a robot: named numbers in units instead of a vector in [-1, 1]."""

    actions: tuple[str, ...]
    positions: tuple[str, ...]

    def measure(self, observation: Any) -> dict[str, float]:
        """Where the arm is, by `positions`."""
        ...

    def action(self, command: Mapping[str, float]) -> np.ndarray:
        """The environment's action that carries out a command."""
        ...

    def command(self, action: np.ndarray) -> dict[str, float]:
        """The command that an environment's action amounts to now."""
        ...


class SawyerHand:
    """Meta-World's arm, commanded by where its hand should be: metres, and the gripper in percent of its opening."""

    actions: tuple[str, ...] = ("x.pos", "y.pos", "z.pos", "gripper.pos")
    positions: tuple[str, ...] = actions

    def __init__(self, env: MetaWorldEnv) -> None:
        self._env = env
        self._reach = _METRES_PER_STEP * env.action_repeat

    def measure(self, observation: Any) -> dict[str, float]:
        """Where the hand is."""
        x, y, z, opening = self._env.raw_state[:4].tolist()
        return {"x.pos": x, "y.pos": y, "z.pos": z, "gripper.pos": 100 * opening}

    def action(self, command: Mapping[str, float]) -> Float[np.ndarray, " 4"]:
        """As far towards the commanded place as one action gets; grip harder the smaller the opening asked for."""
        goal = np.array([command[name] for name in self.actions])
        toward = (goal[:3] - self._env.data.mocap_pos[0]) / self._reach
        return np.clip([*toward, 1 - goal[3] / 50], -1, 1)

    def command(self, action: np.ndarray) -> dict[str, float]:
        """Where an action moves the hand to."""
        goal = self._env.data.mocap_pos[0] + np.asarray(action)[:3] * self._reach
        return dict(zip(self.actions, [*goal.tolist(), 50 * (1 - float(action[3]))], strict=True))


class Effort:
    """Any environment with a bounded vector of actions: each a velocity in percent of its range, 0 in the middle."""

    def __init__(self, env: gym.Env) -> None:
        space, seen = env.action_space, _state_space(env)
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
            raise TypeError(f"the environment's actions are {space}; expected a bounded Box of one dimension")
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.actions = tuple(f"joint_{i}.vel" for i in range(space.shape[0]))
        self.positions = tuple(f"state_{i}.pos" for i in range(math.prod(seen.shape or ())))

    def measure(self, observation: Any) -> dict[str, float]:
        """The environment's own numbers."""
        state = observation["state"] if isinstance(observation, dict) else observation
        return dict(zip(self.positions, np.asarray(state, dtype=np.float64).ravel().tolist(), strict=True))

    def action(self, command: Mapping[str, float]) -> np.ndarray:
        """-100 to 100 percent, onto the environment's range."""
        share = np.clip([float(command[name]) / 200 + 0.5 for name in self.actions], 0, 1)
        return (self._low + share * (self._high - self._low)).astype(np.float32)

    def command(self, action: np.ndarray) -> dict[str, float]:
        """The inverse of `action`."""
        share = (np.asarray(action) - self._low) / (self._high - self._low)
        return dict(zip(self.actions, (200 * share - 100).tolist(), strict=True))


class SimRobot(Robot):
    """A gymnasium environment behind LeRobot's `Robot`: proprioception as floats, a picture by camera.

    Each picture's first row carries one bit of noise, as every real sensor's picture does: so a picture that repeats
    exactly is no new one. The scene changes by `reset_scene()` only, as in reality: nothing ends by itself.
    """

    config_class = SimRobotConfig
    name = "grm_sim"

    def __init__(self, config: SimRobotConfig, env: gym.Env | None = None) -> None:
        """`env` in place of the Meta-World task of `config`: with pictures, if any, under `pixels.<view>`."""
        super().__init__(config)
        self.config = config
        self.faults = list(config.faults)
        if env is None:
            env = MetaWorldEnv(
                config.task,
                views=config.views,
                height=config.height,
                width=config.width,
                action_repeat=max(1, round(_CONTROL_HZ / config.rate_hz)),
                horizon=10**9,
            )
        self.env = env
        self.body: Body = SawyerHand(env) if isinstance(env, MetaWorldEnv) else Effort(env)
        spaces = env.observation_space.spaces if isinstance(env.observation_space, gym.spaces.Dict) else {}
        self.cameras = {
            key.removeprefix(PIXELS): space.shape for key, space in spaces.items() if key.startswith(PIXELS)
        }
        self.received: list[dict[str, float]] = []
        """Every command that reached the motors, for tests and audits."""
        self.scenes = 0
        """How many were shown."""
        self._scene_began = 0
        self.succeeded = False
        self.reward = 0.0
        """The environment's own, of the last command."""
        self._audit = (
            None if config.audit is None else os.open(config.audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        )
        self._noise = np.random.default_rng(config.seed)
        self._connected = self._unplugged = False
        self._seeded = False
        self._readings = 0
        self._pending: deque[dict[str, float]] = deque()
        self._observation: Any = None
        self._pictures: dict[str, deque[UInt8[np.ndarray, "h w 3"]]] = {}
        _worlds[config.id or ""] = self

    @property
    def observation_features(self) -> dict[str, Any]:
        """Floats by joint, (height, width, 3) by camera."""
        return {**dict.fromkeys(self.body.positions, float), **self.cameras}

    @property
    def action_features(self) -> dict[str, Any]:
        """Floats by joint."""
        return dict.fromkeys(self.body.actions, float)

    @property
    def is_connected(self) -> bool:
        """Whether it answers."""
        return self._connected and not self._unplugged

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Plug it in. The first time shows the first scene; later ones go on with the scene that is there."""
        self._connected, self._unplugged = True, False
        self.faults = [fault for fault in self.faults if fault.kind != "disconnect" or fault.start > self._readings]
        if self._observation is None:
            self.reset_scene()

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        """Unplug it; the scene stays as it is."""
        self._connected = False

    def close(self) -> None:
        """Free the simulation."""
        self._connected = False
        if self._audit is not None:
            os.close(self._audit)
            self._audit = None
        self.env.close()

    @property
    def commands(self) -> int:
        """How many it was given since the scene was reset."""
        return len(self.received) - self._scene_began

    def reset_scene(self, seed: int | None = None) -> None:
        """What a person does between two episodes: put everything back, in the next place or in that of `seed`."""
        if not self._seeded and seed is None:
            seed = self.config.seed
        self._seeded = True
        if seed is not None:
            self._noise = np.random.default_rng(seed)
        self._pending.clear()
        self._observation, _ = self.env.reset(seed=seed)
        self.succeeded, self.reward = False, 0.0
        self.scenes, self._scene_began = self.scenes + 1, len(self.received)

    def get_observation(self) -> dict[str, Any]:
        """Where the arm is and what the cameras show. Raises what LeRobot's devices raise when they do not answer."""
        reading = self._readings
        self._readings += 1
        active = [fault for fault in self.faults if fault.active(reading)]
        if any(fault.kind == "disconnect" for fault in active):
            self._unplugged = True
        self._require_connected()
        time.sleep(sum(fault.seconds for fault in active if fault.kind == "slow"))
        self._move()
        pictures = {name: self._picture(name, active) for name in self.cameras}
        return {**self.body.measure(self._observation), **pictures}

    def send_action(self, action: Mapping[str, Any]) -> dict[str, float]:
        """Set out for one period of motion, which the next reading shows. Returns the command, all of it taken."""
        self._require_connected()
        command = {name: float(action[name]) for name in self.body.actions}
        self.received.append(command)
        if self._audit is not None:
            os.write(self._audit, (json.dumps([command, self.body.measure(self._observation)]) + "\n").encode())
        self._pending.append(command)
        return command

    def _move(self) -> None:
        # Not in `send_action`, which a watchdog may call from a thread of its own: a renderer is for one thread.
        while self._pending:
            self._observation, reward, _, _, info = self.env.step(self.body.action(self._pending.popleft()))
            self.reward = float(reward)
            self.succeeded = bool(info.get("success", info.get("is_success", False)))

    def _require_connected(self) -> None:
        if not self.is_connected:
            raise DeviceNotConnectedError("the simulated arm is not connected; call connect()")

    def _picture(self, name: str, active: list[Fault]) -> UInt8[np.ndarray, "h w 3"]:
        kinds = {fault.kind for fault in active if fault.view in (None, name)}
        if "dropped" in kinds:
            raise TimeoutError(f"camera {name} delivered no picture in time")
        kept = self._pictures.setdefault(name, deque(maxlen=_KEPT))
        if "frozen" in kinds and kept:
            return kept[-1].copy()
        if "reordered" in kinds and len(kept) > 1 and self._readings % 2:
            return kept[0].copy()
        picture = self._observation[PIXELS + name].copy()
        picture[0] ^= self._noise.integers(0, 2, picture[0].shape, dtype=np.uint8)
        if "black" in kinds:
            picture[:] = 0
        else:
            kept.append(picture)
        return picture.copy()


@TeleoperatorConfig.register_subclass("grm_sim_expert")
@dataclass(kw_only=True)
class SimExpertConfig(TeleoperatorConfig):
    """A scripted expert at the controls of the simulated arm."""

    robot_id: str | None = None
    """`id` of the arm it moves, in this process."""
    noise: float = 0.0
    """Standard deviation of its hand, as a share of full speed."""
    seed: int = 0
    helps: int = 0
    """Scenes, the first ones it sees, in which it takes over by itself."""
    helps_after: int = 20
    """Commands into such a scene at which it does."""


class SimExpert(Teleoperator):
    """Meta-World's scripted expert as a teleoperator: commands in the arm's own words, and whether it takes over."""

    config_class = SimExpertConfig
    name = "grm_sim_expert"

    def __init__(self, config: SimExpertConfig) -> None:
        super().__init__(config)
        self.config = config
        self.taking_over = False
        """What `get_teleop_events` reports as an intervention."""
        self._generator = np.random.default_rng(config.seed)
        self._connected = False

    @property
    def robot(self) -> SimRobot:
        """The arm at the other end. Raises DeviceNotConnectedError if there is none in this process."""
        robot = _worlds.get(self.config.robot_id or "")
        if robot is None or not isinstance(robot.body, SawyerHand):
            raise DeviceNotConnectedError(
                f"no simulated arm of id {self.config.robot_id!r} is in this process; make it before its expert"
            )
        return robot

    @property
    def action_features(self) -> dict[str, Any]:
        """The arm's."""
        return dict.fromkeys(SawyerHand.actions, float)

    @property
    def feedback_features(self) -> dict[str, Any]:
        """None."""
        return {}

    @property
    def is_connected(self) -> bool:
        """Whether it is at the controls."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Take the controls."""
        self._connected = True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_action(self) -> dict[str, float]:
        """What the expert would command now."""
        robot = self.robot
        assert isinstance(robot.env, MetaWorldEnv)
        action = robot.env.expert_action() + self.config.noise * self._generator.normal(size=4)
        return robot.body.command(np.clip(action, -1, 1))

    def get_teleop_events(self) -> dict[TeleopEvents, bool]:
        """As LeRobot's gamepad reports them."""
        helps = self.config.helps  # who helps nobody needs no arm to say so
        helping = helps > 0 and self.robot.scenes <= helps and self.robot.commands > self.config.helps_after
        return {
            TeleopEvents.IS_INTERVENTION: self.taking_over or helping,
            TeleopEvents.TERMINATE_EPISODE: False,
            TeleopEvents.SUCCESS: False,
            TeleopEvents.RERECORD_EPISODE: False,
        }

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Nothing to feel."""

    def disconnect(self) -> None:
        """Leave the controls."""
        self._connected = False


def sim_limits() -> SafetyLimits:
    """The limits declared for the simulated arm."""
    return SafetyLimits.read(Path(__file__).with_name("sim_limits.toml"))


_worlds: "weakref.WeakValueDictionary[str, SimRobot]" = weakref.WeakValueDictionary()
"""Simulated arms of this process by id: a teleoperator is made from a config alone, and must find the arm it moves."""


def _state_space(env: gym.Env) -> gym.Space:
    space = env.observation_space
    return space.spaces["state"] if isinstance(space, gym.spaces.Dict) else space
