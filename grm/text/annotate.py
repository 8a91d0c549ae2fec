"""Step labels without people: from rollouts, from a judge, from both where they agree, and from a reference solution.

    monte_carlo_labels   value: the share of rollouts from a prefix that arrive       Math-Shepherd, arXiv 2312.08935
    judge_labels         correctness: a judge's decisions up to its first error       Qwen "Lessons", arXiv 2501.07301
    consensus            the solutions whose first error both find at one place       the same
    spare_labels         correctness: one pass, step by step against a reference      SPARE, arXiv 2506.15498

`annotate` runs any of them over many solutions so that an interruption loses nothing, and counts what each label cost.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..data.journal import Journal, fingerprint
from ..data.stepwise import LabelledSolution, first_error_of, until_first_error
from ..errors import TraceError
from ..reward import Judge, ScoredJudgement, ScoreKind, Task, Thought
from .language import Usage, Writer
from .steps import check_step, extract_answer, same_answer

type Prefix = tuple[str, tuple[str, ...]]
"""A problem and the first steps of a solution."""
type Complete = Callable[[Sequence[Prefix], int], Sequence[Sequence[str | None]]]
"""Draws so many completions of each prefix and reads their answers; None where one gives none."""


# Rollouts


def completer(
    model: Writer,
    prompt: Callable[[str, Sequence[str]], str],
    *,
    extract: Callable[[str], str | None] = extract_answer,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Complete:
    """Completions by a language model, whose `prompt` shows it a problem and the steps so far to go on from.

    The answer is read from the prefix with its completion, so that a finished prefix keeps its own; a completion that
    was cut off gives none.
    """

    def complete(prefixes: Sequence[Prefix], samples: int) -> list[list[str | None]]:
        prompts = [prompt(problem, steps) for problem, steps in prefixes]
        answers = model.generate(
            prompts, samples=samples, max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed
        )
        return [
            [extract("\n".join([*steps, c.text])) if c.finish == "stop" else None for c in completions]
            for (_, steps), completions in zip(prefixes, answers, strict=True)
        ]

    return complete


def monte_carlo_labels(
    solution: LabelledSolution,
    complete: Complete,
    *,
    rollouts: int = 8,
    same: Callable[[str, str], bool] = same_answer,
) -> LabelledSolution:
    """Soft labels: of `rollouts` completions from the prefix that ends in each step, the share with the right answer.

    They are values, which a completer that mends errors makes too high (see `harden`: 0 is the usual threshold). A
    rollout without an answer did not arrive; a step none of whose rollouts gives an answer has no label. All prefixes
    are completed in one batch. Raises `TraceError` if the right answer is not known.
    """
    if solution.answer is None:
        raise TraceError("a solution to a problem whose answer is not known; expected one, to compare rollouts with")
    if rollouts < 1:
        raise TraceError(f"rollouts is {rollouts}; expected at least 1")
    answer, prefixes = solution.answer, [(solution.prompt, solution.steps[: i + 1]) for i in range(len(solution.steps))]
    labels: list[float | None] = []
    for answers in complete(prefixes, rollouts):
        given = [one for one in answers if one is not None]
        labels.append(sum(same(one, answer) for one in given) / len(answers) if given else None)
    return replace(solution, labels=tuple(labels), first_error=None)


# Judges


def judge_labels(solution: LabelledSolution, judge: Judge[Thought], *, threshold: float = 0.5) -> LabelledSolution:
    """Hard labels: wrong where the judge's score is below `threshold`, 1 up to its first wrong step, None after it.

    A step on which it abstains has no label, nor has any after it. Raises `TraceError` on scores that are no statement
    on a step: values and advantages.
    """
    judgement = judge.judge(Task(instruction=solution.prompt), [Thought(text=step) for step in solution.steps])
    if not isinstance(judgement, ScoredJudgement) or judgement.kind not in (ScoreKind.CORRECTNESS, ScoreKind.VERDICT):
        kind = judgement.kind.value if isinstance(judgement, ScoredJudgement) else "no score"
        raise TraceError(f"a judge that gives {kind}; expected correctness or verdicts of steps")
    labels: list[float | None] = [None] * len(solution.steps)
    for i, (score, judged) in enumerate(zip(judgement.score, judgement.judged, strict=True)):
        if not judged or score != score:
            break
        labels[i] = float(score >= threshold)
        if not labels[i]:
            break
    return replace(solution, labels=tuple(labels), first_error=first_error_of(labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class Consensus:
    """What two ways of labelling agree on."""

    kept: tuple[LabelledSolution, ...]
    """Solutions whose first error both find at one place, or both not at all; cut after it."""
    n_compared: int
    n_unknown: int
    """Compared, but one of the two does not know where the first error is; not kept."""
    wrong_share: float
    """Of those compared and known, the share that the first way calls wrong; NaN without any."""
    wrong_share_kept: float
    """The same of those kept. Agreement comes easier on right solutions, so this is lower: balance before training."""

    @property
    def keep_rate(self) -> float:
        """Share kept of those compared; NaN without any."""
        return _share(len(self.kept), self.n_compared)


def consensus(pairs: Iterable[tuple[LabelledSolution, LabelledSolution]]) -> Consensus:
    """Keep what both labellings of a solution agree on: the place of the first error. Qwen "Lessons", 2501.07301.

    Soft labels are hardened before (`harden` at 0). Raises `TraceError` if they are not, or a pair is of two solutions.
    """
    kept: list[LabelledSolution] = []
    compared = unknown = wrong = 0
    for one, other in pairs:
        if (one.prompt, one.steps) != (other.prompt, other.steps):
            raise TraceError(f"labels of two solutions, {one.steps[:1]} and {other.steps[:1]}; expected two of one")
        compared += 1
        first, second = first_error_of(one.labels), first_error_of(other.labels)
        if first is None or second is None:
            unknown += 1
            continue
        wrong += first >= 0
        if first == second:
            kept.append(until_first_error(replace(one, first_error=first)))
    return Consensus(
        kept=tuple(kept),
        n_compared=compared,
        n_unknown=unknown,
        wrong_share=_share(wrong, compared - unknown),
        wrong_share_kept=_share(sum((one.first_error or 0) >= 0 for one in kept), len(kept)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


# SPARE


class Grade(NamedTuple):
    """What a reference-guided grader says of one step; all indices from 0."""

    right: bool
    explanation: str
    context: tuple[int, ...]
    """Sentences of the context that it rests on."""
    related: tuple[int, ...]
    """Earlier steps that it rests on."""
    reference: tuple[int, ...]
    """Steps of the reference it is aligned with: none, one, or several that it merges."""
    errors: tuple[str, ...]
    """Categories, such as numeric or comprehension."""


class Grading(NamedTuple):
    """The grades of a solution's steps, as far as they could be read."""

    grades: Mapping[int, Grade]
    """By step, from 0."""
    n_ignored: int
    """Entries that name no step of the solution, or carry no label."""


_GRADES = """\
Grade a student's solution step by step against a reference solution. For each student step, find what it rests on: \
sentences of the context, earlier student steps, and the reference steps it corresponds to (none, one, or several). A \
step is CORRECT if what it asserts is supported by these and its own calculation holds, also where the reference takes \
another way; otherwise it is INCORRECT.
Answer with a JSON list, one object per student step:
[{"student_step": 1, "explanation": "...", "context": [], "related_steps": [], "reference_steps": [1], "errors": [], \
"label": "CORRECT"}]"""


def spare_prompt(problem: str, steps: Sequence[str], reference: Sequence[str], context: Sequence[str] = ()) -> str:
    """The grader's task, everything numbered from [1]. Raises `TraceError` on a blank step."""
    parts = [_GRADES, ""]
    sections = [("Context", context), ("Problem", None), ("Reference solution", reference), ("Student solution", steps)]
    for title, texts in sections:
        if texts is None:
            parts += [f"{title}: {problem}", ""]
        elif texts:
            for i, text in enumerate(texts):
                check_step(i, text)
            parts += [f"{title}:", *(f"[{i}] {' '.join(text.split())}" for i, text in enumerate(texts, 1)), ""]
    return "\n".join([*parts, "Grades:", ""])


def parse_grades(text: str, steps: int) -> Grading:
    """Read what a grader wrote about a solution of `steps` steps; of several grades of one step the last counts.

    Reads the objects that are whole, also of a list that was cut off or stands amid prose. An entry whose
    `student_step` (from 1) is no step, or whose label is neither CORRECT nor INCORRECT, is ignored and counted.
    """
    grades: dict[int, Grade] = {}
    ignored = 0
    for item in _objects(text):
        number, label = item.get("student_step"), item.get("label")
        word = label.strip().upper() if isinstance(label, str) else ""
        if (
            not isinstance(number, int)
            or isinstance(number, bool)
            or not 1 <= number <= steps
            or word not in ("CORRECT", "INCORRECT")
        ):
            ignored += 1
            continue
        grades[number - 1] = Grade(
            right=word == "CORRECT",
            explanation=str(item.get("explanation", "")),
            context=_indices(item.get("context")),
            related=_indices(item.get("related_steps")),
            reference=_indices(item.get("reference_steps")),
            errors=tuple(str(one) for one in item["errors"]) if isinstance(item.get("errors"), list) else (),
        )
    return Grading(grades, ignored)


type Ungraded = Literal["unlabelled", "wrong", "outcome"]
"""The label of a step without a grade: none; 0, as the paper has it; or whether the final answer is right."""


def spare_labels(
    solution: LabelledSolution,
    model: Writer,
    reference: Sequence[str],
    *,
    context: Sequence[str] = (),
    ungraded: Ungraded = "unlabelled",
    last_is_outcome: bool = False,
    max_tokens: int = 2048,
) -> LabelledSolution:
    """Hard labels of all steps from one greedy pass of a grader that sees a reference solution.

    Each step is labelled for itself, after an error too. The paper takes `ungraded` for wrong, which blames a solution
    for a grader's list that was cut off, and overwrites the label of the last step by whether the final answer is right
    (`last_is_outcome`), which makes the process reward an outcome reward in part. A valid way that the reference does
    not take may be called wrong. Raises `TraceError` where an outcome is needed and not known.
    """
    prompt = spare_prompt(solution.prompt, solution.steps, reference, context)
    [[answer]] = model.generate([prompt], max_tokens=max_tokens)
    grading = parse_grades(answer.text, len(solution.steps))
    return label_by_grades(solution, grading, ungraded=ungraded, last_is_outcome=last_is_outcome)


def label_by_grades(
    solution: LabelledSolution, grading: Grading, *, ungraded: Ungraded = "unlabelled", last_is_outcome: bool = False
) -> LabelledSolution:
    """The labels that `spare_labels` makes of a grading."""
    correct = solution.final_answer_correct
    if (last_is_outcome or ungraded == "outcome") and correct is None:
        raise TraceError("a solution whose final answer is not known to be right or wrong; expected to know")
    other = {"unlabelled": None, "wrong": 0.0, "outcome": None if correct is None else float(correct)}[ungraded]
    grades = [grading.grades.get(i) for i in range(len(solution.steps))]
    labels = [other if grade is None else float(grade.right) for grade in grades]
    if last_is_outcome and labels and correct is not None:
        labels[-1] = float(correct)
    return replace(solution, labels=tuple(labels), first_error=first_error_of(labels))


def reference_solution(problem: str, reference: Sequence[str], answer: str | None = None) -> LabelledSolution:
    """A reference as a training example, all of whose steps are right; SPARE adds each once."""
    return LabelledSolution(
        prompt=problem,
        steps=tuple(reference),
        labels=(1.0,) * len(reference),
        answer=answer,
        final_answer_correct=True,
        first_error=-1,
        source="reference",
    )


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every whole JSON object in a text that is not inside another."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            item, end = decoder.raw_decode(text, at)
        except ValueError:
            # Trailing commas are the one slip that graders make often.
            close = text.find("}", at)
            try:
                item = json.loads(re.sub(r",\s*([}\]])", r"\1", text[at : close + 1])) if close >= 0 else None
            except ValueError:
                item = None
            end = close + 1 if item is not None else at + 1
        if isinstance(item, dict):
            yield item
        at = end


def _indices(value: object) -> tuple[int, ...]:
    """Numbers from 1 as indices from 0; what is no number is left out."""
    values = value if isinstance(value, list) else []
    return tuple(one - 1 for one in values if isinstance(one, int) and not isinstance(one, bool) and one >= 1)


# Many


class Annotated(NamedTuple):
    """A labelled solution and what its labels cost."""

    solution: LabelledSolution
    cost: Usage
    """All zero for a labeller that says nothing of its usage."""
    resumed: bool
    """Whether it was labelled by an earlier run; its cost was paid then."""


def annotate(
    solutions: Iterable[LabelledSolution],
    label: Callable[[LabelledSolution], LabelledSolution],
    *,
    method: str,
    journal: str | Path | Journal | None = None,
    usage: Usage | None = None,
) -> Iterator[Annotated]:
    """Label solutions one after the other, each written to the journal before it is given out.

    A run that was interrupted goes on behind the last solution that was finished; a model with a journal of its own
    (`EndpointModel`) also keeps what was paid for within it. `method` names the labeller and its settings: one journal
    may hold several, and changed settings ask again. `usage` is that of the model, to count what each label cost.
    Raises what `label` raises, and `TraceError` on a journal that cannot be read.
    """
    written = journal if isinstance(journal, Journal) else Journal(journal)
    for solution in solutions:
        key = fingerprint(
            {
                "method": method,
                "prompt": solution.prompt,
                "steps": solution.steps,
                "answer": solution.answer,
                "final_answer_correct": solution.final_answer_correct,
            }
        )
        entry = written.get(key)
        if resumed := entry is not None:
            labelled = replace(solution, labels=tuple(entry["labels"]), first_error=entry["first_error"])
            cost = Usage(**entry["cost"])
        else:
            before = _counts(usage)
            labelled = label(solution)
            cost = Usage(*(after - earlier for after, earlier in zip(_counts(usage), before, strict=True)))
            counts = dict(zip(("calls", "prompt_tokens", "completion_tokens"), _counts(cost), strict=True))
            written.append(
                key,
                {"method": method, "labels": labelled.labels, "first_error": labelled.first_error, "cost": counts},
            )
        yield Annotated(labelled, cost, resumed)


def _counts(usage: Usage | None) -> tuple[int, int, int]:
    return (0, 0, 0) if usage is None else (usage.calls, usage.prompt_tokens, usage.completion_tokens)
