"""`grm session`: a real robot, one demonstration, and an afternoon."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from rich.markup import escape
from rich.table import Table

from ..errors import MissingExtraError, OutputError, TraceError
from ..models.checkpoint import locate
from ..models.multiview import GRM, Carry, packaged_checkpoint
from ..reward import Frame, Task
from .output import check_output, command_line, commit
from .serve import read_token
from .terminal import console

if TYPE_CHECKING:
    from robot_io.actor import RobotSide
    from robot_io.learner import LearnerSide
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
    shaping_weight: float = 0.1
    """Factor of the GRM's potential."""
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
    """Judge and shape the recording in --out anew, offline, and say what changed."""

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
        token = b"" if self.token_file is None else read_token(self.token_file).encode()
        session = Running(
            robot=robot,
            learner=learner,
            make_policy=MakePolicy(instruction=robot.instruction) if robot is not None else None,
            make_mind=self.make_mind() if learner is not None else None,
            token=token,
            preload=("grm.cli.session", "policies.offpolicy"),
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

    def sides(self) -> "tuple[RobotSide | None, LearnerSide | None]":
        """What both processes are told. Raises `GrmError` for what does not go together."""
        from robot_io import sim
        from robot_io.actor import RobotSide
        from robot_io.devices import robot_config, teleop_config
        from robot_io.learner import LearnerSide
        from robot_io.session import free_address

        if (self.listen or self.learner) and self.token_file is None:
            raise OutputError(
                "robot and learner are on two machines and there is no token; expected --token-file on both"
            )
        if self.listen:
            return None, LearnerSide(out=self.out / "learner", address=_address(self.listen))
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

    def make_mind(self) -> "MakeMind":
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
            weight=self.shaping_weight,
            updates_per_step=self.updates_per_step,
            seed=self.seed,
            threads=self.threads,
            card={"command": command_line(self), "commit": commit()},
        )

    def _rejudge(self) -> None:
        from robot_io.recorder import read_judged
        from robot_io.replay import read_attempt, read_lines, rejudge

        recording = self.out / "episodes"
        mind = self.make_mind()(None, lambda doing: None)
        table = Table("episode", "success", "Φ at the end, then", "now", "largest change", "sum of rewards")
        for number, line in enumerate(read_lines(recording)):
            attempt, then = read_attempt(recording, number), read_judged(recording, number)
            now, rewards = rejudge(mind.model, mind.task, attempt, gamma=mind.gamma, weight=mind.weight)
            both = then.judged & now.judged
            change = np.abs(then.potential - now.potential)[both]
            last = then.potential[then.judged][-1:]
            table.add_row(
                str(number),
                "yes" if line["success"] else "no",
                f"{last[0]:.3f}" if len(last) else "not judged",
                f"{now.potential[-1]:.3f}" if now.judged[-1] else "not judged",
                f"{change.max():.2g}" if len(change) else "",
                f"{rewards.sum():.3f}",
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
    parts = [f"{rollouts.get('done', 0)} rollouts"]
    if recent[-20:]:
        parts.append(f"{sum(recent[-20:])} of the last {len(recent[-20:])} succeeded")
    phi = [value for value in state.get("episode", {}).get("phi", ()) if value is not None]
    if phi:
        parts.append(f"Φ {phi[-1]:.2f}")
    waits = state.get("waits_for")
    return f"{state['phase']}: {', '.join(parts)}" + (f"; waiting for {waits}" if waits else "")


@dataclass(frozen=True)
class MakePolicy:
    """Makes what acts, in the robot's process."""

    instruction: str

    def __call__(self, folder: Path) -> "ActingOnFeatures":
        """From the folder of the GRM whose features it sees."""
        import torch

        torch.set_num_threads(1)
        return ActingOnFeatures(GRM.from_pretrained(folder), self.instruction)


class ActingOnFeatures:
    """A learner's policy on proprioception and the GRM's features of the newest pictures."""

    def __init__(self, model: GRM, instruction: str) -> None:
        self._model, self._task = model, Task(instruction=instruction)
        self._carry = model.start(self._task)
        self._policy: Any = None

    def load(self, policy: bytes) -> None:
        """See `robot_io.actor.ActingPolicy`."""
        from policies.proposals import load_acting_policy

        fresh = load_acting_policy(policy)
        if self._policy is not None:
            fresh.continue_rollout(self._policy)
        self._policy = fresh

    def begin(self) -> None:
        """See `robot_io.actor.ActingPolicy`."""
        self._carry = self._model.start(self._task)
        self._policy.begin_rollout()

    def act(self, observation: Mapping[str, np.ndarray], *, explore: bool) -> Float[np.ndarray, " a"]:
        """See `robot_io.actor.ActingPolicy`."""
        views = {key.removeprefix("pixels."): value for key, value in observation.items() if key != "state"}
        [self._carry], _ = self._model.extend([self._carry], [[Frame(views=views)]])
        seen = np.concatenate([observation["state"], self._model.features(self._carry)])
        action, _ = self._policy.predict(seen, deterministic=not explore)
        return action


@dataclass(frozen=True)
class MakeMind:
    """Makes what judges and learns, in the learner's process: adapts and clones one demonstration, or goes on."""

    out: Path
    demo: Path
    episode: int
    instruction: str
    model: str
    grm: Path | None
    steps: int
    gamma: float
    weight: float
    updates_per_step: int
    seed: int
    threads: int
    card: dict[str, Any] = field(default_factory=dict)

    def __call__(self, checkpoint: Path | None, report: Callable[[str], None]) -> "GrmMind":
        """See `robot_io.learner.MakeMind`."""
        import torch

        from robot_io.replay import read_attempt, rejudge

        from ..data.lerobot import read_episodes

        torch.set_num_threads(self.threads)
        [episode] = read_episodes(self.demo, [self.episode])
        shown = read_attempt(self.demo, self.episode)
        folder = self.grm or self.out / "grm"
        if not (folder / "config.json").exists():
            if self.grm is not None:
                raise OutputError(f"{self.grm} holds no GRM; expected a folder that `grm adapt` wrote")
            report("adapting the GRM to the demonstration")
            self._adapt(episode, folder)
        report("cloning the demonstration" if checkpoint is None else "reading the checkpoint")
        model = GRM.from_pretrained(folder)
        task = Task(instruction=self.instruction or episode.instruction, goal=episode.frames[-1])
        _, rewards = rejudge(model, task, shown, gamma=self.gamma, weight=self.weight)
        return GrmMind(self, model, task, folder, shown, rewards, checkpoint)

    def _adapt(self, episode: Any, folder: Path) -> None:
        from ..data.replay import read_replay
        from ..train import adapt

        old = GRM.from_pretrained(self.model)
        replay = list(read_replay(locate(self.model, packaged_checkpoint())))
        new = adapt(old, episode, replay, steps=self.steps, seed=self.seed)
        partial = folder.with_name(f".{folder.name}")
        new.save_pretrained(partial, self.card)
        partial.replace(folder)


class GrmMind:
    """A GRM that judges, and a learner that acts on its features; see `robot_io.learner.Mind`."""

    def __init__(
        self,
        made: MakeMind,
        model: GRM,
        task: Task,
        grm: Path,
        shown: "Attempt",
        rewards: np.ndarray,
        checkpoint: Path | None,
    ) -> None:
        from gymnasium import spaces

        from policies.collecting import elsewhere
        from policies.demonstration import Demonstration
        from policies.offpolicy import DemonstrationSAC

        class Sliced(DemonstrationSAC):
            """Pauses between a few updates, so that frames that came meanwhile can be judged."""

            between: Callable[[], None] = staticmethod(lambda: None)

            def train(self, gradient_steps: int, batch_size: int = 128) -> None:
                for begin in range(0, gradient_steps, _SLICE):
                    super().train(min(_SLICE, gradient_steps - begin), batch_size)
                    self.between()

        self.model, self.task, self.grm = model, task, grm
        self.gamma, self.weight = made.gamma, made.weight
        carry, seen = model.start(task), []
        for state, frame in zip(shown.state, shown.frames, strict=True):
            [carry], _ = model.extend([carry], [[frame]])
            seen.append(self.observe(state, carry))
        observations = np.stack(seen)
        space = spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)
        env = elsewhere(space, spaces.Box(-1.0, 1.0, shown.actions.shape[1:], np.float32))
        if checkpoint is not None:
            self._learner = Sliced.load_checkpoint(checkpoint / "policy", env)
        else:
            ends = np.zeros(len(rewards), bool)
            ends[-1] = shown.terminated
            demonstration = Demonstration(
                observations=observations[:-1],
                actions=np.clip(shown.actions, -1, 1),
                rewards=rewards,
                next_observations=observations[1:],
                terminated=ends,
            )
            self._learner = Sliced(
                env, demonstration, gamma=made.gamma, updates_per_step=made.updates_per_step, seed=made.seed
            )

    def observe(self, state: Float[np.ndarray, " n"], carry: Carry) -> Float[np.ndarray, " m"]:
        """Proprioception, and what the GRM's encoder saw."""
        return np.concatenate([state, self.model.features(carry)]).astype(np.float32)

    def learn(
        self, attempt: "Attempt", observations: np.ndarray, rewards: np.ndarray, between: Callable[[], None]
    ) -> None:
        """See `robot_io.learner.Mind`."""
        from policies.demonstration import Collected

        ends = np.zeros(len(rewards), bool)
        ends[-1] = attempt.terminated
        self._learner.between = between  # pyright: ignore[reportAttributeAccessIssue]
        self._learner.learn_from(
            Collected(
                observations=observations[:-1],
                actions=np.clip(attempt.actions, -1, 1),
                rewards=rewards,
                next_observations=observations[1:],
                terminated=ends,
                success=attempt.success,
                task_reward=float(attempt.rewards.sum()),
                intervened=attempt.interventions,
            )
        )

    def policy(self) -> bytes:
        """See `robot_io.learner.Mind`."""
        return self._learner.acting_policy()

    def updates(self) -> int:
        """See `robot_io.learner.Mind`."""
        return self._learner._n_updates

    def save(self, folder: Path) -> None:
        """See `robot_io.learner.Mind`."""
        self._learner.save_checkpoint(folder / "policy")


_SLICE = 2
"""Updates between two looks at what came meanwhile, some ten milliseconds: one of them is the actor's, too."""
