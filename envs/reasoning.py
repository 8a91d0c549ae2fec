"""Small worlds of reasoning that know their own truth: search and text process rewards tested without an LLM.

`make_chain` draws chains of named modular arithmetic in the language that `grm.text.arithmetic.ArithmeticJudge` reads:

    x0 = 3
    x1 = 5
    x2 = (x1 * x0) mod 7 = 1
    x3 = (x2 + x1) mod 7 = 6

A chain is right, or goes wrong at a chosen step and carries the wrong value on correctly, which is how most wrong
solutions look.

The five `World`s (`Arithmetic`, `Linear`, `Hops`, `TwoSided`, `Planted`) speak in words and single numbers, which a
tiny language model learns in minutes, and label any solution of their problems exactly, step by step. Two labels are
told apart: whether a step is right given what the ones before claim (local), and whether all of them are (prefix).
"""

import abc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, override

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


class Mistake(StrEnum):
    """What kind of wrong a wrong step is; which kinds a world knows is said there."""

    SLIP = "slip"
    """The right thing done with a wrong result."""
    COPY = "copy"
    """Done to something that is not what the step before left."""
    OPERATION = "operation"
    """Another thing done than what was to be done."""
    SKIP = "skip"
    """Something that had to be done is left out."""
    REPORT = "report"
    """An answer other than the one arrived at, or before there is one."""


FILLERS = ("so far so good", "let us go on", "now the next one")
"""Steps that say nothing: right in every world, and no progress."""

CORRECTION = "wait"
"""Opens a step that takes the step before back and does it anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem[F]:
    """A question, its reference solution and the one right answer."""

    domain: str
    question: str
    facts: F
    """What the world knows, the part that the question keeps to itself included."""
    reference: tuple[str, ...]
    """The canonical solution: right in every step, ends in the answer."""
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSolution:
    """A solution of T steps and the truth about it. Raises `TraceError` if the fields contradict one another."""

    question: str
    steps: tuple[str, ...]
    local: tuple[bool, ...]
    """Whether each step is right, given what the ones before claim."""
    prefix: tuple[bool, ...]
    """Whether each step and all before it are; once False, it stays so, also when the error is corrected."""
    first_error: int
    """Index of the first wrong step, from 0; -1 for none."""
    answer: str | None
    """The answer it ends in; None if it ends without."""
    answer_right: bool
    """Can be so in spite of an error: by a correction, by a second error that undoes the first, by luck."""
    domain: str

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.local) == len(self.prefix):
            raise TraceError(
                f"{len(self.steps)} steps, {len(self.local)} local and {len(self.prefix)} prefix labels; expected one "
                f"of each per step"
            )
        if self.first_error != _first_error(self.local) or self.prefix != _prefix(self.local):
            raise TraceError(
                f"first error {self.first_error} and prefix labels {self.prefix} for local labels {self.local}; "
                f"expected {_first_error(self.local)} and {_prefix(self.local)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a solver writes. All rates are chances per step, in [0, 1]; the default makes no mistake and no detour.

    Raises `TraceError` for a rate that is none.
    """

    error_rate: float = 0.0
    """Of a wrong step, as long as there is none."""
    later_error_rate: float = 0.0
    """Of a wrong step after the first. 0: errors stay local, what follows carries them on correctly. 1: all is lost."""
    mistakes: tuple[Mistake, ...] = tuple(Mistake)
    """The kinds that happen, drawn evenly among those possible at that step."""
    correction_rate: float = 0.0
    """Of taking a wrong step back at once ("wait ..."); the steps themselves stay as they are labelled."""
    luck_rate: float = 0.0
    """Of a second wrong step that leads back to the right answer, where there is one."""
    filler_rate: float = 0.0
    """Of a step that says nothing before the next."""
    detour_rate: float = 0.0
    """Of another right step than the canonical one, where there is one."""

    def __post_init__(self) -> None:
        for name in ("error_rate", "later_error_rate", "correction_rate", "luck_rate", "filler_rate", "detour_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise TraceError(f"{name} is {getattr(self, name)}; expected a chance in [0, 1]")
        if not self.mistakes:
            raise TraceError("no kind of mistake is allowed; expected at least one (for no errors: error_rate 0)")


FAULTLESS = Habits()


class World[F, S](abc.ABC):
    """A family of problems with an exact step checker. A state S is what the steps so far claim; it is hashable.

    Words and numbers are separated by single spaces, so that a number is one token of a word-level tokenizer.
    """

    domain: str

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[F]:
        """A problem whose reference takes `length` steps before the answer. Raises `TraceError` if none does."""

    @abc.abstractmethod
    def _start(self, problem: Problem[F]) -> S: ...

    @abc.abstractmethod
    def _read(self, problem: Problem[F], state: S, step: str) -> tuple[bool, S]:
        """Whether the step follows from the state, and the state if one believes it; unreadable steps are wrong."""

    @abc.abstractmethod
    def _right(self, problem: Problem[F], state: S) -> tuple[str, ...]:
        """Steps that follow from the state, the canonical one first; none when the solution is complete."""

    @abc.abstractmethod
    def _wrong(self, problem: Problem[F], state: S) -> Iterator[tuple[Mistake, str]]:
        """Steps a solver might mistake for right; those that happen to be right are not taken."""

    def answer(self, problem: Problem[F], steps: Sequence[str]) -> str | None:
        """The answer that a solution ends in; None if it does not."""
        last = steps[-1].split() if steps else []
        last = last[1:] if last[:1] == [CORRECTION] else last
        return last[1] if len(last) == 2 and last[0] == "answer" else None

    def check(self, problem: Problem[F], prefix: Sequence[str], step: str) -> bool:
        """Whether `step` is right, given what the `prefix` claims (not whether the prefix is right)."""
        valid, _ = self._follow(problem, self._walk(problem, prefix)[1], step)
        return valid

    def label(self, problem: Problem[F], steps: Sequence[str]) -> LabelledSolution:
        """Gold labels of any solution of the problem, wherever it comes from."""
        local, _ = self._walk(problem, steps)
        answer = self.answer(problem, steps)
        return LabelledSolution(
            question=problem.question,
            steps=tuple(steps),
            local=local,
            prefix=_prefix(local),
            first_error=_first_error(local),
            answer=answer,
            answer_right=answer == problem.answer,
            domain=problem.domain,
        )

    def complete(self, problem: Problem[F], prefix: Sequence[str]) -> bool:
        """Whether there is nothing left to do after the prefix."""
        return not self._right(problem, self._walk(problem, prefix)[1][-1])

    def routes(self, problem: Problem[F], *, limit: int = 8) -> tuple[tuple[str, ...], ...]:
        """Up to `limit` complete right solutions, depth first, the reference first."""
        found: list[tuple[str, ...]] = []
        open_ends: list[tuple[tuple[str, ...], S]] = [((), self._start(problem))]
        while open_ends and len(found) < limit:
            steps, state = open_ends.pop()
            options = self._right(problem, state)
            if not options:
                found.append(steps)
            open_ends += [((*steps, o), self._read(problem, state, o)[1]) for o in reversed(options)]
        return tuple(found)

    def solve(
        self,
        problem: Problem[F],
        rng: np.random.Generator,
        habits: Habits = FAULTLESS,
        *,
        prefix: Sequence[str] = (),
        first_error: int | None = None,
    ) -> LabelledSolution:
        """Continue the prefix (a rollout) to the end, with the given habits.

        `first_error` forces the first wrong step to be there, whatever the `error_rate`. Raises `TraceError` if it lies
        in the prefix or beyond the end, or if no allowed mistake is possible there.
        """
        steps = list(prefix)
        local, states = self._walk(problem, steps)
        if first_error is not None and (first_error < len(steps) or not all(local)):
            raise TraceError(
                f"first_error is {first_error}; expected at least {len(steps)}, after a prefix without errors"
            )
        erred, just_erred = not all(local), bool(local) and not local[-1]
        longest = len(steps) + 2 * len(problem.reference) + 8  # who only errs may wander for ever: gives up, unanswered
        while (options := self._right(problem, states[-1])) and len(steps) < longest:
            chance = rng.random(5)  # all drawn each time: one habit more does not change what the others do
            pick = int(rng.integers(2**31))
            step = None
            if erred:
                before = states[-2:-1]
                if just_erred and before and chance[0] < habits.correction_rate:
                    again = self._right(problem, before[0])
                    step = f"{CORRECTION} {again[0]}" if again else None
                elif chance[1] < habits.luck_rate:
                    step = self._undoing(problem, steps, states, habits, pick)
                if step is None and chance[2] < habits.later_error_rate:
                    step = self._mistake(problem, states[-1], habits, pick)
            elif first_error == len(steps) or (first_error is None and chance[2] < habits.error_rate):
                step = self._mistake(problem, states[-1], habits, pick)
                if step is None and first_error is not None:
                    raise TraceError(
                        f"no mistake of the kinds {', '.join(habits.mistakes)} is possible at step {first_error} of "
                        f"{problem.question!r}; expected another first_error, or more kinds"
                    )
            if step is None and chance[3] < habits.filler_rate:
                step = FILLERS[pick % len(FILLERS)]
            if step is None:
                detours = options[1:] if chance[4] < habits.detour_rate else ()
                step = detours[pick % len(detours)] if detours else options[0]
            valid, states = self._follow(problem, states, step)
            steps.append(step)
            just_erred = not valid
            erred |= just_erred
        if first_error is not None and not erred:
            raise TraceError(
                f"first_error is {first_error}; expected one of the {len(steps)} steps, 0 to {len(steps) - 1}"
            )
        return self.label(problem, steps)

    def _walk(self, problem: Problem[F], steps: Sequence[str]) -> tuple[tuple[bool, ...], tuple[S, ...]]:
        """Whether each step is right, and the states that were not taken back, the first one included."""
        states: tuple[S, ...] = (self._start(problem),)
        local: list[bool] = []
        for step in steps:
            valid, states = self._follow(problem, states, step)
            local.append(valid)
        return tuple(local), states

    def _follow(self, problem: Problem[F], states: tuple[S, ...], step: str) -> tuple[bool, tuple[S, ...]]:
        if step in FILLERS:
            return True, states
        if step.startswith(CORRECTION + " "):
            if len(states) < 2:
                return False, states
            states, step = states[:-1], step.removeprefix(CORRECTION + " ")
        valid, state = self._read(problem, states[-1], step)
        return valid, (*states, state)

    def _mistakes(self, problem: Problem[F], state: S, habits: Habits) -> list[tuple[Mistake, str]]:
        return [
            (kind, step)
            for kind, step in dict.fromkeys(self._wrong(problem, state))
            if kind in habits.mistakes and not self._read(problem, state, step)[0]
        ]

    def _mistake(self, problem: Problem[F], state: S, habits: Habits, pick: int) -> str | None:
        possible = self._mistakes(problem, state, habits)
        if not possible:
            return None
        kinds = sorted({kind for kind, _ in possible})
        of_kind = [step for kind, step in possible if kind is kinds[pick % len(kinds)]]
        return of_kind[pick // len(kinds) % len(of_kind)]

    def _undoing(
        self, problem: Problem[F], steps: Sequence[str], states: tuple[S, ...], habits: Habits, pick: int
    ) -> str | None:
        """A wrong step from which the answer comes out right after all; None if it does so anyway, or never."""
        if self._ends_right(problem, steps, states[-1]):
            return None
        lucky = [
            step
            for _, step in self._mistakes(problem, states[-1], habits)
            if self._ends_right(problem, (*steps, step), self._read(problem, states[-1], step)[1])
        ]
        return lucky[pick % len(lucky)] if lucky else None

    def _ends_right(self, problem: Problem[F], steps: Sequence[str], state: S) -> bool:
        """Whether the answer is right if everything from here on is."""
        rest: list[str] = []
        while options := self._right(problem, state):
            rest.append(options[0])
            state = self._read(problem, state, options[0])[1]
        return self.answer(problem, (*steps, *rest)) == problem.answer

    def _problem(self, question: str, facts: F) -> Problem[F]:
        """The problem with its reference and answer, found by following the canonical steps."""
        problem = Problem(domain=self.domain, question=question, facts=facts, reference=(), answer="")
        [reference] = self.routes(problem, limit=1)
        answer = self.answer(problem, reference)
        assert answer is not None, "a canonical solution ends in its answer"
        return replace(problem, reference=reference, answer=answer)


def make_solutions(
    worlds: Sequence[World[Any, Any]],
    rng: np.random.Generator,
    count: int,
    *,
    lengths: tuple[int, int] = (4, 8),
    habits: Habits = FAULTLESS,
    erroneous: float = 0.5,
) -> list[LabelledSolution]:
    """`count` labelled solutions of fresh problems, the worlds in turn (name one twice for twice the share).

    Lengths of the references are drawn evenly from both bounds and between. A share `erroneous` has its first error at
    a step drawn evenly; the others have one at the `error_rate` of the habits. Raises `TraceError` if that cannot be.
    """
    if not worlds or not 1 <= lengths[0] <= lengths[1] or not 0 <= erroneous <= 1:
        raise TraceError(
            f"{len(worlds)} worlds, lengths {lengths}, erroneous {erroneous}; expected at least one world, ordered "
            f"lengths from 1 and a share in [0, 1]"
        )
    solutions = []
    for i in range(count):
        world = worlds[i % len(worlds)]
        problem = world.draw(rng, length=int(rng.integers(lengths[0], lengths[1] + 1)))
        if rng.random() < erroneous:
            solutions.append(_erroneous(world, problem, rng, habits))
        else:
            solutions.append(world.solve(problem, rng, habits))
    return solutions


def _erroneous[F, S](
    world: World[F, S], problem: Problem[F], rng: np.random.Generator, habits: Habits
) -> LabelledSolution:
    """The first error is at the first step, of a random order of all, where a mistake is possible."""
    for detour_rate in (habits.detour_rate, 1.0):  # in some worlds a mistake takes detours before
        faultless = world.solve(problem, rng, replace(habits, error_rate=0.0, detour_rate=detour_rate))
        for first_error in rng.permutation(len(faultless.steps)):
            prefix = faultless.steps[:first_error]
            if world._mistakes(problem, world._walk(problem, prefix)[1][-1], habits):
                return world.solve(problem, rng, habits, prefix=prefix, first_error=int(first_error))
    raise TraceError(
        f"no mistake of the kinds {', '.join(habits.mistakes)} is possible in {problem.question!r}; expected more kinds"
    )


def _first_error(local: Sequence[bool]) -> int:
    return next((i for i, valid in enumerate(local) if not valid), -1)


def _prefix(local: Sequence[bool]) -> tuple[bool, ...]:
    return tuple(accumulate(local, lambda so_far, valid: so_far and valid))


type Operations = tuple[tuple[str, int], ...]
"""Applied from left to right, whatever they are: + k, - k or * k."""


@dataclass(frozen=True, slots=True)
class Reckoning:
    """State of `Arithmetic`: the value so far, what is left to do, whether the answer was given."""

    value: int
    left: Operations
    answered: bool = False


class Arithmetic(World[tuple[int, Operations], Reckoning]):
    """Chains of modular arithmetic, from left to right: `mod 7 : 3 + 4 * 2` · `3 + 4 = 0` · `0 * 2 = 0` · `answer 0`.

    Detours: two operations in one step (`3 + 4 * 2 = 0`), and neighbours that commute the other way round. Mistakes:
    slip (result), copy (value of the step before), operation (operator or operand), skip (an operation), report.
    """

    domain = "arithmetic"

    def __init__(self, modulus: int = 11) -> None:
        if not 2 <= modulus <= 97:
            raise TraceError(f"modulus {modulus}; expected 2 to 97")
        self.modulus = modulus

    @override
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[tuple[int, Operations]]:
        _check_length(length)
        first = int(rng.integers(self.modulus))
        operations = _operations(rng, length, self.modulus, units=False)
        question = f"mod {self.modulus} : {first} {_spell(operations)}"
        return self._problem(question, (first, operations))

    @override
    def _start(self, problem: Problem[tuple[int, Operations]]) -> Reckoning:
        return Reckoning(*problem.facts)

    @override
    def _read(self, problem: Problem[tuple[int, Operations]], state: Reckoning, step: str) -> tuple[bool, Reckoning]:
        if (claimed := _answer_in(step)) is not None:
            valid = not state.left and not state.answered and claimed == state.value
            return valid, Reckoning(claimed, (), answered=True)
        match = _REWRITE.fullmatch(step)
        if match is None:
            return False, state
        start, result = int(match["start"]), int(match["result"])
        done = tuple((operator, int(operand)) for operator, operand in _OPERATION.findall(match["operations"]))
        left, in_order = list(state.left), True
        for operation in done:
            at = next((i for i in range(len(left)) if left[i] == operation and _commutes(left[: i + 1])), None)
            if at is None:  # not to be done now: believe that it stands for what was next, or for what it skips
                in_order = False
                at = next((i for i in range(min(2, len(left))) if left[i] == operation), None)
                left = left[1:] if at is None else left[at + 1 :]
            else:
                del left[at]
        value = start
        for operator, operand in done:
            value = _apply(operator, value, operand) % self.modulus
        valid = in_order and not state.answered and start == state.value and result == value
        return valid, Reckoning(result, tuple(left), state.answered)

    @override
    def _right(self, problem: Problem[tuple[int, Operations]], state: Reckoning) -> tuple[str, ...]:
        if state.answered:
            return ()
        if not state.left:
            return (f"answer {state.value}",)
        options = [state.left[:1]]
        if len(state.left) > 1:
            options.append(state.left[:2])
            if _commutes(state.left[:2]) and state.left[0] != state.left[1]:
                options.append(state.left[1:2])
        return tuple(self._step(state.value, operations) for operations in options)

    @override
    def _wrong(self, problem: Problem[tuple[int, Operations]], state: Reckoning) -> Iterator[tuple[Mistake, str]]:
        if not state.left:
            for other in range(self.modulus):
                yield Mistake.REPORT, f"answer {other}"
            return
        operator, operand = state.left[0]
        value = _apply(operator, state.value, operand) % self.modulus
        for other in range(self.modulus):
            if other != value:
                yield Mistake.SLIP, f"{state.value} {operator} {operand} = {other}"
            if other != state.value:
                yield Mistake.COPY, self._step(other, state.left[:1])
            if other != operand:
                yield Mistake.OPERATION, self._step(state.value, ((operator, other),))
        for other in "+-*":
            yield Mistake.OPERATION, self._step(state.value, ((other, operand),))
        if len(state.left) > 1:
            yield Mistake.SKIP, self._step(state.value, state.left[1:2])

    def _step(self, value: int, operations: Operations) -> str:
        result = value
        for operator, operand in operations:
            result = _apply(operator, result, operand) % self.modulus
        return f"{value} {_spell(operations)} = {result}"


@dataclass(frozen=True, slots=True)
class Equation:
    """State of `Linear`: operations done to x, what they come to, whether x was reported."""

    done: Operations
    result: int
    answered: bool = False


class Linear(World[Equation, Equation]):
    """Equations solved by rewriting, mod a prime, from left to right: `mod 7 : x * 3 + 1 = 5` · `x * 3 = 4` · `x = 6`.

    A step is right if it is an equation with the same solution as the one before. Detours: two operations undone at
    once, and `+ b * a` distributed to `* a + (a b)`. Mistakes: slip (right-hand side), operation (done again instead of
    undone), skip (an operation dropped from the left only), copy (another one of them dropped), report.
    """

    domain = "linear"

    def __init__(self, modulus: int = 11) -> None:
        if not 3 <= modulus <= 97 or any(modulus % i == 0 for i in range(2, modulus)):
            raise TraceError(
                f"modulus {modulus}; expected a prime from 3 to 97: modulo others, equations lose solutions"
            )
        self.modulus = modulus

    @override
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[Equation]:
        _check_length(length)
        operations = _operations(rng, length, self.modulus, units=True)
        facts = Equation(operations, int(rng.integers(self.modulus)))
        return self._problem(f"mod {self.modulus} : {_equation(operations, facts.result)}", facts)

    @override
    def _start(self, problem: Problem[Equation]) -> Equation:
        return problem.facts

    @override
    def _read(self, problem: Problem[Equation], state: Equation, step: str) -> tuple[bool, Equation]:
        if (claimed := _answer_in(step)) is not None:
            valid = not state.done and not state.answered and claimed == state.result
            return valid, Equation((), claimed, answered=True)
        match = _EQUATION.fullmatch(step)
        if match is None:
            return False, state
        operations = tuple((operator, int(operand)) for operator, operand in _OPERATION.findall(match["operations"]))
        after = Equation(operations, int(match["result"]), state.answered)
        solution = self._solution(after)
        return not state.answered and solution is not None and solution == self._solution(state), after

    def _solution(self, equation: Equation) -> int | None:
        """The x it allows; None if it is every x or none."""
        x = equation.result
        for operator, operand in reversed(equation.done):
            undone = self._undo(operator, operand, x)
            if undone is None:
                return None
            x = undone
        return x % self.modulus

    def _undo(self, operator: str, operand: int, value: int) -> int | None:
        if operator != "*":
            return _apply("-" if operator == "+" else "+", value, operand) % self.modulus
        if operand % self.modulus == 0:
            return None
        return value * pow(operand, -1, self.modulus) % self.modulus

    @override
    def _right(self, problem: Problem[Equation], state: Equation) -> tuple[str, ...]:
        if state.answered:
            return ()
        if not state.done:
            return (f"answer {state.result}",)
        result = self._undo(*state.done[-1], state.result)
        if result is None:
            return (f"answer {state.result}",)  # only after a mistake that lost x: give up
        options = [_equation(state.done[:-1], result)]
        if len(state.done) > 1:
            twice = self._undo(*state.done[-2], result)
            if twice is not None:
                options.append(_equation(state.done[:-2], twice))
            (inner, b), (outer, a) = state.done[-2:]
            if inner != "*" and outer == "*":
                distributed = (*state.done[:-2], (outer, a), (inner, a * b % self.modulus))
                options.append(_equation(distributed, state.result))
        return tuple(options)

    @override
    def _wrong(self, problem: Problem[Equation], state: Equation) -> Iterator[tuple[Mistake, str]]:
        if not state.done:
            for other in range(self.modulus):
                yield Mistake.REPORT, f"answer {other}"
            return
        operator, operand = state.done[-1]
        for other in range(self.modulus):
            yield Mistake.SLIP, _equation(state.done[:-1], other)
        yield Mistake.OPERATION, _equation(state.done[:-1], _apply(operator, state.result, operand) % self.modulus)
        yield Mistake.SKIP, _equation(state.done[:-1], state.result)
        undone = self._undo(operator, operand, state.result)
        if len(state.done) > 1 and undone is not None:
            yield Mistake.COPY, _equation((*state.done[:-2], state.done[-1]), undone)


@dataclass(frozen=True, slots=True)
class Map:
    """Facts of `Hops`: undirected streets between places, start and goal."""

    streets: frozenset[tuple[int, int]]
    start: int
    goal: int


@dataclass(frozen=True, slots=True)
class Walk:
    """State of `Hops`: where one is, and after how many hops."""

    place: int
    hops: int = 0
    answered: bool = False


class Hops(World[Map, Walk]):
    """Shortest paths, hop by hop: `hops from p0 to p3 : p0 p1 , p1 p3 , p0 p2` · `p0 to p1` · `p1 to p3` · `answer 2`.

    A hop is right if there is such a street from where one is and it leads nearer to the goal. Detours: other shortest
    paths. Mistakes: slip (no such street), operation (a street that leads no nearer), copy (from elsewhere), report.
    """

    domain = "hops"

    def __init__(self, width: int = 2) -> None:
        if not 1 <= width <= 4:
            raise TraceError(f"width {width}; expected 1 to 4 places at each distance")
        self.width = width

    @override
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[Map]:
        _check_length(length)
        sizes = [1, *(int(n) for n in rng.integers(1, self.width + 1, size=length - 1)), 1]
        names = iter(rng.permutation(sum(sizes)).tolist())
        layers = [[next(names) for _ in range(size)] for size in sizes]
        streets: set[tuple[int, int]] = set()
        for near, far in pairwise(layers):
            streets |= {_street(near[int(rng.integers(len(near)))], place) for place in far}
            streets |= {_street(place, far[int(rng.integers(len(far)))]) for place in near}
        facts = Map(frozenset(streets), layers[0][0], layers[-1][0])
        listed = rng.permutation(np.array(sorted(streets))).tolist()
        text = " , ".join(f"p{a} p{b}" for a, b in listed)
        return self._problem(f"hops from p{facts.start} to p{facts.goal} : {text}", facts)

    @override
    def _start(self, problem: Problem[Map]) -> Walk:
        return Walk(problem.facts.start)

    @override
    def _read(self, problem: Problem[Map], state: Walk, step: str) -> tuple[bool, Walk]:
        goal = problem.facts.goal
        if (claimed := _answer_in(step)) is not None:
            valid = state.place == goal and not state.answered and claimed == state.hops
            return valid, Walk(goal, claimed, answered=True)
        match = re.fullmatch(r"p([0-9]{1,4}) to p([0-9]{1,4})", step)
        if match is None:
            return False, state
        here, there = int(match[1]), int(match[2])
        nearer = _distances(problem.facts)
        valid = (
            not state.answered
            and here == state.place
            and _street(here, there) in problem.facts.streets
            and nearer[there] < nearer[here]
        )
        return valid, Walk(there if there in nearer else state.place, state.hops + 1, state.answered)

    @override
    def _right(self, problem: Problem[Map], state: Walk) -> tuple[str, ...]:
        if state.answered:
            return ()
        if state.place == problem.facts.goal:
            return (f"answer {state.hops}",)
        far = _distances(problem.facts)
        nearer = sorted(
            p for p in far if far[p] < far[state.place] and _street(p, state.place) in problem.facts.streets
        )
        return tuple(f"p{state.place} to p{place}" for place in nearer)

    @override
    def _wrong(self, problem: Problem[Map], state: Walk) -> Iterator[tuple[Mistake, str]]:
        far = _distances(problem.facts)
        if state.place == problem.facts.goal:
            for other in range(len(far)):
                yield Mistake.REPORT, f"answer {other}"
            return
        for other in sorted(far):
            if other != state.place:
                exists = _street(state.place, other) in problem.facts.streets
                yield Mistake.OPERATION if exists else Mistake.SLIP, f"p{state.place} to p{other}"
        for here, there in sorted(problem.facts.streets):
            for a, b in ((here, there), (there, here)):
                if a != state.place:
                    yield Mistake.COPY, f"p{a} to p{b}"


@dataclass(frozen=True, slots=True)
class Story:
    """Facts of `TwoSided`: the true value of each variable, and the events in order (verb, variable)."""

    values: tuple[int, ...]
    events: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """State of `TwoSided`: events told, the sum of what was derived and claimed, whether it was reported."""

    events: int = 0
    total: int = 0
    answered: bool = False


class TwoSided(World[Story, Told]):
    """Evidence before and after (BiPRM, arXiv 2508.01682): `given a 3` · `derived a 3` · `claim b 5` · `check b 5`.

    `given` and `check` tell the truth; a wrong `derived` shows from the steps before it, a wrong `claim` only from the
    `check` after it, which the question does not tell: a judge that reads from left to right cannot know. Gold labels
    are against the truth. The answer is the sum of what was derived and claimed. Mistakes: slip, report. No detours.
    """

    domain = "two-sided"

    def __init__(self, modulus: int = 10, *, claims: float = 0.5) -> None:
        if not 2 <= modulus <= 97 or not 0 <= claims <= 1:
            raise TraceError(f"modulus {modulus}, claims {claims}; expected 2 to 97, and a share in [0, 1]")
        self.modulus, self.claims = modulus, claims

    @override
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[Story]:
        """Each variable takes two steps, so the length is even, and at most twice the alphabet."""
        if length % 2 or not 2 <= length <= 2 * len(_LETTERS):
            raise TraceError(f"length {length}; expected an even number of events, 2 to {2 * len(_LETTERS)}")
        count = length // 2
        values = tuple(int(v) for v in rng.integers(self.modulus, size=count))
        kinds = [("claim", "check") if rng.random() < self.claims else ("given", "derived") for _ in range(count)]
        order, seen, events = rng.permutation(np.repeat(np.arange(count), 2)).tolist(), set[int](), []
        for variable in order:
            events.append((kinds[variable][variable in seen], variable))
            seen.add(variable)
        question = f"mod {self.modulus} : sum of {' '.join(_LETTERS[i] for i in range(count))}"
        return self._problem(question, Story(values, tuple(events)))

    @override
    def _start(self, problem: Problem[Story]) -> Told:
        return Told()

    @override
    def _read(self, problem: Problem[Story], state: Told, step: str) -> tuple[bool, Told]:
        facts = problem.facts
        if (claimed := _answer_in(step)) is not None:
            valid = state.events == len(facts.events) and not state.answered and claimed == state.total
            return valid, Told(len(facts.events), claimed, answered=True)
        match = re.fullmatch(r"(given|derived|claim|check) ([a-z]) ([0-9]{1,4})", step)
        if match is None or state.events == len(facts.events):
            return False, state
        verb, variable = facts.events[state.events]
        value = int(match[3])
        valid = (match[1], match[2]) == (verb, _LETTERS[variable]) and value == facts.values[variable]
        counts = match[1] in ("derived", "claim")
        return valid, Told(state.events + 1, (state.total + counts * value) % self.modulus)

    @override
    def _right(self, problem: Problem[Story], state: Told) -> tuple[str, ...]:
        if state.answered:
            return ()
        if state.events == len(problem.facts.events):
            return (f"answer {state.total}",)
        verb, variable = problem.facts.events[state.events]
        return (f"{verb} {_LETTERS[variable]} {problem.facts.values[variable]}",)

    @override
    def _wrong(self, problem: Problem[Story], state: Told) -> Iterator[tuple[Mistake, str]]:
        if state.events == len(problem.facts.events):
            for other in range(self.modulus):
                yield Mistake.REPORT, f"answer {other}"
            return
        verb, variable = problem.facts.events[state.events]
        if verb in ("derived", "claim"):
            for other in range(self.modulus):
                yield Mistake.SLIP, f"{verb} {_LETTERS[variable]} {other}"


@dataclass(frozen=True, slots=True)
class Plant:
    """Facts of `Planted`: the sequence to be found, and how many symbols may be put."""

    sequence: tuple[int, ...]
    places: int


@dataclass(frozen=True, slots=True)
class Dug:
    """State of `Planted`: symbols put, and how many of the sequence they hold in order."""

    put: int = 0
    matched: int = 0


class Planted(World[Plant, Dug]):
    """A planted sub-sequence (PAV, arXiv 2410.08146, section 3): put symbols until the sequence is among them, in
    order.

    `contain 3 1 4 within 5` · `put 3` · `put 1` · `put 4`; hidden: `contain 3 of 14 within 5`. A symbol is right if it
    is the next one, or if there is room to waste it; so the first error is where success becomes impossible. Detours
    waste a symbol. Mistakes: slip. There is no answer step: the answer is `found` or `missed`.
    """

    domain = "planted"

    def __init__(self, symbols: int = 14, *, slack: int = 5, hidden: bool = False) -> None:
        if not 2 <= symbols <= 97 or slack < 0:
            raise TraceError(f"{symbols} symbols, slack {slack}; expected 2 to 97 symbols and slack from 0")
        self.symbols, self.slack, self.hidden = symbols, slack, hidden

    @override
    def draw(self, rng: np.random.Generator, *, length: int) -> Problem[Plant]:
        """The sequence has `length` symbols; there is room for `slack` more."""
        _check_length(length)
        sequence = tuple(int(v) for v in rng.integers(self.symbols, size=length))
        what = f"{length} of {self.symbols}" if self.hidden else " ".join(map(str, sequence))
        return self._problem(f"contain {what} within {length + self.slack}", Plant(sequence, length + self.slack))

    @override
    def answer(self, problem: Problem[Plant], steps: Sequence[str]) -> str:
        """`found` or `missed`."""
        state = self._walk(problem, steps)[1][-1]
        return "found" if state.matched == len(problem.facts.sequence) else "missed"

    @override
    def _start(self, problem: Problem[Plant]) -> Dug:
        return Dug()

    @override
    def _read(self, problem: Problem[Plant], state: Dug, step: str) -> tuple[bool, Dug]:
        match = re.fullmatch(r"put ([0-9]{1,4})", step)
        sequence, places = problem.facts.sequence, problem.facts.places
        if match is None or state.put == places or state.matched == len(sequence):
            return False, state
        hit = int(match[1]) == sequence[state.matched]
        room = places - state.put > len(sequence) - state.matched
        return hit or room, Dug(state.put + 1, state.matched + hit)

    @override
    def _right(self, problem: Problem[Plant], state: Dug) -> tuple[str, ...]:
        sequence, places = problem.facts.sequence, problem.facts.places
        if state.matched == len(sequence) or state.put == places:
            return ()
        following = sequence[state.matched]
        wasted = range(self.symbols) if places - state.put > len(sequence) - state.matched else ()
        return (f"put {following}", *(f"put {other}" for other in wasted if other != following))

    @override
    def _wrong(self, problem: Problem[Plant], state: Dug) -> Iterator[tuple[Mistake, str]]:
        for other in range(self.symbols):
            yield Mistake.SLIP, f"put {other}"


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NUMBER = "[0-9]{1,4}"
_OPERATION = re.compile(rf"([-+*]) ({_NUMBER})")
_REWRITE = re.compile(rf"(?P<start>{_NUMBER})(?P<operations>( [-+*] {_NUMBER}){{1,8}}) = (?P<result>{_NUMBER})")
_EQUATION = re.compile(rf"x(?P<operations>( [-+*] {_NUMBER}){{0,64}}) = (?P<result>{_NUMBER})")


def _answer_in(step: str) -> int | None:
    match = re.fullmatch(rf"answer ({_NUMBER})", step)
    return None if match is None else int(match[1])


def _check_length(length: int) -> None:
    if not 1 <= length <= 64:
        raise TraceError(f"length {length}; expected 1 to 64 steps before the answer")


def _operations(rng: np.random.Generator, length: int, modulus: int, *, units: bool) -> Operations:
    """Random operations, none of which does nothing; `units`: and all of which can be undone."""
    drawn = []
    for operator in rng.choice(list("+-*"), size=length).tolist():
        lowest = (2 if units and modulus > 2 else 0) if operator == "*" else 1
        drawn.append((operator, int(rng.integers(lowest, modulus))))
    return tuple(drawn)


def _commutes(operations: Sequence[tuple[str, int]]) -> bool:
    """Whether their order does not matter: all of them add, or all multiply."""
    return len({operator == "*" for operator, _ in operations}) <= 1


def _spell(operations: Operations) -> str:
    return " ".join(f"{operator} {operand}" for operator, operand in operations)


def _equation(operations: Operations, result: int) -> str:
    return " ".join(filter(None, ("x", _spell(operations), "=", str(result))))


def _street(a: int, b: int) -> tuple[int, int]:
    return (min(a, b), max(a, b))


@lru_cache(maxsize=1024)
def _distances(facts: Map) -> dict[int, int]:
    """Hops to the goal from every place, breadth first."""
    distances, edge = {facts.goal: 0}, [facts.goal]
    while edge:
        place = edge.pop(0)
        for street in facts.streets:
            if place in street:
                other = street[0] + street[1] - place
                if other not in distances:
                    distances[other] = distances[place] + 1
                    edge.append(other)
    return distances
