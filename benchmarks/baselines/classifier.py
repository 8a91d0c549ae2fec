"""Whether the task is done, and nothing else: the success classifier of HIL-SERL (Luo et al. 2024, arXiv 2410.21845).

A binary classifier of single frames on frozen features, done against everything else, both halves of the loss weighing
the same as its batches of equally many positives and negatives do. Theirs is trained per task; this one knows from
text and goal picture which task is meant, so that it can be pre-trained on all of them. Its P(done) is the potential.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .absolute import references
from .clips import FRAMES, Clip, Drawn, Look
from .head import FeatureJudgement, Head, Shown, mlp, nothing


class ClassifierHead(Head):
    def __init__(self, features: int, text: int, look: Look) -> None:
        super().__init__()
        self.look = look
        self.net = mlp(3 * features + text, 1)

    def logits(self, text: Tensor, goal: Tensor, frames: Tensor) -> Tensor:
        """(…); every feature (…, P), text (…, E)."""
        return self.net(torch.cat([frames, goal, goal - frames, text], -1)).squeeze(-1)

    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        picks = [half_last(drawn.clip, rng) for drawn in batch]
        frames = torch.stack([self.look(d.clip, pick) for d, pick in zip(batch, picks, strict=True)])
        text, goal = references(batch, self.look, frames.shape[1])
        done = torch.from_numpy(np.stack([d.success(pick) for d, pick in zip(batch, picks, strict=True)])).float()
        return balanced_cross_entropy(self.logits(text, goal, frames), done)

    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        count = len(frames)
        logits = self.logits(shown.text.expand(count, -1), shown.goal.expand(count, -1), frames)
        done = logits.sigmoid().double().numpy()
        return FeatureJudgement(done, nothing(count), done)


def half_last(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """`FRAMES` frames: half from the last tenth of the episode, the last one among them, half from all of it."""
    late = len(clip) - 1 - rng.integers(max(1, len(clip) // 10), size=FRAMES // 2 - 1)
    return np.concatenate([rng.integers(len(clip), size=FRAMES // 2), late, [len(clip) - 1]])


def balanced_cross_entropy(logits: Tensor, done: Tensor) -> Tensor:
    """Mean of the mean over what is done and the mean over what is not; of one of them where the other is missing."""
    each = F.binary_cross_entropy_with_logits(logits, done, reduction="none")
    parts = [each[done == which].mean() for which in (0, 1) if (done == which).any()]
    return torch.stack(parts).mean()
