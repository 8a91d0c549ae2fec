"""What a GRM learns from a learner's first rollouts about its later ones: `grm.train.refit`, measured.

    python -m benchmarks.refit

Of the states that learners visited (`python -m benchmarks.visited`) the first half of each task's rollouts, of which
only the outcome is told, refits a GRM that was adapted to one demonstration; the second half asks it before and after.
The tasks are held out, so nothing was chosen here. Spearman and mean absolute error are of Φ against the prover's
truth, over all labelled frames of a task; `believed` is the share of failed rollouts whose P(done) was above .9 at some
frame, `found` that of successes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import track

from envs.metaworld import HELD_OUT, PRECISE, task_name
from grm.data.episodes import Episode
from grm.data.lerobot import read_episodes
from grm.data.replay import read_replay
from grm.metrics import expected_interval, mean_absolute_error, spearman
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, packaged_checkpoint
from grm.train import adapt, refit

from .results import write_result

SURE = 0.9


@dataclass(frozen=True)
class Refit:
    """What is run."""

    data: Path = Path("data/evaluation/visited")
    tasks: tuple[str, ...] = (*HELD_OUT, *PRECISE)
    seeds: tuple[int, ...] = (0,)
    steps: int = 100


def asked(model: GRM, demonstration: Episode, rollouts: Sequence[Episode]) -> dict[str, float]:
    """How a GRM does on rollouts whose truth is known."""
    task = demonstration.as_goal()
    judged = [model.judge(task, rollout.frames) for rollout in rollouts]
    phi = np.concatenate([one.potential for one in judged])
    truth = np.concatenate([rollout.progress for rollout in rollouts])
    known = np.isfinite(phi) & np.isfinite(truth)
    failed = [np.nanmax(one.success) for one, r in zip(judged, rollouts, strict=True) if not r.succeeded]
    done = [np.nanmax(one.success) for one, r in zip(judged, rollouts, strict=True) if r.succeeded]
    return {
        "spearman": spearman(phi[known], truth[known]),
        "mae": mean_absolute_error(phi[known], truth[known]),
        "failures": len(failed),
        "believed": float(np.mean(np.array(failed) > SURE)) if failed else np.nan,
        "found": float(np.mean(np.array(done) > SURE)) if done else np.nan,
    }


def run(task: str, seed: int, options: Refit) -> dict[str, object]:
    """One task's row."""
    [demonstration] = read_episodes(options.data / "runs" / task / "demonstration", [0])
    rollouts = list(read_episodes(options.data / task))
    source = locate("", packaged_checkpoint())
    replay = list(read_replay(source))
    model = adapt(GRM.from_pretrained(source), demonstration, replay, seed=seed)
    half = len(rollouts) // 2
    told = [replace(r, progress=np.full(len(r), np.nan, np.float32)) for r in rollouts[:half]]
    began = time.perf_counter()
    new = refit(model, demonstration, told, replay, steps=options.steps, seed=seed)
    seconds = time.perf_counter() - began
    row: dict[str, object] = {"task": task, "seed": seed, "told": half, "succeeded": sum(r.succeeded for r in told)}
    for name, one in (("before", model), ("after", new)):
        found = asked(one, demonstration, rollouts[half:])
        row |= {f"{key}_{name}": value for key, value in found.items() if key != "failures"}
        row["failures"] = found["failures"]
    return row | {"seconds": round(seconds, 1)}


def main(options: Refit) -> None:
    """Run all, and write what came of it."""
    torch.set_num_threads(1)
    cells = [(task_name(task), seed) for task in options.tasks for seed in options.seeds]
    rows = []
    for task, seed in track(cells, "refitting"):
        rows.append(run(task, seed, options))
        print(rows[-1])
    summary: dict[str, object] = {"seconds": float(np.mean([float(str(row["seconds"])) for row in rows]))}
    rng = np.random.default_rng(0)
    for key in ("spearman", "mae", "believed", "found"):
        pairs = np.array([[float(str(row[f"{key}_{when}"])) for when in ("before", "after")] for row in rows])
        pairs = pairs[np.isfinite(pairs).all(1)]
        for name, values in (("before", pairs[:, 0]), ("after", pairs[:, 1]), ("gain", pairs[:, 1] - pairs[:, 0])):
            summary[f"{key}_{name}"] = expected_interval(values, rng)
    print(write_result("refit", summary, seeds=options.seeds, rows=rows, steps=options.steps))


if __name__ == "__main__":
    main(tyro.cli(Refit))
