"""A small but true judge of reasoning: it recomputes chains of modular arithmetic.

    x0 = 3
    x1 = 5
    x2 = (x0 * x1) mod 7 = 1

A step is a chain of equalities between expressions in integers, names, `+ - *` and parentheses; one `mod` per
expression takes the remainder of everything to its left. A name that nothing earlier established is defined by the
step, to be what the last expression says; every other name must keep the value it was given. The step is right if all
its expressions agree, *given what earlier steps claim*: a step that carries a wrong claim on correctly is itself right,
and only the potential knows better.

A step sees what the steps it rests on established (`Thought.parents`), and what those saw. Whatever this grammar does
not read is not wrong but unread: prose, division, a name from nowhere, and "12 = 5 mod 7", which as a congruence is
true and as a remainder false.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import override

import numpy as np

from ..errors import TraceError
from ..reward import Judgement, ProcessReward, ScoredJudgement, ScoreKind, Task, Thought

_TOKEN = re.compile(r"[ \t]*([A-Za-z_][A-Za-z_0-9]*|[0-9]+|[-+*()])")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_LONGEST = 200
"""Characters of a step; bounds the numbers and the nesting that a hostile one can ask for."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was established so far; the carry of `ArithmeticJudge`."""

    claims: tuple[tuple[str, int] | None, ...] = ()
    """Name and value each step established, if any."""
    ancestors: tuple[int, ...] = ()
    """The steps each step rests on, directly or not, as bits."""
    found_error: bool = False
    """Whether a step so far is wrong."""
    all_read: bool = True
    """Whether every step so far could be read."""


class ArithmeticJudge(ProcessReward[Thought, Ledger]):
    """Φ = P(no error so far), which is known here: 1 until the first wrong step, 0 from there on.

    The raw score is the verdict on the step alone. On a step it cannot read the judge abstains, and afterwards it can
    still refute but no longer confirm: it abstains until it finds an error, and then says 0.
    """

    @override
    def start(self, task: Task) -> Ledger:
        """Nothing established, whatever the task."""
        return Ledger()

    @override
    def extend(
        self, carries: Sequence[Ledger], steps: Sequence[Sequence[Thought]]
    ) -> tuple[list[Ledger], list[Judgement]]:
        """Judgements are `ScoredJudgement`s of kind verdict. Raises `TraceError` if a step rests on itself or later."""
        answers = [_read_all(carry, new) for carry, new in zip(carries, steps, strict=True)]
        return [ledger for ledger, _ in answers], [judgement for _, judgement in answers]

    @override
    def judge(self, task: Task, steps: Sequence[Thought]) -> ScoredJudgement:
        """As `extend` with all steps, typed as what it is."""
        _, judgement = _read_all(self.start(task), steps)
        return judgement


def _read_all(ledger: Ledger, steps: Sequence[Thought]) -> tuple[Ledger, ScoredJudgement]:
    potential, score = np.full(len(steps), np.nan), np.full(len(steps), np.nan)
    for i, step in enumerate(steps):
        ledger, right = _read(ledger, step)
        if right is not None and (ledger.found_error or ledger.all_read):
            potential[i] = 0.0 if ledger.found_error else 1.0
            score[i] = float(right)
    judged = ~np.isnan(potential)
    return ledger, ScoredJudgement(
        potential=potential, spread=np.where(judged, 0.0, np.nan), judged=judged, score=score, kind=ScoreKind.VERDICT
    )


def _read(ledger: Ledger, step: Thought) -> tuple[Ledger, bool | None]:
    """The ledger after a step, and whether the step is right; None if it cannot be read."""
    index = len(ledger.claims)
    parents = step.parents if step.parents is not None else tuple(range(max(0, index - 1), index))
    ancestors = 0
    for parent in parents:
        if not 0 <= parent < index:
            raise TraceError(f"step {index} rests on step {parent}; expected earlier steps, 0 to {index - 1}")
        ancestors |= 1 << parent | ledger.ancestors[parent]
    known = dict(claim for i, claim in enumerate(ledger.claims) if claim is not None and ancestors >> i & 1)
    try:
        name, values = _equalities(step.text, known)
    except _UnreadError:
        right, claim = None, None
    else:
        right = len(set(values)) == 1
        claim = None if name is None else (name, values[-1])
    after = Ledger(
        claims=(*ledger.claims, claim),
        ancestors=(*ledger.ancestors, ancestors),
        found_error=ledger.found_error or right is False,
        all_read=ledger.all_read and right is not None,
    )
    return after, right


class _UnreadError(ValueError):
    """The step says something outside the grammar."""


def _equalities(text: str, known: dict[str, int]) -> tuple[str | None, list[int]]:
    """The name a step establishes, if any, and the values it says are equal, at least one."""
    if len(text) > _LONGEST:
        raise _UnreadError
    sides = [side.strip() for side in text.strip().removesuffix(".").split("=")]
    if len(sides) < 2:
        raise _UnreadError
    name = sides[0] if _NAME.fullmatch(sides[0]) and sides[0] != "mod" else None
    if name is not None and name not in known:
        sides = sides[1:]
    if len(sides) > 1 and re.search(r"\bmod\b", sides[-1]):
        raise _UnreadError  # Remainder or congruence? The two disagree on what is true.
    return name, [_value(side, known) for side in sides]


def _value(side: str, known: dict[str, int]) -> int:
    dividend, *moduli = re.split(r"\bmod\b", side)
    value = _Parser(dividend, known).value()
    if not moduli:
        return value
    modulus = moduli[0].strip()
    if len(moduli) > 1 or not re.fullmatch(r"[0-9]+", modulus) or int(modulus) == 0:
        raise _UnreadError
    return value % int(modulus)


class _Parser:
    """Recursive descent over one expression: sums of products of signed integers, names and parentheses."""

    def __init__(self, text: str, known: dict[str, int]) -> None:
        self._tokens: list[str] = []
        self._known = known
        end = 0
        text = text.rstrip()
        while end < len(text):
            match = _TOKEN.match(text, end)
            if match is None:
                raise _UnreadError
            self._tokens.append(match[1])
            end = match.end()
        self._tokens.append("")
        self._at = 0

    def value(self) -> int:
        total = self._sum()
        if self._next() != "":
            raise _UnreadError
        return total

    def _next(self) -> str:
        return self._tokens[self._at]

    def _accept(self, tokens: str) -> str:
        token = self._next()
        if token == "" or token not in tokens:
            return ""
        self._at += 1
        return token

    def _sum(self) -> int:
        total = self._product()
        while operator := self._accept("+-"):
            total += self._product() if operator == "+" else -self._product()
        return total

    def _product(self) -> int:
        total = self._signed()
        while self._accept("*"):
            total *= self._signed()
        return total

    def _signed(self) -> int:
        return -self._signed() if self._accept("-") else self._atom()

    def _atom(self) -> int:
        if self._accept("("):
            total = self._sum()
            if not self._accept(")"):
                raise _UnreadError
            return total
        token = self._next()
        self._at += 1
        if token.isdecimal():
            return int(token)
        if token not in self._known:
            raise _UnreadError
        return self._known[token]
