"""The composition root: `grm <verb>`. The one module that may import everything, and that nothing imports.

Heavy imports sit inside the commands, so that `grm --help` is quick and one command's dependency is not another's.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ._layout import check_layout
from .errors import GrmError

console = Console()

TaskGroup = Literal["pretraining", "held-out", "precise"]


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
        tasks = [name for entry in self.task for name in groups.get(entry) or (task_name(entry),)]
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
        console.print(f"wrote {total * len(tasks)} episodes of {len(tasks)} task(s) to [bold]{self.out}[/bold]")


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
class Doctor:
    """Check this machine: versions, devices, renderer, write access, and what to do about each thing missing."""

    def run(self) -> None:
        """Print the findings; exit status 1 if one of them is a failure."""
        from .doctor import Status, diagnose, render

        findings = diagnose()
        console.print(render(findings))
        if any(finding.status is Status.FAIL for finding in findings):
            sys.exit(1)


Command = Annotated[Collect, tyro.conf.subcommand("collect")] | Annotated[Doctor, tyro.conf.subcommand("doctor")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `grm` console script."""
    check_layout()
    command = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Command],
        args=arguments,
        prog="grm",
        description="General Reward Models for robots.",
    )
    try:
        command.run()
    except GrmError as error:
        console.print(f"[bold red]error:[/bold red] {error}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; what is finished is on disk: run the same command again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
