"""How far two independent sets of perturbed provers disagree about the same state: the noise of the labels of progress.

A label is the mean over provers, the first of them clean, of the share of the way that is done, in units of the median
of three at reset. Here a second label is made of others, all perturbed; both are compared where a learner strays: on
scripted behaviours off the demonstration of the held-out tasks and of some training tasks. Whoever knew the expected
label would still score no more than the noise allows. The same runs of the same provers are summed up by three rules:
the mean of five, which evaluation uses, the mean of three, which training data use, and the median of three, which is
what it used to be. In windows of the length that evaluation looks at, the second label is scored as a judge is: does it
fall where the first one falls?
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.progress import track

from envs.experts import OFF_DEMONSTRATION, record
from envs.metaworld import HELD_OUT, PRECISE, PRETRAINING, MetaWorldEnv, ScriptedPolicy, SimulatorState
from grm.metrics import CHANGE_WINDOW, change_f1, changes, expected_interval, spearman

from .results import write_result

FIRST_SEED = 700_000
ACTION_REPEAT = 4
SETS = (range(5), range(5, 10))
"""Prover seeds of the label as it is made everywhere, and of the independent one."""
RULES = {"median3": (np.median, 3), "mean3": (np.mean, 3), "mean5": (np.mean, 5)}
"""How shares become a label, and how many of a set's provers have a say."""
REFERENCES = 3
"""Provers whose median at reset is the unit, as in `MetaWorldEnv.reference_time`: the first ones of a set."""
NOISE = 0.15
"""Standard deviation of a prover's action noise, as in `MetaWorldEnv.time_to_go`."""
LONGEST = 300
"""Control steps a prover may take from reset, as in `MetaWorldEnv.time_to_go`."""


class Moments(NamedTuple):
    """Some states of one episode, and how it began."""

    seed: int
    start: SimulatorState
    states: list[SimulatorState]


def moments(env: MetaWorldEnv, behaviour: str, seed: int, picked: Sequence[float], *, window: int = 0) -> Moments:
    """One episode of the behaviour, kept at these fractions of its length.

    With a window of some frames, kept are the first and last state of each that ends there and begins in the episode.
    """
    episode = record(env, behaviour, seed=seed, label_every=1_000_000)
    env.reset(seed=seed)
    every = [env.snapshot()]
    for action in episode.actions[:-1]:
        env.step(action)
        every.append(env.snapshot())
    last = len(every) - 1
    ends = sorted({round(f * last) for f in picked})
    if not window:
        return Moments(seed, every[0], [every[t] for t in ends])
    return Moments(seed, every[0], [every[t] for end in ends if end >= window for t in (end - window, end)])


def prover_time(env: MetaWorldEnv, state: SimulatorState, prover: int, limit: int) -> float:
    """Control steps the prover of this number needs; inf where it fails. Number 0 runs clean.

    `env` takes one control step per decision. The same as one entry of `MetaWorldEnv.time_to_go`.
    """
    env.restore(state)
    if env.succeeded:
        return 0.0
    policy, generator = ScriptedPolicy(env.task), np.random.default_rng(prover)
    for step in range(1, limit + 1):
        action = policy(env.raw_state) + (prover > 0) * generator.normal(0, NOISE, 4)
        _, _, success, _, _ = env.step(np.clip(action, -1, 1))
        if success:
            return float(step)
    return float("inf")


def shares_of(
    times: Float[np.ndarray, "states provers"], references: Float[np.ndarray, " provers"], horizon: int
) -> Float[np.ndarray, "states provers"]:
    """clip(1 - time-to-go / median time at reset, 0, 1); the unit is `horizon` where most fail at reset."""
    return np.clip(1 - times / unit_of(references, horizon), 0, 1)


def unit_of(references: Float[np.ndarray, " provers"], horizon: int) -> float:
    """Median time at reset, or `horizon` where most fail, in one unit with both."""
    reference = float(np.median(references))
    return reference if np.isfinite(reference) else float(horizon)


def label_twice(env: MetaWorldEnv, episode: Moments, horizon: int) -> dict[str, Float[np.ndarray, "sets states"]]:
    """By rule: the label by each set."""
    env.reset(seed=episode.seed)  # some of Meta-World's goals follow the scene and are in no snapshot
    shares = []
    for provers in SETS:
        references = np.array([prover_time(env, episode.start, k, LONGEST) for k in provers[:REFERENCES]])
        limit = int(unit_of(references, horizon))  # beyond it is 0 anyway
        times = np.array([[prover_time(env, state, k, limit) for k in provers] for state in episode.states])
        shares.append(shares_of(times, references, horizon))
    # A clipped share falls with the time, so the median of three shares is the share of the median time.
    return {name: rule(np.array(shares)[..., :count], axis=-1) for name, (rule, count) in RULES.items()}


def jitter(labels: Float[np.ndarray, " t"]) -> float:
    """Mean |second difference| of consecutive labels: 0 for any steady progress."""
    return float(np.abs(np.diff(labels, n=2)).mean())


def fallings(labels: Float[np.ndarray, "sets 2*windows"]) -> dict[str, float]:
    """Of windows (first label, last label): how often they fall by one set, how well the other finds it."""
    ours, others = (np.array([changes(pair, window=1)[0] for pair in row.reshape(-1, 2)]) for row in labels)
    return {"falling": float((ours == -1).mean()), "falling_f1": change_f1(others, ours, -1)}


def measure(task: str, *, episodes: int, states: int, windows: int, frames: int, first: int) -> dict[str, object]:
    """The task's row: `states` and `windows` of each of `episodes` episodes, `frames` consecutive ones of one more."""
    env = MetaWorldEnv(task, horizon=50, action_repeat=ACTION_REPEAT)
    prover = MetaWorldEnv(task, horizon=1_000_000, action_repeat=1)
    horizon = env.horizon * ACTION_REPEAT
    pairs, looked = [], []
    for index in range(episodes):
        behaviour = OFF_DEMONSTRATION[(first + index) % len(OFF_DEMONSTRATION)]
        kept = moments(env, behaviour, FIRST_SEED + index, np.linspace(0.1, 1, states).tolist())
        pairs.append(label_twice(prover, kept, horizon))
        picked = np.linspace(1 / windows, 1, windows).tolist()
        kept = moments(env, behaviour, FIRST_SEED + index, picked, window=CHANGE_WINDOW)
        looked.append(label_twice(prover, kept, horizon))
    kept = moments(env, "noisy", FIRST_SEED + episodes, np.linspace(0, 1, 51).tolist())
    middle = max(0, (len(kept.states) - frames) // 2)
    along = label_twice(prover, kept._replace(states=kept.states[middle : middle + frames]), horizon)
    env.close()
    prover.close()
    row: dict[str, object] = {"task": task, "states": sum(pair["mean5"].shape[1] for pair in pairs)}
    for rule in RULES:
        ours, others = np.concatenate([pair[rule] for pair in pairs], axis=1)
        measured = {
            "mae": float(np.abs(ours - others).mean()),
            "spearman": spearman(ours, others),
            "at_zero": float((ours == 0).mean()),
            "one_at_zero": float(((ours == 0) != (others == 0)).mean()),
            "differ_by_0.2": float((np.abs(ours - others) > 0.2).mean()),
            "mean_difference": float((others - ours).mean()),
            "jitter": float(np.mean([jitter(labels) for labels in along[rule]])),
            "mae_along": float(np.abs(along[rule][0] - along[rule][1]).mean()),
        }
        measured |= fallings(np.concatenate([labels[rule] for labels in looked], axis=1))
        row |= {f"{name}_{rule}": value for name, value in measured.items()}
    return row | {"jitter_mean10": jitter(along["mean5"].mean(axis=0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE, *PRETRAINING[2::4]])
    parser.add_argument("--episodes", type=int, default=5, help="per task, each of another behaviour")
    parser.add_argument("--states", type=int, default=4, help="per episode")
    parser.add_argument("--windows", type=int, default=8, help="per episode, for what falls")
    parser.add_argument("--frames", type=int, default=10, help="consecutive ones of one noisy episode, for the jitter")
    options = parser.parse_args()

    rows = [
        measure(
            task,
            episodes=options.episodes,
            states=options.states,
            windows=options.windows,
            frames=options.frames,
            first=place * options.episodes,
        )
        for place, task in enumerate(track(options.tasks, "label noise"))
    ]
    summary = {}
    for split, tasks in (("", options.tasks), ("held_out_", (*HELD_OUT, *PRECISE)), ("training_", PRETRAINING)):
        for key in (key for key in rows[0] if key not in ("task", "states")):
            values = np.array([row[key] for row in rows if row["task"] in tasks], dtype=float)
            known = values[np.isfinite(values)]  # a task whose labels are all equal orders nothing
            if len(known):
                summary[split + key] = expected_interval(known, np.random.default_rng(0))
            # Spearman 1904: two equally noisy measurements agree at r, and the truth with one of them at the root of r.
            if key.startswith("spearman") and len(known):
                ceiling = key.replace("spearman", "spearman_ceiling")
                summary[split + ceiling] = float(np.sqrt(max(0.0, summary[split + key].value)))
    for rule in RULES:
        columns = [key for key in rows[0] if key.endswith(rule)]
        for row in rows:
            print(f"{row['task']!s:>28}", "  ".join(f"{row[key]:6.3f}" for key in columns))
        print("  ".join(columns))
    ordered = {
        f"tasks_ordered_{rule}": sum(not np.isnan(float(str(row[f"spearman_{rule}"]))) for row in rows)
        for rule in RULES
    }
    rows = [{k: "" if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]
    print(write_result("label_noise", summary, seeds=[FIRST_SEED], rows=rows, tasks=len(rows), **ordered))


if __name__ == "__main__":
    main()
