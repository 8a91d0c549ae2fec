"""A mind and a policy of a few numbers, so that a session can be run whole in seconds."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grm.reward import Frame, Judgement, ProcessReward, Task
from robot_io.replay import Attempt
from shaping import shaping_reward


class Brightness(ProcessReward[Frame, tuple[float, int]]):
    """The brighter, the further; a little of the step before. Abstains on every seventh frame."""

    def start(self, task: Task) -> tuple[float, int]:
        return 0.0, 0

    def extend(
        self, carries: Sequence[tuple[float, int]], steps: Sequence[Sequence[Frame]]
    ) -> tuple[list[tuple[float, int]], list[Judgement]]:
        ends, judgements = [], []
        for (before, seen), frames in zip(carries, steps, strict=True):
            potential = []
            for frame in frames:
                seen += 1
                bright = float(np.mean([view.mean() for view in frame.views.values()])) / 255
                before = 0.9 * bright + 0.1 * before
                potential.append(np.nan if seen % 7 == 0 else before)
            values = np.array(potential)
            ends.append((before, seen))
            judgements.append(
                Judgement(potential=values, spread=np.where(np.isnan(values), np.nan, 0.01), judged=~np.isnan(values))
            )
        return ends, judgements


class Wander:
    """Random actions; remembers the newest policy."""

    def __init__(self, folder: Path) -> None:
        self.generator = np.random.default_rng(0)
        self.policy = b""

    def load(self, policy: bytes) -> None:
        self.policy = policy

    def begin(self) -> None:
        assert self.policy, "the learner's first policy comes before the first rollout"

    def act(self, observation: Mapping[str, np.ndarray], *, explore: bool) -> np.ndarray:
        return self.generator.uniform(-1, 1, 4) * explore


def shaped(attempt: Attempt, judgement: Judgement) -> list[float]:
    """What a learner could be paid."""
    ends = np.zeros(len(attempt.rewards), bool)
    ends[-1] = attempt.terminated
    rewards = attempt.rewards + shaping_reward(judgement.potential[:-1], judgement.potential[1:], ends, 0.9)
    return np.nan_to_num(rewards, nan=-1.0).tolist()


class Tally:
    """Learns by counting; what it was paid is in `rewards.json`."""

    model = Brightness()
    task = Task(instruction="unlock the door")
    scalars: tuple[str, ...] = ()

    def __init__(self, grm: Path, learning_s: float = 0.0) -> None:
        self.grm, self.learning_s = grm, learning_s
        self.seen: dict[str, list[float]] = {}

    def observe(self, state: np.ndarray, carry: tuple[float, int]) -> np.ndarray:
        return np.append(state, carry[0]).astype(np.float32)

    def learn(
        self, attempt: Attempt, observations: np.ndarray, judgement: Judgement, between: Callable[[], None]
    ) -> None:
        assert observations.shape == (len(attempt.rewards) + 1, attempt.state.shape[1] + 1)
        for _ in range(10):
            time.sleep(self.learning_s / 10)
            between()
        self.seen[str(attempt.number)] = shaped(attempt, judgement)

    def policy(self) -> bytes:
        return f"policy after {len(self.seen)}".encode()

    def updates(self) -> int:
        return 10 * len(self.seen)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "rewards.json").write_text(json.dumps(self.seen))


@dataclass(frozen=True)
class MakeTally:
    """Picklable; `grm` is a folder with a config and weights."""

    grm: Path
    learning_s: float = 0.0
    failing: str = ""

    def __call__(self, checkpoint: Path | None, report: Callable[[str], None]) -> Tally:
        report("adapting")
        if self.failing == "exit":
            os._exit(7)
        mind = Tally(self.grm, self.learning_s)
        if checkpoint is not None:
            mind.seen = json.loads((checkpoint / "rewards.json").read_text())
        return mind
