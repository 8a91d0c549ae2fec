"""What a learner is fed: one demonstration, and episodes collected elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float

from grm.errors import TraceError

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated")
"""The arrays of `Transitions`, one row of each per step."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transitions:
    """Consecutive transitions of one episode; the arrays are copied and read-only.

    The rewards are the learner's own: shaped if the environment's are. Actions are in the environment's units.

    Raises:
        TraceError: too few steps, unequal lengths, numbers that are not finite, an end before the last step, or steps
            that do not follow from one another.
    """

    observations: Float[np.ndarray, "t n"]
    actions: Float[np.ndarray, "t a"]
    rewards: Float[np.ndarray, " t"]
    next_observations: Float[np.ndarray, "t n"]
    terminated: Bool[np.ndarray, " t"]

    _what: ClassVar[str] = "episode"
    _least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name, ndim, dtype in zip(COLUMNS, (2, 2, 1, 2, 1), (np.float32,) * 4 + (np.bool_,), strict=True):
            array = np.array(getattr(self, name), dtype=dtype)
            if array.ndim != ndim:
                raise TraceError(
                    f"the {self._what}'s {name} have shape {array.shape}; expected {ndim} axes, the first of them time"
                )
            if not np.isfinite(array).all():
                step = int(np.argwhere(~np.isfinite(array))[0][0])
                raise TraceError(
                    f"the {self._what}'s {name} are not finite at step {step}; cut it before or record another"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise TraceError(f"the {self._what}'s arrays have the lengths {lengths}; expected one row of each per step")
        if len(self) < self._least:
            raise TraceError(
                f"the {self._what} has {len(self)} steps; expected at least {self._least}, record one that does the "
                f"task"
            )
        if self.observations.shape != self.next_observations.shape:
            raise TraceError(
                f"the {self._what}'s observations have {self.observations.shape[1]} numbers and the next observations "
                f"{self.next_observations.shape[1]}; expected as many"
            )
        if self.terminated[:-1].any():
            raise TraceError(
                f"the {self._what} terminates at step {int(self.terminated[:-1].argmax())} of {len(self)}; expected "
                f"one episode, which may terminate at its last step only: cut it there"
            )
        follows = np.isclose(self.observations[1:], self.next_observations[:-1], atol=1e-5).all(axis=1)
        if not follows.all():
            step = int((~follows).argmax()) + 1
            raise TraceError(
                f"the {self._what}'s observation {step} is not the next observation of step {step - 1}; expected "
                f"consecutive steps of one episode, without gaps"
            )

    def __len__(self) -> int:
        return len(self.rewards)

    def check_fit(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Raise `TraceError` unless observations and actions are of these spaces, the actions' bounds finite."""
        for what, array, space in (
            ("observations", self.observations, observation_space),
            ("actions", self.actions, action_space),
        ):
            if not isinstance(space, spaces.Box) or array.shape[1:] != space.shape:
                raise TraceError(
                    f"the {self._what}'s {what} have shape {array.shape[1:]} and the environment's are {space}; "
                    f"expected one environment for both"
                )
        assert isinstance(action_space, spaces.Box)
        low, high = action_space.low, action_space.high
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise TraceError(f"the environment's actions are in {action_space}; expected finite bounds")
        if (self.actions < low - 1e-4).any() or (self.actions > high + 1e-4).any():
            raise TraceError(
                f"the {self._what}'s actions reach from {self.actions.min():.3g} to {self.actions.max():.3g}, outside "
                f"of {action_space}; clip them, as the environment does"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration(Transitions):
    """One episode that shows how; at least two steps."""

    _what: ClassVar[str] = "demonstration"
    _least: ClassVar[int] = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collected(Transitions):
    """A finished episode that was collected elsewhere; the actions are those that were executed, whoever chose them.

    One that did not terminate counts as truncated at its last step. `TraceError` also if `intervened` or `phi` is of
    another length, or Φ outside [0, 1].
    """

    success: bool
    """Whether the task was done."""
    task_reward: float
    """Undiscounted sum of what the task paid, for the report: nothing learns from it."""
    intervened: Bool[np.ndarray, " t"] | None = None
    """Steps whose action a person chose; None if there were none."""
    cloned: bool | None = None
    """Whether the cloned policy alone acted, as `acting_policy` may ask; None, which counts for neither, if unknown."""
    phi: Float[np.ndarray, " t"] | None = None
    """What the process reward said of each of `observations`, in [0, 1], NaN where it abstained; None if none did."""

    _what: ClassVar[str] = "collected episode"

    def __post_init__(self) -> None:
        Transitions.__post_init__(self)  # a slotted dataclass is made twice, and `super()` knows the first of them
        for name, dtype in (("intervened", np.bool_), ("phi", np.float64)):
            if getattr(self, name) is None:
                continue
            array = np.array(getattr(self, name), dtype=dtype)
            if array.shape != (len(self),):
                raise TraceError(f"`{name}` has shape {array.shape} for {len(self)} steps; expected one per step")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.phi is not None and ((self.phi < 0) | (self.phi > 1)).any():
            raise TraceError(
                f"`phi` reaches from {np.nanmin(self.phi):.3g} to {np.nanmax(self.phi):.3g}; expected [0, 1]"
            )
