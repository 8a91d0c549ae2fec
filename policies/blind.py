"""The demonstration's actions once more, where the objects lie elsewhere: the motion alone, mostly without its effect.

One demonstration does not tell a reward model what the arm did from what came of it, and a learner soon finds out. Who
replays it on a few other instances, eyes closed, and says what came of it, has what is missing at the price of a few
episodes: they look like the demonstration in everything but the task. A replay that failed got nowhere: its progress is
taken to be 0 throughout, which `benchmarks.blind_replays` holds against the truth.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode

from .rollout import instance_seeds


def blind_replays(env: MetaWorldEnv, demonstration: Episode, count: int, *, seed: int) -> list[Episode]:
    """`count` episodes of behaviour `replay`, on the first instances of `instance_seeds(seed, count, "replay")`.

    They end where the demonstration's actions do, or with a success. The progress of one that fails is 0, of one that
    succeeds NaN, for nobody knows it before it is labelled by its time to go (`grm.train.adapt`).

    Args:
        env: as the demonstration was recorded in, with its views (`policies.one_shot.world_of`).
        demonstration: T frames; its T - 1 actions are taken.
        count: how many.
        seed: of the instances, which are neither those of training nor those of evaluation.
    """
    actions = demonstration.actions[:-1]
    replays = [taken_again(env, demonstration, one, actions) for one in instance_seeds(seed, count, "replay")]
    return [
        replace(replay, progress=np.full(len(replay), np.nan if replay.succeeded else 0.0, np.float32))
        for replay in replays
    ]


def taken_again(
    env: MetaWorldEnv,
    demonstration: Episode,
    instance: int,
    actions: Float[np.ndarray, "t a"],
    *,
    stop: bool = True,
) -> Episode:
    """An episode of behaviour `replay`: these actions on this instance, with the demonstration's views.

    It ends where the actions do, and with `stop` also with a success. Its last frame alone may show one; its progress
    is unknown.
    """
    observation, _ = env.reset(seed=instance)
    observations, rewards, succeeded = [observation], list[float](), False
    for action in actions:
        observation, reward, succeeded, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if stop and (succeeded or truncated):
            break
    taken = np.asarray(actions[: len(rewards)], np.float32)
    success = np.zeros(len(observations), bool)
    success[-1] = succeeded
    return Episode(
        task=demonstration.task,
        instruction=demonstration.instruction,
        views={view: np.stack([o[f"pixels.{view}"] for o in observations]) for view in demonstration.views},
        rate_hz=demonstration.rate_hz,
        state=np.stack([o["state"] for o in observations]).astype(np.float32),
        actions=np.concatenate([taken, np.zeros_like(taken[:1])]),
        rewards=np.array([*rewards, 0.0], np.float32),
        success=success,
        progress=np.full(len(observations), np.nan, np.float32),
        behaviour="replay",
        seed=instance,
    )
