"""One number per trace out of many per-step scores; each aggregator refuses the kinds of score it is wrong for.

    kind          right aggregators          why
    correctness   product, minimum, mean     chain rule: P(all right); the weakest; the share of right ones
    verdict       product, minimum, mean     the same of decisions
    value         last                       the last value has seen everything the earlier ones had
    advantage     mean                       advantages telescope to (V_T - V_0) / T

Taking a value model for a correctness model is the classic mistake: a product of values counts one event T times, and
a minimum blames a solution for a low point it recovered from. On Monte-Carlo-trained models *last* is measured best,
on judged and human-labelled ones *product* or *minimum* (Qwen "Lessons", arXiv 2501.07301). Mind that a product
falls with length even for equally good steps, and that a minimum supposes errors to be fatal.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from .errors import AbstainedError, TraceError
from .reward import ScoredJudgement, ScoreKind


def last(judgement: ScoredJudgement) -> float:
    """Score of the last step, for values, in [0, 1]; abstentions before it do not matter.

    Raises `TraceError` for another kind of score or no steps, `AbstainedError` if the last step was not judged.
    """
    _check(judgement, "last", ScoreKind.VALUE)
    return float(_scores(judgement, slice(-1, None))[0])


def minimum(judgement: ScoredJudgement) -> float:
    """Score of the weakest step, for correctness and verdicts, in [0, 1].

    Raises `TraceError` for another kind of score or no steps, `AbstainedError` if any step was not judged.
    """
    _check(judgement, "minimum", ScoreKind.CORRECTNESS, ScoreKind.VERDICT)
    return float(_scores(judgement).min())


def product(judgement: ScoredJudgement) -> float:
    """P(every step is right), for correctness and verdicts, in [0, 1].

    Raises `TraceError` for another kind of score or no steps, `AbstainedError` if any step was not judged.
    """
    _check(judgement, "product", ScoreKind.CORRECTNESS, ScoreKind.VERDICT)
    return float(_scores(judgement).prod())


def mean(judgement: ScoredJudgement) -> float:
    """Expected share of right steps in [0, 1], or mean advantage in [-1, 1].

    Raises `TraceError` for values or no steps, `AbstainedError` if any step was not judged.
    """
    _check(judgement, "mean", ScoreKind.CORRECTNESS, ScoreKind.VERDICT, ScoreKind.ADVANTAGE)
    return float(_scores(judgement).mean())


AGGREGATORS: Mapping[str, Callable[[ScoredJudgement], float]] = {
    "last": last,
    "minimum": minimum,
    "product": product,
    "mean": mean,
}
"""By name."""
USUAL: Mapping[ScoreKind, str] = {
    ScoreKind.CORRECTNESS: "product",
    ScoreKind.VERDICT: "minimum",
    ScoreKind.VALUE: "last",
    ScoreKind.ADVANTAGE: "mean",
}
"""The aggregator that is taken for a kind of score where nobody names one."""

_RIGHT_FOR = {
    ScoreKind.CORRECTNESS: "product, minimum or mean",
    ScoreKind.VERDICT: "product, minimum or mean",
    ScoreKind.VALUE: "last",
    ScoreKind.ADVANTAGE: "mean",
}


def _check(judgement: ScoredJudgement, aggregator: str, *kinds: ScoreKind) -> None:
    if judgement.kind not in kinds:
        raise TraceError(
            f"{aggregator} of scores of kind {judgement.kind.value}; expected {' or '.join(k.value for k in kinds)} "
            f"(right for {judgement.kind.value}: {_RIGHT_FOR[judgement.kind]})"
        )
    if len(judgement) == 0:
        raise TraceError(f"{aggregator} of a trace without steps; expected at least one")


def _scores(judgement: ScoredJudgement, steps: slice = slice(None)) -> Float[np.ndarray, " steps"]:
    scores = judgement.score[steps]
    missing = np.flatnonzero(~judgement.judged[steps] | np.isnan(scores))
    if len(missing):
        raise AbstainedError(
            f"the model abstained on {len(missing)} of {len(scores)} steps asked for; expected all judged (skip the "
            f"trace, or ask the model again)"
        )
    return scores
