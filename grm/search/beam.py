"""Beam search with a process reward, for any kind of step: thoughts of a language model, actions of a planner.

Every candidate extends the carry of the beam it grew from, so each step is judged once; without the carry, each of the
N x M candidates of a round would have its whole prefix judged again.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..errors import AbstainedError, TraceError
from ..reward import Judgement, ProcessReward, Task

type Expand[S] = Callable[[Sequence[tuple[S, ...]], int], Sequence[Sequence[S]]]
"""Proposes up to so many next steps for each prefix; none where it cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found[S]:
    """A trace that a search arrived at."""

    steps: tuple[S, ...]
    score: float
    """Rank of its newest step; NaN where the model abstained."""
    finished: bool
    """Whether it is complete; if not, the search went no deeper, or nothing more was proposed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beams[S]:
    """What a beam search found and what it took."""

    traces: tuple[Found[S], ...]
    """Finished ones and the last beams, best first: finished before unfinished, those without a score last."""
    judged: int
    """Size of the steps that were judged, each once."""
    judged_without_reuse: int
    """Size of what would have been judged if every candidate had been judged from its first step."""
    n_proposed: int
    """Steps proposed; without the duplicates, these were judged."""
    n_duplicates: int
    n_abstained: int
    """Candidates on whose newest step the model abstained."""

    @property
    def best(self) -> Found[S]:
        """The best trace; a finished one where there is one. Raises `AbstainedError` if it has no score."""
        if not self.traces or math.isnan(self.traces[0].score):
            raise AbstainedError(f"no score for any of {len(self.traces)} traces; expected one at least")
        return self.traces[0]

    @property
    def reuse(self) -> float:
        """`judged` / `judged_without_reuse`, in (0, 1]; NaN if nothing was judged."""
        return self.judged / self.judged_without_reuse if self.judged_without_reuse else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class _Beam[S, C]:
    steps: tuple[S, ...]
    carry: C
    score: float
    size: int


def beam_search[S, C](
    model: ProcessReward[S, C],
    task: Task,
    expand: Expand[S],
    *,
    depth: int,
    beams: int = 4,
    expansions: int = 4,
    finished: Callable[[tuple[S, ...]], bool] = lambda steps: False,
    rank: Callable[[Judgement], float] = Judgement.last,
    key: Callable[[S], Hashable] | None = None,
    size: Callable[[S], int] = lambda step: 1,
) -> Beams[S]:
    """Grow traces for up to `depth` rounds, keeping the best `beams` of `beams` x `expansions` candidates.

    All candidates of a round are judged in one `extend`. `rank` scores a candidate by the judgement of its newest step,
    the potential by default; where it raises `AbstainedError` the candidate comes after all that have a score. A trace
    is set aside once it is `finished`, and takes no beam. Of steps of one `key` that grow from one prefix the first
    counts; None keeps duplicates. `size` of a step, such as its tokens, is what the counts of judged steps add up.

    The root is expanded into `beams` x `expansions` candidates, as in search-and-learn; PAV, arXiv 2410.08146, searches
    likewise with 3 expansions. Raises `TraceError` on `beams`, `expansions` or `depth` below 1.
    """
    if beams < 1 or expansions < 1 or depth < 1:
        raise TraceError(f"beams {beams}, expansions {expansions}, depth {depth}; expected at least 1 of each")
    done: list[Found[S]] = []
    live = [_Beam((), model.start(task), math.nan, 0)]
    judged = without = proposed = duplicates = abstained = 0
    for round in range(depth):
        wanted = expansions if round else beams * expansions
        proposals = expand([beam.steps for beam in live], wanted)
        if len(proposals) != len(live) or any(len(steps) > wanted for steps in proposals):
            raise TraceError(
                f"expand gave {[len(steps) for steps in proposals]} steps for {len(live)} prefixes; expected a list of "
                f"up to {wanted} for each"
            )
        grown: list[tuple[_Beam[S, C], S]] = []
        for beam, steps in zip(live, proposals, strict=True):
            proposed += len(steps)
            if not steps and beam.steps:
                done.append(Found(steps=beam.steps, score=beam.score, finished=False))
            chosen = steps if key is None else list({key(step): step for step in reversed(steps)}.values())[::-1]
            duplicates += len(steps) - len(chosen)
            grown += [(beam, step) for step in chosen]
        if not grown:
            live = []
            break
        carries, judgements = model.extend([beam.carry for beam, _ in grown], [[step] for _, step in grown])
        candidates: list[_Beam[S, C]] = []
        for (beam, step), carry, judgement in zip(grown, carries, judgements, strict=True):
            try:
                score = rank(judgement)
            except AbstainedError:
                score = math.nan
            abstained += math.isnan(score)
            candidate = _Beam((*beam.steps, step), carry, score, beam.size + size(step))
            judged += size(step)
            without += candidate.size
            if finished(candidate.steps):
                done.append(Found(steps=candidate.steps, score=score, finished=True))
            else:
                candidates.append(candidate)
        live = sorted(candidates, key=lambda beam: _order(beam.score))[:beams]
        if not live:
            break
    done += [Found(steps=beam.steps, score=beam.score, finished=False) for beam in live]
    return Beams(
        traces=tuple(sorted(done, key=lambda found: (not found.finished, _order(found.score)))),
        judged=judged,
        judged_without_reuse=without,
        n_proposed=proposed,
        n_duplicates=duplicates,
        n_abstained=abstained,
    )


def _order(score: float) -> tuple[bool, float]:
    """Sorts the best first and what has no score last; ties keep their order."""
    return (math.isnan(score), 0.0 if math.isnan(score) else -score)
