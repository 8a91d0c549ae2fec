"""The one interface of all arms: a loss over a batch of episodes, and a judgement of features."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from grm.models.multiview import Architecture, MultiViewNetwork
from grm.train import calibrate

from .clips import Drawn, Look

WIDTH = 256
"""Of the first hidden layer of every head, as the hop head of `MultiViewNetwork` has it; the second has half."""
BINS = 41


@dataclass(frozen=True, eq=False)
class Shown:
    """The task as features: what every arm may know of it, though some use less."""

    text: Tensor  # (E,)
    goal: Tensor  # (P,) last frame of the demonstration
    demonstration: Tensor  # (K, P) frames of it, evenly spaced


@dataclass(frozen=True, eq=False)
class FeatureJudgement:
    """Potential in [0, 1], its spread, and P(done) after each of T frames; NaN throughout for what an arm lacks."""

    potential: np.ndarray  # (T,)
    spread: np.ndarray  # (T,)
    success: np.ndarray  # (T,)


class Head(nn.Module, abc.ABC):
    """A trainable head on frozen features (P of a frame, E of a text)."""

    look: Look

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calibration", torch.tensor([0.0, 1.0]))

    @abc.abstractmethod
    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        """Of `FRAMES` frames of every episode of the batch."""

    @abc.abstractmethod
    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        """Judge the frames (T, P) of one episode, from its first; the spread as it comes."""

    @torch.inference_mode()
    def judge_features(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        """Judge the frames (T, P) of one episode, with the spread calibrated."""
        raw = self.judge_raw(shown, frames)
        floor, scale = self.calibration.tolist()
        return replace(raw, spread=floor + scale * raw.spread)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.LayerNorm(WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH // 2),
        nn.SiLU(),
        nn.Linear(WIDTH // 2, outputs),
    )


def fit_calibration(head: Head, judgements: Sequence[FeatureJudgement], truths: Sequence[np.ndarray]) -> None:
    """`grm.train.calibrate` for any head that has a spread at all."""
    potential, spread = (np.concatenate([getattr(j, name) for j in judgements]) for name in ("potential", "spread"))
    if np.isnan(spread).all():
        return
    holder = MultiViewNetwork(Architecture(features=8, members=1, pools=1, text_features=8, text_buckets=8))
    calibrate(holder, potential, np.concatenate(truths), spread)
    head.calibration.copy_(holder.calibration)


def nothing(count: int) -> np.ndarray:
    return np.full(count, np.nan)
