"""Progress with rewound clips as the only failures: ReWiND (Zhang et al. 2025, arXiv 2505.10911).

Trained on demonstrations alone: a clip plays forward and is then rewound for a while, the progress of each frame
falling again; another task's instruction (or goal picture) makes the progress of a clip 0. The prediction is absolute
and sees a short window of frames; mean squared error, as there. Theirs is a small transformer over text and frames;
this is a head of the common width over a window of four, which also sees the goal picture, as the others do.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .absolute import references
from .clips import FRAMES, Drawn, Look
from .head import FeatureJudgement, Head, Shown, mlp, nothing

WINDOW = 4


class RewindHead(Head):
    """`look` has the window; the goal's is cut to its newest frame."""

    def __init__(self, features: int, text: int, look: Look) -> None:
        super().__init__()
        self.look = look
        self.single = Look(look.view)
        self.features = features // look.window
        self.net = mlp(features + self.features + text, 1)

    def predict(self, text: Tensor, goal: Tensor, windows: Tensor) -> Tensor:
        """Progress (…) in [0, 1]."""
        return self.net(torch.cat([windows, goal, text], -1)).squeeze(-1).sigmoid()

    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        picks = [rewound(len(drawn.clip), rng) for drawn in batch]
        frames = torch.stack([self.single(d.clip, pick) for d, pick in zip(batch, picks, strict=True)])
        windows = frames[:, windows_of(FRAMES, self.look.window)].flatten(2)  # (E, K, window * P)
        text, goal = references(batch, self.single, FRAMES)
        potential = np.stack([d.potential(pick) for d, pick in zip(batch, picks, strict=True)])
        return ((self.predict(text, goal, windows) - torch.from_numpy(potential).float()) ** 2).mean()

    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        count = len(frames)
        goal = shown.goal[: self.features]
        progress = self.predict(shown.text.expand(count, -1), goal.expand(count, -1), frames)
        return FeatureJudgement(progress.double().numpy(), nothing(count), nothing(count))


def rewound(length: int, rng: np.random.Generator, chance: float = 0.5) -> np.ndarray:
    """`FRAMES` indices of neighbouring frames: forward, and with `chance` backward again for the last of them."""
    back = int(rng.integers(1, FRAMES // 2)) if rng.random() < chance else 0
    forward = min(FRAMES - back, length)
    start = int(rng.integers(length - forward + 1))
    return rewind(np.arange(start, start + forward), back)


def rewind(indices: np.ndarray, back: int) -> np.ndarray:
    """The clip and then `back` frames of it the other way, `FRAMES` in all; what is missing is the last one again."""
    played = np.concatenate([indices, indices[-2::-1][:back]])
    return np.concatenate([played, np.repeat(played[-1:], FRAMES - len(played))])


def windows_of(count: int, size: int) -> np.ndarray:
    """(count, size) positions of each frame's window, newest first, the first frame standing in before the start."""
    return np.maximum(np.arange(count)[:, None] - np.arange(size), 0)
