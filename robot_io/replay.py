"""What a session recorded, as a judge and a learner take it: the same, live and from the recording."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from grm.data.lerobot import SIDECAR, read_episodes
from grm.errors import TraceError
from grm.reward import Frame


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """A finished rollout of T steps and T + 1 frames."""

    number: int
    """Of the episode in the recording."""
    views: dict[str, UInt8[np.ndarray, "T+1 h w 3"]]
    state: Float[np.ndarray, "T+1 n"]
    time: Float[np.ndarray, " T+1"]
    """Seconds since its beginning."""
    actions: Float[np.ndarray, "T a"]
    """Really sent, in the environment's range."""
    rewards: Float[np.ndarray, " T"]
    """Of the task."""
    interventions: Bool[np.ndarray, " T"]
    terminated: bool
    """Whether the task ended with the last step; else it was only truncated."""
    success: bool
    purpose: str = "rollout"
    cloned: bool | None = None
    """Whether the cloned policy alone acted; None where nobody knows any more: no recording says it."""
    scalars: tuple[str, ...] = ()
    """Names of the numbers of a state, where they are known."""

    @property
    def frames(self) -> list[Frame]:
        """What a judge sees."""
        return [
            Frame(views={name: pictures[t] for name, pictures in self.views.items()}, time=float(self.time[t]))
            for t in range(len(self.state))
        ]


def read_lines(root: Path) -> list[dict[str, Any]]:
    """What the recorder noted of each episode beside LeRobot's own columns, in order."""
    path = Path(root) / SIDECAR
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_attempt(root: Path, number: int) -> Attempt:
    """One recorded rollout: see `read_attempts`."""
    [attempt] = read_attempts(root, [number])
    return attempt


def read_attempts(root: Path, numbers: Sequence[int] | None = None) -> Iterator[Attempt]:
    """Recorded rollouts, all of them unless numbered, one at a time; what they share is read once.

    Raises `TraceError` where one cannot be read, or was not written by a `Recorder`.
    """
    import pandas as pd
    from lerobot.datasets import LeRobotDatasetMetadata

    root, lines = Path(root), read_lines(root)
    wanted = range(len(lines)) if numbers is None else numbers
    meta = None
    for number, episode in zip(wanted, read_episodes(root, wanted), strict=True):
        meta = meta or LeRobotDatasetMetadata(f"grm/{root.name}", root=root)
        table = pd.read_parquet(root / meta.get_data_file_path(number))
        table = table.loc[table["episode_index"] == number].sort_values(by="frame_index")
        if "command" not in table:
            raise TraceError(f"{root} has no column `command`; expected a recording of `grm session`")

        def column(name: str, table: pd.DataFrame = table) -> np.ndarray:
            return np.array([np.asarray(value).item() for value in table[name]])

        yield Attempt(
            number=number,
            views=dict(episode.views),
            state=episode.state,
            time=column("time"),
            actions=np.stack(table["command"].to_numpy())[:-1].astype(np.float32),
            rewards=column("next.reward")[:-1].astype(np.float32),
            interventions=column("intervention")[:-1].astype(bool),
            terminated=not bool(column("next.truncated")[-2]),
            success=bool(lines[number]["success"]),
            purpose=str(lines[number]["behaviour"]),
            scalars=tuple(meta.features["observation.state"]["names"] or ()),
        )
