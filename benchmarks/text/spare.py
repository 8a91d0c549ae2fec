"""Labels from one pass against a reference solution, from rollouts, and from a search by rollouts (arXiv 2506.15498).

Solutions of arithmetic modulo 7 (two operations in one step, neighbours the other way round) and of shortest paths
(other ways that are as short), with errors, are labelled by

    tree       8 rollouts from every prefix, as Math-Shepherd (2312.08935): right if any of them arrives
    bisection  8 rollouts from the middle of what is left, for the first error only, as OmegaPRM (2406.06592)
    spare      `spare_labels`: one pass of a grader that sees the reference and writes a list of grades
    aligned    the grader's slips alone: what it would be if its alignment never failed
    agreement  the tree and spare, where they find the first error at one place

No network is trained: rollouts are of a programmed solver (errs at 12 % of its steps, takes 15 % of errors back), and
the grader is a program that aligns steps with the reference by what they come to, skipping reference steps that a step
merges. `spare_strict` calls wrong what it cannot align: there, another valid way is an error. `spare` also takes what
follows from the step before by its own calculation, and then cannot tell whether it was the calculation to do. Either
slips on 5 % of its grades. Bounds: `none`, which finds no error anywhere.

Cost is in calls, words read and words written, and in seconds: those of one core that a network of 0.1 M parameters
takes here to read and write as many, in batches of 64. Steps have six words here, so that a grade is longer than what
it grades, where in the paper it is the other way round: that makes rollouts cheaper here than there.

Also: the label of the last step overwritten by the outcome, as the paper has it (`spare_last_is_outcome`), and lists of
grades that are cut off before their end, with what is missing left without a label or, as the paper has it, taken for
wrong (`spare_cut_unlabelled`, `spare_cut_wrong`).
"""

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from envs.reasoning import Arithmetic, Habits, Hops, Problem, World
from envs.reasoning import LabelledSolution as Truth
from grm.data.stepwise import LabelledSolution, harden
from grm.metrics import Interval, expected_interval
from grm.text.annotate import Prefix, Ungraded, consensus, monte_carlo_labels, spare_labels
from grm.text.huggingface import HuggingFaceModel
from grm.text.language import Completion, Usage
from grm.text.metrics import first_error_accuracy, first_error_f1
from grm.text.tiny import make_model, make_tokenizer

from ..results import write_result

MODULUS = 7
WORLDS: dict[str, World[Any, Any]] = {"arithmetic": Arithmetic(MODULUS), "hops": Hops(3)}
LENGTHS = (4, 7)
ROLLOUTS, SLIP = 8, 0.05
SOLVER = Habits(error_rate=0.12, later_error_rate=0.12, correction_rate=0.15)
WORD = re.compile(r"\w+|[^\w\s]")
ENTRY = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)
CALCULATION = re.compile(r"(\d+) (.+) = (\d+)")
HOP = re.compile(r"(p\d+) to (p\d+)")


def words(text: str) -> int:
    return len(WORD.findall(text))


# The grader


def comes_to(step: str) -> str:
    """What a step arrives at: its result, its place, its answer."""
    return step.split()[-1]


def follows(question: str, before: str | None, step: str) -> bool:
    """Whether a step holds by its own calculation, from what the step before came to: not whether it was the one to do.

    An answer holds if it is what the step before came to; of a path, where nothing is calculated, it never does.
    """
    if calculation := CALCULATION.fullmatch(step):
        start, operations, result = calculation.groups()
        value = int(start)
        for operator, operand in re.findall(r"([-+*]) (\d+)", operations):
            value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand)}[operator]
        first = question.split(" : ")[-1].split()[0]
        return value % MODULUS == int(result) and start == (comes_to(before) if before is not None else first)
    if hop := HOP.fullmatch(step):
        here, there = hop.groups()
        streets = {frozenset(street.split()) for street in question.split(" : ")[-1].split(" , ")}
        start = comes_to(before) if before is not None else question.split()[2]
        return here == start and frozenset((here, there)) in streets
    return before is not None and CALCULATION.fullmatch(before) is not None and comes_to(before) == comes_to(step)


def grade(
    question: str, steps: Sequence[str], reference: Sequence[str], *, strict: bool
) -> list[tuple[bool, list[int]]]:
    """Whether each step is right, and the reference steps it is aligned with, from 0."""
    grades: list[tuple[bool, list[int]]] = []
    cursor, before = 0, None
    for step in steps:
        own = follows(question, before, step)
        # The span of the reference that this step sums up: a single step, or two that it merges.
        ends = [
            i
            for i in range(cursor, min(cursor + 2, len(reference)))
            if comes_to(reference[i]) == comes_to(step)
            and step.startswith("answer") == reference[i].startswith("answer")
        ]
        aligned = bool(ends) and (own or step in reference)
        span = list(range(cursor, ends[0] + 1)) if aligned else []
        cursor = ends[0] + 1 if aligned else min(cursor + 1, len(reference))
        grades.append((aligned or (own and not strict), span))
        before = step
    return grades


class Grader:
    """A `Writer` that grades by a program, slips, and counts the words it reads and writes."""

    def __init__(self, rng: np.random.Generator, *, strict: bool, slip: float = SLIP) -> None:
        self.usage = Usage()
        self._rng, self._strict, self._slip = rng, strict, slip

    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[list[Completion]]:
        """A list of grades for each prompt of `spare_prompt`, cut off behind `max_tokens` words."""
        return [[self._answer(prompt, max_tokens)] for prompt in prompts]

    def _answer(self, prompt: str, max_tokens: int) -> Completion:
        body, _, rest = prompt.rpartition("Student solution:")
        head, _, listed = body.rpartition("Reference solution:")
        question = head.rpartition("Problem: ")[2].strip()
        reference, steps = ([text for _, text in ENTRY.findall(part)] for part in (listed, rest))
        entries = []
        for i, (right, span) in enumerate(grade(question, steps, reference, strict=self._strict)):
            said = right != (self._rng.random() < self._slip)
            entries.append(
                {
                    "student_step": i + 1,
                    "reference_steps": [j + 1 for j in span],
                    "label": "CORRECT" if said else "INCORRECT",
                }
            )
        text = json.dumps(entries)
        ends = [found.end() for found in WORD.finditer(text)]
        cut = len(ends) > max_tokens
        self.usage.calls += 1
        self.usage.prompt_tokens += words(prompt)
        self.usage.completion_tokens += min(len(ends), max_tokens)
        return Completion(
            text=text[: ends[max_tokens - 1]] if cut else text,
            tokens=min(len(ends), max_tokens),
            finish="length" if cut else "stop",
        )


# The rollouts


class Solver:
    """Completes prefixes of one problem by a program, and counts what it reads and writes."""

    def __init__(self, world: World[Any, Any], problem: Problem[Any], rng: np.random.Generator) -> None:
        self.usage = Usage()
        self._world, self._problem, self._rng = world, problem, rng

    def __call__(self, prefixes: Sequence[Prefix], samples: int) -> list[list[str | None]]:
        answers = []
        for question, steps in prefixes:
            solved = [self._world.solve(self._problem, self._rng, SOLVER, prefix=steps) for _ in range(samples)]
            self.usage.calls += samples
            self.usage.prompt_tokens += words(question) + sum(map(words, steps))  # read once for all samples
            self.usage.completion_tokens += sum(words(step) for one in solved for step in one.steps[len(steps) :])
            answers.append([one.answer for one in solved])
        return answers


def bisect(solution: LabelledSolution, complete: Solver) -> int:
    """First step from which no rollout arrives, if none arrives after it either; -1 if from the last step one does."""
    low, high = 0, len(solution.steps)
    while low < high:
        middle = (low + high) // 2
        [answers] = complete([(solution.prompt, solution.steps[: middle + 1])], ROLLOUTS)
        if any(answer == solution.answer for answer in answers):
            low = middle + 1
        else:
            high = middle
    return low if low < len(solution.steps) else -1


def draw(
    world: World[Any, Any], rng: np.random.Generator, count: int, detour_rate: float
) -> list[tuple[Problem[Any], Truth]]:
    """Solutions of which about half have an error."""
    habits = Habits(error_rate=0.12, later_error_rate=0.12, detour_rate=detour_rate)
    problems = [world.draw(rng, length=int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))) for _ in range(count)]
    return [(problem, world.solve(problem, rng, habits)) for problem in problems]


def bare(problem: Problem[Any], truth: Truth) -> LabelledSolution:
    return LabelledSolution(
        prompt=truth.question,
        steps=truth.steps,
        labels=(None,) * len(truth.steps),
        answer=problem.answer,
        final_answer_correct=truth.answer_right,
    )


def step_marks(labelled: Sequence[LabelledSolution], truths: Sequence[Truth]) -> dict[str, float]:
    """Accuracy of the labels of single steps up to the true first error, and precision and recall of finding errors."""
    pairs = [
        (label < 0.5, not right)
        for one, truth in zip(labelled, truths, strict=True)
        for i, (label, right) in enumerate(zip(one.labels, truth.local, strict=True))
        if label is not None and (truth.first_error < 0 or i <= truth.first_error)
    ]
    said, wrong = np.array(pairs, bool).T
    return {
        "step_accuracy": float((said == wrong).mean()),
        "error_precision": float(wrong[said].mean()) if said.any() else 0.0,
        "error_recall": float(said[wrong].mean()),
    }


def seconds_per_word() -> tuple[float, float]:
    """What a small network takes here to read a word and to write one, 64 texts at a time."""
    tokenizer = make_tokenizer([" ".join(str(i) for i in range(60))])
    tokenizer.eos_token = None  # it has learned nothing, and would end anywhere
    network = make_model(tokenizer, context=640)
    network.generation_config.eos_token_id = None
    model = HuggingFaceModel(network, tokenizer, batch=64)
    # Different prompts: equal ones would be read once.
    prompts = [" ".join(str((i * j) % 60) for j in range(256)) for i in range(64)]
    spans = []
    for written in (1, 65):
        began = time.process_time()
        model.generate(prompts, max_tokens=written)
        spans.append(time.process_time() - began)
    return spans[0] / (64 * 256), max(spans[1] - spans[0], 0.0) / (64 * 64)


def run(name: str, detour_rate: float, seed: int, count: int) -> list[dict[str, object]]:
    """All ways of labelling, on the same solutions."""
    world = WORLDS[name]
    rng = np.random.default_rng([seed, int(100 * detour_rate)])
    drawn = draw(world, rng, count, detour_rate)
    truths = [truth for _, truth in drawn]
    unlabelled = [bare(problem, truth) for problem, truth in drawn]
    gold = [truth.first_error for truth in truths]
    elsewhere = [not set(truth.steps) <= set(problem.reference) for problem, truth in drawn]
    other_way = [i for i, away in enumerate(elsewhere) if away and gold[i] < 0]
    rows: list[dict[str, object]] = []

    def report(
        method: str,
        found: Sequence[int | None],
        usage: Sequence[Usage],
        labelled: Sequence[LabelledSolution] | None = None,
    ) -> None:
        marks: dict[str, float] = {
            "location_accuracy": first_error_accuracy(found, gold),
            "location_f1": first_error_f1(found, gold).f1,
            "unread": sum(place is None for place in found) / len(truths),
            "calls": sum(one.calls for one in usage) / len(truths),
            "read": sum(one.prompt_tokens for one in usage) / len(truths),
            "written": sum(one.completion_tokens for one in usage) / len(truths),
        }
        if other_way:
            marks["other_way_taken_for_wrong"] = float(np.mean([found[i] != -1 for i in other_way]))
        if labelled is not None:
            marks |= step_marks(labelled, truths)
        rows.append({"domain": name, "detours": detour_rate, "seed": seed, "labels": method} | marks)

    solvers = [Solver(world, problem, rng) for problem, _ in drawn]
    tree = [
        harden(monte_carlo_labels(one, solver, rollouts=ROLLOUTS), 0.0)
        for one, solver in zip(unlabelled, solvers, strict=True)
    ]
    report("tree", [one.first_error for one in tree], [s.usage for s in solvers], tree)
    solvers = [Solver(world, problem, rng) for problem, _ in drawn]
    places = [bisect(one, solver) for one, solver in zip(unlabelled, solvers, strict=True)]
    report("bisection", places, [s.usage for s in solvers])
    graded: dict[str, list[LabelledSolution]] = {}
    ways: dict[str, tuple[bool, Ungraded, bool, float]] = {
        "spare": (False, "unlabelled", False, 1.0),
        "spare_strict": (True, "unlabelled", False, 1.0),
        "spare_last_is_outcome": (False, "unlabelled", True, 1.0),
        "spare_cut_unlabelled": (False, "unlabelled", False, 0.7),
        "spare_cut_wrong": (False, "wrong", False, 0.7),
    }
    for method, (strict, ungraded, outcome, share) in ways.items():
        grader = Grader(np.random.default_rng([seed, 7]), strict=strict)
        graded[method] = [
            spare_labels(
                one,
                grader,
                problem.reference,
                ungraded=ungraded,
                last_is_outcome=outcome,
                max_tokens=2048 if share == 1 else int(share * 22 * len(one.steps)),
            )
            for one, (problem, _) in zip(unlabelled, drawn, strict=True)
        ]
        report(method, [one.first_error for one in graded[method]], [grader.usage], graded[method])
    slips = np.random.default_rng([seed, 8])
    alone = [
        next((i for i, right in enumerate(truth.local) if right == (slips.random() < SLIP)), -1) for truth in truths
    ]
    report("aligned", alone, [])
    report("none", [-1] * len(truths), [])
    agreed = consensus(zip(tree, graded["spare"], strict=True))
    kept = [i for i, (a, b) in enumerate(zip(tree, graded["spare"], strict=True)) if a.first_error == b.first_error]
    where = [gold[i] for i in kept]
    found = [one.first_error for one in agreed.kept]
    rows.append(
        {
            "domain": name,
            "detours": detour_rate,
            "seed": seed,
            "labels": "agreement",
            "location_accuracy": first_error_accuracy(found, where),
            "location_f1": first_error_f1(found, where).f1,
            "keep_rate": agreed.keep_rate,
        }
    )
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], reading: float, writing: float) -> dict[str, float | Interval]:
    summary: dict[str, float | Interval] = {"seconds_per_word_read": reading, "seconds_per_word_written": writing}
    values: dict[str, list[float]] = {}
    for row in rows:
        where = f"{row['domain']}.detours{row['detours']}"
        for metric, value in row.items():
            if metric not in ("domain", "detours", "seed", "labels"):
                values.setdefault(f"{metric}.{where}.{row['labels']}", []).append(value)
        if row.get("calls"):
            seconds = reading * row["read"] + writing * row["written"]
            values.setdefault(f"seconds.{where}.{row['labels']}", []).append(seconds)
    for name, found in values.items():
        summary[name] = expected_interval(found, np.random.default_rng(0))
    for where in sorted({f"{row['domain']}.detours{row['detours']}" for row in rows}):
        for other in ("tree", "bisection"):
            for cost in ("calls", "written", "seconds"):
                mine, theirs = (np.array(values[f"{cost}.{where}.{one}"]) for one in ("spare", other))
                summary[f"{cost}_of_{other}_to_spare.{where}"] = float(theirs.mean() / mine.mean())
            for metric in ("location_accuracy", "location_f1"):
                mine, theirs = (np.array(values[f"{metric}.{where}.{one}"]) for one in ("spare", other))
                summary[f"{metric}_spare_minus_{other}.{where}"] = expected_interval(
                    mine - theirs, np.random.default_rng(0)
                )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solutions", type=int, default=200, help="per seed and kind of solution")
    parser.add_argument("--detours", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    reading, writing = seconds_per_word()
    rows: list[dict[str, object]] = []
    with Progress() as progress:
        bar = progress.add_task("labelling", total=len(WORLDS) * len(options.detours) * options.seeds)
        for name in WORLDS:
            for detour_rate in options.detours:
                for seed in range(options.seeds):
                    rows += run(name, detour_rate, seed, options.solutions)
                    progress.advance(bar)
    summary = summarise(rows, reading, writing)
    for name, value in summary.items():
        print(name, value)
    about = {"rollouts": ROLLOUTS, "slips": SLIP, "solutions_per_seed": options.solutions}
    print(write_result("text_spare", summary, seeds=list(range(options.seeds)), rows=rows, **about))


if __name__ == "__main__":
    main()
