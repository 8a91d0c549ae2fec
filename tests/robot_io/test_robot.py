import itertools
import math
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robot_io.errors import LimitError, RobotError, StaleFrameError, StoppedError
from robot_io.limits import Workspace
from robot_io.robot import RobotEnv
from robot_io.rollout import Verdict
from robot_io.safety import SafeRobot
from robot_io.sim import Fault, sim_limits

from .fake import JOINTS, Clock, FakeRobot, beyond, limits
from .test_safety import Arm

NOTHING = np.array([0, 0, 0, 1.0])


def fake_env(robot=None, *, joints=None, **kwargs) -> tuple[RobotEnv, FakeRobot, Clock]:
    clock, robot = Clock(), robot or FakeRobot(start=20.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    safe = SafeRobot(robot, limits(joints), clock=clock, kinematics=kwargs.get("kinematics"))
    env = RobotEnv(
        safe, rate_hz=10, success=lambda _o, _i: Verdict.GOING, reset_scene=lambda _s: None,
        clock=clock, sleep=sleep, **kwargs,
    )  # fmt: skip
    safe.arm()
    _open.append(env)
    return env, robot, clock


_open: list[RobotEnv] = []


@pytest.fixture(autouse=True)
def _close():
    yield
    while _open:
        _open.pop().close()


def test_gymnasium_accepts_it(make_env):
    env = make_env(horizon=50)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(spec|Box observation space|infinity).*")
        check_env(env, skip_render_check=True)
    assert env.observation_space["state"].shape == (7,), "four joints, three of them commanded by differences"
    assert env.observation_space["pixels.corner"].shape == (32, 32, 3)


def test_the_expert_succeeds_through_the_environment(make_env, arm, expert):
    env = make_env()
    observation, info = env.reset(seed=3)
    assert info["verdict"] is Verdict.GOING
    total, before = 0.0, arm.get_observation()
    arm.received.clear()
    for step in range(60):
        observation, reward, terminated, truncated, info = env.step(env.encode(expert.get_action()))
        assert env.observation_space.contains(observation)
        assert info["sent"] == arm.received[-1]
        assert info["time"] == pytest.approx((step + 1) / 20)
        total += reward
        if terminated:
            break
    assert (terminated, truncated, total, info["success"]) == (True, False, 1.0, True)
    table = sim_limits().joints
    assert beyond(arm.received, {name: before[name] for name in table}, table, 0.05) == 0
    with pytest.raises(gym.error.ResetNeeded):
        env.step(NOTHING)


def test_an_action_is_a_share_of_the_largest_step_and_the_gripper_a_place(make_env, arm):
    env = make_env()
    env.reset(seed=3)
    start = env.robot.last_sent
    *_, info = env.step(np.array([0.5, -1.0, 0.25, -1.0]))
    assert info["sent"] == pytest.approx(
        {
            "x.pos": start["x.pos"] + 0.02,
            "y.pos": start["y.pos"] - 0.04,
            "z.pos": start["z.pos"] + 0.01,
            "gripper.pos": 0,
        }
    )
    assert info["action"] == pytest.approx([0.5, -1, 0.25, -1], abs=1e-6)
    assert info["clamped"] is False
    *_, info = env.step(np.array([7.0, 0, 0, 3.0]))
    assert info["sent"]["x.pos"] == pytest.approx(start["x.pos"] + 0.06)
    assert info["sent"]["gripper.pos"] == 100


def test_the_state_tells_how_far_the_command_is_ahead_of_a_joint():
    """A joint that follows halfway: 20 → 21 of 22 → 22.5 of 24. The gripper is commanded by its place."""
    env = fake_env(FakeRobot(start=20.0, follow=0.5), control="delta")[0]
    assert env.scalars == ("shoulder.pos", "elbow.pos", "gripper.pos", "shoulder.pos.lead", "elbow.pos.lead")
    observation, _ = env.reset()
    np.testing.assert_allclose(observation["state"], [20, 20, 20, 0, 0])
    for shoulder, ahead in ((20, 0), (20, 0)):
        observation, *_ = env.step(np.array([0.0, 1.0, 0.0]))
        assert observation["state"][[0, 3]].tolist() == [shoulder, ahead]
    np.testing.assert_allclose(observation["state"][[1, 4]], [22.5, 1.5])
    assert fake_env(control="absolute")[0].scalars == ("shoulder.pos", "elbow.pos", "gripper.pos")


def test_what_was_really_sent_is_told_also_as_an_action():
    env, robot, clock = fake_env(control="delta")
    env.reset()
    for _ in range(3):
        env.step(np.array([0.0, 1.0, 0.0]))
    # the elbow starts at 20 and may take steps of 2; the shoulder may go 50 degrees a second, 5 in a tenth, steps of 4
    clock.now -= 0.08
    *_, info = env.step(np.array([1.0, -0.5, -1.0]))
    assert robot.commands[-1]["elbow.pos"] == pytest.approx(25.0)
    assert info["sent"] == pytest.approx({"shoulder.pos": 21.0, "elbow.pos": 25.0, "gripper.pos": 44.0})
    assert info["action"] == pytest.approx([0.25, -0.5, -0.12])
    assert info["clamped"] is True


def test_absolute_control_spans_the_range_and_is_reached_by_steps():
    env, robot, _ = fake_env(control="absolute")
    env.reset()
    assert env.command(np.array([-1, 1, 0.5])) == {"shoulder.pos": -90, "elbow.pos": 120, "gripper.pos": 75}
    assert env.encode({"shoulder.pos": 45.0, "elbow.pos": 60.0, "gripper.pos": 0.0}).tolist() == [0.5, 0.0, -1.0]
    for _ in range(100):
        env.step(np.array([-1, 1, 0.5]))
    assert robot.positions == pytest.approx({"shoulder.pos": -90, "elbow.pos": 120, "gripper.pos": 75})
    assert beyond(robot.commands, dict.fromkeys(JOINTS, 20.0), JOINTS, 0.1) == 0


class SolvedArm(Arm):
    def inverse(self, positions, goal):
        x, z = goal[0], goal[2]
        elbow = math.acos(np.clip((x * x + z * z - 0.08) / 0.08, -1, 1))
        shoulder = math.atan2(z, x) - math.atan2(0.2 * math.sin(elbow), 0.2 + 0.2 * math.cos(elbow))
        return {"shoulder.pos": math.degrees(shoulder), "elbow.pos": math.degrees(elbow)}


def test_the_hand_is_moved_through_kinematics():
    arm = SolvedArm()
    env, robot, _ = fake_env(FakeRobot(start=45.0), control="hand", kinematics=arm, hand_step_m=0.003, horizon=10**6)
    env.reset()
    assert env.commanded == ("x", "y", "z", "gripper.pos")
    before = arm.forward(robot.positions)
    for _ in range(10):
        *_, info = env.step(np.array([-1.0, 0, 0.5, -1.0]))
        assert info["action"][:3] == pytest.approx([-1, 0, 0.5], abs=1e-3)
    assert arm.forward(robot.positions) - before == pytest.approx([-0.03, 0, 0.015], abs=1e-6)
    assert robot.positions["gripper.pos"] == 0
    assert beyond(robot.commands, dict.fromkeys(JOINTS, 45.0), JOINTS, 0.1) == 0
    with pytest.raises(LimitError, match="no kinematics"):
        fake_env(control="hand")


def test_gamepads_speak_of_differences(make_env):
    env = make_env()
    env.reset(seed=3)
    pad = {"delta_x": 0.5, "delta_y": -2.0, "delta_z": 0.0}
    assert env.encode({**pad, "gripper": 2}).tolist() == [0.5, -1.0, 0.0, 1.0]
    assert env.encode({**pad, "gripper": 0}).tolist() == [0.5, -1.0, 0.0, -1.0]
    env.step(np.array([0, 0, 0, 0.3]))
    assert env.encode({**pad, "gripper": 1})[3] == pytest.approx(0.3)  # stays
    for wrong in ({"elbow.pos": 1.0}, {"x.pos": "a", "y.pos": 1, "z.pos": 1, "gripper.pos": 1}):
        with pytest.raises(LimitError, match="teleoperator made for this robot"):
            env.encode(wrong)
    joints, _, _ = fake_env()
    with pytest.raises(LimitError, match="leader arm"):
        joints.encode(pad)


@pytest.mark.parametrize(
    "bad", [np.full(4, np.nan), np.array([0, 0, np.inf, 0]), np.zeros(3), np.zeros((1, 4)), np.zeros(0)]
)
def test_bad_actions_move_nothing(make_env, arm, bad):
    env = make_env()
    env.reset(seed=3)
    arm.received.clear()
    with pytest.raises(LimitError, match="nothing was sent"):
        env.step(bad)
    assert arm.received == []
    assert env.robot.refused == 1


def test_episodes_end_as_decided(make_env):
    verdicts = iter([Verdict.GOING, Verdict.FAILURE, Verdict.DISCARD, Verdict.SUCCESS])
    env = make_env(success=lambda _o, _i: next(verdicts), horizon=3)
    found = []
    for steps in (2, 1, 1):
        env.reset(seed=3)
        for _ in range(steps):
            _, reward, terminated, truncated, info = env.step(NOTHING)
        found.append((reward, terminated, truncated, info["success"]))
    assert found == [(0, True, False, False), (0, False, True, False), (1, True, False, True)]
    env = make_env(horizon=2)
    env.reset(seed=3)
    assert [env.step(NOTHING)[3] for _ in range(2)] == [False, True]


def test_a_reset_hands_over_while_the_robot_rests(make_env, arm):
    seen = []

    def person(seed: int | None) -> None:
        seen.append((seed, env.robot.resting))
        with pytest.raises(StoppedError):
            env.robot.send_action(dict.fromkeys(arm.action_features, 0.5))
        clock.now += 300  # a coffee: nothing is late meanwhile
        arm.reset_scene(seed)

    clock = Clock()
    env = make_env(clock, reset_scene=person)
    for seed in (7, None):
        env.reset(seed=seed)
    assert seen == [(7, True), (None, True)]
    assert env.robot.stopped is None
    assert env.step(NOTHING)[4]["overrun"] is False


def test_it_goes_home_by_steps(make_env, arm):
    home = {"x.pos": -0.1, "y.pos": 0.6, "z.pos": 0.25, "gripper.pos": 100.0}
    env = make_env(home=home, reset_scene=lambda seed: (arm.reset_scene(seed), arm.received.clear()))
    observation, _ = env.reset(seed=3)
    assert arm.received[-1] == pytest.approx(home)
    steps = np.abs(np.diff([c["x.pos"] for c in arm.received]))
    assert steps.max() <= 0.04 + 1e-9
    assert np.abs(observation["state"][:3] - [-0.1, 0.6, 0.25]).max() < 0.06
    with pytest.raises(LimitError, match="stands at"):
        make_env(home={**home, "x.pos": 0.6})


def test_it_must_be_armed_first(make_env):
    env = make_env(arm_it=False)
    with pytest.raises(StoppedError, match="not armed"):
        env.reset()


def test_views_are_chosen_and_resized(make_env):
    env = make_env(views=["gripperPOV"], size=(16, 24))
    observation, info = env.reset(seed=3)
    assert set(observation) == {"state", "pixels.gripperPOV"}
    assert observation["pixels.gripperPOV"].shape == (16, 24, 3)
    assert set(info["ages"]) == {"gripperPOV"}
    with pytest.raises(RobotError, match="no camera 'wrist'; it has corner, gripperPOV"):
        make_env(views=["wrist"])


# ---- faults


@pytest.mark.parametrize("kind", ["frozen", "black", "dropped"])
def test_a_camera_that_shows_nothing_new_stops_the_robot_in_time(make_env, arm, kind):
    env = make_env(horizon=10**6)
    env.reset(seed=3)
    arm.faults.append(Fault(kind=kind, view="corner", start=arm._readings + 3))
    arm.received.clear()
    with pytest.raises(StaleFrameError if kind != "dropped" else RobotError):  # noqa: PT012 (when is what is tested)
        for _ in range(100):
            *_, info = env.step(NOTHING)
    limit_s = env.robot.limits.watchdog.camera_s
    assert len(arm.received) <= (3 + limit_s * 20) + 3  # with the command that holds
    assert info["ages"]["corner"] > limit_s - 0.1 > info["ages"]["gripperPOV"] or kind == "dropped"
    assert env.robot.stopped is not None
    with pytest.raises(StoppedError):
        env.reset()
    arm.faults.clear()
    env.robot.arm()
    env.reset(seed=3)
    env.step(NOTHING)


@pytest.mark.parametrize("kind", ["frozen", "black", "dropped"])
def test_a_hiccup_is_told_and_survived(make_env, arm, kind):
    env = make_env()
    env.reset(seed=3)
    arm.faults.append(Fault(kind=kind, view="corner", start=arm._readings + 2, readings=4))
    ages, pictures = [], []
    for _ in range(10):
        observation, *_, info = env.step(NOTHING)
        ages.append(info["ages"]["corner"])
        pictures.append(observation["pixels.corner"])
    assert ages == pytest.approx([0, 0, 0.05, 0.1, 0.15, 0.2, 0, 0, 0, 0])
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(pictures)]
    assert same == [False, True, True, True, True, False, False, False, False]
    assert all(picture.any() for picture in pictures), "a black picture is not shown"


def test_pictures_out_of_order_are_not_shown(make_env, arm):
    env = make_env()
    env.reset(seed=3)
    arm.faults.append(Fault(kind="reordered", view="corner", start=arm._readings + 5, readings=10))
    shown = []
    for _ in range(20):
        shown.append(env.step(NOTHING)[0]["pixels.corner"].tobytes())
    for i, j in itertools.combinations(range(20), 2):
        assert shown[i] != shown[j] or all(shown[k] == shown[i] for k in range(i, j)), "an older one came back"
    assert env.rejected["corner"] == 5


def test_a_disconnection_stops_and_arming_again_goes_on(make_env, arm):
    env = make_env()
    env.reset(seed=3)
    arm.faults.append(Fault(kind="disconnect", start=arm._readings + 2, readings=1))
    with pytest.raises(RobotError):  # noqa: PT012
        for _ in range(10):
            env.step(NOTHING)
    assert env.robot.stopped is not None
    with pytest.raises(StoppedError):
        env.reset()
    with pytest.raises(RobotError):
        env.robot.arm()
    env.robot.connect()
    env.robot.arm()
    env.reset(seed=3)
    env.step(NOTHING)


def test_slow_readings_are_overruns(make_env, arm):
    env = make_env(time.monotonic, limits=sim_limits())
    env.reset(seed=3)
    arm.faults.append(Fault(kind="slow", seconds=0.08, start=arm._readings + 2, readings=2))
    late = [env.step(NOTHING)[4]["overrun"] for _ in range(6)]
    assert any(late[1:4])
    assert env.timing.overruns == sum(late)


def test_real_time_is_kept(make_env):
    env = make_env(time.monotonic)
    env.reset(seed=3)
    began = time.monotonic()
    for _ in range(40):
        env.step(NOTHING)
    took = time.monotonic() - began
    assert took > 1.95
    assert took < 2.15 or env.timing.overruns, "slower than asked for, and nobody said so"


def test_a_hung_loop_is_stopped_by_the_watchdog_while_nobody_calls(make_env, arm):
    table = sim_limits()
    env = make_env(
        time.monotonic, limits=type(table)(table.joints, type(table.watchdog)(command_s=0.1, camera_s=5, process_s=5))
    )
    env.reset(seed=3)
    env.step(np.array([1.0, 0, 0, 1.0]))
    arm.received.clear()
    time.sleep(0.3)
    assert "a command is late" in str(env.robot.stopped)
    assert len(arm.received) == 1
    with pytest.raises(StoppedError):
        env.step(NOTHING)


def test_the_workspace_holds_whatever_is_tried(make_env, arm):
    table = sim_limits()
    box = Workspace(low=(-0.1, 0.5, 0.1), high=(0.1, 0.7, 0.3))
    env = make_env(limits=type(table)(table.joints, table.watchdog, box), horizon=10**6)
    env.reset(seed=3)
    arm.received.clear()
    generator = np.random.default_rng(0)
    for goal in generator.choice([-1.0, 1.0], (12, 4)).repeat(8, axis=0):
        env.step(goal)
    sent = np.array([[c["x.pos"], c["y.pos"], c["z.pos"]] for c in arm.received])
    assert (sent >= np.array(box.low) - 1e-12).all()
    assert (sent <= np.array(box.high) + 1e-12).all()
    assert np.ptp(sent[:, 0]) == pytest.approx(0.2, abs=0.01)
