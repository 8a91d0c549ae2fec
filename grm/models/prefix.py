"""Other people's models: whatever answers "how far along, after these frames?" is a judge of episodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import override

import numpy as np

from ..errors import TraceError
from ..reward import Frame, Judgement, ProcessReward, Task

Scorer = Callable[[Task, Sequence[Frame]], float]
"""Progress in [0, 1] after the last of the frames; NaN to abstain."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A task and every frame so far, which is what such a model is asked about."""

    task: Task
    frames: tuple[Frame, ...] = ()


class PrefixReward(ProcessReward[Frame, Prefix]):
    """Asks `score` once per frame, each time with all frames up to it, so memory grows with the recording.

    A model of one number says nothing of its doubt: the spread of what is judged is 0.
    """

    def __init__(self, score: Scorer) -> None:
        self._score = score

    @override
    def start(self, task: Task) -> Prefix:
        """No frame yet."""
        return Prefix(task)

    @override
    def extend(
        self, carries: Sequence[Prefix], steps: Sequence[Sequence[Frame]]
    ) -> tuple[list[Prefix], list[Judgement]]:
        """Raises `TraceError` if a score is no number of [0, 1]."""
        ends, judgements = [], []
        for carry, new in zip(carries, steps, strict=True):
            potential = np.full(len(new), np.nan)
            for t, frame in enumerate(new):
                carry = Prefix(carry.task, (*carry.frames, frame))
                potential[t] = float(self._score(carry.task, carry.frames))
                if not (np.isnan(potential[t]) or 0 <= potential[t] <= 1):
                    raise TraceError(
                        f"the scorer says {potential[t]} after {len(carry.frames)} frames; expected progress in "
                        f"[0, 1], or NaN to abstain"
                    )
            judged = ~np.isnan(potential)
            ends.append(carry)
            judgements.append(Judgement(potential=potential, spread=np.where(judged, 0.0, np.nan), judged=judged))
        return ends, judgements
