"""Judging steps from both sides (BiPRM, arXiv 2508.01682): what comes after a step is evidence about it, too.

One network reads the solution twice: as it was written, and with the order of the steps reversed (not of the words in
them). A step has a log-odds from either reading, r_fwd having seen what came before it and r_rev what came after, and
both the step itself. They are averaged, or mixed by a gate that looks at both hidden states h:

    r = σ r_fwd + (1 - σ) r_rev,    σ = sigmoid(W2 relu(W1 [h_fwd; h_rev]))

Nothing here can score a prefix: `BidirectionalJudge` is a `Judge` and no `ProcessReward`, so neither a search nor a
robot gets hold of it. Its scores are P(this step is right | the whole solution), of the kind correctness.

Where a published implementation differs: the loss is that of log-odds, not of probabilities taken for them; a score of
exactly zero is a score; a solution is written in training as in use; and both readings are one pass of the network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.stepwise import LabelledSolution
from ..errors import CheckpointError, TraceError
from ..reward import ScoredJudgement, ScoreKind, Task, Thought
from .conventions import Convention
from .discriminative import DiscriminativeJudge, _Request
from .language import Usage
from .tiny import Fit, FitSettings

type Combination = Literal["gate", "average", "forward", "backward"]
"""Of the two readings; `forward` and `backward` take one and are what the others are compared with."""
type Loss = Literal["cross-entropy", "squared", "ranking"]
type Readings = tuple[_Request, _Request]
"""A solution from its beginning, and from its end."""

COMBINATIONS: tuple[Combination, ...] = get_args(Combination.__value__)
LOSSES: tuple[Loss, ...] = get_args(Loss.__value__)
MARGIN = 4.0
"""ζ of the ranking loss (PQM, arXiv 2410.11287)."""


class BidirectionalJudge:
    """A `DiscriminativeJudge`'s network, read in both directions. Only a `Judge`: it must see the end.

    A solution that does not fit the context is not judged at all, since one reading would miss its beginning, the
    other its end; `network.dropped` counts its steps.
    """

    def __init__(
        self, network: DiscriminativeJudge, combination: Combination = "gate", *, gate: nn.Module | None = None
    ) -> None:
        """Takes the network over. `gate` maps (n, 2 width) to (n, 1), to log-odds of the forward reading.

        Without one, `gate` begins as an even mix. Raises `TraceError` for a convention of another kind than
        correctness: a value is the chance from a prefix on, and this judge has seen how it ended.
        """
        if network.convention.kind is not ScoreKind.CORRECTNESS:
            raise TraceError(
                f"convention {network.convention.name!r} is of kind {network.convention.kind.value}; expected "
                f"{ScoreKind.CORRECTNESS.value}: who reads a solution from its end does not foretell it"
            )
        if combination not in COMBINATIONS:
            raise TraceError(f"no combination {combination!r}; expected one of {', '.join(COMBINATIONS)}")
        self.network, self.combination = network, combination
        self.gate: nn.Module | None = None
        if combination == "gate":
            self.gate = (gate or _new_gate(network)).eval()

    @classmethod
    def on_top_of(
        cls,
        model: Any,
        tokenizer: Any,
        convention: Convention,
        combination: Combination = "gate",
        *,
        seed: int = 0,
    ) -> Self:
        """An untrained judge on a copy of a causal language model, to be fitted."""
        return cls(DiscriminativeJudge.on_top_of(model, tokenizer, convention, seed=seed), combination)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "cpu") -> Self:
        """From a folder that `save_pretrained` wrote. Raises `CheckpointError` for any other."""
        path = Path(folder) / "bidirectional.json"
        try:
            combination = json.loads(path.read_text(encoding="utf-8"))["combination"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"no bidirectional judge at {str(folder)!r} ({error}); expected what `save_pretrained` wrote"
            ) from error
        made = cls(DiscriminativeJudge.from_pretrained(folder, device=device), combination)
        if made.gate is not None:
            try:
                made.gate.load_state_dict(safetensors.torch.load_file(Path(folder) / "gate.safetensors"), strict=True)
            except (OSError, RuntimeError, safetensors.SafetensorError) as error:
                raise CheckpointError(
                    f"the gate at {str(folder)!r} cannot be read ({error}); expected what `save_pretrained` wrote"
                ) from error
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        """Write network, gate and combination to a folder that `from_pretrained` reads. Of gates, the default one."""
        self.network.save_pretrained(folder)
        if self.gate is not None:
            state = {name: tensor.contiguous() for name, tensor in self.gate.state_dict().items()}
            safetensors.torch.save_file(state, Path(folder) / "gate.safetensors")
        (Path(folder) / "bidirectional.json").write_text(
            json.dumps({"combination": self.combination}) + "\n", encoding="utf-8"
        )

    @property
    def usage(self) -> Usage:
        """The network's, both readings counted."""
        return self.network.usage

    def judge(self, task: Task, steps: Sequence[Thought]) -> ScoredJudgement:
        """Scores are P(this step is right | the solution), the potential their product so far; the spread is 0."""
        return self.judge_all([(task, steps)])[0]

    @torch.inference_mode()
    def judge_all(self, traces: Sequence[tuple[Task, Sequence[Thought]]]) -> list[ScoredJudgement]:
        """Judge many, those of like length together."""
        readings = [self._readings(task.instruction, [step.text for step in steps]) for task, steps in traces]
        fitting = [(i, reading) for i, reading in enumerate(readings) if reading is not None]
        scores: list[Float[np.ndarray, " T"] | None] = [None for _ in traces]
        for batch in self.network._batches([forward for _, (forward, _) in fitting]):
            picked = [fitting[i] for i in batch]
            known = self._log_odds([reading for _, reading in picked]).double().sigmoid().cpu().numpy()
            asked = self._asked([reading for _, reading in picked])
            self.network.usage.calls += len(asked)
            self.network.usage.prompt_tokens += sum(len(request.new) for request in asked)
            bounds = np.cumsum([len(traces[i][1]) for i, _ in picked])[:-1]
            for (i, _), of_solution in zip(picked, np.split(known, bounds), strict=True):
                scores[i] = of_solution
        return [
            self._judgement(of_solution, len(steps)) for of_solution, (_, steps) in zip(scores, traces, strict=True)
        ]

    def _judgement(self, scores: Float[np.ndarray, " T"] | None, length: int) -> ScoredJudgement:
        if scores is None:
            self.network.dropped += length
        known = np.full(length, np.nan) if scores is None else scores
        return ScoredJudgement(
            potential=np.cumprod(known),
            spread=np.where(np.isnan(known), np.nan, 0.0),
            judged=np.full(length, scores is not None),
            score=known,
            kind=ScoreKind.CORRECTNESS,
        )

    def _readings(self, question: str, steps: Sequence[str]) -> Readings | None:
        """None if there is nothing to read, or more than fits."""
        found: list[_Request] = []
        for order in (steps, steps[::-1]):
            asked = self.network.asker.ask(question, order)
            if not steps or asked.reads[-1] >= self.network.context:
                return None
            found.append(_Request(asked.tokens[: asked.reads[-1] + 1], asked.reads))
        return found[0], found[1]

    def _asked(self, readings: Sequence[Readings]) -> list[_Request]:
        """Those that the combination needs: all forward ones, then all backward ones."""
        forwards, backwards = [forward for forward, _ in readings], [backward for _, backward in readings]
        return {"forward": forwards, "backward": backwards}.get(self.combination, [*forwards, *backwards])

    def _log_odds(self, readings: Sequence[Readings]) -> Float[Tensor, " steps"]:
        """Of right, of every step of every solution, in the order of writing; all readings in one pass."""
        lengths = [len(forward.reads) for forward, _ in readings]
        asked = self._asked(readings)
        hidden, _ = self.network._hidden(asked)
        logits = self.network._log_odds(hidden)
        if self.combination == "forward":
            return logits
        # A reversed reading meets the steps of each solution from the last to the first.
        starts = np.cumsum([0, *lengths[:-1]])
        flip = np.concatenate([start + np.arange(n)[::-1] for start, n in zip(starts, lengths, strict=True)])
        order = torch.from_numpy(flip).to(logits.device)
        if self.combination == "backward":
            return logits[order]
        half = sum(lengths)
        from_beginning, from_end = logits[:half], logits[half:][order]
        if self.gate is None:
            return (from_beginning + from_end) / 2
        # Detached, as in the paper's code: the gate chooses between readings, and does not shape them.
        seen = torch.cat([hidden[:half], hidden[half:][order]], dim=1).detach()
        share = self.gate(seen)[:, 0].float().sigmoid()
        return share * from_beginning + (1 - share) * from_end


def fit_bidirectional(
    judge: BidirectionalJudge,
    examples: Sequence[LabelledSolution],
    settings: FitSettings | None = None,
    *,
    loss: Loss = "cross-entropy",
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train network and gate on labelled steps; returns the loss at the end. Changes the judge.

    Start from a network that knows the language. Unlike `fit_judge` this learns from the labels after an error, too:
    for a reading that begins at the end, they come first. Leave them out as None if they are not known.
    """
    return bidirectional_fit(judge, examples, settings, loss=loss).run(progress=progress)


def bidirectional_fit(
    judge: BidirectionalJudge,
    examples: Sequence[LabelledSolution],
    settings: FitSettings | None = None,
    *,
    loss: Loss = "cross-entropy",
) -> Fit[Any]:
    """The fit that `fit_bidirectional` runs, for those who want to interrupt and resume it.

    `cross-entropy` and `squared` are means over labelled steps, and labels may be soft; `ranking` is the mean over the
    right steps of each solution, then over solutions, and asks for labels of 0 and 1; what it teaches is an order, no
    chances. Solutions that do not fit the context, or without a label (or a right step to rank) are left out; raises
    `TraceError` if none is left.
    """
    if loss not in LOSSES:
        raise TraceError(f"no loss {loss!r}; expected one of {', '.join(LOSSES)}")
    drilled: list[tuple[Readings, tuple[float | None, ...]]] = []
    for example in examples:
        if loss == "ranking" and not {*example.labels} <= {None, 0.0, 1.0}:
            raise TraceError(f"labels {example.labels} to rank by; expected 0 and 1 (or None for a step without)")
        reading = judge._readings(example.prompt, example.steps)
        useful = any(label == 1 if loss == "ranking" else label is not None for label in example.labels)
        if useful and reading is not None:
            drilled.append((reading, example.labels))
    if not drilled:
        raise TraceError(f"none of {len(examples)} examples has a label within the context; expected at least one")

    def batch_loss(batch: Sequence[tuple[Readings, tuple[float | None, ...]]]) -> Float[Tensor, ""]:
        logits = judge._log_odds([reading for reading, _ in batch])
        if loss == "ranking":
            parts = torch.split(logits, [len(labels) for _, labels in batch])
            return torch.stack([ranking_loss(r, labels) for r, (_, labels) in zip(parts, batch, strict=True)]).mean()
        labels = [label for _, of_solution in batch for label in of_solution]
        # By a mask of what is labelled, never by the value: a label or a score of 0 is one.
        known = torch.tensor([label is not None for label in labels], device=logits.device)
        wanted = torch.tensor([float(label) for label in labels if label is not None], device=logits.device)
        if loss == "squared":
            return F.mse_loss(logits[known].sigmoid(), wanted)
        return F.binary_cross_entropy_with_logits(logits[known], wanted)

    parts = [judge.network.network, *([judge.gate] if judge.gate is not None else [])]
    return Fit(nn.ModuleList(parts), batch_loss, drilled, settings)


def ranking_loss(
    logits: Float[Tensor, " T"], labels: Sequence[float | None], *, margin: float = MARGIN
) -> Float[Tensor, ""]:
    """PQM's (arXiv 2410.11287): later right steps above earlier ones, and all above the wrong ones by a margin.

    The mean over right steps t of -log(exp(r_t) / (Σ exp(r_q) over right q <= t + Σ exp(r_w + margin) over wrong w)).
    Raises `TraceError` without a right step.
    """
    right = [i for i, label in enumerate(labels) if label == 1]
    wrong = [i for i, label in enumerate(labels) if label == 0]
    if not right:
        raise TraceError("none of the steps is right; expected at least one, to rank above the others")
    good, bad = logits[right], logits[wrong] + margin
    against = torch.logcumsumexp(good, dim=0)
    if wrong:
        against = torch.logaddexp(against, torch.logsumexp(bad, dim=0))
    return (against - good).mean()


def _new_gate(network: DiscriminativeJudge) -> nn.Module:
    """W1: 2d -> d, W2: d -> 1; W2 begins at zero, an even mix."""
    width = network.backbone.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))
    for parameter in gate[2].parameters():
        nn.init.zeros_(parameter)
    return gate.to(network.backbone.device, network.backbone.dtype)
