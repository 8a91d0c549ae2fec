"""`grm demo` on two held-out tasks and several seeds: success before, with the sparse reward, with shaping; minutes.

Runs that are already finished in `--out` are not repeated, interrupted ones go on. Intervals are over seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from grm.cli import Demo
from grm.metrics import expected_interval
from policies.log import arm_folder, read_rollouts
from policies.page import success_rates

from .results import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["door-unlock", "hand-insert"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()

    rows: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    for seed in options.seeds:
        for task in options.tasks:
            folder = options.out / f"{task}-{seed}"
            finished = (folder / "minutes.json").exists() and None not in success_rates(folder).values()
            if not finished:
                Demo(task=task, seed=seed, out=folder, resume=(folder / "config.json").exists()).run()
            rates = success_rates(folder)
            minutes = json.loads((folder / "minutes.json").read_text())
            rows.append({"task": task, "seed": seed, **rates, "minutes": minutes["minutes"]})
            for arm in ("sparse", "grm"):
                own = arm_folder(folder, arm) / "rollouts.csv"
                curves += [{"task": task, "seed": seed, "arm": arm, **r} for r in read_rollouts(own)]
            rng = np.random.default_rng(0)
            summary = {
                f"{name}_{key}": expected_interval([float(r[key]) for r in rows if r["task"] == name], rng)
                for name in dict.fromkeys(str(r["task"]) for r in rows)
                for key in ("cloned", "sparse", "grm")
            }
            summary["minutes"] = expected_interval([float(r["minutes"]) for r in rows], rng)
            seeds = sorted({int(r["seed"]) for r in rows})
            print(write_result("demo", summary, seeds=seeds, rows=rows, rollouts=150))
    write_result("demo_rollouts", {}, seeds=options.seeds, rows=curves)


if __name__ == "__main__":
    main()
