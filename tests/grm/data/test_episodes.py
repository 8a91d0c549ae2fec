import dataclasses

import numpy as np
import pytest

from grm.data.episodes import Episode, SubTask, require_views
from grm.errors import TraceError


def episode(length: int = 4, **changes) -> Episode:
    fields = {
        "task": "open",
        "instruction": "open the door",
        "views": {"front": np.zeros((length, 6, 8, 3), np.uint8), "top": np.ones((length, 4, 4, 3), np.uint8)},
        "rate_hz": 20.0,
        "state": np.zeros((length, 5), np.float32),
        "actions": np.zeros((length, 2), np.float32),
        "rewards": np.zeros(length, np.float32),
        "success": np.arange(length) == length - 1,
        "progress": np.linspace(0, 1, length, dtype=np.float32),
    }
    return Episode(**(fields | changes))


def test_frames_are_what_a_process_reward_takes():
    one = episode()
    assert len(one) == len(one.frames) == 4
    assert [frame.time for frame in one.frames] == [0, 0.05, 0.1, pytest.approx(0.15)]
    assert set(one.frames[2].views) == {"front", "top"}
    assert one.frames[2].views["front"].shape == (6, 8, 3)
    assert one.succeeded
    assert not episode(success=np.zeros(4, bool)).succeeded


def test_as_goal_shows_the_last_frame():
    views = {"front": np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)}
    task = episode(views=views).as_goal()
    assert task.instruction == "open the door"
    np.testing.assert_array_equal(task.goal.views["front"], 3)


def test_arrays_are_read_only():
    one = episode()
    for array in (one.state, one.actions, one.rewards, one.success, one.progress, *one.views.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        one.frames[0].views["top"][0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.task = "close"


def test_unknown_progress_is_allowed():
    progress = np.array([np.nan, 0, 0.5, np.nan], np.float32)
    np.testing.assert_array_equal(episode(progress=progress).progress, progress)
    assert episode(views={}, sub_tasks=(SubTask(name="all", start=0, end=3),)).frames[0].views == {}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"state": np.zeros((1, 5), np.float32)}, "1 frame;"),
        ({"state": np.zeros((0, 5), np.float32)}, "0 frames;"),
        ({"actions": np.zeros((3, 2), np.float32)}, "actions has 3 rows, the state has 4"),
        ({"success": np.zeros(5, bool)}, "success has 5 rows"),
        ({"views": {"front": np.zeros((3, 6, 8, 3), np.uint8)}}, "view 'front' has 3 rows"),
        ({"views": {"front": np.zeros((4, 6, 8, 3))}}, "'front' has shape .* float64; expected .* uint8"),
        ({"views": {"front": np.zeros((4, 3, 6, 8), np.uint8)}}, r"'front' has shape \(4, 3, 6, 8\)"),
        ({"views": {"front": np.zeros((4, 0, 8, 3), np.uint8)}}, "'front' has shape"),
        ({"state": np.array([[0], [np.nan], [np.inf], [0]], np.float32)}, r"state .* frame 1 \(2 such"),
        ({"actions": np.full((4, 2), np.inf, np.float32)}, "actions is not finite at frame 0"),
        ({"rewards": np.array([0, 0, 0, np.nan], np.float32)}, "rewards is not finite at frame 3"),
        ({"progress": np.array([0, 0.5, 1.5, np.nan], np.float32)}, r"progress spans \[0, 1.5\]"),
        ({"progress": np.array([-0.1, 0.5, 1, 1], np.float32)}, r"progress spans \[-0.1, 1\]"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"rate_hz": float("nan")}, "rate_hz is nan"),
    ],
)
def test_malformed_episodes_are_refused_by_name(changes, found):
    with pytest.raises(TraceError, match=f"'open'.*{found}"):
        episode(**changes)


def test_require_views():
    require_views(episode(), ["top"])
    with pytest.raises(TraceError, match="no view 'side'; it has front, top"):
        require_views(episode(), ["top", "side"])
