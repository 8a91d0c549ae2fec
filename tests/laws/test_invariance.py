"""The promise of `shaping`, proved on problems small enough to solve exactly: the optimum stays where it was.

Symbols and proofs are in docs/derivations.md.
"""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from shaping import PotentialShaping, StatePotential, shaping_reward
from shaping.sb3 import VecPotentialShaping
from tests.shaping.mdp import TabularEnv, TabularMDP, chain, random_mdp, state_of

seeds = st.integers(0, 2**32 - 1)
unit = st.floats(0, 1)
discounts = st.floats(0.01, 1)


def shaped(mdp: TabularMDP, phi: np.ndarray) -> TabularMDP:
    """The problem as a learner behind our wrappers sees it."""
    return mdp.with_reward(mdp.reward + shaping_reward(phi[:, None, None], phi, mdp.terminal, mdp.gamma))


# The optimum stays ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_every_policy_is_worth_its_value_less_the_potential_and_the_optimal_set_is_the_same(seed):
    rng = np.random.default_rng(seed)
    mdp, phi = random_mdp(rng), rng.uniform(size=6)  # the terminal states' own potentials are not 0, and must not count
    other = shaped(mdp, phi)
    live = np.where(mdp.terminal, 0.0, phi)
    for policy in itertools.islice(mdp.policies(), None, None, 7):
        np.testing.assert_allclose(other.value(policy), mdp.value(policy) - live, atol=1e-9)
    q = mdp.solve()
    np.testing.assert_allclose(other.solve(), (q - live[:, None]), atol=1e-9)
    np.testing.assert_array_equal(other.optimal_actions(), mdp.optimal_actions())


def test_the_random_problems_have_ties_and_preferences():
    """Otherwise the test above could not fail."""
    counts = [random_mdp(np.random.default_rng(seed)).optimal_actions()[:4].sum(-1) for seed in range(10)]
    assert {int(n) for count in counts for n in count} >= {1, 2}


def test_naive_differences_do_move_the_optimum_of_random_problems():
    """The same check that ours passes rejects Φ' - Φ, and rejects γΦ' - Φ with Φ kept at terminal states."""
    moved = {"no gamma, kept": 0, "kept": 0, "ours": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mdp, phi = random_mdp(rng), rng.uniform(size=6) * 5
        for name, bonus in {
            "no gamma, kept": phi[None, None, :] - phi[:, None, None],
            "kept": mdp.gamma * phi[None, None, :] - phi[:, None, None],
            "ours": shaping_reward(phi[:, None, None], phi, mdp.terminal, mdp.gamma),
        }.items():
            changed = mdp.with_reward(mdp.reward + bonus).optimal_actions() != mdp.optimal_actions()
            moved[name] += bool(changed.any())
    assert moved["ours"] == 0
    assert moved["no gamma, kept"] >= 5
    assert moved["kept"] >= 5


def test_with_the_optimal_value_as_potential_the_best_immediate_reward_is_the_best_action():
    """Q' = Q* - V* = A*: never positive, 0 for what is optimal; one step of look-ahead is enough."""
    for seed in range(10):
        mdp = random_mdp(np.random.default_rng(seed))
        value = mdp.solve().max(-1)
        other = shaped(mdp, value)
        immediate = other.action_value(np.zeros(6))
        np.testing.assert_allclose(other.solve(), immediate, atol=1e-9)
        assert (immediate <= 1e-9).all()
        np.testing.assert_array_equal(np.abs(immediate) < 1e-9, mdp.optimal_actions())


# The risky attempt: where the naive reward goes wrong, by hand -------------------------------------------------------

ALMOST, FALLEN, DONE = range(3)
WAIT, ATTEMPT = range(2)
MODEL = np.array([0.9, 0.0, 1.0])


def risky(p: float, gamma: float) -> TabularMDP:
    """From Φ = .9 an attempt succeeds with p and pays 1, or falls to Φ = 0 for good. Waiting stays."""
    transition = np.zeros((3, 2, 3))
    transition[ALMOST, WAIT, ALMOST] = 1
    transition[ALMOST, ATTEMPT] = [0, 1 - p, p]
    transition[FALLEN, :, FALLEN] = transition[DONE, :, DONE] = 1
    reward = np.zeros_like(transition)
    reward[:2, :, DONE] = 1
    return TabularMDP(transition=transition, reward=reward, terminal=np.array([False, False, True]), gamma=gamma)


@pytest.mark.parametrize("gamma", [0.5, 0.98])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.89, 0.91])
def test_the_risky_attempt(p, gamma):
    """Gold: Q(attempt) = p > γp = Q(wait): always attempt.

    Differences alone, r = Φ' - Φ: Q(attempt) = .1p - .9(1 - p) = p - .9, whatever γ (after the fall nothing moves).
        Waiting is worth γ max(p - .9, 0): attempt only if p > .9.
    Gold plus differences: Q(attempt) = 2p - .9: attempt only if p > .45.
    Ours: Q(attempt) = p - .9; waiting for ever costs .9 (1 - γ) a step, -.9 in all; waiting once, then attempting:
        -.9 (1 - γ) + γ(p - .9) = γp - .9. Attempt for any p > 0.
    """
    mdp = risky(p, gamma)
    difference = MODEL[None, None, :] - MODEL[:, None, None]
    trap, half_trap, ours = mdp.with_reward(difference), mdp.with_reward(mdp.reward + difference), shaped(mdp, MODEL)
    np.testing.assert_allclose(mdp.solve()[ALMOST], [gamma * p, p])
    np.testing.assert_allclose(trap.solve()[ALMOST], [gamma * max(p - 0.9, 0), p - 0.9])
    np.testing.assert_allclose(half_trap.solve()[ALMOST], [gamma * max(2 * p - 0.9, 0), 2 * p - 0.9])
    np.testing.assert_allclose(ours.solve()[ALMOST], [gamma * p - 0.9, p - 0.9])
    attempts = [problem.solve()[ALMOST].argmax() == ATTEMPT for problem in (mdp, trap, half_trap, ours)]
    assert attempts == [True, p > 0.9, p > 0.45, True]


def test_hovering_beside_the_goal_pays_if_gamma_is_dropped():
    """Φ' - Φ with Φ = 0 at the end: finishing pays .5 - .9, staying at .9 costs nothing. Ours charges .9 for it."""
    mdp = chain(1, reward=0.5)
    phi = np.array([0.9, 1.0])
    undiscounted = mdp.with_reward(mdp.reward + shaping_reward(phi[:, None, None], phi, mdp.terminal, 1.0))
    np.testing.assert_allclose(undiscounted.solve()[0], [0, -0.4])
    np.testing.assert_allclose(shaped(mdp, phi).solve()[0], [0.9 * 0.5 - 0.9, 0.5 - 0.9])


def test_a_terminal_potential_that_is_kept_buys_the_wrong_ending():
    """Two doors, γ = .9: A pays 1 and looks like .2, B pays .6 and looks like 1. Kept: 1.18 - Φ_0 against 1.5 - Φ_0."""
    transition = np.zeros((3, 2, 3))
    transition[0, 0, 1] = transition[0, 1, 2] = transition[1, :, 1] = transition[2, :, 2] = 1
    reward = np.zeros_like(transition)
    reward[0, 0, 1], reward[0, 1, 2] = 1.0, 0.6
    mdp = TabularMDP(transition=transition, reward=reward, terminal=np.array([False, True, True]), gamma=0.9)
    phi = np.array([0.3, 0.2, 1.0])
    kept = mdp.with_reward(mdp.reward + 0.9 * phi[None, None, :] - phi[:, None, None])
    np.testing.assert_allclose(kept.solve()[0], [0.88, 1.2])
    np.testing.assert_allclose(shaped(mdp, phi).solve()[0], [0.7, 0.3])


# Sums along trajectories ---------------------------------------------------------------------------------------------


@given(st.lists(unit, min_size=2, max_size=12), discounts, st.booleans())
def test_sums_telescope(potentials, gamma, ends):
    phi, n = np.array(potentials), len(potentials) - 1
    terminated = np.array([False] * (n - 1) + [ends])
    total = (gamma ** np.arange(n) * shaping_reward(phi[:-1], phi[1:], terminated, gamma)).sum()
    assert total == pytest.approx((0 if ends else gamma**n * phi[-1]) - phi[0], abs=1e-9)


@given(st.lists(unit, min_size=1, max_size=8), discounts, st.integers(1, 5))
def test_no_loop_can_be_farmed(potentials, gamma, laps):
    """A cycle is worth (γ^n - 1) Φ_0 <= 0. Differences without γ are worth more than nothing on some."""
    phi = np.array(potentials * laps + potentials[:1])
    n = len(phi) - 1
    total = (gamma ** np.arange(n) * shaping_reward(phi[:-1], phi[1:], False, gamma)).sum()
    assert total == pytest.approx((gamma**n - 1) * phi[0], abs=1e-9)
    assert total <= 1e-9


def test_a_loop_of_naive_differences_can_be_farmed():
    """Up .9 and down .9, discounted: .9 - .9 γ = .09 a lap at γ = .9. Ours: γ .9 - γ .9 = 0."""
    phi = np.array([0.0, 0.9, 0.0])
    discount = 0.9 ** np.arange(2)
    assert (discount * np.diff(phi)).sum() == pytest.approx(0.09)
    assert (discount * shaping_reward(phi[:-1], phi[1:], False, 0.9)).sum() == pytest.approx(0)


@settings(max_examples=15, deadline=None)
@given(seeds, st.floats(0.1, 5))
def test_both_wrappers_pay_what_the_algebra_says_and_the_same(seed, weight):
    """Three episodes or more through the real wrappers: rewards equal, and each episode telescopes to its ends."""
    rng = np.random.default_rng(seed)
    mdp, phi = random_mdp(rng), rng.uniform(size=6)
    potential = [StatePotential[dict[str, np.ndarray]](lambda observation: phi[state_of(observation)]) for _ in "ab"]
    env = PotentialShaping(TabularEnv(mdp, seed=seed), potential[0], gamma=mdp.gamma, weight=weight)
    venv = VecPotentialShaping(
        DummyVecEnv([lambda: TabularEnv(mdp, seed=seed)]), potential[1], gamma=mdp.gamma, weight=weight
    )
    env.reset()
    venv.reset()
    total, discount, time, ends = 0.0, 1.0, 0, 0
    while ends < 3:
        action = int(rng.integers(3))
        _, reward, terminated, truncated, info = env.step(action)
        _, [vec_reward], _, [vec_info] = venv.step(np.array([action]))
        shaping = reward - mdp.reward[info["before"], action, info["after"]]
        assert shaping == pytest.approx(info["shaping_reward"])
        assert vec_reward == pytest.approx(reward, rel=1e-5, abs=1e-5)
        for key in ("task_reward", "shaping_reward", "phi", "spread", "judged", "abstentions"):
            assert vec_info[key] == pytest.approx(info[key])
        total, discount, time = total + discount * shaping, discount * mdp.gamma, time + 1
        if terminated or truncated:
            last = 0.0 if terminated else phi[info["after"]]
            assert total == pytest.approx(weight * (mdp.gamma**time * last - phi[0]), abs=1e-9)
            env.reset()
            total, discount, time, ends = 0.0, 1.0, 0, ends + 1


# Potentials of the prefix --------------------------------------------------------------------------------------------


def test_a_potential_of_the_prefix_leaves_every_policy_of_the_prefix_its_rank():
    """All 3-step prefixes of two actions, a random Φ for each: q' = q - Φ(prefix) by backward induction."""
    rng, gamma, depth = np.random.default_rng(3), 0.9, 3
    prefixes = [p for n in range(depth + 1) for p in itertools.product((0, 1), repeat=n)]
    phi = {prefix: rng.uniform() for prefix in prefixes}
    gold = {prefix: rng.integers(3) for prefix in prefixes}  # paid on reaching it
    ends = {prefix: len(prefix) == depth for prefix in prefixes}

    def q(prefix, action, shape):
        after = (*prefix, action)
        reward = gold[after] + (shaping_reward(phi[prefix], phi[after], ends[after], gamma) if shape else 0.0)
        return reward + (0.0 if ends[after] else gamma * max(q(after, other, shape) for other in (0, 1)))

    for prefix in prefixes:
        if not ends[prefix]:
            for action in (0, 1):
                assert q(prefix, action, True) == pytest.approx(q(prefix, action, False) - phi[prefix])


def test_a_critic_that_cannot_see_the_prefix_can_be_led_astray_by_one_step_targets():
    """The leak: both actions lead from s to m, which then pays 0. Φ(m) remembers which: .8 after L, 0 after R.

    L pays 0 and R pays .1, so R is right. A tabular critic of m sees the average of -.8 and 0, -.4 for even visits, and
    its targets for s, γ = 1, are .8 - .4 = .4 for L and .1 - .4 = -.3 for R. Two-step targets ask no critic of m.
    """
    phi_after = {"L": 0.8, "R": 0.0}
    gold = {"L": 0.0, "R": 0.1}
    blind = np.mean([shaping_reward(phi, 0.0, True, 1.0) for phi in phi_after.values()])
    one_step = {a: gold[a] + float(shaping_reward(0.0, phi_after[a], False, 1.0)) + blind for a in "LR"}
    two_step = {
        a: gold[a]
        + float(shaping_reward(0.0, phi_after[a], False, 1.0))
        + float(shaping_reward(phi_after[a], 0.0, True, 1.0))
        for a in "LR"
    }
    assert one_step == pytest.approx({"L": 0.4, "R": -0.3})
    assert two_step == pytest.approx(gold)


# Potentials and weights that change ----------------------------------------------------------------------------------


def play(env: gym.Env, actions: list[int], change) -> float:
    """Discounted sum of shaping rewards at γ = .9; `change(t)` is called before step t."""
    env.reset()
    total = 0.0
    for t, action in enumerate(actions):
        change(t)
        total += 0.9**t * env.step(action)[4]["shaping_reward"]
    return total


@given(st.lists(unit, min_size=6, max_size=6), st.lists(st.floats(0, 3), min_size=5, max_size=5))
def test_a_potential_and_a_weight_that_change_keep_the_telescope(tables, weights):
    """Another Φ (a refitted model) and another weight before every step of a chain of five: -w_0 Φ_0 all the same."""
    in_force = [tables[0]]
    potential = StatePotential[dict[str, np.ndarray]](lambda observation: in_force[0] * (1 + state_of(observation)) / 6)
    env = PotentialShaping(TabularEnv(chain(5), horizon=99), potential, gamma=0.9, weight=weights[0])

    def change(t: int) -> None:
        in_force[0] = tables[t + 1]
        env.weight = weights[t]

    assert play(env, [1] * 5, change) == pytest.approx(-weights[0] * tables[0] / 6, abs=1e-9)
    env.weight = weights[0]
    in_force[0] = tables[0]
    three = play(env, [1] * 3, change)
    assert three == pytest.approx(0.9**3 * weights[2] * tables[3] * 4 / 6 - weights[0] * tables[0] / 6, abs=1e-9)


def test_a_weight_that_changes_must_not_reprice_the_old_state():
    """F = w'(γΦ' - Φ) with a weight halved at each step leaks Σ γ^t (w_t - w_{t+1}) Φ_t, which depends on the path."""
    weights, gamma = np.array([1.0, 0.5, 0.25, 0.125]), 0.9
    discount = gamma ** np.arange(3)
    for path in (np.array([0.1, 0.9, 0.9, 0.0]), np.array([0.1, 0.1, 0.1, 0.0])):
        ours = shaping_reward(weights[:-1] * path[:-1], weights[1:] * path[1:], False, gamma)
        repriced = weights[1:] * shaping_reward(path[:-1], path[1:], False, gamma)
        assert (discount * ours).sum() == pytest.approx(-0.1)
        leak = (discount * (weights[:-1] - weights[1:]) * path[:-1]).sum()
        assert (discount * repriced).sum() == pytest.approx(-0.1 + leak)
        assert leak > 0.05


def test_a_potential_that_is_recomputed_for_the_old_state_can_change_the_optimum():
    """Left pays .5, right pays .4 at the end. The model at time 1 adores the state on the right (1), a refit drops it.

    Each Φ as in force: F_0 = .9 * 1 - 0, F_1 = 0 - 1 after right, in all .9 - .9 = 0: left wins, .45 to .36.
    The old state asked again after the refit: F_0 = .9, F_1 = 0 - 0. Right is worth .36 + .9 = 1.26: it wins.
    """
    gold, gamma = {"left": 0.5, "right": 0.4}, 0.9
    at = {"left": [0.0, 0.0, 0.0], "right": [0.0, 1.0, 0.0]}  # Φ of the middle state by model version 0, 1, 2
    ours, recomputed = {}, {}
    for way, phi in at.items():
        first = float(shaping_reward(0.0, phi[1], False, gamma))  # the start is 0 to every version
        ours[way] = first + gamma * (gold[way] + float(shaping_reward(phi[1], 0.0, True, gamma)))
        recomputed[way] = first + gamma * (gold[way] + float(shaping_reward(phi[2], 0.0, True, gamma)))
    assert ours == pytest.approx({"left": 0.45, "right": 0.36})
    assert recomputed == pytest.approx({"left": 0.45, "right": 1.26})


# Abstentions: exact no longer, but bounded ---------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), unit), min_size=3, max_size=12), discounts, st.floats(0, 3))
def test_the_cost_of_abstentions_is_the_bounded_sum_over_gaps(potentials, gamma, weight):
    """Along a chain with these potentials (None abstains), the sum is -ψ_0 plus γ^a ψ_a - γ^b ψ_b per gap a to b."""
    n = len(potentials)
    potential = StatePotential[dict[str, np.ndarray]](lambda observation: (*potentials, 1.0)[state_of(observation)])
    env = PotentialShaping(TabularEnv(chain(n), horizon=99), potential, gamma=gamma, weight=weight)
    env.reset()
    total = sum(gamma**t * env.step(1)[4]["shaping_reward"] for t in range(n))
    known = [t for t in range(n) if potentials[t] is not None] + [n]  # the end is known: 0
    worth = [*(0.0 if phi is None else weight * phi for phi in potentials), 0.0]
    gaps = [(a, b) for a, b in itertools.pairwise(known) if b > a + 1]
    cost = sum(gamma**a * worth[a] - gamma**b * worth[b] for a, b in gaps)
    assert total == pytest.approx(-(gamma ** known[0]) * worth[known[0]] + cost, abs=1e-9)
    assert cost <= weight * sum(gamma**a for a, _ in gaps) + 1e-9
    assert cost >= -weight * sum(gamma**b for _, b in gaps) - 1e-9
    unshaped = sum(b - a for a, b in gaps) + known[0]
    assert env.abstentions == unshaped


def test_blinding_the_model_can_be_farmed_and_the_count_shows_it():
    """0 → .9 → abstain → 0, γ = .9: .81 at the first step, nothing for the way back. Each lap is counted twice."""
    ring = np.zeros((3, 1, 3))
    ring[0, 0, 1] = ring[1, 0, 2] = ring[2, 0, 0] = 1
    mdp = TabularMDP(transition=ring, reward=np.zeros_like(ring), terminal=np.zeros(3, dtype=bool), gamma=0.9)
    for middle, lap, counted in ((None, 0.81, 2), (0.5, 0.81 + 0.9 * (0.45 - 0.9) - 0.81 * 0.5, 0)):
        potential = StatePotential[dict[str, np.ndarray]](
            lambda observation, middle=middle: (0.0, 0.9, middle)[state_of(observation)]
        )
        env = PotentialShaping(TabularEnv(mdp, horizon=99), potential, gamma=0.9)
        assert play(env, [0] * 3, lambda _: None) == pytest.approx(lap, abs=1e-12)
        assert env.abstentions == counted
