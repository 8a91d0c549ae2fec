"""Hops and potentials, and the exact way from one to the other.

A *hop* is a relative change in [-1, 1]: the share of the remaining that was done, or minus the share of the done that
was undone (Robo-Dopamine, arXiv 2512.23703, Eq. 2 with Φ(s_0) = 0 and Φ(s_M) = 1, inverted by Eq. 4-5):

    hop = (Φ' - Φ) / (1 - Φ)   if Φ' >= Φ      Φ' = Φ + (1 - Φ) hop   if hop >= 0
    hop = (Φ' - Φ) / Φ         otherwise       Φ' = Φ + Φ hop         otherwise

Both stay in their range by construction, also in floating point, so nothing is clipped: rounding is monotone, hence
fl(Φ' - Φ) <= fl(1 - Φ) makes a quotient of at most 1, and Φ + fl(1 - Φ) rounds to 1 and never above it.

Where nothing remains (Φ = 1) or nothing is done (Φ = 0) the quotient is 0/0 and the hop is 0: standing still. There a
forward (backward) hop moves nothing either, so potentials always survive the way to hops and back, while a hop
survives the way to potentials and back except at the end it points to.

NaN is an abstention and propagates; every other value out of range raises `TraceError`.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from .errors import TraceError


def hop_between(phi: ArrayLike, next_phi: ArrayLike) -> Float[np.ndarray, "*batch"]:
    """Hop in [-1, 1] that leads from one potential to the next; shapes broadcast. Eq. 2.

    Raises `TraceError` if a potential is outside [0, 1]. NaN in, NaN out.
    """
    return _hop_between(_potential(phi), _potential(next_phi))


def apply_hop(phi: ArrayLike, hop: ArrayLike) -> Float[np.ndarray, "*batch"]:
    """Potential in [0, 1] after a hop; shapes broadcast. Eq. 4-5; inverse of `hop_between` for the same `phi`.

    Raises `TraceError` if the potential is outside [0, 1] or the hop outside [-1, 1]. NaN in, NaN out.
    """
    return _apply_hop(_potential(phi), _hop(hop))


def hops_between(potentials: ArrayLike) -> Float[np.ndarray, "hops *batch"]:
    """Hops between neighbours of T >= 1 potentials, time first: shape (T, *batch) to (T - 1, *batch).

    Raises `TraceError` if a potential is outside [0, 1] or there is none. NaN makes the hops on both sides of it NaN.
    """
    values = _potential(potentials)
    if values.ndim == 0 or len(values) == 0:
        raise TraceError(f"potentials have shape {values.shape}; expected (T, *batch) with at least one step")
    return _hop_between(values[:-1], values[1:])


def fold_hops(start: ArrayLike, hops: ArrayLike) -> Float[np.ndarray, "potentials *batch"]:
    """Potentials reached from `start` (*batch) by T hops (T, *batch), the start included; inverse of `hops_between`.

    After an abstention (NaN) the potential is unknown, hence NaN, from there on: a hop says how far from where, and
    guessing the missing one would turn a failure into a number. Raises `TraceError` on values out of range or shapes
    that do not fit.
    """
    first, changes = _potential(start), _hop(hops)
    if changes.ndim == 0 or changes.shape[1:] != first.shape:
        raise TraceError(
            f"hops have shape {changes.shape} for a start of shape {first.shape}; expected (T, *batch), time first, "
            f"with the start's shape as the batch"
        )
    potentials = np.empty((len(changes) + 1, *first.shape))
    potentials[0] = first
    for t in range(len(changes)):
        potentials[t + 1] = _apply_hop(potentials[t, ...], changes[t, ...])
    return potentials


def _hop_between(phi: np.ndarray, next_phi: np.ndarray) -> np.ndarray:
    change = np.asarray(next_phi - phi)
    room = np.where(change < 0, phi, 1.0 - phi)
    # With no room there is no change either: 0/1 instead of 0/0. NaN in `change` survives the division.
    return np.asarray(change / np.where(room == 0, 1.0, room))


def _apply_hop(phi: np.ndarray, hop: np.ndarray) -> np.ndarray:
    return np.asarray(phi + np.where(hop < 0, phi, 1.0 - phi) * hop)


def _potential(values: ArrayLike) -> np.ndarray:
    phi = np.asarray(values, dtype=np.float64)
    if ((phi < 0) | (phi > 1)).any():
        worst = phi[(phi < 0) | (phi > 1)].flat[0]
        raise TraceError(f"a potential is {worst}; expected values in [0, 1], NaN where the model abstained")
    return phi


def _hop(values: ArrayLike) -> np.ndarray:
    hop = np.asarray(values, dtype=np.float64)
    if (np.abs(hop) > 1).any():
        worst = hop[np.abs(hop) > 1].flat[0]
        raise TraceError(
            f"a hop is {worst}; expected values in [-1, 1], NaN where the model abstained (divide percent by 100)"
        )
    return hop
