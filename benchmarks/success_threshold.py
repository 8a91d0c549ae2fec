"""When to believe the success head: threshold and stable steps, on training tasks, for `policies.gold`.

A GRM adapted to one demonstration of each task, as each of `--arms` has it, watches experts, which go on for some
decisions after their success as a learner that nobody tells of it would, and behaviours that fail. Of the rules with at
most `ALLOWED` false successes per episode the one with the most successes seen is taken. One demonstration of a
*training* task is a kinder test than one of a new task: what the rule does there is what `benchmarks.one_shot_rl`
reports.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from envs.experts import BEHAVIOURS
from envs.metaworld import PRETRAINING, MetaWorldEnv, task_name
from grm.errors import TaskError
from grm.metrics import expected_interval
from policies.arms import GRM_ONLY, arm_named
from policies.gold import StableSuccess
from policies.one_shot import OneShotSettings, onlooker_of, prepare, world_of
from policies.onlookers import Onlooker

from .results import write_result

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
STEPS = (1, 2, 3, 5, 8)
ALLOWED = 0.01
AFTER = 10
"""Decisions an episode goes on after its success."""
FAILURES = ("near-miss", "misplaced", "above", "undo", "wander", "give-up")


@dataclass(frozen=True)
class Watch:
    """One episode: P(done) after each decision, None where the head abstained, and when it was done, if ever."""

    arm: str
    task: str
    success: Sequence[float | None]
    done: int | None


def watch(arm: str, env: MetaWorldEnv, onlooker: Onlooker, behaviour: str, seed: int) -> Watch:
    """Run a behaviour, past its success; what ends an episode here is the horizon or `AFTER` decisions."""
    generator = np.random.default_rng([seed, list(BEHAVIOURS).index(behaviour)])
    observation, _ = env.reset(seed=seed)
    onlooker.begin(observation, env)
    actor = BEHAVIOURS[behaviour](generator, env.horizon)
    said, done = [], None
    for step in range(env.horizon):
        observation, _, _, _, info = env.step(np.clip(actor.act(step, env), -1, 1))
        said.append(onlooker.follow(observation, info, env).success)
        if info["success"] and done is None:
            done = step
        if done is not None and step >= done + AFTER:
            break
    return Watch(arm, env.task, said, done)


def outcomes(watches: Sequence[Watch], threshold: float, steps: int) -> dict[tuple[str, str], tuple[float, float]]:
    """By arm and task: false successes per episode, and the share of true successes that was seen."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for arm, task in dict.fromkeys((one.arm, one.task) for one in watches):
        mine = [one for one in watches if (one.arm, one.task) == (arm, task)]
        stable, false, seen = StableSuccess(threshold, steps), 0, 0
        for one in mine:
            stable.begin()
            fired = next((step for step, p in enumerate(one.success) if stable(p)), None)
            false += fired is not None and (one.done is None or fired < one.done)
            seen += fired is not None and one.done is not None and fired >= one.done
        found[arm, task] = false / len(mine), seen / max(1, sum(one.done is not None for one in mine))
    return found


def best(watches: Sequence[Watch]) -> tuple[float, int] | None:
    """The rule that sees most with at most `ALLOWED` false successes per episode; None if none keeps to that."""
    rules = {}
    for threshold, steps in itertools.product(THRESHOLDS, STEPS):
        false, seen = np.mean(list(outcomes(watches, threshold, steps).values()), axis=0)
        if false <= ALLOWED:
            rules[threshold, steps] = seen, threshold, -steps
    return max(rules, key=lambda rule: rules[rule]) if rules else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["drawer-open", "push", "coffee-pull", "window-open", "hammer"])
    parser.add_argument("--arms", nargs="+", default=[GRM_ONLY.name])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=20, help="of experts, and as many that fail, per task and arm")
    parser.add_argument("--name", default="success_threshold", help="of the results, for other arms than that")
    parser.add_argument("--out", type=Path, default=Path("runs/success_threshold"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    watches: list[Watch] = []
    for task, arm in itertools.product(map(task_name, options.tasks), map(arm_named, options.arms)):
        if task not in PRETRAINING:
            raise TaskError(f"{task} is held out; expected a training task, for this is tuning")
        settings, folder = OneShotSettings(task=task, seed=options.seed), options.out / f"{task}-{options.seed}"
        demonstration = prepare(settings, arm, folder)
        onlooker = onlooker_of(arm, settings, demonstration, folder)
        assert onlooker is not None
        env = world_of(demonstration, arm)
        for number in range(options.episodes):
            for behaviour in ("expert", FAILURES[number % len(FAILURES)]):
                watches.append(watch(arm.name, env, onlooker, behaviour, 40_000 + number))
        env.close()
        print(task, arm.name, best([one for one in watches if (one.arm, one.task) == (arm.name, task)]), flush=True)
    rows = []
    for threshold, steps in itertools.product(THRESHOLDS, STEPS):
        for (name, task), (false, seen) in outcomes(watches, threshold, steps).items():
            rows.append(
                {"threshold": threshold, "steps": steps, "arm": name, "task": task, "false": false, "seen": seen}
            )
    rule, rng, summary = best(watches), np.random.default_rng(0), {}
    if rule is not None:
        chosen = [row for row in rows if (row["threshold"], row["steps"]) == rule]
        summary = {"threshold": rule[0], "steps": rule[1]}
        summary |= {key: expected_interval([row[key] for row in chosen], rng) for key in ("false", "seen")}
    print(write_result(options.name, summary, seeds=[options.seed], rows=rows, episodes=len(watches)))


if __name__ == "__main__":
    main()
