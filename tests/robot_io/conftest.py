"""One simulated arm for all tests of this folder: making its cameras costs more than most of what is done with them."""

import contextlib

import pytest

from robot_io.robot import RobotEnv
from robot_io.rollout import Verdict
from robot_io.safety import SafeRobot
from robot_io.sim import SimExpert, SimExpertConfig, SimRobot, SimRobotConfig, sim_limits

from .fake import Clock


@pytest.fixture(scope="session")
def shared_arm():
    robot = SimRobot(SimRobotConfig(id="shared", height=32, width=32))
    robot.connect()
    yield robot
    robot.close()


@pytest.fixture
def arm(shared_arm) -> SimRobot:
    """Whole, connected, at the beginning of scene 3."""
    shared_arm.faults.clear()
    shared_arm.received.clear()
    shared_arm._pictures.clear()
    shared_arm.connect()
    shared_arm.reset_scene(seed=3)
    return shared_arm


@pytest.fixture
def expert(arm) -> SimExpert:
    teleoperator = SimExpert(SimExpertConfig(robot_id="shared"))
    teleoperator.connect()
    return teleoperator


@pytest.fixture
def make_env(arm):
    """Environments of the simulated arm, armed; on a clock of their own unless `clock` says otherwise."""
    with contextlib.ExitStack() as stack:

        def make(clock=None, *, limits=None, arm_it: bool = True, **kwargs) -> RobotEnv:
            clock = clock or Clock()

            def sleep(seconds: float) -> None:
                clock.now += seconds

            times = {"clock": clock, "sleep": sleep} if isinstance(clock, Clock) else {"clock": clock}
            safe = SafeRobot(arm, limits or sim_limits(), clock=clock)
            env = RobotEnv(
                safe,
                rate_hz=20,
                **{
                    "success": lambda _o, _i: Verdict.SUCCESS if arm.succeeded else Verdict.GOING,
                    "reset_scene": arm.reset_scene,
                    **times,
                    **kwargs,
                },
            )
            stack.callback(env.close)
            if arm_it:
                safe.arm()
            return env

        yield make
