"""Progress under a prover against value and outcome, on a planted sub-sequence (PAV, arXiv 2410.08146, section 3).

A policy writes ten symbols and succeeds if a hidden sequence of five is among them, in order; each of its symbols is
the next one with chance p. Values come from twenty rollouts per prefix. Searches: beams ranked by Q, or by Q + αA
under the best of K of the same policy as the prover. Controls: the best of as many solutions as the beam wrote
symbols for, with an outcome judge that is never wrong; and the best of as many as the *rollouts* too would have paid
for, since nobody trained a verifier here: estimating a value by rollouts costs far more than solving the problem by
them.
Exact, by enumeration: E[A^μ A^π] (alignment) and E[A^μ²] (distinguishability) of theorem 3.1, by K.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from math import comb

import numpy as np
from rich.progress import Progress

from grm.metrics import Interval, expected_interval
from grm.reward import Judgement, ScoredJudgement, Task, Thought
from grm.search.beam import beam_search
from grm.text.progress import MonteCarloValue, ProverAdvantage

from ..results import write_result

LENGTH, NEEDED = 10, 5
HIT, MISS = Thought(text="hit"), Thought(text="miss")
SAMPLES, ALPHA, EXPANSIONS = 20, 0.5, 3


def rollouts(skill: float, task: Task, prefix: Sequence[Thought], count: int, generator: np.random.Generator) -> int:
    """How many of `count` completions find the sequence: the rest of the symbols hit independently."""
    hits = sum(step is HIT for step in prefix)
    return int((generator.binomial(LENGTH - len(prefix), skill, count) + hits >= NEEDED).sum())


def value_of(skill: float, left: int, hits: int) -> float:
    return sum(comb(left, k) * skill**k * (1 - skill) ** (left - k) for k in range(max(0, NEEDED - hits), left + 1))


def exact(skill: float, best_of: int) -> tuple[float, float]:
    """Alignment and distinguishability, summed over the steps of the policy's own solutions."""
    reached, alignment, distinguishability = {0: 1.0}, 0.0, 0.0
    for left in range(LENGTH, 0, -1):
        following: dict[int, float] = {}
        for hits, chance in reached.items():
            before = value_of(skill, left, hits)
            for p, after in ((skill, hits + 1), (1 - skill, hits)):
                following[after] = following.get(after, 0.0) + chance * p
                value = value_of(skill, left - 1, after)
                under_prover = (1 - before) ** best_of - (1 - value) ** best_of
                alignment += chance * p * under_prover * (value - before)
                distinguishability += chance * p * under_prover**2
        reached = following
    return alignment, distinguishability


def search(skill: float, best_of: int | None, beams: int, problem: int, seed: int) -> tuple[bool, int]:
    """Whether the best trace of a beam search succeeds, and how many rollouts it took; without a prover by Q alone."""
    task = Task(instruction=f"problem {problem}")
    value = MonteCarloValue(partial(rollouts, skill), samples=SAMPLES, seed=seed)
    prover = MonteCarloValue(partial(rollouts, skill), samples=SAMPLES, best_of=best_of or 1, seed=seed + 10_000)
    generator = np.random.default_rng([seed, problem])

    def expand(prefixes: Sequence[tuple[Thought, ...]], count: int) -> list[list[Thought]]:
        return [[HIT if hit else MISS for hit in generator.random(count) < skill] for _ in prefixes]

    if best_of is None:
        found = beam_search(value, task, expand, depth=LENGTH, beams=beams, expansions=EXPANSIONS)
    else:
        model = ProverAdvantage(value, prover, alpha=ALPHA)

        def rank(judgement: Judgement) -> float:
            assert isinstance(judgement, ScoredJudgement)
            return float(model.effective(judgement)[-1])

        found = beam_search(model, task, expand, depth=LENGTH, beams=beams, expansions=EXPANSIONS, rank=rank)
    hits = sum(step is HIT for step in found.best.steps)
    return hits >= NEEDED, value.calls + prover.calls


def best_of_n(skill: float, solutions: int) -> float:
    """P(one of so many whole solutions is right)."""
    return 1 - (1 - value_of(skill, LENGTH, 0)) ** solutions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skills", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--provers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128, 1024], help="K")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--problems", type=int, default=200, help="per seed")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    summary: dict[str, float | Interval] = {}
    arms: list[int | None] = [None, *options.provers]
    with Progress() as progress:
        bar = progress.add_task("searching", total=len(options.skills) * len(options.beams) * len(arms))
        for skill in options.skills:
            for best_of in options.provers:
                alignment, distinguishability = exact(skill, best_of)
                summary[f"alignment.p{skill}.K{best_of}"] = alignment
                summary[f"distinguishability.p{skill}.K{best_of}"] = distinguishability
            for beams in options.beams:
                written = beams * EXPANSIONS
                summary[f"accuracy.p{skill}.N{beams}.best_of_n"] = best_of_n(skill, written)
                for best_of in arms:
                    name = "Q" if best_of is None else f"K{best_of}"
                    accuracies, costs = [], []
                    for seed in range(options.seeds):
                        won = [search(skill, best_of, beams, k, seed) for k in range(options.problems)]
                        accuracies.append(float(np.mean([right for right, _ in won])))
                        costs.append(float(np.mean([cost for _, cost in won])))
                        rows.append(
                            {
                                "skill": skill,
                                "beams": beams,
                                "rank": name,
                                "seed": seed,
                                "accuracy": accuracies[-1],
                                "rollouts": costs[-1],
                            }
                        )
                    key = f"p{skill}.N{beams}.{name}"
                    summary[f"accuracy.{key}"] = expected_interval(accuracies, np.random.default_rng(0))
                    summary[f"rollouts.{key}"] = float(np.mean(costs))
                    summary[f"best_of_n_for_the_same_rollouts.{key}"] = best_of_n(
                        skill, written + round(float(np.mean(costs)))
                    )
                    progress.advance(bar)
    for name, value in summary.items():
        print(name, value)
    about = {"samples": SAMPLES, "alpha": ALPHA, "expansions": EXPANSIONS, "problems_per_seed": options.problems}
    print(write_result("text_pav", summary, seeds=list(range(options.seeds)), rows=rows, **about))


if __name__ == "__main__":
    main()
