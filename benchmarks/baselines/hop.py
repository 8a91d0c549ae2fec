"""Ours: hop heads over pairs and anchors, heads of absolute progress beside them, four perspectives fused.

The heads and the fusion are those of `grm.models.multiview` and `grm.fusion`, the losses those of `grm.train` without
what needs pictures (augmentation, the usable head, naming the state) and with fewer pairs of a step's frames. With
`demonstration`, every frame's feature is followed by what it attends to in the demonstration (K frames of it, their
place in time known), in the manner of the reference panels of Robo-Dopamine 2.0 (arXiv 2608.15680).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grm.data.pairs import hops_of_pairs
from grm.fusion import MeanFusion, is_cyclic
from grm.hops import fold_hops
from grm.models.multiview import Architecture, MultiViewNetwork
from grm.train import _balance, two_hot

from .clips import FRAMES, Drawn, Look, balanced_pick
from .head import FeatureJudgement, Head, Shown

BEFORES = 2
"""Of a step's frames that are befores of all others, besides the initial frame and the goal."""
PERSPECTIVES = ("fused", "hops", "incremental", "forward", "backward", "absolute")
"""`hops` fuses the three of the paper, without the absolute one."""


class HopHead(Head):
    """Args: architecture of the checkpoint; features (P) of a frame under `look`; `ranking`, the weight of its loss."""

    def __init__(
        self,
        architecture: Architecture,
        features: int,
        look: Look,
        *,
        members: int | None = None,
        ranking: float = 0.2,
        demonstration: bool = False,
        perspective: str = "fused",
    ) -> None:
        super().__init__()
        self.look, self.ranking, self.perspective = look, ranking, perspective
        self.attend = Attention(features, architecture.features) if demonstration else None
        width = features + (architecture.features if demonstration else 0)
        members = members or architecture.members
        network = MultiViewNetwork(replace(architecture, features=width, pools=1, members=members, backbone="compact"))
        self.hop, self.members, self.centres = network.hop, network.members, network.centres
        self.standing, self.absolute, self.done = network.standing, network.absolute, network.done

    def seen(self, frames: Tensor, demonstration: Tensor) -> Tensor:
        """Features (…, n, P') with what they attend to in the demonstration (…, K, P), where this arm does."""
        if self.attend is None:
            return frames
        return torch.cat([frames, self.attend(frames, demonstration)], -1)

    hop_logits = MultiViewNetwork.hop_logits  # of the same layers, which is all that they read
    stand = MultiViewNetwork.stand
    absolute_logits = MultiViewNetwork.absolute_logits

    def loss(self, batch: Sequence[Drawn], rng: np.random.Generator) -> Tensor:
        picks = [balanced_pick(drawn.clip, rng) for drawn in batch]
        demonstration = torch.stack([spaced(self.look, drawn) for drawn in batch]) if self.attend else torch.zeros(0)
        frames = torch.stack([self.look(d.clip, pick) for d, pick in zip(batch, picks, strict=True)])
        init = torch.stack([self.look(d.initial, np.array([0])) for d in batch])
        goal = torch.stack([self.look(d.goal, np.array([len(d.goal) - 1])) for d in batch])
        frames, init, goal = (self.seen(x, demonstration) for x in (frames, init, goal))  # (E, n, P')
        text = torch.stack([d.text for d in batch])[:, None]
        potential = np.stack([d.potential(pick) for d, pick in zip(batch, picks, strict=True)])

        chosen = rng.choice(FRAMES, BEFORES, replace=False)
        befores = torch.cat([frames[:, chosen], init, goal], 1)
        ends = np.tile([0.0, 1.0], (len(batch), 1))
        hops = hops_of_pairs(
            *np.broadcast_arrays(np.hstack([potential[:, chosen], ends])[:, :, None], potential[:, None])
        )
        asked = np.ones(hops.shape, bool)
        asked[:, np.arange(BEFORES), chosen] = False
        logits = self.hop_logits(
            text[:, None], init[:, None], goal[:, None], befores[:, :, None], frames[:, None]
        )  # (E, befores + 2, K, M, bins)
        targets = torch.from_numpy(two_hot(hops, logits.shape[-1]))[..., None, :]
        learns = torch.from_numpy(np.stack([d.learners(len(self.members)) for d in batch]))[:, None]
        weights = torch.from_numpy(_balance(hops, asked))[..., None] * learns[:, None]
        loss = -((targets * logits.log_softmax(-1)).sum(-1) * weights).sum() / weights.sum().clamp(min=1e-6)

        done = torch.from_numpy(np.stack([d.success(pick) for d, pick in zip(batch, picks, strict=True)])).float()
        along, logit = self.absolute_logits(text, init, goal, frames)
        targets = torch.from_numpy(two_hot(2 * potential - 1, along.shape[-1]))[..., None, :]
        errors = -(targets * along.log_softmax(-1)).sum(-1)  # (E, K, M)
        loss = loss + (errors * learns).sum() / learns.expand(errors.shape).sum().clamp(min=1)
        loss = loss + 0.5 * F.binary_cross_entropy_with_logits(logit, done)
        if self.ranking:
            forward = (logits[:, BEFORES].softmax(-1) * self.centres).sum(-1).mean(-1)  # (E, K)
            loss = loss + self.ranking * ranking_loss(forward, potential, batch)
        return loss

    def judge_raw(self, shown: Shown, frames: Tensor) -> FeatureJudgement:
        """The four perspectives as `GRM` asks and fuses them, or one of them alone."""
        frames, goal = (self.seen(x, shown.demonstration) for x in (frames, shown.goal[None]))
        init, previous = frames[:1], torch.cat([frames[:1], frames[:-1]])
        befores = torch.stack([previous, init.expand_as(frames), goal.expand_as(frames)])
        logits = self.hop_logits(shown.text, init, goal, befores, frames)
        along, done = self.absolute_logits(shown.text, init, goal, frames)
        hops = np.concatenate([self._hops(logits), (self._hops(along)[None] + 1) / 2])  # (4, 1 + M, T)
        between = self._hops(self.hop_logits(shown.text, init, goal, init[None], goal[None]))[0, 0, 0]
        success = done.sigmoid().double().numpy()
        potential, spread = perspective(hops, self.perspective, cyclic=bool(is_cyclic(between)))
        return FeatureJudgement(potential, spread, success)

    def _hops(self, logits: Tensor) -> np.ndarray:
        """Expected hops (…, T, M, bins) to (…, 1 + M, T), the mean of the members first."""
        hops = (logits.softmax(-1) * self.centres).sum(-1).clamp(-1, 1)
        return torch.cat([hops.mean(-1, keepdim=True), hops], -1).movedim(-1, -2).double().numpy()


class Attention(nn.Module):
    """What a frame finds in the demonstration: one head of dot-product attention (Vaswani et al. 2017)."""

    def __init__(self, features: int, width: int, frames: int = FRAMES) -> None:
        super().__init__()
        self.query, self.key, self.content = (nn.Linear(features, width) for _ in range(3))
        self.place = nn.Parameter(torch.randn(frames, width) / width**0.5)

    def forward(self, frames: Tensor, demonstration: Tensor) -> Tensor:
        """Frames (…, n, P) and the demonstration (…, K, P) to (…, n, width)."""
        keys, content = self.key(demonstration) + self.place, self.content(demonstration) + self.place
        weights = (self.query(frames) @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5).softmax(-1)
        return weights @ content


def perspective(hops: np.ndarray, name: str, *, cyclic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Potential and spread (T,) of hops from the frame before, the initial one and the goal, and absolute progress.

    All of them side by side are `hops` (4, 1 + M, T).
    The first frame's potential is 0, as it is in `GRM`.
    """
    count = hops.shape[-1]
    if name == "incremental":
        chains = np.stack([fold_hops(0.0, member[1:]) for member in hops[0]])
        return chains[0], chains[1:].std(0)
    if name in ("forward", "backward", "absolute"):
        estimates = np.clip({"forward": hops[1], "backward": 1 + hops[2], "absolute": hops[3]}[name], 0, 1)
        potential = estimates[0].copy()
        potential[0] = 0.0
        return potential, estimates[1:].std(0)
    potential, spread, fuse = np.zeros(count), np.zeros(count), MeanFusion()
    others = np.full_like(hops[1:], np.nan) if cyclic else hops[1:].copy()
    first = [np.clip(1 + hops[2, :, 0], 0, 1), hops[3, :, 0]]
    if name == "hops":
        others[2], first = np.nan, first[:1]
    spread[0] = np.std(np.concatenate([np.zeros(2), *first]))
    for t in range(1, count):
        now, deviation = fuse(np.asarray(potential[t - 1]), hops[0, :, t], *others[:, :, t])
        potential[t], spread[t] = float(now), float(deviation)
    return potential, spread


def ranking_loss(forward: Tensor, potential: np.ndarray, batch: Sequence[Drawn], margin: float = 0.05) -> Tensor:
    """Logistic loss of ordering frames (E, K) of one task, across episodes, as in `grm.train`."""
    tasks = np.array([d.clip.task if d.matched else "" for d in batch])
    same = (tasks[:, None] == tasks[None]) & (tasks != "")[:, None]
    ahead = same[:, None, :, None] & (potential[:, :, None, None] > potential[None, None] + margin)  # (E, K, E, K)
    gap = (forward[:, :, None, None] - forward[None, None])[torch.from_numpy(ahead)]
    return F.softplus(-gap / 0.1).sum() / max(1, len(gap))


def spaced(look: Look, drawn: Drawn) -> Tensor:
    """K frames (K, P) of the goal's own clip, evenly spaced: the demonstration."""
    return look(drawn.goal, np.linspace(0, len(drawn.goal) - 1, FRAMES).round().astype(int))
