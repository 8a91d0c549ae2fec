import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm.data.pairs import BalancedPairs, hops_of_pairs
from grm.errors import TraceError
from grm.hops import hop_between

LINEAR = np.linspace(0, 1, 40)
SCRIPT = """
import hashlib, numpy as np
from grm.data.pairs import BalancedPairs
pairs = BalancedPairs(np.linspace(0, 1, 40)).draw(64, np.random.default_rng(5))
print(hashlib.sha256(np.ascontiguousarray(pairs, dtype="<i8").tobytes()).hexdigest())
"""


def bin_of(hops, bins=25):
    return np.minimum(((hops + 1) / 2 * bins).astype(int), bins - 1)


def potentials(**limits):
    return st.lists(st.floats(0, 1, **limits), min_size=2, max_size=25).map(np.array)


@given(potentials())
@settings(max_examples=40, deadline=None)
def test_every_pair_of_different_frames_is_in_exactly_one_bin(potential):
    pairs = np.concatenate([chunk for group in BalancedPairs(potential).bins for chunk in group])
    count = len(potential)
    assert len(pairs) == count * (count - 1)
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    assert (pairs[:, 0] != pairs[:, 1]).all()


@given(potentials())
@settings(max_examples=40, deadline=None)
def test_bins_are_jointly_feasible(potential):
    """No empty bin can be drawn, and what is in one has one hop bin and one distance bin."""
    count, seen = len(potential), set()
    for group in BalancedPairs(potential).bins:
        for chunk in group:
            hops = hops_of_pairs(potential[chunk[:, 0]], potential[chunk[:, 1]])
            distance = (np.abs(chunk[:, 1] - chunk[:, 0]) - 1) * 4 // (count - 1)
            [hop], [far] = np.unique(bin_of(hops)), np.unique(distance)
            assert 0 <= far < 4
            assert (hop, far) not in seen
            seen.add((hop, far))


def test_hop_bins_are_drawn_uniformly():
    """The reference sampler puts 108 to 164 of 1,000 in its central bins and 10 to 14 beside them."""
    balanced = BalancedPairs(LINEAR)
    count = 10_000
    pairs = balanced.draw(count, np.random.default_rng(0))
    hops = hops_of_pairs(LINEAR[pairs[:, 0]], LINEAR[pairs[:, 1]])
    drawn = np.bincount(bin_of(hops), minlength=25)
    feasible = len(balanced.bins)
    assert (drawn > 0).sum() == feasible == 25, "a demonstration with linear progress has hops of every size"
    expected = count / feasible
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 60, drawn  # 24 degrees of freedom: above 60 once in 10,000
    assert drawn.max() / drawn.min() < 1.5, drawn


def test_distance_bins_are_drawn_uniformly_inside_a_hop_bin():
    balanced = BalancedPairs(LINEAR)
    pairs = balanced.draw(20_000, np.random.default_rng(1))
    hops = bin_of(hops_of_pairs(LINEAR[pairs[:, 0]], LINEAR[pairs[:, 1]]))
    distance = (np.abs(pairs[:, 1] - pairs[:, 0]) - 1) * 4 // (len(LINEAR) - 1)
    checked = 0
    for hop, group in zip(np.unique(hops), balanced.bins, strict=True):
        counts = np.bincount(distance[hops == hop], minlength=4)
        present = counts[counts > 0]
        assert len(present) == len(group)
        checked += len(group) > 1
        assert (np.abs(present - present.mean()) < 5 * np.sqrt(present.mean())).all()
    assert checked > 5


def test_one_bin_is_no_trap():
    still = BalancedPairs(np.full(10, 0.3))
    assert len(still.bins) == 1
    pairs = still.draw(200, np.random.default_rng(0))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) > 50
    assert still.draw(0, np.random.default_rng(0)).shape == (0, 2)


def test_the_same_seed_gives_the_same_pairs_in_every_process():
    pairs = BalancedPairs(LINEAR).draw(64, np.random.default_rng(5))
    digest = hashlib.sha256(np.ascontiguousarray(pairs, dtype="<i8").tobytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest
    assert not np.array_equal(BalancedPairs(LINEAR).draw(64, np.random.default_rng(6)), pairs)


def test_zero_hops():
    before, after = np.array([0.5, 0.01, 0.0, 0.99, 0.5]), np.array([0.515, 0.0, 0.03, 1.0, 0.4])
    np.testing.assert_allclose(hops_of_pairs(before, after), [0, 0, 0.03, 0, -0.2], atol=1e-12)
    assert hop_between(0.01, 0.0) == -1, "without the rule, noise at the start is a total loss"
    np.testing.assert_array_equal(hops_of_pairs(before, after, zero=0.0), hop_between(before, after))


@given(st.floats(0, 1), st.floats(0, 1))
def test_hops_of_pairs_are_hops_or_zero(before, after):
    [hop] = hops_of_pairs(np.array([before]), np.array([after]))
    assert hop == (0 if abs(after - before) <= 0.02 else hop_between(before, after))


def test_unknown_labels_are_refused():
    with pytest.raises(TraceError, match="labels of 3 frames, 1 unknown"):
        BalancedPairs(np.array([0.0, np.nan, 1.0]))
    with pytest.raises(TraceError, match="labels of 1 frames"):
        BalancedPairs(np.array([0.0]))
