"""Meta-World behind gymnasium: cameras, sparse reward, true progress and a prover that solves any state it can.

Yu et al. 2020, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning". Its ML45 split
is a ready one-shot protocol: 45 tasks to train on, 5 held out; three precise ones are kept out of pre-training besides.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import metaworld.env_dict
import mujoco
import numpy as np
from jaxtyping import Float, UInt8
from metaworld.policies import ENV_POLICY_MAP

from grm.errors import TaskError, TraceError

from .cameras import PIXELS, Cameras, Quality

INSTRUCTIONS: Mapping[str, str] = {
    "assembly-v3": "pick up the wrench and place its ring onto the peg",
    "basketball-v3": "dunk the basketball into the hoop",
    "bin-picking-v3": "pick the block from one bin and place it into the other bin",
    "box-close-v3": "grasp the lid and close the box with it",
    "button-press-topdown-v3": "press the button down from the top",
    "button-press-topdown-wall-v3": "reach over the wall and press the button down from the top",
    "button-press-v3": "press the button in front of you",
    "button-press-wall-v3": "go around the wall and press the button",
    "coffee-button-v3": "push the button on the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial half a circle",
    "disassemble-v3": "pick the ring of the wrench off the peg",
    "door-close-v3": "close the door that swings on its hinge",
    "door-lock-v3": "lock the door by turning the lock clockwise",
    "door-open-v3": "open the door that swings on its hinge",
    "door-unlock-v3": "unlock the door by turning the lock counter-clockwise",
    "drawer-close-v3": "push the drawer shut",
    "drawer-open-v3": "pull the drawer open",
    "faucet-close-v3": "turn the faucet off by rotating it clockwise",
    "faucet-open-v3": "turn the faucet on by rotating it counter-clockwise",
    "hammer-v3": "hammer the screw into the wall",
    "hand-insert-v3": "insert the block into the hole with the gripper",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up until it stands upright",
    "peg-insert-side-v3": "insert the peg into the hole in the side of the box",
    "peg-unplug-side-v3": "unplug the peg sideways out of the box",
    "pick-out-of-hole-v3": "pick the puck out of the hole and lift it to the goal",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "pick-place-wall-v3": "pick up the puck, lift it over the wall and place it at the goal",
    "plate-slide-back-side-v3": "slide the plate back out of the cabinet sideways",
    "plate-slide-back-v3": "slide the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "push the puck back towards the robot to the goal",
    "push-v3": "push the puck along the table to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "move the gripper to the goal",
    "reach-wall-v3": "move the gripper around the wall to the goal",
    "shelf-place-v3": "pick up the block and place it on the shelf",
    "soccer-v3": "kick the ball into the soccer goal",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "stick-push-v3": "grasp the stick and push the box with it",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
}
"""What is to be done, by task name."""

HELD_OUT = tuple(sorted(metaworld.env_dict.ML45_V3["test"]))
"""The five tasks ML45 holds out."""
PRECISE = ("assembly-v3", "peg-insert-side-v3", "stick-pull-v3")
"""Three precise tasks of ML45's training half that we hold out as well."""
PRETRAINING = tuple(sorted(name for name in metaworld.env_dict.ML45_V3["train"] if name not in PRECISE))
"""The 42 tasks a shipped checkpoint may be trained on."""

VIEWS = ("corner", "behindGripper", "gripperPOV")
"""The cameras used unless others are named: one that stands still and two on the wrist, as on many robots.

At 64 x 64 pixels the outer cameras show a puck as two or three pixels, and the one above hides it behind the arm."""


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """How the expert would go on from some moment, known before anybody moves."""

    hand: Float[np.ndarray, "t 3"]
    """Where its hand is after each decision, in metres, that moment first."""
    gripper: Float[np.ndarray, " t"]
    """Its gripper action at each decision; of the last moment, that of the one before."""
    moved: int
    """Decision after which the object has left its place by a centimetre; `len` if it never does."""

    def __len__(self) -> int:
        return len(self.hand)


State = Literal["relative", "raw", "proprioception"]
"""What the observation `state` of a `MetaWorldEnv` is made of."""
_SIZES: Mapping[State, int] = {"relative": 30, "raw": 39, "proprioception": 7}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatorState:
    """Everything needed to go back to a moment of an episode, also from another episode of the same task."""

    physics: Float[np.ndarray, " n"]
    model: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    raw: Float[np.ndarray, " 39"]
    decisions: int
    succeeded: bool
    origin: "SimulatorState | None" = None
    """How its episode began, which is what progress is measured from; None for the beginning itself."""


class MetaWorldEnv(gym.Env):
    """One Meta-World task with the goal observable, a random instance per reset, and the truth about progress.

    Observation: a flat dict of `state` (float32) and one `pixels.<view>` (height, width, 3) uint8 for each view.
    Action: (4,) float32 in [-1, 1]: hand velocity in x, y, z and gripper effort. Reward: 1 on success, else 0.
    `terminated` on success, `truncated` at the horizon; `info` has `success`, Meta-World's own `dense_reward` in
    [0, 1] and its flags `near_object` and `grasp_success`. Horizon policy: episodes end early on success only, so their
    length says no more than the reward does.

    Args:
        task: a key of `INSTRUCTIONS`, the `-v3` may be left out.
        views: cameras to render, none by default because rendering costs more than simulating.
        height, width: image size in pixels.
        quality: see `Cameras`.
        horizon: decisions until truncation.
        action_repeat: control steps (of 12.5 ms) per decision; gamma in shaping and learning is per decision.
        state: `relative` gives positions as differences in metres (object - hand, goal - object, goal - hand, …), which
            carries a demonstration over to other object positions; `raw` is Meta-World's 39 numbers; `proprioception`
            is what a robot knows of itself: the hand's position and its last change in metres, the gripper's opening.

    Raises:
        TaskError: unknown task or camera.
        TraceError: an action of the wrong shape or with NaN in it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        task: str = "door-unlock-v3",
        *,
        views: Sequence[str] = (),
        height: int = 64,
        width: int = 64,
        quality: Quality = "fast",
        horizon: int = 100,
        action_repeat: int = 2,
        state: State = "relative",
        render_mode: str | None = None,
    ) -> None:
        self.task = task_name(task)
        if horizon < 1 or action_repeat < 1:
            raise TraceError(f"horizon is {horizon} and action_repeat {action_repeat}; expected at least 1 of both")
        self.instruction = INSTRUCTIONS[self.task]
        self.horizon, self.action_repeat, self.render_mode = horizon, action_repeat, render_mode
        self._state = state
        self._inner: Any = metaworld.env_dict.ALL_V3_ENVIRONMENTS[self.task]()
        # The goal stays clipped to zero unless this is set *and* the cached observation space is dropped before reset.
        self._inner._partially_observable = False
        self._inner.__dict__.pop("sawyer_observation_space", None)
        self._inner._set_task_called = True
        self._inner._freeze_rand_vec = False
        self._inner.seeded_rand_vec = True
        self.model, self.data = self._inner.model, self._inner.data
        self.cameras = Cameras(self, views, height=height, width=width, quality=quality) if views else None
        self._portrait: Cameras | None = None
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        image = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "state": gym.spaces.Box(-np.inf, np.inf, (_SIZES[state],), np.float32),
                **{PIXELS + view: image for view in views},
            }
        )
        self._raw = np.zeros(39)
        self._decisions = 0
        self._succeeded = False
        self._initial: SimulatorState | None = None
        self._reference: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start a new random instance; the sequence of instances follows from the last seed given."""
        super().reset(seed=seed)
        self._inner.seed(int(self.np_random.integers(2**31 - 1)))
        self._raw, _ = self._inner.reset()
        self._decisions, self._succeeded = 0, False
        self._initial, self._reference = None, None
        self._initial = self.snapshot()
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Repeat the action for `action_repeat` control steps, or until the task is done."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            found = f"shape {action.shape}" if action.shape != (4,) else f"{action.tolist()}"
            raise TraceError(f"action has {found}; expected four finite numbers in [-1, 1]: x, y, z, gripper")
        if self._initial is None:
            raise gym.error.ResetNeeded("step() was called before reset(); call reset() first")
        info = self._decide(action)
        success = bool(info["success"])
        truncated = self._decisions >= self.horizon and not success
        return self._observe(), float(success), success, truncated, info

    def true_progress(self, *, provers: int = 3) -> float:
        """Φ = 1 - (prover's time-to-go here) / (its time-to-go at reset), in [0, 1], mean over perturbed provers.

        The truth as far as provers can tell: each that does not get there, or needs longer than from the start, counts
        as 0; 1 exactly on success. A mean because experts miss and retry, which makes the time-to-go two numbers rather
        than one, and a median of few jumps between them. Leaves the simulation untouched; 10 to 40 ms per prover.
        """
        if self._initial is None:
            raise gym.error.ResetNeeded("true_progress() was called before reset(); call reset() first")
        reference = self.reference_time()
        limit = int(np.ceil(reference * self.action_repeat))  # whoever needs longer than from the start is at 0 anyway
        return float(np.clip(1 - self.time_to_go(provers=provers, limit=limit) / reference, 0, 1).mean())

    def reference_time(self) -> float:
        """The prover's median time-to-go from this episode's initial state, in decisions; the horizon if it fails."""
        if self._reference is None:
            assert self._initial is not None
            here = self.snapshot()
            self.restore(self._initial)
            reference = float(np.median(self.time_to_go()))
            self._reference = reference if np.isfinite(reference) else float(self.horizon)
            self.restore(here)
        return self._reference

    def time_to_go(self, *, provers: int = 3, noise: float = 0.15, limit: int = 300) -> Float[np.ndarray, " provers"]:
        """Decisions each of several perturbed scripted experts needs from here; inf where it fails.

        One deterministic expert is brittle: it fails from states that a slightly different one solves. The first runs
        clean, the others with Gaussian action noise of standard deviation `noise` from a fixed seed. `limit` is in
        control steps. The simulation is left as it was.
        """
        here = self.snapshot()
        times = np.full(provers, np.inf)
        for k in range(provers):
            self.restore(here)
            policy, generator = ScriptedPolicy(self.task), np.random.default_rng(k)
            if self.succeeded:
                times[k] = 0.0
                continue
            for step in range(1, limit + 1):
                action = policy(self._raw) + (k > 0) * generator.normal(0, noise, 4)
                if self._control(np.clip(action, -1, 1))["success"]:
                    times[k] = step / self.action_repeat
                    break
        self.restore(here)
        return times

    def expert_action(self) -> Float[np.ndarray, " 4"]:
        """What the scripted expert would do now."""
        return ScriptedPolicy(self.task)(self._raw)

    def rehearse(self) -> Rehearsal:
        """How the scripted expert would go on from here, to success or the horizon; renders and changes nothing."""
        here = self.snapshot()
        raw, gripper = [here.raw], []
        while not self.succeeded and self._decisions < self.horizon:
            action = self.expert_action()
            gripper.append(float(action[3]))
            self._decide(action)
            raw.append(self.raw_state)
        self.restore(here)
        states = np.stack(raw)
        left = np.linalg.norm(states[:, 4:7] - states[0, 4:7], axis=1) > 0.01
        moved = int(left.argmax()) if left.any() else len(states)
        return Rehearsal(states[:, :3], np.array([*gripper, *gripper[-1:]] or [0.0]), moved)

    @property
    def raw_state(self) -> Float[np.ndarray, " 39"]:
        """Meta-World's own observation, whatever `state` says."""
        return self._raw.copy()

    @property
    def succeeded(self) -> bool:
        """Whether the last step of this episode was a success."""
        return self._succeeded

    def snapshot(self) -> SimulatorState:
        """The present moment, to `restore` later."""
        physics = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        attributes = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in vars(self._inner).items()
            if (isinstance(value, np.ndarray) and not _is_live(value))
            or isinstance(value, (float, int, bool))
            or value is None
        }
        model = {name: getattr(self.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")}
        return SimulatorState(
            physics=physics,
            model=model,
            attributes=attributes,
            raw=self._raw.copy(),
            decisions=self._decisions,
            succeeded=self._succeeded,
            origin=self._initial,
        )

    def restore(self, state: SimulatorState) -> dict[str, np.ndarray]:
        """Go back to a moment; returns its `state` observation (images are rendered by `render_views`)."""
        for name, array in state.model.items():
            getattr(self.model, name)[:] = array
        for key, value in state.attributes.items():
            setattr(self._inner, key, value.copy() if isinstance(value, np.ndarray) else value)
        mujoco.mj_setState(self.model, self.data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)
        # mj_forward refreshes the warm start; putting it back makes the next step bit-identical to the first time.
        mujoco.mj_setState(self.model, self.data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._raw, self._decisions, self._succeeded = state.raw.copy(), state.decisions, state.succeeded
        origin = state.origin or state
        if origin is not self._initial:
            self._initial, self._reference = origin, None
        return {"state": self.state_vector()}

    def render_views(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """What the cameras see now, by view."""
        return self.cameras.render() if self.cameras else {}

    def render(self) -> UInt8[np.ndarray, "256 256 3"]:
        """A picture for people, from the corner."""
        if self._portrait is None:
            self._portrait = Cameras(self, ("corner",), height=256, width=256)
        return self._portrait.render()["corner"]

    def close(self) -> None:
        """Free the cameras; closing twice is harmless."""
        for cameras in (self.cameras, self._portrait):
            if cameras is not None:
                cameras.close()

    def _decide(self, action: np.ndarray) -> dict[str, Any]:
        """One decision: the action, until it has been repeated often enough or the task is done."""
        info: dict[str, Any] = {}
        for _ in range(self.action_repeat):
            info = self._control(action)
            if info["success"]:
                break
        self._decisions += 1
        return info

    def _control(self, action: np.ndarray) -> dict[str, Any]:
        self._inner.curr_path_length = 0  # our horizon counts, not Meta-World's own 500
        self._raw, reward, _, _, info = self._inner.step(action)
        self._succeeded = bool(info["success"])
        return {
            "success": self._succeeded,
            "dense_reward": float(reward) / 10,
            "near_object": float(info["near_object"]),
            "grasp_success": float(info["grasp_success"]),
        }

    def _observe(self) -> dict[str, np.ndarray]:
        return {"state": self.state_vector(), **{PIXELS + view: image for view, image in self.render_views().items()}}

    def state_vector(self) -> Float[np.ndarray, " n"]:
        """The observation `state` of this moment."""
        if self._state == "relative":
            return self._relative()
        if self._state == "raw":
            return self._raw.astype(np.float32)
        hand = self._raw[:3]
        return np.concatenate([hand, hand - self._raw[18:21], self._raw[3:4]]).astype(np.float32)

    def _relative(self) -> Float[np.ndarray, " 30"]:
        now, before, goal = self._raw[:18], self._raw[18:36], self._raw[36:]
        hand, first, second = now[:3], now[4:7], now[11:14]
        second_exists = now[11:18].any()  # Meta-World pads absent objects with zeros
        parts = [
            first - hand,
            goal - first,
            goal - hand,
            now[3:4],
            now[7:11],
            (second - hand) * second_exists,
            (second - first) * second_exists,
            now[14:18],
            hand - before[:3],
            first - before[4:7],
        ]
        return np.concatenate(parts).astype(np.float32)


class ScriptedPolicy:
    """Meta-World's own scripted expert for a task, without its warnings: raw observation (39,) to action (4,)."""

    def __init__(self, task: str) -> None:
        self._policy = ENV_POLICY_MAP[task_name(task)]()

    def __call__(self, raw: Float[np.ndarray, " 39"]) -> Float[np.ndarray, " 4"]:
        """The expert's action, clipped to [-1, 1] as the environment would."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that the environment will clip; so do we
            return np.clip(np.asarray(self._policy.get_action(raw), dtype=np.float64), -1, 1)


def _is_live(array: np.ndarray) -> bool:
    """Whether an array is a window into MuJoCo's memory, so that it follows the physics by itself.

    Meta-World keeps some (`init_left_pad` is where the finger is *now*). Putting a copy in their place would freeze
    them for all later episodes, and dense rewards would depend on what was restored before.
    """
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None


def task_name(name: str) -> str:
    """The full name of a task (`door-unlock` and `door-unlock-v3` are the same). Raises `TaskError` if unknown."""
    full = name if name.endswith("-v3") else f"{name}-v3"
    if full not in INSTRUCTIONS:
        raise TaskError(f"unknown task {name!r}; expected one of {', '.join(INSTRUCTIONS)}")
    return full
