import math

import numpy as np
import pytest

from grm.errors import TraceError
from grm.reward import Task
from grm.testing import check_process_reward
from grm.text.progress import MonteCarloValue, ProverAdvantage

LENGTH, NEEDED, SKILL = 10, 5, 0.2
TASK = Task(instruction="five in ten")


def exact(steps, best_of: int = 1) -> float:
    """P(at least five hits of ten), each later one with chance `SKILL`."""
    left, wanted = LENGTH - len(steps), NEEDED - sum(steps)
    one = sum(math.comb(left, k) * SKILL**k * (1 - SKILL) ** (left - k) for k in range(max(0, wanted), left + 1))
    return 1 - (1 - one) ** best_of


def rollouts(task, prefix, count, generator) -> int:
    left = LENGTH - len(prefix)
    return int((generator.binomial(left, SKILL, count) + sum(prefix) >= NEEDED).sum())


STEPS = [True, False, True, True, False, False, True, False, True, False]


@pytest.mark.parametrize("best_of", [1, 4])
def test_values_are_the_share_of_successful_completions(best_of):
    model = MonteCarloValue(rollouts, samples=4000, best_of=best_of)
    judgement = model.judge(TASK, STEPS)
    expected = [exact(STEPS[: t + 1], best_of) for t in range(LENGTH)]
    np.testing.assert_allclose(judgement.potential, expected, atol=0.035)
    assert judgement.potential[-1] == 1
    assert model.value(model.start(TASK)) == pytest.approx(exact([], best_of), abs=0.035)
    assert model.calls == (LENGTH + 1) * 4000 * best_of
    inside = (judgement.potential > 0.02) & (judgement.potential < 0.98)
    error = np.sqrt(judgement.potential * (1 - judgement.potential) / 4000)
    np.testing.assert_allclose(judgement.spread[inside], error[inside])


def test_the_laws():
    value = MonteCarloValue(rollouts, samples=20)
    check_process_reward(value, TASK, STEPS)
    check_process_reward(ProverAdvantage(value, MonteCarloValue(rollouts, samples=20, best_of=8)), TASK, STEPS)


def test_advantages_are_changes_of_the_provers_value_and_add_up():
    prover = MonteCarloValue(rollouts, samples=50, best_of=4, seed=3)
    model = ProverAdvantage(MonteCarloValue(rollouts, samples=50), prover, alpha=0.5)
    _, [judgement] = model.extend([model.start(TASK)], [STEPS])
    values = prover.judge(TASK, STEPS).potential
    start = prover.value(prover.start(TASK))
    np.testing.assert_allclose(judgement.score, np.diff([start, *values]))
    assert judgement.score.sum() == pytest.approx(values[-1] - start)
    base = MonteCarloValue(rollouts, samples=50).judge(TASK, STEPS).potential
    np.testing.assert_allclose(model.effective(judgement), base + 0.5 * judgement.score)


def test_rollouts_depend_on_the_prefix_and_the_seed_alone():
    one, other = (MonteCarloValue(rollouts, samples=30, seed=seed) for seed in (0, 1))
    many = [[bool(k >> t & 1) for t in range(6)] for k in range(64)]
    first = [one.judge(TASK, steps).potential[-1] for steps in many]
    assert first == [one.judge(TASK, steps).potential[-1] for steps in many]
    assert first != [other.judge(TASK, steps).potential[-1] for steps in many]


@pytest.mark.parametrize("asked", [{"samples": 0}, {"best_of": 0}])
def test_counts_below_one(asked):
    with pytest.raises(TraceError, match="expected at least 1"):
        MonteCarloValue(rollouts, **asked)
