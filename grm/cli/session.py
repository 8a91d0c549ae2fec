"""`grm session`: a real robot, one demonstration, and an afternoon."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ..errors import CheckpointError, MissingExtraError, OutputError, TraceError
from .mind import MakeMind, MakePolicy
from .output import check_output, command_line, commit
from .serve import read_token
from .terminal import console

if TYPE_CHECKING:
    from robot_io.learner import LearnerSide
    from robot_io.plan import RobotSide
    from robot_io.replay import Attempt

_SHOW_S = 0.25


@dataclass(frozen=True)
class Session:
    """Fine-tune a policy on a robot from one demonstration, while a person looks after it.

    The robot tries, the GRM judges each step from the cameras, the policy improves between rollouts; you reset the
    scene, take over, and say what was a success, by key, gamepad or in the browser. Ctrl-C finishes the episode and
    ends, twice stops now; with --resume it goes on. docs/session.md says what to connect, calibrate, declare and press.
    """

    out: Path
    """Folder of the recording, the adapted GRM and the learner."""
    robot: tuple[str, ...] = ()
    """The robot, by LeRobot's own names: `type=so101_follower port=/dev/ttyACM0 id=mine`; grm_sim is simulated."""
    limits: Path | None = None
    """Its limits, in a TOML file; those of the simulated arm unless named."""
    demo: Path | None = None
    """LeRobotDataset with the demonstration, such as --demonstrate records."""
    demo_episode: int = 0
    """Which of its episodes."""
    instruction: str = ""
    """What is to be done; what the demonstration says unless given."""
    teleop: tuple[str, ...] = ()
    """What a person drives with, as --robot: `type=so101_leader port=/dev/ttyACM1`."""
    demonstrate: int = 0
    """Record so many demonstrations with the teleoperator instead, and learn nothing."""
    success: Literal["person", "environment", "head"] = "person"
    """Who says that it is done: you, the simulation itself, or the GRM's success head, once it is sure."""
    attended: bool = False
    """Wait for you to say that the scene is reset, also where the robot is simulated and resets it by itself."""
    rollouts: int | None = None
    """End after so many; go on until you end it unless given."""
    evaluate_every: int = 0
    """Rollouts between evaluations of the deterministic policy; 0 for none."""
    evaluations: int = 10
    """Rollouts of one evaluation."""
    model: str = ""
    """GRM to adapt to the demonstration: a folder, a Hub id, or nothing for the packaged one."""
    grm: Path | None = None
    """GRM that is adapted already, such as `grm adapt` wrote."""
    adaptation_steps: int = 200
    rate_hz: float = 20.0
    """Steps per second; the demonstration must have the same."""
    horizon: int = 0
    """Steps until a rollout is cut short; twice what the demonstration took, at least 50, unless given."""
    control: Literal["delta", "absolute"] = "delta"
    """Whether an action is a difference to the command before, or a place."""
    views: tuple[str, ...] = ()
    """Names of the cameras to look at; nothing for all."""
    size: tuple[int, int] = (128, 128)
    """Height and width that their pictures are made."""
    home: tuple[str, ...] = ()
    """Where the robot goes before each reset: `shoulder_pan.pos=0 …`, every joint; nowhere unless given."""
    gamma: float = 0.98
    """Discount per step."""
    guidance: float = 1.0
    """Weight of the potential that the learner makes of Φ and of its successes; 0 for the task's reward alone."""
    refit_every: int = 0
    """Rollouts after which the GRM learns from the session's last ones, its encoder apart; 0 for never."""
    updates_per_step: int = 2
    """Gradient updates per step of a rollout."""
    seed: int = 0
    port: int = 8770
    """Of the page, for browsers on this machine."""
    listen: str = ""
    """Only learn, for a robot elsewhere: the address to listen at, such as 0.0.0.0:8780."""
    learner: str = ""
    """Only drive, with the learner on another machine: its address."""
    token_file: Path | None = None
    """File with a token that both machines have; needed where they are two."""
    threads: int = 1
    """CPU threads of the learner."""
    resume: bool = False
    """Go on with what is in --out."""
    rejudge: bool = False
    """Judge the recording in --out anew, offline, and say what changed."""

    def run(self) -> None:
        """Run the session."""
        if self.rejudge:
            self._rejudge()
            return
        try:
            from robot_io.operator import keyboard
            from robot_io.page import served
            from robot_io.session import Session as Running
            from robot_io.session import interrupted
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"grm session needs {error.name}; install it with `pip install 'grm-robotics[serve]'`"
            ) from error
        check_output(self.out, resume=self.resume)
        robot, learner = self.sides()
        make_mind = self.make_mind() if learner is not None else None
        self._write_config()  # only now: a command that is refused leaves nothing behind
        token = b"" if self.token_file is None else read_token(self.token_file).encode()
        session = Running(
            robot=robot,
            learner=learner,
            make_policy=MakePolicy(instruction=robot.instruction) if robot is not None else None,
            make_mind=make_mind,
            token=token,
            preload=("grm.cli.mind", "policies.offpolicy"),
        )
        with ExitStack() as stack:
            stack.enter_context(interrupted(session))
            if robot is not None:
                page = stack.enter_context(served(session, self.port))
                console.print(
                    f"open [bold]{page}[/bold]; here: space takes over, s success, f failure, d discard, r reset, "
                    f"p pause, Enter ready, q end after this episode, Esc stop now",
                    highlight=False,
                    soft_wrap=True,
                )
                stack.enter_context(keyboard(session.press))
            status = stack.enter_context(console.status("starting"))
            shown = 0.0

            def show(state: dict[str, Any]) -> None:
                nonlocal shown
                if time.monotonic() - shown > _SHOW_S:
                    shown = time.monotonic()
                    status.update(escape(_summary(state)))

            session.run(show)
        state = session.state()
        console.print(escape(_summary(state)), highlight=False, soft_wrap=True)
        for fault in state.get("faults", []):
            console.print(f"at {fault['time_s']:.0f} s: {escape(fault['text'])}", highlight=False, soft_wrap=True)

    def _write_config(self) -> None:
        """What a session must go on with as it was begun, into config.json. Raises `CheckpointError` if it changed."""
        path = self.out / "config.json"
        settings = {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in ("rate_hz", "control", "views", "size", "gamma", "guidance", "demo_episode")
        }
        if path.exists():
            found = json.loads(path.read_text())["settings"]
            changed = [name for name, value in settings.items() if found.get(name) != value]
            if changed:
                raise CheckpointError(
                    f"{self.out} was begun with {', '.join(f'{name} {found.get(name)}' for name in changed)}; expected "
                    f"the same, since what was learned holds for those: choose another --out for others"
                )
            return
        path.write_text(json.dumps({"settings": settings, "command": command_line(self), "commit": commit()}) + "\n")

    def sides(self) -> "tuple[RobotSide | None, LearnerSide | None]":
        """What both processes are told. Raises `GrmError` for what does not go together."""
        from robot_io import sim
        from robot_io.devices import robot_config, teleop_config
        from robot_io.learner import LearnerSide
        from robot_io.plan import RobotSide
        from robot_io.session import free_address

        if (self.listen or self.learner) and self.token_file is None:
            raise OutputError(
                "robot and learner are on two machines and there is no token; expected --token-file on both"
            )
        if self.listen:
            return None, LearnerSide(out=self.out / "learner", address=_address(self.listen))
        if self.demonstrate and not self.teleop:
            raise OutputError("nobody can demonstrate without --teleop; expected one, such as a leader arm")
        if not self.robot:
            raise OutputError("no robot was named; expected --robot type=…, such as --robot type=grm_sim")
        config, teleop = robot_config(self.robot), teleop_config(self.teleop) if self.teleop else None
        limits = self.limits
        if limits is None:
            if config.type != "grm_sim":
                raise OutputError(
                    f"no limits for {config.type}; expected --limits with a file: docs/session.md shows one"
                )
            limits = Path(sim.__file__).with_name("sim_limits.toml")
        address = None
        if not self.demonstrate:
            address = _address(self.learner) if self.learner else free_address()
        instruction, horizon = self.instruction, self.horizon
        if not self.demonstrate:
            shown = self._demonstration()
            instruction, horizon = instruction or shown[0], horizon or max(50, 2 * (len(shown[1].state) - 1))
        if not instruction:
            raise OutputError("no instruction; expected --instruction with a sentence such as 'unlock the door'")
        home = {name: float(value) for name, _, value in (word.partition("=") for word in self.home)}
        side = RobotSide(
            out=self.out,
            robot=config,
            teleop=teleop,
            limits=limits,
            instruction=instruction,
            rate_hz=self.rate_hz,
            horizon=horizon or 400,
            control=self.control,
            views=self.views or None,
            size=self.size,
            home=home or None,
            success=self.success,
            attended=self.attended,
            learner=address,
            rollouts=self.demonstrate or self.rollouts,
            evaluate_every=self.evaluate_every,
            evaluations=self.evaluations,
            seed=self.seed,
            demonstrate=self.demonstrate > 0,
        )
        beside = None if address is None or self.learner else LearnerSide(out=self.out / "learner", address=address)
        return side, beside

    def _demonstration(self) -> "tuple[str, Attempt]":
        """Instruction and steps of the demonstration."""
        from robot_io.replay import read_attempt

        from ..data.lerobot import recorded_episodes

        if self.demo is None:
            raise OutputError(
                "no demonstration; expected --demo with a folder: record one with --demonstrate 1 and a --teleop"
            )
        attempt = read_attempt(self.demo, self.demo_episode)
        if not attempt.success:
            raise TraceError(
                f"episode {self.demo_episode} of {self.demo} does not end in success; expected one that shows it done"
            )
        return recorded_episodes(self.demo)[self.demo_episode].instruction, attempt

    def make_mind(self) -> MakeMind:
        """What makes the learner's mind."""
        if self.demo is None:
            raise OutputError("no demonstration; expected --demo with a folder, also where only the learner runs")
        return MakeMind(
            out=self.out,
            demo=self.demo,
            episode=self.demo_episode,
            instruction=self.instruction,
            model=self.model,
            grm=self.grm,
            steps=self.adaptation_steps,
            gamma=self.gamma,
            guidance=self.guidance,
            updates_per_step=self.updates_per_step,
            seed=self.seed,
            threads=self.threads,
            refit_every=self.refit_every,
            card={"command": command_line(self), "commit": commit()},
        )

    def _rejudge(self) -> None:
        from robot_io.recorder import read_judged
        from robot_io.replay import read_attempts

        recording = self.out / "episodes"
        model, task, _ = self.make_mind().judge(lambda doing: None)
        table = Table("episode", "success", "judged in time", "Φ at the end", "largest change of Φ")
        said = read_judged(recording)
        recorded = zip(read_attempts(recording), said, strict=True)
        for attempt, then in track(recorded, "judging", len(said), console=console):
            now = model.judge(task, attempt.frames)
            both = then.judged & now.judged
            change = np.abs(then.potential - now.potential)[both]
            table.add_row(
                str(attempt.number),
                "yes" if attempt.success else "no",
                f"{then.judged.sum()} of {len(then)}",
                f"{now.potential[-1]:.3f}" if now.judged[-1] else "abstained",
                f"{change.max():.1g}" if len(change) else "",
            )
        console.print(table)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise OutputError(f"the address is {text!r}; expected host:port, such as 192.168.1.20:8780")
    return host, int(port)


def _summary(state: Mapping[str, Any]) -> str:
    rollouts = state.get("rollouts", {})
    recent = [
        yes for yes, test in zip(rollouts.get("success", ()), rollouts.get("evaluation", ()), strict=True) if not test
    ]
    done = rollouts.get("done", 0)
    shown = len(recent) - done
    parts = [f"{shown} demonstration{'s' * (shown > 1)}"] if shown else []
    parts += [f"{done} rollouts"] if done or not shown else []
    if recent[-20:]:
        parts.append(f"{sum(recent[-20:])} of the last {len(recent[-20:])} succeeded")
    phi = [value for value in state.get("episode", {}).get("phi", ()) if value is not None]
    if phi:
        parts.append(f"Φ {phi[-1]:.2f}")
    waits = state.get("waits_for")
    return f"{state['phase']}: {', '.join(parts)}" + (f"; waiting for {waits}" if waits else "")
