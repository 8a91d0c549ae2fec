"""Labels by rollouts, by a judge and by both where they agree, and the judges trained on them (arXiv 2501.07301).

A small language model learns to solve chains of arithmetic modulo 7; its copy, the policy, is trained on with solutions
that have errors, some of which are taken back at once ("wait ..."): so it errs, recovers and is lucky by itself. It
solves fresh problems, and each solution is labelled by its own rollouts (8 from each prefix; right if any arrives), by
a judge (a program that knows the truth, misses 30 % of wrong steps and takes 5 % of right ones for wrong), and by the
consensus of the two. On every label set the same network, begun from the model that does not err, is trained with the
same number of gradient steps. Measured on other solutions of the same policy, whose truth is known: where the labels
put the first error, ProcessBench's F1 of what was trained on them (at 1/2, and at a threshold chosen on other solutions
still), and best-of-8 with its three biases.

Controls: gold labels (what the network could do), and random ones with as many errors (what it would do without). The
consensus has fewer solutions: `gold_few` is gold on as many.

One policy serves all seeds; a seed draws problems, solutions, rollouts, the judge's slips and the training anew.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, override

import numpy as np
from rich.progress import Progress

from envs.reasoning import Arithmetic, Habits, Problem
from envs.reasoning import LabelledSolution as Truth
from grm.data.stepwise import LabelledSolution, harden
from grm.metrics import Interval, expected_interval
from grm.reward import Judge, ScoredJudgement, ScoreKind, Task, Thought
from grm.search.best_of_n import best_of
from grm.search.vote import majority_vote
from grm.text.annotate import Complete, Prefix, completer, consensus, judge_labels, monte_carlo_labels
from grm.text.conventions import TRL
from grm.text.discriminative import DiscriminativeJudge, fit_judge
from grm.text.huggingface import HuggingFaceModel
from grm.text.metrics import (
    best_threshold,
    first_error,
    first_error_accuracy,
    first_error_f1,
    flaw_recall,
    flawed_share,
    min_at_last_share,
)
from grm.text.scoring import judge_all
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

from ..results import write_result

WORLD = Arithmetic(7)
LENGTHS = (3, 4)
HABITS = Habits(error_rate=0.12, later_error_rate=0.12, correction_rate=0.1)
ROLLOUTS, MISS, FALSE_ALARM, CANDIDATES = 8, 0.3, 0.05, 8
CONVENTION = replace(TRL, opening="{bos}{question}\n")
MAX_TOKENS, CONTEXT, BATCH = 48, 96, 2048


def draw_problems(rng: np.random.Generator, count: int) -> list[Problem[Any]]:
    return [WORLD.draw(rng, length=int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))) for _ in range(count)]


def show(problem: str, steps: Sequence[str]) -> str:
    """What the policy goes on from; without a step the line break that a first one follows."""
    return problem + "\n" + "\n".join(steps)


def answer_in(text: str) -> str | None:
    """The answer that the last line states."""
    words = text.strip().rpartition("\n")[2].removeprefix("wait ").split()
    return words[1] if len(words) == 2 and words[0] == "answer" else None


def make_models(
    *, solutions: int = 4000, steps: int = 1200, policy_steps: int = 200, seed: int = 0
) -> tuple[HuggingFaceModel, HuggingFaceModel]:
    """A language model that solves without errors, and the policy: the same one, trained on to solve as `HABITS`."""
    rng = np.random.default_rng([seed, 1])
    problems = draw_problems(rng, solutions)
    written = [WORLD.solve(problem, rng, HABITS) for problem in problems]
    fallible = [Passage(prompt=one.question + "\n", text="\n".join(one.steps)) for one in written]
    right = [Passage(prompt=one.question + "\n", text="\n".join(one.reference)) for one in problems]
    tokenizer = make_tokenizer([p.prompt + p.text for p in (*right, *fallible)])
    base = make_model(tokenizer, context=CONTEXT, seed=seed)
    fit_language_model(base, tokenizer, right, FitSettings(steps=steps, batch=32, seed=seed))
    policy = deepcopy(base)
    settings = FitSettings(steps=policy_steps, batch=32, learning_rate=1e-3, seed=seed)
    fit_language_model(policy, tokenizer, fallible, settings)
    return HuggingFaceModel(base, tokenizer, batch=BATCH), HuggingFaceModel(policy, tokenizer, batch=BATCH)


def sample(policy: HuggingFaceModel, problems: Sequence[Problem[Any]], seed: int, count: int = 1) -> list[list[Truth]]:
    """`count` solutions of each problem by the policy, with the truth about them; those cut off are left out."""
    prompts = [problem.question + "\n" for problem in problems]
    answers = policy.generate(prompts, samples=count, max_tokens=MAX_TOKENS, temperature=1.0, seed=seed)
    return [
        [
            WORLD.label(problem, [line for line in one.text.split("\n") if line.strip()])
            for one in completions
            if one.finish == "stop" and one.text.strip()
        ]
        for problem, completions in zip(problems, answers, strict=True)
    ]


def bare(truth: Truth, problem: Problem[Any]) -> LabelledSolution:
    """The solution as an annotator gets it: the right answer is known, the steps are not labelled."""
    return LabelledSolution(
        prompt=truth.question,
        steps=truth.steps,
        labels=(None,) * len(truth.steps),
        answer=problem.answer,
        final_answer_correct=truth.answer_right,
    )


def completed(policy: HuggingFaceModel, solutions: Sequence[LabelledSolution], seed: int) -> Complete:
    """Rollouts of every prefix of all solutions in few large batches; gives them out solution by solution."""
    complete = completer(policy, show, extract=answer_in, max_tokens=MAX_TOKENS, temperature=1.0, seed=seed)
    prefixes = list(dict.fromkeys((s.prompt, s.steps[: i + 1]) for s in solutions for i in range(len(s.steps))))
    found = dict(zip(prefixes, complete(prefixes, ROLLOUTS), strict=True))

    def give(asked: Sequence[Prefix], samples: int) -> list[Sequence[str | None]]:
        assert samples == ROLLOUTS
        return [found[prefix] for prefix in asked]

    return give


class SlippingJudge(Judge[Thought]):
    """Knows the truth about given solutions and slips: misses wrong steps, calls right ones wrong, at given rates."""

    def __init__(self, truths: Sequence[Truth], miss: float, false_alarm: float, rng: np.random.Generator) -> None:
        self._verdicts = {
            (one.question, one.steps): np.where(
                one.local, rng.random(len(one.steps)) >= false_alarm, rng.random(len(one.steps)) < miss
            ).astype(float)
            for one in truths
        }

    @override
    def judge(self, task: Task, steps: Sequence[Thought]) -> ScoredJudgement:
        """Verdicts on all steps, each slip by itself."""
        score = self._verdicts[task.instruction, tuple(step.text for step in steps)]
        return ScoredJudgement(
            potential=np.cumprod(score),
            spread=np.zeros(len(score)),
            judged=np.ones(len(score), bool),
            score=score,
            kind=ScoreKind.VERDICT,
        )


def labelled_from(solution: LabelledSolution, place: int) -> LabelledSolution:
    """Labels of a first error at a place, -1 for none."""
    count = len(solution.steps)
    labels = tuple(1.0 if place < 0 or i < place else 0.0 if i == place else None for i in range(count))
    return replace(solution, labels=labels, first_error=place)


def places(solutions: Sequence[LabelledSolution]) -> list[int | None]:
    return [s.first_error for s in solutions]


class Exam:
    """Solutions whose truth is known, to measure trained judges on."""

    def __init__(self, policy: HuggingFaceModel, rng: np.random.Generator, solutions: int, seed: int) -> None:
        problems = draw_problems(rng, solutions // CANDIDATES)
        self.groups = [group for group in sample(policy, problems, seed, CANDIDATES) if group]
        self.solutions = [one for group in self.groups for one in group]
        self.truth = [one.first_error for one in self.solutions]
        self.right = [one.answer_right for one in self.solutions]

    def scores(self, judge: DiscriminativeJudge) -> list[np.ndarray]:
        return [j.score for j in judge_all(judge, [(one.question, one.steps) for one in self.solutions])]

    def marks(self, scores: Sequence[np.ndarray], threshold: float) -> dict[str, float]:
        """What there is to know of a judge by its scores; `threshold` was chosen elsewhere."""
        at_half = [first_error(one) for one in scores]
        found = first_error_f1(at_half, self.truth)
        marks = {
            "f1": found.f1,
            "f1_chosen_threshold": first_error_f1([first_error(s, threshold) for s in scores], self.truth).f1,
            "accuracy_wrong": found.accuracy_wrong,
            "accuracy_right": found.accuracy_right,
            "flaw_recall": flaw_recall(at_half, self.right, self.truth),
            "min_at_last": min_at_last_share(scores),
        }
        rules: Mapping[str, Callable[[np.ndarray], float]] = {
            "last": lambda s: float(s[-1]),
            "product": lambda s: float(s.prod()),
            "minimum": lambda s: float(s.min()),
        }
        for rule, aggregate in rules.items():
            chosen = self._best(scores, aggregate)
            marks[f"best_of_8_{rule}"] = float(np.mean([one.answer_right for one in chosen]))
            marks[f"best_of_8_{rule}_faultless"] = float(np.mean([one.first_error < 0 for one in chosen]))
        return marks

    def bounds(self) -> dict[str, float]:
        """Of the policy: how often it is right, how often in spite of an error, and what votes make of it."""
        voted = [majority_vote([one.answer for one in group]).index for group in self.groups if any_answer(group)]
        groups = [group for group in self.groups if any_answer(group)]
        return {
            "answer_right": float(np.mean(self.right)),
            "erroneous": float(np.mean([place >= 0 for place in self.truth])),
            "flawed_share": flawed_share(self.right, self.truth),
            "pass_at_8": float(np.mean([any(one.answer_right for one in group) for group in self.groups])),
            "majority_of_8": float(np.mean([g[v].answer_right for g, v in zip(groups, voted, strict=True)])),
        }

    def _best(self, scores: Sequence[np.ndarray], aggregate: Callable[[np.ndarray], float]) -> list[Truth]:
        chosen, at = [], 0
        for group in self.groups:
            chosen.append(group[best_of([aggregate(one) for one in scores[at : at + len(group)]]).index])
            at += len(group)
        return chosen


def any_answer(group: Sequence[Truth]) -> bool:
    return any(one.answer is not None for one in group)


def run(
    base: HuggingFaceModel, policy: HuggingFaceModel, seed: int, solutions: int, exam_size: int, fit_steps: int
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """One seed: rows of trained judges, and what is known of the labels."""
    rng = np.random.default_rng([seed, 2])
    problems = draw_problems(rng, solutions)
    pairs = [(s, p) for p, group in zip(problems, sample(policy, problems, 100 + seed), strict=True) for s in group]
    truths = [truth for truth, _ in pairs]
    unlabelled = [bare(truth, problem) for truth, problem in pairs]
    gold_places = [truth.first_error for truth in truths]

    before = policy.usage.completion_tokens
    complete = completed(policy, unlabelled, 200 + seed)
    soft = [monte_carlo_labels(one, complete, rollouts=ROLLOUTS) for one in unlabelled]
    known = [i for i, one in enumerate(soft) if None not in one.labels]
    facts = {
        "rollout_tokens_per_solution": (policy.usage.completion_tokens - before) / len(soft),
        "solutions": float(len(known)),
        "unlabelled_by_rollouts": float(len(soft) - len(known)),
    }
    truths, unlabelled, soft = ([of[i] for i in known] for of in (truths, unlabelled, soft))
    gold_places = [gold_places[i] for i in known]
    judge = SlippingJudge(truths, MISS, FALSE_ALARM, rng)
    rolled = [harden(one, 0.0) for one in soft]
    judged = [judge_labels(one, judge) for one in unlabelled]
    agreed = consensus(zip(rolled, judged, strict=True))
    kept = [i for i, (a, b) in enumerate(zip(rolled, judged, strict=True)) if a.first_error == b.first_error]
    gold = [labelled_from(one, place) for one, place in zip(unlabelled, gold_places, strict=True)]
    shuffled = []
    for one in unlabelled:
        wrong = rng.random() < np.mean([place >= 0 for place in gold_places])
        shuffled.append(labelled_from(one, int(rng.integers(len(one.steps))) if wrong else -1))
    for threshold in (0, 1, 2, 4):
        at = places([harden(one, threshold / ROLLOUTS) for one in soft])
        facts[f"location_accuracy_rollouts_above_{threshold}"] = first_error_accuracy(at, gold_places)
    sets = {
        "gold": gold,
        "consensus": agreed.kept,
        "rollouts": rolled,
        "judge": judged,
        "gold_few": [gold[i] for i in kept],
        "random": shuffled,
    }
    truth_of = dict.fromkeys(sets, gold_places) | {
        name: [gold_places[i] for i in kept] for name in ("consensus", "gold_few")
    }
    for name, labelled in sets.items():
        facts[f"location_accuracy_{name}"] = first_error_accuracy(places(labelled), truth_of[name])
        facts[f"location_f1_{name}"] = first_error_f1(places(labelled), truth_of[name]).f1
        facts[f"wrong_share_{name}"] = float(np.mean([(one.first_error or 0) >= 0 for one in labelled]))
    facts |= {"keep_rate": agreed.keep_rate, "gold_wrong_share_kept": facts["wrong_share_gold_few"]}
    facts["class_shift"] = facts["wrong_share_gold_few"] - facts["wrong_share_gold"]

    exam = Exam(policy, np.random.default_rng([seed, 3]), exam_size, 300 + seed)
    facts |= exam.bounds()
    if fit_steps == 0:
        return [], facts
    tuning = Exam(policy, np.random.default_rng([seed, 4]), exam_size // 3, 400 + seed)
    rows: list[dict[str, object]] = []
    for name, labelled in sets.items():
        trained = DiscriminativeJudge.on_top_of(base.model, base.tokenizer, CONVENTION, seed=seed)
        fit_judge(trained, labelled, FitSettings(steps=fit_steps, batch=32, learning_rate=1e-3, seed=seed))
        threshold = best_threshold(tuning.scores(trained), tuning.truth)
        marks = exam.marks(exam.scores(trained), threshold)
        rows.append({"seed": seed, "labels": name, "solutions": len(labelled), "threshold": threshold, **marks})
    return rows, facts


def summarise(rows: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, float]]) -> dict[str, float | Interval]:
    """Means over seeds, and the differences that the claim is about, paired by seed."""

    def interval(values: Sequence[float]) -> Interval:
        return expected_interval(values, np.random.default_rng(0))

    summary: dict[str, float | Interval] = {name: interval([one[name] for one in facts]) for name in facts[0]}
    if not rows:
        return summary
    of = {(row["labels"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(row["labels"] for row in rows))
    for metric in [name for name in rows[0] if name not in ("seed", "labels", "solutions", "threshold")]:
        for arm in arms:
            summary[f"{metric}.{arm}"] = interval([of[arm, seed][metric] for seed in seeds])
    for metric in ("f1", "f1_chosen_threshold"):
        for other in ("rollouts", "judge", "gold_few"):
            gains = [of["consensus", seed][metric] - of[other, seed][metric] for seed in seeds]
            summary[f"{metric}.consensus_minus_{other}"] = interval(gains)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solutions", type=int, default=5000, help="to be labelled, per seed")
    parser.add_argument("--exam", type=int, default=600, help="solutions to measure on, per seed")
    parser.add_argument("--base-steps", type=int, default=1200)
    parser.add_argument("--fit-steps", type=int, default=2000, help="0: labels only, no judge is trained")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    about = {
        "judge_misses": MISS,
        "judge_false_alarms": FALSE_ALARM,
        "rollouts": ROLLOUTS,
        "policies": 1,
        "solutions_per_seed": options.solutions,
        "fit_steps": options.fit_steps,
    }
    name = "text_lessons_trained" if options.fit_steps else "text_lessons"
    rows: list[dict[str, object]] = []
    facts: list[dict[str, float]] = []
    with Progress() as progress:
        bar = progress.add_task("language models", total=1 + options.seeds)
        base, policy = make_models(steps=options.base_steps)
        for seed in range(options.seeds):
            progress.update(bar, advance=1, description=f"seed {seed}")
            found, known = run(base, policy, seed, options.solutions, options.exam, options.fit_steps)
            rows += found
            facts.append(known)
            told = "".join(f", {row['labels']} {row['f1']:.2f}" for row in found)
            progress.console.print(f"seed {seed}: F1 of labels by rollouts {known['location_f1_rollouts']:.2f}{told}")
            # After every seed, so that an interruption leaves those that are done.
            written = write_result(name, summarise(rows, facts), seeds=list(range(seed + 1)), rows=rows, **about)
        progress.advance(bar)
    for metric, value in summarise(rows, facts).items():
        print(metric, value)
    print(written)


if __name__ == "__main__":
    main()
