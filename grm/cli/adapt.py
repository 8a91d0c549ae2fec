"""`grm adapt`: one demonstration to an adapted checkpoint, and a table of what changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..data.episodes import Episode
from ..data.replay import FILE, read_replay
from ..errors import TraceError
from ..evaluate import METRICS, by_task, score_all
from ..models.checkpoint import copy_side_file, locate
from ..models.multiview import GRM, packaged_checkpoint
from ..reward import Frame
from .output import check_output, command_line, commit
from .terminal import console, progress_bar


@dataclass(frozen=True)
class Adapt:
    """Teach a GRM a new task from one demonstration; needs no keyframes. The old weights stay untouched."""

    data: str
    """Where the demonstration is: a LeRobotDataset (folder or Hub id), a video, a folder with one video or one folder
    of pictures per camera, or a folder of `episode_*` folders of those."""
    out: Path
    """Folder of the adapted checkpoint."""
    episode: int = 0
    """Number of the demonstration; the others only serve the before/after table, where their progress is known."""
    failures: tuple[int, ...] = ()
    """Numbers of episodes that failed, above all the demonstration's motion repeated with the objects elsewhere: they
    teach the success head that the motion is not the task."""
    done_for: float = 0.0
    """Seconds at the demonstration's end in which it is done already: who goes on for a moment shows the success head
    more than one picture of it. Nothing for what the recording says, which without a word is the last frame alone."""
    model: str = ""
    """Checkpoint to start from: a folder, a Hub id, or nothing for the packaged one."""
    steps: int = 200
    """Gradient steps; a few hundred are minutes on a CPU."""
    share: float = 0.9
    """How far of the way from the old weights to the trained ones: all of it (1) for a world that is far from the
    simulated one, such as real pictures."""
    instruction: str = ""
    """What the task is, where the recording does not say, or says it otherwise."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras to adapt with; nothing for all."""
    rate_hz: float = 5.0
    """Of the frames to learn from, about; what `grm collect` wrote is taken whole."""
    keyframes: bool = True
    """Whether the demonstration's recorded sub-tasks say its progress; else, and without any, its time does."""
    seed: int = 0
    """Of every draw."""

    def run(self) -> None:
        """Adapt, print the table, write the checkpoint."""
        from ..train import Trainer, adapt

        if not 0 < self.share <= 1:
            raise TraceError(f"share is {self.share}; expected a number above 0, and 1 for all of the way")
        check_output(self.out)
        demonstration, others, failed = self._read()
        demonstration = self._done(demonstration)
        old = GRM.from_pretrained(self.model)
        source = locate(self.model, packaged_checkpoint())
        replay = list(read_replay(source))
        with progress_bar() as progress:
            bar = progress.add_task("adapting", total=self.steps)

            def after_step(trainer: Trainer) -> None:
                progress.update(bar, completed=trainer.step)

            new = adapt(
                old,
                demonstration,
                replay,
                rollouts=failed,
                steps=self.steps,
                seed=self.seed,
                share=self.share,
                after_step=after_step,
            )
        card = {
            "command": command_line(self),
            "commit": commit(),
            "seed": self.seed,
            "steps": self.steps,
            "failures": len(failed),
            "from": str(source),
        }
        new.save_pretrained(self.out, card)
        copy_side_file(source, self.out, FILE)
        goals = {demonstration.task: demonstration.frames[-1]}
        console.print(before_after(old, new, demonstration, others, goals))
        console.print(f"wrote the adapted checkpoint to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)

    def _done(self, demonstration: Episode) -> Episode:
        """The demonstration with its last `done_for` seconds marked as done, where they are given."""
        if not self.done_for:
            return demonstration
        frames, length = round(self.done_for * demonstration.rate_hz), len(demonstration)
        if not 0 <= frames < length - 1:
            raise TraceError(
                f"done-for is {self.done_for:g} s; expected at least 0, and less than the demonstration's "
                f"{(length - 1) / demonstration.rate_hz:g} s"
            )
        return replace(demonstration, success=np.arange(length) >= length - 1 - frames)

    def _read(self) -> tuple[Episode, list[Episode], list[Episode]]:
        """The demonstration, the others whose progress is known, and the failures."""
        from ..data.lerobot import has_progress, read_episodes
        from ..data.recordings import demonstration, failure, find_recordings

        used = {self.episode, *self.failures}
        if self.episode in self.failures:
            raise TraceError(f"episode {self.episode} is the demonstration; expected failures to be other episodes")
        if has_progress(Path(self.data)):
            views = self.cameras or None
            shown, *failed = read_episodes(Path(self.data), [self.episode, *self.failures], views=views)
            for number, episode in zip(self.failures, failed, strict=True):
                if episode.succeeded:
                    raise TraceError(f"episode {number} of {self.data} succeeded; expected failures only")
            others = [e for k, e in enumerate(read_episodes(Path(self.data), views=views)) if k not in used]
            named = [replace(e, instruction=self.instruction or e.instruction) for e in (shown, *failed, *others)]
            return named[0], named[1 + len(failed) :], named[1 : 1 + len(failed)]
        found, broken = find_recordings(
            [self.data], episodes=[self.episode, *self.failures], cameras=self.cameras, instruction=self.instruction
        )
        if broken:
            raise broken[0][1]
        recording, *failed = found
        shown = demonstration(recording, rate_hz=self.rate_hz, keyframes=self.keyframes)
        others = [
            replace(demonstration(other, rate_hz=self.rate_hz), task=shown.task)
            for other in find_recordings([self.data], cameras=self.cameras, instruction=self.instruction)[0]
            if other.name not in {one.name for one in found} and other.keyframes and other.succeeded is not False
        ]
        return shown, others, [replace(failure(one, rate_hz=self.rate_hz), task=shown.task) for one in failed]


def before_after(
    old: GRM, new: GRM, demonstration: Episode, others: Sequence[Episode], goals: dict[str, Frame]
) -> Table:
    """Every metric of both models on the other episodes of the task; on the demonstration itself if there are none."""
    others = [episode for episode in others if episode.task in goals]
    table = Table("metric", "before", "after", title="other episodes" if others else "the demonstration itself")
    episodes = others or [demonstration]
    columns = [by_task(score_all(model, episodes, goals, stride=2))[demonstration.task] for model in (old, new)]
    for name in METRICS:
        if name in columns[0] and name in columns[1]:
            table.add_row(name, *(f"{column[name]:.3f}" for column in columns))
    return table
