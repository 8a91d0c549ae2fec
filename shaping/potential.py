"""Where Φ comes from, and the one line that turns it into a reward.

    F(s, s') = γ Φ(s') - Φ(s),    Φ = 0 at terminal states                      Ng, Harada & Russell 1999; Eq. 13

**Why this line and no other.** Along any trajectory the sum telescopes,

    Σ_{t<n} γ^t F_t = Σ_{t<n} (γ^{t+1} Φ_{t+1} - γ^t Φ_t) = γ^n Φ_n - Φ_0,

so n steps of shaping are worth what the last potential is worth, minus a constant that no action can change. If the
episode terminates at n, then Φ_n = 0 and what is left is -Φ_0. If it was only truncated, the learner goes on from s_n
with its critic, Q'(s_n, ·) = Q(s_n, ·) - Φ_n, and γ^n Φ_n is exactly what that critic lacks. Either way

    Q'(s, a) = Q(s, a) - Φ(s)   for every policy,

the same argmax in every state, ties included. Drop γ, keep Φ at a terminal state, drop it at a truncated one, or
score a state twice with two answers, and the sum no longer telescopes (`docs/derivations.md`,
`tests/laws/test_invariance.py`).
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from grm.errors import TraceError
from grm.reward import Frame, Judgement, ProcessReward, Task

PIXELS = "pixels."
"""Prefix of the observation keys that hold images: `pixels.<view>`."""


def shaping_reward(phi: ArrayLike, next_phi: ArrayLike, terminated: ArrayLike, gamma: float) -> np.ndarray:
    """F = gamma * Φ(s') - Φ(s), with Φ = 0 at terminal states; shapes broadcast. The proof stands above.

    `next_phi` is ignored where `terminated`, whatever it is, and must be given where an episode is only truncated.
    NaN, an abstention, stays NaN. For a weight that changes, pass each potential times the weight in force at its step.
    """
    return np.asarray(gamma * np.where(terminated, 0.0, next_phi) - np.asarray(phi))


@runtime_checkable
class SeesFeatures(Protocol):
    """A model that says what it saw in the newest step of a prefix."""

    def features(self, carry: Any) -> np.ndarray:
        """(f,) float32, of the prefix's newest step."""
        ...


class Potential[O](abc.ABC):
    """Φ of N environments as they run, one index each: a potential may remember the prefix of every episode.

    One instance serves one wrapper: two that share it would overwrite each other's memories. Every state is asked for
    once, in order; the wrappers keep the answer for both transitions the state belongs to.
    """

    @abc.abstractmethod
    def reset(self, indices: Sequence[int], observations: Sequence[O]) -> Judgement:
        """Episodes begin in these B environments. Judges their first observations, in the order of `indices`."""

    @abc.abstractmethod
    def advance(self, indices: Sequence[int], observations: Sequence[O]) -> Judgement:
        """These B environments are one step further. Judges the new observations, in the order of `indices`.

        Raises `TraceError` for an environment in which no episode has begun, if the potential remembers episodes.
        """

    def features(self, index: int) -> np.ndarray | None:
        """What was seen in this environment's newest observation, as one vector; None where potentials see nothing.

        A policy may act on it, so that a picture is encoded once for reward and policy alike.
        """
        return None


class StatePotential[O](Potential[O]):
    """A potential written by hand, or an oracle: Φ(observation) in [0, 1], spread 0. It remembers nothing.

    `function` returns None where it abstains. A number outside [0, 1] raises `TraceError`.
    """

    def __init__(self, function: Callable[[O], float | None]) -> None:
        self.function = function

    def reset(self, indices: Sequence[int], observations: Sequence[O]) -> Judgement:
        """See `Potential`."""
        return self.advance(indices, observations)

    def advance(self, indices: Sequence[int], observations: Sequence[O]) -> Judgement:
        """See `Potential`."""
        answers = [self.function(observation) for observation in observations]
        judged = np.array([answer is not None for answer in answers], dtype=bool)
        potential = np.array([np.nan if answer is None else answer for answer in answers], dtype=np.float64)
        judgement = Judgement(potential=potential, spread=np.where(judged, 0.0, np.nan), judged=judged)
        check_potential(judgement, len(indices))
        return judgement


def frame_of(observation: Mapping[str, np.ndarray]) -> Frame:
    """Frame of an observation dict: every `pixels.<view>`, (h, w, 3) uint8, becomes the view `<view>`.

    The images are copied: environments reuse their buffers, and a model may remember a frame for a whole episode.
    The frame's time is 0. Raises `TraceError` if there is no image, or if one is not what `Frame` asks for.
    """
    if not isinstance(observation, Mapping):
        raise TraceError(
            f"the observation is {type(observation).__name__}; expected a dict with images under {PIXELS!r}<view>, "
            f"or a `to_step` that builds a Frame of it"
        )
    views = {key.removeprefix(PIXELS): np.array(value) for key, value in observation.items() if key.startswith(PIXELS)}
    if not views:
        raise TraceError(
            f"the observation has the keys {sorted(observation)} and no image; expected at least one {PIXELS!r}<view>"
        )
    return Frame(views=views)


class ModelPotential[C](Potential[Any]):
    """A process reward as a potential: max(0, mean - pessimism * spread), one carry per environment.

    The pessimism is part of Φ, so shaping with it is as policy-invariant as without; it lowers what the model is unsure
    of, which is what a learner would seek out first. All environments of a call are judged by one `extend`.

    A model may be refitted between steps: each Φ then is the one in force when its state was reached, which keeps the
    invariance. Carries made by the old weights live until their episodes end.

    Args:
        model: any `ProcessReward` of frames.
        task: what every environment is to do.
        pessimism: standard deviations subtracted from the mean, at least 0.
        to_step: builds the model's frame of an observation; by default of a dict with images under `pixels.<view>`.

    """

    def __init__(
        self,
        model: ProcessReward[Frame, C],
        task: Task,
        *,
        pessimism: float = 0.0,
        to_step: Callable[[Any], Frame] = frame_of,
    ) -> None:
        if not (np.isfinite(pessimism) and pessimism >= 0):
            raise TraceError(f"pessimism is {pessimism}; expected a finite number of standard deviations, at least 0")
        self.model = model
        self.task = task
        self.pessimism = pessimism
        self.to_step = to_step
        self._carries: dict[int, C] = {}

    def reset(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        """See `Potential`."""
        # Immutable, hence shared by all; not kept for later resets, since the model may have been refitted by then.
        start = self.model.start(self.task)
        return self._extend(indices, [start] * len(indices), observations)

    def advance(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        """See `Potential`."""
        missing = [index for index in indices if index not in self._carries]
        if missing:
            raise TraceError(f"no episode has begun in environments {missing}; call `reset` on them before `advance`")
        return self._extend(indices, [self._carries[index] for index in indices], observations)

    def features(self, index: int) -> np.ndarray | None:
        """See `Potential`; None unless the model has a method `features(carry)`, as `grm.GRM` has."""
        return self.model.features(self._carries[index]) if isinstance(self.model, SeesFeatures) else None

    def _extend(self, indices: Sequence[int], carries: list[C], observations: Sequence[Any]) -> Judgement:
        carries, judgements = self.model.extend(carries, [[self.to_step(observation)] for observation in observations])
        if [len(judgement) for judgement in judgements] != [1] * len(indices):
            raise TraceError(
                f"the model gave judgements of lengths {[len(judgement) for judgement in judgements]} for one step in "
                f"each of {len(indices)} environments; `grm.testing.check_process_reward` names the law it breaks"
            )
        raw = Judgement(
            potential=np.array([judgement.potential[0] for judgement in judgements], dtype=np.float64),
            spread=np.array([judgement.spread[0] for judgement in judgements], dtype=np.float64),
            judged=np.array([judgement.judged[0] for judgement in judgements], dtype=bool),
        )
        check_potential(raw, len(indices))
        self._carries.update(zip(indices, carries, strict=True))
        pessimistic = np.maximum(0.0, raw.potential - self.pessimism * raw.spread)
        return Judgement(potential=pessimistic, spread=raw.spread, judged=raw.judged)


def check_potential(judgement: Judgement, count: int) -> None:
    """Raise `TraceError` unless there is one judgement per environment, finite and in [0, 1] wherever it is judged."""
    if len(judgement) != count:
        raise TraceError(f"the potential gave {len(judgement)} judgements for {count} environments; expected one each")
    judged = judgement.judged
    potential, spread = judgement.potential[judged], judgement.spread[judged]
    inside = (potential >= 0) & (potential <= 1)  # false for NaN too
    if not inside.all():
        raise TraceError(
            f"the potential is {potential[~inside][0]}; expected a number in [0, 1] (of a distance d, exp(-d)), "
            f"or an abstention: judged False"
        )
    if not (np.isfinite(spread) & (spread >= 0)).all():
        raise TraceError(f"the potential's spread is {spread}; expected finite standard deviations, at least 0")
