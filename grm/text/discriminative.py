"""Discriminative step judges: one forward of a language model with a small head scores all steps of a solution.

A correctness judge's number is P(this step is right | the ones before are); its potential is their product so far,
P(no error so far). A value judge's number is its potential. The spread is 0: one network does not know how sure it is.

The carry keeps what attention computed for the prefix, so a live step or a branch of a search reads its own tokens
only. (Not for models with a sliding window, whose memory forgets: they read the prefix again.)

Training starts from a network that learned the language first: from random weights the same labels teach much less, and
on harder worlds for long nothing but their mean.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, override

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.stepwise import LabelledSolution
from ..errors import CheckpointError, TraceError
from ..reward import Judgement, ProcessReward, ScoredJudgement, ScoreKind, Task, Thought
from .conventions import Asked, Asker, Convention, find_convention, write_convention
from .language import Usage
from .tiny import Fit, FitSettings, import_transformers

type Memory = tuple[tuple[Float[Tensor, "heads t d"], Float[Tensor, "heads t d"]], ...]
"""Keys and values of each layer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefix:
    """What was read so far; the carry of `DiscriminativeJudge`."""

    question: str
    steps: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    """Read by the network, up to the last step's reading."""
    potential: float = 1.0
    """After the last step; of a correctness judge."""
    full: bool = False
    """The context ended: from here on the judge abstains."""
    memory: Memory = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """Tokens to read after a prefix, and where among them the steps are read."""

    new: Sequence[int]
    reads: Sequence[int]
    memory: Memory = ()

    @property
    def past(self) -> int:
        return self.memory[0][0].shape[1] if self.memory else 0


class DiscriminativeJudge(ProcessReward[Thought, Prefix]):
    """A causal network with a head that is read once per step, asked by a `Convention`.

    A step that does not fit the context with all before it is not judged, nor are those after it: `dropped` counts
    them. Whoever asks must leave the convention's tag out of question and steps (`TraceError`).
    """

    def __init__(
        self, backbone: Any, head: nn.Module, tokenizer: Any, convention: Convention, *, batch_tokens: int = 16384
    ) -> None:
        """`head` maps (n, width) to (n, 2), wrong and right, or (n, 1). `batch_tokens`: read at once, padding included.

        Raises `CheckpointError` if the tokenizer does not fit the convention, or if the network sees later tokens,
        which would make live and offline differ.
        """
        self.network = nn.ModuleDict({"backbone": backbone, "head": head}).eval()
        self.backbone, self.head = backbone, head
        self.tokenizer, self.convention, self.batch_tokens = tokenizer, convention, batch_tokens
        self.asker = Asker(tokenizer, convention)
        self.context: int = backbone.config.max_position_embeddings
        self.usage = Usage()
        """Calls: passes of a solution, or of the new part of one, through the network."""
        self.dropped = 0
        """Steps that were not judged because the context ended."""
        layers = getattr(backbone.config, "layer_types", None) or []
        self._remembers = "sliding_attention" not in layers and not (
            not layers and getattr(backbone.config, "sliding_window", None)
        )
        self._check_causal()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        convention: Convention | str | None = None,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> Self:
        """From a local folder or a Hub id; the convention is found there, or is named. No remote code is run.

        Raises `CheckpointError` if nothing is there, no convention is known, or the head's weights are missing.
        """
        transformers = import_transformers()
        convention = find_convention(source, convention)
        settings = {"dtype": dtype, "revision": revision, "use_safetensors": True, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
            asker = Asker(tokenizer, convention)
            if convention.reading == "tokens" and not (Path(source) / "convention.json").exists():
                model = transformers.AutoModelForCausalLM.from_pretrained(source, **settings)
                backbone, head = model.base_model, _head_of_tokens(model, asker.answers())
            else:
                backbone = transformers.AutoModel.from_pretrained(source, **settings)
                head = _new_head(convention, backbone.config.hidden_size).to(backbone.dtype)
                _load_head(head, source, convention.weights, revision)
        except (
            OSError,
            ValueError,
        ) as error:  # nothing there, no network, no safetensors
            raise CheckpointError(
                f"no judge at {str(source)!r} ({type(error).__name__}: {str(error).splitlines()[0]}); expected a "
                f"folder that `save_pretrained` wrote, or a Hub id 'owner/name', with safetensors"
            ) from error
        return cls(backbone.to(device), head.to(device), tokenizer, convention)

    @classmethod
    def on_top_of(cls, model: Any, tokenizer: Any, convention: Convention, *, seed: int = 0) -> Self:
        """An untrained judge on a copy of a causal language model (`transformers`' own class), to be fitted.

        With `tokens` the head is the language model's own, cut to the two tokens; else it is random.
        """
        backbone = copy.deepcopy(model.base_model)
        if convention.reading == "tokens":
            head: nn.Module = _head_of_tokens(model, Asker(tokenizer, convention).answers())
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = _new_head(convention, backbone.config.hidden_size).to(backbone.device, backbone.dtype)
        return cls(backbone, head, tokenizer, convention)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write backbone, head, tokenizer and convention to a folder that `from_pretrained` reads."""
        folder = Path(folder)
        self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = {f"{self.convention.weights}.{n}": t.contiguous() for n, t in self.head.state_dict().items()}
        safetensors.torch.save_file(state, folder / "head.safetensors")
        write_convention(folder, self.convention)

    @override
    def start(self, task: Task) -> Prefix:
        """Nothing read; the task's instruction is the question."""
        return Prefix(question=task.instruction)

    @override
    def extend(
        self, carries: Sequence[Prefix], steps: Sequence[Sequence[Thought]]
    ) -> tuple[list[Prefix], list[Judgement]]:
        """Judgements are `ScoredJudgement`s of the convention's kind. Only what is new is read."""
        asked: list[tuple[Asked, list[int]]] = []
        requests: list[_Request] = []
        for carry, new in zip(carries, steps, strict=True):
            whole = self.asker.ask(carry.question, (*carry.steps, *(step.text for step in new)))
            if tuple(whole.tokens[: len(carry.tokens)]) != carry.tokens:
                raise TraceError(
                    f"the tokens of the first {len(carry.steps)} steps change when {new[0].text[:40]!r} follows; "
                    f"expected a step that begins where a token does"
                )
            reads = [] if carry.full else [r for r in whole.reads[len(carry.steps) :] if r < self.context]
            asked.append((whole, reads))
            past = len(carry.tokens) if self._remembers else 0
            until = reads[-1] + 1 if reads else past
            requests.append(_Request(whole.tokens[past:until], [read - past for read in reads], carry.memory))
        answers = self._read(requests, remember=self._remembers)
        after, judgements = [], list[Judgement]()
        for carry, new, (whole, reads), (scores, memory) in zip(carries, steps, asked, answers, strict=True):
            judgement, potential = self._judgement(scores, len(new), carry.potential)
            judgements.append(judgement)
            after.append(
                Prefix(
                    question=carry.question,
                    steps=(*carry.steps, *(step.text for step in new)),
                    tokens=tuple(whole.tokens[: reads[-1] + 1]) if reads else carry.tokens,
                    potential=potential,
                    full=carry.full or len(reads) < len(new),
                    memory=memory if reads else carry.memory,
                )
            )
        return after, judgements

    @override
    def judge(self, task: Task, steps: Sequence[Thought]) -> ScoredJudgement:
        """One forward for the whole solution."""
        return self.judge_all([(task, steps)])[0]

    @override
    def judge_all(self, traces: Sequence[tuple[Task, Sequence[Thought]]]) -> list[ScoredJudgement]:
        """One forward for each, those of like length together."""
        requests: list[_Request] = []
        for task, steps in traces:
            whole = self.asker.ask(task.instruction, [step.text for step in steps])
            reads = [read for read in whole.reads if read < self.context]
            requests.append(_Request(whole.tokens[: reads[-1] + 1] if reads else [], reads))
        answers = self._read(requests, remember=False)
        return [
            self._judgement(scores, len(steps), 1.0)[0] for (scores, _), (_, steps) in zip(answers, traces, strict=True)
        ]

    def _judgement(
        self, scores: Float[np.ndarray, " judged"], length: int, potential: float
    ) -> tuple[ScoredJudgement, float]:
        """The judgement on `length` steps of which the first were scored, and the potential to go on from."""
        self.dropped += length - len(scores)
        missing = np.full(length - len(scores), np.nan)
        chained = self.convention.kind is ScoreKind.CORRECTNESS
        potentials = potential * np.cumprod(scores) if chained else scores
        judgement = ScoredJudgement(
            potential=np.concatenate([potentials, missing]),
            spread=np.concatenate([np.zeros(len(scores)), missing]),
            judged=np.arange(length) < len(scores),
            score=np.concatenate([scores, missing]),
            kind=self.convention.kind,
        )
        return judgement, float(potentials[-1]) if len(scores) else potential

    @torch.inference_mode()
    def _read(
        self, requests: Sequence[_Request], *, remember: bool
    ) -> list[tuple[Float[np.ndarray, " reads"], Memory]]:
        """Scores in [0, 1] of each request's reads, and its memory; those with nothing to read cost nothing."""
        answers: list[tuple[Float[np.ndarray, " reads"], Memory]] = [(np.zeros(0), r.memory) for r in requests]
        for batch in self._batches(requests):
            picked = [requests[i] for i in batch]
            logits, memories = self._logits(picked, remember=remember)
            scores = logits.double().sigmoid().cpu().numpy()
            bounds = np.cumsum([len(r.reads) for r in picked])[:-1]
            for i, of_request, memory in zip(batch, np.split(scores, bounds), memories, strict=True):
                answers[i] = (of_request, memory)
            self.usage.calls += len(picked)
            self.usage.prompt_tokens += sum(len(r.new) for r in picked)
        return answers

    def _batches(self, requests: Sequence[_Request]) -> Iterator[list[int]]:
        """Indices of requests of like length, as many at once as `batch_tokens` allows."""
        order = sorted((i for i, r in enumerate(requests) if r.reads), key=lambda i: -len(requests[i].new))
        batch: list[int] = []
        for i in order:
            longest = len(requests[batch[0]].new) if batch else 0
            past = max([requests[i].past, *(requests[j].past for j in batch)])
            wasteful = len(batch) * longest > self.batch_tokens // 8 and len(requests[i].new) < 0.75 * longest
            if batch and (wasteful or (len(batch) + 1) * (longest + past) > self.batch_tokens):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _logits(
        self, requests: Sequence[_Request], *, remember: bool = False
    ) -> tuple[Float[Tensor, " reads"], list[Memory]]:
        """Log-odds of right at every read of every request, in order, and the memories after the last."""
        hidden, memories = self._hidden(requests, remember=remember)
        return self._log_odds(hidden), memories

    def _log_odds(self, hidden: Float[Tensor, "reads width"]) -> Float[Tensor, " reads"]:
        """Of right, by the head."""
        output = self.head(hidden).float()
        cap = getattr(self.backbone.config, "final_logit_softcapping", None)
        if cap and self.convention.reading == "tokens":
            output = cap * torch.tanh(output / cap)
        return output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]

    def _hidden(
        self, requests: Sequence[_Request], *, remember: bool = False
    ) -> tuple[Float[Tensor, "reads width"], list[Memory]]:
        """What the backbone thinks at every read of every request, in order, and the memories after the last."""
        device = self.backbone.device
        longest = max(len(r.new) for r in requests)
        pasts = [r.past for r in requests]
        past = max(pasts)
        ids = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, request in enumerate(requests):
            ids[row, : len(request.new)] = torch.tensor(request.new)
        settings: dict[str, Any] = {}
        if past:
            # Pasts end together, so that what is new follows them directly; what is new begins together.
            mask = torch.ones(len(requests), past + longest, dtype=torch.long)
            for row, length in enumerate(pasts):
                mask[row, : past - length] = 0
            settings["attention_mask"] = mask.to(device)
            settings["position_ids"] = (torch.tensor(pasts)[:, None] + torch.arange(longest)).to(device)
            settings["past_key_values"] = self._joined(requests, past)
        # Without a past, padding stands to the right only, where causal attention never looks: no mask, the fast path.
        answer = self.backbone(input_ids=ids.to(device), use_cache=remember, **settings)
        rows = torch.tensor([row for row, r in enumerate(requests) for _ in r.reads])
        columns = torch.tensor([read for r in requests for read in r.reads])
        hidden = answer.last_hidden_state[rows.to(device), columns.to(device)]
        if not remember:
            return hidden, [()] * len(requests)
        layers = answer.past_key_values.layers
        return hidden, [
            tuple(
                (
                    layer.keys[row, :, past - pasts[row] : past + len(request.new)].clone(),
                    layer.values[row, :, past - pasts[row] : past + len(request.new)].clone(),
                )
                for layer in layers
            )
            for row, request in enumerate(requests)
        ]

    def _joined(self, requests: Sequence[_Request], past: int) -> Any:
        """One cache of all memories, padded at the left."""
        transformers = import_transformers()
        cache = transformers.DynamicCache()
        template = next(r.memory for r in requests if r.memory)
        for layer, (keys, values) in enumerate(template):
            joined = []
            for part, like in enumerate((keys, values)):
                stack = like.new_zeros(len(requests), like.shape[0], past, like.shape[2])
                for row, request in enumerate(requests):
                    if request.memory:
                        stack[row, :, past - request.past :] = request.memory[layer][part]
                joined.append(stack)
            cache.update(*joined, layer)
        return cache

    @torch.inference_mode()
    def _check_causal(self) -> None:
        ids = torch.tensor([[0, 1, 0], [0, 1, 1]], device=self.backbone.device)
        hidden = self.backbone(input_ids=ids).last_hidden_state[:, :2].float()
        if not torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-4):
            raise CheckpointError(
                f"{type(self.backbone).__name__} sees later tokens, so that live and offline would differ; expected a "
                f"causal model"
            )


class DisORM:
    """Outcome judge (Multi-RM, arXiv 2510.00492): P(the final answer is right), read once, after the last step.

    Only a `Judge`: of a prefix it says nothing. Judges the last step and abstains on the others; its number is a value,
    so that `grm.aggregate.last` takes it.
    """

    def __init__(self, network: DiscriminativeJudge) -> None:
        """Takes over a step judge's network, to be fitted with `outcome_labels`."""
        self.network = network

    @property
    def usage(self) -> Usage:
        """The network's."""
        return self.network.usage

    def judge(self, task: Task, steps: Sequence[Thought]) -> ScoredJudgement:
        """Abstains also on the last step if the solution does not fit the context."""
        return self.judge_all([(task, steps)])[0]

    def judge_all(self, traces: Sequence[tuple[Task, Sequence[Thought]]]) -> list[ScoredJudgement]:
        """One forward for each."""
        return [_last_only(judgement) for judgement in self.network.judge_all(traces)]


def _last_only(judgement: ScoredJudgement) -> ScoredJudgement:
    judged = judgement.judged & (np.arange(len(judgement)) == len(judgement) - 1)
    score = np.where(judged, judgement.score, np.nan)
    return ScoredJudgement(
        potential=score, spread=np.where(judged, 0.0, np.nan), judged=judged, score=score, kind=ScoreKind.VALUE
    )


def labels_until_error(labels: Sequence[float | None]) -> tuple[float | None, ...]:
    """The labels up to the first below 1/2, None after it: what follows an error is not known to be right or wrong."""
    first = next((i for i, label in enumerate(labels) if label is not None and label < 0.5), len(labels))
    return tuple(label if i <= first else None for i, label in enumerate(labels))


def outcome_labels(steps: Sequence[str], *, right: bool) -> tuple[float | None, ...]:
    """Whether the answer is right, at the last of T steps: what `DisORM` learns from. `TraceError` for no steps."""
    if not steps:
        raise TraceError("a solution without steps has no last step to label; expected at least one")
    return (*(None for _ in steps[1:]), float(right))


def fit_judge(
    judge: DiscriminativeJudge,
    examples: Sequence[LabelledSolution],
    settings: FitSettings | None = None,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train backbone and head on labelled steps; returns the loss at the end, in nats per step. Changes the judge.

    Start from a network that knows the language (`DiscriminativeJudge.on_top_of` a trained one). A correctness judge
    does not learn from the steps after an error (`labels_until_error`); a value judge learns from all.
    """
    return judge_fit(judge, examples, settings).run(progress=progress)


def judge_fit(
    judge: DiscriminativeJudge, examples: Sequence[LabelledSolution], settings: FitSettings | None = None
) -> Fit[Any]:
    """The fit that `fit_judge` runs, for those who want to interrupt and resume it.

    The loss is the cross-entropy of soft labels, the mean over labelled steps. Labels beyond the context are left out.
    Raises `TraceError` if no label is left.
    """
    drilled: list[tuple[_Request, list[float]]] = []
    for example in examples:
        labels = (
            labels_until_error(example.labels) if judge.convention.kind is ScoreKind.CORRECTNESS else example.labels
        )
        asked = judge.asker.ask(example.prompt, example.steps)
        if len(asked.reads) != len(labels):
            raise TraceError(f"{len(asked.reads)} tags for {len(labels)} labels; expected one tag per label")
        known = [(read, float(q)) for read, q in zip(asked.reads, labels, strict=True) if q is not None]
        known = [(read, q) for read, q in known if read < judge.context]
        if known:
            reads = [read for read, _ in known]
            drilled.append((_Request(asked.tokens[: reads[-1] + 1], reads), [q for _, q in known]))
    if not drilled:
        raise TraceError(f"none of {len(examples)} examples has a label within the context; expected at least one")

    def loss(batch: Sequence[tuple[_Request, list[float]]]) -> Float[Tensor, ""]:
        logits, _ = judge._logits([request for request, _ in batch])
        wanted = torch.tensor([q for _, labels in batch for q in labels], device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, wanted)

    return Fit(judge.network, loss, drilled, settings)


def _new_head(convention: Convention, width: int) -> nn.Module:
    outputs = 1 if convention.reading == "scalar" else 2
    if convention.head == "mlp":
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    return nn.Linear(width, outputs)


def _head_of_tokens(model: Any, tokens: tuple[int, int]) -> nn.Linear:
    """The language model's own head, cut to two tokens."""
    whole = model.get_output_embeddings()
    head = nn.Linear(whole.in_features, len(tokens), dtype=whole.weight.dtype, device=whole.weight.device)
    with torch.no_grad():
        head.weight.copy_(whole.weight[list(tokens)])
        head.bias.copy_(torch.zeros(len(tokens)) if whole.bias is None else whole.bias[list(tokens)])
    return head


def _load_head(head: nn.Module, source: str | Path, prefix: str, revision: str | None) -> None:
    """Load the head's weights strictly from a checkpoint's safetensors. Raises `CheckpointError` without them."""
    from transformers.utils.hub import cached_file

    def locate(name: str) -> str | None:
        return cached_file(str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False)

    wanted = {f"{prefix}.{name}": name for name in head.state_dict()}
    names = ["head.safetensors", "model.safetensors"]
    index = locate("model.safetensors.index.json")
    if index is not None:
        by_weight = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names += sorted({by_weight[name] for name in wanted if name in by_weight})
    state: dict[str, Tensor] = {}
    for path in filter(None, map(locate, names)):
        with safetensors.safe_open(path, "pt") as file:
            state |= {wanted[name]: file.get_tensor(name) for name in wanted.keys() & set(file.keys())}
    missing = sorted(set(wanted.values()) - state.keys())
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if prefix == "score" and missing == ["bias"]:  # some token classifiers have none
        state["bias"], missing = torch.zeros(shapes["bias"]), []
    misshapen = [name for name, tensor in state.items() if tuple(tensor.shape) != shapes[name]]
    if missing or misshapen:
        raise CheckpointError(
            f"{str(source)!r} lacks the head's weights {[f'{prefix}.{n}' for n in missing]}, or has them in another "
            f"shape ({misshapen}); expected a judge of this convention, not a bare language model"
        )
    head.load_state_dict(state, strict=True)
