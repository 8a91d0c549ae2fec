"""`grm text bench`: how good a judge is on solutions in files, how fast, and what it computes."""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from ...data.stepwise import Format, LabelledSolution, Neutral
from ...errors import TraceError
from ...reward import ProcessReward, Task, Thought
from ...text.language import Metered, Usage
from ..output import command_line, commit
from ..terminal import console, progress_bar
from .files import begin, complain, read_files, write_json
from .models import ENDPOINT, Judging, load_text_judge
from .score import NAMES, judge_or_leave_out, numbers_table

if TYPE_CHECKING:
    from ...text.scoring import ScoredSolution


@dataclass(frozen=True, kw_only=True)
class TextBench(Judging):
    """Measure a judge on solutions such as ProcessBench's: F1 of the first error where there are labels, solutions and
    tokens per second, passes per solution, and what a step costs that comes alone, as it does live and in a search.

    Writes summary.json. Times are of this machine, the tokens are not.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Files of JSON lines."""
    out: Path
    """Folder of the result."""
    format: Format | None = None
    """Of the files; by default each record says by its names which it is."""
    neutral: Neutral = "right"
    """What PRM800K's neutral rating is taken for."""
    threshold: float = 0.5
    """A step whose score is below it is an error."""
    batch: int = 64
    """Solutions judged at once."""
    rounds: int = 3
    """Passes that are timed, after one that is not; the median counts. An endpoint is asked once, and never live."""

    def run(self) -> None:
        """Judge, time, write; exit status 1 if something was left out."""
        from ...text.scoring import judge_all, sum_up, summary

        if not 0 <= self.threshold <= 1 or self.batch < 1 or self.rounds < 1:
            raise TraceError(
                f"threshold {self.threshold}, batch {self.batch}, rounds {self.rounds}; expected one in [0, 1], and at "
                f"least 1 of the others"
            )
        solutions, broken = read_files(self.data, self.format, self.neutral)
        judge = load_text_judge(self)
        begin(self, self.out, resume=False)
        paid = self.judge.startswith(ENDPOINT)
        scored: list[ScoredSolution] = []
        with progress_bar() as progress:
            bar = progress.add_task("judging", total=1 if paid else 2 + self.rounds)
            before, start = _usage(judge), time.perf_counter()
            for group in _batches(solutions, self.batch):
                for i, judgement in judge_or_leave_out(judge_all, judge, dict(enumerate(group)), broken):
                    scored.append(sum_up(group[i], judgement, threshold=self.threshold))
            seconds = [time.perf_counter() - start]
            spent = _since(before, judge)
            progress.advance(bar)
            if not scored:
                raise broken[0]
            kept = [one.solution for one in scored]
            numbers: dict[str, float] = {}
            if not paid:
                seconds.clear()
                for _ in range(self.rounds):
                    start = time.perf_counter()
                    for group in _batches(kept, self.batch):
                        judge_all(judge, [(one.prompt, one.steps) for one in group])
                    seconds.append(time.perf_counter() - start)
                    progress.advance(bar)
                if isinstance(judge, ProcessReward):
                    numbers = _live(judge, kept[: self.batch])
                progress.advance(bar)
        elapsed = statistics.median(seconds)
        numbers = {
            "solutions per second": len(kept) / elapsed,
            "steps per second": sum(len(one.steps) for one in kept) / elapsed,
        } | numbers
        if spent != Usage():
            numbers |= {
                "passes per solution": spent.calls / len(kept),
                "tokens read per solution": spent.prompt_tokens / len(kept),
                "tokens written per solution": spent.completion_tokens / len(kept),
                "tokens per second": (spent.prompt_tokens + spent.completion_tokens) / elapsed,
            }
        found = summary(scored, threshold=self.threshold)
        kind = scored[0].judgement.kind.value
        write_json(
            self.out / "summary.json",
            {
                "command": command_line(self),
                "commit": commit(),
                "judge": self.judge,
                "method": self.method,
                "kind": kind,
                "threshold": self.threshold,
                "summary": found,
                "speed": {name: round(value, 6) for name, value in numbers.items()},
                "left_out": [str(error) for error in broken],
            },
        )
        rows = [(NAMES[name], value) for name, value in found.items()] + list(numbers.items())
        console.print(numbers_table(rows, title=f"{self.judge}: {kind}"))
        complain(broken)
        console.print(f"wrote summary.json to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)
        if broken:
            sys.exit(1)


def _live(judge: ProcessReward[Thought, Any], solutions: Sequence[LabelledSolution]) -> dict[str, float]:
    """Each solution step by step, as a search or a reader who waits asks for it."""
    before, delays_ms = _usage(judge), list[float]()
    for one in solutions:
        carry = judge.start(Task(instruction=one.prompt))
        for step in one.steps:
            start = time.perf_counter()
            [carry], _ = judge.extend([carry], [[Thought(text=step)]])
            delays_ms.append(1000 * (time.perf_counter() - start))
    found = {"milliseconds per step, live, at the median": statistics.median(delays_ms)}
    live, before = _since(before, judge), _usage(judge)
    judge.judge_all([(Task(instruction=one.prompt), [Thought(text=s) for s in one.steps]) for one in solutions])
    if whole := _since(before, judge).prompt_tokens:
        found["tokens read step by step / tokens read at once"] = live.prompt_tokens / whole
    return found


def _batches(solutions: Sequence[LabelledSolution], size: int) -> Iterator[Sequence[LabelledSolution]]:
    for at in range(0, len(solutions), size):
        yield solutions[at : at + size]


def _usage(judge: object) -> Usage:
    """Now; what does not count has counted nothing."""
    now = judge.usage if isinstance(judge, Metered) else Usage()
    return Usage(calls=now.calls, prompt_tokens=now.prompt_tokens, completion_tokens=now.completion_tokens)


def _since(before: Usage, judge: object) -> Usage:
    now = _usage(judge)
    return Usage(
        calls=now.calls - before.calls,
        prompt_tokens=now.prompt_tokens - before.prompt_tokens,
        completion_tokens=now.completion_tokens - before.completion_tokens,
    )
