"""What a task done looks like from more than one pose: the demonstrator goes on for a moment once it is done.

A demonstration that stops at its success shows one picture of it, hardly another than the one before, which is not. A
success head that learned from that knows the pose in which the demonstration ended: on other instances it took none of
48 decisions for done in which the task was (`docs/log.md`). Moving about while it stays done costs a person a second,
and no further word.
"""

from dataclasses import replace

import numpy as np

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode

from .onlookers import require_playback

SPEED = 0.5
"""Standard deviation of the hand's velocity, of the fastest."""
PERSISTENCE = 0.8
"""Correlation of its velocity from one decision to the next."""
RETURN = 0.1
"""Of the way it has gone, what each decision brings it back."""


def go_on(env: MetaWorldEnv, demonstration: Episode, decisions: int, *, seed: int) -> Episode:
    """The demonstration, longer by the frames in which it stayed done.

    It is played back to its end; from there on the hand drifts about where it is, the gripper as it was. Frames in
    which the task is no longer done are left out, so this is for who looks, not for who imitates. What was added has a
    progress of 1, or an unknown one if the demonstration's is.

    Args:
        env: as the demonstration was recorded in, with its views (`policies.one_shot.world_of`).
        demonstration: T frames, of which the last alone shows the task done; it knows its instance.
        decisions: at most as many frames are added.
        seed: of the drift.

    Raises:
        TraceError: played back, the demonstration does not succeed where it did.
    """
    env.reset(seed=demonstration.seed)
    ended = False
    for action in demonstration.actions[:-1]:
        *_, ended, _, _ = env.step(action)
    require_playback(demonstration, ended)
    rng = np.random.default_rng(seed)
    velocity, gone = np.zeros(3), np.zeros(3)
    seen, actions = list[dict[str, np.ndarray]](), list[np.ndarray]()
    for _ in range(decisions):
        velocity = PERSISTENCE * velocity + np.sqrt(1 - PERSISTENCE**2) * SPEED * rng.standard_normal(3)
        moved = np.clip(velocity - RETURN * gone, -1, 1)
        gone += moved
        observation, *_, info = env.step(np.append(moved, action[3]))
        if info["success"]:
            seen.append(observation)
            actions.append(np.append(moved, action[3]))
    if not seen:
        return demonstration
    known = np.isfinite(demonstration.progress).all()
    return replace(
        demonstration,
        views={
            view: np.concatenate([images, np.stack([observation[f"pixels.{view}"] for observation in seen])])
            for view, images in demonstration.views.items()
        },
        state=np.concatenate([demonstration.state, np.stack([o["state"] for o in seen])], dtype=np.float32),
        actions=np.concatenate([demonstration.actions, actions], dtype=np.float32),
        rewards=np.append(demonstration.rewards, np.zeros(len(seen), np.float32)),
        success=np.append(demonstration.success, np.ones(len(seen), bool)),
        progress=np.append(demonstration.progress, np.full(len(seen), 1 if known else np.nan, np.float32)),
    )
