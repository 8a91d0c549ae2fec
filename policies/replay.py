"""Replay that knows which episode each row belongs to: n-step returns, and rewards replaced as a whole."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from stable_baselines3.common.buffers import NStepReplayBuffer

from grm.errors import TraceError

COLUMNS = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "dones",
    "timeouts",
    "episode",
    "step",
    "paid",
    "phi",
    "togo",
)
"""The arrays of an `EpisodeReplay`, one row of each per transition."""


class EpisodeReplay(NStepReplayBuffer):
    """Stable-Baselines3's n-step buffer for one environment, whose rows remember their episode and their step in it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.episode = np.full(self.buffer_size, -1, dtype=np.int32)
        """Number of the episode each row belongs to; -1 before `finish`."""
        self.step = np.zeros(self.buffer_size, dtype=np.int32)
        """Position of each row in its episode."""
        self.paid = np.zeros(self.buffer_size, dtype=np.float32)
        """What each row was paid when it was collected; `rewards` may be shaped since."""
        self.phi = np.full(self.buffer_size, np.nan, dtype=np.float32)
        """What a process reward said of each row's observation, in [0, 1]; NaN where nobody knows."""
        self.togo = np.full(self.buffer_size, np.nan, dtype=np.float32)
        """Decisions from each row's observation to the success that ended its episode; NaN if it failed."""

    def add_transition(
        self,
        observation: Float[np.ndarray, " n"],
        next_observation: Float[np.ndarray, " n"],
        action: Float[np.ndarray, " a"],
        reward: float,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """As `add`, for one transition whose action is in [-1, 1]."""
        ended = np.array([terminated or truncated])
        infos = [{"TimeLimit.truncated": truncated and not terminated}]
        self.add(observation, next_observation, action, np.asarray(reward), ended, infos)

    def finish(
        self, length: int, episode: int, *, success: bool, phi: Float[np.ndarray, " length"] | None = None
    ) -> Int[np.ndarray, " length"]:
        """The last `length` rows added are the whole of `episode`, and this became of it; returns these rows."""
        rows = (self.pos - length + np.arange(length)) % self.buffer_size
        self.episode[rows], self.step[rows] = episode, np.arange(length)
        self.paid[rows] = self.rewards[rows, 0]
        self.phi[rows] = np.nan if phi is None else phi
        self.togo[rows] = length - np.arange(length) if success else np.nan
        return rows

    def take(self, source: "EpisodeReplay", rows: Int[np.ndarray, " k"]) -> None:
        """Append these rows of another buffer. Where they do not go on within their episode, n-step returns stop.

        They then bootstrap from the next observation, as at a truncation.
        """
        room = (self.pos + np.arange(len(rows))) % self.buffer_size
        for name in COLUMNS:
            getattr(self, name)[room] = getattr(source, name)[rows]
        goes_on = np.zeros(len(rows), dtype=np.bool_)
        goes_on[:-1] = np.diff(rows) % source.buffer_size == 1
        cut = room[~goes_on & (source.dones[rows, 0] == 0)]
        self.dones[cut] = self.timeouts[cut] = 1
        self.full = self.full or self.pos + len(rows) >= self.buffer_size
        self.pos = (self.pos + len(rows)) % self.buffer_size

    def ways_up(self, episodes: Collection[int]) -> dict[int, tuple[float, Int[np.ndarray, " k"]]]:
        """Of each of these episodes, the highest `phi` and the rows that lead there, in order, at least one.

        Episodes that nobody judged, that were never higher than where they were first judged, or whose first rows are
        gone are left out.
        """
        found = {}
        mine = np.flatnonzero(np.isin(self.episode[: self.size()], list(episodes)))
        mine = mine[np.lexsort((self.step[mine], self.episode[mine]))]
        for rows in np.split(mine, np.flatnonzero(np.diff(self.episode[mine])) + 1):
            phi = self.phi[rows]
            judged = np.flatnonzero(np.isfinite(phi))
            if len(judged) and self.step[rows[0]] == 0:
                highest = int(np.nanargmax(phi))
                if highest > judged[0]:
                    found[int(self.episode[rows[0]])] = float(phi[highest]), rows[:highest]
        return found

    def rows(self) -> dict[str, np.ndarray]:
        """A copy of all that is stored, by column."""
        return {name: getattr(self, name)[: self.size()].copy() for name in COLUMNS}

    def put_back(self, rows: Mapping[str, np.ndarray]) -> None:
        """Write what `rows` gave where it was."""
        for name, column in rows.items():
            getattr(self, name)[: len(column)] = column

    def fail(self, episodes: Collection[int]) -> None:
        """These episodes were no successes: their end pays nothing and is a truncation, and no time to go is known."""
        mine = np.isin(self.episode[: self.size()], list(episodes))
        ends = np.flatnonzero(mine & (self.dones[: self.size(), 0] > 0))
        self.paid[ends] = self.rewards[ends, 0] = 0.0
        self.timeouts[ends] = 1
        self.togo[np.flatnonzero(mine)] = np.nan

    def drop(self, episodes: Collection[int]) -> None:
        """Forget these episodes' rows; the others move up, in order."""
        size = self.size()
        order = (np.arange(size) + (self.pos if self.full else 0)) % self.buffer_size
        kept = order[~np.isin(self.episode[order], list(episodes))]
        for name in COLUMNS:
            column = getattr(self, name)
            column[: len(kept)] = column[kept]
        self.pos, self.full = len(kept) % self.buffer_size, len(kept) == self.buffer_size

    def stored_steps(self) -> dict[int, int]:
        """By episode, its steps up to the last one that is stored."""
        episode, step = self.episode[: self.size()], self.step[: self.size()]
        return {number: int(step[episode == number].max()) + 1 for number in np.unique(episode).tolist()}

    def check_relabels(self, labels: Mapping[int, Float[np.ndarray, " t"]], *, finite: bool) -> None:
        """Raise `TraceError` unless there is a label, finite if it must be, for every row that is stored."""
        for episode, length in self.stored_steps().items():
            if episode not in labels:
                raise TraceError(
                    f"nothing was given for episode {episode}, of which transitions are stored; expected labels of "
                    f"every episode (0 is the demonstration): targets of two rewards do not mix"
                )
            given = np.asarray(labels[episode])
            if given.ndim != 1 or len(given) < length or (finite and not np.isfinite(given).all()):
                raise TraceError(
                    f"the new labels of episode {episode} have shape {given.shape}, finite: "
                    f"{bool(np.isfinite(given).all())}; expected a finite number for each of its {length} steps"
                )

    def replace(self, name: str, labels: Mapping[int, Float[np.ndarray, " t"]]) -> None:
        """Set column `name` of every row to `labels[episode][step]`, checked before."""
        size, column = self.size(), getattr(self, name)
        for episode in np.unique(self.episode[:size]).tolist():
            rows = np.flatnonzero(self.episode[:size] == episode)
            column[rows] = np.asarray(labels[episode])[self.step[rows]].reshape(-1, *column.shape[1:])
