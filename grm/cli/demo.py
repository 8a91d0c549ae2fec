"""`grm demo`: one demonstration in, a trained policy and a page out."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ..data.episodes import Episode
from ..data.replay import read_replay
from ..models.checkpoint import locate
from ..models.multiview import GRM, packaged_checkpoint
from .adapt import before_after
from .output import check_output, command_line, commit
from .terminal import console, progress_bar

if TYPE_CHECKING:
    from policies.collecting import Rollout
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

        began = time.perf_counter()
        task = task_name(self.task)
        Cameras(MetaWorldEnv(task), VIEWS).close()  # a missing renderer is one clear error now, not half-way
        folder = self.out or Path("runs") / f"{task}-{self.seed}"
        if not (folder / "grm" / "config.json").exists():
            GRM.from_pretrained(self.model)  # the same for a checkpoint that is none
        check_output(folder, resume=self.resume)
        settings = one_shot.OneShotSettings(
            task=task, seed=self.seed, rollouts=self.rollouts, evaluation_episodes=self.evaluation_episodes
        )
        about = {"command": command_line(self), "commit": commit(), "model": self.model or "packaged"}
        one_shot.write_config(folder, settings, about, resume=self.resume)
        hint = f"go on with [bold]{escape(command_line(replace(self, out=folder, resume=True)))}[/bold]"
        try:
            demonstration = one_shot.record_demonstration(settings, folder / "demonstration")
            console.print(
                f"[bold]{task}[/bold]: {demonstration.instruction}; one expert demonstration of "
                f"{len(demonstration)} frames, {len(demonstration.views)} views"
            )
            self._adapt(settings, demonstration, folder)
            self._train(settings, folder)
        except KeyboardInterrupt:
            seconds = one_shot.add_seconds(folder, time.perf_counter() - began)
            if (folder / "grm" / "config.json").exists():
                self._report(settings, folder, seconds)
            console.print(f"interrupted; what is finished is in {escape(str(folder))}: {hint}", soft_wrap=True)
            sys.exit(130)
        self._report(settings, folder, one_shot.add_seconds(folder, time.perf_counter() - began))

    def _adapt(self, settings: "OneShotSettings", demonstration: Episode, folder: Path) -> None:
        from envs.experts import record
        from envs.metaworld import VIEWS
        from policies import one_shot

        from ..train import Trainer, adapt

        if (folder / "grm" / "config.json").exists():
            return
        old = GRM.from_pretrained(self.model)
        replay = list(read_replay(locate(self.model, packaged_checkpoint())))
        with progress_bar() as progress:
            bar = progress.add_task("adapting the GRM", total=settings.adaptation_steps)

            def after_step(trainer: Trainer) -> None:
                progress.update(bar, completed=trainer.step)

            new = adapt(
                old,
                demonstration,
                replay,
                steps=settings.adaptation_steps,
                seed=settings.seed,
                after_step=after_step,
            )
        env = one_shot.make_env(settings.task, one_shot.horizon_of(demonstration), views=VIEWS)
        behaviours = ("expert", "expert", "near-miss", "wander", "undo", "noisy")
        others = [record(env, b, seed=20_000 + k, label_every=4) for k, b in enumerate(behaviours)]
        env.close()
        table = before_after(old, new, demonstration, others, {settings.task: demonstration.frames[-1]})
        console.print(table)
        new.save_pretrained(folder / "grm", {"command": command_line(self), "commit": commit(), "seed": settings.seed})

    def _train(self, settings: "OneShotSettings", folder: Path) -> None:
        from policies import one_shot

        recent: dict[str, list[bool]] = {arm: [] for arm in one_shot.ARMS}
        with progress_bar() as progress:
            bars = {arm: progress.add_task(f"{arm:6} arm", total=settings.rollouts) for arm in one_shot.ARMS}

            def on_rollout(arm: str, rollout: "Rollout") -> None:
                recent[arm].append(rollout.success)
                last = recent[arm][-20:]
                progress.update(
                    bars[arm],  # pyright: ignore[reportArgumentType]
                    completed=rollout.number,
                    description=f"{arm:6} arm, {sum(last)}/{len(last)} of the last rollouts succeed",
                )

            one_shot.run_arms(settings, folder, on_rollout=on_rollout)

    def _report(self, settings: "OneShotSettings", folder: Path, seconds: float) -> None:
        from policies import one_shot, page

        one_shot.write_metrics(folder)
        path = page.write_run_page(settings, folder, seconds)
        table = Table("policy", f"success on {settings.evaluation_episodes} fresh instances", title=settings.task)
        for name, value in page.success_rates(folder).items():
            table.add_row(name, "not finished" if value is None else f"{value:.2f}")
        console.print(table)
        console.print(f"{seconds / 60:.1f} minutes; open [bold]{escape(str(path))}[/bold] in a browser", soft_wrap=True)
