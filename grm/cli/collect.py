"""`grm collect`: scripted behaviours to labelled data sets."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.markup import escape

from ..errors import OutputError
from .terminal import console, progress_bar


@dataclass(frozen=True)
class Collect:
    """Record labelled episodes of scripted behaviours as a LeRobotDataset; run again to go on after an interruption."""

    out: Path
    """Folder of the data set; with several tasks, one data set per task inside it."""
    task: tuple[str, ...] = ("door-unlock",)
    """Task names, or a group: `pretraining` (42), `held-out` (5), `precise` (3)."""
    episodes: int = 10
    """Successful expert episodes per task."""
    off_demonstration: int = 0
    """Episodes per task that fail, stall, detour, undo or recover, each behaviour in turn."""
    views: tuple[str, ...] = ("topview", "corner", "gripperPOV")
    """Cameras."""
    size: int = 64
    """Image height and width in pixels."""
    horizon: int = 100
    """Decisions until an episode is cut."""
    action_repeat: int = 2
    """Control steps of 12.5 ms per decision, and so per recorded frame."""
    label_every: int = 1
    """Ask the prover at every n-th frame of an episode off the demonstration, and interpolate between."""
    seed: int = 0
    """First instance; experts count up from it, the others from a million more."""
    jobs: int = 1
    """Processes, one task each at a time."""

    def run(self) -> None:
        """Collect every task, in parallel when asked."""
        from envs.metaworld import HELD_OUT, PRECISE, PRETRAINING, task_name

        groups = {"pretraining": PRETRAINING, "held-out": HELD_OUT, "precise": PRECISE}
        named = [name for entry in self.task for name in groups.get(entry) or (task_name(entry),)]
        tasks = list(dict.fromkeys(named))
        roots = {name: self.out / name if len(tasks) > 1 else self.out for name in tasks}
        total = self.episodes + self.off_demonstration
        with progress_bar() as progress:
            bar = progress.add_task("collecting", total=total * len(tasks))
            if self.jobs == 1 or len(tasks) == 1:
                for name, root in roots.items():
                    progress.update(bar, description=name)
                    for _ in _collect(self, name, root):
                        progress.advance(bar)
            else:
                with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
                    futures = {pool.submit(_collect_all, self, name, root): name for name, root in roots.items()}
                    for future in as_completed(futures):
                        future.result()
                        progress.update(bar, advance=total, description=futures[future])
        console.print(
            f"wrote {total * len(tasks)} episodes of {len(tasks)} task(s) to [bold]{escape(str(self.out))}[/bold]",
            soft_wrap=True,
        )


def _collect_all(settings: Collect, task: str, root: Path) -> None:
    for _ in _collect(settings, task, root):
        pass


def _collect(settings: Collect, task: str, root: Path):
    """Append the episodes that are still missing, one at a time; yields after each, written before or now."""
    from envs.experts import OFF_DEMONSTRATION, demonstrations, record
    from envs.metaworld import MetaWorldEnv

    from ..data.lerobot import EpisodeWriter

    writer = EpisodeWriter(root)
    written = writer.lines()
    strangers = [line["task"] for line in written if line["task"] != task]
    if strangers:
        raise OutputError(
            f"{root} holds episodes of {strangers[0]!r}; expected a new folder or one of {task!r}: choose another"
        )
    experts = [line for line in written if line["behaviour"] == "expert"]
    others = [line for line in written if line["behaviour"] != "expert"]
    yield from written
    env = MetaWorldEnv(
        task,
        views=settings.views,
        height=settings.size,
        width=settings.size,
        horizon=settings.horizon,
        action_repeat=settings.action_repeat,
    )
    seed = experts[-1]["seed"] + 1 if experts else settings.seed
    for episode in demonstrations(env, settings.episodes - len(experts), seed=seed):
        writer.append(episode)
        yield
    for index in range(len(others), settings.off_demonstration):
        behaviour = OFF_DEMONSTRATION[index % len(OFF_DEMONSTRATION)]
        seed = settings.seed + 1_000_000 + index
        writer.append(record(env, behaviour, seed=seed, label_every=settings.label_every))
        yield
    env.close()
