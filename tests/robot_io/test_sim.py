import itertools
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from lerobot.teleoperators import TeleopEvents
from lerobot.utils.errors import DeviceNotConnectedError

from grm.errors import TaskError
from robot_io.safety import SafeRobot
from robot_io.sim import Fault, SimExpert, SimExpertConfig, SimRobot, SimRobotConfig, sim_limits

from .fake import Clock, beyond

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"height": 32, "width": 32}


def test_it_says_what_it_has_as_lerobot_wants_it(arm):
    assert arm.action_features == dict.fromkeys(("x.pos", "y.pos", "z.pos", "gripper.pos"), float)
    assert arm.observation_features == {**arm.action_features, "corner": (32, 32, 3), "gripperPOV": (32, 32, 3)}
    found = arm.get_observation()
    assert found.keys() == arm.observation_features.keys()
    for name, kind in arm.observation_features.items():
        if kind is float:
            assert isinstance(found[name], float)
        else:
            assert (found[name].shape, found[name].dtype) == (kind, np.uint8)
    assert list(arm.cameras) == ["corner", "gripperPOV"]
    assert (arm.is_calibrated, arm.name) == (True, "grm_sim")


def test_the_hand_goes_where_it_is_told_and_no_further(arm):
    before = arm.get_observation()
    goal = {"x.pos": -0.1, "y.pos": 0.6, "z.pos": 0.25, "gripper.pos": 100.0}
    arm.send_action(goal)
    after = arm.get_observation()
    assert abs(after["x.pos"] - before["x.pos"]) < 0.05  # one period's worth
    for _ in range(15):
        arm.send_action(goal)
        arm.get_observation()
    found = arm.get_observation()
    for axis in ("x.pos", "y.pos", "z.pos"):
        assert found[axis] == pytest.approx(goal[axis], abs=0.01)
    assert found["gripper.pos"] > 90
    for _ in range(10):
        arm.send_action({**goal, "gripper.pos": 0.0})
    assert arm.get_observation()["gripper.pos"] < 40


def test_scenes_follow_from_the_seed(arm):
    arm.reset_scene(seed=5)
    first = arm.env.raw_state
    arm.reset_scene()
    second = arm.env.raw_state
    arm.reset_scene(seed=5)
    np.testing.assert_array_equal(arm.env.raw_state, first)
    assert not np.array_equal(first, second)


def test_no_two_pictures_are_the_same_bits_but_all_show_the_same(arm):
    one, two = arm.get_observation()["corner"], arm.get_observation()["corner"]
    assert not np.array_equal(one, two)
    assert np.abs(one.astype(int) - two).max() == 1
    np.testing.assert_array_equal(one[1:], two[1:])


def test_the_expert_opens_the_lock_within_the_limits(arm):
    expert = SimExpert(SimExpertConfig(robot_id="shared"))
    expert.connect()
    clock = Clock()
    safe = SafeRobot(arm, sim_limits(), clock=clock)
    arm.received.clear()
    start = safe.arm()
    try:
        for _ in range(60):
            clock.now += 0.05
            safe.beat()
            safe.get_observation()
            safe.send_action(expert.get_action())
            if arm.succeeded:
                break
    finally:
        safe.stop("done")
    assert arm.succeeded
    assert arm.reward == 1.0
    safe.disconnect()
    assert len(arm.received) > 5
    limits = sim_limits().joints
    assert beyond(arm.received, {name: start[name] for name in limits}, limits, np.inf) == 0
    arm.reset_scene()
    assert not arm.succeeded


def test_the_expert_needs_its_arm():
    expert = SimExpert(SimExpertConfig(robot_id="nobody"))
    with pytest.raises(DeviceNotConnectedError, match="'nobody'"):
        expert.get_action()
    assert expert.get_teleop_events()[TeleopEvents.IS_INTERVENTION] is False
    expert.taking_over = True
    assert expert.get_teleop_events()[TeleopEvents.IS_INTERVENTION] is True


def test_a_frozen_camera_repeats_itself_and_the_other_does_not(arm):
    arm.faults.append(Fault(kind="frozen", view="corner", start=arm._readings + 2, readings=3))
    seen = [arm.get_observation() for _ in range(7)]
    same = [np.array_equal(a["corner"], b["corner"]) for a, b in itertools.pairwise(seen)]
    assert same == [False, True, True, True, False, False]
    assert not any(np.array_equal(a["gripperPOV"], b["gripperPOV"]) for a, b in itertools.pairwise(seen))


def test_a_dropped_camera_answers_as_lerobots_do(arm):
    arm.faults.append(Fault(kind="dropped", view="corner", start=arm._readings, readings=1))
    with pytest.raises(TimeoutError, match="corner"):
        arm.get_observation()
    assert arm.get_observation()["corner"].any()


def test_a_black_camera(arm):
    arm.faults.append(Fault(kind="black", view="corner", start=arm._readings + 1))
    assert arm.get_observation()["corner"].any()
    found = arm.get_observation()
    assert not found["corner"].any()
    assert found["gripperPOV"].any()


def test_pictures_out_of_order(arm):
    arm.faults.append(Fault(kind="reordered", view="corner", start=arm._readings + 4))
    seen = [arm.get_observation()["corner"] for _ in range(8)]
    again = [any(np.array_equal(seen[i], seen[j]) for j in range(i - 1)) for i in range(8)]
    assert again[:4] == [False] * 4
    assert sum(again[4:]) == 2


def test_a_disconnection_lasts_until_connected_again(arm):
    arm.faults.append(Fault(kind="disconnect", start=arm._readings + 1, readings=1))
    arm.get_observation()
    with pytest.raises(DeviceNotConnectedError):
        arm.get_observation()
    assert not arm.is_connected
    with pytest.raises(DeviceNotConnectedError):
        arm.send_action(dict.fromkeys(arm.action_features, 0.5))
    assert arm.received == []
    arm.connect()
    assert arm.get_observation()["corner"].any()


def test_slow_readings_are_slow(arm):
    import time

    arm.faults.append(Fault(kind="slow", seconds=0.05, start=arm._readings, readings=1))
    began = time.perf_counter()
    arm.get_observation()
    middle = time.perf_counter()
    arm.get_observation()
    assert middle - began >= 0.05 > time.perf_counter() - middle


def test_an_unknown_task_is_refused():
    with pytest.raises(TaskError, match="unknown task"):
        SimRobot(SimRobotConfig(task="juggle"))


def test_any_environment_will_do():
    env = gym.make("Pendulum-v1")
    robot = SimRobot(SimRobotConfig(id="pendulum"), env)
    robot.connect()
    assert robot.action_features == {"joint_0.vel": float}
    assert robot.observation_features == dict.fromkeys(("state_0.pos", "state_1.pos", "state_2.pos"), float)
    robot.reset_scene(seed=1)
    before = robot.get_observation()
    robot.send_action({"joint_0.vel": 50.0})
    after = robot.get_observation()
    reference = gym.make("Pendulum-v1")
    reference.reset(seed=1)
    expected, *_ = reference.step(np.array([1.0], np.float32))  # half of its torque of 2
    assert list(after.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert list(before.values()) != list(after.values())
    for value in (-100.0, 13.0, 100.0):
        assert robot.body.command(robot.body.action({"joint_0.vel": value}))["joint_0.vel"] == pytest.approx(
            value, abs=1e-4
        )
    with pytest.raises(TypeError, match="bounded Box"):
        SimRobot(SimRobotConfig(), gym.make("CartPole-v1"))


def lerobot(command: str, *arguments: str, home: Path) -> subprocess.CompletedProcess:
    """One of LeRobot's own commands, with our plugin found as an installed one would be."""
    paths = [str(ROOT), str(ROOT / "plugins" / "lerobot_policy_grm")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_LEROBOT_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }
    module = f"lerobot.scripts.lerobot_{command}"
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--play_sounds=false"],
        cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_lerobots_own_record_and_replay(tmp_path):
    robot = ["--robot.type=grm_sim", "--robot.height=64", "--robot.width=64", "--robot.seed=4"]
    lerobot(
        "record", *robot, "--teleop.type=grm_sim_expert", "--dataset.repo_id=local/sim",
        f"--dataset.root={tmp_path / 'set'}", "--dataset.num_episodes=1",
        "--dataset.episode_time_s=3", "--dataset.reset_time_s=0", "--dataset.fps=20",
        "--dataset.single_task=unlock the door", "--dataset.push_to_hub=false", "--dataset.no_stamp=true",
        "--dataset.streaming_encoding=true", "--dataset.rgb_encoder.vcodec=h264", home=tmp_path,
    )  # fmt: skip
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("local/sim", root=tmp_path / "set", video_backend="pyav")
    assert dataset.num_episodes == 1
    assert dataset.num_frames > 20
    assert dataset.features["action"]["names"] == ["x.pos", "y.pos", "z.pos", "gripper.pos"]
    assert set(dataset.meta.video_keys) == {"observation.images.corner", "observation.images.gripperPOV"}
    travelled = np.ptp(np.stack([dataset[i]["observation.state"] for i in range(dataset.num_frames)]), axis=0)
    assert travelled[:3].max() > 0.1
    done = lerobot(
        "replay", *robot, "--dataset.repo_id=local/sim", f"--dataset.root={tmp_path / 'set'}", "--dataset.episode=0",
        home=tmp_path,
    )  # fmt: skip
    assert "Replaying episode" in done.stdout + done.stderr
