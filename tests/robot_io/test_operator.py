import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot.teleoperators import TeleopEvents

from robot_io.operator import KEYS, Event, Operator, OperatorState, Phase, advance, interrupts
from robot_io.rollout import Verdict

RUNNING = OperatorState(phase=Phase.RUNNING)
WAITING = OperatorState(phase=Phase.WAITING)


def after(state: OperatorState, *events: Event) -> OperatorState:
    for event in events:
        state = advance(state, event)
    return state


def test_taking_over_and_giving_back():
    assert after(RUNNING, Event.TAKE_OVER).intervening
    assert not after(RUNNING, Event.TAKE_OVER, Event.GIVE_BACK).intervening
    assert after(RUNNING, Event.GIVE_BACK) == RUNNING


@pytest.mark.parametrize("event", [Event.SUCCESS, Event.FAILURE, Event.DISCARD])
def test_a_verdict_ends_the_episode(event):
    ended = after(RUNNING, Event.TAKE_OVER, event)
    assert (ended.phase, ended.verdict, ended.intervening) == (Phase.OVER, Verdict(event.value), False)
    assert after(ended, Event.FAILURE, Event.TAKE_OVER, Event.PAUSE) == ended  # the first word counts


def test_a_reset_ends_it_without_a_verdict():
    assert after(RUNNING, Event.RESET) == replace(RUNNING, phase=Phase.OVER)


def test_a_pause_holds_until_said_again_and_can_end_in_a_verdict():
    paused = after(RUNNING, Event.PAUSE)
    assert paused.phase is Phase.PAUSED
    assert after(paused, Event.TAKE_OVER) == paused
    assert after(paused, Event.PAUSE) == RUNNING
    assert after(paused, Event.SUCCESS).verdict is Verdict.SUCCESS


def test_ctrl_c_finishes_the_episode_and_twice_stops():
    once = after(RUNNING, Event.INTERRUPT)
    assert (once.phase, once.ending) == (Phase.RUNNING, True)
    assert after(once, Event.SUCCESS).ending
    assert after(once, Event.INTERRUPT).phase is Phase.STOPPED
    assert after(WAITING, Event.INTERRUPT).phase is Phase.STOPPED  # nothing runs that could be finished


HARMLESS = [e for e in Event if e not in (Event.READY, Event.STOP, Event.INTERRUPT)]


@given(st.lists(st.sampled_from(HARMLESS)))
def test_keys_during_a_reset_are_harmless(events):
    assert after(WAITING, *events) == WAITING
    assert after(WAITING, *events, Event.READY) == RUNNING


@given(st.lists(st.sampled_from(list(Event))))
def test_once_stopped_always_stopped(events):
    assert after(RUNNING, Event.STOP, *events).phase is Phase.STOPPED


@given(st.lists(st.sampled_from(list(Event))))
def test_nobody_acts_while_nothing_runs(events):
    state = after(WAITING, *events)
    assert not state.intervening or state.phase in (Phase.RUNNING, Phase.PAUSED)
    assert state.verdict is Verdict.GOING or state.phase in (Phase.OVER, Phase.STOPPED)


def test_keys_say_what_they_are_for():
    operator = Operator()
    operator.begin()
    operator.press("space")
    assert operator.poll().intervening
    operator.press("space")
    assert not operator.poll().intervening
    for key in ("x", "left", "é"):
        operator.press(key)
    assert operator.poll() == RUNNING
    operator.press("s")
    assert operator.poll().verdict is Verdict.SUCCESS
    assert set(KEYS.values()) == set(Event) - {Event.TAKE_OVER, Event.GIVE_BACK}


def test_what_was_pressed_before_an_episode_is_forgotten_but_for_the_end():
    operator = Operator()
    for event in (Event.SUCCESS, Event.TAKE_OVER):
        operator.say(event)
    assert operator.begin() == RUNNING
    operator.say(Event.INTERRUPT)
    operator.poll()
    assert operator.wait().ending
    assert operator.begin().ending
    operator.say(Event.STOP)
    assert operator.begin().phase is Phase.STOPPED
    assert operator.wait().phase is Phase.STOPPED


def test_stop_is_acted_on_at_once():
    said: list[str] = []
    operator = Operator(stop=said.append)
    operator.press("s")
    assert said == []
    operator.press("esc")
    assert said == ["the operator stopped it"]


class Gamepad:
    is_connected = True

    def __init__(self) -> None:
        self.buttons = dict.fromkeys(TeleopEvents, False)

    def get_teleop_events(self):
        return dict(self.buttons)


@pytest.mark.parametrize(
    ("button", "verdict"),
    [
        (TeleopEvents.SUCCESS, Verdict.SUCCESS),
        (TeleopEvents.FAILURE, Verdict.FAILURE),
        (TeleopEvents.TERMINATE_EPISODE, Verdict.FAILURE),
        (TeleopEvents.RERECORD_EPISODE, Verdict.DISCARD),
    ],
)
def test_a_gamepads_buttons_are_said_once_each(button, verdict):
    pad = Gamepad()
    operator = Operator(pad)
    operator.begin()
    pad.buttons[TeleopEvents.IS_INTERVENTION] = True
    assert operator.poll().intervening
    assert operator.poll().intervening
    pad.buttons[TeleopEvents.IS_INTERVENTION] = False
    assert not operator.poll().intervening
    pad.buttons[button] = True
    assert operator.poll().verdict is verdict
    operator.wait()
    assert operator.begin() == RUNNING, "a button still held says nothing new"
    pad.buttons[button] = False
    operator.poll()
    pad.buttons[button] = True
    assert operator.poll().verdict is verdict


def test_a_gamepad_reports_rerecord_with_terminate_as_lerobots_does():
    pad = Gamepad()
    operator = Operator(pad)
    operator.begin()
    pad.buttons |= {TeleopEvents.TERMINATE_EPISODE: True, TeleopEvents.RERECORD_EPISODE: True}
    assert operator.poll().verdict is Verdict.DISCARD


def test_ctrl_c_is_caught_and_the_second_stops_at_once():
    stops: list[str] = []
    operator = Operator()
    operator.begin()
    before = signal.getsignal(signal.SIGINT)
    with interrupts(operator, stops.append):
        os.kill(os.getpid(), signal.SIGINT)
        assert operator.poll().ending
        assert stops == []
        os.kill(os.getpid(), signal.SIGINT)
        assert stops == ["Ctrl-C was pressed twice"]
        assert operator.poll().phase is Phase.STOPPED
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminals_keys_are_heard():
    master, slave = pty.openpty()
    program = textwrap.dedent("""
        import time
        from robot_io.operator import Operator, Phase, keyboard
        operator = Operator()
        operator.begin()
        with keyboard(operator.press):
            print("listening", flush=True)
            while operator.poll().phase is Phase.RUNNING:
                time.sleep(0.01)
        print(operator.state.phase, operator.state.verdict, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdin=slave, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        time.sleep(0.05)
        os.write(master, b"x f")
        assert process.stdout.readline() == "over failure\n"
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(master)
        os.close(slave)
