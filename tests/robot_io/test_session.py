import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grm.errors import GrmError
from robot_io.actor import RobotSide, next_purpose, scene_seed
from robot_io.learner import LearnerSide, checkpoints
from robot_io.recorder import read_judged
from robot_io.replay import read_attempt, read_lines, rejudge
from robot_io.session import Session, free_address
from robot_io.sim import SimExpertConfig, SimRobotConfig

from .toy import Brightness, MakeTally, Tally, Wander

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

    def __init__(self, side: RobotSide, make_mind: MakeTally) -> None:
        learner = LearnerSide(out=side.out / "learner", address=side.learner) if side.learner else None
        self.side = side
        self.session = Session(
            robot=side, learner=learner, make_policy=Wander, make_mind=make_mind, preload=("tests.robot_io.toy",)
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
    judged = read_judged(side.recording, 3)
    assert judged.judged.any(), "Φ as it was at the time is in the recording"


def test_rewards_of_the_recording_are_those_that_were_learned_from(side, grm):
    Running(side, MakeTally(grm)).finish()
    paid = learned(side)
    assert len(paid) == 4
    for number, rewards in paid.items():
        attempt = read_attempt(side.recording, int(number))
        _, again = rejudge(Brightness(), Tally.task, attempt, gamma=Tally.gamma, weight=Tally.weight)
        np.testing.assert_array_equal(again, np.array(rewards, np.float32))


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


@pytest.mark.parametrize("name", ["robot", "learner"])
def test_whoever_is_killed_is_started_again(side, grm, name):
    running = Running(replace(side, rollouts=5), MakeTally(grm))
    running.until(lambda state: done(state) >= 1)
    os.kill(running.session.processes[name], signal.SIGKILL)
    running.finish()
    assert running.session.state()["restarts"][name] == 1
    assert len(read_lines(side.recording)) == 5
    assert sorted(map(int, learned(side))) == [0, 1, 2, 3, 4]


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


def test_what_comes_next_follows_from_what_is_recorded(side):
    def lines(text: str) -> list[dict]:
        return [{"behaviour": {"r": "rollout", "e": "evaluation"}[letter]} for letter in text]

    side = replace(side, rollouts=4, evaluate_every=2, evaluations=2)
    assert [next_purpose(lines(text), side) for text in ("", "rr", "rre", "rree", "rreerr", "rreerree")] == [
        "rollout", "evaluation", "evaluation", "rollout", "evaluation", None,
    ]  # fmt: skip
    seeds = [scene_seed(side, lines("rr" + "e" * k), "evaluation") for k in range(3)]
    assert seeds[0] == seeds[2] != seeds[1]
    assert scene_seed(side, lines(""), "rollout") != scene_seed(side, lines("r"), "rollout") not in seeds
