import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grm.errors import TraceError
from grm.fusion import ConsistentFusion, Fuser, LeastFusion, MeanFusion, OnePerspective, is_cyclic

NAN = np.nan
FUSERS: list[Fuser] = [MeanFusion(), ConsistentFusion(), ConsistentFusion(floor=1e-9), LeastFusion()]


def fuse(fuser, previous, incremental, forward, backward, absolute=NAN):
    """One member, no batch, scalars in and out; no absolute estimate unless given, as in the paper."""
    estimates = (incremental, forward, backward, absolute)
    potential, spread = fuser(np.array(previous), *(np.array([estimate]) for estimate in estimates))
    return float(potential), float(spread)


def test_mean_by_hand():
    # Φ_I = .4 + .6 * .5 = .7, Φ_F = .6, Φ_B = 1 - .2 = .8
    potential, spread = fuse(MeanFusion(), 0.4, 0.5, 0.6, -0.2)
    assert potential == pytest.approx(0.7)
    assert spread == pytest.approx(np.std([0.7, 0.6, 0.8]))


def test_mean_of_a_backward_hop_by_hand():
    # Φ_I = .4 - .4 * .5 = .2
    assert fuse(MeanFusion(), 0.4, -0.5, 0.1, -0.7)[0] == pytest.approx((0.2 + 0.1 + 0.3) / 3)


def test_anchors_are_clamped_before_fusing():
    # Φ_F = -.4 counts as 0, Φ_B = 1.67 as 1; unclamped the mean would be (.5 - .4 + 1.67) / 3 = .59
    assert fuse(MeanFusion(), 0.5, 0.0, -0.4, 0.67)[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("forward", "backward", "weight"),
    [(0.50, 0.55, 0.83), (0.50, 0.60, 0.52), (0.40, 0.60, 0.04), (0.00, 0.10, 0.0), (0.05, 0.15, 0.0)],
)
def test_tiny_floor_is_the_papers_weight(forward, backward, weight):
    assert ConsistentFusion(floor=1e-6).confidence(forward, backward) == pytest.approx(weight, abs=0.005)


def test_default_floor_agrees_above_one_half_and_does_not_freeze_below():
    default, paper = ConsistentFusion(), ConsistentFusion(floor=1e-6)
    for pair in ((0.50, 0.55), (0.50, 0.60), (0.40, 0.60), (0.9, 1.0)):
        assert default.confidence(*pair) == paper.confidence(*pair)
    # Δ = .1 / .5 = .2, w = exp(-20 * .04) = exp(-.8)
    assert default.confidence(0.00, 0.10) == pytest.approx(np.exp(-0.8))
    assert default.confidence(0.05, 0.15) == pytest.approx(np.exp(-0.8))
    # Wide disagreement is still vetoed at the start.
    assert default.confidence(0.0, 0.4) < 0.01
    # Both say 0: agreement, not 0/0.
    assert default.confidence(0.0, 0.0) == 1.0 == paper.confidence(0.0, 0.0)


def test_the_start_up_freeze_and_its_cure():
    """Forward underestimates by .05, backward overestimates by .05, on a steady climb from 0 in 20 steps."""
    final = {}
    for name, fuser in (("paper", ConsistentFusion(floor=1e-6)), ("default", ConsistentFusion())):
        phi, seen = 0.0, []
        for t in range(1, 6):
            truth = t / 20
            hop = (truth - (t - 1) / 20) / (1 - (t - 1) / 20)
            phi, _ = fuse(fuser, phi, hop, truth - 0.05, truth + 0.05 - 1)
            seen.append(phi)
        final[name] = seen
    assert final["paper"][0] == pytest.approx(0, abs=1e-9)
    assert final["paper"][-1] < 0.02
    assert final["default"][0] > 0.02
    assert final["default"][-1] > 0.15


def test_consistent_by_hand():
    # F = B = .6: w = 1, Φ_I = .7, so (.6 + .7) / 2
    assert fuse(ConsistentFusion(), 0.4, 0.5, 0.6, -0.4)[0] == pytest.approx(0.65)
    # F = .5, B = .6: Φ̄ = .55, w = exp(-20 (.1 / .55)²), Eq. 11 as printed
    weight = np.exp(-20 * (0.1 / 0.55) ** 2)
    expected = 0.4 + weight / 2 * (0.55 - 0.4 + 0.3)
    assert fuse(ConsistentFusion(), 0.4, 0.5, 0.5, -0.4)[0] == pytest.approx(expected)


def test_contradiction_keeps_the_previous_potential():
    potential, spread = fuse(ConsistentFusion(), 0.3, 0.9, 0.0, 0.0)  # Φ_F = 0 against Φ_B = 1
    assert potential == pytest.approx(0.3, abs=1e-9)
    assert spread == pytest.approx(np.std([0.93, 0.0, 1.0]))


def test_the_absolute_estimate_has_half_of_the_weight():
    # Φ_I = .7, Φ_F = .6, Φ_B = .6, Φ_A = .1
    assert fuse(MeanFusion(), 0.4, 0.5, 0.6, -0.4, 0.1)[0] == pytest.approx(((0.7 + 0.6 + 0.6) / 3 + 0.1) / 2)
    assert fuse(ConsistentFusion(), 0.4, 0.5, 0.6, -0.4, 0.1)[0] == pytest.approx(((0.7 + 0.6) / 2 + 0.1) / 2)
    for fuser in FUSERS:
        assert fuse(fuser, NAN, NAN, NAN, NAN, 0.1) == (pytest.approx(0.1), 0)


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        ((0.5, 0.6, -0.2, 0.9), 0.6),
        ((0.5, 0.6, -0.7, 0.9), 0.3),
        ((0.5, 0.6, -0.2, 0.1), 0.1),
        ((-1.0, 0.6, -0.2, 0.9), 0.6),  # Φ_I = 0 is the least and has no say
        ((0.5, -0.6, -0.2, 0.9), 0.0),  # clamped
        ((0.5, NAN, -0.2, 0.9), 0.8),
        ((0.5, NAN, NAN, NAN), 0.7),
        ((NAN, NAN, NAN, NAN), NAN),
    ],
)
def test_least_by_hand(estimates, expected):
    assert fuse(LeastFusion(), 0.4, *estimates)[0] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("hops", "mean", "consistent"),
    [
        ((0.5, 0.6, NAN), (0.7 + 0.6) / 2, (0.7 + 0.6) / 2),
        ((0.5, NAN, -0.2), (0.7 + 0.8) / 2, (0.7 + 0.8) / 2),
        ((0.5, NAN, NAN), 0.7, 0.7),
        ((NAN, 0.6, -0.4), 0.6, 0.6),
        ((NAN, 0.6, NAN), 0.6, 0.6),
        ((NAN, NAN, NAN), NAN, NAN),
    ],
)
def test_missing_perspectives(hops, mean, consistent):
    for fuser, expected in ((MeanFusion(), mean), (ConsistentFusion(), consistent)):
        potential, spread = fuse(fuser, 0.4, *hops)
        assert potential == pytest.approx(expected, nan_ok=True)
        assert np.isnan(spread) == np.isnan(expected)


@pytest.mark.parametrize("fuser", FUSERS)
def test_anchors_recover_a_lost_previous_potential(fuser):
    assert fuse(fuser, NAN, 0.5, 0.6, -0.4)[0] == pytest.approx(0.6)
    assert np.isnan(fuse(fuser, NAN, 0.5, NAN, NAN)[0])


@pytest.mark.parametrize("fuser", FUSERS)
def test_potential_is_of_member_0_and_spread_of_all(fuser):
    hops = np.array([[0.5, 0.1], [0.6, 0.2], [-0.4, NAN], [0.3, 0.8]])
    potential, spread = fuser(np.array(0.4), *hops)
    alone, _ = fuse(fuser, 0.4, 0.5, 0.6, -0.4, 0.3)
    assert potential == pytest.approx(alone)
    assert spread == pytest.approx(np.std([0.7, 0.46, 0.6, 0.2, 0.6, 0.3, 0.8]))
    hops[:, 0] = NAN
    assert all(np.isnan(part) for part in fuser(np.array(0.4), *hops))


@pytest.mark.parametrize("fuser", FUSERS)
@given(
    previous=arrays(float, 3, elements=st.floats(0, 1)),
    hops=arrays(float, (3, 2, 3), elements=st.one_of(st.floats(-1, 1), st.just(NAN))),
    absolute=arrays(float, (1, 2, 3), elements=st.one_of(st.floats(0, 1), st.just(NAN))),
)
def test_bounded_and_a_batch_is_its_members(fuser, previous, hops, absolute):
    hops = np.concatenate([hops, absolute])
    potential, spread = fuser(previous, *hops)
    assert potential.shape == spread.shape == (3,)
    answered = ~np.isnan(hops[:, 0]).all(0)
    np.testing.assert_array_equal(~np.isnan(potential), answered)
    np.testing.assert_array_equal(~np.isnan(spread), answered)
    assert ((potential >= 0) & (potential <= 1))[answered].all()
    assert ((spread >= 0) & (spread <= 0.5 + 1e-12))[answered].all()  # no set of values in [0, 1] spreads further
    for i in range(3):
        one, its_spread = fuser(np.asarray(previous[i]), *hops[..., i])
        np.testing.assert_allclose(one, potential[i], atol=1e-12)
        np.testing.assert_allclose(its_spread, spread[i], atol=1e-9)


@pytest.mark.parametrize("fuser", FUSERS)
def test_a_perfect_model_is_followed(fuser):
    truth = np.concatenate([np.linspace(0, 0.8, 9), np.linspace(0.8, 0.3, 6)[1:], np.linspace(0.3, 1, 8)[1:]])
    phi = 0.0
    for before, now in itertools.pairwise(truth):
        hop = (now - before) / (1 - before if now >= before else before)
        phi, spread = fuse(fuser, phi, hop, now, now - 1, now)
        assert phi == pytest.approx(now)
        assert spread == pytest.approx(0, abs=1e-12)


def test_cyclic_task_needs_the_fallback():
    """Goal and start look the same: at success Φ_F = 0 and Φ_B = 1, and the mean says 2/3."""
    hop_init_to_goal = 0.02
    assert is_cyclic(hop_init_to_goal)
    assert fuse(MeanFusion(), 0.98, 1.0, 0.0, 0.0)[0] == pytest.approx(2 / 3)
    assert fuse(ConsistentFusion(), 0.98, 1.0, 0.0, 0.0)[0] < 0.99
    for fuser in FUSERS:
        assert fuse(fuser, 0.98, 1.0, NAN, NAN)[0] == pytest.approx(1.0)


def test_is_cyclic_is_elementwise_and_abstention_is_no_evidence():
    np.testing.assert_array_equal(is_cyclic([1.0, 0.4, -0.3, NAN]), [False, True, True, False])
    assert is_cyclic(0.8, threshold=0.9)


@pytest.mark.parametrize("fuser", FUSERS)
def test_malformed_input(fuser):
    good = np.zeros((2, 3))
    with pytest.raises(TraceError, match=r"expected four times \(members, \*batch\)"):
        fuser(np.zeros(3), good, good, np.zeros((1, 3)), good)
    with pytest.raises(TraceError, match="shape"):
        fuser(np.zeros(2), good, good, good, good)
    with pytest.raises(TraceError, match="at least one member"):
        fuser(np.zeros(3), *[np.zeros((0, 3))] * 4)
    with pytest.raises(TraceError, match="anchored hop is 33"):
        fuser(np.zeros(3), good, good + 33, good, good)
    with pytest.raises(TraceError, match="hop is 2"):
        fuser(np.zeros(3), good + 2, good, good, good)
    with pytest.raises(TraceError, match=r"absolute progress is -0\.5"):
        fuser(np.zeros(3), good, good, good, good - 0.5)
    with pytest.raises(TraceError, match=r"potential is 1\.5"):
        fuser(np.full(3, 1.5), good, good, good, good)


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"alpha": -1.0}, {"floor": NAN}])
def test_consistent_parameters(wrong):
    with pytest.raises(TraceError, match="expected alpha >= 0 and floor > 0"):
        ConsistentFusion(**wrong)


def test_fusers_are_values():
    assert ConsistentFusion() == ConsistentFusion(alpha=20.0, floor=0.5)
    assert pickle.loads(pickle.dumps(ConsistentFusion(floor=0.1))) == ConsistentFusion(floor=0.1)


def test_one_perspective_alone():
    members = np.array([0.5, 0.3, 0.7])[:, None]  # the hop, and what two members of the ensemble say
    others = np.full((3, 1), 0.9)
    fuse_one = {
        "incremental": OnePerspective("incremental")(np.array([0.2]), members, others, others - 1, others),
        "forward": OnePerspective("forward")(np.array([0.2]), others, members, others - 1, others),
        "backward": OnePerspective("backward")(np.array([0.2]), others, others, members - 1, others),
    }
    assert {name: found[0][0] for name, found in fuse_one.items()} == pytest.approx(
        {"incremental": 0.2 + 0.8 * 0.5, "forward": 0.5, "backward": 0.5}
    )
    spread = np.std([0.5, 0.3, 0.7])
    assert fuse_one["forward"][1] == pytest.approx([spread])
    assert fuse_one["incremental"][1] == pytest.approx([0.8 * spread])


def test_one_perspective_that_was_not_answered_abstains():
    good, nothing = np.zeros((2, 1)), np.full((2, 1), NAN)
    potential, spread = OnePerspective("backward")(np.zeros(1), good, good, nothing, good)
    assert np.isnan(potential).all()
    assert np.isnan(spread).all()
