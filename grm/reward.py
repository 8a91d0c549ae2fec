"""The one interface for the one question, how far along is this.

A robot episode, a live camera stream and a chain of thought are the same thing: a task plus a growing prefix of steps.
Every model answers with the *potential* Φ in [0, 1] after each step. Scoring live, scoring offline and searching a tree
are the same operation: extend a prefix, whose memory (the carry) is immutable.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from .errors import AbstainedError, TraceError

BLACK = 4
"""Brightest byte of a picture that shows nothing, whoever looks at it: that of a covered or unpowered sensor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A robot step: what every camera saw at one instant.

    Raises `TraceError` on construction if a view is not an unsigned-byte RGB image or the time is not finite.
    """

    views: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    """Images by camera name; any number of them. A missing camera is simply absent."""
    time: float = 0.0
    """Seconds since the episode began."""

    def __post_init__(self) -> None:
        for name, image in self.views.items():
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                found = f"{type(image).__name__}" if not isinstance(image, np.ndarray) else f"dtype {image.dtype}"
                raise TraceError(
                    f"view {name!r} is {found}; expected an (h, w, 3) uint8 array in [0, 255] "
                    f"(for floats in [0, 1]: `(255 * image).astype(np.uint8)`)"
                )
            if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise TraceError(
                    f"view {name!r} has shape {image.shape}; expected (h, w, 3), height and width at least 1, "
                    f"channels last (for channels first: `image.transpose(1, 2, 0)`)"
                )
        if not np.isfinite(self.time):
            raise TraceError(f"frame time is {self.time}; expected finite seconds since the episode began")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thought:
    """A reasoning step."""

    text: str
    parents: tuple[int, ...] | None = None
    """Indices of the earlier steps this one rests on; None means the one before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is to be done."""

    instruction: str
    goal: Frame | None = None
    """A picture of it done; never cut from the trace being judged."""

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise TraceError("the task's instruction is empty; expected a sentence such as 'open the door'")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """Potential in [0, 1] after each of T steps. Where `judged` is False the model abstained."""

    potential: Float[np.ndarray, " T"]
    """Φ in [0, 1]; NaN where the model abstained, so that an abstention can never pass for a number."""
    spread: Float[np.ndarray, " T"]
    """One standard deviation of `potential`; NaN where the model abstained."""
    judged: Bool[np.ndarray, " T"]

    def __post_init__(self) -> None:
        if not self.potential.shape == self.spread.shape == self.judged.shape or self.potential.ndim != 1:
            raise TraceError(
                f"judgement of shapes potential {self.potential.shape}, spread {self.spread.shape}, "
                f"judged {self.judged.shape}; expected three vectors of one length"
            )

    def __len__(self) -> int:
        return len(self.potential)

    def last(self) -> float:
        """Potential after the last step. Raises `AbstainedError` if the model abstained there."""
        if len(self) == 0 or not self.judged[-1]:
            raise AbstainedError("the model abstained on the last step; check `judged` before asking for a potential")
        return float(self.potential[-1])


class ScoreKind(StrEnum):
    """What a text model's raw per-step number means. Mixing kinds silently is the classic bug."""

    CORRECTNESS = "correctness"
    """P(this step is right), given that the ones before are."""
    VALUE = "value"
    """P(the final answer comes out right | prefix)."""
    ADVANTAGE = "advantage"
    """Change of a prover's value caused by this step, in [-1, 1]."""
    VERDICT = "verdict"
    """A decision, 0 or 1: the step is right or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredJudgement(Judgement):
    """A judgement that also carries the model's raw per-step score and what kind of number it is."""

    score: Float[np.ndarray, " T"]
    kind: ScoreKind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerspectiveJudgement(Judgement):
    """A robot judgement with its parts: the fused potential, its four perspectives and the success head."""

    incremental: Float[np.ndarray, " T"]
    """Φ by accumulating hops from the fused potential of the step before, in [0, 1]."""
    forward: Float[np.ndarray, " T"]
    """Raw hop from the initial frame, in [-1, 1]; NaN where it abstains."""
    backward: Float[np.ndarray, " T"]
    """1 + raw hop from the goal, in [0, 2]; NaN where it abstains, as it does without a goal."""
    absolute: Float[np.ndarray, " T"]
    """Progress read off the frame itself, in [0, 1]; NaN where it abstains."""
    success: Float[np.ndarray, " T"] = field()
    """P(the task is done), in [0, 1]: a head of its own, never a threshold on Φ."""


class Judge[S](Protocol):
    """Scores a finished trace; may look at all of it. Enough for labels and evaluation."""

    def judge(self, task: Task, steps: Sequence[S]) -> Judgement:
        """Judge a whole trace of T steps."""
        ...


@runtime_checkable
class BatchJudge[S](Judge[S], Protocol):
    """A `Judge` that takes many traces at once, which is cheaper than one after the other."""

    def judge_all(self, traces: Sequence[tuple[Task, Sequence[S]]]) -> Sequence[Judgement]:
        """Judge whole traces, each with its task."""
        ...


class ProcessReward[S, C](abc.ABC):
    """A `Judge` that scores as it goes, so it can run live and can branch: the carry is immutable."""

    @abc.abstractmethod
    def start(self, task: Task) -> C:
        """Carry of the empty prefix."""

    @abc.abstractmethod
    def extend(self, carries: Sequence[C], steps: Sequence[Sequence[S]]) -> tuple[list[C], Sequence[Judgement]]:
        """Lengthen B prefixes at once (environments, beams, one robot) by T_b >= 0 steps each."""

    def judge(self, task: Task, steps: Sequence[S]) -> Judgement:
        """Judge a whole trace: one `extend` with all of its steps."""
        _, [judgement] = self.extend([self.start(task)], [steps])
        return judgement

    def judge_all(self, traces: Sequence[tuple[Task, Sequence[S]]]) -> Sequence[Judgement]:
        """Judge many whole traces: one `extend` of them all."""
        _, judgements = self.extend([self.start(task) for task, _ in traces], [steps for _, steps in traces])
        return judgements
