import logging
import threading
import time

import numpy as np
import pytest

from grm.data.lerobot import read_episodes
from robot_io.errors import LimitError, RobotError, StoppedError
from robot_io.loop import ControlLoop, Guarded, await_ready
from robot_io.operator import Event, Operator, Phase
from robot_io.recorder import Recorder
from robot_io.rollout import Ending, Tick, Verdict
from robot_io.sim import Fault

NOTHING = np.array([0, 0, 0, 1.0])


class Witness:
    """Remembers all it was told."""

    def __init__(self) -> None:
        self.said: list = []

    def begin(self, observation, info) -> None:
        self.said.append("begin")

    def tick(self, tick: Tick) -> None:
        self.said.append(tick)

    def end(self, ending: Ending) -> None:
        self.said.append(ending)

    @property
    def ticks(self) -> list[Tick]:
        return [said for said in self.said if isinstance(said, Tick)]


class Clumsy(Witness):
    def tick(self, tick: Tick) -> None:
        super().tick(tick)
        raise ZeroDivisionError("clumsy")


def still(_observation) -> np.ndarray:
    return NOTHING


def test_an_episode_is_told_in_order(make_env, arm):
    env, witness = make_env(horizon=4), Witness()
    [ending] = ControlLoop(env, still, subscribers=[witness]).run(1, seed=3)
    assert ending == Ending(verdict=Verdict.GOING, ticks=4, interventions=0)
    assert witness.said[0] == "begin"
    assert witness.said[-1] == ending
    assert [tick.index for tick in witness.ticks] == [0, 1, 2, 3]
    for one, other in zip(witness.ticks, witness.ticks[1:], strict=False):
        assert one.next_observation is other.observation
    assert [tick.truncated for tick in witness.ticks] == [False, False, False, True]
    assert env.robot.stopped == "the control loop ended"


def test_a_subscriber_that_fails_is_logged_once_and_the_robot_goes_on(make_env, caplog):
    clumsy, witness = Clumsy(), Witness()
    loop = ControlLoop(make_env(horizon=5), still, subscribers=[clumsy, witness])
    with caplog.at_level(logging.ERROR, logger="robot_io.loop"):
        endings = loop.run(2, seed=3)
    assert [ending.ticks for ending in endings] == [5, 5]
    assert len(witness.ticks) == 10
    assert len(clumsy.ticks) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Clumsy failed and is not called again; the robot goes on"
    ]
    [(who, why)] = loop.subscribers.dead
    assert who is clumsy
    assert isinstance(why, ZeroDivisionError)


def test_the_guard_lets_nobody_else_suffer():
    guard = Guarded([Clumsy(), witness := Witness()])
    guard.tell("tick", object())
    guard.tell("end", Ending(verdict=Verdict.GOING, ticks=0, interventions=0))
    assert len(witness.said) == 2


@pytest.mark.parametrize("what", ["raises", "nan", "interrupts"])
def test_whatever_the_policy_does_the_robot_ends_stopped(make_env, arm, what):
    calls = 0

    def act(_observation):
        nonlocal calls
        calls += 1
        if calls < 3:
            return NOTHING
        if what == "raises":
            raise ZeroDivisionError("no policy")
        if what == "interrupts":
            raise KeyboardInterrupt
        return NOTHING * np.nan

    env, witness = make_env(), Witness()
    expected = {"raises": ZeroDivisionError, "nan": LimitError, "interrupts": KeyboardInterrupt}[what]
    with pytest.raises(expected):
        ControlLoop(env, act, subscribers=[witness]).run(3, seed=3)
    assert env.robot.stopped is not None
    ending = witness.said[-1]
    assert isinstance(ending, Ending)
    assert len(witness.ticks) == 2
    assert ending.reason
    if what != "interrupts":
        assert ending.ticks == 2
    sent = len(arm.received)
    with pytest.raises(StoppedError):
        env.robot.hold()
    assert len(arm.received) == sent


def test_a_fault_ends_the_episode_and_arming_again_goes_on(make_env, arm):
    env, witness = make_env(horizon=10), Witness()
    loop = ControlLoop(env, still, subscribers=[witness])
    arm.faults.append(Fault(kind="disconnect", start=arm._readings + 6, readings=1))
    with pytest.raises(RobotError):
        loop.run(1, seed=3)
    assert "RobotError" in witness.said[-1].reason
    env.robot.connect()
    env.robot.arm()
    assert loop.run(1, seed=3)[0].ticks == 10


def script(operator: Operator, *events: tuple[int, Event]):
    """A policy that does nothing, while a person says things at certain steps."""
    step = 0

    def act(_observation):
        nonlocal step
        for when, event in events:
            if when == step:
                operator.say(event)
        step += 1
        return NOTHING

    return act


@pytest.mark.parametrize(
    ("event", "verdict", "reward", "terminated"),
    [
        (Event.SUCCESS, Verdict.SUCCESS, 1.0, True),
        (Event.FAILURE, Verdict.FAILURE, 0.0, True),
        (Event.DISCARD, Verdict.DISCARD, 0.0, False),
        (Event.RESET, Verdict.GOING, 0.0, False),
    ],
)
def test_what_a_person_says_ends_the_transition_it_was_said_in(make_env, event, verdict, reward, terminated):
    operator, witness = Operator(), Witness()
    loop = ControlLoop(make_env(), script(operator, (3, event)), subscribers=[witness], operator=operator)
    [ending] = loop.run(1, seed=3)
    assert (ending.verdict, ending.ticks) == (verdict, 4)
    last = witness.ticks[-1]
    assert (last.reward, last.terminated, last.truncated) == (reward, terminated, not terminated)
    assert last.info["verdict"] is verdict
    assert not any(tick.terminated or tick.truncated for tick in witness.ticks[:-1])


def test_taking_over_and_giving_back_mid_episode(make_env, arm, expert):
    """The policy stands still; a person does a part with LeRobot's teleoperator interface, then gives back."""
    operator, witness = Operator(expert), Witness()
    env = make_env(horizon=20)
    steps = 0

    def act(_observation):
        nonlocal steps
        steps += 1
        expert.taking_over = steps == 5
        return np.array([0, 0, 0, 1.0])

    class Letting(Witness):
        def tick(self, tick: Tick) -> None:
            expert.taking_over = expert.taking_over and tick.index < 11

    [ending] = ControlLoop(env, act, subscribers=[Letting(), witness], operator=operator).run(1, seed=3)
    by_hand = [tick.intervention for tick in witness.ticks]
    assert ending.interventions == sum(by_hand) >= 6
    first = by_hand.index(True)
    assert by_hand == [False] * first + [True] * sum(by_hand) + [False] * (20 - first - sum(by_hand))
    moved = [
        float(np.linalg.norm(tick.next_observation["state"][:3] - tick.observation["state"][:3]))
        for tick in witness.ticks
    ]
    assert max(moved[first : first + 6]) > 0.01 > max(moved[1:first])
    assert all(np.abs(tick.info["action"]).max() <= 1 for tick in witness.ticks)


def test_a_pause_holds_and_a_verdict_in_it_counts(make_env, arm):
    operator, witness = Operator(), Witness()
    env = make_env()
    held = 0
    hold = env.hold

    def counted() -> None:
        nonlocal held
        held += 1
        hold()
        if held == 5:
            operator.say(Event.PAUSE)
        if held == 9:
            operator.say(Event.SUCCESS)

    env.hold = counted
    policy = script(operator, (2, Event.PAUSE), (4, Event.PAUSE))
    [ending] = ControlLoop(env, policy, subscribers=[witness], operator=operator).run(1, seed=3)
    assert held == 9
    assert (ending.verdict, ending.ticks) == (Verdict.SUCCESS, 5)
    assert len(witness.ticks) == 5
    poses = np.array([[c["x.pos"], c["y.pos"], c["z.pos"]] for c in arm.received[-5:-1]])  # the last is the stop
    assert np.ptp(poses, axis=0).max() < 1e-9


def test_ctrl_c_finishes_the_episode_and_ends(make_env):
    operator = Operator()
    loop = ControlLoop(make_env(horizon=6), script(operator, (2, Event.INTERRUPT)), operator=operator)
    assert [ending.ticks for ending in loop.run(5, seed=3)] == [6]


def test_ctrl_c_twice_stops_now(make_env):
    operator, witness = Operator(), Witness()
    policy = script(operator, (2, Event.INTERRUPT), (4, Event.INTERRUPT))
    env = make_env()
    with pytest.raises(StoppedError, match="operator"):
        ControlLoop(env, policy, operator=operator, subscribers=[witness]).run(5, seed=3)
    assert len(witness.ticks) == 5
    assert env.robot.stopped == "the operator stopped it"


def test_keys_during_a_reset_are_harmless_until_ready(make_env, arm):
    operator = Operator()

    def person() -> None:
        for key in "sfdrp":
            operator.press(key)
        operator.press("space")
        time.sleep(0.1)
        waiting.append((operator.state.phase, env.robot.resting))
        operator.press("enter")

    waiting: list = []
    ready = await_ready(operator)

    def reset(seed: int | None) -> None:
        threading.Thread(target=person).start()
        ready(seed)
        arm.reset_scene(seed)

    env = make_env(horizon=5, reset_scene=reset)
    [ending] = ControlLoop(env, still, operator=operator).run(1, seed=3)
    assert ending == Ending(verdict=Verdict.GOING, ticks=5, interventions=0)
    assert waiting == [(Phase.WAITING, True)]


def test_stopping_during_a_reset_moves_nothing(make_env, arm):
    operator = Operator()
    env = make_env(reset_scene=await_ready(operator))
    arm.received.clear()
    threading.Timer(0.1, operator.press, ("esc",)).start()
    with pytest.raises(StoppedError, match="during a reset"):
        ControlLoop(env, still, operator=operator).run(1)
    assert env.robot.stopped is not None
    assert len(arm.received) <= 2  # the hold before the reset and the one of the stop


def test_rollouts_are_recorded_as_they_were(make_env, arm, expert, tmp_path):
    env, witness = make_env(), Witness()
    recorder = Recorder(tmp_path / "set", env, "unlock the door", task="door-unlock-v3")
    loop = ControlLoop(env, lambda _o: env.encode(expert.get_action()), subscribers=[recorder, witness])
    [ending] = loop.run(1, seed=3)
    recorder.close()
    assert loop.subscribers.dead == []
    assert ending.verdict is Verdict.SUCCESS
    [episode] = read_episodes(tmp_path / "set")
    assert len(episode) == ending.ticks + 1
    assert episode.succeeded
    assert episode.rewards.sum() == 1
    sent = [list(tick.info["sent"].values()) for tick in witness.ticks]
    np.testing.assert_allclose(episode.actions[:-1], sent, atol=1e-6)
    np.testing.assert_array_equal(episode.state[:-1], [tick.observation["state"] for tick in witness.ticks])
    shown = np.stack([tick.observation["pixels.corner"] for tick in witness.ticks])
    assert np.abs(episode.views["corner"][:-1].astype(int) - shown).mean() < 1
