"""Progress as advantage under a prover (PAV; Setlur et al. 2024, "Rewarding Progress", arXiv 2410.08146).

How good is a step? Not how likely the solution is to succeed after it, which mostly tells how good the steps before
were, but by how much it *changed* the chance of another policy, the prover, to finish: A^μ = Q^μ after − Q^μ before.
The robot's labels are the same idea: Φ from an expert's time-to-go is the prover's value of a state, and a hop or a
shaping reward is its change (`grm.labels.from_time_to_go`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import override

import numpy as np

from ..errors import TraceError
from ..reward import Judgement, ProcessReward, ScoredJudgement, ScoreKind, Task

type Rollouts[S] = Callable[[Task, Sequence[S], int, np.random.Generator], int]
"""Completes (task, prefix) some times, drawing from the generator; returns how many succeeded."""


@dataclass(frozen=True, slots=True)
class Prefix[S]:
    """A task and the steps so far; the carry of `MonteCarloValue`."""

    task: Task
    steps: tuple[S, ...] = ()


class MonteCarloValue[S](ProcessReward[S, Prefix[S]]):
    """Φ = Q̂(prefix), the share of a policy's completions that succeed; spread is the standard error of that share.

    With `best_of` K the policy is the best of K of the same: Q = 1 - (1 - Q₁)^K, estimated by letting K rollouts count
    as one that succeeds if any of them does. The rollouts of a prefix depend on `seed` and on the prefix alone.
    """

    def __init__(self, rollouts: Rollouts[S], *, samples: int = 20, best_of: int = 1, seed: int = 0) -> None:
        """`samples` completions per prefix, of `best_of` rollouts each. Raises `TraceError` below one of either."""
        if samples < 1 or best_of < 1:
            raise TraceError(f"samples is {samples} and best_of {best_of}; expected at least 1 of each")
        self._rollouts, self._samples, self._best_of, self._seed = rollouts, samples, best_of, seed
        self.calls = 0
        """Rollouts so far."""

    @override
    def start(self, task: Task) -> Prefix[S]:
        """The empty prefix."""
        return Prefix(task)

    def value(self, prefix: Prefix[S]) -> float:
        """Q̂ of any prefix in [0, 1], the empty one too."""
        key = hashlib.sha256(repr((self._seed, prefix.task.instruction, prefix.steps)).encode()).digest()
        generator = np.random.default_rng(list(key[:16]))
        self.calls += self._samples * self._best_of
        if self._best_of == 1:
            return self._rollouts(prefix.task, prefix.steps, self._samples, generator) / self._samples
        won = [self._rollouts(prefix.task, prefix.steps, self._best_of, generator) > 0 for _ in range(self._samples)]
        return float(np.mean(won))

    @override
    def extend(
        self, carries: Sequence[Prefix[S]], steps: Sequence[Sequence[S]]
    ) -> tuple[list[Prefix[S]], list[Judgement]]:
        """Judgements are `ScoredJudgement`s of kind value."""
        after: list[Prefix[S]] = []
        judgements: list[Judgement] = []
        for carry, new in zip(carries, steps, strict=True):
            values = np.zeros(len(new))
            for t, step in enumerate(new):
                carry = Prefix(carry.task, (*carry.steps, step))
                values[t] = self.value(carry)
            after.append(carry)
            judgements.append(
                ScoredJudgement(
                    potential=values,
                    spread=np.sqrt(values * (1 - values) / self._samples),
                    judged=np.ones(len(new), bool),
                    score=values,
                    kind=ScoreKind.VALUE,
                )
            )
        return after, judgements


@dataclass(frozen=True, slots=True)
class Standing[A]:
    """What `ProverAdvantage` remembers: the base's carry, and the prover's prefix with its value."""

    base: A
    prover: Prefix
    value: float


class ProverAdvantage[S, A](ProcessReward[S, Standing[A]]):
    """Φ = Q^π of the base policy; the raw score is the step's advantage A^μ under the prover, in [-1, 1].

    `effective` is what PAV searches and learns by: Q^π + α A^μ. A prover as good as the base adds nothing; one that
    always or never succeeds tells no step from another, so the best one is in between (their theorem 3.1).
    """

    def __init__(self, base: ProcessReward[S, A], prover: MonteCarloValue[S], *, alpha: float = 0.5) -> None:
        """`base` judges Q^π; `alpha` weighs the advantage, .2 to .6 in the paper's searches."""
        self._base, self._prover, self.alpha = base, prover, alpha

    @override
    def start(self, task: Task) -> Standing[A]:
        """Asks the prover for the value of the empty prefix, which the first step's advantage is measured from."""
        prefix = self._prover.start(task)
        return Standing(self._base.start(task), prefix, self._prover.value(prefix))

    @override
    def extend(
        self, carries: Sequence[Standing[A]], steps: Sequence[Sequence[S]]
    ) -> tuple[list[Standing[A]], list[Judgement]]:
        """Judgements are `ScoredJudgement`s of kind advantage; abstains where the base does."""
        bases, values = self._base.extend([carry.base for carry in carries], steps)
        provers, judged = self._prover.extend([carry.prover for carry in carries], steps)
        after: list[Standing[A]] = []
        judgements: list[Judgement] = []
        for carry, base, prover, value, of_prover in zip(carries, bases, provers, values, judged, strict=True):
            reached = [carry.value, *of_prover.potential]
            after.append(Standing(base, prover, float(reached[-1])))
            judgements.append(
                ScoredJudgement(
                    potential=value.potential,
                    spread=value.spread,
                    judged=value.judged,
                    score=np.where(value.judged, np.diff(reached), np.nan),
                    kind=ScoreKind.ADVANTAGE,
                )
            )
        return after, judgements

    def effective(self, judgement: ScoredJudgement) -> np.ndarray:
        """Q^π + α A^μ after each step (T,); NaN where it abstained. At the end of a solution use Q^π alone."""
        return judgement.potential + self.alpha * judgement.score
