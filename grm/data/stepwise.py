"""Solutions whose steps are labelled: one record, and the published formats that it is read from and written to.

    format            labels                      what it cannot hold
    TRL stepwise      bool or float               steps without a label
    PRM800K           1, 0, -1 or none            soft labels
    Math-Shepherd     + or -                      soft labels, steps without a label, the tag inside a step
    ProcessBench      index of the first error    labels after it, soft labels
    RLHFlow           + or - as chat replies      soft labels, steps without a label

What a format cannot hold is refused; soft labels become hard ones only at a threshold that is asked for. Labels stay
soft where they are soft: the step-wise trainer of TRL casts them to int, which makes 0.9 a 0; give it hard ones.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from ..errors import TraceError

TAG = "ки"
"""Closes every step of a Math-Shepherd solution."""

type Neutral = Literal["right", "wrong", "unlabelled"]
"""What PRM800K's neutral rating (0: neither a mistake nor of use) is taken for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSolution:
    """A solution in T steps and what is known about them.

    Raises `TraceError` on construction if a step is blank, a label leaves [0, 1], the lengths differ, or hard labels
    contradict the first error.
    """

    prompt: str
    """The problem."""
    steps: tuple[str, ...]
    """T texts, none of them blank."""
    labels: tuple[float | None, ...]
    """T labels in [0, 1], 1 for right; None where a step was not judged, as after a first error."""
    answer: str | None = None
    """The right answer to the problem, where known; not the one that the solution gives."""
    final_answer_correct: bool | None = None
    """Whether the solution arrives at the right answer, by whatever steps."""
    first_error: int | None = None
    """Index of the first wrong step, from 0; -1 if there is none, None if nobody knows."""
    source: str = ""
    """Where it comes from: a data set, or an item of one."""
    generator: str = ""
    """Who wrote the solution."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.steps):
            raise TraceError(f"{len(self.labels)} labels for {len(self.steps)} steps; expected one per step, or None")
        for i, step in enumerate(self.steps):
            if not step.strip():
                raise TraceError(f"step {i} is blank; expected text (drop the step together with its label)")
        for i, label in enumerate(self.labels):
            if label is not None and not 0 <= label <= 1:
                raise TraceError(f"label {i} is {label}; expected a number in [0, 1], or None where there is none")
        if self.first_error is None:
            return
        if not -1 <= self.first_error < len(self.steps):
            raise TraceError(
                f"first_error is {self.first_error} in {len(self.steps)} steps; expected an index from 0, "
                f"or -1 for none"
            )
        before = self.labels if self.first_error < 0 else self.labels[: self.first_error]
        if 0 in before or (self.first_error >= 0 and self.labels[self.first_error] == 1):
            raise TraceError(
                f"first_error is {self.first_error} but the labels are {list(self.labels)}; expected none that is 0 "
                f"before it, and no 1 there"
            )

    @property
    def is_soft(self) -> bool:
        """Whether a label is neither 0 nor 1."""
        return any(label is not None and 0 < label < 1 for label in self.labels)


def harden(solution: LabelledSolution, threshold: float) -> LabelledSolution:
    """Labels above `threshold` become 1, the others 0, and the first error follows from them where it was not known.

    Of Monte-Carlo labels 0 is the best threshold measured: right if any rollout was (Qwen "Lessons", arXiv 2501.07301).
    Raises `TraceError` if the threshold is outside [0, 1), or the result contradicts the known first error.
    """
    if not 0 <= threshold < 1:
        raise TraceError(f"threshold is {threshold}; expected a number in [0, 1)")
    labels = tuple(None if label is None else float(label > threshold) for label in solution.labels)
    known = solution.first_error
    return replace(solution, labels=labels, first_error=first_error_of(labels) if known is None else known)


def first_error_of(labels: Sequence[float | None]) -> int | None:
    """Index of the first label 0, or -1 if all are 1; None if a step before it has no label.

    Raises `TraceError` on soft labels: where they turn wrong is the caller's decision (see `harden`).
    """
    for i, label in enumerate(labels):
        if label is None:
            return None
        if label == 0:
            return i
        if label != 1:
            raise TraceError(f"label {i} is {label}; expected 0 or 1 (choose a threshold to harden soft labels at)")
    return -1


def until_first_error(solution: LabelledSolution) -> LabelledSolution:
    """The steps up to and including the first error: what comes after one is neither right nor wrong.

    Source: Qwen "Lessons", arXiv 2501.07301. Unchanged where there is none. Raises `TraceError` where it
    is neither known nor follows from the labels.
    """
    first = _known_first_error(solution)
    return solution if first < 0 else _cut(solution, first + 1)


def labelled_part(solution: LabelledSolution) -> LabelledSolution:
    """The steps before the first one without a label."""
    known = next((i for i, label in enumerate(solution.labels) if label is None), len(solution.steps))
    return _cut(solution, known)


def _cut(solution: LabelledSolution, length: int) -> LabelledSolution:
    if length == len(solution.steps):
        return solution
    first = solution.first_error
    return replace(
        solution,
        steps=solution.steps[:length],
        labels=solution.labels[:length],
        first_error=-1 if first is not None and first >= length else first,
    )


# TRL stepwise supervision


def from_trl(item: Any) -> LabelledSolution:
    """`{"prompt", "completions", "labels"}`, labels bool or float; further columns as `to_trl` writes them."""
    labels = tuple(None if label is None else _number(label, "label") for label in _list(item, "labels"))
    hard = all(label in (0, 1) for label in labels)
    first, correct = item.get("first_error"), item.get("final_answer_correct")
    return LabelledSolution(
        prompt=_text(item, "prompt"),
        steps=_texts(item, "completions"),
        labels=labels,
        answer=_maybe_text(item, "answer"),
        final_answer_correct=correct if correct is None else _bool(correct, "final_answer_correct"),
        first_error=(first_error_of(labels) if hard else None) if first is None else _index(first, "first_error"),
        source=_maybe_text(item, "source") or "",
        generator=_maybe_text(item, "generator") or "",
    )


def to_trl(solution: LabelledSolution, *, threshold: float | None = None) -> dict[str, Any]:
    """As TRL reads it, labels bool if all are hard and else float; what else is known goes into further columns.

    `threshold` hardens. Raises `TraceError` on a step without a label: `labelled_part` and `until_first_error` cut.
    """
    solution = solution if threshold is None else harden(solution, threshold)
    labels = _all_labels(solution, "TRL's format")
    hard = not solution.is_soft
    item: dict[str, Any] = {
        "prompt": solution.prompt,
        "completions": list(solution.steps),
        "labels": [bool(label) if hard else label for label in labels],
    }
    if solution.answer is not None:
        item["answer"] = solution.answer
    if solution.final_answer_correct is not None:
        item["final_answer_correct"] = solution.final_answer_correct
    if solution.first_error is not None and not (hard and solution.first_error == first_error_of(labels)):
        item["first_error"] = solution.first_error
    for name in ("source", "generator"):
        if getattr(solution, name):
            item[name] = getattr(solution, name)
    return item


# PRM800K


def from_prm800k(item: Any, *, neutral: Neutral) -> list[LabelledSolution]:
    """The branches of one labelled problem, phase 1 or 2: every alternative that was not chosen closes one.

    The chosen alternative, or else what the labeller wrote (which is right), leads on. `neutral` is the meaning of the
    rating 0; TRL's conversion takes it for wrong. `final_answer_correct` is True where the whole generated solution
    gives the right answer letter for letter, and otherwise not known.
    """
    question, label = _dict(item, "question"), _dict(item, "label")
    rated: dict[Any, float | None] = {
        1: 1.0,
        -1: 0.0,
        None: None,
        0: {"right": 1.0, "wrong": 0.0, "unlabelled": None}[neutral],
    }
    answer = _maybe_text(question, "ground_truth_answer")
    generated = question.get("pre_generated_steps")
    given = _maybe_text(question, "pre_generated_answer")

    def close(texts: Sequence[str], labels: Sequence[float | None]) -> LabelledSolution:
        whole = list(texts) == generated and given is not None and given == answer
        return LabelledSolution(
            prompt=_text(question, "problem"),
            steps=tuple(texts),
            labels=tuple(labels),
            answer=answer,
            final_answer_correct=True if whole else None,
            first_error=first_error_of(labels),
            source="prm800k",
        )

    branches: list[LabelledSolution] = []
    texts: list[str] = []
    labels: list[float | None] = []
    leads_on = True
    for step in _list(label, "steps"):
        completions, chosen = step.get("completions") or [], step.get("chosen_completion")
        if chosen is not None and not (isinstance(chosen, int) and 0 <= chosen < len(completions)):
            raise TraceError(f"chosen_completion is {chosen!r} of {len(completions)}; expected an index, or null")
        alternatives: list[tuple[str, float | None]] = []
        for completion in completions:
            if completion.get("rating") not in rated:
                raise TraceError(f"a rating is {completion['rating']!r}; expected 1, 0, -1 or null")
            alternatives.append((_text(completion, "text"), rated[completion.get("rating")]))
        for i, (text, right) in enumerate(alternatives):
            if i != chosen:
                branches.append(close([*texts, text], [*labels, right]))
        written = step.get("human_completion")
        if chosen is not None:
            text, right = alternatives[chosen]
        elif written is not None:
            text, right = written if isinstance(written, str) else _text(written, "text"), 1.0
        else:
            leads_on = not alternatives  # a step without anything happens; the branch ends before it
            break
        texts, labels = [*texts, text], [*labels, right]
    if leads_on and texts:
        branches.append(close(texts, labels))
    return branches


def to_prm800k(solution: LabelledSolution, *, threshold: float | None = None) -> dict[str, Any]:
    """One branch as phase 2 has it, one alternative per step. Soft labels need a `threshold`, else `TraceError`."""
    solution = _hard(solution, threshold, "PRM800K")
    ratings = [None if label is None else 1 if label else -1 for label in solution.labels]
    return {
        "labeler": None,
        "timestamp": None,
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": solution.prompt,
            "ground_truth_answer": solution.answer,
            "pre_generated_steps": list(solution.steps),
            "pre_generated_answer": solution.answer if solution.final_answer_correct else None,
        },
        "label": {
            "steps": [
                {
                    "completions": [{"text": text, "rating": rating, "flagged": False}],
                    "human_completion": None,
                    "chosen_completion": 0,
                }
                for text, rating in zip(solution.steps, ratings, strict=True)
            ],
            "total_time": 0,
            "finish_reason": "found_error" if -1 in ratings else "solution",
        },
    }


# Math-Shepherd


def from_math_shepherd(item: Any) -> LabelledSolution:
    """`{"input", "label", "task"}`: the problem and steps that " ки" closes, and the same text with + or - for it.

    Text after the last tag is a step without a label; a tag that stands inside the problem, as in a few published
    lines, is left out with its label. Raises `TraceError` if the two texts do not run in parallel, or nothing says
    where the problem ends: "Step 1:", or else the one blank line or question mark.
    """
    text, marked = _text(item, "input"), _text(item, "label")
    *closed, rest = text.split(TAG)
    labels: list[float | None] = []
    at = 0
    for i, segment in enumerate(closed):
        sign = marked[at + len(segment) : at + len(segment) + 1]
        if marked[at : at + len(segment)] != segment or sign not in ("+", "-"):
            raise TraceError(f"input and label differ in step {i}; expected + or - where the input has {TAG}, else one")
        labels.append(float(sign == "+"))
        at += len(segment) + 1
    if marked[at:].strip() != rest.strip():
        raise TraceError(f"input and label differ after the last of {len(closed)} steps; expected one text")
    parts = [*closed, rest] if rest.strip() else closed
    if not parts:
        raise TraceError(f"no step in the input; expected steps that {TAG} closes")
    if len(parts) > 1 and not _FIRST_STEP.search(parts[0]) and _FIRST_STEP.search(parts[1]):
        parts, labels = [" ".join(part.strip() for part in parts[:2]), *parts[2:]], labels[1:]
        closed = closed[1:]
    prompt, first = _split_problem(parts[0])
    return LabelledSolution(
        prompt=prompt,
        steps=(first, *(part.strip() for part in parts[1:])),
        labels=(*labels, *([None] * (len(parts) - len(closed)))),
        first_error=first_error_of(labels),
        source=_maybe_text(item, "task") or "",
    )


def to_math_shepherd(solution: LabelledSolution, *, threshold: float | None = None) -> dict[str, Any]:
    """As Math-Shepherd publishes it; steps that are not numbered "Step i:" are numbered, space around a step is lost.

    Soft labels need a `threshold`. Raises `TraceError` without one, on a step without a label, on the tag inside a
    text, and where the problem says "Step 1:" itself.
    """
    solution = _hard(solution, threshold, "Math-Shepherd")
    labels = _all_labels(solution, "Math-Shepherd")
    for i, text in enumerate((solution.prompt, *solution.steps)):
        if TAG in text:
            where = "the problem" if i == 0 else f"step {i - 1}"
            raise TraceError(f"{where} contains the tag {TAG}; expected it only at the end of steps (remove it)")
    prompt, steps = _numbered(solution)
    lines = [f"{prompt} {steps[0]}", *steps[1:]] if steps else [prompt]
    return {
        "input": "\n".join(f"{line} {TAG}" for line in lines),
        "label": "\n".join(f"{line} {'+' if label else '-'}" for line, label in zip(lines, labels, strict=True)),
        "task": solution.source,
    }


# ProcessBench


def from_process_bench(item: Any) -> LabelledSolution:
    """`{"id", "generator", "problem", "steps", "final_answer_correct", "label"}`, label the index of the first error.

    Steps before it are right; those after it have no label.
    """
    steps, first = _texts(item, "steps"), _index(item.get("label"), "label")
    if not -1 <= first < len(steps):
        raise TraceError(f"label is {first} in {len(steps)} steps; expected an index from 0, or -1 for no error")
    right = len(steps) if first < 0 else first
    labels = [1.0 if i < right else 0.0 if i == right else None for i in range(len(steps))]
    correct = item.get("final_answer_correct")
    return LabelledSolution(
        prompt=_text(item, "problem"),
        steps=steps,
        labels=tuple(labels),
        final_answer_correct=None if correct is None else _bool(correct, "final_answer_correct"),
        first_error=first,
        source=_maybe_text(item, "id") or "",
        generator=_maybe_text(item, "generator") or "",
    )


def to_process_bench(solution: LabelledSolution, *, threshold: float | None = None) -> dict[str, Any]:
    """As ProcessBench publishes it; labels after the first error are lost, `final_answer_correct` may be null.

    Raises `TraceError` where the first error is not known: soft labels need a `threshold`.
    """
    if solution.first_error is None:
        solution = _hard(solution, threshold, "ProcessBench")
    return {
        "id": solution.source,
        "generator": solution.generator,
        "problem": solution.prompt,
        "steps": list(solution.steps),
        "final_answer_correct": solution.final_answer_correct,
        "label": _known_first_error(solution),
    }


# RLHFlow


def from_rlhflow(item: Any) -> LabelledSolution:
    """`{"conversations": [{"role", "content"}, …]}`: the user says a step, the first after the problem; replies + or -.

    Raises `TraceError` on another reply, or if nothing says where the problem ends, as for `from_math_shepherd`.
    """
    turns = _list(item, "conversations")
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
        raise TraceError(f"roles are {roles}; expected user and assistant in turn, one reply per step")
    texts, replies = [_text(turn, "content") for turn in turns[::2]], [_text(turn, "content") for turn in turns[1::2]]
    for i, reply in enumerate(replies):
        if reply.strip() not in ("+", "-"):
            raise TraceError(f"the reply to step {i} is {reply[:20]!r}; expected + or -")
    labels = tuple(float(reply.strip() == "+") for reply in replies)
    prompt, first = _split_problem(texts[0])
    steps = (first, *(text.strip() for text in texts[1:]))
    return LabelledSolution(prompt=prompt, steps=steps, labels=labels, first_error=first_error_of(labels))


def to_rlhflow(solution: LabelledSolution, *, threshold: float | None = None) -> dict[str, Any]:
    """As RLHFlow trains on it; numbers steps and refuses as `to_math_shepherd` does, but knows no tag."""
    solution = _hard(solution, threshold, "RLHFlow's format")
    labels = _all_labels(solution, "RLHFlow's format")
    prompt, steps = _numbered(solution)
    turns: list[dict[str, str]] = []
    for i, (step, label) in enumerate(zip(steps, labels, strict=True)):
        turns.append({"role": "user", "content": f"{prompt} {step}" if i == 0 else step})
        turns.append({"role": "assistant", "content": "+" if label else "-"})
    return {"conversations": turns}


# Without labels, and whichever it is

type Format = Literal["trl", "prm800k", "math-shepherd", "process-bench", "rlhflow", "unlabelled"]
"""The formats by name; `unlabelled` is what `from_unlabelled` reads."""


def from_unlabelled(item: Any) -> LabelledSolution:
    """A problem (`problem`, `prompt` or `question`) and its steps, as a list (`steps` or `completions`) or one text.

    The text is under `solution` or `output`: its steps are its paragraphs, or its lines if it has no blank one. Knows
    `answer`, `final_answer_correct`, `id`, `source` and `generator` where they are there.
    """
    problem = next((name for name in ("problem", "prompt", "question") if name in item), "problem")
    if "solution" in item or "output" in item:
        text = _text(item, "solution" if "solution" in item else "output")
        pieces = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text.strip()) else text.split("\n")
        steps = tuple(piece.strip() for piece in pieces if piece.strip())
    else:
        steps = _texts(item, "completions" if "completions" in item else "steps")
    correct = item.get("final_answer_correct")
    return LabelledSolution(
        prompt=_text(item, problem),
        steps=steps,
        labels=(None,) * len(steps),
        answer=_maybe_text(item, "answer"),
        final_answer_correct=None if correct is None else _bool(correct, "final_answer_correct"),
        source=_maybe_text(item, "source") or _maybe_text(item, "id") or "",
        generator=_maybe_text(item, "generator") or "",
    )


def find_format(item: Any) -> Format:
    """The format of a record, by the names in it. Raises `TraceError` if it is none of them."""
    names = set(item) if isinstance(item, dict) else set()
    if "conversations" in names:
        return "rlhflow"
    if isinstance(item, dict) and isinstance(item.get("label"), dict) and isinstance(item.get("question"), dict):
        return "prm800k"
    if {"input", "label"} <= names:
        return "math-shepherd"
    if {"problem", "steps", "label"} <= names:
        return "process-bench"
    if {"prompt", "completions", "labels"} <= names:
        return "trl"
    if names & {"problem", "prompt", "question"} and names & {"steps", "completions", "solution", "output"}:
        return "unlabelled"
    found = f"names {', '.join(sorted(map(str, names))[:8]) or 'none'}" if isinstance(item, dict) else f"{item!r:.40}"
    raise TraceError(
        f"a record with {found}; expected prompt, completions, labels (TRL), question and label (PRM800K), input and "
        f"label (Math-Shepherd), problem, steps, label (ProcessBench), conversations (RLHFlow), or problem and steps "
        f"without labels"
    )


# Files


def read_solutions(
    path: str | Path,
    *,
    format: Format | None = None,
    neutral: Neutral = "right",
    broken: list[TraceError] | None = None,
) -> Iterator[LabelledSolution]:
    """Solutions of a file in any of the formats; without `format`, each record says by its names which it is.

    The rest as `read_trl`. Raises `TraceError` also on a file that cannot be opened, and on one without a record.
    """
    parse: dict[Format, Callable[[Any], list[LabelledSolution]]] = {
        "trl": lambda item: [from_trl(item)],
        "prm800k": lambda item: from_prm800k(item, neutral=neutral),
        "math-shepherd": lambda item: [from_math_shepherd(item)],
        "process-bench": lambda item: [from_process_bench(item)],
        "rlhflow": lambda item: [from_rlhflow(item)],
        "unlabelled": lambda item: [from_unlabelled(item)],
    }
    before = 0 if broken is None else len(broken)
    count = 0
    try:
        for solution in _read(path, lambda item: parse[format or find_format(item)](item), broken):
            count += 1
            yield solution
    except OSError as error:
        raise TraceError(f"{path} cannot be read ({error.strerror}); expected a file of JSON lines") from error
    if count == 0 and (broken is None or len(broken) == before):
        raise TraceError(f"{path} holds no solution; expected a JSON object per line")


def read_trl(path: str | Path, *, broken: list[TraceError] | None = None) -> Iterator[LabelledSolution]:
    """Solutions of a JSON-lines file, one at a time; here and below a `.json` file that is one list is read too.

    A bad line raises `TraceError` with file and line; with `broken` it is put there instead, and reading goes on.
    """
    return _read(path, lambda item: [from_trl(item)], broken)


def read_prm800k(
    path: str | Path, *, neutral: Neutral, broken: list[TraceError] | None = None
) -> Iterator[LabelledSolution]:
    """All branches of a PRM800K file, phase 1 or 2; `neutral` as in `from_prm800k`, the rest as `read_trl`."""
    return _read(path, lambda item: from_prm800k(item, neutral=neutral), broken)


def read_math_shepherd(path: str | Path, *, broken: list[TraceError] | None = None) -> Iterator[LabelledSolution]:
    """Solutions of a Math-Shepherd file, as `read_trl`."""
    return _read(path, lambda item: [from_math_shepherd(item)], broken)


def read_process_bench(path: str | Path, *, broken: list[TraceError] | None = None) -> Iterator[LabelledSolution]:
    """Solutions of a ProcessBench file, as `read_trl`."""
    return _read(path, lambda item: [from_process_bench(item)], broken)


def read_rlhflow(path: str | Path, *, broken: list[TraceError] | None = None) -> Iterator[LabelledSolution]:
    """Solutions of an RLHFlow file, as `read_trl`."""
    return _read(path, lambda item: [from_rlhflow(item)], broken)


def write_trl(path: str | Path, solutions: Iterable[LabelledSolution], *, threshold: float | None = None) -> int:
    """Write JSON lines, and return how many. The file appears whole or, where one is refused, not at all."""
    return _write(path, (to_trl(solution, threshold=threshold) for solution in solutions))


def write_prm800k(path: str | Path, solutions: Iterable[LabelledSolution], *, threshold: float | None = None) -> int:
    """As `write_trl`."""
    return _write(path, (to_prm800k(solution, threshold=threshold) for solution in solutions))


def write_math_shepherd(
    path: str | Path, solutions: Iterable[LabelledSolution], *, threshold: float | None = None
) -> int:
    """As `write_trl`."""
    return _write(path, (to_math_shepherd(solution, threshold=threshold) for solution in solutions))


def write_process_bench(
    path: str | Path, solutions: Iterable[LabelledSolution], *, threshold: float | None = None
) -> int:
    """As `write_trl`."""
    return _write(path, (to_process_bench(solution, threshold=threshold) for solution in solutions))


def write_rlhflow(path: str | Path, solutions: Iterable[LabelledSolution], *, threshold: float | None = None) -> int:
    """As `write_trl`."""
    return _write(path, (to_rlhflow(solution, threshold=threshold) for solution in solutions))


def _read(
    path: str | Path, parse: Callable[[Any], list[LabelledSolution]], broken: list[TraceError] | None
) -> Iterator[LabelledSolution]:
    for where, text in _items(Path(path)):
        try:
            item = json.loads(text) if isinstance(text, (str, bytes)) else text
            if not isinstance(item, dict):
                raise TraceError(f"found {type(item).__name__}; expected an object")
            solutions = parse(item)
        except (TraceError, ValueError) as error:
            what = error if isinstance(error, TraceError) else f"not JSON ({error}); expected one object per line"
            named = TraceError(f"{path}, {where}: {what}")
            if broken is None:
                raise named from error
            broken.append(named)
        else:
            yield from solutions


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and content of every item: lines of text, or the elements of a list."""
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(64).lstrip().startswith(b"["):
            try:
                items = json.loads(path.read_bytes())
            except ValueError as error:
                raise TraceError(f"{path}: not JSON ({error}); expected a list of objects") from error
            yield from ((f"item {i}", item) for i, item in enumerate(items, 1))
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", line


def _write(path: str | Path, items: Iterable[dict[str, Any]]) -> int:
    path = Path(path)
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
                count += 1
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


# What the formats share

_FIRST_STEP = re.compile(r"(?:^|\s)([Ss]tep 1\s*:)")


def _split_problem(text: str) -> tuple[str, str]:
    """The problem and the first step, which the last "Step 1:" begins, or else what stands after the one blank line or
    the one question mark.
    """
    found = list(_FIRST_STEP.finditer(text))
    if found:
        at = found[-1].start(1)
        return text[:at].strip(), text[at:].strip()
    for mark in ("\n\n", "?"):
        problem, _, first = text.partition(mark)
        if text.count(mark) == 1 and problem.strip() and first.strip():
            return (problem + mark).strip(), first.strip()
    raise TraceError(f"no 'Step 1:' in {text[:60]!r}; expected one where the problem ends and the solution begins")


def _numbered(solution: LabelledSolution) -> tuple[str, list[str]]:
    """Problem and steps, stripped, each step beginning with its "Step i:"."""
    if _FIRST_STEP.search(solution.prompt):
        raise TraceError(
            "the problem contains 'Step 1:', which marks where the solution begins; expected it only there"
        )
    steps = [step.strip() for step in solution.steps]
    if not all(re.match(rf"Step {i}\s*:", step) for i, step in enumerate(steps, 1)):
        steps = [f"Step {i}: {step}" for i, step in enumerate(steps, 1)]
    if any(_FIRST_STEP.search(step) for step in [steps[0][len("Step 1") :]] if steps):
        raise TraceError("step 0 contains a second 'Step 1:'; expected it only at its beginning")
    return solution.prompt.strip(), steps


def _hard(solution: LabelledSolution, threshold: float | None, format: str) -> LabelledSolution:
    if threshold is not None:
        return harden(solution, threshold)
    if solution.is_soft:
        raise TraceError(f"soft labels, which {format} cannot hold; expected 0 and 1, or a threshold to harden them at")
    return solution


def _all_labels(solution: LabelledSolution, format: str) -> list[float]:
    labels = [label for label in solution.labels if label is not None]
    if len(labels) < len(solution.labels):
        missing = solution.labels.index(None)
        raise TraceError(
            f"step {missing} has no label, which {format} cannot hold; expected one per step (`labelled_part` or "
            f"`until_first_error` cut the others off)"
        )
    return labels


def _known_first_error(solution: LabelledSolution) -> int:
    first = first_error_of(solution.labels) if solution.first_error is None else solution.first_error
    if first is None:
        raise TraceError("a step without a label comes before any error; expected to know the first error")
    return first


def _refuse(name: str, found: object, expected: str) -> NoReturn:
    raise TraceError(f"{name} is {str(found)[:60]!r} ({type(found).__name__}); expected {expected}")


def _text(item: Any, name: str) -> str:
    value = item.get(name) if isinstance(item, dict) else None
    return value if isinstance(value, str) else _refuse(name, value, "text")


def _maybe_text(item: Any, name: str) -> str | None:
    return None if item.get(name) is None else _text(item, name)


def _texts(item: Any, name: str) -> tuple[str, ...]:
    values = _list(item, name)
    return tuple(
        value if isinstance(value, str) else _refuse(f"{name}[{i}]", value, "text") for i, value in enumerate(values)
    )


def _list(item: Any, name: str) -> list[Any]:
    value = item.get(name)
    return value if isinstance(value, list) else _refuse(name, value, "a list")


def _dict(item: Any, name: str) -> dict[str, Any]:
    value = item.get(name)
    return value if isinstance(value, dict) else _refuse(name, value, "an object")


def _number(value: Any, name: str) -> float:
    return float(value) if isinstance(value, (bool, int, float)) else _refuse(name, value, "a number")


def _bool(value: Any, name: str) -> bool:
    return value if isinstance(value, bool) else _refuse(name, value, "true or false")


def _index(value: Any, name: str) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else _refuse(name, value, "a whole number")
