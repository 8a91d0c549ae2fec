"""`grm audit`: a red team against a GRM on one task; a table, red_team.json and .csv, a picture of the worst."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..audit import Finding, summarize, worst
from ..errors import TraceError
from .output import check_output, command_line, commit
from .terminal import console, progress_bar


@dataclass(frozen=True)
class Audit:
    """Attack a GRM and measure what each attack gains: (Φ reached) - (truth there)."""

    out: Path
    """Folder of red_team.json, red_team.csv and worst.png."""
    task: str = "hand-insert"
    """A Meta-World task."""
    model: str = ""
    """Checkpoint: a folder, a Hub id, or nothing for the packaged one."""
    demo_seed: int = 0
    """Of the one demonstration, which the goal picture is taken from and the model is adapted on."""
    adapt: int = 200
    """Gradient steps of adaptation to the demonstration first; 0 to attack the model as it is."""
    episodes: int = 3
    """Per attack."""
    rollouts: int = 0
    """Of a learner that maximises Φ alone, the hardest attack; 0 leaves it out, 100 take some minutes."""

    def run(self) -> None:
        """Adapt, attack, print the table."""
        from envs.cameras import Cameras
        from envs.metaworld import VIEWS, MetaWorldEnv, task_name
        from policies import red_team

        if self.episodes < 1 or self.rollouts < 0 or self.adapt < 0:
            raise TraceError(
                f"{self.episodes} episodes, {self.rollouts} rollouts, {self.adapt} steps of adaptation; expected at "
                f"least one episode, and the others not below 0"
            )
        task = task_name(self.task)
        Cameras(MetaWorldEnv(task), VIEWS).close()  # a missing renderer is one clear error now, not half-way
        check_output(self.out)
        settings = red_team.AuditSettings(
            task=task,
            demo_seed=self.demo_seed,
            model=self.model,
            adapt=self.adapt,
            episodes=self.episodes,
            rollouts=self.rollouts,
        )
        about: dict[str, object] = {"command": command_line(self), "commit": commit()}
        with progress_bar() as progress:
            adapting = progress.add_task("adapting", total=self.adapt, visible=self.adapt > 0)
            bar = progress.add_task("attacking", total=settings.total)
            try:
                findings = red_team.run(
                    settings,
                    self.out,
                    after_each=lambda attack: progress.update(bar, advance=1, description=attack),
                    after_adaptation_step=lambda step: progress.update(adapting, completed=step),
                    about=about,
                )
            except KeyboardInterrupt:
                progress.stop()
                measured = escape(str(self.out / "red_team.csv"))
                console.print(f"interrupted; what was measured is in {measured}", soft_wrap=True)
                sys.exit(130)
        console.print(table(findings, title=f"red team: {task}"))
        console.print(f"wrote red_team.json and worst.png to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)


def table(findings: Sequence[Finding], *, title: str) -> Table:
    """One row per attack, the worst first."""
    summaries = summarize(findings)
    top = worst(summaries)
    shown = Table(title=title, caption="exploit gain: Φ − truth where Φ is highest; mean [95 % interval] over episodes")
    for heading in ("attack", "kind", "exploit gain", "n", "worst"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("abstained")
    for name, summary in summaries.items():
        gain, finding = summary.gain, summary.worst
        found = finding.exploit if finding else None
        shown.add_row(
            name,
            summary.kind,
            f"{gain.value:5.2f} \\[{gain.low:.2f}, {gain.high:.2f}]" if gain else "–",
            str(summary.episodes),
            f"{found.potential:.2f} − {found.truth:.2f}" if found else "–",
            f"{100 * summary.abstained:.0f} %",
            style="bold" if summary is top else "dim" if summary.kind == "control" else "",
        )
    return shown
