"""How many tokens a judge computes in a beam search, with its carry and without: 4 beams, 4 expansions, 8 steps.

A tiny language model learns chains of arithmetic modulo 7 with eight operations and proposes steps; a judge on top of
it is fitted on labelled ones and ranks them. Each problem is searched twice with one seed: once as `beam_search` does
it, every candidate extending the carry of the beam it grew from, whose keys and values are kept; and once by the same
judge without memory, which reads question and steps of every candidate again. Counted are the tokens that the network
was given, padding left out, by the judge itself. The question is read once for each of the sixteen candidates of the
first round. Both searches must find the same; where rounding parts them a problem is left out, and counted.
"""

import argparse
import time
from collections.abc import Sequence
from typing import override

import numpy as np
import torch
from rich.progress import track

from benchmarks.results import write_result
from envs.reasoning import Arithmetic, Habits, make_solutions
from grm.data.stepwise import LabelledSolution
from grm.metrics import Interval, expected_interval
from grm.reward import Judgement, ProcessReward, ScoredJudgement, Task, Thought
from grm.search.beam import Beams, Expand, beam_search
from grm.text.conventions import TRL
from grm.text.discriminative import DiscriminativeJudge, fit_judge
from grm.text.huggingface import HuggingFaceModel
from grm.text.tiny import FitSettings, Passage, fit_language_model, make_model, make_tokenizer

WORLD = Arithmetic(7)
LENGTH = 8
"""Operations, so that nothing is finished before the eighth step."""
BEAMS, EXPANSIONS, DEPTH = 4, 4, 8
HABITS = Habits(error_rate=0.15, later_error_rate=0.15)

type Whole = tuple[Task, tuple[Thought, ...]]


class Forgetful(ProcessReward[Thought, Whole]):
    """A judge without a carry: it reads the whole prefix again for every step."""

    def __init__(self, judge: DiscriminativeJudge) -> None:
        self.judge_of_all = judge

    @override
    def start(self, task: Task) -> Whole:
        """The task and no steps."""
        return task, ()

    @override
    def extend(
        self, carries: Sequence[Whole], steps: Sequence[Sequence[Thought]]
    ) -> tuple[list[Whole], list[Judgement]]:
        """The new part of judgements of everything."""
        after = [(task, (*before, *new)) for (task, before), new in zip(carries, steps, strict=True)]
        judged = self.judge_of_all.judge_all(after)
        return after, [_tail(one, len(new)) for one, new in zip(judged, steps, strict=True)]


def _tail(judgement: ScoredJudgement, length: int) -> ScoredJudgement:
    part = slice(len(judgement) - length, None)
    return ScoredJudgement(
        potential=judgement.potential[part],
        spread=judgement.spread[part],
        judged=judgement.judged[part],
        score=judgement.score[part],
        kind=judgement.kind,
    )


def make(texts: int, language_steps: int, fit_steps: int, seed: int) -> tuple[HuggingFaceModel, DiscriminativeJudge]:
    """A policy and a judge."""
    rng = np.random.default_rng([seed, 1])
    solutions = make_solutions([WORLD], rng, texts, lengths=(LENGTH, LENGTH), habits=HABITS, erroneous=0.0)
    passages = [Passage(prompt=s.question + "\n", text="\n".join(s.steps)) for s in solutions]
    tokenizer = make_tokenizer([p.prompt + p.text for p in passages])
    model = make_model(tokenizer, context=160, seed=seed)
    fit_language_model(model, tokenizer, passages, FitSettings(steps=language_steps, batch=32, seed=seed))
    judge = DiscriminativeJudge.on_top_of(model, tokenizer, TRL, seed=seed)
    labelled = [LabelledSolution(prompt=s.question, steps=s.steps, labels=s.local) for s in solutions]
    fit_judge(judge, labelled, FitSettings(steps=fit_steps, batch=32, learning_rate=1e-3, seed=seed))
    return HuggingFaceModel(model, tokenizer, batch=64), judge


def proposer(policy: HuggingFaceModel, question: str, seed: int) -> Expand[Thought]:
    """Next lines by the policy."""

    def expand(prefixes: Sequence[tuple[Thought, ...]], wanted: int) -> list[list[Thought]]:
        prompts = [question + "\n" + "".join(step.text + "\n" for step in prefix) for prefix in prefixes]
        drawn = policy.generate(prompts, samples=wanted, max_tokens=16, temperature=1.0, stop=["\n"], seed=seed)
        return [[Thought(text=c.text.strip()) for c in of_prefix if c.text.strip()] for of_prefix in drawn]

    return expand


class Watched[C](ProcessReward[Thought, C]):
    """Counts the seconds inside a judge."""

    def __init__(self, model: ProcessReward[Thought, C]) -> None:
        self.model, self.seconds = model, 0.0

    @override
    def start(self, task: Task) -> C:
        """The judge's."""
        return self.model.start(task)

    @override
    def extend(self, carries: Sequence[C], steps: Sequence[Sequence[Thought]]) -> tuple[list[C], Sequence[Judgement]]:
        """The judge's, timed."""
        start = time.perf_counter()
        answer = self.model.extend(carries, steps)
        self.seconds += time.perf_counter() - start
        return answer


def search[C](
    judge: DiscriminativeJudge, model: ProcessReward[Thought, C], policy: HuggingFaceModel, question: str, seed: int
) -> tuple[Beams[Thought], int, float]:
    """What was found, tokens that the judge computed, and seconds inside it."""
    watched, before = Watched(model), judge.usage.prompt_tokens
    found = beam_search(
        watched,
        Task(instruction=question),
        proposer(policy, question, seed),
        depth=DEPTH,
        beams=BEAMS,
        expansions=EXPANSIONS,
    )
    return found, judge.usage.prompt_tokens - before, watched.seconds


def texts_of(found: Beams[Thought]) -> set[tuple[str, ...]]:
    return {tuple(step.text for step in trace.steps) for trace in found.traces}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=3000, help="solutions that policy and judge are made of")
    parser.add_argument("--language-steps", type=int, default=500)
    parser.add_argument("--fit-steps", type=int, default=200)
    parser.add_argument("--problems", type=int, default=20, help="per seed")
    parser.add_argument("--seeds", type=int, default=5, help="of the problems and the draws; policy and judge are one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, judge = make(options.texts, options.language_steps, options.fit_steps, 0)
    rows: list[dict[str, float]] = []
    for seed in track(range(options.seeds), "searching"):
        rng = np.random.default_rng([seed, 2])
        sums = np.zeros(4)
        parted = steps = 0
        for _ in range(options.problems):
            question = WORLD.draw(rng, length=LENGTH).question
            carried, tokens, seconds = search(judge, judge, policy, question, seed)
            again, tokens_again, seconds_again = search(judge, Forgetful(judge), policy, question, seed)
            if texts_of(carried) != texts_of(again):
                parted += 1
                continue
            steps += carried.judged
            sums += (tokens, tokens_again, seconds, seconds_again)
        searched = options.problems - parted
        rows.append(
            {
                "seed": seed,
                "problems": searched,
                "parted": parted,
                "tokens_computed": sums[0] / searched,
                "tokens_without_reuse": sums[1] / searched,
                "ratio": sums[0] / sums[1],
                "seconds_ratio": sums[2] / sums[3],
                "steps_judged": steps / searched,
            }
        )
    summary: dict[str, float | Interval] = {
        name: expected_interval([row[name] for row in rows], np.random.default_rng(0))
        for name in ("ratio", "tokens_computed", "tokens_without_reuse", "seconds_ratio", "steps_judged")
    }
    summary["problems_left_out"] = sum(row["parted"] for row in rows)
    for name, value in summary.items():
        print(name, value)
    about = {"beams": BEAMS, "expansions": EXPANSIONS, "steps": DEPTH, "target_ratio": 0.3}
    print(write_result("text_reuse", summary, seeds=list(range(options.seeds)), rows=rows, **about))


if __name__ == "__main__":
    main()
