"""`grm text score`: what a judge says of every step of solutions in files; numbers, and a page."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from ...data.journal import Journal, fingerprint
from ...data.stepwise import Format, LabelledSolution, Neutral
from ...errors import TraceError
from ...reward import Judge, ScoredJudgement, Thought
from ..output import command_line, commit
from ..terminal import console, progress_bar
from .files import begin, complain, interrupted, read_files, write_json, write_lines
from .models import Judging, load_text_judge, spent

NAMES = {
    "solutions": "solutions",
    "steps": "steps",
    "steps_abstained": "steps without a score (abstained)",
    "solutions_without_aggregate": "solutions without an aggregate (abstained)",
    "critiques": "critiques",
    "critiques_invalid": "critiques that could not be read",
    "critiques_surplus": "critiques of steps that do not exist",
    "first_error_f1": "F1 of the first error (ProcessBench)",
    "accuracy_on_wrong": "… accuracy on wrong solutions",
    "accuracy_on_right": "… accuracy on right solutions",
    "solutions_unread": "… solutions of which it cannot say",
    "whole_solution_f1": "F1 of whole solutions (ThinkPRM)",
}
"""What the numbers of a summary are called."""


@dataclass(frozen=True, kw_only=True)
class TextScore(Judging):
    """Score the steps of solutions in TRL, PRM800K, Math-Shepherd, ProcessBench or RLHFlow format, or without labels.

    Writes scores.jsonl, summary.json and index.html, the solutions worst first. A step that the judge abstained on has
    no score anywhere. Ctrl-C loses nothing: --resume goes on.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Files of JSON lines."""
    out: Path
    """Folder of the results."""
    format: Format | None = None
    """Of the files; by default each record says by its names which it is."""
    neutral: Neutral = "right"
    """What PRM800K's neutral rating is taken for."""
    aggregate: Literal["auto", "last", "minimum", "product", "mean"] = "auto"
    """One number per solution; auto is product of correctness, minimum of verdicts, last of values."""
    threshold: float = 0.5
    """A step whose score is below it is an error."""
    batch: int = 16
    """Solutions judged at once, and at most lost by an interruption."""
    resume: bool = False
    """Go on with what an interrupted run left in `out`."""

    def run(self) -> None:
        """Judge what is not judged yet, write everything; exit status 1 if something was left out."""
        from ...report.text import write_text_page
        from ...text.scoring import summary, to_record

        if not 0 <= self.threshold <= 1 or self.batch < 1:
            raise TraceError(f"threshold {self.threshold}, batch {self.batch}; expected one in [0, 1], and at least 1")
        solutions, broken = read_files(self.data, self.format, self.neutral)
        judge = load_text_judge(self, self.out / "answers.jsonl")
        begin(self, self.out, resume=self.resume)
        journal = Journal(self.out / "judgements.jsonl")
        judgements = judge_resumably(judge, solutions, journal, batch=self.batch, broken=broken)
        scored = [self._sum_up(one, judgement) for one, judgement in judgements]
        if not scored:
            raise broken[0]
        found = summary(scored, threshold=self.threshold)
        cost = spent(judge)
        write_lines(self.out / "scores.jsonl", [to_record(one) for one in scored])
        kind, aggregator = scored[0].judgement.kind.value, scored[0].aggregator
        about = {"judge": self.judge, "method": self.method, "kind": kind, "aggregator": aggregator}
        write_json(
            self.out / "summary.json",
            {
                "command": command_line(self),
                "commit": commit(),
                **about,
                "threshold": self.threshold,
                "summary": found,
                "left_out": [str(error) for error in broken],
            },
        )
        rows = [(NAMES[name], value) for name, value in found.items()]
        write_text_page(
            self.out / "index.html",
            scored,
            title=f"{len(scored)} solutions, step by step",
            command=command_line(self),
            threshold=self.threshold,
            numbers=rows,
            settings={**about, "commit": commit()},
            notes=[f"Left out: {error}" for error in broken],
        )
        console.print(numbers_table(rows, title=f"{self.judge}: {kind}, {aggregator}"))
        if cost:
            console.print(cost, highlight=False)
        complain(broken)
        console.print(
            f"wrote scores.jsonl, summary.json and index.html to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True
        )
        if broken:
            sys.exit(1)

    def _sum_up(self, solution: LabelledSolution, judgement: ScoredJudgement):
        from ...text.scoring import sum_up

        name = None if self.aggregate == "auto" else self.aggregate
        return sum_up(solution, judgement, aggregator=name, threshold=self.threshold)


def judge_resumably(
    judge: Judge[Thought],
    solutions: Sequence[LabelledSolution],
    journal: Journal,
    *,
    batch: int,
    broken: list[TraceError],
) -> Iterator[tuple[LabelledSolution, ScoredJudgement]]:
    """Judge solutions in batches with a progress bar, each kept in the journal; those that cannot be are `broken`.

    Ends the program, with everything kept, if it is interrupted.
    """
    from ...text.scoring import from_entry, judge_all, to_entry

    done = 0
    with progress_bar() as progress:
        bar = progress.add_task("judging", total=len(solutions))
        try:
            for at in range(0, len(solutions), batch):
                group = solutions[at : at + batch]
                keys = [fingerprint({"problem": one.prompt, "steps": one.steps}) for one in group]
                missing = {key: one for key, one in zip(keys, group, strict=True) if key not in journal}
                for key, judgement in judge_or_leave_out(judge_all, judge, missing, broken):
                    journal.append(key, to_entry(judgement))
                for key, one in zip(keys, group, strict=True):
                    entry = journal.get(key)
                    if entry is not None:
                        yield one, from_entry(entry)
                done += len(group)
                progress.advance(bar, len(group))
        except KeyboardInterrupt:
            progress.stop()
            interrupted(done, len(solutions), "solutions")


def numbers_table(rows: Sequence[tuple[str, float]], *, title: str) -> Table:
    """Counts as counts and shares as shares."""
    table = Table("", "", title=escape(title), show_header=False)
    for name, value in rows:
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
    return table


def judge_or_leave_out(judge_all, judge, missing, broken):
    """Judgements by key; where a batch is refused each is asked alone, so that only the bad ones are left out."""
    questions = [(one.prompt, one.steps) for one in missing.values()]
    try:
        yield from zip(missing, judge_all(judge, questions) if questions else [], strict=True)
        return
    except TraceError as error:
        if len(missing) == 1:
            [one] = missing.values()
            broken.append(TraceError(f"{one.source or repr(one.prompt[:40])}: {error}"))
            return
    for key, one in missing.items():
        yield from judge_or_leave_out(judge_all, judge, {key: one}, broken)
