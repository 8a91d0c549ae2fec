"""Chains of modular arithmetic that know their own truth: search and text process rewards tested without an LLM.

    x0 = 3
    x1 = 5
    x2 = (x1 * x0) mod 7 = 1
    x3 = (x2 + x1) mod 7 = 6

A chain is right, or goes wrong at a chosen step and carries the wrong value on correctly, which is how most wrong
solutions look. `grm.text.arithmetic.ArithmeticJudge` reads the same language.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from grm.errors import TraceError
from grm.reward import Task, Thought


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """A chain of thought and the truth about it."""

    task: Task
    steps: tuple[Thought, ...]
    first_error: int | None
    """Index of the first wrong step; None if every step is right."""
    claimed: int
    """The result the chain arrives at."""
    correct: int
    """The right result. A wrong chain may arrive at it by luck: times zero forgives everything."""

    @property
    def potential(self) -> Float[np.ndarray, " T"]:
        """P(no error so far) after each step: 1 before the first error, 0 from it on."""
        errs_at = len(self.steps) if self.first_error is None else self.first_error
        return (np.arange(len(self.steps)) < errs_at).astype(np.float64)


def make_chain(
    rng: np.random.Generator, *, length: int = 8, given: int = 2, modulus: int = 7, first_error: int | None = None
) -> Chain:
    """Draw a chain of `length` steps: `given` values, then operations on the result before and one drawn earlier value.

    Each operation is `+`, `-` or `*` modulo `modulus`; its parents are the steps that established its two operands.
    At `first_error` the result is another residue, drawn from the wrong ones; up to there a generator of the same seed
    draws the same chain with or without it, and the same operations throughout. Raises `TraceError` if that is not an
    operation, or the lengths leave none.
    """
    if modulus < 2 or given < 1 or length <= given:
        raise TraceError(
            f"length {length}, given {given}, modulus {modulus}; expected modulus >= 2, given >= 1 and at least one "
            f"operation after the given values"
        )
    if first_error is not None and not given <= first_error < length:
        raise TraceError(
            f"first_error is {first_error}; expected an operation, {given} to {length - 1} (given values are right)"
        )
    claims = [int(value) for value in rng.integers(modulus, size=given)]
    truth = list(claims)
    steps = [Thought(text=f"x{i} = {value}", parents=()) for i, value in enumerate(claims)]
    operations = []
    for i in range(given, length):
        left, right = i - 1, int(rng.integers(i))
        operator = "+-*"[rng.integers(3)]
        claim = _apply(operator, claims[left], claims[right]) % modulus
        off_by = int(rng.integers(1, modulus))  # drawn in any case: one seed asks one question, right or wrong
        if i == first_error:
            claim = (claim + off_by) % modulus
        claims.append(claim)
        truth.append(_apply(operator, truth[left], truth[right]) % modulus)
        expression = f"x{i} = (x{left} {operator} x{right}) mod {modulus}"
        operations.append(expression)
        steps.append(Thought(text=f"{expression} = {claim}", parents=tuple(sorted({left, right}))))
    values = ", ".join(step.text for step in steps[:given])
    return Chain(
        task=Task(instruction=f"Given {values}, compute {', '.join(operations)}."),
        steps=tuple(steps),
        first_error=first_error,
        claimed=claims[-1],
        correct=truth[-1],
    )


def _apply(operator: str, left: int, right: int) -> int:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case _:
            return left * right
