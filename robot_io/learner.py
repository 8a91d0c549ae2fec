"""The process that learns: it judges each frame as it comes, shapes, updates and hands back policies, in one thread.

Whatever frames wait are judged between two updates, so that nobody waits longer for a judgement than one slice of
learning takes, and no lock is needed. An episode counts as learned once a checkpoint holds it; until then the robot's
process keeps offering it, from its recording.
"""

import gc
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from grm.errors import CheckpointError, GrmError, OutputError
from grm.reward import Frame, Judgement, ProcessReward, Task

from .cameras import as_recorded, from_file
from .link import Address, Host, Link, Message
from .messages import VERSION, fingerprint
from .replay import Attempt
from .robot import PIXELS

_log = logging.getLogger(__name__)

_PUBLISH_S = 1.0
"""Between two policies handed over while an episode is being learned from."""
_STATUS_S = 0.5
_IDLE_S = 0.01
_NICENESS = 5
"""Of the learner's process: where cores are few, the robot's comes first."""


class Mind[C](Protocol):
    """What judges and learns; made by whoever composes a session, from models and learners that are not known here."""

    @property
    def model(self) -> ProcessReward[Frame, C]:
        """What judges."""
        ...

    @property
    def task(self) -> Task:
        """What is to be done, with a picture of it done."""
        ...

    @property
    def grm(self) -> Path:
        """Folder of the model's checkpoint, whose features the policy sees."""
        ...

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers of the state that it was made for; empty if it takes any."""
        ...

    def observe(self, state: Float[np.ndarray, " n"], carry: C) -> Float[np.ndarray, " m"]:
        """What the policy sees at the newest frame of a prefix."""
        ...

    def learn(
        self,
        attempt: Attempt,
        observations: Float[np.ndarray, "T+1 m"],
        judgement: Judgement,
        between: Callable[[], None],
    ) -> None:
        """Learn from a rollout as its frames were judged; calls `between` every few milliseconds."""
        ...

    def policy(self) -> bytes:
        """The acting policy as it is now."""
        ...

    def updates(self) -> int:
        """Gradient updates so far."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that is needed to go on into a new folder."""
        ...


type MakeMind = Callable[[Path | None, Callable[[str], None]], Mind[Any]]
"""From the checkpoint to go on from, None to begin, and whom to tell what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSide:
    """What the learner's process is told."""

    out: Path
    address: Address


@dataclass(slots=True, kw_only=True, eq=False)
class _Running[C]:
    """An episode that is being told."""

    number: int
    purpose: str
    recorded: bool
    """Whether the pictures come from the recording."""
    cloned: bool | None
    """Whether the cloned policy alone acted, None if nobody knows."""
    carry: C
    frames: list[Frame]
    states: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    interventions: list[bool] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    observations: list[np.ndarray] = field(default_factory=list)
    ending: Mapping[str, Any] | None = None

    @property
    def judged(self) -> int:
        return len(self.observations)

    @property
    def whole(self) -> bool:
        return self.ending is not None and self.ending["ticks"] == len(self.actions)


class Learning[C]:
    """Judges and learns until it is told to end.

    Args:
        folder: of the checkpoints.
        mind: what judges and learns.
        host: where the robot's process calls.
        control: to the supervisor, which says when to end.
        learned: numbers of the episodes that `mind` knows.
        limits: fingerprint of the limits they were collected under; None if there are none yet.
    """

    def __init__(
        self,
        folder: Path,
        mind: Mind[C],
        host: Host,
        control: Link,
        *,
        learned: Sequence[int] = (),
        limits: str | None = None,
    ) -> None:
        self._folder, self._mind, self._host, self._control = folder, mind, host, control
        self.learned = list(learned)
        self._limits = limits
        self._link: Link | None = None
        self._running: dict[int, _Running[C]] = {}
        self._finished: list[_Running[C]] = []
        self._version = 0
        self._published = self._said = 0.0
        self._doing = "waiting"

    def run(self) -> None:
        """Until the supervisor says so, or dies; what is finished is learned from before."""
        ending = False
        while True:
            ending = ending or self._control.ended is not None or self._control.receive() is not None
            if self.attend():
                continue
            if self._finished:
                self._learn(self._finished.pop(0))
            elif ending:
                return
            elif self._link is None:
                time.sleep(_IDLE_S)
            else:
                self.attend(_IDLE_S)

    def attend(self, wait_s: float = 0.0) -> bool:
        """Hear what was said, within some seconds, and judge one frame of those that wait; True if there was any."""
        link, heard = self._host.link, False
        if link is not None and link is not self._link:
            self._link = link
            self._running.clear()
            self._finished.clear()  # whatever is not learned is told again
        while self._link is not None and (message := self._link.receive(wait_s)) is not None:
            self._hear(self._link, message)
            heard, wait_s = True, 0.0
        judged = self._judge()
        self._tell()
        return heard or judged

    def _between(self) -> None:
        self.attend()
        if time.monotonic() - self._published > _PUBLISH_S:
            self._publish()

    def _hear(self, link: Link, message: Message) -> None:
        found = message.fields
        match message.kind:
            case "hello":
                self._welcome(link, found)
            case "begin":
                number = found["episode"]
                self._running[number] = _Running(
                    number=number,
                    purpose=found["purpose"],
                    recorded=found["recorded"],
                    cloned=found["cloned"],
                    carry=self._mind.model.start(self._mind.task),
                    frames=[_frame(message, recorded=found["recorded"])],
                    states=[message.arrays["state"]],
                )
            case "tick" if (running := self._running.get(found["episode"])) is not None:
                if found["index"] != len(running.actions):
                    del self._running[running.number]  # a step is missing: it will be told again, from the recording
                    return
                running.frames.append(_frame(message, recorded=running.recorded))
                running.states.append(message.arrays["state"])
                running.actions.append(message.arrays["action"])
                running.rewards.append(found["reward"])
                running.interventions.append(found["intervention"])
            case "end" if (running := self._running.get(found["episode"])) is not None:
                running.ending = found
                if not (running.whole and found["kept"]):
                    del self._running[running.number]

    def _welcome(self, link: Link, found: Mapping[str, Any]) -> None:
        wrong = None
        if found["version"] != VERSION:
            wrong = f"the robot's process speaks version {found['version']} and the learner {VERSION}; update both"
        elif self._limits is not None and found["limits"] != self._limits:
            wrong = (
                f"the limits file has the fingerprint {found['limits']} and the session in {self._folder} was begun "
                f"with {self._limits}; expected the same limits, or another --out: what was learned holds for those"
            )
        elif self._mind.scalars and list(self._mind.scalars) != found["scalars"]:
            wrong = (
                f"the robot's state is {', '.join(found['scalars'])} and the demonstration's "
                f"{', '.join(self._mind.scalars)}; expected the same robot with the same --control: demonstrate anew"
            )
        elif self.learned and max(self.learned) >= found["recorded"]:
            wrong = (
                f"the learner knows episode {max(self.learned)} and the robot's recording has {found['recorded']} "
                f"episodes; expected the recording that this session was begun with, or another --out"
            )
        if wrong is not None:
            link.send(Message(kind="refused", fields={"reason": wrong}))
            return
        self._limits = found["limits"]
        link.send(Message(kind="welcome", fields={"learned": self.learned}))
        files = (self._mind.grm / "config.json", self._mind.grm / "model.safetensors")
        link.send(
            Message(kind="model", arrays={file.name: np.frombuffer(file.read_bytes(), np.uint8) for file in files})
        )
        self._publish()

    def _judge(self) -> bool:
        """One frame of the newest episode that has some; True if there was one."""
        waiting = [running for running in self._running.values() if running.judged < len(running.frames)]
        if waiting:
            running = waiting[-1]
            index = running.judged
            # One by one, since the policy sees what each carry has seen.
            [running.carry], [judgement] = self._mind.model.extend([running.carry], [[running.frames[index]]])
            running.judgements.append(judgement)
            running.observations.append(self._mind.observe(running.states[index], running.carry))
            self._report(running, index, judgement)
        for running in [r for r in self._running.values() if r.whole and r.judged == len(r.frames)]:
            del self._running[running.number]
            self._finished.append(running)
        return bool(waiting)

    def _report(self, running: _Running[C], index: int, judgement: Judgement) -> None:
        if self._link is None:
            return
        said = {
            name: _number(float(getattr(judgement, name)[0])) if hasattr(judgement, name) else None
            for name in ("potential", "spread", "success")
        }
        self._link.send(Message(kind="judged", fields={"episode": running.number, "index": index, **said}))

    def _learn(self, running: _Running[C]) -> None:
        attempt = _attempt(running)
        if attempt.number not in self.learned:
            if attempt.purpose == "rollout":
                self._doing = "learning"
                judgement = _joined(running.judgements)
                self._mind.learn(attempt, np.stack(running.observations), judgement, self._between)
            self.learned.append(attempt.number)
            self.save()
            self._control.send(Message(kind="doing", fields={"doing": "", "learned": len(self.learned)}))
            self._doing = "waiting"
        if self._link is not None:
            self._link.send(Message(kind="learned", fields={"episode": attempt.number}))
        if attempt.purpose == "rollout":
            self._publish()

    def _publish(self) -> None:
        if self._link is None:
            return
        self._version += 1
        self._published = time.monotonic()
        policy = np.frombuffer(self._mind.policy(), np.uint8)
        self._link.send(Message(kind="policy", fields={"version": self._version}, arrays={"policy": policy}))

    def _tell(self) -> None:
        if self._link is not None and time.monotonic() - self._said > _STATUS_S:
            self._said = time.monotonic()
            fields = {"doing": self._doing, "learned": len(self.learned), "updates": self._mind.updates()}
            self._link.send(Message(kind="status", fields=fields))

    def save(self) -> None:
        """A checkpoint, there as a whole or not at all; the one before it goes."""
        before = checkpoints(self._folder)
        number = _number_of(before[-1]) + 1 if before else 1
        partial = self._folder / f".checkpoint-{number}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._mind.save(partial)
            state = {"learned": self.learned, "limits": self._limits, "grm": fingerprint(self._mind.grm)}
            (partial / "session.json").write_text(json.dumps(state))
            os.replace(partial, self._folder / f"checkpoint-{number}")
        except OSError as error:
            raise OutputError(
                f"{partial} cannot be written ({error.strerror or error}); expected space and permission: free some, "
                f"then run the same command again; what was recorded is safe, and will be learned from"
            ) from error
        for old in before:
            shutil.rmtree(old, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a session's learner, the newest last."""
    return sorted(Path(folder).glob("checkpoint-*"), key=_number_of)


def read_state(checkpoint: Path, grm: Path) -> dict[str, Any]:
    """What a checkpoint knows besides weights. Raises `CheckpointError` if it is of another GRM."""
    try:
        state = json.loads((checkpoint / "session.json").read_text())
        learned, found = state["learned"], state["grm"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint} is no checkpoint of a session ({type(error).__name__}: {error}); expected what "
            f"`grm session` writes there: delete the folder to learn anew from the recording"
        ) from error
    if found != fingerprint(grm):
        raise CheckpointError(
            f"{checkpoint} was learned with the GRM {found} and {grm} is {fingerprint(grm)}; expected the same, since "
            f"policy and critics see its features and rewards: put it back, or choose another --out"
        )
    return {**state, "learned": [int(number) for number in learned]}


def teach(side: LearnerSide, make_mind: MakeMind, pipe: Connection, token: bytes) -> None:
    """The learner's process. An error that cannot be mended here is told to the supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    control = Link(pipe, silence_s=None)
    host = None
    try:
        side.out.mkdir(parents=True, exist_ok=True)
        host = Host(side.address, token)

        def report(doing: str) -> None:
            control.send(Message(kind="doing", fields={"doing": doing}))

        found = checkpoints(side.out)
        mind = make_mind(found[-1] if found else None, report)
        state = read_state(found[-1], mind.grm) if found else {"learned": [], "limits": None}
        learning = Learning(side.out, mind, host, control, learned=state["learned"], limits=state["limits"])
        report("")
        gc.collect()
        gc.freeze()  # a collection that walks through all that was imported takes longer than a frame should wait

        learning.run()
    except GrmError as error:
        control.send(Message(kind="failed", fields={"error": str(error)}))
        control.flush()
        raise SystemExit(2) from error
    finally:
        if host is not None:
            host.close()


def _frame(message: Message, *, recorded: bool) -> Frame:
    files = {key.removeprefix(PIXELS): data for key, data in message.arrays.items() if key.startswith(PIXELS)}
    views = {name: from_file(data) if recorded else as_recorded(from_file(data)) for name, data in files.items()}
    return Frame(views=views, time=message.fields["time"])


def _attempt(running: _Running[Any]) -> Attempt:
    assert running.ending is not None
    rewards = np.array(running.rewards, np.float32)
    rewards[-1] = float(running.ending["success"])  # a verdict said in a pause came too late for its step
    return Attempt(
        number=running.number,
        views={name: np.stack([f.views[name] for f in running.frames]) for name in running.frames[0].views},
        state=np.stack(running.states),
        time=np.array([frame.time for frame in running.frames]),
        actions=np.stack(running.actions),
        rewards=rewards,
        interventions=np.array(running.interventions),
        terminated=running.ending["terminated"],
        success=running.ending["success"],
        purpose=running.purpose,
        cloned=running.cloned,
    )


def _joined(judgements: Sequence[Judgement]) -> Judgement:
    return Judgement(
        potential=np.concatenate([j.potential for j in judgements]),
        spread=np.concatenate([j.spread for j in judgements]),
        judged=np.concatenate([j.judged for j in judgements]),
    )


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
