"""What is told of a rollout while it happens: its transitions, how it ended, and to whom."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np


class Verdict(StrEnum):
    """What is known of an episode's outcome."""

    GOING = "going"
    SUCCESS = "success"
    FAILURE = "failure"
    DISCARD = "discard"
    """It is not to be kept, nor learned from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tick:
    """One transition as it was: what was seen, what was really sent there, and what came of it."""

    index: int
    """In its episode."""
    observation: Mapping[str, np.ndarray]
    """What was seen before."""
    action: np.ndarray
    """What the actor asked for, in the environment's range."""
    next_observation: Mapping[str, np.ndarray]
    reward: float
    """Task reward."""
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    """Of the step: see `RobotEnv`."""
    intervention: bool
    """Whether a person acted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an episode ended."""

    verdict: Verdict
    ticks: int
    interventions: int
    """Ticks on which a person acted."""
    reason: str = ""
    """Why it was cut short, in words; empty if it was not."""


class Subscriber(Protocol):
    """Somebody who watches. Called from the loop's thread: whoever needs time takes it in a thread of their own."""

    def begin(self, observation: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """An episode begins."""
        ...

    def tick(self, tick: Tick) -> None:
        """A transition has happened."""
        ...

    def end(self, ending: Ending) -> None:
        """The episode is over."""
        ...
