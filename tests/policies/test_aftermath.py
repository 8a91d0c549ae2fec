"""Tests of `policies.aftermath`."""

import dataclasses

import numpy as np
import pytest

from grm.data.lerobot import read_episodes
from grm.errors import TraceError
from policies.aftermath import go_on
from policies.arms import arm_named
from policies.one_shot import world_of


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


@pytest.fixture
def env(demonstration):
    world = world_of(demonstration, arm_named("grm_only"))
    yield world
    world.close()


def test_the_demonstration_goes_on_while_it_stays_done(env, demonstration):
    longer, length = go_on(env, demonstration, 12, seed=0), len(demonstration)
    assert length < len(longer) <= length + 12
    assert longer.success[length - 1 :].all()
    assert not longer.success[: length - 1].any()
    assert (longer.progress[length:] == 1).all()
    for column in ("state", "actions", "rewards", "progress"):
        np.testing.assert_array_equal(getattr(longer, column)[:length], getattr(demonstration, column))
    for view, images in longer.views.items():
        np.testing.assert_array_equal(images[:length], demonstration.views[view])
        assert (images[length:] != images[length - 1]).any(), "the hand moves"
    assert np.ptp(longer.state[length - 1 :, :3], axis=0).min() > 0
    again, other = (go_on(env, demonstration, 12, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.state, longer.state)
    assert (other.state[length : length + 2] != longer.state[length : length + 2]).any()


def test_frames_that_are_no_longer_done_are_left_out(env, demonstration, monkeypatch):
    control, steps = env._control, []

    def undone(action):
        steps.append(action)
        return control(action) | ({"success": False} if env._decisions >= len(demonstration) - 1 else {})

    monkeypatch.setattr(env, "_control", undone)
    assert go_on(env, demonstration, 5, seed=0) is demonstration
    assert steps


def test_unknown_progress_stays_unknown(env, demonstration):
    unlabelled = dataclasses.replace(demonstration, progress=np.full(len(demonstration), np.nan, np.float32))
    assert np.isnan(go_on(env, unlabelled, 5, seed=0).progress).all()


def test_what_does_not_succeed_again_is_refused(env, demonstration):
    for seed in (demonstration.seed + 1, None):
        lost = dataclasses.replace(demonstration, seed=seed)
        with pytest.raises(TraceError, match="does not end in success when it is played back"):
            go_on(env, lost, 5, seed=0)
