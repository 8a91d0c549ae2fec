import numpy as np
import pytest

from envs.experts import BEHAVIOURS, OFF_DEMONSTRATION, _interrupted, _prove, _sub_tasks, demonstrations, record
from envs.metaworld import MetaWorldEnv
from grm.data.episodes import Episode
from grm.errors import TaskError, TraceError

FAILURES = ("random", "wander", "give-up", "undo")


@pytest.fixture(scope="module")
def env():
    env = MetaWorldEnv("handle-press", horizon=40)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seen():
    env = MetaWorldEnv("reach", views=("corner",), height=16, width=16, horizon=30)
    yield env
    env.close()


@pytest.fixture(scope="module")
def episodes(env):
    """Two of every behaviour."""
    return {name: [record(env, name, seed=seed, label_every=8) for seed in (0, 1)] for name in BEHAVIOURS}


def assert_same(one: Episode, other: Episode) -> None:
    for name in ("state", "actions", "rewards", "success", "progress"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name, images in one.views.items():
        np.testing.assert_array_equal(images, other.views[name], err_msg=name)
    assert (one.sub_tasks, one.seed, one.behaviour) == (other.sub_tasks, other.seed, other.behaviour)


def test_reproducible_whatever_happened_before(seen):
    first = record(seen, "noisy", seed=7, label_every=5)
    record(seen, "undo", seed=3, label_every=10)
    assert_same(record(seen, "noisy", seed=7, label_every=5), first)
    other = MetaWorldEnv("reach", views=("corner",), height=16, width=16, horizon=30)
    assert_same(record(other, "noisy", seed=7, label_every=5), first)
    other.close()
    changed = record(seen, "noisy", seed=8, label_every=10)
    assert not np.array_equal(changed.state[0], first.state[0])


def test_the_seed_is_the_instance_for_every_behaviour(episodes):
    starts = np.stack([pair[0].state[0] for pair in episodes.values()])
    np.testing.assert_array_equal(starts, np.broadcast_to(starts[0], starts.shape))
    actions = {pair[0].actions[:3].tobytes() for pair in episodes.values()}
    assert len(actions) > len(BEHAVIOURS) // 2, "behaviours act alike"


def test_labels(episodes):
    for name, pair in episodes.items():
        for episode in pair:
            progress = episode.progress
            assert np.isfinite(progress).all()
            assert progress.min() >= 0, name
            assert progress.max() <= 1, name
            assert progress[0] == 0, name
            assert (progress[-1] == 1) == episode.succeeded, name
            assert not episode.success[:-1].any(), name
            assert episode.rewards.sum() == episode.succeeded
            assert episode.rewards[-1] == 0
            assert (np.abs(episode.actions) <= 1).all()
            np.testing.assert_array_equal(episode.actions[-1, :3], 0)
            assert (episode.behaviour, episode.rate_hz, episode.task) == (name, 40.0, "handle-press-v3")
            assert len(episode) <= 41


def test_an_experts_own_time_is_its_label(episodes):
    for episode in episodes["expert"]:
        assert episode.succeeded
        np.testing.assert_allclose(episode.progress, np.linspace(0, 1, len(episode)), atol=1e-6)


def test_who_is_meant_to_fail_mostly_does_and_who_recovers_mostly_succeeds(episodes):
    failed = [not episode.succeeded for name in FAILURES for episode in episodes[name]]
    assert np.mean(failed) >= 0.5
    recovered = [episode.succeeded for name in ("expert", "detour", "stall", "regress") for episode in episodes[name]]
    assert np.mean(recovered) >= 0.7
    assert all(len(e) == 41 for name in FAILURES for e in episodes[name] if not e.succeeded), "a failure runs out"


def test_sub_tasks_are_contiguous_from_first_to_last_frame(episodes):
    for pair in episodes.values():
        for episode in pair:
            cuts = episode.sub_tasks
            assert (cuts[0].start, cuts[-1].end) == (0, len(episode) - 1)
            assert cuts[-1].name == "finish"
            assert [a.end for a in cuts[:-1]] == [b.start for b in cuts[1:]]
            assert all(cut.start < cut.end for cut in cuts)


def test_sub_tasks_by_hand():
    names = lambda infos: [(s.name, s.start, s.end) for s in _sub_tasks(infos)]  # noqa: E731
    near, held, none = {"near_object": 1.0}, {"near_object": 1.0, "grasp_success": 1.0}, {"near_object": 0.0}
    assert names([{}, none, near, near, held, held]) == [("reach", 0, 2), ("grasp", 2, 4), ("finish", 4, 5)]
    assert names([{}, none, none]) == [("finish", 0, 2)]
    assert names([{}, held, held, held]) == [("reach", 0, 1), ("grasp", 1, 2), ("finish", 2, 3)]
    assert names([{}, near]) == [("finish", 0, 1)], "a keyframe at the end separates nothing"


def test_every_nth_label_is_the_provers_and_the_rest_lies_between(env):
    env.reset(seed=4)
    moments = [env.snapshot()]
    for step in range(7):
        env.step(env.expert_action() if step < 5 else np.array([0, 0, 1.0, 0]))
        moments.append(env.snapshot())
    exact, sparse = _prove(env, moments, 1), _prove(env, moments, 3)
    assert sparse[[0, 3, 6, 7]].tolist() == exact[[0, 3, 6, 7]].tolist()
    np.testing.assert_allclose(sparse[[1, 2]], exact[0] + (exact[3] - exact[0]) * np.array([1, 2]) / 3)
    assert exact[5] > exact[2] > exact[0]
    np.testing.assert_array_equal(env.snapshot().physics, moments[-1].physics, err_msg="it did not come back")


def test_an_interruption_begins_once_and_ends_only_if_it_recovers(env):
    env.reset(seed=0)
    marked = np.full(4, 9.0)
    for recover in (True, False):
        act = _interrupted(lambda generator, env: marked, recover=recover)(np.random.default_rng(0), 100).act
        disturbed = np.array([(act(step, env) == marked).all() for step in range(100)])
        assert 2 <= disturbed.argmax() <= 40
        assert disturbed.sum() == (disturbed[disturbed.argmax() :].argmin() if recover else 100 - disturbed.argmax())
        assert recover == (not disturbed[-1])


def test_demonstrations_succeed_on_instances_of_their_own(env):
    episodes = list(demonstrations(env, 3, seed=10))
    assert [episode.behaviour for episode in episodes] == ["expert"] * 3
    assert all(episode.succeeded for episode in episodes)
    assert len({episode.seed for episode in episodes}) == 3
    assert min(episode.seed for episode in episodes) >= 10
    assert list(demonstrations(env, 0, seed=0)) == []


def test_an_expert_that_never_succeeds_is_reported():
    env = MetaWorldEnv("reach", horizon=1)
    with pytest.raises(TraceError, match=r"reach-v3.*ten times.*1 decisions.*horizon"):
        next(demonstrations(env, 1, seed=0))


def test_unknown_behaviours_are_refused_with_the_list(env):
    with pytest.raises(TaskError, match=r"'dance'.*expert, noisy"):
        record(env, "dance", seed=0)
    assert set(OFF_DEMONSTRATION) == set(BEHAVIOURS) - {"expert"}
