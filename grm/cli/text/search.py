"""`grm text search`: questions answered by a language model and a judge: best-of-N, votes, beams."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape

from ...data.journal import Journal, fingerprint
from ...data.stepwise import LabelledSolution
from ...errors import AbstainedError, TraceError
from ...reward import Judge, ProcessReward, ScoredJudgement, Task, Thought
from ...text.language import LanguageModel
from ...text.steps import canonical_answer, extract_answer, same_answer
from ..output import command_line, commit
from ..terminal import console, progress_bar
from .annotate import PROMPT
from .files import Question, begin, complain, interrupted, read_questions, unescape, write_json, write_lines
from .models import Judging, load_language_model, load_text_judge, spent
from .score import numbers_table


@dataclass(frozen=True, kw_only=True)
class TextSearch(Judging):
    """Answer questions: draw solutions from a policy and choose by a judge, or grow them step by step under it.

    Writes answers.jsonl, summary.json and index.html, the chosen solutions worst first. A question that nobody could
    choose an answer to has none; it is counted. Ctrl-C loses nothing: --resume goes on.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Files of questions, as JSON lines with `problem`, `prompt` or `question`, and `answer` where known."""
    out: Path
    """Folder of the results."""
    policy: str
    """Language model that writes: a folder, a Hub id, or `endpoint:NAME`."""
    how: Literal["best-of-n", "weighted-vote", "majority-vote", "beam"] = "best-of-n"
    """majority-vote needs no judge, beam one that scores unfinished solutions."""
    n: int = 8
    """Solutions drawn per question; beam draws beams x expansions steps at a time."""
    beams: int = 4
    """Solutions kept after each step (beam)."""
    expansions: int = 4
    """Next steps drawn for each (beam)."""
    depth: int = 20
    """Steps at most (beam)."""
    temperature: float = 0.8
    """Of the policy."""
    max_tokens: int = 1024
    """Of one solution, or of one step (beam)."""
    prompt: str = PROMPT
    r"""Before the solution; {problem} is the problem, `\n` a line break."""
    separator: str = "\\n\\n"
    """Between steps."""
    aggregate: Literal["auto", "last", "minimum", "product", "mean"] = "auto"
    """One number per solution; auto is product of correctness, minimum of verdicts, last of values."""
    threshold: float = 0.5
    """A step whose score is below it is shown as an error."""
    seed: int = 0
    resume: bool = False
    """Go on with what an interrupted run left in `out`."""

    def run(self) -> None:
        """Search for what is not answered yet, write everything; exit status 1 if something was left out."""
        from ...report.text import write_text_page
        from ...text.scoring import from_entry, sum_up

        if min(self.n, self.beams, self.expansions, self.depth, self.max_tokens) < 1 or self.temperature < 0:
            raise TraceError(
                f"n {self.n}, beams {self.beams}, expansions {self.expansions}, depth {self.depth}, max-tokens "
                f"{self.max_tokens}, temperature {self.temperature}; expected at least 1, and a temperature from 0"
            )
        if "{problem}" not in self.prompt or not self.separator:
            raise TraceError("--prompt names no problem, or --separator is empty; expected {problem}, and a separator")
        questions = read_questions(self.data)
        judge = None if self.how == "majority-vote" else load_text_judge(self, self.out / "verdicts.jsonl")
        if self.how == "beam" and not isinstance(judge, ProcessReward):
            raise TraceError(
                f"{type(judge).__name__} judges finished solutions only; expected one that scores as it goes "
                f"(disprm, genprm, arithmetic), or another --how"
            )
        policy = load_language_model(self.policy, self, self.out / "completions.jsonl")
        begin(self, self.out, resume=self.resume)
        journal = Journal(self.out / "searches.jsonl")
        broken: list[TraceError] = []
        results: list[tuple[Question, dict[str, Any]]] = []
        with progress_bar() as progress:
            bar = progress.add_task("searching", total=len(questions))
            try:
                for question in questions:
                    key = fingerprint({"problem": question.problem})
                    if key not in journal:
                        try:
                            journal.append(key, self._search(question, policy, judge))
                        except TraceError as error:
                            broken.append(TraceError(f"{question.problem[:40]!r}: {error}"))
                    entry = journal.get(key)
                    if entry is not None:
                        results.append((question, entry))
                    progress.advance(bar)
            except KeyboardInterrupt:
                progress.stop()
                interrupted(len(results), len(questions), "questions")
        if not results:
            raise broken[0]
        rows = self._summary(results)
        write_lines(self.out / "answers.jsonl", [_record(question, entry) for question, entry in results])
        about = {"how": self.how, "policy": self.policy, "judge": self.judge or "none"}
        write_json(
            self.out / "summary.json",
            {
                "command": command_line(self),
                "commit": commit(),
                **about,
                "summary": dict(rows),
                "left_out": [str(error) for error in broken],
            },
        )
        shown = [
            sum_up(
                LabelledSolution(
                    prompt=question.problem,
                    steps=tuple(chosen["steps"]),
                    labels=(None,) * len(chosen["steps"]),
                    answer=question.answer,
                    final_answer_correct=_right(question, entry),
                ),
                from_entry(chosen["judgement"]),
                aggregator=self._aggregator,
                threshold=self.threshold,
            )
            for question, entry in results
            if (chosen := _chosen(entry)) is not None and chosen["judgement"] is not None
        ]
        wrote = "answers.jsonl and summary.json"
        if shown:
            wrote = "answers.jsonl, summary.json and index.html"
            write_text_page(
                self.out / "index.html",
                shown,
                title=f"{len(shown)} chosen solutions",
                command=command_line(self),
                threshold=self.threshold,
                numbers=rows,
                settings={**about, "commit": commit()},
                notes=[f"Left out: {error}" for error in broken],
            )
        console.print(numbers_table(rows, title=f"{self.how} by {self.judge or 'nobody'}"))
        for name, model in (("policy", policy), ("judge", judge)):
            if cost := spent(model):
                console.print(f"{name}: {cost}", highlight=False)
        complain(broken)
        console.print(f"wrote {wrote} to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)
        if broken:
            sys.exit(1)

    @property
    def _aggregator(self) -> str | None:
        return None if self.aggregate == "auto" else self.aggregate

    def _search(self, question: Question, policy: LanguageModel, judge: Judge[Thought] | None) -> dict[str, Any]:
        """What is kept of one question: the candidates, and which of them was chosen."""
        if self.how == "beam" and isinstance(judge, ProcessReward):
            return self._beam(question, policy, judge)
        from ...search.best_of_n import best_of
        from ...search.vote import majority_vote, weighted_vote

        candidates, cut = self._draw(question, policy)
        answers = [None if one["answer"] is None else canonical_answer(one["answer"]) for one in candidates]
        if judge is not None:
            self._judge(question, judge, candidates)
        scores = [math.nan if one["score"] is None else one["score"] for one in candidates]
        chosen: int | None = None
        try:
            match self.how:
                case "majority-vote":
                    chosen = majority_vote(answers).index
                case "weighted-vote":
                    chosen = weighted_vote(answers, scores).index
                case _:
                    chosen = best_of(scores).index if scores else None
        except AbstainedError:
            pass  # nobody could choose: the question stays without an answer, and is counted
        return {"chosen": chosen, "cut": cut, "candidates": candidates}

    def _draw(self, question: Question, policy: LanguageModel) -> tuple[list[dict[str, Any]], int]:
        """Whole solutions, and how many were cut off and so are none."""
        prompt, separator = self._prompt(question), unescape(self.separator)
        [drawn] = policy.generate(
            [prompt], samples=self.n, max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed
        )
        whole = [one.text for one in drawn if one.finish == "stop"]
        split = [[step.strip() for step in text.split(separator) if step.strip()] for text in whole]
        candidates = [_candidate(steps) for steps in split if steps]
        return candidates, len(drawn) - len(candidates)

    def _judge(self, question: Question, judge: Judge[Thought], candidates: list[dict[str, Any]]) -> None:
        from ...text.scoring import judge_all, to_entry

        judgements = judge_all(judge, [(question.problem, one["steps"]) for one in candidates]) if candidates else []
        for one, judgement in zip(candidates, judgements, strict=True):
            one |= {"judgement": to_entry(judgement), "score": self._score(one["steps"], judgement)}

    def _score(self, steps: Sequence[str], judgement: ScoredJudgement) -> float | None:
        from ...text.scoring import sum_up

        unlabelled = LabelledSolution(prompt="-", steps=tuple(steps), labels=(None,) * len(steps))
        aggregate = sum_up(unlabelled, judgement, aggregator=self._aggregator, threshold=self.threshold).aggregate
        return None if math.isnan(aggregate) else aggregate

    def _beam(self, question: Question, policy: LanguageModel, judge: ProcessReward[Thought, Any]) -> dict[str, Any]:
        from ...search.beam import beam_search

        cut = 0
        prompt, separator = self._prompt(question), unescape(self.separator)

        def expand(prefixes: Sequence[tuple[Thought, ...]], wanted: int) -> list[list[Thought]]:
            nonlocal cut
            drawn = policy.generate(
                [prompt + "".join(step.text + separator for step in prefix) for prefix in prefixes],
                samples=wanted,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                stop=[separator],
                seed=self.seed,
            )
            cut += sum(one.finish != "stop" for completions in drawn for one in completions)
            return [
                [Thought(text=one.text.strip()) for one in completions if one.finish == "stop" and one.text.strip()]
                for completions in drawn
            ]

        found = beam_search(
            judge,
            Task(instruction=question.problem),
            expand,
            depth=self.depth,
            beams=self.beams,
            expansions=self.expansions,
            finished=lambda steps: extract_answer(steps[-1].text) is not None,
            key=lambda step: step.text,
            size=lambda step: len(step.text.split()),
        )
        candidates = [_candidate([step.text for step in trace.steps]) for trace in found.traces]
        for one, trace in zip(candidates, found.traces, strict=True):
            one["score"] = _or_none(trace.score)
        try:
            chosen = found.traces.index(found.best)
        except AbstainedError:
            chosen = None
        else:
            self._judge(question, judge, candidates[chosen : chosen + 1])  # to be shown, step by step
        return {"chosen": chosen, "cut": cut, "candidates": candidates, "reuse": _or_none(found.reuse)}

    def _prompt(self, question: Question) -> str:
        return unescape(self.prompt).replace("{problem}", question.problem)

    def _summary(self, results: Sequence[tuple[Question, dict[str, Any]]]) -> list[tuple[str, float]]:
        entries = [entry for _, entry in results]
        candidates = [one for entry in entries for one in entry["candidates"]]
        rows: list[tuple[str, float]] = [
            ("questions", len(results)),
            ("questions without an answer (abstained)", sum(_answer(entry) is None for entry in entries)),
            ("candidates", len(candidates)),
            ("candidates that were cut off, left out", sum(entry["cut"] for entry in entries)),
        ]
        if self.how != "majority-vote":
            rows.append(("candidates without a score (abstained)", sum(one["score"] is None for one in candidates)))
        right = [found for question, entry in results if (found := _right(question, entry)) is not None]
        known = [(question, entry) for question, entry in results if question.answer is not None]
        if right:
            rows.append(("right, share of those answered", sum(right) / len(right)))
        if known:
            could = [any(_same(question, one["answer"]) for one in entry["candidates"]) for question, entry in known]
            rows.append(("right among the candidates, share", sum(could) / len(could)))
        reuse = [entry["reuse"] for entry in entries if entry.get("reuse") is not None]
        if reuse:
            rows.append(("judged / judged without reuse of prefixes", sum(reuse) / len(reuse)))
        return rows


def _candidate(steps: list[str]) -> dict[str, Any]:
    return {"steps": steps, "answer": extract_answer("\n".join(steps)), "judgement": None, "score": None}


def _chosen(entry: dict[str, Any]) -> dict[str, Any] | None:
    return None if entry["chosen"] is None else entry["candidates"][entry["chosen"]]


def _answer(entry: dict[str, Any]) -> str | None:
    chosen = _chosen(entry)
    return None if chosen is None else chosen["answer"]


def _same(question: Question, answer: str | None) -> bool:
    return answer is not None and question.answer is not None and same_answer(answer, question.answer)


def _right(question: Question, entry: dict[str, Any]) -> bool | None:
    """Whether the answer is right; None if there is none, or nobody knows."""
    answer = _answer(entry)
    return None if answer is None or question.answer is None else _same(question, answer)


def _record(question: Question, entry: dict[str, Any]) -> dict[str, Any]:
    chosen = _chosen(entry)
    return {
        "problem": question.problem,
        "answer": _answer(entry),
        "right": _right(question, entry),
        "score": None if chosen is None else chosen["score"],
        "steps": None if chosen is None else chosen["steps"],
        "candidates": [{name: one[name] for name in ("steps", "answer", "score")} for one in entry["candidates"]],
        "cut": entry["cut"],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
