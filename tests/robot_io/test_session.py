import json
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import ClockJumps, DiskFull, MakeBlind, Wire
from grm.errors import GrmError
from robot_io.learner import LearnerSide, checkpoints
from robot_io.link import Message
from robot_io.plan import RobotSide
from robot_io.recorder import read_judged
from robot_io.replay import read_attempt, read_lines
from robot_io.session import Session, _Child, free_address
from robot_io.sim import Fault, SimExpertConfig, SimRobotConfig

from .toy import Brightness, MakeTally, Tally, Wander, shaped

LIMITS = (Path(__file__).parents[2] / "robot_io" / "sim_limits.toml").read_text()


@pytest.fixture
def grm(tmp_path) -> Path:
    folder = tmp_path / "grm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def side(tmp_path) -> RobotSide:
    """Five steps an episode; a watchdog that a busy machine does not set off."""
    limits = tmp_path / "limits.toml"
    limits.write_text(
        LIMITS[: LIMITS.index("[watchdog]")] + "[watchdog]\ncommand_s=60.0\ncamera_s=60.0\nprocess_s=60.0"
    )
    return RobotSide(
        out=tmp_path / "out",
        robot=SimRobotConfig(id="session", height=32, width=32),
        limits=limits,
        instruction="unlock the door",
        horizon=5,
        success="environment",
        learner=free_address(),
        rollouts=4,
    )


class Running:
    """A session in a thread; what it raised is raised at the end."""

    def __init__(self, side: RobotSide, make_mind, *, make_policy=Wander, listen=None) -> None:
        """`make_mind` None for a learner that is not there."""
        there = side.learner is not None and make_mind is not None
        learner = LearnerSide(out=side.out / "learner", address=listen or side.learner) if there else None
        self.side = side
        self.session = Session(
            robot=side, learner=learner, make_policy=make_policy, make_mind=make_mind, preload=("tests.robot_io.toy",)
        )
        self.error: GrmError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.session.run()
        except GrmError as error:
            self.error = error

    def until(self, what, within_s: float = 120.0) -> None:
        end = time.monotonic() + within_s
        while not what(self.session.state()):
            assert self.thread.is_alive(), self.error
            assert time.monotonic() < end, self.session.state()
            time.sleep(0.01)

    def finish(self, within_s: float = 120.0) -> None:
        self.thread.join(within_s)
        assert not self.thread.is_alive(), self.session.state()
        if self.error is not None:
            raise self.error


def learned(side: RobotSide) -> dict[str, list[float]]:
    [newest] = checkpoints(side.out / "learner")
    return json.loads((newest / "rewards.json").read_text())


def done(state) -> int:
    return state.get("rollouts", {}).get("done", 0)


def test_a_session_records_judges_learns_and_ends(side, grm):
    side = replace(side, evaluate_every=2, evaluations=1)
    running = Running(side, MakeTally(grm))
    running.finish()
    lines = read_lines(side.recording)
    assert [line["behaviour"] for line in lines] == [
        "rollout",
        "rollout",
        "evaluation",
        "rollout",
        "rollout",
        "evaluation",
    ]
    paid = learned(side)
    assert sorted(map(int, paid)) == [0, 1, 3, 4], "evaluations are not learned from"
    state = running.session.state()
    assert state["rollouts"]["done"] == 4
    assert state["rollouts"]["evaluation"] == [False, False, True, False, False, True]
    assert state["safety"]["refused"] == 0
    assert set(running.session.pictures) == {"corner", "gripperPOV"}
    timing = [json.loads(line) for line in (side.out / "timing.jsonl").read_text().splitlines()]
    assert [len(line["periods_ms"]) for line in timing] == [5] * 6
    assert all(ms > 0 for line in timing for ms in line["latencies_ms"])
    judged = read_judged(side.recording)[3]
    assert judged.judged.any(), "Φ as it was at the time is in the recording"


def test_rewards_of_the_recording_are_those_that_were_learned_from(side, grm):
    Running(side, MakeTally(grm)).finish()
    paid = learned(side)
    assert len(paid) == 4
    for number, rewards in paid.items():
        attempt = read_attempt(side.recording, int(number))
        assert shaped(attempt, Brightness().judge(Tally.task, attempt.frames)) == rewards


@pytest.mark.slow
def test_what_was_recorded_without_a_learner_is_learned_later(side, grm):
    """Ended in the middle, begun again with a learner that lost everything: nothing finished is lost."""
    first = Running(side, MakeTally(grm))
    first.until(lambda state: done(state) >= 2)
    first.session.interrupt()
    first.finish()
    kept = len(read_lines(side.recording))
    assert 2 <= kept < 4
    shutil.rmtree(side.out / "learner")
    Running(side, MakeTally(grm)).finish()
    assert sorted(map(int, learned(side))) == [0, 1, 2, 3]


@pytest.mark.slow
def test_without_a_learner_it_goes_on_with_the_last_policy_and_is_learned_from_later(side, grm):
    Running(replace(side, rollouts=1), MakeTally(grm)).finish()
    Running(replace(side, rollouts=3), None).finish()
    assert len(read_lines(side.recording)) == 3
    assert list(learned(side)) == ["0"]
    Running(replace(side, rollouts=4), MakeTally(grm)).finish()
    assert sorted(map(int, learned(side))) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["robot", "learner"])
def test_whoever_is_killed_is_started_again(side, grm, name):
    running = Running(replace(side, rollouts=200), MakeTally(grm))
    running.until(lambda state: done(state) >= 1)
    os.kill(running.session.processes[name], signal.SIGKILL)
    running.until(lambda state: state["restarts"][name] == 1)
    before = done(running.session.state())
    running.until(lambda state: done(state) >= before + 2 and state["learner"]["connected"])
    running.session.press("q")
    running.finish()
    assert running.session.state()["restarts"][name] == 1
    recorded = len(read_lines(side.recording))
    assert recorded >= 3
    assert sorted(map(int, learned(side))) == list(range(recorded))


def test_another_grm_or_other_limits_are_refused(side, grm, tmp_path):
    Running(replace(side, rollouts=1), MakeTally(grm)).finish()
    (grm / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(GrmError, match=r"was learned with the GRM .* put it back, or choose another --out"):
        Running(side, MakeTally(grm)).finish()
    (grm / "model.safetensors").write_bytes(b"weights")
    side.limits.write_text(side.limits.read_text().replace("max_step = 0.04 ", "max_step = 0.03 ", 1))
    with pytest.raises(GrmError, match=r"the limits file has the fingerprint .* expected the same limits"):
        Running(side, MakeTally(grm)).finish()


def test_a_process_that_keeps_dying_is_given_up(side, grm):
    with pytest.raises(GrmError, match="the learner process died 6 times"):
        Running(side, MakeTally(grm, failing="exit")).finish()


class Dead:
    """A process that was killed."""

    exitcode = -9


@pytest.mark.parametrize("said", ["learned", "recorded"])
def test_who_dies_often_and_gets_on_in_between_is_not_given_up(said):
    child = _Child(name="learner", target=print, arguments=())
    child.process = Dead()
    for episode in range(20):
        child.started = time.monotonic()
        fields = {"learned": episode} if said == "learned" else {"rollouts": {"done": episode}}
        child.heard = Message(kind="state", fields=fields)
        assert child.died()
    for _ in range(4):
        child.started = time.monotonic()
        assert child.died()
    child.started = time.monotonic()
    with pytest.raises(GrmError, match="died 6 times in a row, the last time with signal 9"):
        child.died()


def test_ctrl_c_twice_stops_now(side, grm):
    running = Running(replace(side, horizon=2000), MakeTally(grm))
    running.until(lambda state: state["phase"] == "running" and state["episode"]["tick"] > 2)
    running.session.interrupt()
    running.session.interrupt()
    running.finish(60.0)
    [line] = read_lines(side.recording)
    assert "stopped" in line["reason"]
    assert 2 < line["length"] < 2000


def test_a_person_demonstrates_and_it_is_recorded(side):
    demonstration = replace(
        side, teleop=SimExpertConfig(robot_id="session"), demonstrate=True, rollouts=1, horizon=150, learner=None
    )
    running = Running(demonstration, MakeTally(Path()))
    running.finish()
    [line] = read_lines(side.recording)
    assert line["behaviour"] == "demonstration"
    attempt = read_attempt(side.recording, 0)
    assert attempt.success
    assert attempt.terminated
    assert np.abs(attempt.actions).max() <= 1


# ---- faults that come by themselves


@pytest.fixture
def quick(side) -> RobotSide:
    """Limits that notice a fault within a second."""
    side.limits.write_text(side.limits.read_text().replace("camera_s=60.0", "camera_s=0.5"))
    return replace(side, horizon=15, rollouts=3)


def survive(side: RobotSide, grm: Path, *, make_mind=None, make_policy=Wander) -> dict:
    """A whole session in which something goes wrong; the last state."""
    running = Running(side, make_mind or MakeTally(grm), make_policy=make_policy)
    running.finish(300.0)
    lines = read_lines(side.recording)
    assert sum(line["behaviour"] == "rollout" for line in lines) == side.rollouts
    assert all(len(read_attempt(side.recording, number).rewards) >= 1 for number in range(len(lines)))
    assert sorted(map(int, learned(side))) == list(range(len(lines)))
    return running.session.state()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind="frozen", view="corner", start=12, readings=60), "newest picture of camera 'corner'"),
        pytest.param(Fault(kind="black", start=12, readings=60), "newest picture of camera", marks=pytest.mark.slow),
        pytest.param(Fault(kind="dropped", view="corner", start=12, readings=3), "", marks=pytest.mark.slow),
        pytest.param(Fault(kind="reordered", start=12, readings=20), "", marks=pytest.mark.slow),
        (Fault(kind="disconnect", start=12, readings=1), "not connected"),
        pytest.param(Fault(kind="slow", start=12, readings=2, seconds=0.7), "", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_fault_of_robot_or_camera_costs_a_rollout_at_most(quick, grm, fault, said):
    state = survive(replace(quick, robot=replace(quick.robot, faults=[fault])), grm)
    assert any(said in one["text"] for one in state["faults"]) or not said
    assert state["safety"]["refused"] == 0


@pytest.mark.slow
def test_a_full_disk_is_waited_for(side, grm):
    state = survive(side, grm, make_policy=DiskFull(Wander, 1, 2))
    assert any("the disk is full" in one["text"] for one in state["faults"])


@pytest.mark.slow
def test_jumps_of_the_wall_clock_do_nothing(side, grm):
    state = survive(side, grm, make_policy=ClockJumps(Wander))
    assert state["faults"] == []


@pytest.mark.slow
def test_a_judge_that_abstains_is_no_reason_to_stop(side, grm):
    survive(replace(side, rollouts=12), grm, make_mind=MakeBlind(MakeTally(grm)))


def test_a_network_that_is_cut_and_comes_back(side, grm):
    """The robot goes on with the policy it has; what the learner missed is told again."""
    wire = Wire(side.learner)
    running = Running(replace(side, learner=wire.address, rollouts=6), MakeTally(grm), listen=side.learner)
    running.until(lambda state: done(state) >= 1 and state["learner"]["backlog"] == 0)
    wire.cut = True
    for end in wire._open:
        end.close()
    before = done(running.session.state())
    running.until(lambda state: done(state) >= before + 2)
    assert running.session.state()["learner"]["backlog"] >= 2
    wire.cut = False
    running.finish()
    assert sorted(map(int, learned(side))) == list(range(6))


@pytest.mark.slow
def test_keys_at_random_do_no_harm(side, grm):
    generator = random.Random(0)
    running = Running(replace(side, rollouts=20, horizon=10), MakeTally(grm))
    running.until(lambda state: done(state) >= 1)
    for _ in range(100):
        running.session.press(generator.choice(("s", "f", "d", "r", "space", "enter", "p", "p", "nonsense")))
        time.sleep(generator.uniform(0, 0.1))
    if running.session.state()["phase"] == "paused":
        running.session.press("p")
    running.finish(300.0)
    assert sorted(map(int, learned(side))) == list(range(len(read_lines(side.recording))))


def test_a_person_says_when_the_scene_is_ready_and_what_was_a_success(side, grm):
    running = Running(replace(side, attended=True, success="person", rollouts=2, horizon=2000), MakeTally(grm))
    for number in range(2):
        running.until(lambda state: "reset the scene" in (state["waits_for"] or ""))
        for key in ("s", "f", "d", "p", "space"):  # none of which means anything now
            running.session.press(key)
        time.sleep(0.2)
        assert running.session.state()["phase"] == "resetting"
        running.session.press("enter")
        running.until(lambda state: state["phase"] == "running" and state["episode"]["tick"] > 3)
        running.session.press("f" if number else "s")
    running.finish()
    assert [line["verdict"] for line in read_lines(side.recording)] == ["success", "failure"]


@pytest.mark.slow
def test_killed_again_and_again_nothing_finished_is_lost(side, grm):
    generator, kills = random.Random(0), 0
    running = Running(replace(side, rollouts=10**6), MakeTally(grm, 0.2))
    running.until(lambda state: done(state) >= 1)
    while kills < 12:
        time.sleep(generator.uniform(0, 2))
        before = read_lines(side.recording)
        for name in generator.choice((("robot",), ("learner",), ("robot", "learner"))):
            pid = running.session.processes[name]
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            kills += 1
        least = len(before) + 1
        running.until(lambda state, least=least: len(read_lines(side.recording)) >= least)
        assert read_lines(side.recording)[: len(before)] == before
        assert read_attempt(side.recording, len(before) - 1).number == len(before) - 1
    running.until(lambda state: state["learner"]["backlog"] <= 1)
    running.session.interrupt()
    running.finish()
    assert sorted(map(int, learned(side))) == list(range(len(read_lines(side.recording))))
