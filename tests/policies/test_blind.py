"""Tests of `policies.blind`."""

import numpy as np
import pytest

from grm.data.lerobot import read_episodes
from policies.arms import arm_named
from policies.blind import blind_replays
from policies.one_shot import world_of
from policies.rollout import instance_seeds


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


def test_replays_take_the_demonstrations_actions_on_instances_of_their_own(demonstration):
    env = world_of(demonstration, arm_named("grm_only_replays"))
    replays = blind_replays(env, demonstration, 3, seed=0)
    assert [replay.seed for replay in replays] == instance_seeds(0, 3, "replay")
    used = {*instance_seeds(0, 200, "training"), *instance_seeds(0, 200, "evaluation"), demonstration.seed}
    assert not used & {replay.seed for replay in replays}
    starts = [replay.state[0].tolist() for replay in (demonstration, *replays)]
    assert len({tuple(start) for start in starts}) == 4
    for replay in replays:
        np.testing.assert_array_equal(replay.actions[:-1], demonstration.actions[: len(replay) - 1])
        assert set(replay.views) == set(demonstration.views)
        assert (np.isnan(replay.progress) if replay.succeeded else replay.progress == 0).all()
        assert not replay.success[:-1].any()
    again = blind_replays(env, demonstration, 3, seed=0)
    np.testing.assert_array_equal(again[2].state, replays[2].state)
    env.close()


def test_a_replay_where_the_demonstration_was_made_succeeds_and_ends_there(demonstration, monkeypatch):
    monkeypatch.setattr("policies.blind.instance_seeds", lambda seed, count, purpose: [demonstration.seed])
    env = world_of(demonstration, arm_named("grm_only_replays"))
    [replay] = blind_replays(env, demonstration, 1, seed=0)
    env.close()
    assert replay.succeeded
    assert len(replay) == len(demonstration)
    np.testing.assert_allclose(replay.state, demonstration.state, atol=1e-3)  # actions are stored in single precision
