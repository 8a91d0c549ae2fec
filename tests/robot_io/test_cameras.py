import numpy as np
import pytest

from robot_io.cameras import Freshness, resize
from robot_io.errors import StaleFrameError

NOISE = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)


def test_only_what_was_never_seen_is_new():
    watch = Freshness(("front",))
    seen = [watch.look({"front": NOISE[i].copy()}, float(t)) for t, i in enumerate([0, 1, 1, 0, 2, 1, 3])]
    assert seen == [["front"], ["front"], [], [], ["front"], [], ["front"]]
    assert watch.rejected == {"front": 3}
    np.testing.assert_array_equal(watch.pictures(6.0, 1.0)["front"], NOISE[3])


def test_a_picture_grows_old_while_its_camera_repeats_itself():
    watch = Freshness(("front", "wrist"))
    for t in range(5):
        watch.look({"front": NOISE[min(t, 2)], "wrist": NOISE[t]}, t / 10)
    assert watch.ages(0.4) == pytest.approx({"front": 0.2, "wrist": 0.0})
    assert set(watch.pictures(0.4, 0.25)) == {"front", "wrist"}
    with pytest.raises(StaleFrameError, match=r"'front' is 0\.20 s old; expected at most 0\.1 s"):
        watch.pictures(0.4, 0.1)


def test_black_and_missing_pictures_are_none():
    watch = Freshness(("front",))
    assert watch.look({"front": np.zeros((8, 8, 3), np.uint8)}, 0.0) == []
    assert watch.look({"front": np.full((8, 8, 3), 3, np.uint8)}, 0.0) == []
    assert watch.look({}, 0.0) == []
    with pytest.raises(StaleFrameError, match="never came"):
        watch.pictures(0.0, 10.0)
    assert watch.look({"front": np.full((8, 8, 3), 30, np.uint8)}, 0.0) == ["front"]


def test_an_episode_begins_with_nothing_seen():
    watch = Freshness(("front",))
    watch.look({"front": NOISE[0]}, 0.0)
    watch.forget()
    assert watch.ages(0.0) == {"front": np.inf}
    assert watch.look({"front": NOISE[0]}, 1.0) == ["front"]


def test_resizing_averages():
    checks = np.kron(np.array([[0, 200], [200, 0]], np.uint8), np.ones((2, 2), np.uint8))[..., None].repeat(3, axis=2)
    assert resize(checks, 4, 4) is checks
    assert resize(checks, 2, 2)[:, :, 0].tolist() == [[0, 200], [200, 0]]
    assert resize(checks, 1, 1).tolist() == [[[100, 100, 100]]]
    assert resize(NOISE[0], 3, 5).shape == (3, 5, 3)
