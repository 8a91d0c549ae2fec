import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.stats import spearmanr
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from envs.cameras import PIXELS
from envs.metaworld import HELD_OUT, INSTRUCTIONS, PRECISE, PRETRAINING, MetaWorldEnv, ScriptedPolicy, task_name
from grm.errors import TaskError, TraceError

EASY = ("reach-v3", "door-unlock-v3", "handle-press-v3")


@pytest.fixture(scope="module")
def env():
    """Door-unlock, shared: every test resets it first."""
    env = MetaWorldEnv("door-unlock")
    yield env
    env.close()


def run_expert(env: MetaWorldEnv) -> tuple[int, bool]:
    for decision in range(1, env.horizon + 1):
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        assert reward == float(terminated) == float(info["success"])
        assert not (terminated and truncated)
        assert 0 <= info["dense_reward"] <= 1
        if terminated or truncated:
            return decision, terminated
    raise AssertionError("an episode outlived its horizon")


def everything(env: MetaWorldEnv) -> dict[str, np.ndarray]:
    """All of the simulation that the next step can depend on, and what it shows."""
    moment = env.snapshot()
    return {
        "physics": moment.physics,
        "raw": moment.raw,
        "counters": np.array([moment.decisions, moment.succeeded]),
        **{f"model.{name}": array for name, array in moment.model.items()},
        **{f"attribute.{name}": np.asarray(value, dtype=float) for name, value in moment.attributes.items()},
        "xpos": env.data.xpos.copy(),
        "site_xpos": env.data.site_xpos.copy(),
        "contacts": np.array([env.data.ncon]),
    }


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_task_groups_are_the_ml45_split():
    assert (len(PRETRAINING), len(HELD_OUT), len(PRECISE)) == (42, 5, 3)
    assert len({*PRETRAINING, *HELD_OUT, *PRECISE}) == 50
    assert {*PRETRAINING, *HELD_OUT, *PRECISE} == set(INSTRUCTIONS)
    assert "door-unlock-v3" in HELD_OUT
    assert len(set(INSTRUCTIONS.values())) == 50, "two tasks say the same"


def test_unknown_tasks_are_refused_with_the_list():
    for make in (MetaWorldEnv, ScriptedPolicy, task_name):
        with pytest.raises(TaskError, match=r"'open-sesame'.*assembly-v3.*window-open-v3"):
            make("open-sesame")
    assert task_name("reach") == task_name("reach-v3") == "reach-v3"


@pytest.mark.filterwarnings("ignore:.*")  # advice about unbounded spaces and missing render modes
def test_gymnasium_accepts_it_under_its_registered_name():
    env = gym.make("grm/MetaWorld-v0", task="reach", views=("corner",), height=16, width=16, horizon=20)
    assert isinstance(env.unwrapped, MetaWorldEnv)
    check_env(env.unwrapped, skip_close_check=True)
    assert env.unwrapped.horizon == 20
    env.close()


@pytest.mark.parametrize(("state", "size"), [("relative", 30), ("raw", 39), ("proprioception", 7)])
def test_observations_are_in_their_space(state, size):
    env = MetaWorldEnv("reach", state=state)
    observation, info = env.reset(seed=0)
    assert set(observation) == {"state"}
    assert observation["state"].shape == (size,)
    assert env.observation_space.contains(observation)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])
    assert info == {"success": False}
    if state == "raw":
        np.testing.assert_allclose(env.restore(env.snapshot())["state"], env.raw_state, rtol=1e-6)


def test_proprioception_is_of_the_robot_alone():
    env = MetaWorldEnv("push", state="proprioception")
    env.reset(seed=0)
    before = env.raw_state
    observation, *_ = env.step(np.array([0.5, -0.5, 0.2, 1.0]))
    raw, state = env.raw_state, observation["state"]
    np.testing.assert_allclose(state, [*raw[:3], *(raw[:3] - raw[18:21]), raw[3]], atol=1e-6)
    assert np.abs(raw[:3] - before[:3]).max() > 0.001
    env.close()


def test_relative_states_are_differences_of_the_raw_ones(env):
    observation, _ = env.reset(seed=2)
    for _ in range(2):
        observation, *_ = env.step(np.array([0.5, -0.5, 0.2, 1.0]))
    raw, state = env.raw_state, observation["state"]
    np.testing.assert_allclose(state[:3], raw[4:7] - raw[:3], atol=1e-6)
    np.testing.assert_allclose(state[3:6], raw[36:39] - raw[4:7], atol=1e-6)
    np.testing.assert_allclose(state[6:9], raw[36:39] - raw[:3], atol=1e-6)
    assert state[9] == np.float32(raw[3])
    np.testing.assert_array_equal(state[14:20], 0)  # there is no second object
    np.testing.assert_allclose(state[24:27], raw[:3] - raw[18:21], atol=1e-6)
    assert np.abs(state[24:27]).max() > 1e-4, "the hand moved"


def test_instances_follow_the_seed_and_differ_between_resets(env):
    def instances(seed):
        env.reset(seed=seed)
        starts = [env.raw_state]
        for _ in range(2):
            env.reset()
            starts.append(env.raw_state)
        return np.stack(starts)

    first = instances(5)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(first[a, [4, 5, 6, 36, 37, 38]] - first[b, [4, 5, 6, 36, 37, 38]]).max() > 1e-3
    np.testing.assert_array_equal(instances(5), first)
    assert np.abs(instances(6)[0] - first[0]).max() > 1e-3


def test_an_instance_does_not_depend_on_what_the_environment_did_before():
    """Meta-World keeps live views of its simulation in attributes; restoring must not freeze them."""

    def film(env):
        env.reset(seed=3)
        generator, rows = np.random.default_rng(0), []
        for _ in range(8):
            action = np.clip(env.expert_action() + generator.normal(0, 0.3, 4), -1, 1)
            _, reward, _, _, info = env.step(action)
            numbers = reward, info["dense_reward"], info["near_object"], info["grasp_success"]
            rows.append(np.concatenate([numbers, env.raw_state, env.snapshot().physics]))
        return np.stack(rows)

    for task in ("door-lock", "sweep-into"):  # the two whose dense reward shows it most
        env = MetaWorldEnv(task)
        fresh = film(env)
        env.reset(seed=8)
        for _ in range(12):
            env.step(env.expert_action())
        env.restore(env.snapshot())
        np.testing.assert_array_equal(film(env), fresh, err_msg=task)


@pytest.mark.parametrize("task", EASY)
def test_the_goal_is_visible_and_the_expert_gets_there(task):
    env = MetaWorldEnv(task)
    solved = 0
    for seed in range(2):
        env.reset(seed=seed)
        assert np.abs(env.raw_state[36:]).max() > 1e-3, "Meta-World hides the goal by default"
        decisions, success = run_expert(env)
        assert np.abs(env.raw_state[36:]).max() > 1e-3
        assert env.succeeded == success
        solved += success and decisions < env.horizon
    assert solved == 2


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(INSTRUCTIONS))
def test_every_task_can_be_made_seen_and_mostly_solved(task):
    env = MetaWorldEnv(task, horizon=250, views=("corner",), height=32, width=32)
    solved = 0
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        assert observation[PIXELS + "corner"].std() > 5
        assert np.abs(env.raw_state[36:]).max() > 1e-3
        provers = np.clip(1 - env.time_to_go() / env.reference_time(), 0, 1)
        assert np.median(provers) == 0, "the pace is the median prover's from here"
        assert env.true_progress() == pytest.approx(provers.mean())
        solved += run_expert(env)[1]
    assert solved >= 1
    env.close()


@pytest.mark.parametrize("given", [{"horizon": 0}, {"action_repeat": 0}])
def test_no_decisions_are_no_episode(given):
    with pytest.raises(TraceError, match="expected at least 1 of both"):
        MetaWorldEnv("reach", **given)


def test_truncated_at_the_horizon_and_only_there():
    env = MetaWorldEnv("reach", horizon=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[1:4] for _ in range(3)]
    assert ends == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]
    env.reset()
    assert env.step(np.zeros(4))[3] is False


def test_actions_are_repeated_and_clipped(env):
    def positions(repeat, action):
        env.reset(seed=0)
        env.action_repeat = repeat
        env.step(np.array(action))
        env.action_repeat = 2
        return env.raw_state

    twice = positions(2, [1, 0, 0, 0])
    env.reset(seed=0)
    env.action_repeat = 1
    for _ in range(2):
        env.step(np.array([1, 0, 0, 0]))
    env.action_repeat = 2
    np.testing.assert_array_equal(env.raw_state, twice)
    np.testing.assert_array_equal(positions(2, [50, 0, 0, 0]), twice)


@pytest.mark.parametrize(
    ("action", "found"),
    [
        ([0, 0, np.nan, 0], "nan"),
        ([0, np.inf, 0, 0], "inf"),
        ([0, 0, 0], r"shape \(3,\)"),
        ([[0] * 4], r"shape \(1, 4\)"),
    ],
)
def test_malformed_actions_are_refused_before_they_act(env, action, found):
    env.reset(seed=0)
    before = everything(env)
    with pytest.raises(TraceError, match=found):
        env.step(np.array(action, dtype=float))
    assert_same(everything(env), before)


def test_nothing_works_before_the_first_reset():
    env = MetaWorldEnv("reach")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4))
    with pytest.raises(gym.error.ResetNeeded):
        env.true_progress()


def test_restore_is_exact_also_from_another_instance(env):
    generator = np.random.default_rng(1)
    actions = generator.uniform(-1, 1, (12, 4))

    def rest():
        rows = [env.step(action) for action in actions[6:]]
        return np.stack([row[0]["state"] for row in rows]), [row[4]["dense_reward"] for row in rows], everything(env)

    env.reset(seed=0)
    for action in actions[:6]:
        observation, *_ = env.step(action)
    moment, there = env.snapshot(), everything(env)
    states, rewards, end = rest()

    env.reset(seed=77)
    for action in actions:
        env.step(-action)
    np.testing.assert_array_equal(env.restore(moment)["state"], observation["state"])
    assert_same(everything(env), there)
    again_states, again_rewards, again_end = rest()
    np.testing.assert_array_equal(again_states, states)
    assert again_rewards == rewards
    assert_same(again_end, end)


def test_a_restored_moment_keeps_its_own_episodes_beginning(env):
    env.reset(seed=0)
    for _ in range(8):
        env.step(env.expert_action())
    moment, progress, reference = env.snapshot(), env.true_progress(), env.reference_time()
    env.reset(seed=41)
    other = env.reference_time()
    assert other != reference, "choose seeds whose instances take different times"
    env.restore(moment)
    assert env.reference_time() == reference
    assert env.true_progress() == progress


def test_asking_for_the_truth_changes_nothing(env):
    env.reset(seed=0)
    for ask in (env.true_progress, env.time_to_go, env.reference_time, env.expert_action, env.snapshot):
        env.step(np.array([0.3, 0.4, -0.1, -1]))
        before = everything(env)
        ask()
        assert_same(everything(env), before)
    undisturbed = MetaWorldEnv("door-unlock")
    undisturbed.reset(seed=0)
    for _ in range(5):
        undisturbed.step(np.array([0.3, 0.4, -0.1, -1]))
    np.testing.assert_array_equal(env.step(np.ones(4))[0]["state"], undisturbed.step(np.ones(4))[0]["state"])


def test_true_progress_along_an_expert_run():
    env = MetaWorldEnv("handle-press")
    env.reset(seed=0)
    # The provers' noise is drawn from fixed seeds: asked twice in one state they say the same, so 0 is exact.
    progress, terminated = [env.true_progress()], False
    assert progress[0] == 0
    assert env.true_progress() == 0
    while not terminated:
        _, _, terminated, truncated, _ = env.step(env.expert_action())
        assert not truncated
        progress.append(env.true_progress())
    assert progress[-1] == 1
    assert max(progress[:-1]) < 1
    assert spearmanr(progress, np.arange(len(progress))).statistic > 0.9


def test_time_to_go_in_decisions(env):
    env.reset(seed=0)
    times = env.time_to_go()
    assert times.shape == (3,)
    env.action_repeat = 1  # a prover acts at every control step: the expert that does so too takes exactly as long
    assert env.time_to_go()[0] == 2 * times[0]
    decisions, success = run_expert(env)
    env.action_repeat = 2
    assert success
    assert decisions == 2 * times[0]
    np.testing.assert_array_equal(env.time_to_go(), 0)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.time_to_go(limit=3), np.inf)
    assert env.reference_time() == np.median(times)


def test_true_progress_is_the_mean_over_provers(env, monkeypatch):
    env.reset(seed=0)
    asked = []

    def times(*, provers, limit):
        asked.append((provers, limit))
        return np.array([10.0, np.inf, 30.0, 50.0])[:provers]

    monkeypatch.setattr(env, "reference_time", lambda: 40.5)
    monkeypatch.setattr(env, "time_to_go", times)
    shares = [1 - 10 / 40.5, 0.0, 1 - 30 / 40.5, 0.0]  # who fails, or takes longer than from the start, is at 0
    assert env.true_progress() == pytest.approx(np.mean(shares[:3]))
    assert env.true_progress(provers=1) == pytest.approx(shares[0])
    assert env.true_progress(provers=4) == pytest.approx(np.mean(shares))
    assert asked == [(3, 81), (1, 81), (4, 81)], "nobody runs for longer than would count"
    monkeypatch.setattr(env, "time_to_go", lambda *, provers, limit: np.zeros(provers))
    assert env.true_progress() == 1


def test_true_progress_begins_near_zero(env):
    """Not at 0 exactly: its unit is the median prover's time, and some are faster."""
    for seed in range(3):
        env.reset(seed=seed)
        times, reference = env.time_to_go(), env.reference_time()
        assert env.true_progress() == pytest.approx(np.maximum(1 - times / reference, 0).mean())
        assert env.true_progress() < 0.1


def test_hopeless_states_have_no_progress():
    env = MetaWorldEnv("push")
    env.reset(seed=0)
    assert env.reference_time() < env.horizon
    joint = env.data.qpos
    joint[9:11] += 5.0  # the puck is across the room
    env.restore(env.snapshot())
    assert env.true_progress() == 0


@pytest.mark.parametrize("vectorise", [DummyVecEnv, SubprocVecEnv])
def test_in_a_vectorised_environment(vectorise):
    def make():
        return MetaWorldEnv("reach", views=("corner",), height=32, width=32, horizon=2)

    count = 2 if vectorise is DummyVecEnv else 1
    venv = vectorise([make] * count)
    venv.seed(0)
    first = venv.reset()
    assert first[PIXELS + "corner"].shape == (count, 32, 32, 3)
    assert first[PIXELS + "corner"].std() > 5
    if count == 2:
        assert (first["state"][0] != first["state"][1]).any(), "SB3 seeds them one apart"
    venv.step(np.zeros((count, 4)))
    _, rewards, dones, infos = venv.step(np.zeros((count, 4)))
    assert dones.all()
    assert (rewards == 0).all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    venv.close()


def test_a_rehearsal_is_what_the_expert_then_does_and_changes_nothing():
    env = MetaWorldEnv("push", views=("corner",), height=16, width=16, horizon=60)
    env.reset(seed=3)
    env.step(np.array([0.5, 0, 0, -1]))
    before = env.raw_state
    path = env.rehearse()
    np.testing.assert_array_equal(env.raw_state, before)
    hands, grips, done = [before[:3]], [], False
    while not done:
        action = env.expert_action()
        grips.append(action[3])
        _, _, terminated, truncated, _ = env.step(action)
        hands.append(env.raw_state[:3])
        done = terminated or truncated
    assert env.succeeded
    np.testing.assert_array_equal(path.hand, hands)
    np.testing.assert_array_equal(path.gripper, [*grips, grips[-1]])
    assert 0 < path.moved < len(path)
    assert len(env.rehearse()) == 1, "nothing is left to do"
    env.close()
