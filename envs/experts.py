"""Demonstrations and controlled failures: scripted behaviours to episodes whose every frame knows its progress.

A learner visits what no expert shows. So beside the expert there are behaviours that fail, nearly fail, detour, stall,
undo and recover; the prover's time-to-go labels every frame of them, on or off the demonstration.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grm.data.episodes import Episode, SubTask
from grm.errors import TaskError, TraceError

from .appearance import Appearance
from .cameras import PIXELS
from .metaworld import MetaWorldEnv, Rehearsal, ScriptedPolicy

Action = Float[np.ndarray, " 4"]


@dataclass(frozen=True, slots=True)
class Actor:
    """One drawn behaviour, for one episode."""

    act: Callable[[int, MetaWorldEnv], Action]
    """Decision and environment to action."""
    expert_from: int | None = None
    """From this decision on it is nothing but the expert: if it succeeds, its own run says how long that took."""


Behaviour = Callable[[np.random.Generator, int], Actor]
"""(generator, horizon) to an actor."""


def _expert(generator: np.random.Generator, horizon: int) -> Actor:
    """The scripted expert, in a speed and a steadiness of its own."""
    speed, noise = generator.uniform(0.7, 1.0), generator.uniform(0.0, 0.15)

    def act(step: int, env: MetaWorldEnv) -> Action:
        action = env.expert_action()
        action[:3] *= speed
        return action + generator.normal(0, noise, 4)

    return Actor(act, expert_from=0)


def _noisy(generator: np.random.Generator, horizon: int) -> Actor:
    """An expert with heavy, correlated noise: a half-trained policy."""
    scale, memory, noise = generator.uniform(0.3, 1.0), generator.uniform(0.0, 0.9), np.zeros(4)

    def act(step: int, env: MetaWorldEnv) -> Action:
        nonlocal noise
        noise = memory * noise + np.sqrt(1 - memory**2) * generator.normal(0, scale, 4)
        return env.expert_action() + noise

    return Actor(act)


def _random(generator: np.random.Generator, horizon: int) -> Actor:
    """Holds a random saturated action for a while, then another: an untrained policy, pushing at the walls."""
    action = generator.uniform(-1, 1, 4)

    def act(step: int, env: MetaWorldEnv) -> Action:
        nonlocal action
        if generator.random() < 10 / horizon:
            action = np.clip(generator.normal(0, 0.8, 4), -1, 1)
        return action

    return Actor(act)


def _interrupted(disturb: Callable[[np.random.Generator, MetaWorldEnv], Action], *, recover: bool) -> Behaviour:
    """An expert disturbed from a random moment on, for a while (then it recovers) or to the end (a failure)."""

    def behaviour(generator: np.random.Generator, horizon: int) -> Actor:
        expert = _expert(generator, horizon)
        start = int(generator.uniform(0.02, 0.4) * horizon)
        length = int(generator.uniform(0.05, 0.2) * horizon) if recover else horizon

        def act(step: int, env: MetaWorldEnv) -> Action:
            if start <= step < start + length:
                return disturb(generator, env)
            return expert.act(step, env)

        return Actor(act, expert_from=start + length if recover else None)

    return behaviour


def _held(draw: Callable[[np.random.Generator], Action], *, recover: bool) -> Behaviour:
    """Disturbed by one drawn action, held with a little noise."""

    def behaviour(generator: np.random.Generator, horizon: int) -> Actor:
        action = draw(generator)
        return _interrupted(lambda g, env: action + g.normal(0, 0.1, 4), recover=recover)(generator, horizon)

    return behaviour


def _near_miss(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert aiming beside object or goal by a few centimetres: it does everything right in the wrong place."""
    shift = generator.normal(0, 1, 3) * (1, 1, 0.5)
    shift *= generator.uniform(0.03, 0.1) / np.linalg.norm(shift)
    which = generator.random()
    return _beside(shift * (which < 0.7), shift * (which > 0.5), generator)


def _misplaced(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert acting as if object or goal were where another instance has them: what a memorised motion does."""
    shifts = generator.uniform(-0.2, 0.2, (2, 3)) * (1, 1, 0)
    return _beside(shifts[0], shifts[1] * (generator.random() < 0.5), generator)


def _above(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert's whole motion some centimetres too high, mostly without touching anything."""
    shift = np.array([0.0, 0.0, generator.uniform(0.05, 0.15)])
    return _beside(shift, shift, generator)


def _beside(of_object: np.ndarray, of_goal: np.ndarray, generator: np.random.Generator) -> Actor:
    """The expert of a scene whose object and goal are shifted by these, in metres."""
    offset = np.zeros(39)
    offset[4:7] = offset[22:25] = of_object
    offset[36:39] = of_goal
    policies: dict[str, ScriptedPolicy] = {}

    def act(step: int, env: MetaWorldEnv) -> Action:
        policy = policies.setdefault(env.task, ScriptedPolicy(env.task))
        return policy(env.raw_state + offset) + generator.normal(0, 0.05, 4)

    return Actor(act)


def _wrong_object(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert at work on another object where there is one, else on thin air 15 cm from the right one."""
    side = np.array([0.15 * generator.choice([-1, 1]), 0, 0])
    policies: dict[str, ScriptedPolicy] = {}

    def act(step: int, env: MetaWorldEnv) -> Action:
        raw = env.raw_state
        for first, second in ((slice(4, 11), slice(11, 18)), (slice(22, 29), slice(29, 36))):
            if raw[second].any():
                raw[first], raw[second] = raw[second].copy(), raw[first].copy()
            else:
                raw[first][:3] += side
        return policies.setdefault(env.task, ScriptedPolicy(env.task))(raw)

    return Actor(act)


def _empty_hand(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert's hand path in its place, but the fingers stay open, or shut: what should be carried stays behind."""
    return _after_rehearsal(np.zeros(3), float(generator.choice([-1.0, 1.0])))


def _object_free(generator: np.random.Generator, horizon: int) -> Actor:
    """The expert's whole hand path 8 to 15 cm to the side and a little higher: everything but the object moves."""
    angle = generator.uniform(0, 2 * np.pi)
    aside = generator.uniform(0.08, 0.15) * np.array([np.cos(angle), np.sin(angle), 0.0])
    return _after_rehearsal(aside + np.array([0.0, 0.0, generator.uniform(0.0, 0.05)]), None)


def _after_rehearsal(shift: np.ndarray, gripper: float | None) -> Actor:
    """The hand path that the expert would take from the beginning, shifted, blind to what comes of it."""
    rehearsed: list[Rehearsal] = []

    def act(step: int, env: MetaWorldEnv) -> Action:
        if step == 0:
            rehearsed[:] = [env.rehearse()]
        [path] = rehearsed
        index = min(step + 1, len(path) - 1)
        fingers = path.gripper[index] if gripper is None else gripper
        return towards(env, path.hand[index] + shift, gripper=fingers)

    return Actor(act)


def towards(env: MetaWorldEnv, position: np.ndarray, *, gripper: float) -> Action:
    """Moves the hand to a position (3,) in metres with the gain that the experts use: full speed from 10 cm on."""
    return np.append(10 * (position - env.raw_state[:3]), gripper)


def _drop(generator: np.random.Generator, env: MetaWorldEnv) -> Action:
    return np.append(env.expert_action()[:3] * 0.5, -1.0)


def _undo(generator: np.random.Generator, env: MetaWorldEnv) -> Action:
    action = -env.expert_action()
    action[3] = -action[3]
    return action


def _draw_wander(generator: np.random.Generator) -> Action:
    return np.clip(generator.normal(0, 0.7, 4), -1, 1)


def _draw_stall(generator: np.random.Generator) -> Action:
    return np.array([0.0, 0.0, 0.0, generator.choice([-1.0, 0.0, 1.0])])


BEHAVIOURS: Mapping[str, Behaviour] = {
    "expert": _expert,
    "noisy": _noisy,
    "random": _random,
    "near-miss": _near_miss,
    "detour": _held(_draw_wander, recover=True),
    "stall": _held(_draw_stall, recover=True),
    "drop": _interrupted(_drop, recover=True),
    "regress": _interrupted(_undo, recover=True),
    "wander": _held(_draw_wander, recover=False),
    "give-up": _held(_draw_stall, recover=False),
    "undo": _interrupted(_undo, recover=False),
    "misplaced": _misplaced,
    "above": _above,
    "wrong-object": _wrong_object,
    "empty-hand": _empty_hand,
    "object-free": _object_free,
}
"""Who may act, by name; new ones go to the end, for the place is part of what an episode is drawn from."""

OFF_DEMONSTRATION = tuple(name for name in BEHAVIOURS if name != "expert")


def record(
    env: MetaWorldEnv,
    behaviour: str,
    *,
    seed: int,
    label_every: int = 1,
    provers: int = 3,
    look: Appearance | None = None,
    drawn_from: Behaviour | None = None,
) -> Episode:
    """Run one behaviour on the instance of `seed` and label every frame with its true progress.

    An expert's successful run is its own label (time left over time taken), also that of one who took over half-way.
    Everything else asks `provers` provers every `label_every` frames and at the end, and interpolates between; with
    none to ask its progress is unknown, NaN.
    Reproducible: `seed` fixes instance and behaviour. `look` is how the scene looks meanwhile; plain unless given.
    `drawn_from` is who acts, for a `behaviour` that is none of `BEHAVIOURS`: somebody's policy, say.

    Raises `TaskError` for an unknown behaviour, or one that is told to be another's.
    """
    if (behaviour in BEHAVIOURS) != (drawn_from is None):
        raise TaskError(
            f"unknown behaviour {behaviour!r}; expected one of {', '.join(BEHAVIOURS)}"
            if drawn_from is None
            else f"{behaviour!r} is one of our own behaviours; expected another name for `drawn_from`"
        )
    with contextlib.ExitStack() as worn:
        if look is not None:
            look.apply(env)
            worn.callback(look.undo, env)
        if drawn_from is not None:
            return _record(
                env, behaviour, drawn_from(np.random.default_rng(seed), env.horizon), seed, label_every, provers
            )
        generator = np.random.default_rng([seed, list(BEHAVIOURS).index(behaviour)])
        return _record(env, behaviour, BEHAVIOURS[behaviour](generator, env.horizon), seed, label_every, provers)


def _record(env: MetaWorldEnv, behaviour: str, actor: Actor, seed: int, label_every: int, provers: int) -> Episode:
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, moments, infos = [observation], [], [], [env.snapshot()], [{}]
    done = False
    while not done:
        action = np.clip(actor.act(len(actions), env), -1, 1)
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
        moments.append(env.snapshot())
        infos.append(info)
        done = terminated or truncated
    succeeded = env.succeeded
    last = len(observations) - 1
    if succeeded and actor.expert_from is not None and actor.expert_from < last:
        before = moments[: actor.expert_from + 1]
        known = _prove(env, before, label_every, provers) if len(before) > 1 else np.zeros(1)
        env.restore(moments[-1])
        progress = np.concatenate([known[:-1], np.linspace(known[-1], 1, last + 2 - len(known))])
    else:
        progress = _prove(env, moments, label_every, provers)
    if succeeded:
        progress[-1] = 1.0
    success = np.zeros(len(observations), bool)
    success[-1] = succeeded
    actions.append(np.append(np.zeros(3), actions[-1][3]))  # holds still: the last row's action is never taken
    rewards.append(0.0)
    return Episode(
        task=env.task,
        instruction=env.instruction,
        views={
            key.removeprefix(PIXELS): np.stack([o[key] for o in observations])
            for key in observations[0]
            if key.startswith(PIXELS)
        },
        rate_hz=80 / env.action_repeat,
        state=np.stack([o["state"] for o in observations]),
        actions=np.stack(actions).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        success=success,
        progress=progress.astype(np.float32),
        behaviour=behaviour,
        sub_tasks=_sub_tasks(infos),
        seed=seed,
    )


def demonstrations(
    env: MetaWorldEnv, count: int, *, seed: int, look: Callable[[int], Appearance | None] = lambda seed: None
) -> Iterator[Episode]:
    """Successful expert episodes on fresh instances; `look` gives each seed its appearance.

    Raises `TraceError` if the expert fails ten times running.
    """
    failures = 0
    while count > 0:
        episode = record(env, "expert", seed=seed, provers=0, look=look(seed))  # one that fails is not kept
        seed += 1
        failures = 0 if episode.succeeded else failures + 1
        if episode.succeeded:
            count -= 1
            yield episode
        elif failures == 10:
            raise TraceError(
                f"the scripted expert of {env.task!r} failed ten times running within {env.horizon} decisions; "
                f"expected it to succeed: raise the horizon"
            )


def _prove(env: MetaWorldEnv, moments: Sequence, every: int, provers: int) -> Float[np.ndarray, " t"]:
    """True progress at every moment, asked of the prover at every `every`-th and the last, interpolated between."""
    if not provers:
        return np.full(len(moments), np.nan)
    asked = sorted({*range(0, len(moments), every), len(moments) - 1})
    known = []
    for index in asked:
        env.restore(moments[index])
        known.append(env.true_progress(provers=provers))
    env.restore(moments[-1])
    return np.interp(np.arange(len(moments)), asked, known)


def _sub_tasks(infos: Sequence[Mapping]) -> tuple[SubTask, ...]:
    """Keyframes from what Meta-World reports: near the object, grasped, the end."""
    last = len(infos) - 1
    cuts, names = [0], []
    for key, name in (("near_object", "reach"), ("grasp_success", "grasp")):
        first = next((t for t, info in enumerate(infos) if info.get(key, 0) > 0 and cuts[-1] < t < last), None)
        if first is not None:
            cuts.append(first)
            names.append(name)
    cuts, names = [*cuts, last], [*names, "finish"]
    return tuple(SubTask(name=n, start=a, end=b) for n, a, b in zip(names, cuts[:-1], cuts[1:], strict=True))
