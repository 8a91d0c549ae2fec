"""`grm collect`: scripted behaviours to labelled data sets."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.markup import escape

from ..data.episodes import Episode
from ..errors import OutputError, TraceError
from ..workers import end_with_the_parent
from .terminal import console, progress_bar

_LESSONS = 6
"""Episodes of one cloned policy; fitting the next takes as long as half an episode."""
_BATCH = 12
"""Episodes written at once, and at most lost with a killed run; opening a data set costs as much as recording one."""


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
    clones: int = 0
    """Episodes per task of policies cloned from one demonstration each: where a learner goes before it has learned."""
    views: tuple[str, ...] = ("corner", "behindGripper", "gripperPOV")
    """Cameras."""
    size: int = 64
    """Image height and width in pixels."""
    horizon: int = 100
    """Decisions until an episode is cut."""
    action_repeat: int = 2
    """Control steps of 12.5 ms per decision, and so per recorded frame."""
    label_every: int = 1
    """Ask the prover at every n-th frame of an episode off the demonstration, and interpolate between."""
    provers: int = 3
    """Perturbed experts asked each time; their mean is the label. 0 for no labels off the demonstration."""
    appearance: float = 0.0
    """Share of episodes in a look of their own: cameras, lights, colours, textures and distractors drawn at random."""
    seed: int = 0
    """First instance; experts count up from it, the others from a million more, clones from two."""
    jobs: int = 1
    """Processes, one task each at a time."""

    def run(self) -> None:
        """Collect every task, in parallel when asked."""
        self._check()
        from envs.metaworld import HELD_OUT, PRECISE, PRETRAINING, task_name

        groups = {"pretraining": PRETRAINING, "held-out": HELD_OUT, "precise": PRECISE}
        named = [name for entry in self.task for name in groups.get(entry) or (task_name(entry),)]
        tasks = list(dict.fromkeys(named))
        roots = {name: self.out / name if len(tasks) > 1 else self.out for name in tasks}
        total = self.episodes + self.off_demonstration + self.clones
        began = time.perf_counter()
        lengths: list[int] = []  # an episode each; 0 for those that were there already
        with progress_bar() as progress:
            bar = progress.add_task("collecting", total=total * len(tasks))
            if self.jobs == 1 or len(tasks) == 1:
                for name, root in roots.items():
                    progress.update(bar, description=name)
                    for length in _collect(self, name, root):
                        lengths.append(length)
                        progress.advance(bar)
            else:
                with ProcessPoolExecutor(self.jobs, get_context("spawn"), end_with_the_parent) as pool:
                    futures = {pool.submit(_collect_all, self, name, root): name for name, root in roots.items()}
                    for future in as_completed(futures):
                        lengths += future.result()
                        progress.update(bar, advance=total, description=futures[future])
        seconds, states = time.perf_counter() - began, sum(lengths)
        cost = f"; {1000 * seconds * self.jobs / states:.1f} ms of a process per state" if states else ""
        labelled = "labelled states" if self.provers else "states"
        console.print(
            f"wrote {sum(length > 0 for length in lengths)} episodes of {len(tasks)} task(s) with {states} {labelled} "
            f"to [bold]{escape(str(self.out))}[/bold], which now has {len(lengths)} episodes{cost}",
            soft_wrap=True,
        )

    def _check(self) -> None:
        """Raise `TraceError` for numbers that no episode or label can be made with."""
        least = {
            "episodes": 0,
            "off_demonstration": 0,
            "clones": 0,
            "size": 1,
            "horizon": 1,
            "action_repeat": 1,
            "label_every": 1,
            "provers": 0,
            "seed": 0,
            "jobs": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise TraceError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; expected a whole number of at least {bound}"
                )
        if not 0 <= self.appearance <= 1:
            raise TraceError(f"--appearance is {self.appearance}; expected a share of the episodes in [0, 1]")
        if not self.episodes + self.off_demonstration + self.clones:
            raise TraceError("no episodes were asked for; expected --episodes, --off-demonstration or --clones above 0")


def _collect_all(settings: Collect, task: str, root: Path) -> list[int]:
    return list(_collect(settings, task, root))


def _collect(settings: Collect, task: str, root: Path) -> Iterator[int]:
    """Append the episodes that are missing; yields for each its number of frames, 0 for one that was there before."""
    from envs.appearance import Appearance
    from envs.experts import OFF_DEMONSTRATION, Behaviour, demonstrations, record
    from envs.metaworld import MetaWorldEnv
    from policies.clones import cloned_behaviour

    from ..data.lerobot import EpisodeWriter

    writer = EpisodeWriter(root)
    written = writer.lines()
    strangers = [line["task"] for line in written if line["task"] != task]
    if strangers:
        raise OutputError(
            f"{root} holds episodes of {strangers[0]!r}; expected a new folder or one of {task!r}: choose another"
        )
    experts = [line for line in written if line["behaviour"] == "expert"]
    clones = [line for line in written if line["behaviour"] == "cloned"]
    others = [line for line in written if line["behaviour"] not in ("expert", "cloned")]
    yield from (0 for _ in written)
    env = MetaWorldEnv(
        task,
        views=settings.views,
        height=settings.size,
        width=settings.size,
        horizon=settings.horizon,
        action_repeat=settings.action_repeat,
    )
    first = experts[-1]["seed"] + 1 if experts else settings.seed

    def look(seed: int) -> Appearance | None:
        generator = np.random.default_rng([seed, *task.encode()])  # tasks share seeds, and must not share looks
        return Appearance.draw(generator) if generator.random() < settings.appearance else None

    def missing() -> Iterator[Episode]:
        yield from demonstrations(env, settings.episodes - len(experts), seed=first, look=look)
        for index in range(len(others), settings.off_demonstration):
            behaviour = OFF_DEMONSTRATION[index % len(OFF_DEMONSTRATION)]
            seed = settings.seed + 1_000_000 + index
            yield record(
                env, behaviour, seed=seed, label_every=settings.label_every, provers=settings.provers, look=look(seed)
            )
        acting: Behaviour | None = None
        for index in range(len(clones), settings.clones):
            seed = settings.seed + 2_000_000 + index
            if acting is None or index % _LESSONS == 0:
                acting = cloned_behaviour(env, seed=settings.seed + 3_000_000 + 100 * (index // _LESSONS))
            yield record(
                env,
                "cloned",
                seed=seed,
                label_every=settings.label_every,
                provers=settings.provers,
                look=look(seed),
                drawn_from=acting,
            )

    waiting: list[Episode] = []
    try:
        for episode in missing():
            waiting.append(episode)
            if len(waiting) == _BATCH:
                writer.append(*waiting)
                waiting.clear()
            yield len(episode)
    finally:  # an interruption loses nothing that was recorded
        writer.append(*waiting)
        env.close()
