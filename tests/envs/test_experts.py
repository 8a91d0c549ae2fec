import numpy as np
import pytest

from envs.appearance import Appearance
from envs.experts import (
    BEHAVIOURS,
    OFF_DEMONSTRATION,
    Actor,
    _above,
    _beside,
    _interrupted,
    _misplaced,
    _prove,
    _sub_tasks,
    demonstrations,
    record,
)
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


def actor_of(env: MetaWorldEnv, episode: Episode):
    """The actor that `record` drew for this episode."""
    generator = np.random.default_rng([episode.seed, list(BEHAVIOURS).index(episode.behaviour)])
    return BEHAVIOURS[episode.behaviour](generator, env.horizon)


def test_an_expert_who_takes_over_labels_his_run_linearly(env, episodes):
    taken_over = 0
    for name in ("detour", "stall", "drop", "regress"):
        for episode in episodes[name]:
            begin, last = actor_of(env, episode).expert_from, len(episode) - 1
            assert begin > 0
            if not episode.succeeded or begin >= last:
                continue
            taken_over += 1
            rest = episode.progress[begin:]
            np.testing.assert_allclose(rest, np.linspace(rest[0], 1, len(rest)), atol=1e-6)
            env.reset(seed=episode.seed)
            for action in episode.actions[:begin]:
                env.step(action)
            assert rest[0] == pytest.approx(env.true_progress(), abs=1e-6), "what the provers say where he begins"
    assert taken_over >= 3
    for name in ("noisy", "random", "near-miss", "wander", "give-up", "undo", "misplaced", "above", "empty-hand"):
        assert actor_of(env, episodes[name][0]).expert_from is None, f"{name} is not the expert at the end"


def test_motions_without_the_object_leave_it_where_it_is():
    env = MetaWorldEnv("pick-place", horizon=80)
    for name in ("wrong-object", "empty-hand", "object-free"):
        episode = record(env, name, seed=4, provers=0)
        assert not episode.succeeded, name
        env.reset(seed=4)
        start, path = env.raw_state, env.rehearse()
        heights, hands = [start[6]], [start[:3]]
        for action in episode.actions[:-1]:
            env.step(action)
            heights.append(env.raw_state[6])
            hands.append(env.raw_state[:3])
        assert max(heights) < start[6] + 0.02, f"{name} lifted the puck"
        beside = np.linalg.norm(np.array(hands)[:, None] - path.hand, axis=-1).min(1)
        if name == "empty-hand":
            assert beside.max() < 0.05, "the expert's own path"
            assert len(set(episode.actions[:-1, 3])) == 1, "and one grip all the way"
        else:
            assert beside.max() > 0.07, f"{name} works beside it"
    env.close()


def test_somebody_elses_behaviour_has_a_name_of_its_own(env):
    def lazy(generator, horizon):
        return Actor(lambda step, env: np.full(4, generator.uniform(0, 0.01)))

    episode = record(env, "lazy", seed=1, provers=0, drawn_from=lazy)
    assert episode.behaviour == "lazy"
    assert np.abs(episode.actions[:, :3]).max() <= 0.01
    assert_same(record(env, "lazy", seed=1, provers=0, drawn_from=lazy), episode)
    with pytest.raises(TaskError, match="'undo' is one of our own"):
        record(env, "undo", seed=1, drawn_from=lazy)


def test_as_many_provers_are_asked_as_one_says(env, monkeypatch):
    asked, original = [], MetaWorldEnv.true_progress

    def spy(self, *, provers=3):
        asked.append(provers)
        return original(self, provers=provers)

    monkeypatch.setattr(MetaWorldEnv, "true_progress", spy)
    record(env, "give-up", seed=0, label_every=20, provers=2)
    record(env, "give-up", seed=0, label_every=20)
    assert asked == [2] * (len(asked) // 2) + [3] * (len(asked) // 2)
    assert len(asked) >= 4


def test_a_look_changes_the_pictures_and_nothing_else_and_comes_off_again(seen):
    plain, look = record(seen, "expert", seed=2), Appearance(3)
    dressed = record(seen, "expert", seed=2, look=look)
    for name in ("state", "actions", "progress"):
        np.testing.assert_array_equal(getattr(dressed, name), getattr(plain, name), err_msg=name)
    assert np.abs(dressed.views["corner"].astype(int) - plain.views["corner"]).mean() > 3
    with pytest.raises(TaskError, match="unknown behaviour"):
        record(seen, "dance", seed=2, look=look)
    assert_same(record(seen, "expert", seed=2), plain)

    asked: list[int] = []
    [first] = demonstrations(seen, 1, seed=2, look=lambda seed: asked.append(seed) or look)
    np.testing.assert_array_equal(first.views["corner"], dressed.views["corner"])
    assert asked == [2]


def test_a_look_comes_off_when_recording_breaks_off(seen, monkeypatch):
    plain = record(seen, "expert", seed=2)

    def broken(self, *, provers=3):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetaWorldEnv, "true_progress", broken)
        with pytest.raises(KeyboardInterrupt):
            record(seen, "give-up", seed=2, look=Appearance(3))
    assert_same(record(seen, "expert", seed=2), plain)


class Asked:
    """A scripted expert that keeps what it was told and does nothing."""

    told: list[np.ndarray] = []  # noqa: RUF012 (cleared by every test that uses it)

    def __init__(self, task: str) -> None:
        assert task == "handle-press-v3"

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        self.told.append(raw)
        return np.zeros(4)


def told_offset(env, actor, monkeypatch) -> np.ndarray:
    """What is wrong in what the expert is told, throughout an episode."""
    Asked.told.clear()
    monkeypatch.setattr("envs.experts.ScriptedPolicy", Asked)
    offsets = []
    for step in range(3):
        action = actor.act(step, env)
        assert np.abs(action).max() < 0.3, "about the expert's own"
        offsets.append(Asked.told[-1] - env.raw_state)
        env.step(np.ones(4))
    np.testing.assert_allclose(offsets, np.stack(offsets[:1] * 3), atol=1e-12)
    return offsets[0]


def test_who_acts_beside_is_told_of_another_object_and_goal(env, monkeypatch):
    env.reset(seed=0)
    of_object, of_goal = np.array([0.1, 0.2, 0.3]), np.array([-0.1, 0.0, 0.4])
    offset = told_offset(env, _beside(of_object, of_goal, np.random.default_rng(0)), monkeypatch)
    expected = np.zeros(39)
    expected[4:7] = expected[22:25] = of_object  # now, and a step before
    expected[36:39] = of_goal
    np.testing.assert_allclose(offset, expected, atol=1e-12)


def test_misplaced_and_above(env, monkeypatch):
    env.reset(seed=0)
    goals = []
    for seed in range(12):
        offset = told_offset(env, _misplaced(np.random.default_rng(seed), 40), monkeypatch)
        assert offset[6] == offset[38] == 0, "at the height where things are"
        assert 0 < np.abs(offset[4:6]).max() <= 0.2
        assert np.abs(offset[36:38]).max() <= 0.2
        goals.append(offset[36:38].any())
        offset = told_offset(env, _above(np.random.default_rng(seed), 40), monkeypatch)
        np.testing.assert_allclose(offset[[4, 5, 36, 37]], 0, atol=1e-12)
        assert 0.05 <= offset[6] <= 0.15
        assert offset[38] == pytest.approx(offset[6])
    assert 0 < sum(goals) < 12, "sometimes the goal is misplaced too"


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
    exact, sparse = _prove(env, moments, 1, 3), _prove(env, moments, 3, 3)
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


def test_with_nobody_to_ask_the_truth_is_unknown_where_an_expert_does_not_say_it(env, monkeypatch):
    said = record(env, "expert", seed=10)
    short = MetaWorldEnv("reach", horizon=2)
    monkeypatch.setattr(MetaWorldEnv, "true_progress", lambda *_, **__: pytest.fail("nobody was to be asked"))
    np.testing.assert_array_equal(record(env, "expert", seed=10, provers=0).progress, said.progress)
    failed = record(short, "expert", seed=10, provers=0)
    assert (failed.succeeded, len(failed), np.isnan(failed.progress).all()) == (False, 3, True)


def test_an_expert_that_never_succeeds_is_reported_without_asking_how_far_it_got(monkeypatch):
    env = MetaWorldEnv("reach", horizon=1)
    monkeypatch.setattr(MetaWorldEnv, "true_progress", lambda *_, **__: pytest.fail("that takes minutes"))
    with pytest.raises(TraceError, match=r"reach-v3.*ten times.*1 decisions.*horizon"):
        next(demonstrations(env, 1, seed=0))


def test_unknown_behaviours_are_refused_with_the_list(env):
    with pytest.raises(TaskError, match=r"'dance'.*expert, noisy"):
        record(env, "dance", seed=0)
    assert set(OFF_DEMONSTRATION) == set(BEHAVIOURS) - {"expert"}
