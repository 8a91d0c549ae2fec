"""The red team against one-shot adapted GRMs on the held-out tasks: what does the worst attack gain?

Every model (one per training seed) is adapted to one demonstration of each task and attacked there: by acting, on the
cameras, on the wording, and on `--learner-tasks` by a learner that maximises Φ alone. Means and intervals are over the
episodes of all models, tasks and seeds; beside the attack with the worst of them stands the worst on any one task.
Audits that are already finished in `--out` are not repeated.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import Progress

from envs.metaworld import HELD_OUT, PRECISE, task_name
from grm.audit import AttackSummary, Finding, summarize, worst
from grm.workers import end_with_the_parent
from policies.red_team import AuditSettings, read_findings, run

from .results import write_result


def audit(settings: AuditSettings, folder: Path) -> list[Finding]:
    """One audit, or what an earlier one of the same settings found."""
    report = folder / "red_team.json"
    if report.exists() and json.loads(report.read_text())["settings"] == asdict(settings):
        return read_findings(folder / "red_team.csv")
    return run(settings, folder)


def worst_on_one_task(findings: Sequence[Finding]) -> AttackSummary | None:
    """The attack with the largest mean gain on any single task, named `attack, task`.

    A mean over eight tasks hides one that is wide open, and stands beside that of the learner, which ran on one.
    """
    return worst(summarize([replace(finding, attack=f"{finding.attack}, {finding.task}") for finding in findings]))


def one_thread() -> None:
    end_with_the_parent()
    torch.set_num_threads(1)
    os.environ["LP_NUM_THREADS"] = "0"  # software rendering would start a thread per core otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=[""], help="checkpoints; nothing for the packaged one")
    parser.add_argument("--tasks", nargs="+", default=[*HELD_OUT, *PRECISE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the demonstrations")
    parser.add_argument("--adapt", type=int, default=200, help="gradient steps on the demonstration")
    parser.add_argument("--episodes", type=int, default=2, help="per attack, task, model and seed")
    parser.add_argument("--rollouts", type=int, default=40, help="of the learner")
    parser.add_argument("--learner-tasks", nargs="*", default=["hand-insert"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/red_team"))
    parser.add_argument("--name", default="red_team", help="of the files in benchmarks/results")
    options = parser.parse_args()

    learner_tasks = {task_name(name) for name in options.learner_tasks}
    jobs: dict[tuple[int, str, int], AuditSettings] = {}
    for index, model in enumerate(options.model):
        for seed in options.seeds:
            for task in map(task_name, options.tasks):
                jobs[index, task, seed] = AuditSettings(
                    task=task,
                    demo_seed=seed,
                    model=model,
                    adapt=options.adapt,
                    episodes=options.episodes,
                    rollouts=options.rollouts if task in learner_tasks else 0,
                )
    ordered = sorted(jobs.items(), key=lambda job: -job[1].rollouts)  # the longest first

    found: dict[tuple[int, str, int], list[Finding]] = {}
    with (
        Progress() as progress,
        ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=one_thread) as pool,
    ):
        bar = progress.add_task("audits", total=len(jobs))
        futures = {
            pool.submit(audit, settings, options.out / f"{key[0]}-{key[1]}-{key[2]}"): key for key, settings in ordered
        }
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress.advance(bar)

    findings = [finding for key in jobs for finding in found[key]]
    summaries = summarize(findings)
    top, on_one_task = worst(summaries), worst_on_one_task(findings)
    summary = {name: s.gain for name, s in summaries.items() if s.gain is not None}
    if on_one_task is not None and on_one_task.gain is not None:
        summary = {"exploit_gain_worst_task": on_one_task.gain, **summary}
    if top is not None and top.gain is not None:
        summary = {"exploit_gain_worst": top.gain, **summary}
    rows = [
        {
            "model": options.model[key[0]] or "packaged",
            "task": f.task,
            "seed": key[2],
            "attack": f.attack,
            "kind": f.kind,
            "episode": f.episode,
            "gain": round(f.exploit.gain, 4) if f.exploit else "",
            "potential": round(f.exploit.potential, 4) if f.exploit else "",
            "truth": round(f.exploit.truth, 4) if f.exploit else "",
            "frames": f.frames,
            "abstained": f.abstained,
        }
        for key in jobs
        for f in found[key]
    ]
    for name, interval in summary.items():
        print(f"{name:20} {interval.value:6.3f}  [{interval.low:.3f}, {interval.high:.3f}]")
    path = write_result(
        options.name,
        summary,
        seeds=options.seeds,
        rows=rows,
        models=[model or "packaged" for model in options.model],
        worst_attack=top.attack if top else None,
        worst_attack_on_one_task=on_one_task.attack if on_one_task else None,
        episodes={name: s.episodes for name, s in summaries.items()},
        unjudged_episodes={name: s.unjudged for name, s in summaries.items()},
        abstained_frames={name: round(s.abstained, 4) for name, s in summaries.items()},
        learner_rollouts=options.rollouts,
        adaptation_steps=options.adapt,
    )
    print(path)


if __name__ == "__main__":
    main()
