"""The books both wrappers keep: what the state each environment is in was worth, in which weight, and who abstained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from jaxtyping import Bool, Float

from grm.errors import TraceError
from grm.reward import Judgement

from .potential import check_potential, shaping_reward


class ShapingLedger:
    """Weighted potentials of the states that N environments are in; each is entered once and used in two transitions.

    With ψ_t = w_t Φ(s_t), w_t the weight in force when s_t was judged, a transition is paid γ ψ_{t+1} - ψ_t. This is
    shaping with the time-dependent potential ψ, so the weight and the potential may change at any time (Devlin &
    Kudenko 2012): what was entered for s_t is never touched again.

    A transition with an abstention at either end is paid 0 and counted. That costs exactness, by an amount derived
    and bounded in `docs/derivations.md`. The end of a terminating transition is worth 0 whatever the model says of
    it, so an abstention there costs nothing and is not counted.
    """

    def __init__(self, environments: int, gamma: float, weight: float) -> None:
        if not 0 < gamma <= 1:
            raise TraceError(f"gamma is {gamma}; expected the learner's discount per decision, in (0, 1]")
        self.gamma = gamma
        self.weight = weight
        self.abstentions = 0
        """Transitions not shaped since construction, all environments together."""
        self.episode_abstentions = np.zeros(environments, dtype=np.int64)
        """Transitions not shaped in the running episode of each environment."""
        self._worth = np.full(environments, np.nan)  # ψ of the current states; NaN where the potential abstained
        self._running = np.zeros(environments, dtype=bool)

    @property
    def weight(self) -> float:
        """Factor of Φ, at least 0. A new one holds from the next state on."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        if not (np.isfinite(weight) and weight >= 0):
            raise TraceError(f"the shaping weight is {weight}; expected a finite number, at least 0")
        self._weight = float(weight)

    def begin(self, indices: Sequence[int], judgement: Judgement) -> None:
        """Enter the first states of new episodes: one judgement per index."""
        check_potential(judgement, len(indices))
        at = list(indices)
        self._worth[at] = self._weighted(judgement)
        self._running[at] = True
        self.episode_abstentions[at] = 0

    def settle(
        self, judgement: Judgement, terminated: Bool[np.ndarray, " N"]
    ) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Enter the next state of every environment; return F and whether the transition was shaped, both (N,).

        Raises `ResetNeeded` if an environment has no running episode, `TraceError` on a potential out of [0, 1].
        """
        if not self._running.all():
            raise ResetNeeded(
                f"environments {np.flatnonzero(~self._running).tolist()} were stepped with no episode running; "
                f"expected a reset after construction and after termination"
            )
        check_potential(judgement, len(self._worth))
        next_worth = self._weighted(judgement)
        shaping = shaping_reward(self._worth, next_worth, terminated, self.gamma)
        shaped = ~np.isnan(shaping)
        self._worth = next_worth
        self._running = ~terminated  # a truncated episode may go on, if somebody else's clock said so
        self.episode_abstentions += ~shaped
        self.abstentions += int((~shaped).sum())
        return np.where(shaped, shaping, 0.0), shaped

    def first_entries(self, judgement: Judgement, row: int) -> dict[str, Any]:
        """Entries of the info of a reset: Φ, spread and whether the first state was judged."""
        return {
            "phi": float(judgement.potential[row]),
            "spread": float(judgement.spread[row]),
            "judged": bool(judgement.judged[row]),
        }

    def entries(
        self, judgement: Judgement, index: int, task_reward: float, shaping: float, shaped: bool
    ) -> dict[str, Any]:
        """Entries of the info of a transition, documented at `PotentialShaping`."""
        return {
            "task_reward": task_reward,
            "shaping_reward": shaping,
            "phi": float(judgement.potential[index]),
            "spread": float(judgement.spread[index]),
            "judged": shaped,
            "abstentions": int(self.episode_abstentions[index]),
        }

    def _weighted(self, judgement: Judgement) -> Float[np.ndarray, " B"]:
        return np.where(judgement.judged, self._weight * judgement.potential, np.nan)


def check_finite(value: object, name: str) -> None:
    """Raise `TraceError` naming the part of an observation (a dict, a tuple or an array) or reward that is not finite.

    Such a number spreads from a replay buffer through every weight of a learner, hours before anyone looks.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_finite(part, f"{name}[{key!r}]")
    elif isinstance(value, tuple):
        for position, part in enumerate(value):
            check_finite(part, f"{name}[{position}]")
    else:
        array = np.asarray(value)
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise TraceError(
                f"{name} holds {array[~np.isfinite(array)].flat[0]}; expected finite numbers (mask sensors that can "
                f"fail, and reset a simulation that diverged)"
            )
