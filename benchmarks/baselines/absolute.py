"""Absolute progress of a single frame: no pairs, no anchors, nothing remembered.

The plain regression that most progress models are, from SARM (Chen et al. 2025, arXiv 2509.25358) to Robometer: the
frame, the goal picture and the text in, a distribution over 41 bins of [0, 1] out, its mean the potential and its
standard deviation the spread. Trained on all episodes, mismatched goals and texts included, so that against the hop
head only the pairs are missing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grm.train import two_hot

from .clips import Drawn, Look, balanced_pick
from .head import BINS, FeatureJudgement, Head, Shown, mlp, nothing


class AbsoluteHead(Head):
    def __init__(self, features: int, text: int, look: Look) -> None:
        super().__init__()
        self.look = look
        self.net = mlp(3 * features + text, BINS)
        self.register_buffer("centres", torch.linspace(0, 1, BINS))

    def logits(self, text: Tensor, goal: Tensor, frames: Tensor) -> Tensor:
        """(…, bins); every feature (…, P), text (…, E)."""
        return self.net(torch.cat([frames, goal, goal - frames, text], -1))

    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        picks = [balanced_pick(drawn.clip, rng) for drawn in batch]
        frames = torch.stack([self.look(d.clip, pick) for d, pick in zip(batch, picks, strict=True)])  # (E, K, P)
        text, goal = references(batch, self.look, frames.shape[1])
        potential = np.stack([d.potential(pick) for d, pick in zip(batch, picks, strict=True)])
        # `two_hot` has its bins over [-1, 1].
        target = torch.from_numpy(two_hot(2 * potential - 1, BINS))
        return -(target * self.logits(text, goal, frames).log_softmax(-1)).sum(-1).mean()

    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        count = len(frames)
        logits = self.logits(shown.text.expand(count, -1), shown.goal.expand(count, -1), frames)
        share = logits.softmax(-1).double()
        mean = share @ self.centres.double()
        deviation = (share @ self.centres.double() ** 2 - mean**2).clamp(min=0).sqrt()
        return FeatureJudgement(mean.clamp(0, 1).numpy(), deviation.numpy(), nothing(count))


def references(batch: Sequence[Drawn], look: Look, count: int) -> tuple[Tensor, Tensor]:
    """Text (E, count, …) and goal (E, count, P) beside every one of `count` frames."""
    text = torch.stack([drawn.text for drawn in batch])
    goal = torch.cat([look(drawn.goal, np.array([len(drawn.goal) - 1])) for drawn in batch])
    return text[:, None].expand(-1, count, -1), goal[:, None].expand(-1, count, -1)
