"""A success classifier trained on one demonstration: what a real robot without a GRM is given as its reward.

After HIL-SERL (Luo et al. 2024, arXiv 2410.21845): a binary classifier of single frames on a frozen, pretrained
encoder, trained before learning begins. Theirs sees hundreds of frames of successes and failures that a person
collected; here there is the demonstration and nothing else, so its pictures are augmented.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from grm.data.augment import Augmentation, augment
from grm.data.episodes import Episode
from grm.errors import TraceError
from grm.models.multiview import MultiViewNetwork
from grm.reward import Frame

NOT_YET = 0.93
"""Share of the demonstration's time before which nothing is done; what comes between it and success teaches nothing."""
COPIES = 8
"""Augmented copies of every frame, besides the frame itself."""
STEPS = 300
"""Full-batch gradient steps; the batch is a few hundred features."""


class FrameClassifier(nn.Module):
    """P(the task is done) from one frame's feature under a frozen encoder. Made by `fit_classifier`.

    Args:
        encoder: its pictures' features are used and never trained.
        names: the cameras, in the order they were learned.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, encoder: MultiViewNetwork, names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.names = encoder.eval().requires_grad_(False), names
        self.head = nn.Sequential(nn.Linear(encoder.frame_features, 64), nn.SiLU(), nn.Linear(64, 1))
        self.register_buffer("mean", torch.zeros(encoder.frame_features))
        self.register_buffer("scale", torch.ones(encoder.frame_features))

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, V, 3, h, w) in [0, 1] to (B, P)."""
        tokens = self.encoder.encode(images, self.names)
        return self.encoder.pool(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(B, P) features to (B,)."""
        return self.head((features - self.mean) / self.scale).squeeze(-1)

    @torch.no_grad()
    def probability(self, frame: Frame) -> float | None:
        """P(done) in [0, 1]; None where a camera it learned from is missing."""
        if not set(self.names) <= set(frame.views):
            return None
        images = np.stack([frame.views[name] for name in self.names])[None]
        pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3).float() / 255
        return float(self.logits(self.features(pixels)).sigmoid())


def fit_classifier(encoder: MultiViewNetwork, demonstration: Episode, *, rng: np.random.Generator) -> FrameClassifier:
    """Learn which frames of the demonstration show the task done; both classes weigh the same.

    Args:
        encoder: a GRM's network; left as it is.
        demonstration: ends in success.
        rng: draws initial weights and augmentations.

    Raises:
        TraceError: the demonstration does not end in success, or has no frame from before it.
    """
    done = demonstration.success
    early = (np.arange(len(demonstration)) < NOT_YET * (len(demonstration) - 1)) & ~done
    if not demonstration.succeeded or not early.any():
        raise TraceError(
            f"the demonstration of {demonstration.task!r} has {int(done.sum())} frames that show success, of "
            f"{len(demonstration)}; expected one that begins before it is done and ends in success: record another"
        )
    names = tuple(sorted(demonstration.views))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63 - 1)))
        classifier = FrameClassifier(encoder, names)
    kept = np.flatnonzero(done | early)
    pictures = np.stack([demonstration.views[name][kept] for name in names], axis=1)[None]
    whole = Augmentation.none()
    faint = Augmentation(lost=0.0, dropped=0.0, black=0.0, static=0.0, frozen=0.0, swapped=0.0, blind=0.0)
    drawn = [augment(pictures, settings, rng).images[0] for settings in (whole, *[faint] * COPIES)]
    features = torch.cat([classifier.features(images) for images in drawn])
    labels = torch.from_numpy(np.tile(done[kept], len(drawn))).float()
    classifier.mean.copy_(features.mean(0))
    classifier.scale.copy_(features.std(0).clamp(min=1e-3))
    weights = torch.where(labels > 0, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    optimizer = torch.optim.AdamW(classifier.head.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(STEPS):
        loss = F.binary_cross_entropy_with_logits(classifier.logits(features), labels, weight=weights, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    classifier.requires_grad_(False)
    return classifier
