"""A session: the robot's process and the learner's, watched over by a third that has no other work.

Whoever dies is started again, a few times; the robot's process stops the robot before anything else whenever it can,
and where it cannot (kill -9), the new one begins by arming the robot from where it stands. Ctrl-C finishes the episode
and ends; a second one stops now. Whatever was finished is on disk in either case.
"""

import logging
import multiprocessing
import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from grm.errors import GrmError

from .actor import ActingPolicy, drive
from .learner import LearnerSide, MakeMind, teach
from .link import Address, Link, Message
from .operator import KEYS
from .plan import RobotSide

_log = logging.getLogger(__name__)

KEYS_HEARD = (*KEYS, "space", "escape")
_POLL_S = 0.05
_OFTEN = 5
"""Deaths in a row after which a process is not started again: each within `_SOON_S` seconds of a start, and no episode
recorded or learned since the one before."""
_SOON_S = 10.0
_GRACE_S = 60.0
_FAILED = 2
PRELOADED = ("robot_io.actor", "robot_io.learner", "lerobot.datasets")
"""Imported once, so that whoever dies is back in a fraction of a second."""


@dataclass(slots=True, eq=False)
class _Child:
    """A process, and the latest it said."""

    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: BaseProcess | None = None
    link: Link | None = None
    started: float = 0.0
    deaths: int = 0
    """In a row, each soon after a start and without progress."""
    progress_then: int | None = None
    """At the last death."""
    heard: Message | None = None
    failed: str | None = None

    def start(self, context: Any, token: bytes) -> None:
        ours, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(*self.arguments, theirs, token), name=self.name)
        assert self.process is not None
        self.process.start()
        self.started = time.monotonic()
        theirs.close()
        self.link = Link(ours, silence_s=None)

    def listen(self) -> None:
        while self.link is not None and (message := self.link.receive()) is not None:
            if message.kind == "failed":
                self.failed = message.fields["error"]
            else:
                self.heard = message

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.exitcode is None

    @property
    def progress(self) -> int | None:
        """Episodes recorded, or learned, as far as it said."""
        fields = self.heard.fields if self.heard is not None else {}
        return fields.get("learned", fields.get("rollouts", {}).get("done"))

    def died(self) -> bool:
        """Whether it is to be started again. Raises `GrmError` if it failed, or dies too often."""
        assert self.process is not None
        code = self.process.exitcode
        if code in (0, None):
            return False
        time.sleep(_POLL_S)
        self.listen()
        if code == _FAILED:
            raise GrmError(self.failed or f"the {self.name} process failed and did not say why; see its log")
        stuck = time.monotonic() - self.started < _SOON_S and self.progress == self.progress_then
        self.deaths, self.progress_then = self.deaths + 1 if stuck else 1, self.progress
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if self.deaths > _OFTEN:
            raise GrmError(
                f"the {self.name} process died {self.deaths} times in a row, the last time with {how}; expected it to "
                f"last: see its log; what was recorded is safe, run the same command to go on"
            )
        _log.warning("the %s process died with %s and is started again", self.name, how)
        return True


class Session:
    """Runs both processes, or one of them where the other is on another machine.

    Args:
        robot: what the robot's process is told; None if it is on another machine.
        learner: what the learner's process is told; None if it is on another machine, or nobody learns.
        make_policy, make_mind: picklable; called in those processes.
        token: what both ends must know.
    """

    def __init__(
        self,
        *,
        robot: RobotSide | None,
        learner: LearnerSide | None,
        make_policy: Callable[[Path], ActingPolicy] | None = None,
        make_mind: MakeMind | None = None,
        token: bytes = b"",
        preload: tuple[str, ...] = (),
    ) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload([*PRELOADED, *preload])
        self._token = token or secrets.token_bytes(32)
        self._robot = _Child("robot", drive, (robot, make_policy)) if robot is not None else None
        self._learner = _Child("learner", teach, (learner, make_mind)) if learner is not None else None
        self._children = [child for child in (self._learner, self._robot) if child is not None]
        self._faults: list[dict[str, Any]] = []
        self._restarts = dict.fromkeys(("robot", "learner"), 0)
        self._presses = 0
        self._ending_since: float | None = None
        self._began = time.monotonic()
        self.pictures: Mapping[str, bytes] = {}
        """The newest of each view, as JPEG files."""

    @property
    def processes(self) -> dict[str, int | None]:
        """Process ids by name."""
        return {child.name: child.process.pid if child.process else None for child in self._children}

    def press(self, key: str) -> None:
        """A key for the operator, by LeRobot's name; from any thread."""
        if self._robot is not None and self._robot.link is not None:
            self._robot.link.send(Message(kind="key", fields={"key": {"escape": "esc"}.get(key, key)}))

    def interrupt(self) -> None:
        """Ctrl-C: finish the episode and end; a second time stop now, a third time do not wait for anybody."""
        self._presses += 1
        if self._robot is None or not self._robot.running:
            self._ending_since = self._ending_since or time.monotonic()
        self.press("q" if self._presses == 1 else "esc")
        if self._presses > 2:
            self.kill()

    def kill(self) -> None:
        """End both at once, as a power cut would."""
        for child in self._children:
            if child.running and child.process is not None:
                child.process.kill()

    def state(self) -> dict[str, Any]:
        """What the page shows; empty where nobody knows yet."""
        robot, learner = self._robot, self._learner
        found = dict(_UNKNOWN)
        if robot is not None and robot.heard is not None:
            found |= robot.heard.fields
            if not robot.running:
                found |= {"phase": "ended" if self._ending_since else "restarting", "waits_for": None}
        doing = learner.heard.fields.get("doing") if learner is not None and learner.heard is not None else None
        if doing:
            found |= {"phase": doing.split()[0], "waits_for": doing}
        alive = learner is None or learner.running
        elapsed_s = round(time.monotonic() - self._began, 1)
        return {
            **found,
            "learner": {"connected": False, "backlog": 0, **found.get("learner", {}), "alive": alive},
            "session": {"task": "", "robot": "", "out": "", **found.get("session", {}), "elapsed_s": elapsed_s},
            "faults": sorted([*found["faults"], *self._faults], key=lambda fault: fault["time_s"]),
            "restarts": dict(self._restarts),
        }

    def run(self, on_state: Callable[[dict[str, Any]], None] = lambda state: None) -> None:
        """Until the robot's process ends, or the learner's where there is no other; `on_state` is called often.

        Raises `GrmError` with what one of them could not mend.
        """
        try:
            for child in self._children:
                child.start(self._context, self._token)
            while self._turn():
                on_state(self.state())
                time.sleep(_POLL_S)
        finally:
            self._end()
            on_state(self.state())

    def _turn(self) -> bool:
        """Listen, and start again whoever died; False when it is over."""
        for child in self._children:
            child.listen()
            if child.running:
                continue
            if child.died() and self._ending_since is None:
                if child.link is not None:
                    child.link.close()
                child.start(self._context, self._token)
                self._restarts[child.name] += 1
                time_s = round(time.monotonic() - self._began, 1)
                self._faults.append({"time_s": time_s, "text": f"the {child.name} process died, and was started again"})
                if child is self._robot and self._presses:
                    self.press("q")
            elif child is (self._robot or self._learner):
                return False
        if self._robot is not None and self._robot.heard is not None:
            self.pictures = {name: data.tobytes() for name, data in self._robot.heard.arrays.items()}
        return self._ending_since is None

    def _end(self) -> None:
        """The robot first; the learner then learns from what is finished, and saves."""
        self._ending_since = self._ending_since or time.monotonic()
        for child, word in ((self._robot, Message(kind="key", fields={"key": "esc"})), (self._learner, _END)):
            if child is None or child.process is None or child.link is None:
                continue
            if child.running:
                child.link.send(word)
            child.process.join(_GRACE_S)
            if child.running:
                _log.warning("the %s process does not end and is killed", child.name)
                child.process.kill()
                child.process.join()
            child.listen()
            child.link.close()


_END = Message(kind="end")
_UNKNOWN: dict[str, Any] = {
    "phase": "starting",
    "waits_for": "the robot's process",
    "episode": {
        "index": 0,
        "tick": 0,
        "evaluation": False,
        "intervention": False,
        **dict.fromkeys(("time_s", "phi", "spread", "done"), ()),
    },
    "views": (),
    "rollouts": {"planned": 0, "done": 0, **dict.fromkeys(("success", "interventions", "evaluation"), ())},
    "keys": (),
    "timing": {
        "ticks": 0,
        "overruns": 0,
        **dict.fromkeys(
            ("rate_hz", "measured_hz", "jitter_ms_p99", "frame_to_phi_ms_p50", "frame_to_phi_ms_p99"), None
        ),
    },
    "policy": {"version": 0, "age_s": None, "updates": 0},
    "faults": (),
}
"""Until the robot's process has said something."""


def free_address() -> Address:
    """Of this machine, for a learner beside the robot."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()


@contextmanager
def interrupted(session: Session):
    """While this lasts, Ctrl-C and SIGTERM are for the session. Main thread only."""
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: session.interrupt())
            stack.callback(signal.signal, number, before)
        yield
