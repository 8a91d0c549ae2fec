"""Hop-balanced pairs of frames: which befores and afters a GRM is trained on.

The reference sampler (Robo-Dopamine, `1_generate_data.py`) fills 25 hop bins and 4 distance bins separately; small hops
cannot span long distances, so quotas stay unfilled and the deficit lands in the central bins (108 to 164 of 1,000
samples there against 10 to 14 beside them), and its seed changes in every process. Here all ordered pairs are
enumerated, only bins that some pair can fill exist, and a draw is uniform over those: first the hop bin, then a
distance bin inside it, then a pair inside that.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from ..errors import TraceError
from ..hops import hop_between


def hops_of_pairs(
    before: Float[np.ndarray, "*batch"], after: Float[np.ndarray, "*batch"], zero: float = 0.02
) -> Float[np.ndarray, "*batch"]:
    """Relative hop of each pair of potentials, exactly 0 where they differ by `zero` or less (Eq. 3's zero hops).

    Without it the hop between two noisy labels near 0 is ±1: it is relative to what little there is to lose.
    """
    hops = hop_between(before, after)
    return np.where(np.abs(after - before) <= zero, 0.0, hops)


@dataclass(frozen=True, eq=False)
class BalancedPairs:
    """All ordered pairs of one episode, by jointly feasible bins of hop and distance.

    Raises `TraceError` for labels that are not finite, or fewer than two of them.
    """

    potential: Float[np.ndarray, " t"]
    hop_bins: int = 25
    distance_bins: int = 4

    def __post_init__(self) -> None:
        if len(self.potential) < 2 or not np.isfinite(self.potential).all():
            raise TraceError(
                f"labels of {len(self.potential)} frames, {int(np.isnan(self.potential).sum())} unknown; "
                f"expected at least two, all known: label the episode from keyframes, time or a prover"
            )

    @cached_property
    def bins(self) -> list[list[Int[np.ndarray, "n 2"]]]:
        """For every hop bin that is not empty, its distance bins that are not empty, each an array of pairs."""
        count = len(self.potential)
        pairs = np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1).reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        hops = hops_of_pairs(self.potential[pairs[:, 0]], self.potential[pairs[:, 1]])
        distance = np.abs(pairs[:, 1] - pairs[:, 0])
        hop_bin = np.minimum(((hops + 1) / 2 * self.hop_bins).astype(int), self.hop_bins - 1)
        distance_bin = (distance - 1) * self.distance_bins // max(count - 1, 1)
        joint = hop_bin * self.distance_bins + distance_bin
        order = np.argsort(joint, kind="stable")
        keys, starts = np.unique(joint[order], return_index=True)
        groups: dict[int, list[np.ndarray]] = {}
        for key, chunk in zip(keys, np.split(pairs[order], starts[1:]), strict=True):
            groups.setdefault(int(key) // self.distance_bins, []).append(chunk)
        return list(groups.values())

    def draw(self, count: int, generator: np.random.Generator) -> Int[np.ndarray, "count 2"]:
        """`count` pairs (before, after), with replacement; the same generator state gives the same pairs."""
        drawn = []
        for _ in range(count):
            group = self.bins[generator.integers(len(self.bins))]
            chunk = group[generator.integers(len(group))]
            drawn.append(chunk[generator.integers(len(chunk))])
        return np.array(drawn, dtype=np.int64).reshape(-1, 2)
