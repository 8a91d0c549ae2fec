"""The laws are laws only if breaking one is caught: a model per broken law, and what the check says about it."""

import itertools

import numpy as np
import pytest

from grm.reward import Judgement, ProcessReward, Task
from grm.testing import check_judgement, check_process_reward

TASK = Task(instruction="count")
STEPS = list("abcdef")


def answer(potential, *, spread=0.1, judged=None):
    potential = np.array(potential, dtype=float)
    judged = np.ones(len(potential), dtype=bool) if judged is None else np.array(judged)
    return Judgement(potential=potential, spread=np.full(len(potential), spread, dtype=float), judged=judged)


class Lawful(ProcessReward[str, int]):
    """Step n has potential n / 10."""

    def start(self, task):
        return 0

    def extend(self, carries, steps):
        pairs = list(zip(carries, steps, strict=True))
        return [carry + len(new) for carry, new in pairs], [self.answer(carry, new) for carry, new in pairs]

    def answer(self, carry, new):
        return answer((carry + 1 + np.arange(len(new))) / 10)


class MutatesItsCarry(Lawful):
    def start(self, task):
        return [0]

    def extend(self, carries, steps):
        _, judgements = super().extend([carry[0] for carry in carries], steps)
        for carry, new in zip(carries, steps, strict=True):
            carry[0] += len(new)
        return [list(carry) for carry in carries], judgements


class LeavesTheRange(Lawful):
    def answer(self, carry, new):
        return answer((carry + 1 + np.arange(len(new))) / 5)


class GoesBelowZero(Lawful):
    def answer(self, carry, new):
        return answer((carry - 1 + np.arange(len(new))) / 10)


class JudgesNaN(Lawful):
    def answer(self, carry, new):
        return answer(np.full(len(new), np.nan))


class JudgesWithoutSpread(Lawful):
    def answer(self, carry, new):
        return answer(np.full(len(new), 0.5), spread=np.nan)


class SpreadsBackwards(Lawful):
    def answer(self, carry, new):
        return answer(np.full(len(new), 0.5), spread=-0.1)


class NumbersItsAbstentions(Lawful):
    def answer(self, carry, new):
        return answer(np.zeros(len(new)), spread=np.nan, judged=np.zeros(len(new), dtype=bool))


class SpreadsItsAbstentions(Lawful):
    def answer(self, carry, new):
        return answer(np.full(len(new), np.nan), judged=np.zeros(len(new), dtype=bool))


class SkipsAStep(Lawful):
    def answer(self, carry, new):
        return answer(np.full(max(0, len(new) - 1), 0.5))


class ForgetsItsPrefix(Lawful):
    def extend(self, carries, steps):
        _, judgements = super().extend([0] * len(carries), steps)
        return list(carries), judgements


class LooksAhead(Lawful):
    """Normalises by the length of what it is given, as a whole-clip model would."""

    def answer(self, carry, new):
        return answer((1 + np.arange(len(new))) / max(1, len(new)))


class RollsDice(Lawful):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def answer(self, carry, new):
        return answer(self.rng.random(len(new)))


class ChangesItsMind(Lawful):
    """Abstains every other time it is asked."""

    def __init__(self):
        self.calls = itertools.count()

    def answer(self, carry, new):
        judged = np.full(len(new), next(self.calls) % 2 == 0)
        return Judgement(potential=np.where(judged, 0.5, np.nan), spread=np.where(judged, 0.0, np.nan), judged=judged)


class SpreadDependsOnPortions(Lawful):
    def answer(self, carry, new):
        return answer((carry + 1 + np.arange(len(new))) / 10, spread=0.1 * len(new))


class DislikesPortionsOfThree(Lawful):
    """Right on single steps and on all at once, not in between."""

    def answer(self, carry, new):
        shift = 0.05 if len(new) == 3 else 0.0
        return answer((carry + 1 + np.arange(len(new))) / 10 + shift)


class DependsOnItsNeighbours(Lawful):
    """Normalises over the batch, as batch norm left in training mode does."""

    def extend(self, carries, steps):
        ends, judgements = super().extend(carries, steps)
        return ends, [answer(j.potential / len(carries)) for j in judgements]


class CountsCalls(Lawful):
    """Counts an empty extension as a step."""

    def extend(self, carries, steps):
        _, judgements = super().extend(carries, steps)
        return [c + max(1, len(new)) for c, new in zip(carries, steps, strict=True)], judgements


class JudgesByAnotherRule(Lawful):
    def judge(self, task, steps):
        return answer(np.full(len(steps), 0.5))


class DropsACarry(Lawful):
    def extend(self, carries, steps):
        ends, judgements = super().extend(carries, steps)
        return ends[:2], judgements


def test_the_lawful_pass():
    check_process_reward(Lawful(), TASK, STEPS)


@pytest.mark.parametrize(
    ("model", "law"),
    [
        (MutatesItsCarry(), "extend changed the carry"),
        (LeavesTheRange(), r"left \[0, 1\]"),
        (GoesBelowZero(), r"left \[0, 1\]"),
        (JudgesNaN(), "potential is not finite"),
        (JudgesWithoutSpread(), "spread is not finite"),
        (SpreadsBackwards(), "spread is negative"),
        (NumbersItsAbstentions(), "abstention carries a number"),
        (SpreadsItsAbstentions(), "abstention carries a spread"),
        (SkipsAStep(), "5 potentials for 6 steps"),
        (ForgetsItsPrefix(), "live differs from offline in potential"),
        (LooksAhead(), "live differs from offline in potential"),
        (RollsDice(), "another answer"),
        (ChangesItsMind(), "another answer"),
        (SpreadDependsOnPortions(), "live differs from offline in spread"),
        (DislikesPortionsOfThree(), "split differs from whole"),
        (DependsOnItsNeighbours(), "differs"),
        (CountsCalls(), "empty extension changed the carry"),
        (JudgesByAnotherRule(), "judge differs"),
        (DropsACarry(), "one carry per prefix"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ProcessReward) else "",
)
def test_a_broken_law_is_caught(model, law):
    with pytest.raises(AssertionError, match=law):
        check_process_reward(model, TASK, STEPS)


def test_one_step_cannot_show_the_laws():
    with pytest.raises(AssertionError, match="at least two steps"):
        check_process_reward(Lawful(), TASK, STEPS[:1])


def test_tolerance_is_for_rounding_only():
    class Rounds(Lawful):
        def answer(self, carry, new):
            return answer((carry + 1 + np.arange(len(new))) / 10 + 1e-4 * len(new))

    check_process_reward(Rounds(), TASK, STEPS, atol=1e-3)
    with pytest.raises(AssertionError, match="live differs"):
        check_process_reward(Rounds(), TASK, STEPS)


def test_check_judgement_takes_honest_abstentions():
    check_judgement(
        Judgement(
            potential=np.array([0.0, np.nan, 1.0]),
            spread=np.array([0.0, np.nan, 0.2]),
            judged=np.array([True, False, True]),
        ),
        3,
    )
