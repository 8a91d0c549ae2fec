"""Ours beside single views, single perspectives, less data and four published ideas, one-shot on held-out tasks.

Everyone has the frozen encoder of `--model`, the same steps of 24 episodes x 8 frames and the same adaptation. The
first run encodes all data (`--features`, resumable); every arm and seed is kept under `--out`. Means and intervals are
over seeds x tasks; `minus_ours` are differences on the same seed and task.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from envs.metaworld import HELD_OUT, PRECISE, task_name
from grm.metrics import Interval, expected_interval
from grm.workers import end_with_the_parent

from ..results import write_result
from .clips import LAG
from .compare import Corpus, Settings, arms, run_or_read
from .features import write_features

REPORTED = (
    "voc_plus",
    "spearman_demo",
    "spearman_off_demo",
    "spearman_visited",
    "mae_off_demo",
    "kendall_tau",
    "falling_f1",
    "success_auc",
    "tpr_at_fpr0",
    "calibration_error",
    "aurc",
    "wrong_goal_ratio",
    "wrong_instruction_ratio",
)

SINGLE = "single_view_"

_corpus: Corpus | None = None
"""Of a worker, read once."""


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """`<arm>.<metric>` over seeds x tasks, and `<arm>.<metric>.minus_ours` paired by seed and task.

    The single views come as the best (by `spearman_off_demo`) and the mean over them.
    """
    rng = np.random.default_rng(0)
    values: dict[str, dict[str, dict[tuple[object, object], float]]] = {}
    for row in rows:
        for metric in REPORTED:
            if metric in row:
                cell = values.setdefault(str(row["arm"]), {}).setdefault(metric, {})
                cell[row["seed"], row["task"]] = float(row[metric])
    single = {arm: values.pop(arm) for arm in list(values) if arm.startswith(SINGLE)}
    if single:
        best = max(single, key=lambda arm: np.mean(list(single[arm]["spearman_off_demo"].values())))
        values[f"{SINGLE}best"] = single[best]
        values[f"{SINGLE}mean"] = {
            metric: {
                key: float(np.mean([found[metric][key] for found in single.values() if key in found.get(metric, {})]))
                for key in cells
            }
            for metric, cells in single[best].items()
        }
    summary: dict[str, Interval] = {}
    for arm, metrics in values.items():
        for metric, cells in metrics.items():
            summary[f"{arm}.{metric}"] = expected_interval(list(cells.values()), rng)
            ours = values.get("ours", {}).get(metric, {})
            both = [cells[key] - ours[key] for key in cells if key in ours]
            if arm != "ours" and both:
                summary[f"{arm}.{metric}.minus_ours"] = expected_interval(both, rng)
    return summary


def _begin() -> None:
    end_with_the_parent()
    torch.set_num_threads(1)


def _work(name: str, seed: int, settings: Settings, out: Path) -> list[dict[str, object]]:
    global _corpus  # noqa: PLW0603 (a worker reads the features once, not once per arm)
    _corpus = _corpus or Corpus.read(settings)
    return run_or_read(name, seed, settings, _corpus, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint whose encoder everyone shares")
    parser.add_argument("--data", nargs="+", default=["data/pretraining/plain", "data/pretraining/varied"])
    parser.add_argument("--held-out", default="data/evaluation/held-out", help="one data set per task")
    parser.add_argument("--visited", default="data/evaluation/visited", help="the same; may be missing")
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE])
    parser.add_argument("--cache", type=Path, default=Path("data/decoded"))
    parser.add_argument("--features", type=Path, default=Path("data/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--arms", nargs="*", default=[], help="nothing for all; they are added to those in --out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--adapt", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    settings = Settings(
        model=options.model,
        data=tuple(options.data),
        held_out=options.held_out,
        visited=options.visited,
        tasks=tuple(map(task_name, options.tasks)),
        cache=str(options.cache),
        features=str(options.features),
        steps=options.steps,
        adapt=options.adapt,
    )
    with Progress() as progress, ProcessPoolExecutor(options.jobs, get_context("spawn"), _begin) as pool:
        sources = [(root, LAG) for root in settings.training] + [(root, 1) for root in settings.evaluation]
        bar = progress.add_task("encoding", total=len(sources))
        futures = [
            pool.submit(write_features, options.model, root, options.cache, options.features, n) for root, n in sources
        ]
        for future in as_completed(futures):
            future.result()
            progress.advance(bar)
        views = Corpus.read(settings).views
        jobs = [(name, seed) for seed in options.seeds for name in arms(views) if name in (options.arms or arms(views))]
        bar = progress.add_task("arms", total=len(jobs))
        done = {pool.submit(_work, name, seed, settings, options.out): (name, seed) for name, seed in jobs}
        found = {}
        try:
            for future in as_completed(done):
                found[done[future]] = future.result()
                progress.advance(bar)
        finally:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for arms that have not begun
    rows = [row for job in jobs for row in found[job]]
    summary = summarize(rows)
    for name in dict.fromkeys(key.split(".")[0] for key in summary):
        known = ((metric, summary.get(f"{name}.{metric}")) for metric in REPORTED)
        print(f"{name:24}", *(f"{metric} {entry.value:.3f}" for metric, entry in known if entry))
    path = write_result(
        "baselines",
        summary,
        seeds=options.seeds,
        rows=[{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        command=" ".join(["python -m benchmarks.baselines", *sys.argv[1:]]),
        model=options.model or "packaged",
        steps=options.steps,
        adaptation_steps=options.adapt,
        episodes_per_step=24,
        frames_per_episode=8,
    )
    print(path)
