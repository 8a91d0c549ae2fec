"""Finished robot traces, validated at the door and read-only from then on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from ..errors import TraceError
from ..reward import Frame, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class SubTask:
    """One sub-task of an episode, between two keyframes."""

    name: str
    start: int
    """First frame."""
    end: int
    """Last frame, inclusive; also the next sub-task's first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """T frames of one attempt at one task. Arrays are read-only.

    Row t is what was seen at frame t, the action taken there, and what it led to. The last row shows how it ended:
    its action was never taken.

    Raises `TraceError` on construction when lengths differ, a number is not finite, a view is not unsigned-byte RGB, or
    there are under two frames.
    """

    task: str
    """Name, such as `door-unlock-v3`."""
    instruction: str
    views: Mapping[str, UInt8[np.ndarray, "t h w 3"]]
    rate_hz: float
    state: Float32[np.ndarray, "t n"]
    actions: Float32[np.ndarray, "t a"]
    rewards: Float32[np.ndarray, " t"]
    """Task reward of the transition t -> t + 1."""
    success: Bool[np.ndarray, " t"]
    """Whether frame t shows the task done."""
    progress: Float32[np.ndarray, " t"]
    """True progress in [0, 1] at frame t; NaN where nobody knows."""
    behaviour: str = "expert"
    """Who acted: `expert`, or the name of a controlled failure, detour, stall or recovery."""
    sub_tasks: tuple[SubTask, ...] = ()
    seed: int | None = None
    """Seed of the instance, for environments that have one."""

    def __post_init__(self) -> None:
        length = len(self.state)
        if length < 2:
            raise TraceError(
                f"episode of {self.task!r} has {length} frame{'s' * (length != 1)}; expected at least 2, "
                f"a start and an end: record the whole trajectory"
            )
        arrays = {f"view {name!r}": images for name, images in self.views.items()}
        arrays |= {key: getattr(self, key) for key in ("actions", "rewards", "success", "progress")}
        for name, array in arrays.items():
            if len(array) != length:
                raise TraceError(
                    f"episode of {self.task!r}: {name} has {len(array)} rows, the state has {length}; "
                    f"expected one row per frame"
                )
        for name, images in self.views.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
                raise TraceError(
                    f"episode of {self.task!r}: view {name!r} has shape {images.shape} and dtype {images.dtype}; "
                    f"expected (frames, height, width, 3) RGB in uint8"
                )
        if not 0 < self.rate_hz < np.inf:
            raise TraceError(f"episode of {self.task!r}: rate_hz is {self.rate_hz}; expected frames per second above 0")
        for name in ("state", "actions", "rewards"):
            rows = np.flatnonzero(~np.isfinite(getattr(self, name).reshape(length, -1)).all(axis=1))
            if len(rows):
                raise TraceError(
                    f"episode of {self.task!r}: {name} is not finite at frame {rows[0]} ({len(rows)} such frames); "
                    f"expected finite numbers: drop or repair the episode"
                )
        known = self.progress[~np.isnan(self.progress)]
        if len(known) and (known.min() < 0 or known.max() > 1):
            raise TraceError(
                f"episode of {self.task!r}: progress spans [{known.min():.3g}, {known.max():.3g}]; expected [0, 1]"
            )
        for array in (*self.views.values(), self.state, self.actions, self.rewards, self.success, self.progress):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def succeeded(self) -> bool:
        """Whether the last frame shows the task done."""
        return bool(self.success[-1])

    @cached_property
    def frames(self) -> list[Frame]:
        """The frames, as a process reward takes them."""
        return [
            Frame(views={name: images[t] for name, images in self.views.items()}, time=t / self.rate_hz)
            for t in range(len(self))
        ]

    def as_goal(self) -> Task:
        """The task with this episode's last frame as goal picture: for judging *other* episodes."""
        return Task(instruction=self.instruction, goal=self.frames[-1])


def require_views(episode: Episode, views: Sequence[str]) -> None:
    """Raise `TraceError` unless the episode has every named view."""
    missing = [view for view in views if view not in episode.views]
    if missing:
        raise TraceError(
            f"episode of {episode.task!r} has no view {missing[0]!r}; it has {', '.join(episode.views) or 'none'}: "
            f"collect it with that view, or name one of these"
        )
