"""Choose the best of several solutions by the scores of their steps, and vote with them.

    python examples/best_of_n.py

The judge recomputes arithmetic, so that this runs anywhere in seconds; any other is used the same way, such as
`DiscriminativeJudge.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B")`.
"""

from grm.aggregate import minimum
from grm.errors import AbstainedError
from grm.reward import Task, Thought
from grm.search.best_of_n import best_of, score_candidates
from grm.search.vote import majority_vote, weighted_vote
from grm.text.arithmetic import ArithmeticJudge
from grm.text.scoring import score
from grm.text.steps import canonical_answer, split_paragraphs

QUESTION = "x0 = 3 and x1 = 5. What is x3 = x2 - x0 mod 7, where x2 = x0 * x1 mod 7?"
ANSWERS = [  # as a language model would write them: a blank line after each step, the answer in the last
    "x0 = 3\n\nx1 = 5\n\nx2 = (x0 * x1) mod 7 = 2\n\nx3 = (x2 - x0) mod 7 = 6",
    "x0 = 3\n\nx1 = 5\n\nx2 = (x0 * x1) mod 7 = 2\n\nx3 = (x2 - x0) mod 7 = 6",
    "x0 = 3\n\nx1 = 5\n\nx2 = (x0 * x1) mod 7 = 1\n\nx3 = (x2 - x0) mod 7 = 5",
    "x0 = 3\n\nx1 = 5\n\nx2 = (x0 * x1) mod 7 = 4\n\nx3 = (x2 - x0) mod 7 = 1",
    "x0 = 3\n\nx1 = 5\n\nx2 = (x1 * x0) mod 7 = 2\n\nx3 = (x2 - x0) mod 7 = 6",
    "First I think about it.\n\nSurely it is 5.",
]


def main() -> None:
    judge = ArithmeticJudge()
    candidates = [split_paragraphs(text) for text in ANSWERS]
    answers = [canonical_answer(steps[-1].split()[-1].rstrip(".")) for steps in candidates]

    # Scores of every step: [question][candidate][step]. None is an abstention, and never a 0.
    [of_candidates] = score(judge, [QUESTION], [candidates])
    for answer, scores in zip(answers, of_candidates, strict=True):
        print(f"answer {answer}: ", *("abstained" if s is None else f"{s:.1f}" for s in scores))

    # One number per candidate. The aggregators know which kinds of score they are right for, and refuse others.
    thoughts = [[Thought(text=step) for step in steps] for steps in candidates]
    totals = score_candidates(judge.judge, Task(instruction=QUESTION), thoughts, minimum)
    best = best_of(totals)
    print(
        f"best of {len(candidates)}: candidate {best.index}, answer {answers[best.index]}; {best.n_abstained} abstained"
    )
    print(f"majority vote: {majority_vote(answers).answer}, weighted vote: {weighted_vote(answers, totals).answer}")

    try:
        best_of(totals[-1:])
    except AbstainedError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
