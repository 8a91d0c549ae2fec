"""How far along is a blind replay of the demonstration that failed? What `policies.blind` takes for 0, and the truth.

    python -m benchmarks.blind_replays

On training tasks the demonstration's actions are taken once more on other instances, and the provers are asked at
every eighth of the way. Progress of the failed ones is reported by their task, at the end and on average, with the
error that "0 throughout" makes; beside it the error of what would be believed without asking anybody, the
demonstration's own time.
"""

import argparse

import numpy as np
import torch
from rich.progress import track

from envs.experts import demonstrations
from envs.metaworld import PRETRAINING, VIEWS, task_name
from grm.errors import TaskError
from grm.metrics import expected_interval
from policies.arms import GRM_ONLY_REPLAYS
from policies.one_shot import make_env, world_of
from policies.rollout import instance_seeds

from .results import write_result

TASKS = (
    "push",
    "coffee-pull",
    "hammer",
    "drawer-open",
    "pick-place-wall",
    "shelf-place",
    "window-open",
    "peg-unplug-side",
    "sweep-into",
)
POINTS = 8
"""States of a replay whose truth is asked, at most."""


def replays(task: str, count: int, seed: int) -> list[dict[str, object]]:
    """A row for each state that was asked about: task, replay, whether it succeeded, time and truth."""
    env = make_env(task, 250, views=VIEWS)
    [demonstration] = demonstrations(env, 1, seed=10_000 + seed)
    env.close()
    world, rows = world_of(demonstration), list[dict[str, object]]()
    length = len(demonstration) - 1
    asked = {round(fraction * length) for fraction in np.linspace(0, 1, POINTS + 1)[1:]}
    for replay, instance in enumerate(instance_seeds(seed, count, "replay")):
        world.reset(seed=instance)
        found = []
        for step, action in enumerate(demonstration.actions[:-1], start=1):
            world.step(action)
            if world.succeeded:
                break
            if step in asked:
                found.append((step / length, world.true_progress(provers=5)))
        rows += [
            {"task": task, "replay": replay, "success": world.succeeded, "time": round(t, 3), "truth": round(truth, 4)}
            for t, truth in found
        ]
    world.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replays", type=int, default=GRM_ONLY_REPLAYS.replays)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list[dict[str, object]]()
    for task in track([task_name(name) for name in options.tasks], "replaying"):
        if task not in PRETRAINING:
            raise TaskError(f"{task} is held out; expected a training task, for this is tuning")
        rows += replays(task, options.replays, options.seed)
    failed = [row for row in rows if not row["success"]]
    by_task = {row["task"]: [r for r in failed if r["task"] == row["task"]] for row in failed}
    columns: dict[str, list[float]] = {"truth": [], "truth_at_the_end": [], "error_of_time": []}
    for mine in by_task.values():
        truth, time = (np.array([float(str(row[key])) for row in mine]) for key in ("truth", "time"))
        columns["truth"].append(truth.mean())
        columns["truth_at_the_end"].append(truth[time == 1].mean())
        columns["error_of_time"].append(np.abs(truth - time).mean())
    rng = np.random.default_rng(0)
    summary = {key: expected_interval(values, rng) for key, values in columns.items()}
    episodes = {(row["task"], row["replay"]): row["success"] for row in rows}
    print(summary)
    print(
        write_result(
            "blind_replays",
            summary,
            seeds=[options.seed],
            rows=rows,
            replays=len(episodes),
            succeeded=sum(map(bool, episodes.values())),
        )
    )


if __name__ == "__main__":
    main()
