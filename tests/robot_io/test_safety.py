import contextlib
import dataclasses
import math
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grm.errors import GrmError
from robot_io.errors import LimitError, RobotError, StaleFrameError, StoppedError
from robot_io.limits import EXAMPLE, JointLimits, SafetyLimits, Workspace
from robot_io.safety import SafeRobot, Watchdog, stop_on_signals

from .fake import CARTESIAN, JOINTS, SHORT, Clock, FakeRobot, beyond, limits


def safe_robot(robot=None, *, clock=None, **kwargs) -> tuple[SafeRobot, FakeRobot, Clock]:
    robot, clock = robot or FakeRobot(), clock or Clock()
    made = SafeRobot(robot, kwargs.pop("limits", limits()), clock=clock, **kwargs)
    return made, robot, clock


@contextlib.contextmanager
def armed(robot=None, **kwargs):
    safe, robot, clock = safe_robot(robot, **kwargs)
    safe.arm()
    try:
        yield safe, robot, clock
    finally:
        safe.disconnect()


def wait_for(condition, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def test_errors_have_one_root_and_are_picklable():
    for error in (RobotError, LimitError, StaleFrameError, StoppedError):
        assert issubclass(error, GrmError)
        assert issubclass(error, RobotError)
        assert str(pickle.loads(pickle.dumps(error("found, expected")))) == "found, expected"
    assert issubclass(LimitError, ValueError)


# ---- the file


def test_the_example_reads_as_written(tmp_path):
    (tmp_path / "limits.toml").write_text(EXAMPLE)
    found = SafetyLimits.read(tmp_path / "limits.toml")
    assert found.joints == {
        "shoulder_pan.pos": JointLimits(unit="deg", low=-90, high=90, max_step=4, max_velocity=60, max_lead=15)
    }
    assert found.workspace == Workspace(low=(0.05, -0.25, 0.02), high=(0.4, 0.25, 0.4))
    assert (found.watchdog.command_s, found.watchdog.camera_s, found.watchdog.process_s) == (0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("min = -90.0", "min = 90.0", "min below max"),
        ("min = -90.0", "min = nan", "finite"),
        ("min = -90.0", 'min = "-90"', "finite number"),
        ("min = -90.0", "min = true", "finite number"),
        ("min = -90.0", "", "lacks min"),
        ("max_step = 4.0", "max_step = 0", "above 0"),
        ("max_step = 4.0", "max_steps = 4.0", "lacks max_step"),
        ("max_lead = 15.0", "max_led = 15.0", "unknown max_led"),
        ("max_velocity = 60.0", "", "no max_velocity"),
        ("max_velocity = 60.0", "max_velocity = inf", "finite number"),
        ('unit = "deg"', 'unit = "degrees"', "expected one of deg, rad"),
        ('unit = "deg"', "unit = 3", "expected text"),
        ("shoulder_pan.pos", "shoulder_pan", "ends neither in .pos nor in .vel"),
        ('unit = "m"', 'unit = "cm"', "convert the box to metres"),
        ("min = [0.05, -0.25, 0.02]", "min = [0.05, -0.25]", "three numbers"),
        ("min = [0.05, -0.25, 0.02]", "min = [0.5, -0.25, 0.02]", "every min below its max"),
        ("camera_s = 1.0", "camera_s = -1.0", "above 0"),
        ("camera_s = 1.0", "", "lacks camera_s"),
        ("[watchdog]", "[watch_dog]", "lacks watchdog"),
        ("[watchdog]", "[watchdog", "cannot be read as TOML"),
        ("[watchdog]", "[more]\n[watchdog]", "unknown more"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(tmp_path, before, after, said):
    assert before in EXAMPLE
    path = tmp_path / "limits.toml"
    path.write_text(EXAMPLE.replace(before, after, 1))
    with pytest.raises(LimitError, match=said) as caught:
        SafetyLimits.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_no_joints_are_refused(tmp_path):
    with pytest.raises(LimitError, match="cannot be read"):
        SafetyLimits.read(tmp_path / "none.toml")
    with pytest.raises(LimitError, match="name no joint"):
        SafetyLimits({}, SHORT)


def test_velocities_must_be_able_to_stand_still_and_have_no_workspace():
    wheel = JointLimits(unit="m/s", low=-1, high=1, max_step=0.1)
    limits({"x.vel": wheel})
    for wrong, said in [
        (dataclasses.replace(wheel, low=0.1), "stand still"),
        (dataclasses.replace(wheel, max_velocity=1.0), "velocity and has"),
        (dataclasses.replace(wheel, unit="m"), "expected one of deg/s"),
    ]:
        with pytest.raises(LimitError, match=said):
            limits({"x.vel": wrong})
    with pytest.raises(LimitError, match="commanded by velocity"):
        limits({"x.vel": wheel}, workspace=Workspace(low=(0, 0, 0), high=(1, 1, 1)))


def test_limits_must_be_of_exactly_this_robot():
    with pytest.raises(LimitError, match=r"no limits for .*wrist"):
        safe_robot(FakeRobot((*JOINTS, "wrist.pos")))
    with pytest.raises(LimitError, match="which the robot does not have"):
        safe_robot(FakeRobot(tuple(JOINTS)[:2]))
    with pytest.raises(LimitError, match="nobody knows where this robot's hand is"):
        safe_robot(limits=limits(workspace=Workspace(low=(0, 0, 0), high=(1, 1, 1))))


def test_limits_must_be_in_the_units_the_robot_says_it_uses():
    robot = FakeRobot()
    robot.config = type("Config", (), {"use_degrees": False})()
    with pytest.raises(LimitError, match="use_degrees=False"):
        safe_robot(robot)
    robot.config.use_degrees = True
    safe_robot(robot)


# ---- the gate


def test_clamped_by_range_step_velocity_and_lead_as_worked_out_by_hand():
    with armed() as (safe, robot, clock):
        far = {"shoulder.pos": 1000.0, "elbow.pos": -1000.0, "gripper.pos": 50.0}
        safe.hold()
        clock.now += 0.05
        # shoulder: 50 deg/s for 0.05 s is 2.5; elbow: one step of 2; gripper: 300 %/s for 0.05 s is 15
        assert safe.send_action(far) == pytest.approx({"shoulder.pos": 12.5, "elbow.pos": 8.0, "gripper.pos": 25.0})
        clock.now += 10
        # after a pause, one step and no more
        assert safe.send_action(far) == pytest.approx({"shoulder.pos": 16.5, "elbow.pos": 6.0, "gripper.pos": 50.0})
        for _ in range(40):
            clock.now += 1
            safe.get_observation()
            safe.send_action(far)
        assert robot.positions == {"shoulder.pos": 90.0, "elbow.pos": 0.0, "gripper.pos": 50.0}
        assert (safe.sent, safe.clamped) == (43, 42)
        assert safe.last_sent == robot.commands[-1]


def test_a_blocked_arm_does_not_wind_up():
    with armed(FakeRobot(follow=0.0)) as (safe, robot, clock):
        for _ in range(20):
            clock.now += 1
            safe.get_observation()
            safe.send_action({"shoulder.pos": 90.0, "elbow.pos": 10.0, "gripper.pos": 10.0})
        assert robot.commands[-1]["shoulder.pos"] == 22.0  # 10 measured and 12 of lead


def test_no_time_no_motion_and_a_clock_that_runs_back_neither():
    with armed() as (safe, robot, clock):
        safe.hold()
        for jump in (0.0, -1000.0):
            clock.now += jump
            safe.send_action(dict.fromkeys(JOINTS, 50.0))
            for name in JOINTS:
                assert robot.commands[-1][name] == pytest.approx(10.0, abs=1e-5)


BAD = [
    {},
    {"shoulder.pos": 1.0},
    {**dict.fromkeys(JOINTS, 1.0), "wrist.pos": 1.0},
    {"shoulder.pos": 1.0, "elbow.pos": 1.0, "wrist.pos": 1.0},
    dict.fromkeys(JOINTS, math.nan),
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": math.inf},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": -math.inf},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": None},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": "10"},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": True},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": 1j},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": 10**400},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": np.array([10.0])},
    {**dict.fromkeys(JOINTS, 10.0), "elbow.pos": [10.0]},
    [10.0, 10.0, 10.0],
    np.zeros(3),
    None,
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_is_no_action_is_refused_and_nothing_is_sent(bad):
    with armed() as (safe, robot, clock):
        clock.now += 1
        with pytest.raises(LimitError):
            safe.send_action(bad)
        assert robot.commands == []
        assert safe.refused == 1
        safe.send_action(dict.fromkeys(JOINTS, np.float32(10.5)))  # the next one that is an action goes through
        assert robot.commands == [dict.fromkeys(JOINTS, 10.5)]


def test_the_start_must_be_within_the_limits():
    for start in (-1.0, 121.0, math.nan, math.inf):
        safe, robot, _ = safe_robot(FakeRobot(start=10.0))
        robot.positions["elbow.pos"] = start
        with pytest.raises(LimitError, match="stands at"):
            safe.arm()
        with pytest.raises(StoppedError, match="not armed"):
            safe.send_action(dict.fromkeys(JOINTS, 10.0))
        assert robot.commands == []


def test_velocities_are_clamped_and_stop_at_zero():
    wheel = JointLimits(unit="m/s", low=-0.5, high=0.5, max_step=0.2)
    robot = FakeRobot(("x.vel",), start=0.0)
    with armed(robot, limits=limits({"x.vel": wheel})) as (safe, _, _):
        assert [safe.send_action({"x.vel": 9.0})["x.vel"] for _ in range(4)] == pytest.approx([0.2, 0.4, 0.5, 0.5])
        safe.stop("enough")
        assert robot.commands[-1] == {"x.vel": 0.0}


def test_the_hand_stays_in_the_box():
    box = Workspace(low=(0.0, -0.1, 0.0), high=(0.3, 0.1, 0.3))
    robot = FakeRobot(tuple(CARTESIAN), start=0.05)
    with armed(robot, limits=limits(CARTESIAN, workspace=box)) as (safe, _, clock):
        for _ in range(50):
            clock.now += 1
            safe.send_action({"x.pos": 1.0, "y.pos": -1.0, "z.pos": 0.1})
        assert robot.commands[-1] == {"x.pos": 0.3, "y.pos": -0.1, "z.pos": 0.1}
    robot.positions["z.pos"] = -0.01
    with pytest.raises(LimitError, match="the hand is at"), armed(robot, limits=limits(CARTESIAN, workspace=box)):
        pass


class Arm:
    """Two links of 0.2 m in a plane."""

    def forward(self, positions):
        first = math.radians(positions["shoulder.pos"])
        second = first + math.radians(positions["elbow.pos"])
        return np.array(
            [0.2 * math.cos(first) + 0.2 * math.cos(second), 0.0, 0.2 * math.sin(first) + 0.2 * math.sin(second)]
        )


def test_the_hand_stays_in_the_box_by_kinematics():
    box, generator = Workspace(low=(0.0, -0.1, 0.02), high=(0.38, 0.1, 0.3)), np.random.default_rng(0)
    with armed(FakeRobot(start=30.0), limits=limits(workspace=box), kinematics=Arm()) as (safe, robot, clock):
        goals = generator.uniform(-200, 200, (3, 200)).repeat(20, axis=1)
        stood = 0
        for goal in goals.T:
            clock.now += 0.1
            safe.get_observation()
            safe.send_action(dict(zip(JOINTS, goal, strict=True)))
            assert box.contains(Arm().forward(robot.commands[-1]))
            stood += len(robot.commands) > 1 and robot.commands[-1] == robot.commands[-2]
        assert beyond(robot.commands, dict.fromkeys(JOINTS, 30.0), JOINTS, 0.1) == 0
        assert stood < 3500, "it must be able to leave the wall again"
        assert np.ptp([c["shoulder.pos"] for c in robot.commands]) > 30


# ---- none beyond limits is ever sent

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([90.0, -90.0, 90.0000001, 1e308, -1e308, 5e-324, 0.0, -0.0, 120.0, 100.0]),
)
ACTIONS = st.one_of(st.fixed_dictionaries(dict.fromkeys(JOINTS, NUMBERS)), st.sampled_from(BAD))


@settings(max_examples=150, deadline=None)
@given(
    start=st.floats(0, 90),
    follow=st.floats(0, 1.5),
    script=st.lists(st.tuples(ACTIONS, st.floats(-1, 2), st.booleans()), max_size=30),
)
def test_whatever_is_asked_nothing_beyond_the_limits_is_sent(start, follow, script):
    robot = FakeRobot(start=start, follow=follow)
    safe, robot, clock = safe_robot(robot)
    safe._guard = threading.current_thread()  # no thread per example: there is nothing to watch here
    safe.arm()
    times = []
    for action, seconds, look in script:
        clock.now += seconds
        if look:
            safe.get_observation()
        before = len(robot.commands)
        with contextlib.suppress(LimitError):
            safe.send_action(action)
        if len(robot.commands) > before:
            times.append(clock.now)
    elapsed = np.maximum(np.diff([-np.inf, *times]), 1e-9)  # the first starts from rest
    assert beyond(robot.commands, dict.fromkeys(JOINTS, start), JOINTS, elapsed) == 0
    assert safe.sent + safe.refused == len(script)


def adversary(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Actions meant to break out: huge, tiny, at the limits, jumping from one to the other, not numbers at all."""
    kind = generator.integers(0, 8, shape)
    choices = [
        generator.uniform(-200, 200, shape),
        generator.normal(0, 1e6, shape),
        np.where(generator.random(shape) < 0.5, -1e308, 1e308),
        generator.choice([0.0, 90.0, -90.0, 120.0, 100.0, np.nextafter(90, 91), np.nextafter(0, -1)], shape),
        np.full(shape, np.nan),
        np.where(generator.random(shape) < 0.5, -np.inf, np.inf),
        generator.uniform(-90, 120, shape),
        5e-324 * generator.integers(-9, 9, shape),
    ]
    return np.choose(kind, choices)


def drive(ticks: int, seed: int) -> tuple[int, int, int]:
    """Adversarial actions through the gate: how many were sent, refused, and beyond the limits."""
    generator = np.random.default_rng(seed)
    clock, start = Clock(), {"shoulder.pos": -20.0, "elbow.pos": 15.0, "gripper.pos": 60.0}
    robot = FakeRobot(follow=0.7)
    robot.positions = dict(start)
    safe, _, _ = safe_robot(robot, clock=clock)
    safe._guard = threading.current_thread()
    safe.arm()
    wild, dt, look = adversary(generator, (ticks, 3)), generator.exponential(0.05, ticks), generator.random(ticks) < 0.8
    calm = generator.random(ticks) < 0.5  # else nearly half would be refused for some NaN
    wild[calm] = np.nan_to_num(wild[calm], nan=0.0, posinf=1e308, neginf=-1e308)
    times = []
    for t, action in enumerate(wild.tolist()):
        clock.now += dt[t]
        if look[t]:
            safe.get_observation()
        try:
            safe.send_action(dict(zip(JOINTS, action, strict=True)))
        except LimitError:
            continue
        times.append(clock.now)
    return safe.sent, safe.refused, beyond(robot.commands, start, JOINTS, np.diff([-np.inf, *times]))


def test_a_hundred_thousand_adversarial_actions_through_the_gate():
    sent, refused, wrong = drive(100_000, 0)
    assert sent + refused == 100_000
    assert sent > 50_000
    assert refused > 20_000
    assert wrong == 0


@pytest.mark.slow
def test_a_million_adversarial_actions_through_the_gate():
    sent, refused, wrong = drive(1_000_000, 1)
    assert sent + refused == 1_000_000
    assert wrong == 0


def test_two_million_adversarial_actions_clamped_at_once():
    generator, table, robots, ticks = np.random.default_rng(2), limits(), 4000, 500
    low, high, step = (np.array([getattr(j, key) for j in JOINTS.values()]) for key in ("low", "high", "max_step"))
    last, wrong = generator.uniform(low, high, (robots, 3)), 0
    measured = last.copy()
    for _ in range(ticks):
        target = np.nan_to_num(adversary(generator, (robots, 3)), nan=3.0, posinf=1e308, neginf=-1e308)
        measured = np.where(generator.random((robots, 3)) < 0.01, np.nan, last + generator.normal(0, 5, (robots, 3)))
        safe = table.clamp(target, last, measured, elapsed_s=float(generator.exponential(0.05)))
        wrong += int(((safe < low) | (safe > high) | ~np.isfinite(safe) | (np.abs(safe - last) > step + 1e-9)).sum())
        last = safe
    assert wrong == 0


def test_the_check_itself_sees():
    start = dict.fromkeys(JOINTS, 10.0)
    assert beyond([{**start, "elbow.pos": 12.5}], start, JOINTS, 1.0) == 1
    assert beyond([{**start, "elbow.pos": -0.1}], {**start, "elbow.pos": 0.0}, JOINTS, 1.0) == 1
    assert beyond([{**start, "shoulder.pos": 13.0}], start, JOINTS, 0.05) == 1
    assert beyond([{**start, "shoulder.pos": math.nan}], start, JOINTS, 1.0) == 1
    assert beyond([{**start, "elbow.pos": 12.0}], start, JOINTS, 1.0) == 0


# ---- stopping


def test_stop_is_idempotent_holds_and_lasts_until_armed_again():
    with armed(FakeRobot(follow=0.5)) as (safe, robot, clock):
        clock.now += 0.05
        safe.send_action(dict.fromkeys(JOINTS, 12.0))
        safe.get_observation()
        safe.stop("enough")
        safe.stop("again")
        assert safe.stopped == "enough"
        [_, held] = robot.commands
        assert held == pytest.approx(dict.fromkeys(JOINTS, 11.0))  # half of the way: where it is, and not where it goes
        for send in (safe.hold, lambda: safe.send_action(dict.fromkeys(JOINTS, 12.0)), safe.resume):
            with pytest.raises(StoppedError, match="enough"):
                send()
        assert len(robot.commands) == 2
        safe.arm()
        safe.hold()
        assert len(robot.commands) == 3


def test_stop_holds_the_last_command_when_nobody_looked_for_a_while():
    with armed(limits=limits(watchdog=dataclasses.replace(SHORT, command_s=30))) as (safe, robot, clock):
        clock.now += 1
        safe.send_action({"shoulder.pos": 14.0, "elbow.pos": 12.0, "gripper.pos": 40.0})
        clock.now += 40
        safe.stop("old")
        assert robot.commands[0] == robot.commands[1]


def test_a_lost_connection_stops_and_the_hold_comes_when_it_is_back():
    with armed() as (safe, robot, clock):
        clock.now += 0.05
        safe.send_action(dict.fromkeys(JOINTS, 11.0))
        robot.broken = ConnectionError("unplugged")
        with pytest.raises(RobotError, match="did not take an action"):
            safe.send_action(dict.fromkeys(JOINTS, 12.0))
        assert "unplugged" in str(safe.stopped)
        with pytest.raises(RobotError, match="did not report"):
            safe.get_observation()
        robot.broken = None
        wait_for(lambda: len(robot.commands) == 2)
        assert robot.commands[1] == robot.commands[0] | {"shoulder.pos": 10.0, "elbow.pos": 10.0, "gripper.pos": 10.0}


def test_resting_expects_nothing_and_sends_nothing():
    with armed(limits=limits(watchdog=SHORT)) as (safe, robot, clock):
        safe.rest()
        clock.now += 3600
        time.sleep(0.1)
        assert safe.stopped is None
        with pytest.raises(StoppedError, match="rests"):
            safe.send_action(dict.fromkeys(JOINTS, 10.0))
        robot.positions["elbow.pos"] = 60.0  # moved by hand
        safe.resume()
        clock.now += 0.01
        assert safe.send_action(dict.fromkeys(JOINTS, 10.0))["elbow.pos"] == 58.0
        safe.rest()
        robot.positions["elbow.pos"] = 121.0
        with pytest.raises(LimitError, match="stands at"):
            safe.resume()
        assert safe.resting


@pytest.mark.parametrize(
    ("silent", "said"), [("command", "a command is late"), ("camera", "camera front is late"), ("loop", "control loop")]
)
def test_the_watchdog_stops_a_silent(silent, said):
    times = dataclasses.replace(SHORT, **{f"{s}_s": 60.0 for s in ("command", "camera", "process")})
    late = {"command": "command_s", "camera": "camera_s", "loop": "process_s"}[silent]
    table = limits(watchdog=dataclasses.replace(times, **{late: 0.15}))
    with armed(limits=table, clock=time.monotonic, cameras=("front",)) as (safe, robot, _):
        began = time.monotonic()
        while safe.stopped is None and time.monotonic() - began < 3:
            with contextlib.suppress(StoppedError):
                if silent != "command":
                    safe.hold()
            if silent != "camera":
                safe.saw("front")
            if silent != "loop":
                safe.beat()
            time.sleep(0.01)
        assert said in str(safe.stopped)
        assert 0.1 < time.monotonic() - began < 1.5
        wait_for(lambda: safe._held)
        assert robot.commands[-1] == dict.fromkeys(JOINTS, 10.0)


def test_whoever_is_heard_of_is_not_late():
    with armed(
        limits=limits(watchdog=dataclasses.replace(SHORT, command_s=0.4, camera_s=0.4)),
        clock=time.monotonic,
        cameras=("front",),
    ) as (safe, _, _):
        for _ in range(60):
            safe.hold()
            safe.saw("front")
            safe.beat()
            time.sleep(0.01)
        assert safe.stopped is None


def test_the_watchdog_says_who_and_for_how_long():
    dog = Watchdog()
    dog.expect("the camera", 0.5, now=10.0)
    dog.feed("somebody else", now=10.4)
    assert dog.late(10.5) is None
    assert dog.late(10.6) == "the camera is late: 0.60 s since the last one, at most 0.5 s are allowed"
    dog.feed("the camera", now=10.6)
    assert dog.late(11.0) is None
    dog.forget()
    assert dog.late(1e9) is None


def test_a_jump_of_the_wall_clock_does_nothing(monkeypatch):
    with armed(limits=limits(watchdog=SHORT), clock=time.monotonic) as (safe, _, _):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        for _ in range(10):
            safe.hold()
            safe.beat()
            time.sleep(0.01)
        assert safe.stopped is None


def test_a_driver_that_hangs_is_stopped_the_moment_it_returns():
    class Hanging(FakeRobot):
        release = threading.Event()

        def send_action(self, action):
            if action["shoulder.pos"] > 10.2:
                assert self.release.wait(5)
            return super().send_action(action)

    robot = Hanging()
    with armed(robot, limits=limits(watchdog=SHORT), clock=time.monotonic) as (safe, _, _):
        time.sleep(0.05)
        worker = threading.Thread(target=lambda: safe.send_action(dict.fromkeys(JOINTS, 12.0)))
        worker.start()
        wait_for(lambda: safe.stopped is not None)
        assert robot.commands == []
        robot.release.set()
        wait_for(lambda: len(robot.commands) == 2)  # the one that hung, and the hold right after it
        worker.join()
        assert robot.commands[1] == robot.commands[0]


def test_a_signal_stops_even_while_the_bus_is_in_use():
    class Signalled(FakeRobot):
        def send_action(self, action):
            if not self.commands:
                os.kill(os.getpid(), signal.SIGTERM)  # the handler runs here, with the bus in this very thread's hand
            return super().send_action(action)

    before = signal.getsignal(signal.SIGTERM)
    robot = Signalled()
    with armed(robot) as (safe, _, clock), stop_on_signals(safe):
        clock.now += 0.05
        safe.send_action(dict.fromkeys(JOINTS, 11.0))
        assert safe.stopped == "the program received SIGTERM"
        wait_for(lambda: len(robot.commands) == 2)
        with pytest.raises(StoppedError, match="SIGTERM"):
            safe.hold()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_during_arming_is_not_forgotten():
    class Slow(FakeRobot):
        def get_observation(self):
            safe.stop("pressed meanwhile", wait=False)
            return super().get_observation()

    safe, robot, _ = safe_robot(Slow())
    with pytest.raises(StoppedError):
        safe.arm()
    with pytest.raises(StoppedError):
        safe.send_action(dict.fromkeys(JOINTS, 10.0))
    assert robot.commands == []


def test_connecting_what_is_not_there_says_so():
    robot = FakeRobot()
    robot.is_connected, robot.broken = False, OSError("no such port")
    safe, _, _ = safe_robot(robot)
    with pytest.raises(RobotError, match="no such port"):
        safe.connect()


def test_many_threads_may_stop_at_once():
    with armed() as (safe, robot, _):
        threads = [threading.Thread(target=safe.stop, args=(f"by {i}",)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(robot.commands) == 1
