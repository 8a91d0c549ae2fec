"""What a learner is promised whose horizon is shorter than its potential's, and what not: docs/derivations.md, 11."""

import itertools

import numpy as np
import pytest

from shaping import shaping_reward
from tests.shaping.mdp import TabularMDP, chain, random_mdp

from .test_invariance import ALMOST, ATTEMPT, MODEL, WAIT, risky

SHARES = [0.0, 0.3, 0.92, 1.0]
"""λ: the learner's discount over the potential's."""


def guided(mdp: TabularMDP, psi: np.ndarray, share: float) -> TabularMDP:
    """Shaped with the problem's own discount, solved with a shorter one."""
    bonus = shaping_reward(psi[:, None, None], psi, mdp.terminal, mdp.gamma)
    reward = mdp.reward + bonus
    return TabularMDP(transition=mdp.transition, reward=reward, terminal=mdp.terminal, gamma=share * mdp.gamma)


def live(mdp: TabularMDP, psi: np.ndarray) -> np.ndarray:
    return np.where(mdp.terminal, 0.0, psi)


@pytest.mark.parametrize("share", SHARES)
def test_the_learner_bootstraps_in_part_from_the_potential(share):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mdp = random_mdp(rng)
        psi = live(mdp, rng.uniform(size=6))
        u = guided(mdp, psi, share).solve() + psi[:, None]
        mixed = (1 - share) * psi + share * u.max(1)
        np.testing.assert_allclose(u, mdp.action_value(live(mdp, mixed)) + 0 * u, atol=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_with_the_optimal_value_every_horizon_finds_the_optimum(share):
    for seed in range(5):
        mdp = random_mdp(np.random.default_rng(seed))
        q = mdp.solve()
        other = guided(mdp, q.max(1), share)
        np.testing.assert_allclose(other.solve() + q.max(1)[:, None], q, atol=1e-9)
        np.testing.assert_array_equal(other.optimal_actions(), mdp.optimal_actions())


@pytest.mark.parametrize("share", SHARES)
def test_what_is_learned_from_a_policys_value_is_never_worse_than_the_policy(share):
    better = 0
    for seed in range(5):
        mdp = random_mdp(np.random.default_rng(seed))
        for mu in itertools.islice(mdp.policies(), None, None, 11):
            psi = mdp.value(mu)
            q = guided(mdp, psi, share).solve()
            found = mdp.value(q.argmax(1) * ~mdp.terminal)
            assert (found >= psi - 1e-9).all()
            assert (found >= q.max(1) + psi - 1e-9).all(), "it is at least as good as it believes"
            better += bool((found > psi + 1e-6).any())
    assert better > 5, "else nothing was improved on, and anything passes"


def test_a_wrong_potential_moves_the_optimum_of_a_short_horizon_and_of_no_other():
    moved = dict.fromkeys(SHARES, 0)
    for share, seed in itertools.product(SHARES, range(10)):
        rng = np.random.default_rng(seed)
        mdp, psi = random_mdp(rng), rng.uniform(size=6) * 3
        moved[share] += bool((guided(mdp, psi, share).optimal_actions() != mdp.optimal_actions()).any())
    assert moved[1.0] == 0
    assert moved[0.0] >= 5
    assert moved[0.3] >= 3


@pytest.mark.parametrize(("p", "attempts"), [(0.71, False), (0.73, True), (0.95, True)])
def test_a_short_horizon_dares_less(p, attempts):
    """γ = .98, learner .9: waiting for ever costs .9 · .02/.1 = .18, attempting .9 - p: attempt only if p > .72."""
    q = guided(risky(p, 0.98), MODEL, 0.9 / 0.98).solve()[ALMOST]
    assert (q[ATTEMPT] > q[WAIT]) == attempts
    whole = guided(risky(p, 0.98), MODEL, 1.0).solve()[ALMOST]
    assert whole[ATTEMPT] > whole[WAIT]


@pytest.mark.parametrize("share", SHARES)
def test_on_the_value_scale_what_keeps_up_is_paid_the_same_and_a_lost_step_costs(share):
    """A chain with the share done as Φ: γ · γ^{τ-1} - γ^τ = 0 for a step made, -(1 - γ) γ^τ for a step lost."""
    length, gamma = 6, 0.9
    mdp = chain(length, gamma=gamma)
    psi = gamma ** ((1 - np.arange(length + 1) / length) * length)
    paid = guided(mdp, psi, share).reward
    for s in range(length - 1):
        assert paid[s, 1, s + 1] == pytest.approx(0)
        assert paid[s, 0, s] == pytest.approx(-(1 - gamma) * psi[s])
    q = guided(mdp, psi, share).solve()
    assert (q[:-1, 1] > q[:-1, 0]).all()
