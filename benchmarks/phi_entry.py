"""How should Φ enter the learner? One learner, one demonstration, several potentials and ways in; training tasks only.

Potentials: the provers' time-to-go distilled into a function of the state (`benchmarks/distilled.py`), fitted on
rollouts of the sparse arm's first seed; and the packaged GRM adapted to the demonstration. What is finished in `--out`
is not run again. One core; `seconds` is what a run took, on a shared machine.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecExtractDictObs

from envs.metaworld import PRETRAINING, VIEWS, task_name
from grm.data.episodes import Episode
from grm.data.replay import read_replay
from grm.errors import TaskError
from grm.metrics import expected_interval
from grm.models.checkpoint import locate
from grm.models.multiview import GRM, packaged_checkpoint
from grm.reward import Judgement
from grm.train import adapt
from policies import Demonstration, DemonstrationSAC, Rollout
from policies.arms import SPARSE
from policies.one_shot import (
    ActionLog,
    OneShotSettings,
    evaluate_policy,
    horizon_of,
    make_env,
    record_demonstration,
)
from shaping import ModelPotential, Potential, shaping_reward
from shaping.sb3 import VecPotentialShaping

from .distilled import Distilled, agreement, ask, distill
from .results import write_result

GAMMA = 0.98


@dataclass(frozen=True)
class Arm:
    """One way for a potential to enter."""

    potential: Literal["none", "prover", "grm", "hand"] = "none"
    """`hand` is a judge that looks at the hand alone, and takes its way for the task's: one that misleads."""
    scale: Literal["linear", "value", "prover's value"] = "linear"
    """`value` is `ValueScale` of the linear one; the prover's own value knows that a lost object is worth 0."""
    weight: float = 1.0
    """Of the potential as the wrapper adds it."""
    guidance: float = 0.0
    """Weight of the learner's own potential, learned from the process reward and from successes; then `weight` is 0."""
    own_gamma: float = GAMMA
    """The learner's discount, of a guided one while it never succeeds; that of shaping stays."""


ARMS = {
    "sparse": Arm(),
    "sparse, short": Arm(own_gamma=0.9),
    "prover, linear": Arm("prover", "linear"),
    "prover, value scale": Arm("prover", "value"),
    "prover, own value": Arm("prover", "prover's value"),
    "prover, own value, short": Arm("prover", "prover's value", own_gamma=0.9),
    "grm, linear, 0.1": Arm("grm", "linear", weight=0.1),
    "grm, value scale": Arm("grm", "value"),
    "grm, value scale, short": Arm("grm", "value", own_gamma=0.9),
    "guided": Arm("grm", weight=0.0, guidance=1.0, own_gamma=0.9),
    "guided, long": Arm("grm", weight=0.0, guidance=1.0),
    "misled": Arm("hand", weight=0.0, guidance=1.0, own_gamma=0.9),
    "guided by successes alone": Arm(guidance=1.0, own_gamma=0.9),
}


class ValueScale(Potential[Any]):
    """Another potential on the scale of the learner's values, gamma ** ((1 - Φ) * horizon); spreads are to first order.

    Who needs (1 - Φ) * horizon more decisions to a success that pays 1 is worth that (derivations, section 6).
    Not in `shaping`: at weight 1 a learner was slower with it than on the linear scale (`docs/log.md`).
    """

    def __init__(self, potential: Potential[Any], *, gamma: float, horizon: float) -> None:
        self.potential, self.gamma, self.horizon = potential, gamma, horizon

    def reset(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        return self._scaled(self.potential.reset(indices, observations))

    def advance(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        return self._scaled(self.potential.advance(indices, observations))

    def _scaled(self, judgement: Judgement) -> Judgement:
        value = self.gamma ** ((1 - judgement.potential) * self.horizon)
        slope = -np.log(self.gamma) * self.horizon * value
        return Judgement(potential=value, spread=slope * judgement.spread, judged=judgement.judged)


class DistilledPotential(Potential[Any]):
    """One of the two answers of a `Distilled`, of the observation's `state`."""

    def __init__(self, model: Distilled, column: int) -> None:
        self.model, self.column = model, column

    def reset(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        return self.advance(indices, observations)

    def advance(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        phi = self.model.answer([observation["state"] for observation in observations])[:, self.column]
        return Judgement(potential=phi, spread=np.zeros(len(phi)), judged=np.ones(len(phi), bool))


TO_GOAL = slice(6, 9)
"""Columns of the state: from the hand to the goal, in metres."""


class HandPotential(Potential[Any]):
    """How far on the demonstration the hand was nearest to where it is now; objects are not looked at."""

    def __init__(self, demonstration: Episode) -> None:
        self._shown = demonstration.state[:, TO_GOAL]

    def reset(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        return self.advance(indices, observations)

    def advance(self, indices: Sequence[int], observations: Sequence[Any]) -> Judgement:
        hands = np.stack([observation["state"][TO_GOAL] for observation in observations])
        nearest = np.linalg.norm(self._shown - hands[:, None], axis=2).argmin(1)
        phi = nearest / (len(self._shown) - 1)
        return Judgement(potential=phi, spread=np.zeros(len(phi)), judged=np.ones(len(phi), bool))


def potential_for(arm: Arm, demonstration: Episode, folder: Path, base: Path, settings: OneShotSettings) -> Any:
    """The arm's potential, made anew: it remembers episodes."""
    if arm.potential == "hand":
        return HandPotential(demonstration)
    if arm.potential == "prover":
        model = distilled(settings, base)
        if arm.scale == "prover's value":
            return DistilledPotential(model, 1)
        linear: Potential[Any] = DistilledPotential(model, 0)
    else:
        linear = ModelPotential(adapted(demonstration, folder, settings.seed), demonstration.as_goal())
    if arm.scale == "linear":
        return linear
    return ValueScale(linear, gamma=GAMMA, horizon=len(demonstration))


def adapted(demonstration: Episode, folder: Path, seed: int) -> GRM:
    """The packaged GRM adapted to the demonstration; kept."""
    where = folder / "grm"
    if not (where / "config.json").exists():
        replay = list(read_replay(locate("", packaged_checkpoint())))
        adapt(GRM.from_pretrained(""), demonstration, replay, seed=seed).save_pretrained(where, {"seed": seed})
    return GRM.from_pretrained(where)


def distilled(settings: OneShotSettings, base: Path) -> Distilled:
    """The task's distilled prover, fitted on the first seed's sparse rollouts; kept, with its agreement."""
    where = base / "distilled.safetensors"
    with np.load(base / "sparse.npz") as file:
        ends = np.cumsum(file["lengths"])[:-1]
        rollouts = list(zip(file["seeds"].tolist(), np.split(file["actions"], ends), strict=True))
    if not where.exists():
        env = make_env(settings.task, 1000)
        fitted = [rollout for k, rollout in enumerate(rollouts) if k % 5]
        asked = ask(env, fitted, per_rollout=5, gamma=GAMMA, seed=0)
        model = distill(asked, seed=0)
        test = ask(env, rollouts[::5], per_rollout=5, gamma=GAMMA, seed=1)
        env.close()
        (base / "agreement.json").write_text(json.dumps(agreement(model, test)))
        save_file(model.state_dict(), where)
    weights = load_file(where)
    model = Distilled(np.zeros((2, len(weights["mean"])), np.float32))
    model.load_state_dict(weights)
    return model


def run(task: str, seed: int, name: str, arm: Arm, options: argparse.Namespace) -> dict[str, object]:
    """Train and evaluate one arm; returns its row, read back if it was run before."""
    base, folder = options.out / task / str(options.seeds[0]), options.out / task / str(seed)
    done = folder / f"{name}.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    settings = OneShotSettings(task=task, seed=seed, rollouts=options.rollouts)
    demonstration = record_demonstration(settings, folder / "demonstration")
    rewards = demonstration.rewards[:-1].astype(np.float64)
    terminated = np.arange(len(rewards)) == len(rewards) - 1
    env = ActionLog(make_env(task, horizon_of(demonstration), views=VIEWS if arm.potential == "grm" else ()))
    venv: VecEnv = DummyVecEnv([lambda: env])
    if arm.potential != "none":
        potential = potential_for(arm, demonstration, folder, base, settings)
        observations = [
            {"state": state, **{f"pixels.{view}": images[t] for view, images in demonstration.views.items()}}
            for t, state in enumerate(demonstration.state)
        ]
        judged = [(potential.advance if t else potential.reset)([0], [o]) for t, o in enumerate(observations)]
        phi = np.array([judgement.potential[0] for judgement in judged])
        rewards += arm.weight * np.nan_to_num(shaping_reward(phi[:-1], phi[1:], terminated, GAMMA), nan=0.0)
        venv = VecPotentialShaping(venv, potential, gamma=GAMMA, weight=arm.weight)
    shown = Demonstration(
        observations=demonstration.state[:-1],
        actions=demonstration.actions[:-1],
        rewards=rewards,
        next_observations=demonstration.state[1:],
        terminated=terminated,
    )
    began = time.perf_counter()
    venv = VecExtractDictObs(venv, "state")
    gammas = {"guided_gamma": arm.own_gamma, "gamma": GAMMA} if arm.guidance else {"gamma": arm.own_gamma}
    learner = DemonstrationSAC(venv, shown, guidance=arm.guidance, seed=seed, **gammas)
    before = evaluate_policy(learner.policy.cloned, SPARSE, settings, demonstration, None).success_rate
    rollouts: list[tuple[int, np.ndarray]] = []
    success: list[bool] = []

    def after(rollout: Rollout) -> None:
        assert env.finished is not None
        rollouts.append((int(env.finished[0] or 0), env.finished[1]))
        success.append(rollout.success)

    learner.learn_rollouts(options.rollouts, after)
    fresh = evaluate_policy(learner, SPARSE, settings, demonstration, None).success_rate
    venv.close()
    if name == "sparse":
        np.savez(
            folder / "sparse.npz",
            seeds=np.array([instance for instance, _ in rollouts]),
            lengths=np.array([len(actions) for _, actions in rollouts]),
            actions=np.concatenate([actions for _, actions in rollouts]),
        )
    blocks = {f"to_{end}": float(np.mean(success[end - 25 : end])) for end in range(25, len(success) + 1, 25)}
    row = {
        "task": task,
        "seed": seed,
        "arm": name,
        **asdict(arm),
        "before": before,
        "mean": float(np.mean(success)),
        "last": float(np.mean(success[-50:])),
        "fresh": fresh,
        **blocks,
        "seconds": round(time.perf_counter() - began),
    }
    done.write_text(json.dumps(row))
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over tasks and seeds with bootstrap intervals, and the paired difference from the sparse arm."""
    rng = np.random.default_rng(0)
    sparse = {(row["task"], row["seed"]): row for row in rows if row["arm"] == "sparse"}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name]
        for key in ("mean", "last", "fresh"):
            found[f"{name}: {key}"] = expected_interval([row[key] for row in mine], rng)
            pairs = [row[key] - sparse[row["task"], row["seed"]][key] for row in mine if name != "sparse"]
            if pairs:
                found[f"{name} minus sparse: {key}"] = expected_interval(pairs, rng)
        found[f"{name}: runs"] = len(mine)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["push", "pick-place-wall", "coffee-pull"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["guided"])
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/phi_entry"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in map(task_name, options.tasks):
        if task not in PRETRAINING:
            raise TaskError(f"{task} is held out; expected a training task, for this is tuning")

    rows: list[dict[str, object]] = []
    for seed in options.seeds:
        for task in map(task_name, options.tasks):
            for name in dict.fromkeys(["sparse", *options.arms]):  # the others are compared with it
                rows.append(run(task, seed, name, ARMS[name], options))
                known = {
                    task: json.loads(path.read_text())
                    for task in map(task_name, options.tasks)
                    if (path := options.out / task / str(options.seeds[0]) / "agreement.json").exists()
                }
                print(rows[-1])
                path = write_result(
                    "phi_entry",
                    summarise(rows),
                    seeds=options.seeds,
                    rows=rows,
                    rollouts=options.rollouts,
                    distilled=known,
                )
    print(path)


if __name__ == "__main__":
    main()
