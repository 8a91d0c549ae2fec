"""Running a policy on fresh instances of a task, with fixed seeds: every arm is asked the same questions."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.vec_env import VecEnv

from grm.errors import TraceError


class Predictor(Protocol):
    """Anything with Stable-Baselines3's `predict`: its models and policies, a `ClonedPolicy`, one's own."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """A batch of observations to a batch of actions, and a recurrent state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What became of each fresh instance, in the order of their seeds."""

    success: Bool[np.ndarray, " episodes"]
    length: Int[np.ndarray, " episodes"]
    task_return: Float[np.ndarray, " episodes"]
    """Undiscounted sum of the task's own reward: what the environment paid, without shaping."""

    @property
    def success_rate(self) -> float:
        """Share of instances solved, in [0, 1]."""
        return float(self.success.mean())


def instance_seeds(seed: int, count: int, purpose: Literal["training", "evaluation", "replay"]) -> list[int]:
    """Environment seeds that depend on `seed`, the position in the list and the purpose, and on nothing else.

    A longer list begins with the shorter one. Every purpose draws from a stream of its own, so no instance is evaluated
    because it was trained on.
    """
    stream = np.random.SeedSequence(seed, spawn_key=(("training", "evaluation", "replay").index(purpose),))
    return [int(word) for word in stream.generate_state(count)]


def check_single(env: VecEnv) -> None:
    """Raise `TraceError` unless `env` holds one environment with flat observations and bounded actions."""
    if not isinstance(env, VecEnv):
        raise TraceError(
            f"env is {type(env).__name__}; expected a Stable-Baselines3 VecEnv: "
            f"VecExtractDictObs(DummyVecEnv([lambda: env]), 'state') makes one"
        )
    if env.num_envs != 1:
        raise TraceError(f"env holds {env.num_envs} environments; expected one, episodes are run one after the other")
    shape = env.observation_space.shape
    if shape is None or len(shape) != 1:
        raise TraceError(
            f"env has the observation space {env.observation_space}; expected a flat Box: "
            f"VecExtractDictObs(env, 'state') takes one key out of a Dict"
        )


def succeeded(info: dict[str, Any]) -> bool:
    """Whether an episode's last `info` reports success; raises `TraceError` if it reports nothing."""
    for key in ("success", "is_success"):
        if key in info:
            return bool(info[key])
    raise TraceError(f"the last info of an episode has the keys {sorted(info)}; expected 'success' or 'is_success'")


def evaluate(policy: Predictor, env: VecEnv, *, episodes: int = 20, seed: int = 0) -> Evaluation:
    """Run the deterministic policy once on each of `episodes` fresh instances.

    Instance k is `env` reset with the k-th of `instance_seeds(seed, episodes, "evaluation")`. Use an environment of its
    own: the episode a learner was in would be lost.

    Raises:
        TraceError: no episodes asked for, `env` is not one flat environment, an episode ended without saying whether it
            succeeded.
    """
    check_single(env)
    if episodes < 1:
        raise TraceError(f"{episodes} episodes were asked for; expected at least 1")
    success = np.zeros(episodes, dtype=bool)
    length = np.zeros(episodes, dtype=np.int64)
    task_return = np.zeros(episodes)
    for episode, instance in enumerate(instance_seeds(seed, episodes, "evaluation")):
        env.seed(instance)
        observation, ended = env.reset(), False
        while not ended:
            action, _ = policy.predict(observation, deterministic=True)
            observation, [reward], [ended], [info] = env.step(action)
            length[episode] += 1
            task_return[episode] += info.get("task_reward", reward)
        success[episode] = succeeded(info)
    return Evaluation(success=success, length=length, task_return=task_return)
