"""What a session survives, on the simulated robot with its real GRM and learner: kills, cameras, cables, disks, keys.

    python -m benchmarks.faults --kills 60

Every fault befalls a running session, which must go on by itself or be begun again. Lost is an episode that was
finished before and is not in the recording after, or not as it was; readable is whether LeRobot reads all of it.
Actions are audited where they reach the motors, in a file that outlives whoever is killed.
"""

import errno
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from grm.cli.mind import MakePolicy
from grm.errors import GrmError
from grm.reward import Frame, Judgement, ProcessReward, Task
from robot_io.learner import LearnerSide, checkpoints
from robot_io.limits import SafetyLimits
from robot_io.plan import RobotSide
from robot_io.replay import read_lines
from robot_io.session import Session, free_address
from robot_io.sim import Fault, SimRobotConfig

from .results import write_result
from .session import INSTRUCTION, command, prepare

HORIZON = 30
PATIENCE_S = 300.0


class Running:
    """A session in a thread, and what it left behind."""

    def __init__(self, side: RobotSide, learner: LearnerSide, make_policy: Any, make_mind: Any) -> None:
        self.side = side
        self.session = Session(
            robot=side,
            learner=learner,
            make_policy=make_policy,
            make_mind=make_mind,
            preload=("grm.cli.mind", "policies.offpolicy"),
        )
        self.error: GrmError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.session.run()
        except GrmError as error:
            self.error = error

    @property
    def recorded(self) -> int:
        return len(read_lines(self.side.recording))

    def until(self, what: Callable[[], bool]) -> bool:
        """Whether it happens in time, with the session still running."""
        end = time.monotonic() + PATIENCE_S
        while not what():
            if not self._thread.is_alive() or time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def more(self, count: int = 1) -> bool:
        goal = self.recorded + count
        return self.until(lambda: self.recorded >= goal)

    def end(self) -> None:
        self.session.interrupt()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self.session.kill()
            self._thread.join()


@dataclass(frozen=True)
class Stock:
    """What is on disk: how many episodes, and a digest of each file of data and pictures, which never change again."""

    episodes: int
    files: dict[str, str]

    @classmethod
    def of(cls, recording: Path) -> "Stock":
        every = (path for folder in ("data", "videos") for path in (recording / folder).rglob("*"))
        found = sorted(path for path in every if path.is_file())
        digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
        return cls(len(read_lines(recording)), digests)

    def lost(self, now: "Stock") -> int:
        """Episodes that are fewer now, or files that are gone or not what they were."""
        return max(0, self.episodes - now.episodes) + sum(now.files.get(p) != d for p, d in self.files.items())


def readable(recording: Path, *, whole: bool) -> bool:
    """Whether LeRobot itself reads it: every frame, or the first and the last."""
    from lerobot.datasets import LeRobotDataset

    try:
        dataset = LeRobotDataset("grm/episodes", root=recording, video_backend="pyav")
        frames = range(len(dataset)) if whole else (0, len(dataset) - 1)
        return all(len(dataset[frame]["observation.state"]) > 0 for frame in frames)
    except (OSError, ValueError, RuntimeError, IndexError, AssertionError):
        return False


def beyond_limits(audit: Path, limits: SafetyLimits) -> int:
    """Commands out of range or workspace, or further than a step from the one before and from where the arm was."""
    if not audit.exists():
        return 0
    wrong, before = 0, None
    for line in audit.read_text().splitlines():
        command, measured = json.loads(line)
        inside = all(limits.joints[n].low - 1e-9 <= v <= limits.joints[n].high + 1e-9 for n, v in command.items())
        if limits.workspace is not None:
            inside &= limits.workspace.contains(np.array([command[f"{axis}.pos"] for axis in "xyz"]))
        near = any(
            all(abs(v - start[n]) <= limits.joints[n].max_step + 1e-9 for n, v in command.items())
            for start in (before, measured)
            if start is not None
        )
        wrong += not (inside and near)
        before = command
    return wrong


# ---- what befalls


@dataclass(frozen=True)
class DiskFull:
    """In the robot's process: writing fails for some episodes."""

    make: Callable[[Path], Any]
    start: int
    count: int

    def __call__(self, folder: Path) -> Any:
        from lerobot.datasets import LeRobotDataset

        save, calls = LeRobotDataset.save_episode, iter(range(10**6))

        def full(dataset: Any, *arguments: Any, **named: Any) -> Any:
            if self.start <= next(calls) < self.start + self.count:
                raise OSError(errno.ENOSPC, "No space left on device")
            return save(dataset, *arguments, **named)

        LeRobotDataset.save_episode = full
        return self.make(folder)


@dataclass(frozen=True)
class ClockJumps:
    """In the robot's process: the wall clock goes back and forth by hours."""

    make: Callable[[Path], Any]

    def __call__(self, folder: Path) -> Any:
        import itertools

        real, jumps = time.time, itertools.cycle((0.0, 7200.0, -7200.0))
        time.time = lambda: real() + next(jumps)
        return self.make(folder)


class Blind(ProcessReward[Frame, Any]):
    """Abstains for ten seconds, some seconds after it was made."""

    def __init__(self, model: ProcessReward[Frame, Any]) -> None:
        self.model, self.made = model, time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def start(self, task: Task) -> Any:
        return self.model.start(task)

    def extend(self, carries: Sequence[Any], steps: Sequence[Sequence[Frame]]) -> tuple[list[Any], Sequence[Judgement]]:
        ends, judgements = self.model.extend(carries, steps)
        if 5 < time.monotonic() - self.made < 15:
            nan = [np.full(len(frames), np.nan) for frames in steps]
            judgements = [Judgement(potential=x, spread=x, judged=~np.isnan(x)) for x in nan]
        return ends, judgements


@dataclass(frozen=True)
class MakeBlind:
    make: Callable[..., Any]

    def __call__(self, checkpoint: Path | None, report: Callable[[str], None]) -> Any:
        mind: Any = self.make(checkpoint, report)
        mind.model = Blind(mind.model)
        return mind


class Wire:
    """A network between both processes that can be slow, and cut."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to, self.delay_s, self.cut = to, 0.0, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                if self.cut:
                    raise OSError
                far = socket.create_connection(self._to, timeout=5)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                time.sleep(self.delay_s)
                while self.cut:  # nothing arrives, and nobody is told
                    time.sleep(0.02)
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()


@dataclass(frozen=True)
class Scene:
    """A session about to be hurt."""

    side: RobotSide
    learner: LearnerSide
    make_policy: Any
    make_mind: Any

    @contextmanager
    def running(self) -> Iterator[Running]:
        running = Running(self.side, self.learner, self.make_policy, self.make_mind)
        try:
            yield running
        finally:
            running.end()


Row = dict[str, object]
Hurt = Callable[[Scene, "Judge"], None]


class Judge:
    """Looks before and after."""

    def __init__(self, scene: Scene, audit: Path) -> None:
        self._scene, self._audit, self.rows = scene, audit, list[Row]()
        self._began = time.monotonic()
        self._limits = SafetyLimits.read(scene.side.limits)

    def before(self) -> Stock:
        return Stock.of(self._scene.side.recording)

    def after(self, what: str, before: Stock, went_on: bool, at: float | None = None) -> None:
        recording = self._scene.side.recording
        now = Stock.of(recording)
        self.rows.append(
            {
                "what": what,
                "when_s": round((at or time.monotonic()) - self._began, 2),
                "episodes_before": before.episodes,
                "episodes_after": now.episodes,
                "lost": before.lost(now),
                "readable": readable(recording, whole=False),
                "went_on": went_on,
                "actions_beyond_limits": beyond_limits(self._audit, self._limits),
            }
        )
        print(self.rows[-1], flush=True)


def kill_at_random(count: int, seed: int) -> Hurt:
    def hurt(scene: Scene, judge: Judge) -> None:
        generator = random.Random(seed)
        with scene.running() as running:
            running.more(2)
            for _ in range(count):
                time.sleep(generator.uniform(0, 6))
                victims = generator.choice((("robot",), ("learner",), ("robot", "learner")))
                before, at = judge.before(), time.monotonic()
                for name in victims:
                    pid = running.session.processes[name]
                    if pid is not None:
                        with suppress(ProcessLookupError):  # it died by itself, as the other's companion
                            os.kill(pid, signal.SIGKILL)
                judge.after(f"kill -9 of {' and '.join(victims)}", before, running.more(), at)

    return hurt


def waits(what: str, episodes: int = 4) -> Hurt:
    """For faults that come by themselves."""

    def hurt(scene: Scene, judge: Judge) -> None:
        with scene.running() as running:
            running.more()
            before, at = judge.before(), time.monotonic()
            judge.after(what, before, running.more(episodes), at)

    return hurt


def network(kind: Literal["slow", "cut", "silent"]) -> Hurt:
    def hurt(scene: Scene, judge: Judge) -> None:
        wire = Wire(scene.learner.address)
        scene = replace(scene, side=replace(scene.side, learner=wire.address))
        with scene.running() as running:
            running.more()
            before, at = judge.before(), time.monotonic()
            if kind == "slow":
                wire.delay_s = 0.3
            else:
                wire.cut = True
                if kind == "cut":
                    for end in wire._open:
                        end.close()
            went_on = running.more(3)
            wire.delay_s, wire.cut = 0.0, False
            caught_up = running.until(lambda: running.session.state().get("learner", {}).get("backlog", 9) <= 1)
            judge.after(f"network {kind}, and back", before, went_on and caught_up, at)

    return hurt


def keys(seed: int) -> Hurt:
    def hurt(scene: Scene, judge: Judge) -> None:
        generator = random.Random(seed)
        with scene.running() as running:
            running.more()
            before, at = judge.before(), time.monotonic()
            end = at + 20
            while time.monotonic() < end:
                running.session.press(generator.choice(("s", "f", "d", "r", "space", "enter", "p", "p")))
                time.sleep(generator.uniform(0, 0.3))
            if running.session.state()["phase"] == "paused":
                running.session.press("p")
            judge.after("keys at random, during resets too", before, running.more(2), at)

    return hurt


def twice(scene: Scene, judge: Judge) -> None:
    with scene.running() as running:
        running.more()
        before, at = judge.before(), time.monotonic()
        running.until(lambda: running.session.state()["phase"] == "running")
        running.session.interrupt()
        running.session.interrupt()
        running._thread.join(60)
    with scene.running() as again:
        judge.after("Ctrl-C twice, and begun again", before, again.more(), at)


def main(
    kills: int = 60,
    seed: int = 0,
    runs: Path = Path("runs/session"),
    only: tuple[str, ...] = (),
) -> None:
    """Hurt sessions in every way, or in the ways named."""
    runs.mkdir(parents=True, exist_ok=True)
    prepare(runs, seed)
    camera: dict[str, list[Fault]] = {
        "camera frozen for 2 s": [Fault(kind="frozen", view="corner", start=60, readings=40)],
        "camera frozen for good, then mended": [Fault(kind="frozen", view="corner", start=60, readings=200)],
        "pictures dropped": [Fault(kind="dropped", view="corner", start=60, readings=5)],
        "pictures out of order": [Fault(kind="reordered", start=60, readings=60)],
        "camera black for 2 s": [Fault(kind="black", view="gripperPOV", start=60, readings=40)],
        "robot disconnects in an episode": [Fault(kind="disconnect", start=60, readings=1)],
        "robot answers slowly": [Fault(kind="slow", start=60, readings=2, seconds=0.7)],
    }
    hurts: dict[str, Hurt] = {
        "kills": kill_at_random(kills, seed),
        **{what: waits(what) for what in camera},
        **{f"network {kind}": network(kind) for kind in ("slow", "cut", "silent")},
        "disk full": waits("disk full for two episodes"),
        "clock": waits("wall clock jumps by hours"),
        "abstains": waits("the GRM abstains for ten seconds", 8),
        "keys": keys(seed),
        "Ctrl-C": twice,
    }
    rows: list[Row] = []
    learned: dict[str, bool] = {}
    unreadable = 0
    for name, hurt in hurts.items():
        if only and name not in only:
            continue
        audit = runs / f"faults-{name.replace(' ', '-')}.jsonl"
        scene = make_scene(runs, seed, name, audit, tuple(camera.get(name, ())))
        judge = Judge(scene, audit)
        hurt(scene, judge)
        rows += [{"scenario": name, **row} for row in judge.rows]
        learned[name] = all_learned(scene)
        unreadable += not readable(scene.side.recording, whole=True)
    summary = {
        "faults": len(rows),
        "kills": sum("kill" in str(row["what"]) for row in rows),
        "episodes_lost": sum(int(str(row["lost"])) for row in rows),
        "unreadable": unreadable + sum(not row["readable"] for row in rows),
        "did_not_go_on": sum(not row["went_on"] for row in rows),
        "actions_beyond_limits": sum(
            max(int(str(row["actions_beyond_limits"])) for row in rows if row["scenario"] == name) for name in learned
        ),
        "scenarios_not_all_learned": sum(not everything for everything in learned.values()),
    }
    print(json.dumps(summary, indent=1))
    write_result("faults", summary, seeds=[seed], rows=rows)


def make_scene(runs: Path, seed: int, name: str, audit: Path, faults: tuple[Fault, ...]) -> Scene:
    settings = replace(command(runs, f"faults-{name.replace(' ', '-')}", seed), horizon=HORIZON)
    side, learner = settings.sides()
    assert side is not None
    assert learner is not None
    assert isinstance(side.robot, SimRobotConfig)
    robot = replace(side.robot, audit=str(audit.absolute()), faults=list(faults))
    side = replace(side, robot=robot, learner=free_address())
    make_policy: Any = MakePolicy(instruction=INSTRUCTION)
    make_mind: Any = settings.make_mind()
    if name == "disk full":
        make_policy = DiskFull(make_policy, 2, 2)
    if name == "clock":
        make_policy = ClockJumps(make_policy)
    if name == "abstains":
        make_mind = MakeBlind(make_mind)
    assert side.learner is not None
    return Scene(side, replace(learner, address=side.learner), make_policy, make_mind)


def all_learned(scene: Scene) -> bool:
    """Whether the learner's checkpoint knows all that was recorded."""
    found = checkpoints(scene.learner.out)
    known = json.loads((found[-1] / "session.json").read_text())["learned"] if found else []
    return set(known) == set(range(len(read_lines(scene.side.recording))))


if __name__ == "__main__":
    tyro.cli(main)
