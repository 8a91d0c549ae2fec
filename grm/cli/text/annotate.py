"""`grm text annotate`: step labels without people, resumable at the item."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape

from ...data.journal import Journal
from ...data.stepwise import (
    Format,
    LabelledSolution,
    Neutral,
    harden,
    labelled_part,
    read_solutions,
    to_math_shepherd,
    to_prm800k,
    to_process_bench,
    to_rlhflow,
    to_trl,
)
from ...errors import TraceError
from ...text.language import LanguageModel, Metered, Usage
from ..output import command_line, commit
from ..terminal import console, progress_bar
from .files import begin, complain, interrupted, read_files, unescape, write_json, write_lines
from .models import Judging, load_language_model, load_text_judge
from .score import numbers_table

PROMPT = (
    "Solve the problem step by step, a blank line after each step. End with: The answer is: ...\\n\\n"
    "Problem: {problem}\\n\\nSolution:\\n\\n"
)
_WRITERS = {
    "trl": to_trl,
    "prm800k": to_prm800k,
    "math-shepherd": to_math_shepherd,
    "process-bench": to_process_bench,
    "rlhflow": to_rlhflow,
}

type Label = Callable[[LabelledSolution], LabelledSolution]


@dataclass(frozen=True, kw_only=True)
class TextAnnotate(Judging):
    """Label the steps of solutions by rollouts, by a judge, by both where they agree, or against a reference solution.

    Writes labels.jsonl and summary.json. Every label is on disk before the next is begun: after Ctrl-C, or when an
    endpoint gave up, --resume goes on and pays for nothing twice.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Files of solutions in any format, labelled or not; rollouts need the `answer` to each problem."""
    out: Path
    """Folder of the results."""
    how: Literal["monte-carlo", "judge", "consensus", "spare"] = "monte-carlo"
    """monte-carlo: soft labels, the share of rollouts of `--model` that arrive. judge: decisions of `--judge` up to its
    first error. consensus: what both agree on. spare: `--model` grades against `--references`."""
    model: str = ""
    """Language model that completes or grades: a folder, a Hub id, or `endpoint:NAME`."""
    rollouts: int = 8
    """Of each prefix."""
    temperature: float = 1.0
    """Of the rollouts."""
    max_tokens: int = 1024
    """Of one rollout, or of the grades."""
    prompt: str = PROMPT
    r"""Before the steps of a prefix; {problem} is the problem, `\n` a line break."""
    separator: str = "\\n\\n"
    r"""After each step of a prefix."""
    references: Path | None = None
    """File of reference solutions, by their problems (spare)."""
    threshold: float = 0.5
    """A step whose score is below it is an error (judge)."""
    to: Literal["trl", "prm800k", "math-shepherd", "process-bench", "rlhflow"] = "trl"
    """Format of labels.jsonl."""
    hard: float | None = None
    """Soft labels above this become 1, the others 0; rollouts are best hardened at 0. All formats but TRL need it."""
    format: Format | None = None
    """Of the files; by default each record says by its names which it is."""
    neutral: Neutral = "right"
    """What PRM800K's neutral rating is taken for."""
    seed: int = 0
    resume: bool = False
    """Go on with what an interrupted run left in `out`."""

    def run(self) -> None:
        """Label what is not labelled yet, write everything; exit status 1 if something was left out."""
        from ...text.annotate import annotate, consensus

        if "{problem}" not in self.prompt:
            raise TraceError("--prompt names no problem; expected {problem} in it")
        if self.hard is not None and not 0 <= self.hard < 1:
            raise TraceError(f"--hard is {self.hard}; expected a number in [0, 1)")
        if self.how == "monte-carlo" and self.to not in ("trl",) and self.hard is None:
            raise TraceError(f"--to {self.to} holds no soft labels; expected --hard (0 is best for rollouts)")
        solutions, broken = read_files(self.data, self.format, self.neutral)
        labellers = self._labellers()
        begin(self, self.out, resume=self.resume)
        journal = Journal(self.out / "journal.jsonl")
        found: list[list[LabelledSolution | None]] = [[] for _ in labellers]
        cost, paid = Usage(), 0
        with progress_bar() as progress:
            bar = progress.add_task("labelling", total=len(solutions) * len(labellers))
            try:
                for labels, (method, label, usage) in zip(found, labellers, strict=True):
                    for one in solutions:
                        try:
                            [answer] = annotate([one], label, method=method, journal=journal, usage=usage)
                        except TraceError as error:
                            broken.append(TraceError(f"{one.source or repr(one.prompt[:40])}: {error}"))
                            labels.append(None)
                        else:
                            labels.append(answer.solution)
                            paid += not answer.resumed
                            cost.calls += answer.cost.calls
                            cost.prompt_tokens += answer.cost.prompt_tokens
                            cost.completion_tokens += answer.cost.completion_tokens
                        progress.advance(bar)
            except KeyboardInterrupt:
                progress.stop()
                interrupted(sum(map(len, found)), len(solutions) * len(labellers), "labellings")
        numbers: dict[str, float] = {"solutions": len(solutions)}
        if self.how == "consensus":
            pairs = [
                (harden(one, self.hard or 0), other)
                for one, other in zip(*found, strict=True)
                if one is not None and other is not None
            ]
            agreed = consensus(pairs)
            labelled = list(agreed.kept)
            numbers |= {
                "compared": agreed.n_compared,
                "first error unknown to one of the two": agreed.n_unknown,
                "kept": len(labelled),
                "kept, share": agreed.keep_rate,
                "wrong by rollouts, share": agreed.wrong_share,
                "wrong by rollouts among the kept, share": agreed.wrong_share_kept,
            }
        else:
            labelled = [one for one in found[0] if one is not None]
        written = self._write(labelled, broken)
        numbers |= {
            "written": written,
            "without a label, not written": len(labelled) - written,
            "steps without a label": sum(label is None for one in labelled for label in one.labels),
        }
        numbers = {name: value for name, value in numbers.items() if value == value}
        write_json(
            self.out / "summary.json",
            {
                "command": command_line(self),
                "commit": commit(),
                "summary": numbers,
                "cost": {
                    "calls": cost.calls,
                    "prompt_tokens": cost.prompt_tokens,
                    "completion_tokens": cost.completion_tokens,
                },
                "left_out": [str(error) for error in broken],
            },
        )
        console.print(numbers_table(list(numbers.items()), title=f"labels by {self.how}"))
        said = str(cost) if cost != Usage() else "nothing was asked of a language model"
        console.print(f"{said} ({paid} labellings in this run)")
        complain(broken)
        console.print(f"wrote labels.jsonl and summary.json to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)
        if broken:
            sys.exit(1)

    def _labellers(self) -> list[tuple[str, Label, Usage | None]]:
        """Method, labeller and what it counts; two of them for a consensus."""
        from ...text.annotate import completer, judge_labels, monte_carlo_labels, spare_labels

        answers = self.out / "answers.jsonl"
        found: list[tuple[str, Label, Usage | None]] = []
        if self.how in ("monte-carlo", "consensus"):
            model = self._model(answers)
            prompt, separator = unescape(self.prompt), unescape(self.separator)
            complete = completer(
                model,
                lambda problem, steps: prompt.replace("{problem}", problem) + "".join(s + separator for s in steps),
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
            )
            found.append(
                ("monte-carlo", lambda one: monte_carlo_labels(one, complete, rollouts=self.rollouts), model.usage)
            )
        if self.how in ("judge", "consensus"):
            judge = load_text_judge(self, answers)
            usage = judge.usage if isinstance(judge, Metered) else None
            found.append(("judge", lambda one: judge_labels(one, judge, threshold=self.threshold), usage))
        if self.how == "spare":
            grader, references = self._model(answers), self._references()

            def label(one: LabelledSolution) -> LabelledSolution:
                if one.prompt not in references:
                    raise TraceError(f"no reference solution to this problem in {self.references}; expected one")
                return spare_labels(one, grader, references[one.prompt], max_tokens=self.max_tokens)

            found.append(("spare", label, grader.usage))
        return found

    def _model(self, answers: Path) -> LanguageModel:
        if not self.model:
            raise TraceError(f"--how {self.how} without --model; expected a folder, a Hub id, or endpoint:NAME")
        return load_language_model(self.model, self, answers)

    def _references(self) -> dict[str, Sequence[str]]:
        if self.references is None:
            raise TraceError("--how spare without --references; expected a file of right solutions, by their problems")
        return {one.prompt: one.steps for one in read_solutions(self.references)}

    def _write(self, labelled: Sequence[LabelledSolution], broken: list[TraceError]) -> int:
        """Write what the format can hold: the labelled part of each solution, unless the format knows holes."""
        ready = []
        for one in labelled:
            hard = one if self.hard is None else harden(one, self.hard)
            if self.to == "process-bench":
                ready += [hard] if hard.first_error is not None else []
            else:
                part = hard if self.to == "prm800k" else labelled_part(hard)
                ready += [part] if any(label is not None for label in part.labels) else []
        records = []
        for one in ready:
            try:
                records.append(_WRITERS[self.to](one))
            except TraceError as error:
                broken.append(TraceError(f"{one.source or repr(one.prompt[:40])}: {error}"))
        write_lines(self.out / "labels.jsonl", records)
        return len(records)
