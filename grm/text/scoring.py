"""Solutions scored by any judge: what it says of each step, their one number, and how that compares with the labels.

An abstention stays one: a step without a score has none on disk, on the page and in every count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..aggregate import AGGREGATORS, USUAL
from ..data.stepwise import LabelledSolution
from ..errors import AbstainedError, TraceError
from ..reward import BatchJudge, Judge, ScoredJudgement, ScoreKind, Task, Thought
from .conventions import split_steps
from .generative import CritiquedJudgement
from .metrics import first_error, first_error_f1, whole_solution_f1

type Question = tuple[str, Sequence[str]]
"""A problem and the steps of a solution."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSolution:
    """A solution, what is known of it, and what a judge said."""

    solution: LabelledSolution
    judgement: ScoredJudgement
    aggregator: str
    """Name of the aggregate, one that is right for the kind of score."""
    aggregate: float
    """One number for the solution; NaN where the judge abstained on a step that it needs."""
    first_error: int | None
    """Of the judge: index of the first step below the threshold, -1 for none; None where it abstained before it."""

    @property
    def n_abstained(self) -> int:
        """Steps without a score; those that the judge did not reach after an error it found are not counted."""
        end = len(self.judgement) if self.first_error is None or self.first_error < 0 else self.first_error + 1
        return int((~self.judgement.judged[:end]).sum())

    @property
    def disagrees(self) -> bool:
        """Whether the judge found the first error at another place than the labels, or could not say."""
        return self.solution.first_error is not None and self.first_error != self.solution.first_error


def judge_all(judge: Judge[Thought], questions: Sequence[Question]) -> list[ScoredJudgement]:
    """Judge many solutions, in one batch where the judge takes one.

    Raises `TraceError` for a judge whose answers do not say what kind of score they are.
    """
    traces = [(Task(instruction=problem), [Thought(text=step) for step in steps]) for problem, steps in questions]
    if isinstance(judge, BatchJudge):
        judgements = judge.judge_all(traces)
    else:
        judgements = [judge.judge(task, steps) for task, steps in traces]
    return [_scored(judgement) for judgement in judgements]


def score(
    judge: Judge[Thought], questions: Sequence[str], outputs: Sequence[Sequence[str | Sequence[str]]]
) -> list[list[list[float | None]]]:
    """Raw scores [question][candidate][step]; None where the judge abstained.

    A candidate is a list of steps, or a text that `split_steps` splits. Raises `TraceError` if there is not one list of
    candidates per question.
    """
    if len(questions) != len(outputs):
        raise TraceError(f"{len(questions)} questions and {len(outputs)} lists of candidates; expected one each")
    pairs = [
        (question, split_steps(candidate) if isinstance(candidate, str) else candidate)
        for question, candidates in zip(questions, outputs, strict=True)
        for candidate in candidates
    ]
    scores = (step_scores(judgement).tolist() for judgement in judge_all(judge, pairs))
    return [[[None if math.isnan(s) else s for s in next(scores)] for _ in candidates] for candidates in outputs]


def score_solutions(
    judge: Judge[Thought],
    solutions: Sequence[LabelledSolution],
    *,
    aggregator: str | None = None,
    threshold: float = 0.5,
) -> list[ScoredSolution]:
    """Judge solutions and sum each up by an aggregator, by default the usual one of the judge's kind of score.

    Raises `TraceError` on an aggregator that is wrong for the kind.
    """
    judgements = judge_all(judge, [(one.prompt, one.steps) for one in solutions])
    return [
        sum_up(one, judgement, aggregator=aggregator, threshold=threshold)
        for one, judgement in zip(solutions, judgements, strict=True)
    ]


def sum_up(
    solution: LabelledSolution, judgement: ScoredJudgement, *, aggregator: str | None = None, threshold: float = 0.5
) -> ScoredSolution:
    """One scored solution; raises as `score_solutions`."""
    name = aggregator or USUAL[judgement.kind]
    try:
        aggregate = AGGREGATORS[name](_until_decided(judgement, threshold))
    except AbstainedError:
        aggregate = math.nan
    return ScoredSolution(
        solution=solution,
        judgement=judgement,
        aggregator=name,
        aggregate=aggregate,
        # An advantage of a half is no threshold, and 0 would blame every step that gains nothing.
        first_error=None if judgement.kind is ScoreKind.ADVANTAGE else first_error(step_scores(judgement), threshold),
    )


def summary(scored: Sequence[ScoredSolution], *, threshold: float = 0.5) -> dict[str, float]:
    """What came out, counts before shares; what the labels do not allow to say is absent.

    `first_error_f1` is ProcessBench's, `whole_solution_f1` ThinkPRM's: see `grm.text.metrics`. The latter calls a
    solution right by its verdict as a whole where there is one, and else if no error was found.
    """
    critiqued = [one.judgement for one in scored if isinstance(one.judgement, CritiquedJudgement)]
    known = [one for one in scored if one.solution.first_error is not None]
    found: dict[str, float] = {
        "solutions": len(scored),
        "steps": sum(len(one.judgement) for one in scored),
        "steps_abstained": sum(one.n_abstained for one in scored),
        "solutions_without_aggregate": sum(math.isnan(one.aggregate) for one in scored),
    }
    if critiqued:
        found["critiques"] = sum(one.n_samples for one in critiqued)
        found["critiques_invalid"] = sum(one.n_invalid for one in critiqued)
        found["critiques_surplus"] = sum(one.n_surplus for one in critiqued)
    truth = [one.solution.first_error for one in known if one.solution.first_error is not None]
    says = [one.first_error for one in known]
    steps_judged = any(one.judgement.judged[:-1].any() for one in known)
    if steps_judged and any(t >= 0 for t in truth) and any(t < 0 for t in truth):
        f1 = first_error_f1(says, truth)
        found |= {
            "first_error_f1": f1.f1,
            "accuracy_on_wrong": f1.accuracy_wrong,
            "accuracy_on_right": f1.accuracy_right,
            "solutions_unread": f1.n_unread,
        }
    if any(t < 0 for t in truth) and not any(one.judgement.kind is ScoreKind.ADVANTAGE for one in known):
        whole = whole_solution_f1([_calls_right(one, threshold) for one in known], [t < 0 for t in truth])
        found["whole_solution_f1"] = whole.f1
    return found


def to_record(one: ScoredSolution) -> dict[str, Any]:
    """As one line of JSON: no NaN, an abstention is null."""
    judgement, solution = one.judgement, one.solution
    record: dict[str, Any] = {
        "problem": solution.prompt,
        "steps": list(solution.steps),
        "kind": judgement.kind.value,
        "scores": numbers(step_scores(judgement)),
        "potential": numbers(judgement.potential),
        "aggregator": one.aggregator,
        "aggregate": None if math.isnan(one.aggregate) else one.aggregate,
        "first_error": one.first_error,
        "n_abstained": one.n_abstained,
    }
    if isinstance(judgement, CritiquedJudgement):
        record |= critiques_of(judgement)
    if solution.first_error is not None:
        record["label"] = solution.first_error
    if solution.final_answer_correct is not None:
        record["final_answer_correct"] = solution.final_answer_correct
    if solution.source:
        record["id"] = solution.source
    return record


def critiques_of(judgement: CritiquedJudgement) -> dict[str, Any]:
    """What was written on the way, as JSON."""
    return {
        "critiques": list(judgement.critiques),
        "n_samples": judgement.n_samples,
        "n_invalid": judgement.n_invalid,
        "n_surplus": judgement.n_surplus,
        "outcome": None if math.isnan(judgement.outcome) else judgement.outcome,
    }


def to_entry(judgement: ScoredJudgement) -> dict[str, Any]:
    """A judgement whole, for a journal; `from_entry` reads it back."""
    entry: dict[str, Any] = {"kind": judgement.kind.value}
    entry |= {name: numbers(getattr(judgement, name)) for name in ("potential", "spread", "score")}
    return entry | (critiques_of(judgement) if isinstance(judgement, CritiquedJudgement) else {})


def from_entry(entry: Mapping[str, Any]) -> ScoredJudgement:
    """The judgement that `to_entry` wrote. Raises `TraceError` if it is none."""
    try:
        parts: dict[str, Any] = {
            name: np.array([math.nan if x is None else x for x in entry[name]], np.float64)
            for name in ("potential", "spread", "score")
        }
        parts |= {"judged": ~np.isnan(parts["potential"]), "kind": ScoreKind(entry["kind"])}
        if "critiques" not in entry:
            return ScoredJudgement(**parts)
        outcome = math.nan if entry["outcome"] is None else entry["outcome"]
        counts = {name: entry[name] for name in ("n_samples", "n_invalid", "n_surplus")}
        return CritiquedJudgement(**parts, **counts, critiques=tuple(entry["critiques"]), outcome=outcome)
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"an entry without a whole judgement ({error}); expected what `to_entry` wrote") from error


def step_scores(judgement: ScoredJudgement) -> Float[np.ndarray, " T"]:
    """Raw scores; NaN where the judge abstained, also where it said something of a step it could not place."""
    return np.where(judgement.judged, judgement.score, np.nan)


def numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN: what is none is null."""
    return [None if math.isnan(value) else round(value, 6) for value in values.tolist()]


def _scored(judgement: object) -> ScoredJudgement:
    if not isinstance(judgement, ScoredJudgement):
        raise TraceError(
            f"a judge that gives {type(judgement).__name__}; expected scores that say of which kind they are"
        )
    return judgement


def _until_decided(judgement: ScoredJudgement, threshold: float) -> ScoredJudgement:
    """A chain of verdicts ends at the first error it finds: what it never reached is no abstention."""
    found = first_error(step_scores(judgement), threshold) if judgement.kind is ScoreKind.VERDICT else None
    if found is None or found < 0:
        return judgement
    end = found + 1
    return ScoredJudgement(
        potential=judgement.potential[:end],
        spread=judgement.spread[:end],
        judged=judgement.judged[:end],
        score=judgement.score[:end],
        kind=judgement.kind,
    )


def _calls_right(one: ScoredSolution, threshold: float) -> bool | None:
    whole = one.judgement.outcome if isinstance(one.judgement, CritiquedJudgement) else math.nan
    if math.isnan(whole) and not one.judgement.judged[:-1].any() and len(one.judgement) and one.judgement.judged[-1]:
        whole = float(one.judgement.score[-1])
    if not math.isnan(whole):
        return whole >= threshold
    return None if one.first_error is None else one.first_error < 0
