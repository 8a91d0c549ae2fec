"""`grm demo`: one demonstration in, a trained policy and a page out."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from ..data.episodes import Episode
from ..models.multiview import GRM
from .adapt import before_after
from .output import check_output, command_line, commit
from .rl import add_seconds, minutes, outcome, train
from .terminal import console, progress_bar

if TYPE_CHECKING:
    from policies.grid import Cell
    from policies.one_shot import OneShotSettings


@dataclass(frozen=True)
class Demo:
    """One demonstration in, a trained policy out: adapt, train with and without shaping, show what happened."""

    task: str = "hand-insert"
    """A Meta-World task; ML45's held-out ones are bin-picking, box-close, door-lock, door-unlock and hand-insert."""
    out: Path | None = None
    """Run folder; runs/<task>-<seed> unless named."""
    seed: int = 0
    """Of the demonstration, the adaptation, both learners and all instances."""
    rollouts: int = 150
    """Online episodes per arm."""
    evaluation_episodes: int = 50
    """Fresh instances each policy is evaluated on."""
    model: str = ""
    """Checkpoint to adapt: a folder, a Hub id, or nothing for the packaged one."""
    resume: bool = False
    """Go on from what an interrupted run left in the folder."""

    def run(self) -> None:
        """Demonstrate, adapt, train both arms, evaluate, write the page."""
        from envs.cameras import Cameras
        from envs.metaworld import VIEWS, MetaWorldEnv, task_name
        from policies import one_shot
        from policies.grid import Cell
        from policies.page import STORY

        began = time.perf_counter()
        task = task_name(self.task)
        Cameras(MetaWorldEnv(task), VIEWS).close()  # a missing renderer is one clear error now, not half-way
        folder = self.out or Path("runs") / f"{task}-{self.seed}"
        if not (folder / "grm" / "config.json").exists():
            GRM.from_pretrained(self.model)  # the same for a checkpoint that is none
        check_output(folder, resume=self.resume)
        settings = one_shot.OneShotSettings(
            task=task,
            seed=self.seed,
            rollouts=self.rollouts,
            evaluation_episodes=self.evaluation_episodes,
            model=self.model,
        )
        about = {"command": command_line(self), "commit": commit()}
        one_shot.write_config(folder, settings, about, resume=self.resume)
        cells = [Cell(settings=settings, arm=arm, folder=folder) for arm in STORY]
        try:
            demonstration = one_shot.record_demonstration(settings, folder / "demonstration")
            console.print(
                f"[bold]{task}[/bold]: {demonstration.instruction}; one expert demonstration of "
                f"{len(demonstration)} frames, {len(demonstration.views)} views"
            )
            self._adapt(settings, demonstration, folder)
            add_seconds(folder, time.perf_counter() - began)
            train(cells, jobs=2)
        except KeyboardInterrupt:
            if (folder / "grm" / "config.json").exists():
                self._report(cells)
            again = command_line(replace(self, out=folder, resume=True))
            console.print(
                f"interrupted; what is finished is in {escape(str(folder))}: go on with [bold]{escape(again)}[/bold]",
                soft_wrap=True,
            )
            sys.exit(130)
        self._report(cells)

    def _adapt(self, settings: "OneShotSettings", demonstration: Episode, folder: Path) -> None:
        from envs.experts import record
        from envs.metaworld import VIEWS
        from policies import one_shot
        from policies.arms import GRM_SHAPED

        from ..train import Trainer

        if not one_shot.missing(GRM_SHAPED, folder):
            return
        with progress_bar() as progress:
            bar = progress.add_task("adapting the GRM", total=settings.adaptation_steps)

            def after_step(trainer: Trainer) -> None:
                progress.update(bar, completed=trainer.step)

            one_shot.prepare(settings, GRM_SHAPED, folder, after_step=after_step)
        old, new = GRM.from_pretrained(self.model), GRM.from_pretrained(folder / "grm")
        env = one_shot.make_env(settings.task, one_shot.horizon_of(demonstration), views=VIEWS)
        behaviours = ("expert", "expert", "near-miss", "wander", "undo", "noisy")
        others = [record(env, b, seed=20_000 + k, label_every=4) for k, b in enumerate(behaviours)]
        env.close()
        table = before_after(old, new, demonstration, others, {settings.task: demonstration.frames[-1]})
        console.print(table)

    def _report(self, cells: "list[Cell]") -> None:
        from policies.grid import write_metrics
        from policies.page import write_run_page

        write_metrics(cells, cells[0].folder / "metrics.csv")
        settings, folder = cells[0].settings, cells[0].folder
        path = write_run_page(settings, folder, minutes(folder) * 60)
        console.print(outcome(cells))
        console.print(
            f"{minutes(folder):.1f} minutes; open [bold]{escape(str(path))}[/bold] in a browser", soft_wrap=True
        )
