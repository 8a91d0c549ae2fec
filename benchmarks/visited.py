"""Data sets of the states that learners visited, one per held-out task: what a GRM is asked in the loop, labelled.

Each learner is trained for 150 rollouts on the potential of the GRM, adapted to one demonstration; every fifth rollout
is kept. `--data` then holds one LeRobotDataset per task, and under `runs` how it came about: the demonstration, the
adapted GRM and the actions of all rollouts. Run again to go on after an interruption; what is whole is skipped.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from envs.metaworld import HELD_OUT, PRECISE, task_name
from grm.workers import end_with_the_parent
from policies.log import arm_folder, read_rollouts
from policies.one_shot import OneShotSettings
from policies.visited import collect_visited

BLOCK = 25
"""Rollouts per printed success rate."""

_reports: Any = None
"""Of a worker: where it says that a rollout, or the labels of one, are done."""


@contextmanager
def _quiet_renderer() -> Iterator[None]:
    """Software rendering without threads of its own, for processes started meanwhile: each has one core."""
    before = os.environ.get("LP_NUM_THREADS")
    os.environ["LP_NUM_THREADS"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LP_NUM_THREADS"]
        else:
            os.environ["LP_NUM_THREADS"] = before


def _begin(reports: Any) -> None:
    global _reports  # noqa: PLW0603 (a queue can be handed to a worker only when it starts)
    end_with_the_parent()
    _reports = reports
    torch.set_num_threads(1)


def _work(settings: OneShotSettings, options: argparse.Namespace) -> None:
    collect_visited(
        settings,
        options.model,
        options.data,
        every=options.every,
        label_every=options.label_every,
        on_rollout=lambda rollout: _reports.put((settings.task, 1)),
        on_episode=lambda: _reports.put((settings.task, 1)),
    )


def success_blocks(folder: Path) -> list[float]:
    """Success rate of each `BLOCK` rollouts of a learner's run, in order; of what is left over too."""
    success = [row["success"] == "True" for row in read_rollouts(arm_folder(folder, "grm") / "rollouts.csv")]
    return [float(np.mean(success[start : start + BLOCK])) for start in range(0, len(success), BLOCK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint: a folder, a Hub id, or nothing for the packaged one")
    parser.add_argument("--data", type=Path, default=Path("data/evaluation/visited"))
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--every", type=int, default=5, help="keep every n-th rollout")
    parser.add_argument("--label-every", type=int, default=5, help="ask the prover at every n-th frame")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one task each at a time")
    options = parser.parse_args()

    tasks = [task_name(task) for task in options.tasks]
    options.data.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    reports = context.SimpleQueue()
    with _quiet_renderer(), Progress() as progress:
        bars = {
            task: progress.add_task(task, total=options.rollouts + options.rollouts // options.every) for task in tasks
        }
        with ProcessPoolExecutor(options.jobs, context, _begin, (reports,)) as pool:
            futures = {}
            for task in tasks:
                # An evaluation is not what this is for; the one that ends a run is kept short.
                settings = OneShotSettings(
                    task=task, seed=options.seed, rollouts=options.rollouts, evaluation_episodes=10
                )
                done = sum(1 for _ in read_rollouts(arm_folder(options.data / "runs" / task, "grm") / "rollouts.csv"))
                progress.update(bars[task], completed=done)
                futures[pool.submit(_work, settings, options)] = task
            waiting = set(futures)
            try:
                while waiting:
                    finished, waiting = wait_for(waiting, timeout=0.5)
                    while not reports.empty():
                        task, count = reports.get()
                        progress.advance(bars[task], count)
                    for future in finished:
                        future.result()
                        bar = bars[futures[future]]
                        progress.update(bar, completed=progress.tasks[bar].total)
            finally:
                pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for tasks that have not begun
    for task in tasks:
        blocks = success_blocks(options.data / "runs" / task)
        print(f"{task:22} success per {BLOCK} rollouts:", *(f"{rate:.2f}" for rate in blocks))


if __name__ == "__main__":
    main()
