"""The process that drives the robot: it acts with the newest policy it has, records, and waits for no judge or learner.

What the learner must know is sent as it happens, and may get lost on the way. What was finished does not: the recording
on this machine is the truth, and whatever the learner has not acknowledged is sent again from it while the robot rests.
"""

import gc
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from lerobot.robots import make_robot_from_config
from lerobot.teleoperators import make_teleoperator_from_config

from grm.errors import GrmError, OutputError

from .cameras import as_recorded, to_jpeg
from .errors import RobotError, StoppedError
from .limits import SafetyLimits
from .link import Caller, Link, Message
from .loop import ControlLoop
from .messages import VERSION, began, ended, fingerprint, retold, stepped
from .operator import Event, Operator, OperatorState, Phase
from .plan import Purpose, RobotSide, next_purpose, scene_seed
from .recorder import Recorder
from .replay import read_attempt, read_lines
from .robot import PIXELS, RobotEnv
from .rollout import Ending, Tick, Verdict
from .safety import SafeRobot

_log = logging.getLogger(__name__)

_STATUS_S = 0.1
_AGAIN_S = 1.0
_SETTLE_S = 60.0
_ALONE_S = 5.0
"""Without a learner in sight, before an earlier run's policy is taken."""
_PATIENCE = 30
"""Times in a row that an unattended robot is armed again after a fault."""

_GOING = (Phase.RUNNING, Phase.PAUSED)
SAYABLE: Mapping[str, tuple[str, Callable[[OperatorState], bool]]] = {
    "enter": ("the scene is reset, go", lambda state: state.phase is Phase.WAITING),
    "s": ("success", lambda state: state.phase in _GOING),
    "f": ("failure", lambda state: state.phase in _GOING),
    "d": ("discard this episode", lambda state: state.phase in _GOING),
    "r": ("cut it short, reset", lambda state: state.phase in _GOING),
    "p": ("pause, go on", lambda state: state.phase in _GOING),
    "space": ("take over, give back", lambda state: state.phase is Phase.RUNNING),
    "q": ("finish this episode and end", lambda state: not state.ending),
    "escape": ("stop now", lambda state: state.phase is not Phase.STOPPED),
}
"""By a browser's names of keys: what the person can say, in words, and when it means something."""


@runtime_checkable
class OwnScene(Protocol):
    """A robot that puts its scene back by itself, and knows whether the task is done, such as a simulated one."""

    succeeded: bool

    def reset_scene(self, seed: int | None = None) -> None:
        """Another scene, drawn with the seed; returns when it is there."""
        ...


class ActingPolicy(Protocol):
    """What acts. Made in the robot's process, from the folder of the GRM whose features it sees."""

    def load(self, policy: bytes) -> None:
        """Go on with what the learner sent, from the next action on."""
        ...

    def begin(self) -> bool | None:
        """A rollout begins. True if a cloned policy alone acts in it, None where that is no question."""
        ...

    def act(self, observation: Mapping[str, np.ndarray], *, explore: bool) -> Float[np.ndarray, " a"]:
        """An action in [-1, 1], within a part of the control period."""
        ...


class Actor:
    """Episodes until there are enough, the person ends it, or nobody is left to report to.

    Args:
        side: what it is told.
        make_policy: makes what acts, from the folder of a GRM.
        control: to the supervisor; keys come from there, and what the page shows goes there.
        token: proves to the learner who this is.
    """

    def __init__(
        self, side: RobotSide, make_policy: Callable[[Path], ActingPolicy], control: Link, token: bytes
    ) -> None:
        self.side, self._make_policy, self._control = side, make_policy, control
        side.out.mkdir(parents=True, exist_ok=True)
        self._limits = SafetyLimits.read(side.limits)
        self._robot = make_robot_from_config(side.robot)
        self.safe = SafeRobot(self._robot, self._limits)
        self._scene = self._robot if isinstance(self._robot, OwnScene) else None
        """Robots that are simulated put everything back by themselves; for all others a person does."""
        self._attended = side.attended or self._scene is None
        teleop = make_teleoperator_from_config(side.teleop) if side.teleop is not None else None
        if side.success == "environment" and self._scene is None:
            raise RobotError(
                f"{self._robot.name} cannot say itself whether the task is done; expected success='person' or 'head'"
            )
        if side.demonstrate and teleop is None:
            raise RobotError("nobody can demonstrate without a teleoperator; expected --teleop, such as a leader arm")
        if teleop is not None:
            teleop.connect()
        self.operator = Operator(teleop, stop=self.safe.stop)
        self.env = RobotEnv(
            self.safe,
            rate_hz=side.rate_hz,
            success=self._succeeded,
            reset_scene=self._reset_scene,
            horizon=side.horizon,
            control=side.control,
            views=side.views,
            size=side.size,
            home=side.home,
        )
        self.recorder = Recorder(side.recording, self.env, side.instruction, task=side.task, rate_hz=side.rate_hz)
        self._loop = self._new_loop()
        self._caller = Caller(side.learner, token) if side.learner is not None else None
        self._link: Link | None = None
        self._policy: ActingPolicy | None = None
        self._policy_bytes = b""
        self._cloned: bool | None = None
        self._version, self._policy_came = 0, 0.0
        self._lines = read_lines(side.recording)
        self._learned: set[int] = set()
        self._underway: set[int] = set()
        self._whole = True
        self._purpose: Purpose = "rollout"
        self._number = len(self._lines)
        self._judged: dict[int, tuple[float | None, float | None, float | None]] = {}
        self._seen: list[float] = []
        """When each frame of this episode was seen, on this machine's monotonic clock."""
        self._latencies: list[float] = []
        self._steps_before = self._overruns_before = 0
        self._sure = 0
        self._observation: Mapping[str, np.ndarray] = {}
        self._waits_for = ""
        self._faults: list[dict[str, Any]] = []
        self._learner: dict[str, Any] = {}
        self._told = 0.0
        self._began = time.monotonic()

    def run(self) -> None:
        """Drive until it is over. Raises what cannot be mended here: `GrmError`; the robot is stopped then."""
        try:
            self.safe.connect()
            self.safe.arm()
            misses = 0
            while (purpose := self._next()) is not None:
                try:
                    self._episode(purpose)
                    misses = 0
                except RobotError as error:
                    misses += 1
                    if not self._recover(error, misses):
                        break
            self.safe.stop("the session ends")
            self._settle()
        finally:
            self.env.close()
            self.recorder.close()
            self._tell(force=True)
            if self._caller is not None:
                if self._link is not None:
                    self._link.flush()
                self._caller.close()

    def _settle(self) -> None:
        """With the robot stopped: let the learner that is there have what it lacks; pressing stop ends that, too."""
        end = time.monotonic() + _SETTLE_S
        while self._link is not None and self._missing() and time.monotonic() < end:
            self._send_again()
            self._waits_for = "the learner to learn from the last rollouts"
            if self.operator.poll().phase is Phase.STOPPED:
                break
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop now and end; also from a signal handler."""
        self.safe.stop("the program was told to end", wait=False)
        self.operator.say(Event.INTERRUPT)
        self.operator.say(Event.INTERRUPT)

    def _next(self) -> Purpose | None:
        if self.operator.poll().ending or self.operator.state.phase is Phase.STOPPED:
            return None
        return next_purpose(self._lines, self.side)

    def _recover(self, error: RobotError, misses: int) -> bool:
        """After a fault: wait until it is mended, then arm again. False if the person ended it."""
        if self.operator.poll().phase is Phase.STOPPED:
            return False
        self._faults.append({"time_s": round(time.monotonic() - self._began, 3), "text": str(error)})
        _log.warning("the rollout was cut short: %s", error)
        if not self._attended and misses > _PATIENCE:
            raise error
        self.operator.wait()
        while True:
            self._wait(f"you, to look at the robot and say ready: {error}", self._attended, _AGAIN_S)
            if self.operator.state.phase is Phase.STOPPED or self.operator.state.ending:
                return False
            try:
                self.safe.connect()
                self.safe.arm()
            except RobotError as again:
                error = again
                if not self._attended and (misses := misses + 1) > _PATIENCE:
                    raise
                self.operator.wait()
            else:
                return True

    def _episode(self, purpose: Purpose) -> None:
        self._purpose, self.recorder.behaviour = purpose, purpose
        self._judged, self._seen, self._latencies, self._sure = {}, [], [], 0
        self._steps_before, self._overruns_before = len(self.env.periods_s()), self.env.timing.overruns
        try:
            self._loop.episode(seed=scene_seed(self.side, self._lines, purpose))
        finally:
            self._lines = read_lines(self.side.recording)
            if self._loop.subscribers.dead:
                self._mourn()

    def _new_loop(self) -> ControlLoop:
        return ControlLoop(self.env, self._act, subscribers=[self.recorder, self], operator=self.operator)

    def _mourn(self) -> None:
        """A subscriber failed. A recorder that could not write waits for space; nothing else can be mended here."""
        [(_, error), *_] = self._loop.subscribers.dead
        if not isinstance(error, OutputError):
            raise error
        self._faults.append({"time_s": round(time.monotonic() - self._began, 3), "text": str(error)})
        self._loop = self._new_loop()
        self.operator.wait()
        while self.operator.state.phase is not Phase.STOPPED and not self.operator.state.ending:
            self._wait(f"space to record: {error}", False, _AGAIN_S)
            try:
                self.recorder.prepare()
            except OutputError as again:
                error = again
            else:
                return

    # ---- of the environment

    def _act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self._attend()
        if self.side.demonstrate:
            return self.env.encode(self.operator.action())
        assert self._policy is not None, "reset waits for one"
        # The learner sees the pictures as the recording has them, and so does what it taught.
        seen = {key: as_recorded(value) if key.startswith(PIXELS) else value for key, value in observation.items()}
        return self._policy.act(seen, explore=self._purpose == "rollout")

    def _succeeded(self, _observation: Mapping[str, np.ndarray], _info: Mapping[str, Any]) -> Verdict:
        done = False
        if self.side.success == "environment":
            assert self._scene is not None, "checked at the beginning"
            done = self._scene.succeeded
        elif self.side.success == "head":
            self._attend()
            done = self._sure >= self.side.stable_steps
        return Verdict.SUCCESS if done else Verdict.GOING

    def _reset_scene(self, seed: int | None) -> None:
        """While the robot rests: send what the learner lacks, take its newest policy, and wait for the scene."""
        self._send_again()
        began = time.monotonic()
        while self._policy is None and not self.side.demonstrate:
            self._wait("the learner's first policy", False, 0.05)
            if self._link is None and time.monotonic() - began > _ALONE_S:
                self._read_policy()
            self._require_going("while it waited for the learner")
        if self._attended:
            self.operator.wait()  # a ready said too early does not count: somebody may be near the robot by now
            self._wait("you, to reset the scene and say ready", True, 0.0)
            self._require_going("during a reset")
        if self._scene is not None:
            self._scene.reset_scene(seed)
        self._waits_for = ""
        if self._policy is not None:
            self._cloned = self._policy.begin()

    def _require_going(self, when: str) -> None:
        state = self.operator.state
        if state.phase is Phase.STOPPED or state.ending:
            self.operator.say(Event.STOP)
            self.operator.poll()
            raise StoppedError(f"the operator ended the session {when}; run it again to go on")

    def _wait(self, for_what: str, for_ready: bool, seconds: float) -> None:
        """Rest until the person says ready, or for so many seconds; returns at once if the session ends."""
        self._waits_for = for_what
        end = time.monotonic() + seconds
        while for_ready or time.monotonic() < end:
            self._attend()
            state = self.operator.poll()
            if state.phase is Phase.STOPPED or state.ending or (for_ready and state.phase is Phase.RUNNING):
                break
            time.sleep(0.02)
        self._waits_for = ""

    # ---- a subscriber of the control loop

    def begin(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """An episode begins."""
        self._number, self._whole = self.recorder.episodes, True
        self._observation = observation
        self._seen.append(time.monotonic())
        self._send(began(self._number, self._purpose, observation, info["time"], cloned=self._cloned, recorded=False))

    def tick(self, tick: Tick) -> None:
        """A transition has happened."""
        self._observation = tick.next_observation
        self._seen.append(time.monotonic())
        self._send(
            stepped(
                self._number,
                tick.index,
                tick.info["action"],
                tick.next_observation,
                time_s=tick.info["time"],
                reward=tick.reward,
                intervention=tick.intervention,
            )
        )

    def end(self, ending: Ending) -> None:
        """The episode is over, and on disk if it is to be kept."""
        kept = self.recorder.episodes == self._number + 1
        self._note_timing(ending)
        if self._policy_bytes:
            self._keep_policy()
        success, terminated = ending.verdict is Verdict.SUCCESS, ending.verdict in (Verdict.SUCCESS, Verdict.FAILURE)
        if self._send(ended(self._number, ending.ticks, success=success, terminated=terminated, kept=kept)) and kept:
            self._underway.add(self._number)

    def _note_timing(self, ending: Ending) -> None:
        """Every period and every latency of an episode, for who wants to know how well the rate was kept."""
        line = {
            "episode": self._number,
            "ticks": ending.ticks,
            "verdict": ending.verdict,
            "reason": ending.reason,
            "rate_hz": self.side.rate_hz,
            "overruns": self.env.timing.overruns - self._overruns_before,
            "periods_ms": (1000 * self.env.periods_s(self._steps_before)).round(3).tolist(),
            "latencies_ms": [round(1000 * seconds, 3) for seconds in self._latencies],
        }
        with suppress(OSError), (self.side.out / "timing.jsonl").open("a") as file:  # a full disk has been told already
            file.write(json.dumps(line) + "\n")

    # ---- to and from the learner

    def _send(self, message: Message | Callable[[], Message]) -> bool:
        """Of the running episode: once something did not get through, the rest is of no use, it will be sent again."""
        self._whole = self._whole and self._link is not None and self._link.send(message)
        return self._whole

    def _missing(self) -> set[int]:
        """Numbers of the episodes that the learner has not acknowledged."""
        return set(range(len(self._lines))) - self._learned

    def _send_again(self, most: int = 3) -> None:
        """Finished episodes that the learner has not, and that are not on their way; a few at every reset."""
        self._attend()
        for number in sorted(self._missing() - self._underway)[:most]:
            self._waits_for = f"the learner to be sent episode {number} again"
            if self._link is None or not all(
                self._link.send(message, wait_s=1.0) for message in retold(read_attempt(self.side.recording, number))
            ):
                return
            self._underway.add(number)
            self._attend()

    def _attend(self) -> None:
        """Whatever was said meanwhile, by learner and supervisor; waits for nobody."""
        if self._caller is not None:
            if self._caller.refused is not None:
                raise OutputError(self._caller.refused)
            link = self._caller.link
            if link is not self._link:
                self._link, self._whole = link, False
                self._underway.clear()
                if link is not None:
                    link.send(self._hello())
            while link is not None and (message := link.receive()) is not None:
                self._hear(message)
        self._tell()

    def _hello(self) -> Message:
        return Message(
            kind="hello",
            fields={
                "version": VERSION,
                "limits": fingerprint(self.side.limits),
                "views": list(self.env.views),
                "scalars": list(self.env.scalars),
                "commanded": list(self.env.commanded),
                "rate_hz": self.side.rate_hz,
                "recorded": len(self._lines),
            },
        )

    def _hear(self, message: Message) -> None:
        found = message.fields
        match message.kind:
            case "refused":
                raise OutputError(found["reason"])
            case "welcome":
                self._learned = set(found["learned"])
            case "model":
                self._take_model(message)
            case "policy":
                self._version, self._policy_bytes = found["version"], message.arrays["policy"].tobytes()
                self._policy_came = message.received
                if self._policy is not None:
                    self._policy.load(self._policy_bytes)
            case "learned":
                self._learned.add(found["episode"])
                self._underway.discard(found["episode"])
            case "judged" if found["episode"] == self._number:
                self._take_judgement(message)
            case "status":
                self._learner = dict(found)

    def _take_model(self, message: Message) -> None:
        """The GRM, whose features the policy sees: kept on this machine, and made ready while the robot rests."""
        folder = self.side.out / "acting"
        folder.mkdir(exist_ok=True)
        for name, data in message.arrays.items():
            (folder / name).write_bytes(data.tobytes())
        self._policy = self._make_policy(folder)
        if self._policy_bytes:
            self._policy.load(self._policy_bytes)

    def _keep_policy(self) -> None:
        """On this machine, for a beginning without a learner."""
        path = self.side.out / "acting" / "policy.safetensors"
        with suppress(OSError):  # a full disk has been told already
            path.with_suffix(".partial").write_bytes(self._policy_bytes)
            path.with_suffix(".partial").replace(path)

    def _read_policy(self) -> None:
        """The last one of an earlier run, if there was any."""
        path = self.side.out / "acting" / "policy.safetensors"
        if path.exists():
            self._policy = self._make_policy(path.parent)
            self._policy.load(path.read_bytes())

    def _take_judgement(self, message: Message) -> None:
        found = message.fields
        index, potential, spread, success = (found[key] for key in ("index", "potential", "spread", "success"))
        if index in self._judged or index >= len(self._seen):
            return
        self._judged[index] = potential, spread, success
        self._latencies.append(message.received - self._seen[index])
        if potential is not None and spread is not None:
            self.recorder.judge(index, potential, spread)
        self._sure = self._sure + 1 if success is not None and success >= self.side.sure else 0

    # ---- to the supervisor

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._told < _STATUS_S:
            return
        self._told = now
        status = self._status()
        pictures = {
            key.removeprefix(PIXELS): value for key, value in self._observation.items() if key.startswith(PIXELS)
        }

        def make() -> Message:
            jpegs = {name: np.frombuffer(to_jpeg(picture), np.uint8) for name, picture in pictures.items()}
            return Message(kind="status", fields=status, arrays=jpegs)

        self._control.send(make)

    def _status(self) -> dict[str, Any]:
        """What the page draws; see `robot_io/session.html`."""
        timing, state, now = self.env.timing, self.operator.state, time.monotonic()
        phase = {Phase.WAITING: "resetting", Phase.OVER: "resetting"}.get(state.phase, str(state.phase))
        judged = [self._judged.get(index, (None, None, None)) for index in range(len(self._seen))]
        lines = [line for line in self._lines if line["behaviour"] != "demonstration"]
        return {
            "phase": "evaluating" if phase == "running" and self._purpose == "evaluation" else phase,
            "waits_for": self._waits_for,
            "session": {"task": self.side.instruction, "robot": self._robot.name, "out": self.side.out.name},
            "episode": {
                "index": self._number,
                "tick": max(len(self._seen) - 1, 0),
                "evaluation": self._purpose == "evaluation",
                "intervention": state.intervening,
                "time_s": [round(seen - self._seen[0], 3) for seen in self._seen],
                **{name: [values[i] for values in judged] for i, name in enumerate(("phi", "spread", "done"))},
            },
            "views": list(self.env.views),
            "rollouts": {
                "planned": self.side.rollouts or 0,
                "done": sum(line["behaviour"] == "rollout" for line in lines),
                "success": [line["success"] for line in lines],
                "interventions": [line["interventions"] > 0 for line in lines],
                "evaluation": [line["behaviour"] == "evaluation" for line in lines],
            },
            "keys": [{"key": key, "does": does, "enabled": allowed(state)} for key, (does, allowed) in SAYABLE.items()],
            "timing": {
                "rate_hz": self.side.rate_hz,
                "measured_hz": 1000 / timing.period_ms if timing.ticks else None,
                "ticks": timing.ticks,
                "jitter_ms_p99": timing.jitter_ms_p99,
                "overruns": timing.overruns,
                **{f"frame_to_phi_ms_p{p}": _percentile_ms(self._latencies, p) for p in (50, 99)},
            },
            "safety": {
                "sent": self.safe.sent,
                "clamped": self.safe.clamped,
                "refused": self.safe.refused,
                "stopped": self.safe.stopped,
                "pictures_rejected": self.env.rejected,
            },
            "policy": {
                "version": self._version,
                "age_s": now - self._policy_came if self._version else None,
                "updates": self._learner.get("updates", 0),
            },
            "learner": {
                "connected": self._link is not None and self._link.ended is None,
                "backlog": len(self._missing()),
            },
            "faults": self._faults[-20:],
        }


def _percentile_ms(seconds: list[float], percent: float) -> float | None:
    return 1000 * float(np.percentile(seconds, percent)) if seconds else None


def drive(side: RobotSide, make_policy: Callable[[Path], ActingPolicy], pipe: Connection, token: bytes) -> None:
    """The robot's process. Ctrl-C is heard by the supervisor, which tells; an error is told, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Link(pipe, silence_s=None)
    try:
        actor = Actor(side, make_policy, control, token)
        signal.signal(signal.SIGTERM, lambda *_: actor.stop())
        # The loop shares the interpreter with threads that encode and send: they hand over within half a millisecond,
        # and a collection never walks through all that was imported.
        sys.setswitchinterval(5e-4)
        gc.collect()
        gc.freeze()
        listen_to_keys(control, actor.operator)
        actor.run()
    except GrmError as error:
        control.send(Message(kind="failed", fields={"error": str(error)}))
        control.flush()
        raise SystemExit(2) from error
    control.flush()


def listen_to_keys(control: Link, operator: Operator) -> None:
    """Hand on keys as they come, also while the loop is busy; if the supervisor dies, the robot stops."""

    def listen() -> None:
        while control.ended is None:
            message = control.receive(0.2)
            if message is not None and message.kind == "key":
                operator.press(message.fields["key"])
        operator.say(Event.STOP)

    threading.Thread(target=listen, name="keys", daemon=True).start()
