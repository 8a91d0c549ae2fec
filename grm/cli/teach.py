"""`grm teach`: verdicts on recorded rollouts to a checkpoint whose success head agrees with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from rich.markup import escape
from rich.table import Table

from ..data.episodes import Episode
from ..data.replay import FILE
from ..errors import TraceError
from ..models.checkpoint import copy_side_file, locate
from ..models.multiview import GRM, packaged_checkpoint
from .output import check_output, command_line, commit
from .terminal import console, progress_bar

SURE = 0.5
"""P(done) from which on a rollout's last frame counts as taken for done."""


@dataclass(frozen=True)
class Teach:
    """Tell the success head how recorded rollouts ended; its last layer is fitted to that, in seconds."""

    data: str
    """Rollouts with a recorded outcome: a session's `episodes`, or any LeRobotDataset with `next.success`."""
    demo: str
    """Where the demonstration is, whose last frame is the goal: as for `grm adapt`. It counts as done."""
    out: Path
    """Folder of the checkpoint with the new head."""
    model: str = ""
    """Checkpoint to start from, best one that `grm adapt` wrote for this task."""
    episode: int = 0
    """Number of the demonstration in `demo`."""
    instruction: str = ""
    """What the task is, where the recording does not say, or says it otherwise."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras to look through; nothing for all."""
    rate_hz: float = 5.0
    """Of the frames to learn from, about; what `grm collect` wrote is taken whole."""

    def run(self) -> None:
        """Fit, print what it agrees with, write the checkpoint."""
        from ..success import FOLDS, teach_success

        check_output(self.out)
        source = locate(self.model, packaged_checkpoint())
        model = GRM.from_pretrained(self.model)
        demonstration, rollouts = self._read()
        task = replace(demonstration.as_goal(), instruction=self.instruction or demonstration.instruction)
        standing, done = list[np.ndarray](), list[np.ndarray]()
        with progress_bar() as progress:
            for episode in progress.track([demonstration, *rollouts], description="looking"):
                standing.append(model.standing(task, episode.frames))
                done.append(episode.success)
            taught = teach_success(model, standing, done)
            others = list[GRM]()
            for fold in progress.track(range(min(FOLDS, len(rollouts))), description="leaving out"):
                known = [k for k in range(len(standing)) if k == 0 or (k - 1) % FOLDS != fold]
                others.append(teach_success(model, [standing[k] for k in known], [done[k] for k in known]))
        left_out = [others[number % FOLDS] for number in range(len(rollouts))]
        heads = [[model] * len(rollouts), [taught] * len(rollouts), left_out]
        said = np.array([[_believes(one, x) for one, x in zip(h, standing[1:], strict=True)] for h in heads])
        outcomes = np.array([rollout.succeeded for rollout in rollouts])
        card = {"command": command_line(self), "commit": commit(), "from": str(source), "verdicts": outcomes.tolist()}
        taught.save_pretrained(self.out, card)
        copy_side_file(source, self.out, FILE)
        console.print(_agreement(said == outcomes, outcomes))
        console.print(f"wrote the checkpoint to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)

    def _read(self) -> tuple[Episode, list[Episode]]:
        """The demonstration, and the rollouts beside it."""
        [shown] = self._episodes(self.demo, [self.episode])
        if not shown.succeeded:
            raise TraceError(f"episode {self.episode} of {self.demo} does not end in success; expected a demonstration")
        same = Path(self.demo).resolve() == Path(self.data).resolve()
        rollouts = self._episodes(self.data, [])
        if same:
            del rollouts[self.episode]
        if not rollouts:
            raise TraceError(f"{self.data} holds no rollout beside the demonstration; expected some with an outcome")
        foreign = [rollout.task for rollout in rollouts if rollout.task != shown.task]
        if foreign:
            raise TraceError(f"a rollout of {foreign[0]!r} in {self.data}; expected the demonstration's {shown.task!r}")
        absent = [name for rollout in rollouts for name in shown.views if name not in rollout.views]
        if absent:
            raise TraceError(
                f"a rollout of {self.data} has no camera {absent[0]!r}; expected those of the demonstration"
            )
        return shown, rollouts

    def _episodes(self, source: str, numbers: Sequence[int]) -> list[Episode]:
        from ..data.lerobot import has_progress, read_episodes
        from ..data.recordings import demonstration, failure, find_recordings

        if has_progress(Path(source)):
            return list(read_episodes(Path(source), numbers or None, views=self.cameras or None))
        found, broken = find_recordings([source], episodes=numbers, cameras=self.cameras, instruction=self.instruction)
        if broken:
            raise broken[0][1]
        unsaid = [one.name for one in found if one.succeeded is None and not numbers]
        if unsaid:
            raise TraceError(
                f"nobody said how {unsaid[0]} of {source} ended; expected a LeRobotDataset with `next.success`, such "
                f"as a session's `episodes`"
            )
        return [
            failure(one, rate_hz=self.rate_hz)
            if one.succeeded is False and not numbers
            else demonstration(one, rate_hz=self.rate_hz, keyframes=False)
            for one in found
        ]


def _believes(model: GRM, standing: Float[np.ndarray, "t h"]) -> bool:
    """Whether the head takes the last frame that shows something for done."""
    seen = standing[np.isfinite(standing).all(1)]
    return bool(len(seen)) and float(model.success(seen[-1:])[0]) >= SURE


def _agreement(right: Bool[np.ndarray, "3 n"], outcomes: Bool[np.ndarray, " n"]) -> Table:
    """Of the successes, and of the failures, how many the head before, after, and one that was not told agree with."""
    table = Table("rollouts that", "", "before", "after", "not told of it", title="the head agrees with")
    for name, mine in (("succeeded", outcomes), ("failed", ~outcomes)):
        counts = [f"{int(row[mine].sum())}" for row in right]
        table.add_row(name, str(int(mine.sum())), *counts)
    return table
