import dataclasses
import shutil

import numpy as np
import pytest

from envs.cameras import Cameras
from envs.metaworld import VIEWS, MetaWorldEnv
from grm.data.lerobot import read_episodes
from grm.errors import CheckpointError
from policies import visited
from policies.log import arm_folder, read_rollouts
from policies.one_shot import OneShotSettings, horizon_of, make_env
from policies.visited import Recording, collect_visited, judged_views, label_recordings, read_recordings, train_learner

from ..tiny import square, tiny_grm

SETTINGS = OneShotSettings(task="reach-v3", rollouts=3, evaluation_episodes=1, adaptation_steps=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_grm().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(checkpoint, tmp_path_factory):
    """Three rollouts on reach-v3, the second kept."""
    root = tmp_path_factory.mktemp("visited")
    seen = []
    collect_visited(
        SETTINGS, checkpoint, root, every=2, label_every=20, on_rollout=lambda rollout: seen.append(rollout.number)
    )
    assert seen == [1, 2, 3]
    return root


def drawn_recording(seed, length):
    return Recording(1, seed, np.random.default_rng(seed).uniform(-1, 1, (length, 4)).astype(np.float32))


def test_views_are_todays_unless_the_model_was_trained_on_others():
    assert judged_views([]) == VIEWS
    assert judged_views([square(0, views=("top", "side"))]) == ("top", "side")
    assert judged_views([square(0, views=("top",)), square(1, views=(*VIEWS, "top"))]) == VIEWS


def test_an_episode_is_what_the_learner_did(monkeypatch):
    asked = []

    def progress(env, provers):
        assert provers == 5
        asked.append(float(env.raw_state[0]))
        return len(asked) / 10

    monkeypatch.setattr(MetaWorldEnv, "true_progress", progress)
    recording = drawn_recording(3, 25)
    counted = []
    [episode] = label_recordings(
        [recording],
        "reach-v3",
        25,
        views=("corner",),
        size=16,
        label_every=4,
        on_episode=lambda: counted.append(1),
    )
    assert counted == [1]
    assert len(episode) == 14, "decisions 0, 2, … 24 and the last, 25"
    assert episode.rate_hz == 20.0
    assert (episode.behaviour, episode.seed, episode.succeeded) == ("learner", 3, False)
    env = make_env("reach-v3", 25)
    cameras = Cameras(env, ("corner",), height=16, width=16)
    observation, _ = env.reset(seed=3)
    states, pictures, hands = [observation["state"]], [cameras.render()["corner"]], [float(env.raw_state[0])]
    for action in recording.actions:
        observation, *_ = env.step(action)
        states.append(observation["state"])
        pictures.append(cameras.render()["corner"])
        hands.append(float(env.raw_state[0]))
    cameras.close()
    env.close()
    kept = [*range(0, 25, 2), 25]
    np.testing.assert_array_equal(episode.state, np.stack(states)[kept])
    np.testing.assert_array_equal(episode.views["corner"], np.stack(pictures)[kept])
    np.testing.assert_allclose(episode.actions[0], recording.actions[:2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(episode.actions[12], recording.actions[24], rtol=1e-6)
    # Asked at frames 0, 4, 8, 12 and 13; in between it is a straight line.
    assert asked == [hands[kept[frame]] for frame in (0, 4, 8, 12, 13)]
    np.testing.assert_allclose(
        episode.progress, np.interp(range(14), [0, 4, 8, 12, 13], [0.1, 0.2, 0.3, 0.4, 0.5]), rtol=1e-6
    )


@pytest.mark.parametrize(("length", "horizon"), [(10, 12), (12, 10)])
def test_another_simulation_is_noticed(monkeypatch, length, horizon):
    monkeypatch.setattr(MetaWorldEnv, "true_progress", lambda env, provers: 0.0)
    with pytest.raises(CheckpointError, match=f"rollout 1 of {length} decisions played back to another end at 10"):
        label_recordings([drawn_recording(0, length)], "reach-v3", horizon, views=("corner",), size=16)


@pytest.mark.slow
def test_every_rollout_is_recorded_and_every_second_one_is_labelled(data):
    folder = data / "runs" / "reach-v3"
    recordings = read_recordings(folder)
    rows = list(read_rollouts(arm_folder(folder, "grm") / "rollouts.csv"))
    assert [recording.number for recording in recordings] == [1, 2, 3]
    assert [len(recording.actions) for recording in recordings] == [int(row["length"]) for row in rows]
    assert [recording.number for recording in read_recordings(folder, every=2)] == [2]
    [episode] = read_episodes(data / "reach-v3")
    [demonstration] = read_episodes(folder / "demonstration")
    assert tuple(demonstration.views) == VIEWS
    assert set(episode.views) == set(VIEWS)
    assert (episode.task, episode.behaviour, episode.rate_hz) == ("reach-v3", "learner", 20.0)
    assert episode.seed == recordings[1].seed
    assert str(episode.succeeded) == rows[1]["success"]
    assert len(episode) == (int(rows[1]["length"]) + 1) // 2 + 1
    assert horizon_of(demonstration) >= len(recordings[1].actions)
    assert np.isfinite(episode.progress).all()
    assert (episode.progress[-1] == 1.0) == episode.succeeded
    with pytest.raises(CheckpointError, match="no rollout to keep of every 7"):
        read_recordings(folder, every=7)


@pytest.mark.slow
def test_what_is_whole_is_not_done_again(data, checkpoint, monkeypatch):
    monkeypatch.setattr(visited, "train_learner", lambda *a, **k: pytest.fail("it trained"))
    collect_visited(SETTINGS, checkpoint, data)


@pytest.mark.slow
def test_an_interrupted_learner_goes_on(data, checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(data / "runs" / "reach-v3", tmp_path / "runs" / "reach-v3")
    (folder / "recordings" / "0003.npz").unlink()  # killed after the checkpoint and before it was kept
    monkeypatch.setattr(visited, "adapt", lambda *a, **k: pytest.fail("it adapted again"))
    assert train_learner(SETTINGS, checkpoint, folder)
    assert [recording.number for recording in read_recordings(folder)] == [1, 2, 3]
    with pytest.raises(CheckpointError, match="other shaping_weight"):
        train_learner(dataclasses.replace(SETTINGS, shaping_weight=2.0), checkpoint, folder)


@pytest.mark.slow
def test_data_of_another_model_is_refused(data, tmp_path):
    tiny_grm(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="begun with another GRM"):
        collect_visited(SETTINGS, str(tmp_path / "other"), data)
