"""The composition root: `grm <verb>`. The one module that may import everything, and that nothing imports.

Heavy imports sit inside the commands, so that `grm --help` is quick and one command's dependency is not another's.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ._layout import check_layout
from .data.episodes import Episode
from .data.replay import FILE, read_replay, write_replay
from .errors import CheckpointError, GrmError, OutputError, TraceError
from .evaluate import METRICS, by_task, score_all, summarize
from .models.checkpoint import copy_side_file, load_weights, locate, read_config
from .models.multiview import GRM, KIND, Architecture, MultiViewNetwork, packaged_checkpoint
from .reward import Frame

if TYPE_CHECKING:
    from policies.offpolicy import Rollout
    from policies.one_shot import OneShotSettings

console = Console()
complaints = Console(stderr=True)

SAVE_EVERY = 200
"""Training steps between checkpoints; an interruption loses at most these."""


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@dataclass(frozen=True)
class Collect:
    """Record labelled episodes of scripted behaviours as a LeRobotDataset; run again to go on after an interruption."""

    out: Path
    """Folder of the data set; with several tasks, one data set per task inside it."""
    task: tuple[str, ...] = ("door-unlock",)
    """Task names, or a group: `pretraining` (42), `held-out` (5), `precise` (3)."""
    episodes: int = 10
    """Successful expert episodes per task."""
    off_demonstration: int = 0
    """Episodes per task that fail, stall, detour, undo or recover, each behaviour in turn."""
    views: tuple[str, ...] = ("topview", "corner", "gripperPOV")
    """Cameras."""
    size: int = 64
    """Image height and width in pixels."""
    horizon: int = 100
    """Decisions until an episode is cut."""
    action_repeat: int = 2
    """Control steps of 12.5 ms per decision, and so per recorded frame."""
    label_every: int = 1
    """Ask the prover at every n-th frame of an episode off the demonstration, and interpolate between."""
    seed: int = 0
    """First instance; experts count up from it, the others from a million more."""
    jobs: int = 1
    """Processes, one task each at a time."""

    def run(self) -> None:
        """Collect every task, in parallel when asked."""
        from envs.metaworld import HELD_OUT, PRECISE, PRETRAINING, task_name

        groups = {"pretraining": PRETRAINING, "held-out": HELD_OUT, "precise": PRECISE}
        named = [name for entry in self.task for name in groups.get(entry) or (task_name(entry),)]
        tasks = list(dict.fromkeys(named))
        roots = {name: self.out / name if len(tasks) > 1 else self.out for name in tasks}
        total = self.episodes + self.off_demonstration
        with _progress() as progress:
            bar = progress.add_task("collecting", total=total * len(tasks))
            if self.jobs == 1 or len(tasks) == 1:
                for name, root in roots.items():
                    progress.update(bar, description=name)
                    for _ in _collect(self, name, root):
                        progress.advance(bar)
            else:
                with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
                    futures = {pool.submit(_collect_all, self, name, root): name for name, root in roots.items()}
                    for future in as_completed(futures):
                        future.result()
                        progress.update(bar, advance=total, description=futures[future])
        console.print(
            f"wrote {total * len(tasks)} episodes of {len(tasks)} task(s) to [bold]{escape(str(self.out))}[/bold]",
            soft_wrap=True,
        )


def _collect_all(settings: Collect, task: str, root: Path) -> None:
    for _ in _collect(settings, task, root):
        pass


def _collect(settings: Collect, task: str, root: Path):
    """Append the episodes that are still missing, one at a time; yields after each, written before or now."""
    from envs.experts import OFF_DEMONSTRATION, demonstrations, record
    from envs.metaworld import MetaWorldEnv

    from .data.lerobot import EpisodeWriter

    writer = EpisodeWriter(root)
    written = writer.lines()
    strangers = [line["task"] for line in written if line["task"] != task]
    if strangers:
        raise OutputError(
            f"{root} holds episodes of {strangers[0]!r}; expected a new folder or one of {task!r}: choose another"
        )
    experts = [line for line in written if line["behaviour"] == "expert"]
    others = [line for line in written if line["behaviour"] != "expert"]
    yield from written
    env = MetaWorldEnv(
        task,
        views=settings.views,
        height=settings.size,
        width=settings.size,
        horizon=settings.horizon,
        action_repeat=settings.action_repeat,
    )
    seed = experts[-1]["seed"] + 1 if experts else settings.seed
    for episode in demonstrations(env, settings.episodes - len(experts), seed=seed):
        writer.append(episode)
        yield
    for index in range(len(others), settings.off_demonstration):
        behaviour = OFF_DEMONSTRATION[index % len(OFF_DEMONSTRATION)]
        seed = settings.seed + 1_000_000 + index
        writer.append(record(env, behaviour, seed=seed, label_every=settings.label_every))
        yield
    env.close()


@dataclass(frozen=True)
class Train:
    """Train a GRM on labelled data sets, from scratch or from a checkpoint; run again with --resume to go on."""

    data: tuple[Path, ...]
    """LeRobotDataset folders with a `progress` column, or folders of such folders."""
    out: Path
    """Folder of the checkpoint and its training report."""
    steps: int = 2000
    """Gradient steps."""
    seed: int = 0
    """Of initial weights and every draw."""
    validation: float = 0.1
    """Share of each data set's episodes kept out of training, for the report."""
    bfloat16: bool = False
    """Train the encoder in bfloat16; faster on CPUs with AMX."""
    backbone: str = "compact"
    """`compact`, or a torchvision classifier such as `resnet18`."""
    resume: bool = False
    """Go on from what an interrupted run left in `out`."""

    def run(self) -> None:
        """Read, train, write the checkpoint now and then, and report on the validation episodes."""
        from .train import Trainer, TrainSettings

        if not 0 <= self.validation < 1:
            raise TraceError(
                f"validation is {self.validation}; expected a share of the episodes in [0, 1), such as 0.1"
            )
        check_output(self.out, resume=self.resume)
        training, validation = _read_split(_datasets(self.data), self.validation)
        console.print(
            f"{len(training)} episodes to train on, {len(validation)} to validate, "
            f"{sum(len(e) for e in training):,} frames, {len({e.task for e in training})} task(s)"
        )
        network = _new_network(self.seed, self.backbone)
        if self.resume:
            load_weights(self.out, network)
        trainer = Trainer(network, training, TrainSettings(steps=self.steps, seed=self.seed, bfloat16=self.bfloat16))
        if self.resume:
            trainer.resume(self.out)
            saved = read_config(self.out, KIND)["card"].get("trained_steps")
            if saved != trainer.step:
                raise CheckpointError(
                    f"{self.out} holds weights of step {saved} and an optimiser of step {trainer.step}: the run was "
                    f"killed while it saved; expected both of one step: start again in a new folder"
                )
        model = GRM(network)
        card: dict[str, object] = {
            "command": _command_line(self),
            "commit": _commit(),
            "seed": self.seed,
            "steps": self.steps,
        }

        def save() -> None:
            card["trained_steps"] = trainer.step
            model.save_pretrained(self.out, card)
            trainer.save_state(self.out)

        with _progress() as progress:
            bar = progress.add_task("training", total=self.steps, completed=trainer.step)

            def after_step(state: Trainer) -> None:
                last = state.history[-1]
                progress.update(
                    bar,
                    completed=state.step,
                    description=f"hop loss {last['hop_loss']:.3f}, success loss {last['success_loss']:.3f}",
                )
                if state.step % SAVE_EVERY == 0:
                    network.eval()
                    save()
                    network.train()

            try:
                trainer.run(after_step=after_step)
            except KeyboardInterrupt:
                progress.stop()
                saved = (self.out / "training.json").exists()
                how = "with --resume added, to go on from its last checkpoint" if saved else "nothing was saved yet"
                console.print(f"interrupted; run the same command again ({how})")
                sys.exit(130)
        save()  # before the report, which can be interrupted too
        card["episodes"] = len(training)
        card["frames"] = sum(len(episode) for episode in training)
        card["tasks"] = sorted({episode.task for episode in training})
        if validation:
            card["validation"] = _validate(model, validation, training)
        save()
        write_replay(self.out, _replay_sample(training))
        console.print(
            f"wrote the checkpoint and its replay sample to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True
        )


@dataclass(frozen=True)
class Adapt:
    """Teach a GRM a new task from one demonstration; needs no keyframes. The old weights stay untouched."""

    data: Path
    """LeRobotDataset folder that holds the demonstration."""
    out: Path
    """Folder of the adapted checkpoint."""
    episode: int = 0
    """Which episode is the demonstration; the others of the data set only serve the before/after table."""
    model: str = ""
    """Checkpoint to start from: a folder, a Hub id, or nothing for the packaged one."""
    steps: int = 200
    """Gradient steps; a few hundred are minutes on a CPU."""
    seed: int = 0
    """Of every draw."""

    def run(self) -> None:
        """Adapt, print the table, write the checkpoint."""
        from .data.lerobot import read_episodes
        from .train import Trainer, adapt

        check_output(self.out)
        [demonstration] = read_episodes(self.data, [self.episode])
        others = [e for k, e in enumerate(read_episodes(self.data)) if k != self.episode]
        old = GRM.from_pretrained(self.model)
        source = locate(self.model, packaged_checkpoint())
        replay = list(read_replay(source))
        with _progress() as progress:
            bar = progress.add_task("adapting", total=self.steps)

            def after_step(trainer: Trainer) -> None:
                progress.update(bar, completed=trainer.step)

            new = adapt(old, demonstration, replay, steps=self.steps, seed=self.seed, after_step=after_step)
        card = {
            "command": _command_line(self),
            "commit": _commit(),
            "seed": self.seed,
            "steps": self.steps,
            "from": str(source),
        }
        new.save_pretrained(self.out, card)
        copy_side_file(source, self.out, FILE)
        goals = {demonstration.task: demonstration.frames[-1]}
        console.print(_before_after(old, new, demonstration, others, goals))
        console.print(f"wrote the adapted checkpoint to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)


@dataclass(frozen=True)
class Demo:
    """One demonstration in, a trained policy out: adapt, train with and without shaping, show what happened."""

    task: str = "hand-insert"
    """A Meta-World task; ML45's held-out ones are bin-picking, box-close, door-lock, door-unlock and hand-insert."""
    out: Path | None = None
    """Run folder; runs/<task>-<seed> unless named."""
    seed: int = 0
    """Of the demonstration, the adaptation, both learners and all instances."""
    rollouts: int = 150
    """Online episodes per arm."""
    evaluation_episodes: int = 50
    """Fresh instances each policy is evaluated on."""
    model: str = ""
    """Checkpoint to adapt: a folder, a Hub id, or nothing for the packaged one."""
    resume: bool = False
    """Go on from what an interrupted run left in the folder."""

    def run(self) -> None:
        """Demonstrate, adapt, train both arms, evaluate, write the page."""
        from envs.cameras import Cameras
        from envs.metaworld import VIEWS, MetaWorldEnv, task_name
        from policies import one_shot

        began = time.perf_counter()
        task = task_name(self.task)
        Cameras(MetaWorldEnv(task), VIEWS).close()  # a missing renderer is one clear error now, not half-way
        folder = self.out or Path("runs") / f"{task}-{self.seed}"
        if not (folder / "grm" / "config.json").exists():
            GRM.from_pretrained(self.model)  # the same for a checkpoint that is none
        check_output(folder, resume=self.resume)
        settings = one_shot.OneShotSettings(
            task=task, seed=self.seed, rollouts=self.rollouts, evaluation_episodes=self.evaluation_episodes
        )
        about = {"command": _command_line(self), "commit": _commit(), "model": self.model or "packaged"}
        one_shot.write_config(folder, settings, about, resume=self.resume)
        hint = f"go on with [bold]{escape(_command_line(replace(self, out=folder, resume=True)))}[/bold]"
        try:
            demonstration = one_shot.record_demonstration(settings, folder / "demonstration")
            console.print(
                f"[bold]{task}[/bold]: {demonstration.instruction}; one expert demonstration of "
                f"{len(demonstration)} frames, {len(demonstration.views)} views"
            )
            self._adapt(settings, demonstration, folder)
            self._train(settings, folder)
        except KeyboardInterrupt:
            seconds = one_shot.add_seconds(folder, time.perf_counter() - began)
            if (folder / "grm" / "config.json").exists():
                self._report(settings, folder, seconds)
            console.print(f"interrupted; what is finished is in {escape(str(folder))}: {hint}", soft_wrap=True)
            sys.exit(130)
        self._report(settings, folder, one_shot.add_seconds(folder, time.perf_counter() - began))

    def _adapt(self, settings: "OneShotSettings", demonstration: Episode, folder: Path) -> None:
        from envs.experts import record
        from envs.metaworld import VIEWS
        from policies import one_shot

        from .train import Trainer, adapt

        if (folder / "grm" / "config.json").exists():
            return
        old = GRM.from_pretrained(self.model)
        replay = list(read_replay(locate(self.model, packaged_checkpoint())))
        with _progress() as progress:
            bar = progress.add_task("adapting the GRM", total=settings.adaptation_steps)

            def after_step(trainer: Trainer) -> None:
                progress.update(bar, completed=trainer.step)

            new = adapt(
                old,
                demonstration,
                replay,
                steps=settings.adaptation_steps,
                seed=settings.seed,
                after_step=after_step,
            )
        env = one_shot.make_env(settings.task, one_shot.horizon_of(demonstration), views=VIEWS)
        behaviours = ("expert", "expert", "near-miss", "wander", "undo", "noisy")
        others = [record(env, b, seed=20_000 + k, label_every=4) for k, b in enumerate(behaviours)]
        env.close()
        table = _before_after(old, new, demonstration, others, {settings.task: demonstration.frames[-1]})
        console.print(table)
        new.save_pretrained(
            folder / "grm", {"command": _command_line(self), "commit": _commit(), "seed": settings.seed}
        )

    def _train(self, settings: "OneShotSettings", folder: Path) -> None:
        from policies import one_shot

        recent: dict[str, list[bool]] = {arm: [] for arm in one_shot.ARMS}
        with _progress() as progress:
            bars = {arm: progress.add_task(f"{arm:6} arm", total=settings.rollouts) for arm in one_shot.ARMS}

            def on_rollout(arm: str, rollout: "Rollout") -> None:
                recent[arm].append(rollout.success)
                last = recent[arm][-20:]
                progress.update(
                    bars[arm],  # pyright: ignore[reportArgumentType]
                    completed=rollout.number,
                    description=f"{arm:6} arm, {sum(last)}/{len(last)} of the last rollouts succeed",
                )

            one_shot.run_arms(settings, folder, on_rollout=on_rollout)

    def _report(self, settings: "OneShotSettings", folder: Path, seconds: float) -> None:
        from policies import one_shot, page

        one_shot.write_metrics(folder)
        path = page.write_run_page(settings, folder, seconds)
        table = Table("policy", f"success on {settings.evaluation_episodes} fresh instances", title=settings.task)
        for name, value in page.success_rates(folder).items():
            table.add_row(name, "not finished" if value is None else f"{value:.2f}")
        console.print(table)
        console.print(f"{seconds / 60:.1f} minutes; open [bold]{escape(str(path))}[/bold] in a browser", soft_wrap=True)


@dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, devices, renderer, write access, and what to do about each thing missing."""

    def run(self) -> None:
        """Print the findings; exit status 1 if one of them is a failure."""
        from .doctor import Status, diagnose, render

        findings = diagnose()
        console.print(render(findings))
        if any(finding.status is Status.FAIL for finding in findings):
            sys.exit(1)


def check_output(folder: Path, *, resume: bool = False) -> None:
    """Raise `OutputError` unless `folder` is new (or, to resume, holds a run) and can be written."""
    if resume and not folder.is_dir():
        raise OutputError(f"there is no run to resume in {folder}; leave out --resume to start one")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; choose another folder, delete it, or go on with --resume")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} is not writable; choose an output folder you may write to")
    free = shutil.disk_usage(parent).free
    if free < 50e6:
        raise OutputError(f"{parent} has {free / 1e6:.0f} MB left; expected at least 50 MB: free some space")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another output folder") from error


def _command_line(command: "Collect | Train | Adapt | Demo") -> str:
    """The command that does this again: its task and all that is not the default, whoever called it."""
    words = ["grm", type(command).__name__.lower()]
    for field in fields(command):
        value = getattr(command, field.name)
        if field.name != "task" and value == field.default:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if value is not True:
            words += [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
    return shlex.join(words)


def _commit() -> str:
    """The commit this runs from, with + where files differ from it; empty outside of a checkout."""
    home = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=home, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def _datasets(folders: Sequence[Path]) -> list[Path]:
    """Every LeRobotDataset among these folders and directly inside of them."""
    found = []
    for folder in folders:
        inside = sorted(path.parent.parent for path in Path(folder).glob("*/meta/info.json"))
        inside = [path for path in inside if not path.name.startswith(".")]  # one that is being made
        if (Path(folder) / "meta" / "info.json").exists():
            found.append(Path(folder))
        elif inside:
            found += inside
        else:
            raise TraceError(f"{folder} holds no LeRobotDataset; expected one, or several in folders inside it")
    return found


def _read_split(folders: Sequence[Path], validation: float) -> tuple[list[Episode], list[Episode]]:
    """Episodes to train on and to validate; the last of each behaviour, spread over the data set, are held out."""
    from .data.lerobot import count_episodes, read_episodes

    training: list[Episode] = []
    held: list[Episode] = []
    with _progress() as progress:
        bar = progress.add_task("reading", total=sum(count_episodes(folder) for folder in folders))
        for folder in folders:
            count = count_episodes(folder)
            every = round(1 / validation) if validation > 0 else count + 1
            for index, episode in enumerate(read_episodes(folder)):
                (held if index % every == every - 1 else training).append(episode)
                progress.advance(bar)
    return training, held


def _new_network(seed: int, backbone: str) -> MultiViewNetwork:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiViewNetwork(Architecture(backbone=backbone))


def _goals(episodes: Sequence[Episode]) -> dict[str, Frame]:
    """The last frame of each task's first successful episode."""
    goals: dict[str, Frame] = {}
    for episode in episodes:
        if episode.succeeded:
            goals.setdefault(episode.task, episode.frames[-1])
    return goals


def _validate(model: GRM, validation: Sequence[Episode], training: Sequence[Episode]) -> dict[str, float]:
    goals = _goals(training)
    with _progress() as progress:
        usable = [episode for episode in validation if episode.task in goals]
        bar = progress.add_task("validating", total=len(usable))
        scored = score_all(model, usable, goals, stride=2, after_each=lambda: progress.advance(bar))
    summary = summarize(by_task(scored))
    table = Table("metric", "mean over tasks", "95 % interval", title="validation episodes")
    for name, interval in summary.items():
        table.add_row(name, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    console.print(table)
    return {name: round(interval.value, 4) for name, interval in summary.items()}


def _replay_sample(training: Sequence[Episode]) -> list[Episode]:
    """Of every task two episodes: the first demonstration and the first that is none."""
    sample: dict[tuple[str, bool], Episode] = {}
    for episode in training:
        sample.setdefault((episode.task, episode.behaviour == "expert"), episode)
    return [sample[key] for key in sorted(sample)]


def _before_after(
    old: GRM, new: GRM, demonstration: Episode, others: Sequence[Episode], goals: dict[str, Frame]
) -> Table:
    others = [episode for episode in others if episode.task in goals]
    table = Table("metric", "before", "after", title="other episodes" if others else "the demonstration itself")
    episodes = others or [demonstration]
    columns = [by_task(score_all(model, episodes, goals, stride=2))[demonstration.task] for model in (old, new)]
    for name in METRICS:
        if name in columns[0] and name in columns[1]:
            table.add_row(name, *(f"{column[name]:.3f}" for column in columns))
    return table


Command = (
    Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Adapt, tyro.conf.subcommand("adapt")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `grm` console script."""
    command = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Command],
        args=arguments,
        prog="grm",
        description="General Reward Models for robots.",
    )
    try:
        check_layout()
        command.run()
    except GrmError as error:
        # Escaped, because a message may hold brackets; on one line, because it may hold a path.
        complaints.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; what is finished is on disk: run the same command again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
