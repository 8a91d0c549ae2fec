"""What the robot's process is told, and which episode comes next."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lerobot.robots import RobotConfig
from lerobot.teleoperators import TeleoperatorConfig

from .link import Address
from .robot import Control

Purpose = Literal["rollout", "evaluation", "demonstration"]
Source = Literal["person", "environment", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotSide:
    """What the robot's process is told."""

    out: Path
    """Folder of the recording and of what this process must not forget."""
    robot: RobotConfig
    teleop: TeleoperatorConfig | None = None
    limits: Path
    instruction: str
    task: str = ""
    rate_hz: float = 20.0
    horizon: int = 200
    """Steps until a rollout is truncated."""
    control: Control = "delta"
    views: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    home: Mapping[str, float] | None = None
    success: Source = "person"
    """Who says that the task is done. A person always may."""
    stable_steps: int = 5
    """How many steps in a row the success head must be sure, where it says so."""
    sure: float = 0.9
    """P(done) from which the success head is sure."""
    learner: Address | None = None
    """Nobody learns while a person demonstrates."""
    rollouts: int | None = None
    """How many to end after."""
    evaluate_every: int = 0
    """Rollouts between two evaluations; 0 for none."""
    evaluations: int = 10
    """Deterministic rollouts of one evaluation, nothing of which is learned."""
    seed: int = 0
    """Of the scenes, where the robot sets them itself."""
    attended: bool = False
    """Whether a person says when the scene is reset, also of a robot that resets it by itself."""
    demonstrate: bool = False
    """Whether the person drives all of every rollout."""

    @property
    def recording(self) -> Path:
        """The data set."""
        return self.out / "episodes"


def next_purpose(lines: list[dict[str, Any]], side: RobotSide) -> Purpose | None:
    """What the next episode is for, given those recorded; None if it is enough."""
    done = [line["behaviour"] for line in lines]
    rollouts, evaluations = done.count("rollout"), done.count("evaluation")
    if side.demonstrate:
        return "demonstration" if done.count("demonstration") < (side.rollouts or 1) else None
    if side.evaluate_every and evaluations < rollouts // side.evaluate_every * side.evaluations:
        return "evaluation"
    return None if side.rollouts is not None and rollouts >= side.rollouts else "rollout"


def scene_seed(side: RobotSide, lines: list[dict[str, Any]], purpose: Purpose) -> int:
    """Of the scene of the next episode: evaluations all meet the same ones, which no rollout meets."""
    number = sum(line["behaviour"] == purpose for line in lines)
    if purpose == "evaluation":
        number %= side.evaluations
    stream = ("rollout", "evaluation", "demonstration").index(purpose)
    return int(np.random.SeedSequence(side.seed, spawn_key=(stream, number)).generate_state(1)[0])
