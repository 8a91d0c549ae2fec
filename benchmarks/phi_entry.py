"""How should Φ enter the learner? One learner, one demonstration, several potentials and ways in; training tasks only.

    python -m benchmarks.phi_entry

Paid as γΦ' - Φ times a weight, told to a learner that makes a potential of its own (`policies.guide`), or asked which
failures got furthest, to be imitated as long as successes are few (the `elite` of `DemonstrationSAC`). Potentials:
Meta-World's hand-written dense reward; the provers' time-to-go distilled into a function of the state
(`benchmarks.distilled`), fitted on rollouts of the sparse way's first seed; the packaged GRM adapted to the
demonstration; and a judge that looks at the hand alone, and so misleads. Every way is compared with `sparse`, which is
always run. What is finished in `--out` is not run again. One core.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.progress import track
from safetensors.torch import load_file, save_file

from envs.metaworld import PRETRAINING, MetaWorldEnv, task_name
from grm.data.episodes import Episode
from grm.errors import GrmError, TaskError, TraceError
from grm.metrics import Interval, expected_interval
from policies.arms import DENSE, GRM_SHAPED, PROVER, SPARSE, Arm
from policies.checkpoint import read_checkpoint
from policies.log import arm_folder, read_rollouts
from policies.one_shot import OneShotSettings, make_env, read_evaluation, run_arm
from policies.onlookers import Onlooker, Opinion
from policies.rollout import instance_seeds

from .distilled import Distilled, agreement, ask, distill
from .results import this_commit, write_result

BLOCK = 25
"""Rollouts whose successes make one number of the curve."""
TO_GOAL = slice(6, 9)
"""Columns of the state: from the hand to the goal, in metres."""


class DistilledOnlooker(Onlooker):
    """The provers' share done, as a smooth function of the state."""

    def __init__(self, model: Distilled) -> None:
        self.model = model

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return Opinion(phi=float(self.model.answer([observation["state"]])[0, 0]))

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return self.begin(observation, env)


class HandOnlooker(Onlooker):
    """How far on the demonstration the hand was nearest to where it is now; objects are not looked at."""

    def __init__(self, demonstration: Episode) -> None:
        self._shown = demonstration.state[:, TO_GOAL]

    def begin(self, observation: dict[str, np.ndarray], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        nearest = np.linalg.norm(self._shown - observation["state"][TO_GOAL], axis=1).argmin()
        return Opinion(phi=float(nearest / (len(self._shown) - 1)))

    def follow(self, observation: dict[str, np.ndarray], info: dict[str, Any], env: MetaWorldEnv) -> Opinion:
        """See `Onlooker`."""
        return self.begin(observation, env)


@dataclass(frozen=True)
class Way:
    """One way for a potential to enter."""

    arm: Arm
    weight: float = 0.1
    """Of γΦ' - Φ, where it is paid."""
    guided_gamma: float = 0.9
    """The learner's discount while it is guided and never succeeds; .98 is the potential's own."""
    onlooker: Callable[[str, "PhiEntry", Episode], Onlooker] | None = None
    """Who says Φ instead of the arm's own onlooker, given the task, what is run and the demonstration."""


def distilled_prover(task: str, options: "PhiEntry", demonstration: Episode) -> Onlooker:
    """For ways of the prover."""
    return DistilledOnlooker(distilled(task, options))


def misleading(task: str, options: "PhiEntry", demonstration: Episode) -> Onlooker:
    """For ways of nobody who knows."""
    return HandOnlooker(demonstration)


def paid(arm: Arm) -> Arm:
    """The arm without its elite."""
    return replace(arm, use="paid")


def guided(arm: Arm) -> Arm:
    """The arm with a guide instead."""
    return replace(arm, use="guide")


WAYS = {
    "sparse": Way(SPARSE),
    "dense, paid, 0.1": Way(paid(DENSE)),
    "dense, paid, 0.5": Way(paid(DENSE), weight=0.5),
    "dense, guided": Way(guided(DENSE)),
    "dense, guided, long": Way(guided(DENSE), guided_gamma=0.98),
    "dense, elite": Way(DENSE, weight=0.0),
    "dense, elite, paid": Way(DENSE),
    "prover, paid, 0.1": Way(paid(PROVER), onlooker=distilled_prover),
    "prover, guided": Way(guided(PROVER), onlooker=distilled_prover),
    "prover, elite, paid": Way(PROVER, onlooker=distilled_prover),
    "grm, paid, 0.1": Way(paid(GRM_SHAPED)),
    "grm, guided": Way(guided(GRM_SHAPED)),
    "grm, elite": Way(GRM_SHAPED, weight=0.0),
    "grm, elite, paid": Way(GRM_SHAPED),
    "misled, guided": Way(guided(PROVER), onlooker=misleading),
    "misled, elite, paid": Way(PROVER, onlooker=misleading),
}


@dataclass(frozen=True)
class PhiEntry:
    """What is run."""

    tasks: tuple[str, ...] = ("push", "pick-place-wall", "coffee-pull", "push-back")
    seeds: tuple[int, ...] = (0, 1)
    ways: tuple[str, ...] = ("dense, paid, 0.1", "dense, guided", "dense, elite", "dense, elite, paid")
    """Beside `sparse`."""
    rollouts: int = 100
    evaluation_episodes: int = 50
    out: Path = Path("runs/phi_entry")


def distilled(task: str, options: PhiEntry) -> Distilled:
    """The task's distilled prover, fitted on the first seed's sparse rollouts; kept, with its agreement."""
    folder = options.out / task / str(options.seeds[0])
    where = folder / "distilled.safetensors"
    if not where.exists():
        rollouts = rollouts_of(arm_folder(folder, "sparse") / "policy", options.seeds[0])
        env = make_env(task, 1000)
        fitted = [rollout for k, rollout in enumerate(rollouts) if k % 5]
        model = distill(ask(env, fitted, per_rollout=5, gamma=0.98, seed=0), seed=0)
        test = ask(env, rollouts[::5], per_rollout=5, gamma=0.98, seed=1)
        env.close()
        (folder / "agreement.json").write_text(json.dumps(agreement(model, test)))
        save_file(model.state_dict(), where)
    weights = load_file(where)
    model = Distilled(np.zeros((2, len(weights["mean"])), np.float32))
    model.load_state_dict(weights)
    return model


def rollouts_of(checkpoint: Path, seed: int) -> list[tuple[int, np.ndarray]]:
    """Instance and actions of each rollout in a learner's replay."""
    config, _, replay = read_checkpoint(checkpoint)
    instances = instance_seeds(seed, config["rollouts"], "training")
    number = replay["replay.episode"]
    return [(instances[k - 1], replay["replay.actions"][number == k, 0]) for k in np.unique(number).tolist()]


def run(task: str, seed: int, name: str, options: PhiEntry) -> dict[str, Any]:
    """Train and evaluate one way; returns its row, read back if it was run before."""
    folder, way = options.out / task / str(seed), WAYS[name]
    done = arm_folder(folder, name) / "row.json"
    settings = OneShotSettings(
        task=task,
        seed=seed,
        rollouts=options.rollouts,
        evaluation_episodes=options.evaluation_episodes,
        shaping_weight=way.weight,
        guided_gamma=way.guided_gamma,
        checkpoint_every=BLOCK,
    )
    if done.exists():
        row = json.loads(done.read_text())
        if row["rollouts"] != options.rollouts or row["evaluation_episodes"] != options.evaluation_episodes:
            raise TraceError(
                f"{done} is of {row['rollouts']} rollouts, evaluated on {row['evaluation_episodes']} instances; "
                f"expected {options.rollouts} and {options.evaluation_episodes}: choose another --out"
            )
        return row
    onlooker = None if way.onlooker is None else partial(way.onlooker, task, options)
    began = time.perf_counter()
    run_arm(settings, replace(way.arm, name=name), folder, onlooker=onlooker)
    success = [row["true_success"] == "True" for row in read_rollouts(arm_folder(folder, name) / "rollouts.csv")]
    blocks = {f"to_{end}": float(np.mean(success[end - BLOCK : end])) for end in range(BLOCK, len(success) + 1, BLOCK)}
    row = {
        "task": task,
        "seed": seed,
        "arm": name,
        "mean": float(np.mean(success)),
        "last": float(np.mean(success[-2 * BLOCK :])),
        "fresh": read_evaluation(folder, name),
        "rollouts": options.rollouts,
        "evaluation_episodes": options.evaluation_episodes,
        **blocks,
        "seconds": round(time.perf_counter() - began),
        "commit": this_commit(),
    }
    done.write_text(json.dumps(row))
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float | Interval]:
    """Means over tasks and seeds with bootstrap intervals, and the paired difference from the sparse way."""
    rng = np.random.default_rng(0)
    sparse = {(row["task"], row["seed"]): row for row in rows if row["arm"] == "sparse"}
    found: dict[str, float | Interval] = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name]
        for key in ("mean", "last", "fresh"):
            found[f"{name}: {key}"] = expected_interval([row[key] for row in mine], rng)
            pairs = [row[key] - sparse[row["task"], row["seed"]][key] for row in mine if name != "sparse"]
            if pairs:
                found[f"{name} minus sparse: {key}"] = expected_interval(pairs, rng)
        found[f"{name}: runs"] = len(mine)
    return found


def main(options: PhiEntry) -> None:
    """Run all, and write what came of it after each."""
    torch.set_num_threads(1)
    tasks = [task_name(task) for task in options.tasks]
    for task in tasks:
        if task not in PRETRAINING:
            raise TaskError(f"{task} is held out; expected a training task, for this is tuning")
    unknown = set(options.ways) - set(WAYS)
    if unknown:
        raise TaskError(f"unknown way {min(unknown)!r}; expected some of {'; '.join(WAYS)}")
    names = list(dict.fromkeys(["sparse", *options.ways]))
    rows: list[dict[str, Any]] = []
    for seed, task, name in track([(s, t, n) for s in options.seeds for t in tasks for n in names], "training"):
        rows.append(run(task, seed, name, options))
        print(rows[-1])
        write_result(
            "phi_entry",
            summarise(rows),
            seeds=options.seeds,
            rows=rows,
            rollouts=options.rollouts,
            distilled=agreements(tasks, options),
        )


def agreements(tasks: Sequence[str], options: PhiEntry) -> dict[str, Any]:
    """Of the tasks whose prover was distilled, how well what came of it agrees with the prover."""
    paths = {task: options.out / task / str(options.seeds[0]) / "agreement.json" for task in tasks}
    return {task: json.loads(path.read_text()) for task, path in paths.items() if path.exists()}


if __name__ == "__main__":
    try:
        main(tyro.cli(PhiEntry))
    except GrmError as error:
        raise SystemExit(f"error: {error}") from error
