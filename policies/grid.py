"""Many arms at once: cells of (run, arm), each in a process of its own on one core, in a given order."""

import csv
import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from grm.errors import GrmError
from grm.workers import end_with_the_parent

from .arms import Arm
from .collecting import Rollout
from .log import COLUMNS, arm_folder, read_rollouts
from .one_shot import OneShotSettings, missing, run_arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One arm of one run."""

    settings: OneShotSettings
    arm: Arm
    folder: Path
    """Of the run, which its arms share."""
    tensorboard: bool = False

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.settings.task} {self.settings.seed} {self.arm.name}"

    @property
    def finished(self) -> bool:
        """Whether its policy was trained and evaluated."""
        return (arm_folder(self.folder, self.arm.name) / "evaluation.json").exists()


@dataclass
class _Running:
    cell: Cell
    process: Any
    end: bool | str | None = None


@dataclass
class _Pool:
    """The processes, and what they reported."""

    jobs: int
    on_rollout: Callable[[Cell, Rollout], None]
    on_end: Callable[[Cell], None]
    running: dict[int, _Running] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.context, self.reports, self.stop = context, context.Queue(), context.Event()

    def begin(self, number: int, cell: Cell) -> None:
        """Start a cell's process, deaf to Ctrl-C: a terminal tells all, but the parent decides when they stop."""
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = self.context.Process(target=_work, args=(number, cell, self.reports, self.stop))
            process.start()
        finally:
            signal.signal(signal.SIGINT, heard)
        self.running[number] = _Running(cell, process)

    def listen(self) -> None:
        """Pass on what is reported within a moment, then see who had ended before."""
        gone = [number for number, one in self.running.items() if not one.process.is_alive()]
        try:
            while True:
                number, report = self.reports.get(timeout=0.2)
                if isinstance(report, Rollout):
                    self.on_rollout(self.running[number].cell, report)
                else:
                    self.running[number].end = report
        except queue.Empty:
            pass
        for number in gone:
            one = self.running.pop(number)
            if one.end is None:
                one.end = f"it died with exit status {one.process.exitcode}"
            if isinstance(one.end, str):
                self.failures[one.cell] = one.end
            self.on_end(one.cell)


def write_metrics(cells: Sequence[Cell], path: Path) -> None:
    """Every rollout of all cells so far in one CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["task", "seed", "arm", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        for cell in cells:
            which = {"task": cell.settings.task, "seed": cell.settings.seed, "arm": cell.arm.name}
            rows = read_rollouts(arm_folder(cell.folder, cell.arm.name) / "rollouts.csv")
            writer.writerows({**which, **row} for row in rows)


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    on_rollout: Callable[[Cell, Rollout], None] = lambda cell, rollout: None,
    on_end: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Run what is not finished of `cells`, `jobs` at a time, in their order.

    Cells of one run that need the same preparation wait until the first of them has made it; others go before.
    Ctrl-C lets the rollouts in flight finish, saves, and raises KeyboardInterrupt. A cell that fails keeps none of the
    others from running. If this process is killed its cells end at once, each as if it had been killed itself.

    Raises:
        GrmError: at the end, for the cells that failed; what the others did is kept.
    """
    pool = _Pool(jobs, on_rollout, on_end)
    waiting = {number: cell for number, cell in enumerate(cells) if not cell.finished}
    try:
        while waiting or pool.running:
            while len(pool.running) < jobs:
                number = _next(waiting, [one.cell for one in pool.running.values()])
                if number is None:
                    break
                pool.begin(number, waiting.pop(number))
            pool.listen()
    except KeyboardInterrupt:
        pool.stop.set()
        while pool.running:
            pool.listen()
        raise
    if pool.failures:
        [(cell, reason), *others] = pool.failures.items()
        more = f" (and {len(others)} more)" if others else ""
        raise GrmError(f"the arm {cell.name} did not finish: {reason}{more}; go on with --resume")


def _next(waiting: dict[int, Cell], running: Sequence[Cell]) -> int | None:
    """The first that need not wait for what another one is about to make."""
    for number, cell in waiting.items():
        mates = [other for other in running if other.folder == cell.folder]
        made_now = set[str]().union(*(missing(other.arm, other.folder) for other in mates))
        if not made_now & missing(cell.arm, cell.folder):
            return number
    return None


def _work(number: int, cell: Cell, reports: Any, stop: Any) -> None:
    end_with_the_parent()
    torch.set_num_threads(1)

    def on_rollout(rollout: Rollout) -> bool | None:
        reports.put((number, rollout))
        return False if stop.is_set() else None

    try:
        ended = run_arm(cell.settings, cell.arm, cell.folder, on_rollout=on_rollout, tensorboard=cell.tensorboard)
        reports.put((number, ended))
    except (GrmError, OSError) as error:
        reports.put((number, str(error)))
