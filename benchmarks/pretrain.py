"""The packaged GRM against the truth: training tasks on unseen instances, held-out tasks zero-shot and one-shot.

Evaluation episodes are collected first where they are missing (`--data`), on instances neither training nor any
demonstration uses. A held-out task's goal picture is the last frame of the one demonstration the GRM is adapted on, for
zero-shot and one-shot alike; the evaluated episodes are others.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.progress import track

from envs.experts import demonstrations
from envs.metaworld import HELD_OUT, PRECISE, PRETRAINING, VIEWS, MetaWorldEnv
from grm.cli import Collect
from grm.data.episodes import Episode
from grm.data.lerobot import read_episodes
from grm.data.replay import read_replay
from grm.evaluate import by_task, score_all, summarize
from grm.metrics import expected_interval
from grm.models.multiview import GRM, packaged_checkpoint
from grm.train import adapt

from .results import write_result

FIRST_SEED = 500_000


def collect(data: Path) -> None:
    """Fresh instances: one demonstration and three others of a training task, four and ten of a held-out one."""
    common = {"action_repeat": 4, "horizon": 50, "label_every": 5, "seed": FIRST_SEED, "jobs": 2}
    Collect(out=data / "training", task=("pretraining",), episodes=1, off_demonstration=3, **common).run()
    Collect(out=data / "held-out", task=("held-out", "precise"), episodes=4, off_demonstration=10, **common).run()


def demonstration_of(task: str, seed: int) -> Episode:
    env = MetaWorldEnv(task, views=VIEWS, horizon=125)
    [episode] = demonstrations(env, 1, seed=10_000 + seed)
    env.close()
    return episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/evaluation"))
    parser.add_argument("--model", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    collect(options.data)
    model = GRM.from_pretrained(options.model)
    replay = list(read_replay(Path(options.model) if options.model else packaged_checkpoint()))
    rows: list[dict[str, object]] = []

    training = {}
    for task in track(PRETRAINING, "training tasks"):
        episodes = list(read_episodes(options.data / "training" / task))
        goal = {task: demonstration_of(task, 0).frames[-1]}
        training |= by_task(score_all(model, episodes, goal, stride=1))
    rows += [{"split": "training", "seed": "", "task": t, **m} for t, m in training.items()]

    before: dict[str, list[dict[str, float]]] = {}
    after: dict[str, list[dict[str, float]]] = {}
    for task in (*HELD_OUT, *PRECISE):
        episodes = list(read_episodes(options.data / "held-out" / task))
        for seed in track(options.seeds, task):
            shown = demonstration_of(task, seed)
            goal = {task: shown.frames[-1]}
            new = adapt(model, shown, replay, steps=options.steps, seed=seed)
            for name, judge, found in (("zero-shot", model, before), ("one-shot", new, after)):
                metrics = by_task(score_all(judge, episodes, goal, stride=1))[task]
                found.setdefault(task, []).append(metrics)
                rows.append({"split": f"held-out {name}", "seed": seed, "task": task, **metrics})

    summary = {f"training_{name}": interval for name, interval in summarize(training).items()}
    for suffix, found in (("", before), ("_one_shot", after)):
        rng = np.random.default_rng(0)
        for name in ("voc_plus", "voc_minus", "mae_demo", "spearman_demo", "mae_off_demo", "spearman_off_demo"):
            values = [np.mean(known) for runs in found.values() if (known := [m[name] for m in runs if name in m])]
            summary[name + suffix] = expected_interval(values, rng)
    for name, interval in summary.items():
        print(f"{name:32} {interval.value:6.3f}  [{interval.low:.3f}, {interval.high:.3f}]")
    print(write_result("pretrain", summary, seeds=options.seeds, rows=rows, adaptation_steps=options.steps))


if __name__ == "__main__":
    main()
