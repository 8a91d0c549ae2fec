import numpy as np
import pytest

from grm.data.lerobot import EpisodeWriter
from grm.errors import TraceError
from robot_io.replay import read_attempt, read_attempts, read_lines
from robot_io.rollout import Verdict

from ..tiny import square
from .test_recorder import make, observe, rollout


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    root = tmp_path_factory.mktemp("replay") / "set"
    recorder = make(root)
    rollout(recorder, 0)
    recorder.behaviour = "evaluation"
    rollout(recorder, 1, ticks=4, verdict=Verdict.GOING)
    rollout(recorder, 2, verdict=Verdict.SUCCESS, pause=True)
    recorder.close()
    return root


def test_a_rollout_is_read_as_it_was(recording):
    attempt = read_attempt(recording, 0)
    assert (attempt.number, attempt.purpose, attempt.success, attempt.terminated) == (0, "rollout", True, True)
    np.testing.assert_allclose(attempt.actions, [[0.25, t / 10] for t in range(6)], rtol=1e-6)
    assert attempt.rewards.tolist() == [0, 0, 0, 0, 0, 1]
    assert attempt.interventions.tolist() == [False, True, True, False, False, False]
    np.testing.assert_allclose(attempt.time, np.arange(7) / 20, atol=1e-6)
    np.testing.assert_allclose(attempt.state, [observe(t, 0)["state"] for t in range(7)])
    assert [frame.views.keys() for frame in attempt.frames] == [{"front", "wrist"}] * 7


def test_what_was_cut_short_did_not_terminate(recording):
    attempt = read_attempt(recording, 1)
    assert (attempt.purpose, attempt.success, attempt.terminated, len(attempt.rewards)) == (
        "evaluation",
        False,
        False,
        4,
    )


def test_a_verdict_given_in_a_pause_ends_it_too(recording):
    attempt = read_attempt(recording, 2)
    assert (attempt.success, attempt.terminated, attempt.rewards[-1]) == (True, True, 1)


def test_all_are_read_in_one_pass(recording):
    attempts = list(read_attempts(recording))
    assert [(one.number, one.purpose) for one in attempts] == [(0, "rollout"), (1, "evaluation"), (2, "evaluation")]
    np.testing.assert_array_equal(attempts[1].state, read_attempt(recording, 1).state)
    assert [one.number for one in read_attempts(recording, [2, 0])] == [2, 0]


def test_what_was_not_recorded_is_not_read(recording, tmp_path):
    assert [line["behaviour"] for line in read_lines(recording)] == ["rollout", "evaluation", "evaluation"]
    assert read_lines(tmp_path) == []
    with pytest.raises(TraceError, match="has no episode 3"):
        read_attempt(recording, 3)
    EpisodeWriter(tmp_path / "collected").append(square(0))
    with pytest.raises(TraceError, match="no column `command`"):
        read_attempt(tmp_path / "collected", 0)
