"""Label the steps of solutions without people: by rollouts, by a judge, and by both where they agree.

    python examples/annotate.py

A solver of modular arithmetic that errs now and then stands in for a language model, the judge recomputes. With a real
model `grm.text.annotate.completer` makes the rollouts. What is labelled is in the journal: run it again, or interrupt
it, and nothing is asked twice.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grm.data.stepwise import LabelledSolution, harden, write_trl
from grm.text.annotate import Prefix, annotate, consensus, judge_labels, monte_carlo_labels
from grm.text.arithmetic import ArithmeticJudge

SOLUTIONS = [
    ("x0 = 3", "x1 = (x0 * 4) mod 7 = 5", "x2 = (x1 + 6) mod 7 = 4", "x3 = (x2 - 2) mod 7 = 2"),
    ("x0 = 3", "x1 = (x0 * 4) mod 7 = 6", "x2 = (x1 + 6) mod 7 = 5", "x3 = (x2 - 2) mod 7 = 3"),
    ("x0 = 3", "x1 = (x0 * 4) mod 7 = 5", "x2 = (x1 + 6) mod 7 = 1", "x3 = (x2 - 2) mod 7 = 6"),
    # Wrong in x2, from where a solver that errs as well arrives now and then: rollouts take the step for right.
    ("x0 = 3", "x1 = (x0 * 4) mod 7 = 5", "x2 = (x1 + 6) mod 7 = 3", "x3 = (x2 - 2) mod 7 = 1"),
]
OPERATIONS = (lambda x: x * 4, lambda x: x + 6, lambda x: x - 2)


class Solver:
    """Goes on from the last value of a prefix, right in nine steps out of ten."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.rollouts = 0

    def complete(self, prefixes: Sequence[Prefix], samples: int) -> list[list[str | None]]:
        self.rollouts += samples * len(prefixes)
        return [[self.finish(steps) for _ in range(samples)] for _, steps in prefixes]

    def finish(self, steps: tuple[str, ...]) -> str:
        value = int(steps[-1].split()[-1])
        for operation in OPERATIONS[len(steps) - 1 :]:
            value = (operation(value) + (self.rng.random() < 0.1)) % 7
        return str(value)


def main() -> None:
    solver, judge = Solver(), ArithmeticJudge()
    solutions = [
        LabelledSolution(prompt="((3 * 4) + 6) - 2 mod 7", steps=steps, labels=(None,) * len(steps), answer="2")
        for steps in SOLUTIONS
    ]
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"

        def by_rollouts() -> list[LabelledSolution]:
            found = annotate(
                solutions,
                lambda one: monte_carlo_labels(one, solver.complete, rollouts=16),
                method="monte-carlo, 16 rollouts",
                journal=journal,
            )
            return [one.solution for one in found]

        soft = by_rollouts()
        hard = [judge_labels(one, judge) for one in solutions]
        for values, decisions in zip(soft, hard, strict=True):
            print("rollouts", values.labels, " judge", decisions.labels, " first error", decisions.first_error)

        # Of rollouts a step is right if any of them arrives: 0 is the threshold.
        agreed = consensus(zip([harden(one, 0) for one in soft], hard, strict=True))
        print(f"both agree on {len(agreed.kept)} of {agreed.n_compared}")
        print(f"written for training: {write_trl(Path(folder) / 'labels.jsonl', agreed.kept)}")

        paid = solver.rollouts
        by_rollouts()
        print(f"labelled again: {solver.rollouts - paid} rollouts more than the {paid} of before")


if __name__ == "__main__":
    main()
