"""What the person beside the robot says, by key or by gamepad, and what follows from it.

`advance` is the whole logic, a pure function of a state and an event. What makes no sense now does nothing: keys
pressed while the scene is being reset are harmless. Ctrl-C once finishes the episode and ends the session; twice stops.
"""

import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleopEvents

from .rollout import Verdict


class Event(StrEnum):
    """Something a person says."""

    TAKE_OVER = "take over"
    GIVE_BACK = "give back"
    SUCCESS = "success"
    FAILURE = "failure"
    DISCARD = "discard"
    PAUSE = "pause"
    """Hold; a second time goes on."""
    RESET = "reset"
    """Truncate this episode, keep it, and reset the scene."""
    READY = "ready"
    """The scene is reset, nobody is near the robot: it may move."""
    INTERRUPT = "interrupt"
    """Ctrl-C: finish the episode and end; a second one stops now."""
    STOP = "stop"
    """Stop now."""


class Phase(StrEnum):
    """What the robot does."""

    WAITING = "waiting"
    """It rests until the scene is reset."""
    RUNNING = "running"
    PAUSED = "paused"
    OVER = "over"
    """The episode was ended by the person; the loop has yet to act on it."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorState:
    """What the person has said so far, as far as it matters now."""

    phase: Phase = Phase.WAITING
    intervening: bool = False
    """Whether the person acts."""
    verdict: Verdict = Verdict.GOING
    """The person's; of the episode that is running or has just ended."""
    ending: bool = False
    """Whether the session ends with this episode."""


def advance(state: OperatorState, event: Event) -> OperatorState:
    """What the state is after an event."""
    running = state.phase in (Phase.RUNNING, Phase.PAUSED)
    match event:
        case Event.STOP:
            return replace(state, phase=Phase.STOPPED, intervening=False)
        case Event.INTERRUPT:
            if state.ending or state.phase is Phase.WAITING:  # nothing is running that could be finished
                return replace(state, phase=Phase.STOPPED, intervening=False, ending=True)
            return replace(state, ending=True)
        case Event.READY if state.phase is Phase.WAITING:
            return replace(state, phase=Phase.RUNNING, intervening=False, verdict=Verdict.GOING)
        case Event.TAKE_OVER if state.phase is Phase.RUNNING:
            return replace(state, intervening=True)
        case Event.GIVE_BACK if state.phase is Phase.RUNNING:
            return replace(state, intervening=False)
        case Event.PAUSE if running:
            return replace(state, phase=Phase.PAUSED if state.phase is Phase.RUNNING else Phase.RUNNING)
        case Event.SUCCESS | Event.FAILURE | Event.DISCARD if running:
            return replace(state, phase=Phase.OVER, intervening=False, verdict=Verdict(event.value))
        case Event.RESET if running:
            return replace(state, phase=Phase.OVER, intervening=False, verdict=Verdict.GOING)
        case _:
            return state


KEYS: Mapping[str, Event] = {
    "s": Event.SUCCESS,
    "f": Event.FAILURE,
    "d": Event.DISCARD,
    "r": Event.RESET,
    "p": Event.PAUSE,
    "enter": Event.READY,
    "esc": Event.STOP,
    "q": Event.INTERRUPT,
}
"""By LeRobot's names of keys; space takes over and gives back."""


class Operator:
    """Collects what a person says, from any thread, and keeps the state that follows.

    Args:
        teleoperator: what the person drives with when they take over; None if they only watch.
        stop: called at once when they say stop, from their thread: `SafeRobot.stop`.
    """

    def __init__(self, teleoperator: Teleoperator | None = None, *, stop: Callable[[str], None] | None = None) -> None:
        self.teleoperator = teleoperator
        self._stop = stop
        self.state = OperatorState()
        self._said: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = dict.fromkeys(TeleopEvents, False)

    def say(self, event: Event) -> None:
        """From any thread or signal handler; taken into account at the next `poll`."""
        self._said.put(event)
        if event is Event.STOP and self._stop is not None:
            self._stop("the operator stopped it")

    def press(self, key: str) -> None:
        """A key, by LeRobot's name for it; keys without a meaning are ignored."""
        if key == "space":
            self.say(Event.GIVE_BACK if self.state.intervening else Event.TAKE_OVER)
        elif key in KEYS:
            self.say(KEYS[key])

    def poll(self) -> OperatorState:
        """Take into account what was said since, by keys and by the teleoperator."""
        for event in self._device_events():
            self.say(event)
        with self._lock:
            while not self._said.empty():
                self.state = advance(self.state, self._said.get())
            return self.state

    def begin(self) -> OperatorState:
        """An episode begins; what was pressed before it is forgotten, but for a wish to end or stop."""
        self.poll()
        with self._lock:
            if self.state.phase is not Phase.STOPPED:
                self.state = replace(self.state, phase=Phase.RUNNING, intervening=False, verdict=Verdict.GOING)
            return self.state

    def wait(self) -> OperatorState:
        """The episode is over, the scene is to be reset."""
        with self._lock:
            if self.state.phase is not Phase.STOPPED:
                self.state = replace(self.state, phase=Phase.WAITING, intervening=False)
            return self.state

    def action(self) -> Mapping[str, Any]:
        """What the person commands, in the teleoperator's own keys."""
        assert self.teleoperator is not None, "nobody takes over without a teleoperator"
        return self.teleoperator.get_action()

    def _device_events(self) -> Iterator[Event]:
        """What changed on the teleoperator's buttons: held buttons are said once."""
        report = getattr(self.teleoperator, "get_teleop_events", None)
        if self.teleoperator is None or report is None or not self.teleoperator.is_connected:
            return
        now = {event: bool(value) for event, value in report().items()}
        before, self._held = self._held, now
        pressed = {event for event, value in now.items() if value and not before.get(event)}
        held = TeleopEvents.IS_INTERVENTION
        if now.get(held) != before.get(held):
            yield Event.TAKE_OVER if now.get(held) else Event.GIVE_BACK
        if TeleopEvents.SUCCESS in pressed:
            yield Event.SUCCESS
        elif TeleopEvents.RERECORD_EPISODE in pressed:
            yield Event.DISCARD
        elif pressed & {TeleopEvents.FAILURE, TeleopEvents.TERMINATE_EPISODE}:
            yield Event.FAILURE


@contextmanager
def keyboard(press: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, keys pressed in this terminal are handed to `press`; without a terminal, nothing happens."""
    from lerobot.utils.keyboard_input import TerminalKeyListener

    listener = TerminalKeyListener(press)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


@contextmanager
def interrupts(operator: Operator, stop: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, Ctrl-C is said to the operator, and a second one calls `stop` at once. Main thread only.

    `stop` is called from a signal handler: `SafeRobot.stop(reason, wait=False)`.
    """
    pressed = 0

    def handle(_number: int, _frame: object) -> None:
        nonlocal pressed
        pressed += 1
        operator.say(Event.INTERRUPT)
        if pressed > 1:
            stop("Ctrl-C was pressed twice")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
