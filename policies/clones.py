"""A policy that was shown the task once, at work on other instances: where a learner goes before it has learned."""

import numpy as np
import torch

from envs.experts import Action, Actor, Behaviour, demonstrations
from envs.metaworld import MetaWorldEnv

from .bc import clone


def cloned_behaviour(env: MetaWorldEnv, *, seed: int) -> Behaviour:
    """Clone the expert's first successful episode from instance `seed` on; takes some seconds.

    Every episode acts with correlated noise of a strength of its own, up to what a learner explores with. The episode
    that was shown is recorded in an environment without cameras.

    Raises `TraceError` if the expert fails ten times running.
    """
    blind = MetaWorldEnv(env.task, horizon=env.horizon, action_repeat=env.action_repeat)
    [shown] = demonstrations(blind, 1, seed=seed)
    blind.close()
    policy = clone(shown.state[:-1], shown.actions[:-1], rng=np.random.default_rng(seed))

    def behaviour(generator: np.random.Generator, horizon: int) -> Actor:
        scale, memory, noise = generator.uniform(0.0, 0.3), generator.uniform(0.0, 0.9), np.zeros(4)

        def act(step: int, env: MetaWorldEnv) -> Action:
            nonlocal noise
            noise = memory * noise + np.sqrt(1 - memory**2) * generator.normal(0, scale, 4)
            with torch.inference_mode():
                [action], _ = policy.predict(env.state_vector()[None])
            return action + noise

        return Actor(act)

    return behaviour
