"""From one demonstration, 150 rollouts: every arm of `policies.arms` on eight tasks that no shipped weight has seen.

Cells of (task, seed, arm) run in processes, the most telling arms first, for all seeds before any ablation; what is
finished in `--out` is not repeated, what was interrupted goes on. The results are always written from the finished
cells, and say how many of the planned ones these are. `--report` writes them and runs nothing. Eighty hours of one core
need not be one machine's: `--merge` keeps those rows of the results file whose cells are not in `--out`, each with the
commit it was measured at; do without it once the learner has changed.

How many rollouts it takes is counted on the learner's own, exploring rollouts: the first at which `LEVEL` of the last
`WINDOW` succeeded, by the simulator. A learner that does not get there in the rollouts it has counts as all of them,
which makes a ratio to a worse arm smaller than it is, and how often that happened is in the table. Intervals are from
a bootstrap over tasks and, within each, over seeds. Headline tasks are those whose cloned policy starts below `START`.
Minutes are those of the rollouts and their updates: adapting the GRM and the evaluation come on top.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from envs.metaworld import HELD_OUT, PRECISE, task_name
from grm.cli import Rl
from grm.errors import GrmError
from grm.metrics import Interval
from policies.arms import ABLATIONS, ARMS, FEATURES, GUIDED, MAIN
from policies.grid import Cell
from policies.log import SECONDS, arm_folder, read_rollouts
from policies.one_shot import read_evaluation

from .results import RESULTS, earlier_rows, write_result

LEVEL, WINDOW, BLOCK, START = 0.8, 20, 25, 0.3
PICTURE = Path(__file__).parent.parent / "docs" / "one_shot_rl.png"
Row = dict[str, object]
Score = Callable[[Mapping[str, float]], float]
"""Of one task and seed: a number from the values of several arms."""


def rollouts_to_level(success: Sequence[bool]) -> int | None:
    """The first rollout after which `LEVEL` of the last `WINDOW` had succeeded; None if that never was."""
    means = np.convolve(success, np.ones(WINDOW) / WINDOW, "valid") if len(success) >= WINDOW else np.zeros(0)
    reached = np.flatnonzero(means >= LEVEL - 1e-9)
    return int(reached[0]) + WINDOW if len(reached) else None


def row_of(cell: Cell) -> Row:
    """Everything about one finished cell."""
    logged = list(read_rollouts(arm_folder(cell.folder, cell.arm.name) / "rollouts.csv"))
    row: Row = {"task": cell.settings.task, "seed": cell.settings.seed, "arm": cell.arm.name}
    row["commit"] = json.loads((cell.folder / "config.json").read_text())["commit"]
    row |= {"final_success": read_evaluation(cell.folder, cell.arm.name), "rollouts": len(logged)}
    if not logged:
        return row
    true = [entry["true_success"] == "True" for entry in logged]
    said = [entry["success"] == "True" for entry in logged]
    row["rollouts_to_80"] = rollouts_to_level(true)
    row |= {f"success_{k + BLOCK}": float(np.mean(true[k : k + BLOCK])) for k in range(0, len(true), BLOCK)}
    if cell.arm.gold != "environment":
        row["false_successes"] = sum(s and not t for s, t in zip(said, true, strict=True))
        row["missed_successes"] = sum(t and not s for s, t in zip(said, true, strict=True))
    if cell.arm.answers:
        alone = [entry["attended"] == "False" for entry in logged]
        row["answers"] = sum(entry["answer"] != "" for entry in logged)
        row["unattended"] = sum(alone)
        row["unattended_true_successes"] = sum(t for t, a in zip(true, alone, strict=True) if a)
        row["retracted"] = sum(int(entry["retracted"]) for entry in logged)
    if cell.arm.potential != "none":
        decisions = sum(int(entry["length"]) for entry in logged)
        row["abstained"] = sum(int(entry["abstained"]) for entry in logged) / decisions
    spent = {name: sum(float(entry[name]) for entry in logged) for name in SECONDS}
    return row | {"minutes": round(sum(spent.values()) / 60, 2)} | {name: round(s, 1) for name, s in spent.items()}


class Table:
    """The finished cells' rows, and means over tasks and seeds with their bootstrap intervals."""

    def __init__(self, rows: Sequence[Row], rollouts: int) -> None:
        self.rollouts = rollouts
        self.cells: dict[tuple[str, int], dict[str, Row]] = {}
        for row in rows:
            self.cells.setdefault((str(row["task"]), int(str(row["seed"]))), {})[str(row["arm"])] = row

    def values(self, column: str, arms: Sequence[str]) -> dict[str, list[dict[str, float]]]:
        """By task, for each seed that has all of these arms: the column's number for each of them."""
        found: dict[str, list[dict[str, float]]] = {}
        for (task, _), cells in self.cells.items():
            if all(arm in cells for arm in arms):
                entry = {arm: float(str(self._filled(cells[arm], column))) for arm in arms}
                found.setdefault(task, []).append(entry)
        return found

    def _filled(self, row: Row, column: str) -> object:
        """The number, where one never got to the level all the rollouts it had."""
        return self.rollouts if column == "rollouts_to_80" and row[column] is None else row[column]

    def headline(self) -> list[str]:
        """Tasks whose cloned policy starts below `START`, over the seeds that are there."""
        starts = self.values("final_success", ["cloned"])
        return [task for task, seeds in starts.items() if np.mean([seed["cloned"] for seed in seeds]) < START]

    def mean(self, column: str, arm: str, tasks: Sequence[str]) -> Interval | None:
        """Of one arm over these tasks and their seeds; None without a finished cell."""
        found = {task: seeds for task, seeds in self.values(column, [arm]).items() if task in tasks}
        return bootstrap(found, lambda mean: mean[arm])

    def ratio(self, column: str, arm: str, other: str) -> Interval | None:
        """Mean of one arm over mean of another, on the tasks and seeds that have both."""
        return bootstrap(self.values(column, [arm, other]), lambda mean: mean[arm] / mean[other])

    def difference(self, column: str, arm: str, other: str) -> Interval | None:
        """Mean of one arm minus mean of another, on the tasks and seeds that have both."""
        return bootstrap(self.values(column, [arm, other]), lambda mean: mean[arm] - mean[other])


def bootstrap(
    found: Mapping[str, Sequence[Mapping[str, float]]], score: Score, *, resamples: int = 2000
) -> Interval | None:
    """`score` of the arms' means over tasks, each over its seeds; tasks are drawn again, and seeds within each."""
    if not found:
        return None
    rng, arms = np.random.default_rng(0), list(next(iter(found.values()))[0])
    tasks = [np.array([[seed[arm] for arm in arms] for seed in seeds]) for seeds in found.values()]

    def of(chosen: Sequence[np.ndarray]) -> float:
        return score(dict(zip(arms, np.mean([seeds.mean(0) for seeds in chosen], axis=0), strict=True)))

    drawn = [
        of(
            [
                t[rng.integers(len(t), size=len(t))]
                for t in (tasks[i] for i in rng.integers(len(tasks), size=len(tasks)))
            ]
        )
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(of(tasks), float(low), float(high))


def summarize(rows: Sequence[Row], rollouts: int) -> dict[str, float | Interval]:
    """The numbers the targets are about; what has no finished cell is left out."""
    table = Table(rows, rollouts)
    every, headline = list(dict.fromkeys(task for task, _ in table.cells)), table.headline()
    entries: dict[str, float | Interval | None] = {
        "final_success": table.mean("final_success", "grm", headline),
        "start_success": table.mean("final_success", "cloned", headline),
        "rollouts_to_80_vs_sparse": table.ratio("rollouts_to_80", "grm", "sparse"),
        "rollouts_to_80_vs_dense": table.ratio("rollouts_to_80", "grm", "dense"),
        "rollouts_to_80_vs_prover": table.ratio("rollouts_to_80", "grm", "prover"),
        "tasks_worse_than_sparse": worse_tasks(table, "grm", "sparse"),
        "no_env_reward_success": table.mean("final_success", "grm_only", headline),
        "features_success": table.mean("final_success", "grm_features", every),
        "false_success_rate": false_success_rate(rows, "grm_only"),
        "headline_tasks": float(len(headline)) if headline else None,
    }
    for arm in ABLATIONS:  # which stand on fewer tasks and seeds than the whole does: so on the same ones as that
        entries[f"{arm.name}.final_success_minus_grm"] = table.difference("final_success", arm.name, "grm")
        entries[f"{arm.name}.rollouts_to_80_vs_grm"] = table.ratio("rollouts_to_80", arm.name, "grm")
    for arm in ARMS:
        entries[f"{arm.name}.final_success"] = table.mean("final_success", arm.name, every)
        if not arm.learns:
            continue
        entries[f"{arm.name}.final_success_headline"] = table.mean("final_success", arm.name, headline)
        entries[f"{arm.name}.rollouts_to_80"] = table.mean("rollouts_to_80", arm.name, every)
        if arm.gold != "environment":
            entries[f"{arm.name}.false_success_rate"] = false_success_rate(rows, arm.name)
        if arm.answers:
            entries[f"{arm.name}.answers"] = table.mean("answers", arm.name, every)
        mine = [row for row in rows if row["arm"] == arm.name]
        if mine:
            never = [row["rollouts_to_80"] is None for row in mine]
            entries[f"{arm.name}.never_at_80"] = float(np.mean(never))
            entries[f"{arm.name}.minutes"] = float(np.mean([float(str(row["minutes"])) for row in mine]))
            entries[f"{arm.name}.minutes_at_most"] = max(float(str(row["minutes"])) for row in mine)
            for name in SECONDS:
                entries[f"{arm.name}.{name}"] = float(np.mean([float(str(row[name])) for row in mine]))
    return {key: entry for key, entry in entries.items() if entry is not None}


def worse_tasks(table: Table, arm: str, other: str) -> float | None:
    """Tasks on which the mean final success over the seeds that have both arms is lower, by whatever it is."""
    found = table.values("final_success", [arm, other])
    if not found:
        return None
    return float(sum(np.mean([s[arm] - s[other] for s in seeds]) < -1e-9 for seeds in found.values()))


def false_success_rate(rows: Sequence[Row], arm: str) -> Interval | None:
    """Of all rollouts of an arm, those it took for a success and the simulator did not."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["arm"] == arm:
            share = float(str(row["false_successes"])) / float(str(row["rollouts"]))
            found.setdefault(str(row["task"]), []).append({arm: share})
    return bootstrap(found, lambda mean: mean[arm])


def rows_of_file(path: Path) -> list[Row]:
    """Of a results file written before, its rows as `row_of` gives them."""
    rows = earlier_rows(path)
    for row in rows:
        if row["rollouts"]:
            row.setdefault("rollouts_to_80", None)
    return rows


def draw(table: Table, path: Path) -> None:
    """A panel per task, a line per main arm: success in blocks after the cloned policy's; mean over seeds."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    tasks = list(dict.fromkeys(task for task, _ in table.cells))
    shape = (2, (len(tasks) + 1) // 2)
    figure, axes = plt.subplots(*shape, figsize=(14, 6), sharex=True, sharey=True, squeeze=False, layout="constrained")
    drawn: dict[str, Line2D] = {}
    for axis, task in zip(axes.ravel(), tasks, strict=False):
        begin = [seed["cloned"] for seed in table.values("final_success", ["cloned"]).get(task, [])]
        for number, arm in enumerate(arm.name for arm in MAIN if arm.learns):
            ran = [row for (where, _), cells in table.cells.items() if where == task for row in [cells.get(arm)] if row]
            if not ran:
                continue
            ends = [
                end for end in range(BLOCK, table.rollouts + 1, BLOCK) if all(f"success_{end}" in row for row in ran)
            ]
            found = [[float(str(row[f"success_{end}"])) for row in ran] for end in ends]
            middle, means = [end - BLOCK / 2 for end in ends], [float(np.mean(seeds)) for seeds in found]
            if begin:
                middle, means = [0.0, *middle], [float(np.mean(begin)), *means]
            [drawn[arm]] = axis.plot(middle, means, f"C{number}.-")
        axis.set_title(task.removesuffix("-v3"))
    axes[0, 0].set_ylim(-0.02, 1.02)
    figure.supxlabel("rollouts; at 0 the cloned policy")
    figure.supylabel(f"success of {BLOCK} rollouts, exploring")
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=len(drawn), frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(cells: Sequence[Cell], rollouts: int, name: str, picture: Path, *, merge: bool) -> None:
    """Write the results of what is finished, and the picture; nothing before the first cell is."""
    finished = [cell for cell in cells if cell.finished]
    if not finished:
        print("no cell is finished yet: nothing to report")
        return
    rows = [row_of(cell) for cell in finished]
    if merge:
        here = {(row["task"], row["seed"], row["arm"]) for row in rows}
        earlier = rows_of_file(RESULTS / f"{name}.csv")
        rows = [row for row in earlier if (row["task"], row["seed"], row["arm"]) not in here] + rows
    began = json.loads((finished[0].folder / "config.json").read_text())
    summary = summarize(rows, rollouts)
    path = write_result(
        name,
        summary,
        seeds=sorted({int(str(row["seed"])) for row in rows}),
        rows=[{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        cells_done=len(rows),
        cells_planned=len(cells),
        commits_of_runs=sorted({str(row["commit"]) for row in rows}),
        rollouts=rollouts,
        inputs="simulator state, relative coordinates; arms named *_features see proprioception and view features",
        r_gold="the simulator's success; grm_only*: the GRM's success head; grm_only_asked*: where a person (here the "
        "simulator) stands by, the answer, elsewhere the head; classifier: a classifier",
        settings=began["settings"],
    )
    draw(Table(rows, rollouts), picture)
    for key, value in summary.items():
        shown = f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})" if isinstance(value, Interval) else value
        print(f"{key:36} {shown}")
    print(f"{len(rows)} of {len(cells)} cells; {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS])
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--evaluation-episodes", type=int, default=50)
    parser.add_argument("--model", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/one_shot_rl"))
    parser.add_argument("--report", action="store_true", help="write the results of what is finished, run nothing")
    parser.add_argument("--merge", action="store_true", help="keep rows of the results file that are not in --out")
    parser.add_argument("--name", default="one_shot_rl", help="of the results, for other tasks than the benchmark's")
    options = parser.parse_args()

    def grid(arms: Sequence[str]) -> Rl:
        return Rl(
            out=options.out,
            task=tuple(map(task_name, options.tasks)),
            arms=tuple(arms),
            seeds=tuple(options.seeds),
            rollouts=options.rollouts,
            evaluation_episodes=options.evaluation_episodes,
            model=options.model,
            jobs=options.jobs,
            resume=(options.out).is_dir(),
        )

    tiers = [[arm.name for arm in tier if arm.name in options.arms] for tier in (MAIN, FEATURES, ABLATIONS, GUIDED)]
    cells = [cell for tier in tiers if tier for cell in grid(tier).cells()]
    failure = None
    try:
        for tier in tiers:
            if tier and not options.report:
                try:
                    grid(tier).run()
                except GrmError as error:  # of some cells; the others are finished, and the next tier can be
                    failure = error
                    print(f"error: {error}")
    finally:  # Ctrl-C leaves a report of what is finished
        picture = PICTURE if options.name == "one_shot_rl" else options.out / "curves.png"
        report(cells, options.rollouts, options.name, picture, merge=options.merge)
    if failure is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
