"""`grm text train`: files of labelled steps to a discriminative judge."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape

from ...data.stepwise import Format, LabelledSolution, Neutral
from ...errors import TraceError
from ...reward import ScoreKind
from ..output import command_line, commit
from ..terminal import console, progress_bar
from .files import begin, complain, read_files, write_json
from .models import hush
from .score import NAMES, numbers_table

SAVE_EVERY = 200
"""Training steps between saves; an interruption loses at most these."""
STATE = "fit.safetensors"


@dataclass(frozen=True, kw_only=True)
class TextTrain:
    """Train a judge that scores all steps in one forward, on a causal language model; run again with --resume to go on.

    Labels stay soft where they are soft. A correctness judge learns the steps up to the first error, a value judge all.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional] = field(default=())
    """Files of labelled steps: TRL, PRM800K, Math-Shepherd, ProcessBench or RLHFlow."""
    backbone: str
    """Causal language model to start from: a folder or a Hub id."""
    out: Path
    """Folder of the judge."""
    convention: str = "trl"
    """How it will be asked: qwen, math-shepherd, skywork, rlhflow or trl."""
    kind: Literal["", "correctness", "value"] = ""
    """What its numbers mean: correctness where people or judges labelled, value where rollouts did; by default the
    convention's."""
    bidirectional: bool = False
    """A judge that reads the solution from both ends, for finished solutions only; it learns from the labels after an
    error, too."""
    steps: int = 1000
    """Gradient steps."""
    batch: int = 16
    """Solutions per step."""
    learning_rate: float = 5e-5
    """Peak; 2e-3 suits networks of a hundred thousand weights."""
    validation: float = 0.1
    """Share of the problems kept out of training, for the report."""
    format: Format | None = None
    """Of the files; by default each record says by its names which it is."""
    neutral: Neutral = "right"
    """What PRM800K's neutral rating is taken for."""
    seed: int = 0
    device: str = "cpu"
    """Such as `cuda`."""
    resume: bool = False
    """Go on from what an interrupted run left in `out`."""

    def run(self) -> None:
        """Read, train, save now and then, report on what was kept out."""
        from ...text.bidirectional import BidirectionalJudge, bidirectional_fit
        from ...text.conventions import find_convention
        from ...text.discriminative import DiscriminativeJudge, judge_fit
        from ...text.huggingface import HuggingFaceModel
        from ...text.scoring import score_solutions, summary
        from ...text.tiny import FitSettings

        if self.steps < 1 or self.batch < 1 or self.learning_rate <= 0 or not 0 <= self.validation < 1:
            raise TraceError(
                f"steps {self.steps}, batch {self.batch}, learning rate {self.learning_rate}, validation "
                f"{self.validation}; expected at least 1 of the first two, a positive rate, a share in [0, 1)"
            )
        convention = find_convention(self.backbone, self.convention)
        if self.kind:
            convention = replace(convention, kind=ScoreKind(self.kind))
        solutions, broken = read_files(self.data, self.format, self.neutral)
        training, held = split(solutions, self.validation)
        soft = sum(one.is_soft for one in solutions)
        if soft and convention.kind is ScoreKind.CORRECTNESS:
            console.print(f"{soft} solutions have soft labels; if rollouts made them, --kind value says so")
        hush()
        model = HuggingFaceModel.from_pretrained(self.backbone, device=self.device, dtype="float32")
        judge = DiscriminativeJudge.on_top_of(model.model, model.tokenizer, convention, seed=self.seed)
        _check(judge.asker.ask, training)
        settings = FitSettings(steps=self.steps, batch=self.batch, learning_rate=self.learning_rate, seed=self.seed)
        if self.bidirectional:
            judge = BidirectionalJudge(judge)
            fit = bidirectional_fit(judge, training, settings)
        else:
            fit = judge_fit(judge, training, settings)
        begin(self, self.out, resume=self.resume, name="run.json")
        state = self.out / STATE
        if state.exists():
            fit.load(state)
        console.print(f"{len(training)} solutions to train on, {len(held)} to validate")
        with progress_bar() as progress:
            bar = progress.add_task("training", total=self.steps, completed=fit.done)

            def after_step(step: int, loss: float) -> None:
                progress.update(bar, completed=step, description=f"loss {loss:.3f}")
                if step % SAVE_EVERY == 0 and step < self.steps:
                    fit.save(state)

            try:
                loss = fit.run(progress=after_step)
            except KeyboardInterrupt:
                progress.stop()
                how = "with --resume added, to go on from its last save" if state.exists() else "nothing was saved yet"
                console.print(f"interrupted; run the same command again ({how})")
                sys.exit(130)
        fit.save(state)
        judge.save_pretrained(self.out)
        card: dict[str, object] = {"command": command_line(self), "commit": commit(), "kind": convention.kind.value}
        if loss == loss:  # a finished run that is resumed has nothing left to learn
            card["loss"] = round(loss, 6)
        if held:
            found = summary(score_solutions(judge, held))
            card["validation"] = found
            console.print(numbers_table([(NAMES[n], v) for n, v in found.items()], title="validation"))
        write_json(self.out / "training.json", card)
        complain(broken)
        console.print(f"wrote the judge to [bold]{escape(str(self.out))}[/bold]", soft_wrap=True)
        if broken:
            sys.exit(1)


def split(solutions: Sequence[LabelledSolution], share: float) -> tuple[list[LabelledSolution], list[LabelledSolution]]:
    """To train on and to validate on: every n-th *problem* is held out, with all of its solutions."""
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(one.prompt for one in solutions))}
    every = round(1 / share) if share else len(problems) + 1
    held = [one for one in solutions if problems[one.prompt] % every == every - 1]
    return [one for one in solutions if problems[one.prompt] % every != every - 1], held


def _check(ask, examples) -> None:
    """Raise `TraceError` if the judge cannot be asked some of these, naming the first."""
    faults: list[TraceError] = []
    for one in examples:
        try:
            ask(one.prompt, one.steps)
        except TraceError as error:
            faults.append(TraceError(f"{one.prompt[:40]!r}: {error}"))
    if faults:
        raise TraceError(
            f"{len(faults)} of {len(examples)} solutions cannot be asked by this convention, the first is {faults[0]} "
            f"(or choose another --convention)"
        )
