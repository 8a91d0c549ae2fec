"""What the last rollouts say: whether a process reward is right where the learner goes, and who should act next."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

WINDOW = 25
"""Last rollouts that say how often the learner succeeds, and how far to trust the process reward."""
CONTEST = 15
"""Last rollouts of each of the two that may act, by which they are compared."""
PRIOR = {True: (0.2, 1.0), False: (1.0, 1.0)}
"""Of the cloned policy's success rate and of the learner's own: without evidence the learner acts."""
CLAIM_STEPS = 5
"""Last judged decisions of a rollout whose mean Φ is what the process reward says came of it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one rollout ended."""

    cloned: bool | None
    """Whether the cloned policy alone acted; None if nobody knows."""
    success: bool
    claim: float | None
    """What the process reward said at its end, in [0, 1]; None where it said nothing."""
    helped: bool = False
    """Whether a person took over: then its success is no merit of either."""
    retracted: bool = False
    """Whether it had been called a success, and was none."""

    @property
    def failed_alone(self) -> bool:
        """Whether it was the learner's own failure, and nobody ever thought otherwise."""
        return not (self.success or self.helped or self.retracted)


@dataclass(slots=True)
class Evidence:
    """Outcomes of all rollouts, oldest first."""

    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def from_lists(cls, rows: list[list[Any]]) -> "Evidence":
        """From what `to_lists` gave."""
        return cls([Outcome(*row) for row in rows])

    def to_lists(self) -> list[list[Any]]:
        """As JSON can hold it."""
        return [[o.cloned, o.success, o.claim, o.helped, o.retracted] for o in self.outcomes]

    def add(self, phi: np.ndarray | None, *, cloned: bool | None, success: bool, helped: bool = False) -> None:
        """One more rollout, with the Φ of its decisions, NaN where the process reward abstained."""
        judged = np.empty(0) if phi is None else phi[np.isfinite(phi)]
        claim = float(judged[-CLAIM_STEPS:].mean()) if len(judged) else None
        self.outcomes.append(Outcome(cloned, success, claim, helped))

    def fail(self, rollouts: Collection[int]) -> None:
        """Those of these numbers, counted from 1, were no successes after all."""
        for number in rollouts:
            self.outcomes[number - 1] = replace(self.outcomes[number - 1], success=False, retracted=True)

    @property
    def success_rate(self) -> float:
        """Successes of the learner's own among the last `WINDOW` rollouts; those not made yet count as failures."""
        return sum(outcome.success and not outcome.helped for outcome in self.outcomes[-WINDOW:]) / WINDOW

    @property
    def trust(self) -> float:
        """Of what the process reward called done after the last `WINDOW` rollouts, the share that was; in (0, 1].

        Rollouts count by the square of the claim: to say of a failure that it is a fifth done is no mistake. One that
        was right is presumed, so that without any evidence it is 1.
        """
        last = [outcome for outcome in self.outcomes[-WINDOW:] if outcome.claim is not None]
        weights = np.square([outcome.claim for outcome in last], dtype=float)
        right = np.array([outcome.success for outcome in last], float)
        return float((1 + weights @ right) / (1 + weights.sum()))

    def clone_acts(self, rng: np.random.Generator) -> bool:
        """Whether the cloned policy alone should act next: Thompson sampling of both success rates (Beta posteriors).

        An actor that its critics misled keeps others from being tried; what the cloned policy then succeeds in teaches
        both. Every other rollout at most: critics are wrong about actions that nobody tries.
        """
        if self.outcomes and self.outcomes[-1].cloned:
            return False
        return bool(rng.beta(*self._counts(cloned=True)) > rng.beta(*self._counts(cloned=False)))

    @property
    def clone_is_better(self) -> bool:
        """Whether the cloned policy's success rate is the higher one, by the means of the same posteriors."""
        clone, own = self._counts(cloned=True), self._counts(cloned=False)
        return clone[0] / sum(clone) > own[0] / sum(own)

    def _counts(self, *, cloned: bool) -> tuple[float, float]:
        """Successes and failures of the last `CONTEST` rollouts of one of the two, and the prior's."""
        alone = [outcome for outcome in self.outcomes if not outcome.helped]
        last = [outcome.success for outcome in alone if outcome.cloned == cloned][-CONTEST:]
        successes, failures = PRIOR[cloned]
        return successes + sum(last), failures + len(last) - sum(last)
