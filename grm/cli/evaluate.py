"""`grm evaluate`: a checkpoint against the truth, on demonstrations, off them and where a learner went."""

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..data.episodes import Episode
from ..data.replay import read_replay
from ..data.stepwise import read_solutions
from ..errors import OutputError, TraceError
from ..evaluate import METRICS, Scored, by_task, pooled, score_all, score_reasoning, summarize
from ..metrics import Interval, expected_interval
from ..models.checkpoint import locate
from ..models.multiview import GRM, packaged_checkpoint
from .datasets import datasets
from .judges import load_judge
from .output import check_output, command_line, commit
from .terminal import console, progress_bar
from .text.models import Judging, load_text_judge


@dataclass(frozen=True)
class Evaluate:
    """Measure a GRM on labelled data sets: a table, evaluation.json, table.csv and plots.

    The first successful expert episode of each task is its demonstration: it gives the goal picture, and the model is
    adapted on it when asked. It is never evaluated. Episodes of behaviour `learner` count as visited states.
    """

    data: tuple[Path, ...]
    """LeRobotDataset folders with a `progress` column, or folders of such folders; and files of labelled reasoning
    steps (TRL, PRM800K, Math-Shepherd, ProcessBench, RLHFlow), each a task of its own in the same table."""
    out: Path
    """Folder of the results."""
    model: str = ""
    """Checkpoint to evaluate: a folder, a Hub id, or nothing for the packaged one."""
    judge: str = ""
    """Another model instead, which cannot be adapted: `lerobot:FOLDER` of a reward model, or `module:function`."""
    text_judge: str = ""
    """What judges reasoning steps: a checkpoint's folder or Hub id, or `arithmetic` (more: `grm text score`)."""
    adapt: int = 0
    """Gradient steps of adaptation on each task's demonstration; 0 judges every task with the model as it is."""
    stride: int = 1
    """Judge every n-th frame, and the last."""
    seed: int = 0
    """Of the adaptation, of the wrong goals and instructions that are asked, and of the intervals."""

    def run(self) -> None:
        """Find the demonstrations, judge everything else, write and print."""
        if self.adapt < 0 or self.stride < 1:
            raise TraceError(
                f"adapt is {self.adapt} and stride {self.stride}; expected at least 0 gradient steps, and 1 or more "
                f"frames per judgement"
            )
        if self.adapt and self.judge:
            raise TraceError(f"--adapt {self.adapt} with --judge {self.judge}; expected a GRM to adapt (--model)")
        files = [path for path in self.data if path.is_file() and path.suffix in (".jsonl", ".json")]
        folders = [path for path in self.data if path not in files]
        if files and not self.text_judge:
            raise TraceError(f"{files[0]} holds reasoning steps; expected --text-judge: a checkpoint, or arithmetic")
        model = load_judge(self.judge, self.model) if folders or not files else None
        solutions = {path.stem: list(read_solutions(path)) for path in files}
        text_judge = load_text_judge(Judging(judge=self.text_judge)) if files else None
        check_output(self.out)
        replay = list(read_replay(locate(self.model, packaged_checkpoint()))) if self.adapt else []
        suite = find_suite(datasets(folders))
        goals = {task: part.demonstration.frames[-1] for task, part in suite.items()}
        instructions = {task: part.demonstration.instruction for task, part in suite.items()}
        rng = np.random.default_rng(self.seed)
        scored: list[Scored] = []
        minutes: list[float] = []
        with progress_bar() as progress:
            count = sum(len(part) for part in [*suite.values(), *solutions.values()])
            bar = progress.add_task("evaluating", total=count + self.adapt * len(suite))
            for task, part in suite.items():
                assert model is not None, "loaded wherever there are folders"
                progress.update(bar, description=task)
                judge = model
                if self.adapt and isinstance(model, GRM):
                    began = time.perf_counter()
                    judge = self._adapted(model, part.demonstration, replay, lambda: progress.advance(bar))
                    minutes.append((time.perf_counter() - began) / 60)
                for episode in part.episodes():
                    [result] = score_all(
                        judge, [episode], goals, stride=self.stride, instructions=instructions, rng=rng
                    )
                    # Pictures are not needed again, and those of a thousand episodes do not fit in memory.
                    scored.append(replace(result, episode=replace(episode, views={})))
                    progress.advance(bar)
            for task, texts in solutions.items():
                assert text_judge is not None, "loaded wherever there are files"
                progress.update(bar, description=task)
                scored += score_reasoning(text_judge, texts, task=task, after_each=lambda: progress.advance(bar))
        tasks = by_task(scored)
        # A mean over tasks is of one kind: of the robots' where there are any, and all tasks stand side by side below.
        measured = [item for item in scored if isinstance(item.episode, Episode)] or scored
        summary = summarize(by_task(measured), measured, seed=self.seed)
        if minutes:
            summary["adapt_minutes"] = expected_interval(minutes, np.random.default_rng(self.seed))
        about = {
            "command": command_line(self),
            "commit": commit(),
            "seed": self.seed,
            "model": self.judge or self.model or ("packaged" if folders else ""),
            "text_judge": self.text_judge,
            "demonstrations": {task: str(part.source) for task, part in suite.items()},
        }
        self._write(about, summary, tasks, scored, measured)
        console.print(summary_table(summary, measured))
        if files:
            console.print(task_table(tasks))
        console.print(
            f"wrote evaluation.json, table.csv and plots to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True
        )

    def _adapted(
        self, model: GRM, demonstration: Episode, replay: Sequence[Episode], after_step: Callable[[], None]
    ) -> GRM:
        from ..train import adapt

        return adapt(
            model, demonstration, replay, steps=self.adapt, seed=self.seed, after_step=lambda trainer: after_step()
        )

    def _write(
        self,
        about: dict[str, object],
        summary: dict[str, Interval],
        tasks: dict[str, dict[str, float]],
        scored: Sequence[Scored],
        measured: Sequence[Scored],
    ) -> None:
        from ..report.evaluation import write_plots

        everything = pooled(measured)
        counts = {task: _counts([item for item in scored if item.episode.task == task]) for task in tasks}
        content = {
            **about,
            "summary": {name: _rounded(interval._asdict()) for name, interval in summary.items()},
            "pooled": _counts(measured) | _rounded(everything),
            "tasks": {task: counts[task] | _rounded(metrics) for task, metrics in tasks.items()},
        }
        rows = [{"task": task, **counts[task], **_rounded(metrics)} for task, metrics in tasks.items()]
        rows.append({"task": "pooled", **_counts(measured), **_rounded(everything)})
        fields = ["task", *_counts(scored), *(name for name in METRICS if any(name in row for row in rows))]
        try:
            (self.out / "evaluation.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
            with (self.out / "table.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fields, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise OutputError(
                f"the results cannot be written to {self.out} ({error.strerror}); choose another output folder"
            ) from error
        write_plots(scored, self.out)


@dataclass(frozen=True)
class Source:
    """One episode of one data set."""

    root: Path
    index: int

    def __str__(self) -> str:
        return f"{self.root}#{self.index}"


@dataclass(frozen=True)
class TaskSuite:
    """What one task is evaluated on."""

    source: Source
    """Where the demonstration is."""
    demonstration: Episode
    others: tuple[Source, ...]
    """All other episodes of the task."""

    def __len__(self) -> int:
        return len(self.others)

    def episodes(self) -> Iterator[Episode]:
        """The episodes to evaluate, one in memory at a time."""
        from ..data.lerobot import read_episodes

        for root in dict.fromkeys(source.root for source in self.others):
            yield from read_episodes(root, [source.index for source in self.others if source.root == root])


def find_suite(folders: Sequence[Path]) -> dict[str, TaskSuite]:
    """Demonstration and other episodes of each task in these data sets, found without decoding a video.

    Raises `TraceError` for a task without a demonstration or without other episodes, and for a data set whose other
    episodes nobody labelled.
    """
    from ..data.lerobot import read_episodes

    demonstrations: dict[str, Source] = {}
    found: dict[str, list[Source]] = {}
    labelled: dict[Source, bool] = {}
    for folder in {path.resolve(): path for path in folders}.values():
        for index, episode in enumerate(read_episodes(folder, views=[])):
            source = Source(folder, index)
            if episode.behaviour == "expert" and episode.succeeded:
                demonstrations.setdefault(episode.task, source)
            found.setdefault(episode.task, []).append(source)
            labelled[source] = not np.isnan(episode.progress).all()
    suite = {}
    for task, sources in found.items():
        where = sources[0].root
        if task not in demonstrations:
            raise TraceError(
                f"{where} has no successful expert episode of {task!r} and no other data set here has one; expected "
                f"one as demonstration and goal picture: record it with `grm collect --task {task} --episodes 1`"
            )
        others = tuple(source for source in sources if source != demonstrations[task])
        if not others:
            raise TraceError(
                f"{where} has only the demonstration of {task!r}; expected other episodes of it to evaluate on: "
                f"record them with `grm collect --episodes 5 --off-demonstration 10`"
            )
        for root in dict.fromkeys(source.root for source in others):
            if not any(labelled[source] for source in others if source.root == root):
                raise TraceError(
                    f"no episode of {task!r} in {root} is labelled; expected a `progress` column that says how far "
                    f"each frame is, as `grm collect` writes it"
                )
        first = demonstrations[task]
        [demonstration] = read_episodes(first.root, [first.index])
        suite[task] = TaskSuite(source=first, demonstration=demonstration, others=others)
    return suite


def summary_table(summary: dict[str, Interval], scored: Sequence[Scored]) -> Table:
    """Every metric of the summary with its interval."""
    counts = _counts(scored)
    title = f"{counts['episodes']} episodes of {len({item.episode.task for item in scored})} task(s)"
    table = Table("metric", "mean over tasks", "95 % interval", title=title)
    for name, interval in summary.items():
        pooled_ones = " (pooled)" if name.startswith("tpr_") else ""
        table.add_row(name + pooled_ones, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    table.caption = f"{counts['failed_episodes']} episodes fail, {counts['visited_episodes']} are a learner's"
    return table


def task_table(tasks: dict[str, dict[str, float]]) -> Table:
    """Every metric of every task, robots' and reasoning side by side; a dash where it is not defined."""
    table = Table("metric", *tasks, title="by task")
    for name in METRICS:
        if any(name in metrics for metrics in tasks.values()):
            table.add_row(name, *(f"{m[name]:.3f}" if name in m else "–" for m in tasks.values()))
    return table


def _counts(scored: Sequence[Scored]) -> dict[str, int]:
    """What the numbers rest on."""
    return {
        "episodes": len(scored),
        "frames": sum(len(item.potential) for item in scored),
        "demonstrations": sum(item.demonstration for item in scored),
        "visited_episodes": sum(item.visited for item in scored),
        "failed_episodes": sum(not item.episode.succeeded for item in scored),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
