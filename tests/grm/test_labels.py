import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import TraceError
from grm.labels import from_keyframes, from_time, from_time_to_go, smooth_time_to_go

INF, NAN = np.inf, np.nan


def test_keyframes_by_hand():
    # 100 frames annotated, chunk 10, two sub-tasks: floor(10 / 2) = 5 points each, although one is four times longer.
    frames, potentials, every = from_keyframes([(10, 30), (30, 110)], length=121, chunk=10)
    np.testing.assert_array_equal(frames, [10, 14, 18, 22, 26, 30, 46, 62, 78, 94, 110])
    np.testing.assert_allclose(potentials, np.arange(11) / 10)
    assert every.shape == (121,)
    assert every[30] == pytest.approx(0.5)  # each sub-task is half of the progress, not of the time
    assert every[38] == pytest.approx(0.55)
    assert (every[:11] == 0).all()
    assert (every[110:] == 1).all()
    np.testing.assert_allclose(every[frames], potentials)


def test_both_conventions_of_contiguous_are_one():
    shared, following = (from_keyframes([(0, 40), second], 100) for second in ((40, 99), (41, 99)))
    np.testing.assert_array_equal(shared.frames, following.frames)


def test_the_official_example_under_the_papers_floor():
    # 16 sub-tasks over frames 8-1263: floor(floor(1255 / 20) / 16) = 3 points each.
    edges = np.linspace(8, 1263, 17).astype(int)
    labels = from_keyframes(list(itertools.pairwise(edges.tolist())), 1277)
    assert len(labels.frames) == 16 * 3 + 1


def test_short_segments_are_not_oversampled():
    frames, potentials, _ = from_keyframes([(0, 2), (2, 200)], length=201, chunk=10)
    np.testing.assert_array_equal(frames[:4], [0, 1, 2, 22])  # 10 points for the long one, 2 for the two frames
    assert potentials[2] == pytest.approx(2 / 12)
    assert from_keyframes([(0, 5)], length=6).frames.tolist() == [0, 5]  # shorter than a chunk: one point


@given(st.lists(st.integers(1, 90), min_size=1, max_size=8), st.integers(0, 20), st.integers(1, 40))
def test_keyframe_labels_are_increasing_and_complete(lengths, first, chunk):
    edges = np.cumsum([first, *lengths]).tolist()
    length = edges[-1] + 5
    frames, potentials, every = from_keyframes(list(itertools.pairwise(edges)), length, chunk)
    assert set(edges) <= set(frames.tolist())
    assert (np.diff(frames) > 0).all()
    assert potentials[0] == 0
    assert potentials[-1] == 1
    assert (np.diff(every[edges[0] : edges[-1] + 1]) > 0).all()


@pytest.mark.parametrize(
    ("segments", "length", "message"),
    [
        ([], 10, "no segments"),
        ([(5, 5)], 10, r"segment 0 is \(5, 5\)"),
        ([(0, 4), (6, 9)], 10, "segment 1 begins at frame 6 and the one before ends at 4"),
        ([(0, 4), (3, 9)], 10, "segment 1 begins at frame 3"),
        ([(0, 10)], 10, "expected 0 to 9"),
        ([(-1, 5)], 10, "span frames -1 to 5"),
    ],
)
def test_malformed_segments(segments, length, message):
    with pytest.raises(TraceError, match=message):
        from_keyframes(segments, length)
    with pytest.raises(TraceError, match="chunk is 0"):
        from_keyframes([(0, 5)], 10, chunk=0)


def test_time():
    np.testing.assert_allclose(from_time(5), [0, 0.25, 0.5, 0.75, 1])
    with pytest.raises(TraceError, match="1 frames"):
        from_time(1)


def test_time_to_go_linear():
    np.testing.assert_allclose(from_time_to_go([50, 25, 10, 0, 60, INF, NAN], horizon=50), [0, 0.5, 0.8, 1, 0, 0, NAN])


def test_time_to_go_discounted():
    # γ = 1/2, horizon 2: (γ^1 - 1/4) / (3/4) = 1/3
    np.testing.assert_allclose(from_time_to_go([2, 1, 0, 3, INF, NAN], horizon=2, gamma=0.5), [0, 1 / 3, 1, 0, 0, NAN])
    ttg = np.arange(60.0)
    np.testing.assert_allclose(from_time_to_go(ttg, INF, gamma=0.99), 0.99**ttg)  # the value itself
    np.testing.assert_allclose(from_time_to_go(ttg, 50, gamma=1 - 1e-9), from_time_to_go(ttg, 50), atol=1e-6)


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=20), st.floats(1, 1000), st.sampled_from([None, 0.5, 0.99]))
def test_time_to_go_is_bounded_and_decreasing(ttg, horizon, gamma):
    phi = from_time_to_go(np.sort(ttg), horizon, gamma)
    assert ((phi >= 0) & (phi <= 1)).all()
    assert (np.diff(phi) <= 0).all()


def test_time_to_go_malformed():
    for call in (lambda t: from_time_to_go(t, 5), lambda t: smooth_time_to_go(t, 3)):
        with pytest.raises(TraceError, match=r"time-to-go is -1\.0"):
            call([0, -1])
    for horizon in (0, -3, NAN, INF):
        with pytest.raises(TraceError, match="horizon is"):
            from_time_to_go([1], horizon)
    with pytest.raises(TraceError, match="gamma is 1"):
        from_time_to_go([1], 5, gamma=1.0)


def test_smoothing_undoes_a_brittle_prover():
    brittle = [54, 54, 55, 57, 53, 52, 51, 49, *[INF] * 6, 47, 48, *[INF] * 3, 43, 42, 41, 40, 39, 38, 37, 36, 35, 34]
    smooth = smooth_time_to_go(brittle, 19)
    assert np.isfinite(smooth).all()
    assert np.abs(np.diff(from_time_to_go(brittle, 100))).max() > 0.5  # .51 to 0 and back
    assert np.abs(np.diff(from_time_to_go(smooth, 100))).max() < 0.05
    assert np.isinf(smooth_time_to_go(brittle, 5)).any()  # a window too short for six in a row


def test_smoothing_by_hand():
    np.testing.assert_array_equal(smooth_time_to_go([9, 1, 7, INF, 5, 4, 0], 3), [9, 7, 7, 7, 5, 4, 0])
    # Real failure stays: more than half of the window is inf.
    np.testing.assert_array_equal(smooth_time_to_go([3, 2, INF, INF, INF, INF], 3)[2:], [INF] * 4)
    np.testing.assert_array_equal(smooth_time_to_go([3, NAN, INF, NAN, 1], 3), [3, NAN, INF, NAN, 1])
    np.testing.assert_array_equal(smooth_time_to_go([3, 3, NAN, INF, 1, 1], 5), [3, 3, NAN, 2, 1, 1])
    np.testing.assert_array_equal(smooth_time_to_go([4, 5], 1), [4, 5])


@given(st.integers(1, 40), st.sampled_from([1, 3, 9, 51]))
def test_smoothing_leaves_a_steady_prover_alone(length, window):
    steady = np.arange(length, dtype=float)[::-1]
    np.testing.assert_array_equal(smooth_time_to_go(steady, window), steady)


@pytest.mark.parametrize("window", [0, 4, -1])
def test_window_is_odd(window):
    with pytest.raises(TraceError, match="odd"):
        smooth_time_to_go([1, 2, 3], window)
