"""Episodes as features, what an arm sees of them, and the batches that all arms learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from grm.data.episodes import Episode
from grm.data.pairs import BalancedPairs
from grm.labels import from_time

LAG = 2
"""Frames between two stored ones in training, and between two frames of a window everywhere."""
FRAMES = 8
"""Frames of an episode per step, for every arm."""


@dataclass(frozen=True, eq=False)
class Clip:
    """T stored frames of one episode."""

    episode: Episode
    """Without its views."""
    numbers: np.ndarray  # (T,) which frames of the episode
    views: tuple[str, ...]
    tokens: np.ndarray  # (T, V, D) float16
    pooled: np.ndarray  # (T, P) float16

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def task(self) -> str:
        return self.episode.task

    @property
    def demonstration(self) -> bool:
        return self.episode.behaviour == "expert" and self.episode.succeeded

    @cached_property
    def potential(self) -> np.ndarray:
        """True progress (T,); its share of the time for a demonstration that nobody labelled."""
        progress = self.episode.progress.astype(np.float64)
        if np.isnan(progress).all() and self.episode.succeeded:
            progress = from_time(len(self.episode))
        return progress[self.numbers]

    @cached_property
    def success(self) -> np.ndarray:
        return self.episode.success[self.numbers]

    @cached_property
    def pairs(self) -> BalancedPairs:
        return BalancedPairs(self.potential)

    def every(self, stride: int) -> "Clip":
        """The same clip with every `stride`-th of its frames and the last."""
        kept = np.unique([*range(0, len(self), stride), len(self) - 1])
        return Clip(self.episode, self.numbers[kept], self.views, self.tokens[kept], self.pooled[kept])


@dataclass(frozen=True)
class Look:
    """What an arm sees of a frame."""

    view: str | None = None
    """The token of one camera alone; None for the pooled feature of all of them."""
    window: int = 1
    """How many frames, `LAG` apart and the newest first, side by side; the first frame stands in before the start."""

    def __call__(self, clip: Clip, pick: np.ndarray | None = None) -> Tensor:
        """Features (n, window * P) of the picked frames, or of all."""
        stored = clip.pooled if self.view is None else clip.tokens[:, clip.views.index(self.view)]
        pick = np.arange(len(clip)) if pick is None else pick
        wanted = clip.numbers[pick, None] - LAG * np.arange(self.window)
        rows = np.clip(np.searchsorted(clip.numbers, wanted, side="right") - 1, 0, None)
        return torch.from_numpy(stored[rows].astype(np.float32)).flatten(1)

    def features(self, clip: Clip) -> int:
        return self.window * (clip.pooled.shape[-1] if self.view is None else clip.tokens.shape[-1])


@dataclass(frozen=True, eq=False)
class Drawn:
    """An episode of a batch with its references, as one `Trainer` step of `grm.train` draws them."""

    clip: Clip
    initial: Clip
    """Its first frame is the initial one: an episode of the same task, often another."""
    goal: Clip
    """Its last frame is the goal: another success of the task wherever there is one."""
    text: Tensor  # (E,)
    matched: bool
    """Whether text and goal are the task's own; if not, nothing is ever done."""
    bootstrap: float = 0.0

    def potential(self, pick: np.ndarray) -> np.ndarray:
        return self.clip.potential[pick] * self.matched

    def success(self, pick: np.ndarray) -> np.ndarray:
        return self.clip.success[pick] & self.matched

    def learners(self, members: int) -> np.ndarray:
        """Which members (M,) of an ensemble learn from this episode: always the same, at least one."""
        episode = self.clip.episode
        key = [*episode.task.encode(), *episode.behaviour.encode(), episode.seed or 0]
        learns = np.random.default_rng(key).random(members) >= self.bootstrap
        return learns if learns.any() else ~learns


@dataclass(frozen=True, eq=False)
class Pool:
    """Clips to draw batches from; every task among them has a success."""

    clips: Sequence[Clip]
    texts: Mapping[str, Tensor]
    mismatch: float = 0.15
    """Chance of another task's goal, text or both."""
    swap_initial: float = 0.5
    bootstrap: float = 0.3
    """Share of the episodes that a member of an ensemble never learns from."""
    focus: float = 0.0
    """Share of a step's tasks that are the first clip's: the demonstration's."""
    tasks: dict[str, list[Clip]] = field(init=False)

    def __post_init__(self) -> None:
        tasks: dict[str, list[Clip]] = {}
        for clip in self.clips:
            tasks.setdefault(clip.task, []).append(clip)
        object.__setattr__(self, "tasks", {t: c for t, c in tasks.items() if any(x.episode.succeeded for x in c)})

    def draw(self, tasks: int, episodes: int, rng: np.random.Generator) -> list[Drawn]:
        """`tasks` x `episodes` episodes, those of one task side by side, a success first."""
        names = list(self.tasks)
        batch: list[Drawn] = []
        for _ in range(tasks):
            name = names[0] if rng.random() < self.focus else names[rng.integers(len(names))]
            clips = self.tasks[name]
            done = [clip for clip in clips if clip.episode.succeeded]
            first = done[rng.integers(len(done))]
            mates = [first, *(clips[i] for i in rng.integers(len(clips), size=episodes - 1))]
            for clip in mates:
                initial = mates[rng.integers(len(mates))] if rng.random() < self.swap_initial else clip
                donors = [other for other in done if other is not clip] or done
                goal = donors[rng.integers(len(donors))]
                batch.append(Drawn(clip, initial, goal, self.texts[clip.episode.instruction], True, self.bootstrap))
        return [self._mismatched(drawn, batch, rng) for drawn in batch]

    def _mismatched(self, drawn: Drawn, batch: Sequence[Drawn], rng: np.random.Generator) -> Drawn:
        strangers = [other for other in batch if other.clip.task != drawn.clip.task]
        if rng.random() >= self.mismatch or not strangers:
            return drawn
        stranger, kind = strangers[rng.integers(len(strangers))], rng.integers(3)
        text = stranger.text if kind < 2 else drawn.text
        goal = stranger.goal if kind > 0 else drawn.goal
        return Drawn(drawn.clip, drawn.initial, goal, text, False, self.bootstrap)


def balanced_pick(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """`FRAMES` frames of an episode: the first comes first, the last last, hop-balanced ones between."""
    pairs = clip.pairs.draw((FRAMES - 1) // 2, rng).ravel()
    return np.concatenate([[0], np.resize(pairs, FRAMES - 2), [len(clip) - 1]])
