"""Distance to the goal in a time-contrastive space: value-implicit pre-training (Ma et al. 2022, arXiv 2210.00030).

V(o, g) = -||φ(o) - φ(g)|| is the goal-conditioned value of a reward of -1 per step until the goal, and φ is trained by
the dual of that reinforcement learning problem on demonstrations alone (Eq. 5 and Algorithm 1 there):

    (1 - γ) E[-V(o_0, g)]  +  log E exp(-(r + γ V(o', g) - V(o, g)))

once with (o, o') from the goal's own clip and once from other clips, as the released code has its negatives. There φ is
the whole network; here it is a trainable projection of the frozen feature. Neither text nor failures enter. As a
potential the value is put on [0, 1] by what the way was at the start: Φ = 1 - d(o, g) / d(o_0, g).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .clips import Drawn, Look
from .head import FeatureJudgement, Head, Shown, mlp, nothing

GAMMA = 0.98
DIMENSIONS = 64


class VipHead(Head):
    def __init__(self, features: int, look: Look) -> None:
        super().__init__()
        self.look = look
        self.project = mlp(features, DIMENSIONS)

    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        """Two stretches of four frames (beginning, now, next, goal) per episode."""
        clips = [drawn.clip for drawn in batch for _ in range(2)]
        picks = np.stack([stretch(len(clip), rng) for clip in clips])  # (2E, 4)
        frames = torch.stack([self.look(clip, pick) for clip, pick in zip(clips, picks, strict=True)])
        beginning, now, after, goal = self.project(frames).unbind(1)
        reward = torch.from_numpy(np.where(picks[:, 1] == picks[:, 3], 0.0, -1.0)).float()
        other = torch.from_numpy((np.arange(len(clips)) + rng.integers(2, len(clips) - 1)) % len(clips))
        return vip_loss(beginning, now, after, goal, reward) + log_mean_error(now[other], after[other], goal, reward)

    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        distance = (self.project(frames) - self.project(shown.goal)).norm(dim=-1).double().numpy()
        potential = np.clip(1 - distance / max(distance[0], 1e-6), 0, 1)
        return FeatureJudgement(potential, nothing(len(frames)), nothing(len(frames)))


def stretch(length: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (beginning, now, next, goal): beginning <= now < next = now + 1 <= goal, or all of it at the goal."""
    beginning = rng.integers(length - 1)
    goal = rng.integers(beginning + 1, length)
    now = rng.integers(beginning, goal + 1)
    return np.array([beginning, now, min(now + 1, goal), goal])


def value(one: Tensor, goal: Tensor) -> Tensor:
    return -((one - goal) ** 2).sum(-1).clamp(min=1e-12).sqrt()


def log_mean_error(now: Tensor, after: Tensor, goal: Tensor, reward: Tensor) -> Tensor:
    """log E exp(-(r + γ V(o', g) - V(o, g)))."""
    error = reward + GAMMA * value(after, goal) - value(now, goal)
    return torch.logsumexp(-error, 0) - np.log(len(error))


def vip_loss(beginning: Tensor, now: Tensor, after: Tensor, goal: Tensor, reward: Tensor) -> Tensor:
    """The dual objective of n stretches; projections (n, d), reward (n,) 0 at the goal and -1 elsewhere."""
    return (1 - GAMMA) * -value(beginning, goal).mean() + log_mean_error(now, after, goal, reward)
