"""PPO with and without the GRM's potential: the reward does not care who learns.

    python -m benchmarks.on_policy

Stable-Baselines3's PPO as it comes, from scratch, on tasks the GRM was trained on: this asks whether
`VecPotentialShaping` serves a learner on several environments at once, judged in one call a step, and whether it speeds
one up that knows nothing of guides or demonstrations. The GRM is adapted to one demonstration, whose last frame is the
goal; the potential enters at weight 1, as answered. `dense` has Meta-World's hand-written dense reward as potential
instead, through `PotentialShaping` around each environment, for the simulator alone can say it. Success is of the
deterministic policy on fresh instances. `--merge` keeps the rows of the results file that are not run again.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import track
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecExtractDictObs

from envs.metaworld import PRETRAINING, VIEWS, task_name
from grm.errors import GrmError, TaskError, TraceError
from grm.metrics import expected_interval
from grm.models.multiview import GRM
from policies.arms import GRM_SHAPED, SPARSE
from policies.one_shot import OneShotSettings, horizon_of, make_env, prepare
from policies.onlookers import DenseOnlooker, Watched
from policies.rollout import evaluate, instance_seeds
from policies.stopwatch import Stopwatch
from shaping import ModelPotential, PotentialShaping
from shaping.sb3 import VecPotentialShaping

from .results import RESULTS, earlier_rows, write_result

GAMMA = 0.98
ARMS = ("sparse", "grm", "dense")
EVALUATED = 50


@dataclass(frozen=True)
class OnPolicy:
    """What is run."""

    tasks: tuple[str, ...] = ("reach", "button-press")
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = ARMS
    merge: bool = False
    decisions: int = 60_000
    environments: int = 8
    out: Path = Path("runs/on_policy")


def world(task: str, horizon: int, views: tuple[str, ...] = (), count: int = 1) -> DummyVecEnv:
    """So many environments of one task, with pictures if somebody looks at them."""
    return DummyVecEnv([lambda: make_env(task, horizon, views=views) for _ in range(count)])


def densely_shaped(task: str, horizon: int, count: int) -> DummyVecEnv:
    """The same, each shaped by the hand-written dense reward."""

    def one() -> PotentialShaping:
        watched = Watched(make_env(task, horizon), DenseOnlooker(), Stopwatch())
        return PotentialShaping(watched, watched.potential(), gamma=GAMMA)

    return DummyVecEnv([one] * count)


def run(task: str, seed: int, arm: str, options: OnPolicy) -> dict[str, object]:
    """Train and evaluate one arm: its row."""
    folder = options.out / task / str(seed)
    demonstration = prepare(OneShotSettings(task=task, seed=seed), GRM_SHAPED if arm == "grm" else SPARSE, folder)
    horizon = horizon_of(demonstration)
    venv: VecEnv
    if arm == "dense":
        venv = densely_shaped(task, horizon, options.environments)
    else:
        venv = world(task, horizon, VIEWS if arm == "grm" else (), options.environments)
    if arm == "grm":
        potential = ModelPotential(GRM.from_pretrained(folder / "grm"), demonstration.as_goal())
        venv = VecPotentialShaping(venv, potential, gamma=GAMMA)
    venv = VecExtractDictObs(venv, "state")
    venv.seed(instance_seeds(seed, 1, "training")[0])
    began = time.perf_counter()
    learner = PPO("MlpPolicy", venv, gamma=GAMMA, n_steps=128, batch_size=256, seed=seed, device="cpu")
    learner.learn(options.decisions)
    seconds = time.perf_counter() - began
    venv.close()
    test = VecExtractDictObs(world(task, horizon), "state")
    found = evaluate(learner, test, episodes=EVALUATED, seed=seed)
    test.close()
    return {"task": task, "seed": seed, "arm": arm, "success": found.success_rate, "seconds": round(seconds)}


def main(options: OnPolicy) -> None:
    """Run all, and write what came of it."""
    torch.set_num_threads(1)
    for task in map(task_name, options.tasks):
        if task not in PRETRAINING:
            raise TaskError(f"{task} is held out; expected a training task")
    unknown = set(options.arms) - set(ARMS)
    if unknown:
        raise TaskError(f"unknown arm {min(unknown)!r}; expected some of {', '.join(ARMS)}")
    asked = [(task_name(task), seed, arm) for task in options.tasks for seed in options.seeds for arm in options.arms]
    settings = {name: value for name, value in asdict(options).items() if name in ("decisions", "environments")}
    if options.merge:
        require_alike(settings)
    earlier = earlier_rows(RESULTS / "on_policy.csv") if options.merge else []
    rows = [row for row in earlier if (row["task"], row["seed"], row["arm"]) not in asked]
    for task, seed, arm in track(asked, "training"):
        rows.append(run(task, seed, arm, options))
        print(rows[-1])
    rates: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(f"{row['task']}.{row['arm']}", []).append(float(str(row["success"])))
    summary = {key: expected_interval(found, np.random.default_rng(0)) for key, found in rates.items()}
    seeds = sorted({int(str(row["seed"])) for row in rows})
    print(write_result("on_policy", summary, seeds=seeds, rows=rows, **settings))


def require_alike(settings: dict[str, object]) -> None:
    """Raise `TraceError` if the results file is about other settings than these."""
    path = RESULTS / "on_policy.json"
    earlier = json.loads(path.read_text()) if path.exists() else settings
    found = {name: earlier[name] for name in settings}
    if found != settings:
        raise TraceError(f"the results file is about {found}; expected {settings}: merge what was run alike")


if __name__ == "__main__":
    try:
        main(tyro.cli(OnPolicy))
    except GrmError as error:
        raise SystemExit(f"error: {error}") from error
