import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import TraceError
from grm.hops import apply_hop, fold_hops, hop_between, hops_between

potentials = st.floats(0, 1)
hops = st.floats(-1, 1)


@pytest.mark.parametrize(
    ("phi", "next_phi", "hop"),
    [
        (0.0, 0.25, 0.25),
        (0.5, 0.75, 0.5),  # half of the remaining
        (0.8, 0.4, -0.5),  # half of the done
        (0.5, 1.0, 1.0),
        (0.5, 0.0, -1.0),
        (0.3, 0.3, 0.0),
        (1.0, 1.0, 0.0),  # 0/0: nothing remains
        (0.0, 0.0, 0.0),  # 0/0: nothing is done
        (1.0, 0.0, -1.0),
        (0.0, 1.0, 1.0),
        (1.0, 0.9, -0.1),
    ],
)
def test_hop_by_hand(phi, next_phi, hop):
    assert hop_between(phi, next_phi) == pytest.approx(hop, abs=1e-15)
    assert apply_hop(phi, hop) == pytest.approx(next_phi, abs=1e-15)


def test_nothing_moves_beyond_the_ends():
    assert apply_hop(1.0, 0.7) == 1.0
    assert apply_hop(0.0, -0.7) == 0.0


@given(potentials, potentials)
def test_potentials_survive_the_round_trip(phi, next_phi):
    hop = hop_between(phi, next_phi)
    assert -1 <= hop <= 1
    assert apply_hop(phi, hop) == pytest.approx(next_phi, rel=1e-12, abs=1e-15)


@given(st.floats(0.001, 0.999), hops)
def test_hops_survive_the_round_trip_inside(phi, hop):
    assert hop_between(phi, apply_hop(phi, hop)) == pytest.approx(hop, rel=1e-9, abs=1e-12)


@given(potentials, hops)
def test_bounded_without_clipping(phi, hop):
    next_phi = apply_hop(phi, hop)
    assert 0 <= next_phi <= 1
    assert next_phi >= phi if hop >= 0 else next_phi <= phi


@given(potentials, hops, hops)
def test_monotone_in_the_hop(phi, one, other):
    low, high = sorted((one, other))
    assert apply_hop(phi, low) <= apply_hop(phi, high)


@given(potentials, potentials, hops)
def test_monotone_in_the_potential(one, other, hop):
    low, high = sorted((one, other))
    assert apply_hop(low, hop) <= apply_hop(high, hop) + 1e-15


@given(st.lists(potentials, min_size=1, max_size=40))
def test_fold_inverts_differences(values):
    there = hops_between(values)
    assert there.shape == (len(values) - 1,)
    np.testing.assert_allclose(fold_hops(values[0], there), values, rtol=1e-9, atol=1e-12)


@given(potentials, st.lists(hops, max_size=40))
def test_fold_stays_in_range(start, changes):
    folded = fold_hops(start, changes)
    assert folded.shape == (len(changes) + 1,)
    assert folded[0] == start
    assert ((folded >= 0) & (folded <= 1)).all()


def test_batches_are_their_members():
    rng = np.random.default_rng(0)
    start, changes = rng.random((2, 3)), rng.uniform(-1, 1, (5, 2, 3))
    whole = fold_hops(start, changes)
    assert whole.shape == (6, 2, 3)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(whole[:, i, j], fold_hops(start[i, j], changes[:, i, j]))
    np.testing.assert_allclose(hops_between(whole), changes, atol=1e-9)


def test_abstention_propagates_and_never_becomes_a_number():
    assert np.isnan(hop_between(np.nan, 0.5))
    assert np.isnan(hop_between(1.0, np.nan))
    assert np.isnan(apply_hop(0.5, np.nan))
    np.testing.assert_array_equal(fold_hops(0.0, [0.5, np.nan, 1.0]), [0.0, 0.5, np.nan, np.nan])
    np.testing.assert_array_equal(hops_between([0.0, np.nan, 0.5, 1.0]), [np.nan, np.nan, 1.0])


@pytest.mark.parametrize("bad", [-0.01, 1.0000001, np.inf, -np.inf])
def test_potential_out_of_range(bad):
    for call in (
        lambda: hop_between(bad, 0.5),
        lambda: hop_between(0.5, [0.5, bad]),
        lambda: apply_hop(bad, 0.0),
        lambda: hops_between([0.5, bad]),
        lambda: fold_hops(bad, [0.1]),
    ):
        with pytest.raises(TraceError, match=r"potential is .* \[0, 1\]"):
            call()


@pytest.mark.parametrize("bad", [-1.01, 33.3, np.inf])
def test_hop_out_of_range(bad):
    with pytest.raises(TraceError, match=r"hop is .* percent"):
        apply_hop(0.5, bad)
    with pytest.raises(TraceError, match="hop is"):
        fold_hops(0.0, [0.1, bad])


def test_shapes_that_do_not_fit():
    with pytest.raises(TraceError, match=r"\(4, 2\) for a start of shape \(3,\)"):
        fold_hops(np.zeros(3), np.zeros((4, 2)))
    with pytest.raises(TraceError, match="at least one step"):
        hops_between([])
