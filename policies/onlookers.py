"""Who watches a learner's environment and has an opinion of the state it is in: models, and the simulator itself.

One opinion per state serves everybody who asks: the shaping, the reward, the end of the episode.
"""

import abc
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode
from grm.errors import TraceError
from grm.models.multiview import GRM
from grm.reward import Task
from shaping import StatePotential, frame_of

from .classifier import FrameClassifier
from .stopwatch import Stopwatch

PROVERS = 3
PROVER_INTERVAL = 4
"""Decisions between two questions to the provers, which cost as much as tens of simulated steps each."""


@dataclass(frozen=True, slots=True, eq=False)
class Opinion:
    """Of one state."""

    phi: float | None = None
    """Progress in [0, 1]; None where there is no opinion."""
    success: float | None = None
    """P(the task is done) in [0, 1]; None where there is no opinion."""
    features: Float[np.ndarray, " f"] | None = None
    """What the frozen encoder saw, of an onlooker that has one."""


class Onlooker(abc.ABC):
    """Sees every state of one environment, in order."""

    @abc.abstractmethod
    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """An episode begins."""

    @abc.abstractmethod
    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """It is one decision further."""


class ModelOnlooker(Onlooker):
    """The GRM: max(0, mean - pessimism * spread), and what its success head says; None where it abstains.

    Args:
        model: the GRM.
        task: what is to be done.
        views: the cameras it is shown; all there are if empty.
        pessimism: standard deviations subtracted, at least 0.
    """

    def __init__(self, model: GRM, task: Task, *, views: tuple[str, ...] = (), pessimism: float = 0.0) -> None:
        self.model, self.task, self.views, self.pessimism = model, task, views, pessimism
        self._carry: Any = None

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        self._carry = self.model.start(self.task)
        return self._judge(observation)

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return self._judge(observation)

    def _judge(self, observation: dict[str, np.ndarray]) -> Opinion:
        shown = {key: value for key, value in observation.items() if not self.views or key[7:] in self.views}
        [self._carry], [judgement] = self.model.extend([self._carry], [[frame_of(shown)]])
        features = self.model.features(self._carry)
        if not judgement.judged[0]:
            return Opinion(features=features)
        potential, spread = float(judgement.potential[0]), float(judgement.spread[0])
        phi = float(np.maximum(0.0, potential - self.pessimism * spread))
        return Opinion(phi=phi, success=float(judgement.success[0]), features=features)


class ClassifierOnlooker(Onlooker):
    """A success classifier of single frames; it knows nothing of progress."""

    def __init__(self, classifier: FrameClassifier) -> None:
        self.classifier = classifier

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return Opinion(success=self.classifier.probability(frame_of(observation)))

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return self.begin(observation, env)


class DenseOnlooker(Onlooker):
    """Meta-World's hand-written dense reward as Φ; 0 at the beginning, when nothing has been paid yet."""

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return Opinion(phi=0.0)

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return Opinion(phi=float(np.clip(info["dense_reward"], 0, 1)))


class ProverOnlooker(Onlooker):
    """The true progress as Φ, asked at every `PROVER_INTERVAL`-th decision and at success, kept in between.

    Kept, not guessed: it is a function of the prefix, and shaping with it as policy-invariant as with any other.
    """

    def __init__(self) -> None:
        self._decisions, self._known = 0, 0.0

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        self._decisions, self._known = 0, 0.0
        return Opinion(phi=0.0)  # nobody is nearer than at the beginning

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        self._decisions += 1
        if info["success"]:
            self._known = 1.0
        elif self._decisions % PROVER_INTERVAL == 0:
            self._known = env.true_progress(provers=PROVERS)
        return Opinion(phi=self._known)


class Watched(gym.Wrapper):
    """An environment with an onlooker; `opinion` is of the state it is in, `features` of `info` what was seen of it."""

    def __init__(self, env: MetaWorldEnv, onlooker: Onlooker, stopwatch: Stopwatch) -> None:
        super().__init__(env)
        self.world, self.onlooker, self.stopwatch = env, onlooker, stopwatch
        self.opinion = Opinion()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and form an opinion."""
        observation, info = self.env.reset(seed=seed, options=options)
        with self.stopwatch("judge"):
            self.opinion = self.onlooker.begin(observation, self.world)
        return observation, info | self._seen()

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and form an opinion."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        with self.stopwatch("judge"):
            self.opinion = self.onlooker.follow(observation, info, self.world)
        return observation, reward, terminated, truncated, info | self._seen()

    def _seen(self) -> dict[str, Any]:
        return {} if self.opinion.features is None else {"features": self.opinion.features}

    def potential(self) -> StatePotential[Any]:
        """Φ of the state it is in, for a shaping wrapper around it."""
        return StatePotential(lambda observation: self.opinion.phi)


def look_at(onlooker: Onlooker, demonstration: Episode) -> list[Opinion]:
    """What the onlooker says of the demonstration's T frames, from their pictures alone."""
    observations = [
        {f"pixels.{name}": images[t] for name, images in demonstration.views.items()} for t in range(len(demonstration))
    ]
    nowhere: Any = None  # nothing is simulated
    first = onlooker.begin(observations[0], nowhere)
    return [first, *(onlooker.follow(observation, {}, nowhere) for observation in observations[1:])]


def play_back(
    onlooker: Onlooker, demonstration: Episode, env: MetaWorldEnv
) -> tuple[Float[np.ndarray, "t n"], list[Opinion]]:
    """The demonstration's T states and opinions of them, simulated again: for who asks the simulator, or sees else.

    Raises `TraceError` if it ends otherwise than the demonstration did.
    """
    observation, _ = env.reset(seed=demonstration.seed)
    states, opinions, ended = [observation["state"]], [onlooker.begin(observation, env)], False
    for action in demonstration.actions[:-1]:
        observation, _, ended, _, info = env.step(action)
        states.append(observation["state"])
        opinions.append(onlooker.follow(observation, info, env))
    require_playback(demonstration, ended)
    return np.stack(states), opinions


def require_playback(demonstration: Episode, ended: bool) -> None:
    """Raise `TraceError` unless the demonstration's actions `ended` in success on its own instance once more."""
    if demonstration.seed is None or not ended:
        raise TraceError(
            f"the demonstration of {demonstration.task!r} does not end in success when it is played back; expected one "
            f"recorded in this simulation, with its instance's seed: leave out the arms that ask the simulator, act on "
            f"features or are paid by the success head, or record another"
        )
