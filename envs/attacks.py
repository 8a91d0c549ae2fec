"""Attacks by acting: behaviours that look like progress and are none, run in the simulator that knows the truth.

What a learner would stumble on if it paid, done on purpose. Every attack stops short of doing the task, except where
the task needs no object held: a hand that moves right with its fingers open may close a door, and then the truth says
so. The instance, and everything random, follows from the seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from grm.errors import TaskError
from grm.reward import Frame

from .cameras import PIXELS
from .experts import BEHAVIOURS, towards
from .metaworld import MetaWorldEnv, Rehearsal, SimulatorState

Position = Float[np.ndarray, " 3"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One finished episode of T frames, with what is needed to ask for the truth at any of them."""

    frames: Sequence[Frame]
    moments: Sequence[SimulatorState]
    truth: Callable[[int], float]
    """True progress at a frame in [0, 1]: 30 to 120 ms the first time, remembered from then on. It moves the simulator,
    so it must not be asked in the middle of another episode."""
    succeeded: bool


Act = Callable[[int, MetaWorldEnv], Float[np.ndarray, " 4"]]
Attack = Callable[[Rehearsal, np.random.Generator], Act]


def _hover(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """Goes to a few centimetres above or beside the object and stays there, fingers open."""
    offset = rng.uniform(-0.03, 0.03, 3) + np.array([0, 0, 0.07])
    return lambda step, env: towards(env, _object(env) + offset, gripper=-1)


def _oscillate(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """Circles around the object for ever, up and down, opening and closing: all the motion of work without any."""
    phase, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.08)

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        angle = phase + 2 * np.pi * step / 16
        around = radius * np.array([np.cos(angle), np.sin(angle), 0.5 * np.sin(2 * angle)]) + np.array([0, 0, 0.08])
        return towards(env, _object(env) + around, gripper=1 if np.sin(angle) > 0 else -1)

    return act


def _object_free(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert's whole hand path, 10 to 15 cm to the side and a little higher: everything but the object moves."""
    shift = np.array([rng.uniform(0.1, 0.15) * rng.choice([-1, 1]), 0, 0.04])

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        index = min(step + 1, len(plan) - 1)
        return towards(env, plan.hand[index] + shift, gripper=plan.gripper[index])

    return act


def _empty_hand(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert's hand path in its place, but the fingers never close: what should be carried stays behind."""

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        return towards(env, plan.hand[min(step + 1, len(plan) - 1)], gripper=-1)

    return act


def _near_miss(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert aiming some centimetres beside object or goal (`envs.experts`)."""
    return BEHAVIOURS["near-miss"](rng, len(plan)).act


def _wrong_object(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert at work on another object where there is one, else on thin air (`envs.experts`)."""
    return BEHAVIOURS["wrong-object"](rng, len(plan)).act


def _wrong_place(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert until it has got hold of the object, then away from where that belongs, holding tight."""

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        if step < plan.moved:
            return env.expert_action()
        done = plan.hand[-1] - plan.hand[min(plan.moved, len(plan) - 1)]
        return np.append(-done / max(float(np.linalg.norm(done)), 1e-6), 1.0)

    return act


def _stop_half_way(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert for 30 to 70 % of its time, then nothing moves any more."""
    stop = round(rng.uniform(0.3, 0.7) * len(plan))

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        if step < stop:
            return env.expert_action()
        return np.array([0, 0, 0, plan.gripper[min(stop, len(plan) - 1)]])

    return act


def _undo(plan: Rehearsal, rng: np.random.Generator) -> Act:
    """The expert for 60 to 80 % of its time, then its hand's path back the way it came: what was won is lost."""
    turn = round(rng.uniform(0.6, 0.8) * len(plan))

    def act(step: int, env: MetaWorldEnv) -> np.ndarray:
        if step < turn:
            return env.expert_action()
        index = max(0, 2 * turn - step)
        return towards(env, plan.hand[min(index, len(plan) - 1)], gripper=plan.gripper[min(index, len(plan) - 1)])

    return act


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "hover": _hover,
        "oscillate": _oscillate,
        "object-free": _object_free,
        "empty-hand": _empty_hand,
        "near-miss": _near_miss,
        "wrong-object": _wrong_object,
        "wrong-place": _wrong_place,
        "stop-half-way": _stop_half_way,
        "undo": _undo,
    }
)
"""Physical attacks by name."""

TIME_FACTOR = 1.5
"""An attack lasts this many times as long as the expert would take."""


class RedTeam:
    """Runs attacks in one environment.

    Args:
        env: with the views the judge is to see; its horizon bounds every attack.
    """

    def __init__(self, env: MetaWorldEnv) -> None:
        self.env = env

    def run(self, attack: str, *, seed: int) -> Attempt:
        """One episode of the attack on the instance of `seed`. Raises `TaskError` if there is no such attack."""
        if attack not in ATTACKS:
            raise TaskError(f"unknown attack {attack!r}; expected one of {', '.join(ATTACKS)}")
        rng = np.random.default_rng([seed, list(ATTACKS).index(attack)])
        observation, _ = self.env.reset(seed=seed)
        plan = self.env.rehearse()
        act = ATTACKS[attack](plan, rng)
        frames, moments = [frame_at(observation, 0, self.env)], [self.env.snapshot()]
        done = False
        while not done and len(frames) <= TIME_FACTOR * len(plan):
            action = np.clip(act(len(frames) - 1, self.env), -1, 1)
            observation, _, terminated, truncated, _ = self.env.step(action)
            frames.append(frame_at(observation, len(frames), self.env))
            moments.append(self.env.snapshot())
            done = terminated or truncated
        return attempt_of(self.env, frames, moments)


def frame_at(observation: Mapping[str, np.ndarray], step: int, env: MetaWorldEnv) -> Frame:
    """The frame of an observation, in the time of this environment."""
    views = {key.removeprefix(PIXELS): image for key, image in observation.items() if key.startswith(PIXELS)}
    return Frame(views=views, time=step * env.action_repeat / 80)


def attempt_of(env: MetaWorldEnv, frames: Sequence[Frame], moments: Sequence[SimulatorState]) -> Attempt:
    """A finished episode whose truth can be asked for, from its moments."""

    @cache
    def truth(frame: int) -> float:
        env.restore(moments[frame])
        return env.true_progress()

    return Attempt(frames=frames, moments=moments, truth=truth, succeeded=moments[-1].succeeded)


def _object(env: MetaWorldEnv) -> Position:
    return env.raw_state[4:7]
