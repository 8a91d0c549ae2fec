"""Where each way of paying progress goes wrong, against docs/semantic_trap.md's formulas; ours goes wrong nowhere."""

import numpy as np
import pytest

from benchmarks.semantic_trap import GAMMAS, PROBLEMS, REWARDS, corridor, openness, threshold

PHI = 0.9
"""Of the state before the last step."""


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ["task alone", "shaping (ours)"])
def test_the_task_and_our_shaping_always_try(problem, name):
    assert threshold(PROBLEMS[problem], REWARDS[name]) is None


@pytest.mark.parametrize(
    ("name", "weight", "task"), [("progress", 1, 0), ("task + progress", 1, 1), ("task + 0.1 progress", 0.1, 1)]
)
@pytest.mark.parametrize("success", [1.0, 0.4, 0.7])
def test_lingering_pays_from_a_discount_on(name, weight, task, success):
    """Staying is worth w φ / (1 - γ), the last step p (task + w)."""
    found = threshold(corridor(risk=1 - success), REWARDS[name])
    expected = 1 - weight * PHI / (success * (task + weight))
    if expected <= 0.01:
        assert found == 0.0
    else:
        assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("success", "tries"), [(0.46, True), (0.44, False)])
def test_differences_refuse_risks_whatever_the_discount(success, tries):
    """p (1 + 1 - φ) - (1 - p) φ = 2p - φ against 0 for staying."""
    assert threshold(corridor(risk=1 - success), REWARDS["task + differences"]) == (None if tries else 0.0)


@pytest.mark.parametrize(("gamma", "success", "tries"), [(0.9, 0.43, True), (0.9, 0.42, False)])
def test_a_potential_kept_at_the_end_pays_for_giving_up(gamma, success, tries):
    """Giving up is paid γφ - φ, an attempt p (1 + γ) - φ: given up if p < γφ / (1 + γ), .426 here."""
    problem = corridor(risk=1 - success, quit_=True)
    policy = problem.optimal(REWARDS["shaping, Φ kept at the end"], gamma)
    assert (problem.success(policy) > 0) == tries


def test_chances_are_chances_and_success_is_what_the_last_step_gives():
    for problem in PROBLEMS.values():
        np.testing.assert_allclose(problem.chance.sum(-1), 1)
        assert problem.phi.min() >= 0
        assert problem.phi.max() <= 1
    for gamma in GAMMAS:
        policy = PROBLEMS["risky"].optimal(REWARDS["task alone"], gamma)
        assert PROBLEMS["risky"].success(policy) == pytest.approx(0.4)


def test_openness_of_the_drawer():
    raw = np.zeros(39)
    raw[5], raw[37] = 0.73, 0.54
    assert openness(raw) == pytest.approx(0.05)
    raw[5] = 0.54
    assert openness(raw) == 1
