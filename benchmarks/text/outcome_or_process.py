"""Does aggregating steps decay with length, and judging outcomes not? (Multi-RM, arXiv 2510.00492, section 5 and 6)

Three kinds of solutions, of T steps, three in ten of them right:
`local`: a wrong one has one wrong step, carried on correctly to a wrong answer; a right one has none.
`spread`: after its first wrong step a wrong one has only wrong steps.
`forgiven`: as `local`, but half of the right ones have a wrong step too: taken back ("wait ..."), or undone by luck.
(Of the wrong ones, half go on to err and to correct themselves, so that a correction says nothing by itself.)
`simulated`: judges of known quality, where the theory holds by construction. A step's log-odds are +2 or -2 and noise
of 1.5, independent of the others'; the outcome's likewise, once, whatever T is.
`trained`: chains of modular arithmetic; one tiny language model learns right solutions, and on top of it, once per seed
and on the same labelled solutions of all lengths and kinds, are fitted a step judge (labels up to the first error;
aggregated by product, minimum and mean), an outcome judge (one label at the end) and a value judge (the outcome as the
label of every step, read at the last). `last` of the step judge is refused: its scores are of another kind.
Measured by T: accuracy of the best of N candidates, and ROC AUC of right solutions against wrong ones. Bounds: any of
the N right, majority vote, drawing one blindly, and the gold labels of the steps. `decay` is what is lost from the
shortest T to the longest. The intervals see the seeds; one language model, one test set.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.progress import Progress

from envs.reasoning import Arithmetic, Habits, Mistake, Problem
from envs.reasoning import LabelledSolution as Truth
from grm.aggregate import last, mean, minimum, product
from grm.data.stepwise import LabelledSolution
from grm.metrics import Interval, expected_interval, roc_auc
from grm.reward import ScoredJudgement, ScoreKind
from grm.text.conventions import TRL
from grm.text.discriminative import (
    DiscriminativeJudge,
    DisORM,
    fit_judge,
    outcome_labels,
)
from grm.text.scoring import judge_all
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

from ..results import write_result

WORLD = Arithmetic(5)
CONVENTION = replace(TRL, opening="{bos}{question}\n")
KINDS = ("local", "spread", "forgiven")
RIGHT, FORGIVEN = 0.3, 0.5
MISTAKES = (Mistake.SLIP, Mistake.COPY)
CARRIED_ON = Habits(mistakes=MISTAKES)
ALL_LOST = replace(CARRIED_ON, later_error_rate=1.0)
TAKEN_BACK = replace(CARRIED_ON, correction_rate=0.5, luck_rate=0.5)
IN_VAIN = replace(CARRIED_ON, correction_rate=0.5, later_error_rate=0.5)
SIGNAL, NOISE, DRAWS = 2.0, 1.5, 1000

type Aggregator = Callable[[ScoredJudgement], float]
OF_STEPS: dict[str, Aggregator] = {"product": product, "minimum": minimum, "mean": mean}


def simulate(kind: str, length: int, candidates: int, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Accuracy of the best of N and AUC, by aggregator, of judges of known quality."""
    right = rng.random((DRAWS, candidates)) < RIGHT
    first = rng.integers(length, size=right.shape)[..., None]
    steps = np.arange(length)
    wrong_step = (steps >= first) if kind == "spread" else (steps == first)
    flawed = ~right | (right & (rng.random(right.shape) < FORGIVEN) & (kind == "forgiven"))
    valid = ~(wrong_step & flawed[..., None])
    log_odds = np.where(valid, SIGNAL, -SIGNAL) + NOISE * rng.standard_normal(valid.shape)
    log_chance = -np.logaddexp(0, -log_odds)
    outcome = np.where(right, SIGNAL, -SIGNAL) + NOISE * rng.standard_normal(right.shape)
    scores = {
        "steps.product": log_chance.sum(-1),
        "steps.minimum": log_chance.min(-1),
        "steps.mean": np.exp(log_chance).mean(-1),
        "outcome.last": outcome,
    }
    return {name: (best_of_n(score, right), roc_auc(score[right], score[~right])) for name, score in scores.items()}


def best_of_n(scores: Float[np.ndarray, "problems n"], right: Bool[np.ndarray, "problems n"]) -> float:
    """Share of problems whose best candidate is right; of equally good ones, the mean."""
    best = scores == scores.max(axis=1, keepdims=True)
    return float(((best & right).sum(1) / best.sum(1)).mean())


def write(problem: Problem[Any], kind: str, rng: np.random.Generator, *, right: bool) -> Truth:
    """A solution of the kind; one whose answer comes out otherwise than it should is written anew."""
    corrected = kind == "forgiven" and rng.random() < FORGIVEN
    if right and not corrected:
        return WORLD.solve(problem, rng)
    # The wrong ones correct themselves too, in vain: else "wait" would give the right ones away.
    habits = (TAKEN_BACK if right else IN_VAIN) if corrected else ALL_LOST if kind == "spread" else CARRIED_ON
    for _ in range(50):
        # An error in the answer's own step would show the same at any length.
        found = WORLD.solve(problem, rng, habits, first_error=int(rng.integers(len(problem.reference) - 1)))
        if found.answer_right == right:
            return found
    return WORLD.solve(problem, rng, CARRIED_ON) if right else write(problem, kind, rng, right=right)


def examples_of(count: int, lengths: Sequence[int], seed: int) -> list[Truth]:
    """Labelled solutions of all lengths and kinds, half of them right."""
    rng = np.random.default_rng([seed, 1])
    return [
        write(
            WORLD.draw(rng, length=int(rng.choice(lengths))), KINDS[int(rng.integers(3))], rng, right=rng.random() < 0.5
        )
        for _ in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of each problem N solutions, in order."""

    solutions: list[Truth]
    n: int

    @property
    def right(self) -> Bool[np.ndarray, "problems n"]:
        return np.array([s.answer_right for s in self.solutions]).reshape(-1, self.n)

    def measure(self, scores: Sequence[float]) -> tuple[float, float]:
        """Accuracy of the best of N, and AUC."""
        table = np.asarray(scores).reshape(-1, self.n)
        return best_of_n(table, self.right), roc_auc(table[self.right], table[~self.right])

    def bounds(self) -> dict[str, float]:
        rows = [self.solutions[i : i + self.n] for i in range(0, len(self.solutions), self.n)]
        gold = np.array([all(s.local) for s in self.solutions], float).reshape(-1, self.n)
        votes = [Counter(s.answer for s in row).most_common(1)[0][0] for row in rows]
        return {
            "any": float(self.right.any(1).mean()),
            "blind": float(self.right.mean()),
            "gold_steps": best_of_n(gold, self.right),
            "majority": float(
                np.mean(
                    [
                        any(s.answer == vote and s.answer_right for s in row)
                        for row, vote in zip(rows, votes, strict=True)
                    ]
                )
            ),
        }


def candidates_of(kind: str, length: int, problems: int, n: int) -> Candidates:
    rng = np.random.default_rng([2, KINDS.index(kind), length])
    solutions = []
    for _ in range(problems):
        problem = WORLD.draw(rng, length=length)
        solutions += [write(problem, kind, rng, right=rng.random() < RIGHT) for _ in range(n)]
    return Candidates(solutions, n)


def fit_judges(
    model: Any, tokenizer: Any, solutions: Sequence[Truth], options: argparse.Namespace, seed: int
) -> dict[str, tuple[DiscriminativeJudge, DiscriminativeJudge | DisORM, dict[str, Aggregator]]]:
    """By name: the network, the judge and how it may be aggregated."""
    labels: dict[str, list[tuple[float | None, ...]]] = {
        "steps": [tuple(float(valid) for valid in s.local) for s in solutions],
        "outcome": [outcome_labels(s.steps, right=s.answer_right) for s in solutions],
        "value": [(float(s.answer_right),) * len(s.steps) for s in solutions],
    }
    found: dict[str, tuple[DiscriminativeJudge, DiscriminativeJudge | DisORM, dict[str, Aggregator]]] = {}
    for name, of_judge in labels.items():
        kind = ScoreKind.CORRECTNESS if name == "steps" else ScoreKind.VALUE
        network = DiscriminativeJudge.on_top_of(model, tokenizer, replace(CONVENTION, kind=kind), seed=seed)
        examples = [
            LabelledSolution(prompt=s.question, steps=s.steps, labels=of_solution)
            for s, of_solution in zip(solutions, of_judge, strict=True)
        ]
        fit_judge(network, examples, FitSettings(steps=options.steps, batch=32, seed=seed))
        judge = DisORM(network) if name == "outcome" else network
        found[name] = (network, judge, OF_STEPS if name == "steps" else {"last": last})
    return found


def summarise(
    accuracy: Mapping[tuple[str, str, str, int], list[tuple[float, float]]], lengths: Mapping[str, Sequence[int]]
) -> dict[str, float | Interval]:
    """Of seeds: accuracy and AUC by (part, kind, aggregator, T), what is lost with T, and against the outcome judge."""
    summary: dict[str, float | Interval] = {}

    def over_seeds(key: str, values: Any) -> None:
        summary[key] = expected_interval(values, np.random.default_rng(0))

    for (part, kind, name, length), values in accuracy.items():
        table = np.array(values)
        over_seeds(f"{part}.{kind}.accuracy.{name}.T{length}", table[:, 0])
        over_seeds(f"{part}.{kind}.auc.{name}.T{length}", table[:, 1])
        shortest, longest = min(lengths[part]), max(lengths[part])
        if length == longest and shortest < longest:
            lost = np.array(accuracy[part, kind, name, shortest]) - table
            over_seeds(f"{part}.{kind}.decay.accuracy.{name}", lost[:, 0])
            over_seeds(f"{part}.{kind}.decay.auc.{name}", lost[:, 1])
        if not name.startswith("outcome"):
            ahead = np.array(accuracy[part, kind, "outcome.last", length]) - table
            over_seeds(f"{part}.{kind}.outcome_ahead.auc.{name}.T{length}", ahead[:, 1])
    return summary


def measure_trained(
    options: argparse.Namespace,
    found: dict[tuple[str, str, str, int], list[tuple[float, float]]],
    summary: dict[str, float | Interval],
) -> dict[str, object]:
    """Adds accuracy and AUC to `found`, bounds and compute to `summary`; returns what it learned from."""
    rng = np.random.default_rng(0)
    right = [WORLD.solve(WORLD.draw(rng, length=int(rng.choice(options.lengths))), rng) for _ in range(options.texts)]
    labelled = examples_of(options.labelled, options.lengths, 1)
    passages = [Passage(prompt=s.question + "\n", text="\n".join(s.steps)) for s in right]
    tokenizer = make_tokenizer([s.question + "\n" + "\n".join(s.steps) for s in (*right, *labelled)])
    model = make_model(tokenizer, context=160)
    settings = FitSettings(steps=options.language_steps, batch=32, learning_rate=3e-3)
    print(f"language learned to {fit_language_model(model, tokenizer, passages, settings):.3f} nats", flush=True)
    tests = {(k, t): candidates_of(k, t, options.problems, options.candidates) for k in KINDS for t in options.lengths}
    for (kind, length), test in tests.items():
        for name, value in test.bounds().items():
            summary[f"trained.{kind}.accuracy.bound_{name}.T{length}"] = value
    with Progress() as progress:
        bar = progress.add_task("fitting", total=options.seeds)
        for seed in range(options.seeds):
            for name, (network, judge, aggregators) in fit_judges(model, tokenizer, labelled, options, seed).items():
                for (kind, length), test in tests.items():
                    judgements = judge_all(judge, [(s.question, s.steps) for s in test.solutions])
                    for how, aggregate in aggregators.items():
                        measured = test.measure([aggregate(judgement) for judgement in judgements])
                        found.setdefault(("trained", kind, f"{name}.{how}", length), []).append(measured)
                summary[f"trained.forwards_per_solution.{name}"] = network.usage.calls / sum(
                    len(test.solutions) for test in tests.values()
                )
                summary[f"trained.tokens_per_solution.{name}"] = network.usage.prompt_tokens / sum(
                    len(test.solutions) for test in tests.values()
                )
            progress.advance(bar)
    return {
        "problems_per_kind_and_length": options.problems,
        "labelled_solutions": options.labelled,
        "labels_of_steps": sum((s.first_error + 1) or len(s.steps) for s in labelled),
        "labels_of_outcomes": len(labelled),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["simulated", "trained"], default=["simulated", "trained"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 4, 8], help="T of the trained judges")
    parser.add_argument("--simulated-lengths", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--candidates", type=int, default=16, help="N")
    parser.add_argument("--problems", type=int, default=40, help="per kind and T")
    parser.add_argument("--texts", type=int, default=9000, help="right solutions that the language is learned from")
    parser.add_argument("--language-steps", type=int, default=800)
    parser.add_argument("--labelled", type=int, default=8000, help="labelled solutions")
    parser.add_argument("--steps", type=int, default=500, help="gradient steps of a judge, 32 solutions each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.texts = options.labelled = 60
        options.language_steps = options.steps = 2
        options.problems, options.candidates, options.seeds = 6, 4, min(options.seeds, 2)
        options.lengths, options.simulated_lengths = options.lengths[:2], options.simulated_lengths[:2]
    torch.set_num_threads(1)
    found: dict[tuple[str, str, str, int], list[tuple[float, float]]] = {}
    for seed in range(options.seeds) if "simulated" in options.parts else ():
        for kind in KINDS:
            for length in options.simulated_lengths:
                rng = np.random.default_rng([3, seed, KINDS.index(kind), length])
                for name, measured in simulate(kind, length, options.candidates, rng).items():
                    found.setdefault(("simulated", kind, name, length), []).append(measured)

    summary: dict[str, float | Interval] = {}
    about: dict[str, object] = {"candidates": options.candidates}
    if "trained" in options.parts:
        about |= measure_trained(options, found, summary)
    summary = {
        **summarise(found, {"simulated": options.simulated_lengths, "trained": options.lengths}),
        **summary,
    }
    rows = [
        {"part": part, "kind": kind, "aggregate": name, "T": length, "seed": seed, "accuracy": accuracy, "auc": auc}
        for (part, kind, name, length), values in found.items()
        for seed, (accuracy, auc) in enumerate(values)
    ]
    for key, value in summary.items():
        print(key, value)
    name = "_".join(["text_outcome_or_process", *(options.parts if len(options.parts) < 2 else ())])
    print(write_result(name, summary, seeds=list(range(options.seeds)), rows=rows, **about))


if __name__ == "__main__":
    main()
