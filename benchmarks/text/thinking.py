"""Verifiers that recompute each step before they judge, and one that judges directly (ThinkPRM, arXiv 2504.16828).

One small language model learns to solve chains of arithmetic modulo 3; all verifiers begin from it. The direct one
(`direct`) learns the labels at the end of each step. The others learn to write what should stand there, then "ok" or
"bad" for each step up to the first bad one, and then yes or no. Their chains are written, four for each labelled
solution, by a verifier that was trained on true chains and errs (`generator`), and are kept if all decisions are the
labels (`process`), if only the last one is (`outcome`), or all that can be read (`unfiltered`, the control). Each
solution gives one chain at most, as many of right solutions as of wrong ones. Gradient steps are equal; the direct one
also sees the labels of the solutions that the true chains are about. `process_K4` is the mean of four sampled chains of
the same verifier.

Measured on fresh solutions as long as those learned from, and on longer ones: ProcessBench's F1 of first errors, the
binary F1 of whole solutions that the paper reports, chains that cannot be read, and words read and written.
"""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from rich.progress import Progress

from envs.reasoning import FAULTLESS, Arithmetic, Problem
from envs.reasoning import LabelledSolution as Truth
from grm.data.stepwise import LabelledSolution
from grm.metrics import Interval, expected_interval
from grm.reward import Task, Thought
from grm.text.conventions import TRL
from grm.text.discriminative import DiscriminativeJudge, fit_judge
from grm.text.generative import (
    ThinkPRM,
    VerificationChain,
    VerifierFormat,
    agrees_on_outcome,
    agrees_on_process,
    parse_decisions,
    select_chains,
    training_text,
)
from grm.text.huggingface import HuggingFaceModel
from grm.text.metrics import first_error, first_error_f1, whole_solution_f1
from grm.text.scoring import judge_all
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

from ..results import write_result

WORLD = Arithmetic(3)
"""Modulo 7 no verifier of this size learned to recompute a step rather than copy it (docs/log.md)."""
SHORT, LONG = (2, 3), (4, 5)
CHAINS, CONTEXT, MAX_TOKENS = 4, 288, 96
FORMAT = VerifierFormat(
    instruction="check",
    problem="problem:",
    solution="solution:",
    step="step {i}:",
    begin="think\n",
    decision="so",
    box=("[", "]"),
    right="ok",
    wrong="bad",
    end="\nend\n",
    question="fine ?",
    yes=" yes",
    no=" no",
)


def draw(rng: np.random.Generator, count: int, lengths: tuple[int, int]) -> list[tuple[Problem[Any], Truth]]:
    """Solutions of which half have their first error at a step drawn evenly."""
    drawn = []
    for i in range(count):
        problem = WORLD.draw(rng, length=int(rng.integers(lengths[0], lengths[1] + 1)))
        place = int(rng.integers(len(problem.reference))) if i % 2 else None
        drawn.append((problem, WORLD.solve(problem, rng, FAULTLESS, first_error=place)))
    return drawn


def labels_of(truth: Truth) -> tuple[float | None, ...]:
    """1 up to the first error, 0 there, None after it."""
    place = truth.first_error
    return tuple(1.0 if place < 0 or i < place else 0.0 if i == place else None for i in range(len(truth.steps)))


def true_chain(problem: Problem[Any], truth: Truth) -> VerificationChain:
    """What should stand at each step up to the first error, and whether it does."""
    opening, closing = FORMAT.box
    lines = [
        f"{FORMAT.head(i + 1)} {problem.reference[i]} {FORMAT.decision} "
        f"{opening}{FORMAT.right if label else FORMAT.wrong}{closing}"
        for i, label in enumerate(labels_of(truth))
        if label is not None
    ]
    return written(truth, "\n".join(lines))


def written(truth: Truth, text: str) -> VerificationChain:
    task = Task(instruction=truth.question)
    return VerificationChain(task=task, steps=truth.steps, labels=labels_of(truth), text=text)


def asked(truths: Sequence[Truth]) -> list[tuple[Task, list[Thought]]]:
    return [(Task(instruction=one.question), [Thought(text=step) for step in one.steps]) for one in truths]


def trained(
    base: HuggingFaceModel, chains: Sequence[VerificationChain], steps: int, batch: int, seed: int
) -> HuggingFaceModel:
    """A verifier that begins from the base and learns to write such chains."""
    network = deepcopy(base.model)
    passages = [Passage(prompt=prompt, text=text) for prompt, text in (training_text(one, FORMAT) for one in chains)]
    settings = FitSettings(steps=steps, batch=batch, learning_rate=3e-3, seed=seed)
    fit_language_model(network, base.tokenizer, passages, settings)
    return HuggingFaceModel(network, base.tokenizer, batch=256)


def make_base(*, solutions: int = 3000, steps: int = 900, seed: int = 0) -> HuggingFaceModel:
    """A language model that solves without errors; its tokenizer also has the words of the verifiers."""
    rng = np.random.default_rng([seed, 1])
    drawn = draw(rng, solutions, SHORT)
    chains = [training_text(true_chain(*one), FORMAT) for one in (*drawn[:200], *draw(rng, 50, LONG))]
    texts = [f"{problem.question}\n" + "\n".join(problem.reference) for problem, _ in drawn]
    verdicts = f"{FORMAT.yes} {FORMAT.no}"
    tokenizer = make_tokenizer([*texts, *(prompt + text for prompt, text in chains), verdicts])
    model = make_model(tokenizer, context=CONTEXT, seed=seed)
    passages = [Passage(prompt=p.question + "\n", text="\n".join(p.reference)) for p, _ in drawn]
    fit_language_model(model, tokenizer, passages, FitSettings(steps=steps, batch=32, seed=seed))
    return HuggingFaceModel(model, tokenizer, batch=256)


def marks(
    found: Sequence[int | None], fine: Sequence[bool | None], truths: Sequence[Truth], **cost: float
) -> dict[str, float]:
    places = [one.first_error for one in truths]
    by_step = first_error_f1(found, places)
    return {
        "f1": by_step.f1,
        "accuracy_wrong": by_step.accuracy_wrong,
        "accuracy_right": by_step.accuracy_right,
        "whole_f1": whole_solution_f1(fine, [place < 0 for place in places]).f1,
    } | {name: value / len(truths) for name, value in cost.items()}


def judge_directly(judge: DiscriminativeJudge, truths: Sequence[Truth]) -> dict[str, float]:
    before = judge.usage.prompt_tokens
    scores = [one.score for one in judge_all(judge, [(one.question, one.steps) for one in truths])]
    found = [first_error(one) for one in scores]
    fine = [None if place is None else place < 0 for place in found]
    return marks(found, fine, truths, invalid=0.0, read=judge.usage.prompt_tokens - before, written=0.0)


def judge_by_chains(model: HuggingFaceModel, truths: Sequence[Truth], samples: int, seed: int) -> dict[str, float]:
    verifier = ThinkPRM(model, samples=samples, max_tokens=MAX_TOKENS, seed=seed, format=FORMAT)
    read, wrote = model.usage.prompt_tokens, model.usage.completion_tokens
    judgements = verifier.judge_all(asked(truths))
    return marks(
        [first_error(one.potential) for one in judgements],
        [None if np.isnan(one.outcome) else one.outcome > 0.5 for one in judgements],
        truths,
        invalid=sum(one.n_invalid / one.n_samples for one in judgements),
        read=model.usage.prompt_tokens - read,
        written=model.usage.completion_tokens - wrote,
    )


def run(
    base: HuggingFaceModel, seed: int, options: argparse.Namespace
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """One seed: rows of verifiers and test sets, and what was kept of the chains."""
    rng = np.random.default_rng([seed, 2])
    seeds = draw(rng, options.seed_solutions, SHORT)
    generator = trained(base, [true_chain(*one) for one in seeds], options.generator_steps, options.batch, seed)
    learned = [truth for _, truth in draw(rng, options.solutions, SHORT)]
    tests = {
        "short": [truth for _, truth in draw(rng, options.exam, SHORT)],
        "long": [truth for _, truth in draw(rng, options.exam, LONG)],
    }
    writer = ThinkPRM(generator, samples=CHAINS, temperature=1.0, max_tokens=MAX_TOKENS, seed=seed, format=FORMAT)
    chains = [
        written(truth, text)
        for truth, judgement in zip(learned, writer.judge_all(asked(learned)), strict=True)
        for text in judgement.critiques
        if text.strip()
    ]
    filters = {
        "process": lambda chain: agrees_on_process(chain, FORMAT),
        "outcome": lambda chain: agrees_on_outcome(chain, FORMAT),
        "unfiltered": lambda chain: parse_decisions(chain.text, len(chain.steps), FORMAT) is not None,
    }
    facts: dict[str, float] = {}
    verifiers = {"generator": generator}
    for name, agrees in filters.items():
        facts[f"passed_{name}"] = float(np.mean([agrees(chain) for chain in chains]))
        kept = select_chains(chains, agrees, rng, per_solution=1)
        facts[f"kept_{name}"] = float(len(kept))
        if kept:
            verifiers[name] = trained(base, kept, options.fit_steps, options.batch, seed)
    convention = replace(TRL, opening="{bos}{question}\n")
    direct = DiscriminativeJudge.on_top_of(base.model, base.tokenizer, convention, seed=seed)
    examples = [
        LabelledSolution(prompt=one.question, steps=one.steps, labels=labels_of(one))
        for one in (*(truth for _, truth in seeds), *learned)
    ]
    settings = FitSettings(steps=options.fit_steps, batch=options.batch, learning_rate=1e-3, seed=seed)
    fit_judge(direct, examples, settings)
    rows: list[dict[str, object]] = []
    for test, truths in tests.items():
        found = {"direct": judge_directly(direct, truths)}
        found |= {name: judge_by_chains(model, truths, 1, seed) for name, model in verifiers.items()}
        if "process" in verifiers:
            found["process_K4"] = judge_by_chains(verifiers["process"], truths, 4, seed)
        rows += [{"seed": seed, "test": test, "verifier": name} | one for name, one in found.items()]
    return rows, facts


def summarise(rows: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, float]]) -> dict[str, float | Interval]:
    """Means over seeds, and the differences that the claims are about, paired by seed."""

    def interval(values: Sequence[float]) -> Interval:
        return expected_interval(values, np.random.default_rng(0))

    summary: dict[str, float | Interval] = {name: interval([one[name] for one in facts]) for name in facts[0]}
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric not in ("seed", "test", "verifier"):
                found.setdefault(metric, {}).setdefault((row["test"], row["verifier"]), {})[row["seed"]] = value
    for metric, by_arm in found.items():
        for (test, name), by_seed in by_arm.items():
            summary[f"{metric}.{test}.{name}"] = interval(list(by_seed.values()))
    for metric in ("f1", "whole_f1"):
        for test in ("short", "long"):
            for one, other in (("process", "direct"), ("process", "outcome"), ("process_K4", "process")):
                first, second = (found[metric].get((test, name), {}) for name in (one, other))
                gains = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
                if gains:
                    summary[f"{metric}.{test}.{one}_minus_{other}"] = interval(gains)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solutions", type=int, default=2000, help="labelled, per seed")
    parser.add_argument("--seed-solutions", type=int, default=1500, help="with true chains, for the generator")
    parser.add_argument("--exam", type=int, default=200, help="solutions of each length, per seed")
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--generator-steps", type=int, default=900)
    parser.add_argument("--fit-steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    about = {name: value for name, value in vars(options).items() if name != "seeds"}
    rows: list[dict[str, object]] = []
    facts: list[dict[str, float]] = []
    with Progress() as progress:
        bar = progress.add_task("base", total=1 + options.seeds)
        base = make_base(steps=options.base_steps)
        for seed in range(options.seeds):
            progress.update(bar, advance=1, description=f"seed {seed}")
            found, known = run(base, seed, options)
            rows += found
            facts.append(known)
            told = ", ".join(f"{row['verifier']} {row['f1']:.2f}" for row in found if row["test"] == "short")
            progress.console.print(f"seed {seed}: F1 {told}; passed {known['passed_process']:.2f}")
            # After every seed, so that an interruption leaves those that are done.
            written_to = write_result(
                "text_thinking", summarise(rows, facts), seeds=list(range(seed + 1)), rows=rows, **about
            )
        progress.advance(bar)
    for name, value in summarise(rows, facts).items():
        print(name, value)
    print(written_to)


if __name__ == "__main__":
    main()
