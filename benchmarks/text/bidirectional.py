"""Judging steps from both sides against from the left alone (BiPRM, arXiv 2508.01682), in two worlds.

`two_sided`: `given a 3` · `derived a 3` · `claim b 1` · `check b 1`. A wrong `derived` shows from the steps before it,
a wrong `claim` only from the `check` after it. `one_sided`: chains of modular arithmetic, where all evidence lies in
the past; there a second direction should gain nothing.
One tiny language model per world learns right solutions, read from left to right, then every arm is fitted on top of it
on the same labelled solutions, once per seed: left to right (l2r), right to left (r2l), the average of both, the gate,
and the control that has the gate's compute without its direction: two l2r judges of different seeds, their log-odds
averaged (l2r_twice). Each judge passes as many solutions through its network in training: who reads them in one
direction makes twice as many steps as who reads them in both. Measured: ROC AUC of a step's score, right steps against
wrong ones, on fresh solutions; of derived steps, of claims, and of all. Differences are paired by seed. The intervals
see five seeds, one language model and one test set.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from envs.reasoning import Arithmetic, Habits, Mistake, TwoSided, World, make_solutions
from envs.reasoning import LabelledSolution as Truth
from grm.data.stepwise import LabelledSolution
from grm.metrics import Interval, expected_interval, roc_auc
from grm.text.bidirectional import BidirectionalJudge, Combination, Loss, fit_bidirectional
from grm.text.conventions import TRL
from grm.text.scoring import judge_all
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

from ..results import write_result

CONVENTION = replace(TRL, opening="{bos}{question}\n")
ARMS: dict[str, Combination] = {"l2r": "forward", "r2l": "backward", "average": "average", "gate": "gate"}
OFTEN_WRONG = Habits(error_rate=0.4, later_error_rate=0.4, mistakes=(Mistake.SLIP,))
CARRIED_ON = Habits(error_rate=0.15, later_error_rate=0.15, mistakes=(Mistake.SLIP, Mistake.COPY))
WORLDS: dict[str, tuple[World[Any, Any], tuple[int, ...], Habits]] = {
    "two_sided": (TwoSided(4), (2, 4), OFTEN_WRONG),
    "one_sided": (Arithmetic(5), (2, 3, 4), CARRIED_ON),
}


def draw(name: str, count: int, seed: int, *, right: bool) -> list[Truth]:
    """Solutions of all lengths, shuffled."""
    world, lengths, habits = WORLDS[name]
    rng = np.random.default_rng([seed, right])
    solutions: list[Truth] = []
    for length in lengths:
        solutions += make_solutions(
            [world],
            rng,
            count // len(lengths),
            lengths=(length, length),
            habits=Habits() if right else habits,
            erroneous=0.0,
        )
    return [solutions[i] for i in rng.permutation(len(solutions))]


def steps_of(solution: Truth) -> tuple[str, ...]:
    """Without the answer, which is right by construction here and would only dilute the measure."""
    return solution.steps[:-1]


def learn_language(name: str, options: argparse.Namespace) -> tuple[Any, Any]:
    """A model of right solutions, and its tokenizer."""
    right = draw(name, options.texts, 0, right=True)
    passages = [Passage(prompt=s.question + "\n", text="\n".join(steps_of(s)) + "\n") for s in right]
    tokenizer = make_tokenizer([passage.prompt + passage.text for passage in passages])
    model = make_model(tokenizer, context=64)
    loss = fit_language_model(
        model, tokenizer, passages, FitSettings(steps=options.language_steps, batch=32, learning_rate=3e-3)
    )
    print(f"{name}: language learned to {loss:.3f} nats per token", flush=True)
    return model, tokenizer


def auc_by_kind(scores: Sequence[np.ndarray], solutions: Sequence[Truth]) -> dict[str, float]:
    """Of all steps, and of those that begin with a word of their own kind."""
    steps = [step for s in solutions for step in steps_of(s)]
    right = np.array([valid for s in solutions for valid in s.local[:-1]])
    score = np.concatenate(scores)
    found = {"all": roc_auc(score[right], score[~right])}
    for kind in ("derived", "claim"):
        of_kind = np.array([step.startswith(kind) for step in steps])
        if of_kind.any():
            found[kind] = roc_auc(score[of_kind & right], score[of_kind & ~right])
    return found


def log_odds(probability: np.ndarray) -> np.ndarray:
    clipped = probability.clip(1e-12, 1 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--loss", choices=["cross-entropy", "squared", "ranking"], default="cross-entropy")
    parser.add_argument("--texts", type=int, default=9000, help="right solutions that the language is learned from")
    parser.add_argument("--language-steps", type=int, default=800)
    parser.add_argument("--labelled", type=int, default=8000, help="labelled solutions")
    parser.add_argument("--steps", type=int, default=600, help="gradient steps of both directions, 32 solutions each")
    parser.add_argument("--tested", type=int, default=600, help="fresh solutions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it runs")
    options = parser.parse_args(arguments)
    if options.quick:
        options.texts = options.labelled = options.tested = 60
        options.language_steps = options.steps = 2
        options.seeds = min(options.seeds, 2)
    loss: Loss = options.loss
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    summary: dict[str, float | Interval] = {}
    with Progress() as progress:
        bar = progress.add_task("fitting", total=len(options.worlds) * options.seeds * (len(ARMS) + 1))
        for name in options.worlds:
            model, tokenizer = learn_language(name, options)
            examples = [
                LabelledSolution(prompt=s.question, steps=steps_of(s), labels=s.local[:-1])
                for s in draw(name, options.labelled, 1, right=False)
            ]
            test = draw(name, options.tested, 5, right=False)
            auc: dict[tuple[str, str], list[float]] = {}
            for seed in range(options.seeds):
                scores: dict[str, list[np.ndarray]] = {}
                for arm, combination in {**ARMS, "another": ARMS["l2r"]}.items():
                    its_seed = seed + 1000 * (arm == "another")
                    judge = BidirectionalJudge.on_top_of(model, tokenizer, CONVENTION, combination, seed=its_seed)
                    steps = options.steps * (1 if combination in ("average", "gate") else 2)
                    settings = FitSettings(steps=steps, batch=32, learning_rate=3e-3, seed=its_seed)
                    fit_bidirectional(judge, examples, settings, loss=loss)
                    scores[arm] = [j.score for j in judge_all(judge, [(s.question, steps_of(s)) for s in test])]
                    usage = judge.network.usage
                    summary[f"{name}.forwards_per_solution.{arm}"] = usage.calls / len(test)
                    summary[f"{name}.tokens_per_solution.{arm}"] = usage.prompt_tokens / len(test)
                    progress.advance(bar)
                for part in ("forwards", "tokens"):
                    key = f"{name}.{part}_per_solution"
                    summary[f"{key}.l2r_twice"] = 2 * float(np.mean([summary[f"{key}.l2r"]]))
                    summary.pop(f"{key}.another")
                second = scores.pop("another")
                scores["l2r_twice"] = [
                    (log_odds(a) + log_odds(b)) / 2 for a, b in zip(scores["l2r"], second, strict=True)
                ]
                for arm, of_arm in scores.items():
                    found = auc_by_kind(of_arm, test)
                    rows.append({"world": name, "seed": seed, "arm": arm, **found})
                    for kind, value in found.items():
                        auc.setdefault((arm, kind), []).append(value)
            for (arm, kind), values in auc.items():
                summary[f"{name}.auc.{kind}.{arm}"] = expected_interval(values, np.random.default_rng(0))
                if arm != "gate":
                    gains = np.array(auc["gate", kind]) - np.array(values)
                    summary[f"{name}.gain_of_gate.{kind}.over_{arm}"] = expected_interval(
                        gains, np.random.default_rng(0)
                    )
    for key, value in summary.items():
        print(key, value)
    about = {
        "loss": loss,
        "labelled_solutions": options.labelled,
        "tested_solutions": options.tested,
        "training_passes_per_judge": 2 * options.steps * 32,
        "judges_of_l2r_twice": 2,
    }
    name = "_".join(["text_bidirectional", *(options.worlds if len(options.worlds) < len(WORLDS) else ())])
    print(write_result(name, summary, seeds=list(range(options.seeds)), rows=rows, **about))


if __name__ == "__main__":
    main()
