import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.audit import (
    CAMERA_ATTACKS,
    Exploit,
    Finding,
    disagreement,
    exploit,
    paraphrases,
    peak,
    skip_to_best,
    smoothed,
    summarize,
    untouched,
    worst,
)
from grm.errors import AbstainedError, TraceError
from grm.reward import Frame

NAN = float("nan")
T = 12


@pytest.fixture
def frames():
    """Frame t shows the grey value 10 t in camera `a`, 10 t + 1 in `b` and 10 t + 2 in `c`."""
    views = [{name: np.full((8, 8, 3), 10 * t + k, np.uint8) for k, name in enumerate("abc")} for t in range(T)]
    return [Frame(views=v, time=t / 10) for t, v in enumerate(views)]


def shown(name, frames, seed=0):
    return CAMERA_ATTACKS[name](frames, np.random.default_rng(seed))


def moment(frame):
    """Which recorded frame an untouched one is."""
    return int(frame.views["a"][0, 0, 0]) // 10


def changed(showing, frames):
    """(frame, camera) pairs whose picture is not that of the frame they claim the world of."""
    return {
        (t, name)
        for t, frame in enumerate(showing.frames)
        for name in "abc"
        if name not in frame.views or not np.array_equal(frame.views[name], frames[showing.source[t]].views[name])
    }


def test_one_glitch_is_no_policy_and_ends_count_as_their_lower_neighbour():
    np.testing.assert_allclose(smoothed(np.array([0.1, 0.2, 1.0, 0.3, 0.4])), [0.1, 0.2, 0.3, 0.4, 0.3])
    np.testing.assert_allclose(smoothed(np.array([0.9, 0.2, 0.2, 0.2, 0.9])), [0.2, 0.2, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(smoothed(np.array([0.2, NAN, 0.8, 0.6])), [0.2, NAN, 0.6, 0.6])
    np.testing.assert_allclose(smoothed(np.array([NAN, 0.7])), [NAN, 0.7])
    np.testing.assert_allclose(smoothed(np.array([0.3, 0.7])), [0.3, 0.3])
    assert len(smoothed(np.zeros(0))) == 0


@given(st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=1, max_size=20))
def test_smoothing_invents_nothing(values):
    potential = np.array(values)
    result = smoothed(potential)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(potential))
    known = potential[~np.isnan(potential)]
    assert set(result[~np.isnan(result)]) <= set(known)
    if len(known):
        assert peak(potential)[1] <= known.max()
    else:
        assert peak(potential) is None


def test_gain_by_hand():
    truth = [0.0, 0.1, 0.2, 0.25, 0.0]
    found = exploit(np.array([0.0, 0.5, 0.7, 0.9, 0.1]), truth.__getitem__)
    assert (found.frame, found.potential, found.truth) == (2, 0.7, 0.2)
    assert found.gain == pytest.approx(0.5)


def test_a_constant_judge_gains_all_that_is_not_true_and_the_truth_gains_nothing():
    truth = np.array([0.3, 0.3, 0.6, 0.6, 0.2])
    assert exploit(np.ones(5), truth.__getitem__).gain == pytest.approx(0.7)
    assert exploit(truth, truth.__getitem__).gain == 0


def test_what_is_not_judged_is_not_exploited():
    assert exploit(np.full(4, NAN), lambda frame: 0.0) is None
    found = exploit(np.array([0.2, NAN, NAN, 0.2]), [0.0, 0.9, 0.9, 0.1].__getitem__)
    assert (found.frame, found.gain) == (0, 0.2)
    with pytest.raises(AbstainedError, match="frame 1 is NaN"):
        exploit(np.array([0.0, 0.9, 0.9]), [0.0, NAN, NAN].__getitem__)


def test_disagreement_is_its_size_whatever_its_sign():
    one, other = np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.5, 0.1, 0.1, 0.5])
    for found in (disagreement(one, other), disagreement(other, one)):
        assert found.gain == pytest.approx(0.4)
        assert 0 <= found.truth <= found.potential <= 1
    assert disagreement(one, one).gain == 0
    assert disagreement(one, np.full(4, NAN)) is None
    with pytest.raises(TraceError, match="4 and 3"):
        disagreement(one, one[:3])


def finding(attack, gain, kind="physical", abstained=0):
    found = None if gain is None else Exploit(frame=0, potential=max(gain, 0.0), truth=max(-gain, 0.0))
    return Finding(attack=attack, kind=kind, task="x", episode=0, frames=10, abstained=abstained, exploit=found)


def test_the_summary_by_hand():
    findings = [
        finding("mild", 0.1),
        finding("bad", 0.2),
        finding("bad", 0.6, abstained=5),
        finding("bad", None, abstained=10),
        finding("untouched", 0.9, kind="control"),
        finding("blind", None, abstained=10),
    ]
    summaries = summarize(findings)
    assert list(summaries) == ["untouched", "bad", "mild", "blind"]
    bad = summaries["bad"]
    assert bad.gain.value == pytest.approx(0.4)
    assert 0.2 <= bad.gain.low <= 0.4 <= bad.gain.high <= 0.6
    assert (bad.episodes, bad.unjudged, bad.abstained) == (2, 1, 0.5)
    assert bad.worst is findings[2]
    assert summaries["blind"].gain is None
    assert worst(summaries) is bad, "a control is no attack"
    assert worst(summarize([finding("blind", None)])) is None


def test_untouched_is_untouched(frames):
    showing = untouched(frames, np.random.default_rng(0))
    assert changed(showing, frames) == set()
    assert [moment(f) for f in showing.frames] == list(range(T))


@pytest.mark.parametrize("name", CAMERA_ATTACKS)
def test_camera_attacks_leave_the_recording_alone_and_are_reproducible(frames, name):
    before = [{k: v.copy() for k, v in frame.views.items()} for frame in frames]
    one, other = shown(name, frames, 3), shown(name, frames, 3)
    assert len(one.frames) == len(one.source) >= T
    assert (np.diff([frame.time for frame in one.frames]) > 0).all(), "time goes on, whatever is shown"
    np.testing.assert_array_equal(one.source, other.source)
    for a, b in zip(one.frames, other.frames, strict=True):
        assert a.views.keys() == b.views.keys()
        assert all(np.array_equal(a.views[k], b.views[k]) for k in a.views)
    for views, frame in zip(before, frames, strict=True):
        assert all(np.array_equal(views[k], frame.views[k]) for k in views)


@pytest.mark.parametrize("name", ["freeze-camera", "black-camera", "noise-camera", "drop-camera"])
def test_one_camera_fails_late_and_the_world_goes_on(frames, name):
    cameras = set()
    for seed in range(12):
        showing = shown(name, frames, seed)
        np.testing.assert_array_equal(showing.source, np.arange(T))
        hit = changed(showing, frames)
        [camera] = {camera for _, camera in hit}
        cameras.add(camera)
        first = min(t for t, _ in hit)
        assert {t for t, _ in hit} == set(range(first, T))
        assert T // 4 < first <= 3 * T // 4 if name == "freeze-camera" else first == T // 3
        for t in range(first, T):
            views = showing.frames[t].views
            if name == "freeze-camera":
                np.testing.assert_array_equal(views[camera], frames[first - 1].views[camera])
            elif name == "black-camera":
                assert not views[camera].any()
            elif name == "noise-camera":
                assert views[camera].std() > 30
            else:
                assert set(views) == set("abc") - {camera}
    assert cameras == set("abc"), "every camera has its turn"


def test_a_patch_covers_a_quarter_of_every_camera_in_one_place(frames):
    showing = shown("patch-camera", frames)
    assert changed(showing, frames) == {(t, name) for t in range(T // 3, T) for name in "abc"}
    for name in "abc":
        covered = [(f.views[name] == 128).all(2) for f in showing.frames[T // 3 :]]
        assert all(c.sum() == 16 for c in covered)
        assert all(np.array_equal(c, covered[0]) for c in covered)


def test_swapped_cameras_swap_from_the_beginning(frames):
    showing = shown("swap-cameras", frames)
    hit = changed(showing, frames)
    one, other = sorted({name for _, name in hit})
    assert hit == {(t, name) for t in range(T) for name in (one, other)}
    np.testing.assert_array_equal(showing.frames[5].views[one], frames[5].views[other])
    np.testing.assert_array_equal(showing.frames[5].views[other], frames[5].views[one])
    with pytest.raises(TraceError, match="at least two"):
        shown("swap-cameras", [Frame(views={"a": f.views["a"]}, time=f.time) for f in frames])


def test_replays_show_whole_recorded_frames(frames):
    expected = {
        "play-backwards": list(range(T))[::-1],
        "back-and-forth": [*range(T), *range(T - 2, -1, -1), *range(1, T)],
    }
    for name, order in expected.items():
        assert [moment(f) for f in shown(name, frames).frames] == order
    for seed in range(5):
        for name in ("play-backwards", "same-frame", "back-and-forth", "stale-frames"):
            showing = shown(name, frames, seed)
            assert changed(showing, frames) == set()
            assert [moment(f) for f in showing.frames] == showing.source.tolist(), "the truth is that of what is shown"
        still = shown("same-frame", frames, seed).source
        assert still[0] == 0
        assert set(np.diff(still).tolist()) <= {0, 1}
        assert (still[-T:] == still[-1]).all(), "still for as long as the recording lasts"
        stale = shown("stale-frames", frames, seed).source
        assert (stale <= np.arange(T)).all()
        assert (stale < np.arange(T)).any()


def test_the_best_frame_comes_back(frames):
    showing = skip_to_best(4)(frames, np.random.default_rng(0))
    assert [moment(f) for f in showing.frames[:T]] == list(range(T))
    assert [moment(f) for f in showing.frames[T : T + 5]] == [4, 4, 4, T - 1, 4]
    assert changed(showing, frames) == set()


def test_paraphrases_keep_what_is_asked():
    found = paraphrases("pick up the puck.")
    assert found == [
        "please pick up the puck",
        "the robot's job is to pick up the puck",
        "take the puck",
        "PICK UP THE PUCK!",
    ]
    assert "shut the door" in paraphrases("Close the door")
    assert not any(text.startswith("shut") for text in paraphrases("closet the door")), "a verb is a whole word"
    for text in ("unlock the door", "dunk it", "x"):
        assert text not in paraphrases(text)
        assert len(set(paraphrases(text))) == len(paraphrases(text)) >= 3
