"""`grm rl`: learners from one demonstration: any tasks, arms and seeds, side by side."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ..errors import GrmError, TraceError
from .output import check_output, command_line, commit
from .terminal import console, progress_bar

if TYPE_CHECKING:
    from policies.collecting import Rollout
    from policies.grid import Cell


@dataclass(frozen=True)
class Rl:
    """Learn tasks from one demonstration each: every arm, seed and task named, several at a time."""

    out: Path
    """Folder; each task and seed has a run of its own inside, as `grm demo` makes it."""
    task: tuple[str, ...] = ("hand-insert",)
    """Meta-World tasks."""
    arms: tuple[str, ...] = ("cloned", "sparse", "grm")
    """What the learners are paid; an unknown name lists them all."""
    seeds: tuple[int, ...] = (0,)
    """Of demonstration, adaptation, learner and instances."""
    demo: str = ""
    """LeRobotDataset with the demonstration, of one task; nothing for the scripted expert's."""
    episode: int = 0
    """Which of its episodes."""
    rollouts: int = 150
    """Online episodes per arm."""
    evaluation_episodes: int = 50
    """Fresh instances each policy is evaluated on."""
    model: str = ""
    """Checkpoint to adapt: a folder, a Hub id, or nothing for the packaged one."""
    jobs: int = 1
    """Processes, one arm of one run each."""
    tensorboard: bool = False
    """Log for TensorBoard too, beside each rollouts.csv."""
    pages: bool = False
    """Also make a page with films of each run that has a GRM: takes a minute each."""
    resume: bool = False
    """Go on from what is in the folder; tasks, arms and seeds may be added."""

    def cells(self) -> "list[Cell]":
        """What there is to do, seed after seed, in each arm after arm, in each task after task.

        Raises `TaskError` for an unknown task or arm, `TraceError` where one demonstration is to serve several tasks.
        """
        from envs.metaworld import task_name
        from policies.arms import arm_named
        from policies.grid import Cell
        from policies.one_shot import OneShotSettings

        if self.demo and len(self.task) > 1:
            raise TraceError(f"one demonstration was named for {len(self.task)} tasks; expected one: run them in turn")
        if self.jobs < 1 or self.rollouts < 1 or self.evaluation_episodes < 1:
            raise TraceError(
                f"{self.jobs} jobs, {self.rollouts} rollouts and {self.evaluation_episodes} evaluation episodes were "
                f"asked for; expected at least 1 of each"
            )
        return [
            Cell(
                settings=OneShotSettings(
                    task=task,
                    seed=seed,
                    rollouts=self.rollouts,
                    evaluation_episodes=self.evaluation_episodes,
                    model=self.model,
                    demo=self.demo,
                    episode=self.episode,
                ),
                arm=arm,
                folder=self.out / f"{task}-{seed}",
                tensorboard=self.tensorboard,
            )
            for seed in dict.fromkeys(self.seeds)
            for arm in map(arm_named, dict.fromkeys(self.arms))
            for task in dict.fromkeys(map(task_name, self.task))
        ]

    def run(self) -> None:
        """Run what is missing, then write the page and the table."""
        from envs.cameras import Cameras
        from envs.metaworld import VIEWS, MetaWorldEnv
        from policies.one_shot import write_config

        from ..models.multiview import GRM

        cells = self.cells()
        if any(cell.arm.judged for cell in cells):
            Cameras(MetaWorldEnv(cells[0].settings.task), VIEWS).close()  # a missing renderer is one clear error now
            GRM.from_pretrained(self.model)  # the same for a checkpoint that is none
        check_output(self.out, resume=self.resume)
        about = {"command": command_line(self), "commit": commit()}
        for folder, settings in {cell.folder: cell.settings for cell in cells}.items():
            write_config(folder, settings, about, resume=(folder / "config.json").exists())
        try:
            train(cells, self.jobs)
        except KeyboardInterrupt:
            self._report(cells)
            again = command_line(replace(self, resume=True))
            console.print(f"interrupted; go on with [bold]{escape(again)}[/bold]", soft_wrap=True)
            sys.exit(130)
        except GrmError:  # of some cells; what the others did is shown before it is told
            self._report(cells)
            raise
        self._report(cells)

    def _report(self, cells: "list[Cell]") -> None:
        from policies.grid import write_metrics
        from policies.page import write_grid_page, write_run_page

        write_metrics(cells, self.out / "metrics.csv")
        path = self.out / "index.html"
        write_grid_page(cells, path, command=command_line(self))
        if self.pages:
            for folder, settings in {cell.folder: cell.settings for cell in cells}.items():
                if (folder / "grm" / "config.json").exists():
                    write_run_page(settings, folder, minutes(folder) * 60, [c.arm for c in cells if c.folder == folder])
        console.print(outcome(cells))
        console.print(f"open [bold]{escape(str(path))}[/bold] in a browser", soft_wrap=True)


def train(cells: "list[Cell]", jobs: int) -> None:
    """Run the cells with a bar for all and one for each that runs; notes each run's time in its minutes.json.

    Raises as `policies.grid.run_cells` does.
    """
    from policies.grid import run_cells

    began = time.perf_counter()
    bars = {}
    recent: dict[str, list[bool]] = {}
    total = sum(cell.settings.rollouts for cell in cells if cell.arm.learns)
    with progress_bar() as progress:
        every = progress.add_task("all rollouts", total=total)
        progress.update(every, completed=sum(c.settings.rollouts for c in cells if c.finished and c.arm.learns))

        def on_rollout(cell: "Cell", rollout: "Rollout") -> None:
            if cell.name not in bars:
                bars[cell.name] = progress.add_task(cell.name, total=cell.settings.rollouts)
                progress.advance(every, rollout.number - 1)
            last = recent.setdefault(cell.name, [])
            last.append(rollout.success)
            del last[:-20]
            progress.advance(every)
            progress.update(
                bars[cell.name],
                completed=rollout.number,
                description=f"{cell.name}, {sum(last)}/{len(last)} of the last rollouts succeed",
            )

        def on_end(cell: "Cell") -> None:
            if cell.name in bars:
                progress.update(bars[cell.name], visible=False)

        try:
            run_cells(cells, jobs=jobs, on_rollout=on_rollout, on_end=on_end)
        finally:
            share = (time.perf_counter() - began) / len({cell.folder for cell in cells})
            for folder in {cell.folder for cell in cells}:
                add_seconds(folder, share)


def add_seconds(folder: Path, seconds: float) -> None:
    """Add wall-clock time to a run's minutes.json."""
    (folder / "minutes.json").write_text(json.dumps({"minutes": minutes(folder) + seconds / 60}) + "\n")


def minutes(folder: Path) -> float:
    """What minutes.json says; 0 where there is none."""
    path = folder / "minutes.json"
    return float(json.loads(path.read_text())["minutes"]) if path.exists() else 0.0


def outcome(cells: "list[Cell]") -> Table:
    """Success on fresh instances: a row per arm, a column per task, the mean over finished seeds."""
    from policies.one_shot import read_evaluation

    tasks = list(dict.fromkeys(cell.settings.task for cell in cells))
    table = Table("arm", *tasks, title=f"success on {cells[0].settings.evaluation_episodes} fresh instances")
    for arm in dict.fromkeys(cell.arm for cell in cells):
        row = []
        for task in tasks:
            rates = [read_evaluation(c.folder, arm.name) for c in cells if c.arm == arm and c.settings.task == task]
            known = [rate for rate in rates if rate is not None]
            row.append(f"{sum(known) / len(known):.2f} ({len(known)}/{len(rates)})" if known else "not finished")
        table.add_row(arm.name, *row)
    return table
