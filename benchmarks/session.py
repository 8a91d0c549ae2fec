"""A session on the simulated robot, in real time: how well the rate is kept, how soon Φ comes, how soon it learns.

    python -m benchmarks.session --parts timing success interventions

Every part leaves its sessions in --runs, goes on from there, and may be measured alone; the numbers of all parts that
are there go into one result. `timing` runs the same loop twice, with the first seed: beside a learner that does
nothing, then beside one that judges and learns. `success` counts successes of the deterministic policy after 150
rollouts from pictures and proprioception. In `interventions` the scripted expert takes over in the first 20 rollouts,
where the task is not done after a second; the ratio is of rollouts until 18 of the last 20 succeeded, which a helped
rollout never counts as. `--film docs/session.mp4` films the page of that part (needs Chromium).
"""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from grm.cli.mind import MakeMind, MakePolicy
from grm.cli.session import Session as Command
from grm.metrics import Interval, expected_interval
from grm.reward import Frame, Judgement, ProcessReward, Task
from robot_io.replay import read_lines
from robot_io.session import Session

from .film import filmed
from .results import RESULTS, write_result

TASK = "door-unlock"
INSTRUCTION = "unlock the door"
ROLLOUTS = 150
HELPED = 20
Part = Literal["timing", "success", "interventions"]


class Nothing(ProcessReward[Frame, None]):
    """Abstains, at no cost."""

    def start(self, task: Task) -> None:
        return None

    def extend(self, carries: Sequence[None], steps: Sequence[Sequence[Frame]]) -> tuple[list[None], list[Judgement]]:
        nan = [np.full(len(frames), np.nan) for frames in steps]
        return list(carries), [Judgement(potential=x, spread=x, judged=~np.isnan(x)) for x in nan]


@dataclass(frozen=True)
class MakeIdle:
    """A mind that has a policy, and neither judges nor learns."""

    make: MakeMind

    def __call__(self, checkpoint: Path | None, report: Callable[[str], None]) -> Any:
        mind: Any = self.make(checkpoint, report)
        mind.model = Nothing()
        mind.observe = lambda state, carry: state
        mind.learn = lambda attempt, observations, judgement, between: None
        return mind


def command(runs: Path, name: str, seed: int, **settings: Any) -> Command:
    folder = runs / f"{name}-{seed}"
    return Command(
        out=folder,
        robot=("type=grm_sim", f"task={TASK}", "id=sim"),
        demo=runs / f"demonstration-{seed}" / "episodes",
        grm=runs / f"grm-{seed}" if name != "grm" else None,
        success="environment",
        seed=seed,
        resume=True,
        **settings,
    )


def run(command: Command, *, idle: bool = False, minutes: float | None = None, film: Path | None = None) -> None:
    """A session to its end, or ended after so many minutes."""
    robot, learner = command.sides()
    make: Any = command.make_mind() if learner is not None else None
    session = Session(
        robot=robot,
        learner=learner,
        make_policy=MakePolicy(instruction=INSTRUCTION),
        make_mind=MakeIdle(make) if idle else make,
        preload=("grm.cli.mind", "policies.offpolicy"),
    )
    if minutes is not None:
        end = threading.Timer(60 * minutes, session.interrupt)
        end.daemon = True
        end.start()
    with filmed(session, film) if film is not None else nullcontext():
        session.run()


def prepare(runs: Path, seed: int) -> None:
    """One demonstration by the expert, and the GRM adapted to it."""
    shown = runs / f"demonstration-{seed}"
    demonstrate = replace(
        command(runs, "demonstration", seed),
        demo=None,
        instruction=INSTRUCTION,
        teleop=("type=grm_sim_expert", "robot_id=sim"),
        demonstrate=1,
        out=shown,
    )
    if not read_lines(shown / "episodes"):
        run(demonstrate)
    adapted = runs / f"grm-{seed}"
    if not (adapted / "config.json").exists():
        first = replace(command(runs, "first", seed), grm=None, out=runs / f"adapting-{seed}")
        first.make_mind().judge(print)
        (runs / f"adapting-{seed}" / "grm").replace(adapted)


def timing_of(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Periods and latencies in milliseconds, and how many steps came too late."""
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    periods = np.concatenate([line["periods_ms"] for line in lines])
    latencies = np.concatenate([line["latencies_ms"] for line in lines])
    return periods, latencies, sum(line["overruns"] for line in lines)


def jitter_p99(periods: np.ndarray, rate_hz: float = 20.0) -> float:
    return float(np.percentile(np.abs(periods - 1000 / rate_hz), 99))


def rollouts_to(lines: list[dict[str, Any]], share: float = 0.9, window: int = 20) -> int | None:
    """Rollouts until so many of the last 20 succeeded without help."""
    success = [line["success"] and not line["interventions"] for line in lines if line["behaviour"] == "rollout"]
    for end in range(window, len(success) + 1):
        if np.mean(success[end - window : end]) >= share:
            return end
    return None


def main(
    parts: tuple[Part, ...] = ("timing", "success", "interventions"),
    runs: Path = Path("runs/session"),
    seeds: tuple[int, ...] = (0,),
    minutes: float = 30.0,
    rollouts: int = ROLLOUTS,
    evaluations: int = 50,
    film: Path | None = None,
) -> None:
    """Measure the parts named, and write what all parts found."""
    runs.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        prepare(runs, seed)
        if "timing" in parts and seed == seeds[0]:
            for name, length in (("idle", minutes / 3), ("learning", minutes)):
                timed(command(runs, name, seed), length, idle=name == "idle")
        if "success" in parts:
            run(command(runs, "success", seed, rollouts=rollouts, evaluate_every=rollouts, evaluations=evaluations))
        if "interventions" in parts:
            helper = ("type=grm_sim_expert", "robot_id=sim", f"helps={HELPED + 1}", "helps_after=20")
            run(command(runs, "interventions", seed, rollouts=rollouts, teleop=helper), film=film)
    summary, rows = collect(runs, seeds)
    print(write_result("session", summary, seeds=seeds, rows=rows).read_text())


def timed(settings: Command, minutes: float, *, idle: bool) -> None:
    """One session of so many minutes; not again once it is there."""
    finished = settings.out / "finished"
    if not finished.exists():
        shutil.rmtree(settings.out, ignore_errors=True)
        run(settings, idle=idle, minutes=minutes)
        finished.touch()


def collect(runs: Path, seeds: Sequence[int]) -> tuple[dict[str, float | Interval], list[dict[str, object]]]:
    summary: dict[str, float | Interval] = {}
    rows: list[dict[str, object]] = []
    learning = runs / f"learning-{seeds[0]}"
    if (learning / "timing.jsonl").exists():
        idle, _, _ = timing_of(runs / f"idle-{seeds[0]}")
        periods, latencies, overruns = timing_of(learning)
        frames = len(periods) + len(read_lines(learning / "episodes"))
        summary |= {
            "jitter_ms_p99": jitter_p99(periods) - jitter_p99(idle),
            "jitter_ms_p99_learning": jitter_p99(periods),
            "jitter_ms_p99_idle": jitter_p99(idle),
            "overrun_rate": overruns / len(periods),
            "driven_minutes": float(periods.sum() / 60_000),
            "frame_to_phi_ms_p50": float(np.percentile(latencies, 50)),
            "frame_to_phi_ms_p99": float(np.percentile(latencies, 99)),
            "frames_judged_in_time": len(latencies) / frames,
        }
    reached: dict[str, list[float]] = {}
    tested: list[float] = []
    for name in ("success", "interventions"):
        for seed in seeds:
            lines = read_lines(runs / f"{name}-{seed}" / "episodes")
            if not lines:
                continue
            evaluated = [line["success"] for line in lines if line["behaviour"] == "evaluation"]
            if evaluated:
                tested.append(float(np.mean(evaluated)))
            count = sum(line["behaviour"] == "rollout" for line in lines)
            reached.setdefault(name, []).append(rollouts_to(lines) or np.inf)
            kept = ("behaviour", "success", "length", "interventions")
            rows += [
                {"part": name, "seed": seed, "episode": k, **{key: line[key] for key in kept}}
                for k, line in enumerate(lines)
            ]
            summary[f"{name}_rollouts_{seed}"] = count
    if tested:
        summary["success_150"] = expected_interval(tested, np.random.default_rng(0))
    for name, values in reached.items():
        if np.isfinite(values).all():
            summary[f"rollouts_to_90_{name}"] = expected_interval(values, np.random.default_rng(0))
    if len(reached) == 2 and np.isfinite([*reached["success"], *reached["interventions"]]).all():
        summary["intervention_ratio"] = float(np.mean(reached["interventions"]) / np.mean(reached["success"]))
    faults = RESULTS / "faults.json"
    if faults.exists():  # measured by benchmarks.faults
        survived = json.loads(faults.read_text())["summary"]
        summary |= {key: survived[key] for key in ("episodes_lost", "actions_beyond_limits")}
    return summary, rows


if __name__ == "__main__":
    tyro.cli(main)
