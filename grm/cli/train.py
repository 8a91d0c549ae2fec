"""`grm train`: labelled data sets to a checkpoint."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..data.episodes import Episode
from ..data.replay import write_replay
from ..errors import CheckpointError, TraceError
from ..evaluate import Scored, by_task, pool, score_all, summarize
from ..models.checkpoint import load_weights, read_config
from ..models.multiview import GRM, KIND, Architecture, MultiViewNetwork
from ..reward import Frame
from .datasets import datasets
from .output import check_output, command_line, commit
from .terminal import console, progress_bar

SAVE_EVERY = 200
"""Training steps between checkpoints; an interruption loses at most these."""


@dataclass(frozen=True)
class Train:
    """Train a GRM on labelled data sets, from scratch or from a checkpoint; run again with --resume to go on."""

    data: tuple[Path, ...]
    """LeRobotDataset folders with a `progress` column, or folders of such folders."""
    out: Path
    """Folder of the checkpoint and its training report."""
    steps: int = 2000
    """Gradient steps."""
    seed: int = 0
    """Of initial weights and every draw."""
    validation: float = 0.1
    """Share of each data set's episodes kept out of training, for the report."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    bfloat16: bool = False
    """Train the encoder in bfloat16; faster on CPUs with AMX."""
    model: Path | None = None
    """Checkpoint folder to go on from with other data or settings; from scratch unless given."""
    backbone: str = "compact"
    """`compact`, or a torchvision classifier such as `resnet18`."""
    cache: Path | None = None
    """Folder for decoded pictures: runs on the same data decode once and share memory. Large; delete it any time."""
    resume: bool = False
    """Go on from what an interrupted run left in `out`."""

    def run(self) -> None:
        """Read, train, write the checkpoint now and then, and report on the validation episodes."""
        from ..train import MANY_TASKS, Trainer, TrainSettings, calibrate

        if self.steps < 1 or not self.learning_rate > 0:
            raise TraceError(
                f"steps is {self.steps} and learning_rate {self.learning_rate}; expected at least 1 step and a "
                f"positive rate"
            )
        if not 0 <= self.validation < 1:
            raise TraceError(
                f"validation is {self.validation}; expected a share of the episodes in [0, 1), such as 0.1"
            )
        check_output(self.out, resume=self.resume)
        training, validation = _read_split(datasets(self.data), self.validation, self.cache)
        console.print(
            f"{len(training)} episodes to train on, {len(validation)} to validate, "
            f"{sum(len(e) for e in training):,} frames, {len({e.task for e in training})} task(s)"
        )
        network = (
            _new_network(self.seed, self.backbone) if self.model is None else GRM.from_pretrained(self.model).network
        )
        if self.resume:
            load_weights(self.out, network)
        settings = TrainSettings(
            steps=self.steps, seed=self.seed, bfloat16=self.bfloat16, learning_rate=self.learning_rate
        )
        trainer = Trainer(network, training, settings, MANY_TASKS)
        if self.resume:
            trainer.resume(self.out)
            saved = read_config(self.out, KIND)["card"].get("trained_steps")
            if saved != trainer.step:
                raise CheckpointError(
                    f"{self.out} holds weights of step {saved} and an optimiser of step {trainer.step}: the run was "
                    f"killed while it saved; expected both of one step: start again in a new folder"
                )
        model = GRM(network)
        card: dict[str, object] = {
            "command": command_line(self),
            "commit": commit(),
            "seed": self.seed,
            "steps": self.steps,
            **({} if self.model is None else {"from": read_config(self.model, KIND)["card"]}),
        }

        def save() -> None:
            card["trained_steps"] = trainer.step
            model.save_pretrained(self.out, card)
            trainer.save_state(self.out)

        with progress_bar() as progress:
            bar = progress.add_task("training", total=self.steps, completed=trainer.step)

            def after_step(state: Trainer) -> None:
                last = state.history[-1]
                progress.update(
                    bar,
                    completed=state.step,
                    description=f"hop loss {last['hop_loss']:.3f}, success loss {last['success_loss']:.3f}",
                )
                if state.step % SAVE_EVERY == 0:
                    network.eval()
                    save()
                    network.train()

            try:
                trainer.run(after_step=after_step)
            except KeyboardInterrupt:
                progress.stop()
                saved = (self.out / "training.json").exists()
                how = "with --resume added, to go on from its last checkpoint" if saved else "nothing was saved yet"
                console.print(f"interrupted; run the same command again ({how})")
                sys.exit(130)
        save()  # before the report, which can be interrupted too
        card["episodes"] = len(training)
        card["frames"] = sum(len(episode) for episode in training)
        card["tasks"] = sorted({episode.task for episode in training})
        if validation:
            calibrate(network, *pool(_score(model, validation, training)))
            card["validation"] = _validate(_score(model, validation, training))
        save()
        write_replay(self.out, _replay_sample(training))
        console.print(
            f"wrote the checkpoint and its replay sample to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True
        )


def _read_split(folders: Sequence[Path], validation: float, cache: Path | None) -> tuple[list[Episode], list[Episode]]:
    """Episodes to train on and to validate: every n-th is held out, another n-th in every data set."""
    from ..data.decoded import read_decoded
    from ..data.lerobot import count_episodes, read_episodes

    training: list[Episode] = []
    held: list[Episode] = []
    with progress_bar() as progress:
        bar = progress.add_task("reading", total=sum(count_episodes(folder) for folder in folders))
        for number, folder in enumerate(folders):
            count = count_episodes(folder)
            every = round(1 / validation) if validation > 0 else count + 1
            found = read_episodes(folder) if cache is None else read_decoded(folder, cache)
            for index, episode in enumerate(found):
                (held if (index + 7 * number) % every == every - 1 else training).append(episode)
                progress.advance(bar)
    return training, held


def _new_network(seed: int, backbone: str) -> MultiViewNetwork:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiViewNetwork(Architecture(backbone=backbone))


def _goals(episodes: Sequence[Episode]) -> dict[str, Frame]:
    """The last frame of each task's first successful episode."""
    goals: dict[str, Frame] = {}
    for episode in episodes:
        if episode.succeeded:
            goals.setdefault(episode.task, episode.frames[-1])
    return goals


def _score(model: GRM, validation: Sequence[Episode], training: Sequence[Episode]) -> list[Scored]:
    goals = _goals(training)
    with progress_bar() as progress:
        usable = [episode for episode in validation if episode.task in goals]
        bar = progress.add_task("validating", total=len(usable))
        return score_all(model, usable, goals, stride=2, after_each=lambda: progress.advance(bar))


def _validate(scored: Sequence[Scored]) -> dict[str, float]:
    summary = summarize(by_task(scored))
    table = Table("metric", "mean over tasks", "95 % interval", title="validation episodes")
    for name, interval in summary.items():
        table.add_row(name, f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    console.print(table)
    return {name: round(interval.value, 4) for name, interval in summary.items()}


def _replay_sample(training: Sequence[Episode]) -> list[Episode]:
    """Of every task two demonstrations and three episodes that are none, of behaviours that differ."""
    sample: dict[str, list[Episode]] = {}
    for episode in training:
        kept = sample.setdefault(episode.task, [])
        expert = episode.behaviour == "expert"
        alike = [other for other in kept if (other.behaviour == "expert") == expert]
        if len(alike) < (2 if expert else 3) and (expert or episode.behaviour not in {o.behaviour for o in alike}):
            kept.append(episode)
    return [episode for task in sorted(sample) for episode in sample[task]]
