"""Four perspectives of one moment, one potential with a spread (after Robo-Dopamine, arXiv 2512.23703).

A hop model is asked three questions at step t, and a fourth beside it reads progress off the frame itself. Each answer
estimates the potential in its own way:

    incremental   Φ_I = Φ* + (1 - Φ*) H(prev, t), or Φ* + Φ* H(prev, t) for a backward hop   Eq. 4-5   fine, but drifts
    forward       Φ_F = H(init, t)                                                          Eq. 6     sure early
    backward      Φ_B = 1 + H(goal, t)                                                      Eq. 7     sure late
    absolute      Φ_A, regressed                                                            ours      sure where nobody
                                                                                                      demonstrated

with Φ* the fused potential of step t - 1. `MeanFusion` averages the hops' three (Eq. 8), `ConsistentFusion` distrusts
moments at which forward and backward disagree (Eq. 9-11), `LeastFusion`, the default, takes the least of all but the
incremental one (docs/decisions/0016). The paper's two are separate: at full confidence Eq. 11 weighs the perspectives
1/2, 1/4, 1/4 and Eq. 8 weighs them 1/3 each. The paper has no absolute estimate. It agrees better with the truth off
the demonstrations than any hop does, so both of its rules give it half of the weight (docs/decisions/0007).

The paper proves only Φ_I bounded: a model that errs puts Φ_F in [-1, 1] and Φ_B in [0, 2] (the official demonstration
shows 1.67). Both are therefore clamped to [0, 1] *before* fusing, after which every fusion is a convex combination
and stays in [0, 1]; callers who want diagnostics keep the raw hops.

A goal that looks like the start ("wipe the table and hang the cloth back") breaks whatever compares with the goal: at
success Φ_F = 0, and the mean of the first three is 2/3. `is_cyclic` finds such tasks from the hop between the two
pictures; the caller then passes NaN for all but incremental.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from .errors import TraceError
from .hops import apply_hop


class Fuser(Protocol):
    """One potential out of three perspectives."""

    def __call__(
        self,
        previous: Float[np.ndarray, "*batch"],
        incremental: Float[np.ndarray, "members *batch"],
        forward: Float[np.ndarray, "members *batch"],
        backward: Float[np.ndarray, "members *batch"],
        absolute: Float[np.ndarray, "members *batch"],
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """Fuse the hops of one step into (potential, spread), both (*batch).

        `previous` is the fused potential of the step before in [0, 1], 0 before the first step; NaN if there is none.
        `incremental`, `forward` and `backward` are H(prev, t), H(init, t) and H(goal, t) in [-1, 1]: member 0 is
        the model's own answer, further members are its ensemble's. `absolute` is Φ_A in [0, 1], likewise. NaN: that
        member abstains from that perspective.

        The potential in [0, 1] comes from member 0 and the perspectives it answered; NaN where it answered none. The
        spread is the standard deviation over all members' estimates in all perspectives; it is 0 where there is a
        single estimate, since no disagreement was seen, and NaN where the potential is. Raises `TraceError` on values
        out of range and on shapes that do not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class MeanFusion:
    """Mean of the hops' perspectives that were answered (Eq. 8), and the mean of that and the absolute one."""

    def __call__(
        self,
        previous: Float[np.ndarray, "*batch"],
        incremental: Float[np.ndarray, "members *batch"],
        forward: Float[np.ndarray, "members *batch"],
        backward: Float[np.ndarray, "members *batch"],
        absolute: Float[np.ndarray, "members *batch"],
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """See `Fuser`."""
        estimates = _estimates(previous, incremental, forward, backward, absolute)
        potential = _with_absolute(_mean(estimates[:3, 0]), estimates[3, 0])
        return potential, _spread(estimates, potential)


@dataclass(frozen=True, slots=True)
class ConsistentFusion:
    """A filter that moves as far as forward and backward agree. Eq. 9-11.

    With Φ̄ the mean of Φ_F and Φ_B, the weight is w = exp(-alpha Δ²), Δ = |Φ_B - Φ_F| / max(Φ̄, floor), and

        Φ*_t = Φ*_{t-1} + w/2 (Φ̄ - Φ*_{t-1} + Φ_I - Φ*_{t-1})      Eq. 11
             = (1 - w) Φ*_{t-1} + w (Φ̄ + Φ_I) / 2                   the same, convex at sight

    where the mean of (Φ̄ + Φ_I) / 2 and Φ_A stands for the former if Φ_A is answered, so that w = 0, the two contradict
    each other, keeps the potential of the step before.

    **The floor.** Eq. 9 divides by Φ̄ + ε with an unnamed small ε. Near the start Φ̄ is nearly 0, and any disagreement
    is then relatively huge: (Φ_F, Φ_B) = (.00, .10) gives w = e^-80, and the potential never leaves 0. Here the
    denominator is floored instead. The default of one half makes disagreement relative in the second half of a task,
    exactly as in the paper, and absolute in the first, where .1 of disagreement gives w = .45. A tiny floor gives back
    the paper's rule, freeze included.

    **One anchor missing** (no goal, say): nothing can contradict the other, so w = 1 and that anchor stands for Φ̄. The
    check is a veto that needs evidence; w = 0 for lack of it would freeze the whole episode of every task without a
    goal picture. The price is no protection there, which a caller can read off the spread of the members. Without any
    anchor Φ_I stands alone, without Φ_I (no previous potential to hold on to, say) the anchors do.
    """

    alpha: float = 20.0
    """Severity; the paper's value for LIBERO-Goal (Table 9)."""
    floor: float = 0.5
    """Smallest denominator of the relative disagreement, above 0."""

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.floor > 0):
            raise TraceError(f"alpha {self.alpha}, floor {self.floor}; expected alpha >= 0 and floor > 0")

    def confidence(self, forward: ArrayLike, backward: ArrayLike) -> Float[np.ndarray, "*batch"]:
        """Weight w in [0, 1] of the estimates Φ_F and Φ_B, both in [0, 1]; 1 where either is NaN. Eq. 9-10."""
        f, b = np.asarray(forward, dtype=np.float64), np.asarray(backward, dtype=np.float64)
        disagreement = np.abs(b - f) / np.maximum((f + b) / 2, self.floor)
        return np.where(np.isnan(disagreement), 1.0, np.exp(-self.alpha * disagreement**2))

    def __call__(
        self,
        previous: Float[np.ndarray, "*batch"],
        incremental: Float[np.ndarray, "members *batch"],
        forward: Float[np.ndarray, "members *batch"],
        backward: Float[np.ndarray, "members *batch"],
        absolute: Float[np.ndarray, "members *batch"],
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """See `Fuser`."""
        estimates = _estimates(previous, incremental, forward, backward, absolute)
        phi_i, phi_f, phi_b, phi_a = estimates[:, 0]
        target = _with_absolute(_mean(np.stack([phi_i, _mean(np.stack([phi_f, phi_b]))])), phi_a)
        weight = self.confidence(phi_f, phi_b)
        held = np.where(np.isnan(previous), target, previous)
        potential = np.asarray((1 - weight) * held + weight * target)
        return potential, _spread(estimates, potential)


@dataclass(frozen=True, slots=True)
class LeastFusion:
    """The least of forward, backward and absolute: as far as all of them agree that it got. Ours.

    What a learner maximises it finds where an estimate is too high; a state deceives this rule only if it deceives all
    three. The incremental perspective stands where none of them was answered, and nowhere else: without it the
    potential is a function of the frame, its first and the goal picture, and no error is carried on to the next step.
    """

    def __call__(
        self,
        previous: Float[np.ndarray, "*batch"],
        incremental: Float[np.ndarray, "members *batch"],
        forward: Float[np.ndarray, "members *batch"],
        backward: Float[np.ndarray, "members *batch"],
        absolute: Float[np.ndarray, "members *batch"],
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """See `Fuser`."""
        estimates = _estimates(previous, incremental, forward, backward, absolute)
        least = np.fmin.reduce(estimates[1:, 0])
        potential = np.where(np.isnan(least), estimates[0, 0], least)
        return potential, _spread(estimates, potential)


@dataclass(frozen=True, slots=True)
class OnePerspective:
    """One of the hops' perspectives alone, for comparison: no rule that anybody should use.

    The potential abstains where that perspective was not answered.
    """

    name: Literal["incremental", "forward", "backward"]

    def __call__(
        self,
        previous: Float[np.ndarray, "*batch"],
        incremental: Float[np.ndarray, "members *batch"],
        forward: Float[np.ndarray, "members *batch"],
        backward: Float[np.ndarray, "members *batch"],
        absolute: Float[np.ndarray, "members *batch"],
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """See `Fuser`; the spread is over the members of that perspective."""
        row = ("incremental", "forward", "backward").index(self.name)
        estimates = _estimates(previous, incremental, forward, backward, absolute)[row : row + 1]
        return estimates[0, 0], _spread(estimates, estimates[0, 0])


def is_cyclic(hop_init_to_goal: ArrayLike, threshold: float = 0.5) -> Bool[np.ndarray, "*batch"]:
    """Whether the goal looks like the start, elementwise, so that both anchors say nothing about progress.

    `hop_init_to_goal` is the model's own answer H(init, goal) in [-1, 1]. It is +1 by definition, and a model that
    tells the two pictures apart says so; one that takes them for the same answers about 0. Below `threshold` the
    caller passes NaN for forward and backward. An abstention (NaN) is no evidence: False.
    """
    return np.asarray(np.asarray(hop_init_to_goal, dtype=np.float64) < threshold)


def _estimates(
    previous: np.ndarray, incremental: np.ndarray, forward: np.ndarray, backward: np.ndarray, absolute: np.ndarray
) -> Float[np.ndarray, "4 members *batch"]:
    """Φ_I, Φ_F, Φ_B and Φ_A of every member, in [0, 1]; NaN where it abstains."""
    shape, found = np.shape(incremental), [np.shape(part) for part in (forward, backward, absolute)]
    if not (found == [shape] * 3 and shape[1:] == np.shape(previous) and shape[:1] >= (1,)):
        raise TraceError(
            f"estimates of shapes {shape}, {', '.join(map(str, found))} for a previous potential of shape "
            f"{np.shape(previous)}; expected four times (members, *batch), at least one member, and (*batch)"
        )
    anchored = np.array([forward, backward], dtype=np.float64)
    if (np.abs(anchored) > 1).any():
        raise TraceError(
            f"an anchored hop is {anchored[np.abs(anchored) > 1].flat[0]}; expected values in [-1, 1], NaN where the "
            f"model abstained (divide percent by 100)"
        )
    direct = np.asarray(absolute, dtype=np.float64)
    if ((direct < 0) | (direct > 1)).any():
        raise TraceError(
            f"an absolute progress is {direct[(direct < 0) | (direct > 1)].flat[0]}; expected values in [0, 1], NaN "
            f"where the model abstained"
        )
    anchored[1] += 1
    return np.concatenate([apply_hop(previous, incremental)[None], np.clip(anchored, 0, 1), direct[None]])


def _with_absolute(hops: np.ndarray, absolute: np.ndarray) -> Float[np.ndarray, "*batch"]:
    return _mean(np.stack([hops, absolute]))


def _mean(estimates: Float[np.ndarray, "n *batch"]) -> Float[np.ndarray, "*batch"]:
    """Mean over what is not NaN along the first axis; NaN where nothing is (`np.nanmean` warns about that)."""
    present = ~np.isnan(estimates)
    if present.all():
        return estimates.mean(0)  # the same in half of the time, frame after frame
    count = present.sum(0)
    total = np.where(present, estimates, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _spread(
    estimates: Float[np.ndarray, "4 members *batch"], potential: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch"]:
    """Standard deviation over all estimates that are not NaN; NaN where the potential is."""
    every = estimates.reshape(-1, *estimates.shape[2:])
    deviation = np.sqrt(_mean((every - _mean(every)) ** 2))
    return np.where(np.isnan(potential), np.nan, deviation)
