"""The compact multi-view GRM: task text, goal picture and any number of named cameras in, progress out.

Every view passes one shared encoder, is tagged with its camera's name and pooled over the views that are there. From
the features of four moments (initial, goal, before, after) and the task text, the hop head answers how much of the
remaining way lies between before and after, as a distribution over 41 bins (resolution 0.05); the success head answers
whether after shows the task done. A frame is encoded once; the three perspectives of `grm.fusion` and every single view
are further questions to the small head, and their disagreement is the spread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import CheckpointError, TraceError
from ..fusion import Fuser, MeanFusion, is_cyclic
from ..reward import Frame, PerspectiveJudgement, ProcessReward, Task
from .backbone import HashedText, build_backbone
from .checkpoint import load_weights, locate, read_config, save_checkpoint

KIND = "multiview-grm"
_CHUNK = 256  # frames encoded at once; bounds the memory of offline judging


@dataclass(frozen=True, slots=True)
class Architecture:
    """What `config.json` says of the network's shape."""

    backbone: str = "compact"
    image_size: int = 64
    """Height and width that views are resized to, in pixels."""
    features: int = 128
    bins: int = 41
    """Hop bins, evenly spaced over [-1, 1]; 41 is a resolution of 0.05."""
    text_features: int = 64
    text_buckets: int = 4096


class MultiViewNetwork(nn.Module):
    """The trainable part. Shapes: B batch, V views, D features, K bins."""

    centres: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.encoder = build_backbone(a.backbone, a.features)
        self.names = HashedText(512, 32)
        self.token = nn.Sequential(nn.LayerNorm(a.features), nn.SiLU())
        self.name_shift = nn.Linear(32, a.features)
        self.gate = nn.Linear(a.features, 1)
        self.text = HashedText(a.text_buckets, a.text_features)
        self.no_goal = nn.Parameter(torch.zeros(a.features))
        self.hop = nn.Sequential(
            nn.Linear(6 * a.features + a.text_features, 256),
            nn.LayerNorm(256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, a.bins),
        )
        self.done = nn.Sequential(
            nn.Linear(4 * a.features + a.text_features, 128), nn.LayerNorm(128), nn.SiLU(), nn.Linear(128, 1)
        )
        self.register_buffer("centres", torch.linspace(-1, 1, a.bins), persistent=False)

    def encode(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Images (B, V, 3, h, w) in [0, 1] of the V named cameras to tokens (B, V, D)."""
        size = self.architecture.image_size
        batch, views = images.shape[:2]
        flat = images.flatten(0, 1)
        if flat.shape[-2:] != (size, size):
            flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
        features = self.encoder(flat).unflatten(0, (batch, views))
        return self.token(features + self.name_shift(self.names(list(names))))

    def pool(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens (…, V, D) to (…, D): a gated mean over the views that are `present` (…, V)."""
        weights = self.gate(tokens).squeeze(-1).masked_fill(~present, -torch.inf).softmax(-1)
        return (weights.nan_to_num(0.0).unsqueeze(-1) * tokens).sum(-2)

    def hop_logits(self, text: Tensor, init: Tensor, goal: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits (…, K) of the hop from before to after; every feature (…, D), text (…, E)."""
        return self.hop(torch.cat([init, goal, before, after, after - before, goal - after, text], -1))

    def success_logit(self, text: Tensor, init: Tensor, goal: Tensor, after: Tensor) -> Tensor:
        """Logit (…) of the task being done in after."""
        return self.done(torch.cat([init, goal, after, goal - after, text], -1)).squeeze(-1)

    def expected_hop(self, logits: Tensor) -> Tensor:
        """Mean (…) of the distribution, in [-1, 1]."""
        return (logits.softmax(-1) * self.centres).sum(-1).clamp(-1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame after the encoder: by view, and all views pooled. Member 0 of `features` is the pool."""

    names: tuple[str, ...]
    tokens: Float[np.ndarray, "v d"]

    def __post_init__(self) -> None:
        self.tokens.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """What the GRM remembers of a prefix: its task, three frames' features and the last potential."""

    task: Task
    goal: _Seen | None
    initial: _Seen | None = None
    previous: _Seen | None = None
    potential: float = 0.0
    cyclic: bool = False


class GRM(ProcessReward[Frame, Carry]):
    """The General Reward Model. `GRM.from_pretrained()` loads the packaged one.

    Args:
        network: the trained network; it is put in evaluation mode.
        fuser: how three perspectives become one potential.
    """

    def __init__(self, network: MultiViewNetwork, *, fuser: Fuser | None = None) -> None:
        self.network = network.eval()
        self.fuser = fuser or MeanFusion()

    @classmethod
    def from_pretrained(cls, source: str | Path = "", *, fuser: Fuser | None = None, device: str = "cpu") -> Self:
        """Load a checkpoint: the packaged one, a folder's, or the Hub's `owner/name`. Raises `CheckpointError`."""
        folder = locate(source, packaged_checkpoint())
        config = read_config(folder, KIND)
        try:
            architecture = Architecture(**config["architecture"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}/config.json does not describe a network ({type(error).__name__}: {error}); expected an "
                f"`architecture` with the fields {', '.join(field.name for field in fields(Architecture))}"
            ) from error
        network = MultiViewNetwork(architecture)
        load_weights(folder, network)
        return cls(network.to(device), fuser=fuser)

    def save_pretrained(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write config.json and model.safetensors; `card` says how it was trained and how well it does."""
        config = {"kind": KIND, "architecture": asdict(self.network.architecture), "card": dict(card or {})}
        save_checkpoint(Path(folder), self.network, config)

    def start(self, task: Task) -> Carry:
        """Encode the goal picture once."""
        if task.goal is None or not task.goal.views:
            return Carry(task, None)
        return Carry(task, self._see([task.goal])[0])

    def extend(
        self, carries: Sequence[Carry], steps: Sequence[Sequence[Frame]]
    ) -> tuple[list[Carry], list[PerspectiveJudgement]]:
        """Encode the new frames of all prefixes together, ask all questions together, then fuse step by step."""
        if len(carries) != len(steps):
            raise TraceError(f"{len(carries)} carries for {len(steps)} sequences of steps; expected one each")
        seen = iter(self._see([frame for prefix in steps for frame in prefix]))
        prefixes = [[next(seen) for _ in prefix] for prefix in steps]
        questions: list[_Question] = []
        for carry, frames in zip(carries, prefixes, strict=True):
            initial, previous = carry.initial, carry.previous
            for frame in frames:
                if frame.names:
                    initial = initial or frame
                    questions.append(_Question(carry.task, carry.goal, initial, previous or frame, frame))
                    previous = frame
        answers = iter(self._answer(questions))
        results = [self._fuse(carry, frames, answers) for carry, frames in zip(carries, prefixes, strict=True)]
        return [carry for carry, _ in results], [judgement for _, judgement in results]

    def judge(self, task: Task, steps: Sequence[Frame]) -> PerspectiveJudgement:
        """See `ProcessReward`; one pass of the encoder over all frames."""
        _, [judgement] = self.extend([self.start(task)], [steps])
        return judgement

    def hops(
        self, task: Task, initial: Frame, before: Sequence[Frame], after: Sequence[Frame]
    ) -> Float[np.ndarray, " n"]:
        """The bare question, n times: the hop in [-1, 1] from each before to its after; NaN where no view is shared."""
        if len(before) != len(after):
            raise TraceError(f"{len(before)} befores for {len(after)} afters; expected one each")
        [first, *seen] = self._see([initial, *before, *after])
        goal = self.start(task).goal
        questions = [
            _Question(task, goal, first, b, a) for b, a in zip(seen[: len(before)], seen[len(before) :], strict=True)
        ]
        return np.array([answer.hops[0, 0] for answer in self._answer(questions)])

    def _fuse(self, carry: Carry, frames: list[_Seen], answers) -> tuple[Carry, PerspectiveJudgement]:
        initial, previous, potential, cyclic = carry.initial, carry.previous, carry.potential, carry.cyclic
        columns = {
            name: np.full(len(frames), np.nan)
            for name in ("potential", "spread", "incremental", "forward", "backward", "success")
        }
        for t, frame in enumerate(frames):
            if not frame.names:
                continue  # nothing seen: abstain, remember everything as it was
            answer: _Answer = next(answers)
            if initial is None:
                initial, potential = frame, 0.0
                cyclic = bool(answer.init_to_goal is not None and is_cyclic(answer.init_to_goal))
                fused, spread = 0.0, float(np.nanstd([0.0, 0.0, *np.clip(1 + answer.hops[2], 0, 1)]))
                incremental = 0.0
            else:
                hops = answer.hops.copy()
                if cyclic:
                    hops[1:] = np.nan
                now, deviation = self.fuser(np.asarray(potential), hops[0], hops[1], hops[2])
                fused, spread = float(now), float(deviation)
                hop = hops[0, 0]
                incremental = potential + hop * (1 - potential if hop >= 0 else potential)
            potential, previous = fused, frame
            values = (fused, spread, incremental, answer.hops[1, 0], 1 + answer.hops[2, 0], answer.success)
            for column, value in zip(columns.values(), values, strict=True):
                column[t] = value
        end = Carry(carry.task, carry.goal, initial, previous, potential, cyclic)
        return end, PerspectiveJudgement(**columns, judged=~np.isnan(columns["potential"]))

    @torch.inference_mode()
    def _see(self, frames: Sequence[Frame]) -> list[_Seen]:
        """Encode frames, those with the same cameras and sizes in one batch."""
        groups: dict[tuple, list[int]] = {}
        for index, frame in enumerate(frames):
            names = tuple(sorted(frame.views))
            groups.setdefault((names, *(frame.views[n].shape for n in names)), []).append(index)
        seen: list[_Seen | None] = [None] * len(frames)
        size, width = self.network.architecture.image_size, self.network.architecture.features
        device = self.network.no_goal.device
        for (names, *_), indices in groups.items():
            if not names:
                for index in indices:
                    seen[index] = _Seen((), np.zeros((0, width), np.float32))
                continue
            for begin in range(0, len(indices), _CHUNK):
                chunk = indices[begin : begin + _CHUNK]
                per_view = []
                for name in names:
                    stack = torch.from_numpy(np.stack([frames[i].views[name] for i in chunk])).to(device)
                    images = stack.permute(0, 3, 1, 2).float() / 255
                    if images.shape[-2:] != (size, size):
                        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
                    per_view.append(images)
                tokens = self.network.encode(torch.stack(per_view, 1), names).cpu().numpy()
                for index, token in zip(chunk, tokens, strict=True):
                    seen[index] = _Seen(names, token.copy())
        return [s for s in seen if s is not None]

    @torch.inference_mode()
    def _answer(self, questions: Sequence["_Question"]) -> list["_Answer"]:
        """All hops of all questions in one pass of the head per set of cameras."""
        answers: list[_Answer | None] = [None] * len(questions)
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, question in enumerate(questions):
            groups.setdefault(question.names, []).append(index)
        for names, indices in groups.items():
            for begin in range(0, len(indices), _CHUNK):
                chunk = indices[begin : begin + _CHUNK]
                for index, answer in zip(chunk, self._ask(names, [questions[i] for i in chunk]), strict=True):
                    answers[index] = answer
        return [a for a in answers if a is not None]

    def _ask(self, names: tuple[str, ...], questions: Sequence["_Question"]) -> list["_Answer"]:
        network, device = self.network, self.network.no_goal.device
        batch, members = len(questions), 1 + len(names)

        def gather(frames: Sequence[_Seen | None]) -> tuple[Tensor, Tensor]:
            """Features (B, M, D) of each member and whether it saw anything (B, M)."""
            tokens = np.zeros((batch, len(names), network.architecture.features), np.float32)
            present = np.zeros((batch, len(names)), bool)
            for b, frame in enumerate(frames):
                for v, name in enumerate(names):
                    if frame is not None and name in frame.names:
                        tokens[b, v], present[b, v] = frame.tokens[frame.names.index(name)], True
            stack, there = torch.from_numpy(tokens).to(device), torch.from_numpy(present).to(device)
            pooled = network.pool(stack, there)
            return torch.cat([pooled[:, None], stack], 1), torch.cat([there.any(1, keepdim=True), there], 1)

        initial, has_initial = gather([q.initial for q in questions])
        before, has_before = gather([q.before for q in questions])
        after, has_after = gather([q.after for q in questions])
        goal, has_goal = gather([q.goal for q in questions])
        goal = torch.where(has_goal[..., None], goal, network.no_goal)
        text = network.text([q.task.instruction for q in questions])[:, None].expand(-1, members, -1)
        initials = torch.stack([initial, initial, initial, initial])
        goals, texts = torch.stack([goal] * 4), torch.stack([text] * 4)
        befores, afters = torch.stack([before, initial, goal, initial]), torch.stack([after, after, after, goal])
        hops = network.expected_hop(network.hop_logits(texts, initials, goals, befores, afters)).cpu().numpy()
        able = torch.stack([has_before & has_after, has_after, has_goal & has_after, has_goal]) & has_initial
        hops = np.where(able.cpu().numpy(), hops.astype(np.float64), np.nan)
        success = network.success_logit(text[:, 0], initial[:, 0], goal[:, 0], after[:, 0]).sigmoid().cpu().numpy()
        return [
            _Answer(hops[:3, b], float(success[b]), None if np.isnan(hops[3, b, 0]) else float(hops[3, b, 0]))
            for b in range(batch)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    task: Task
    goal: _Seen | None
    initial: _Seen
    before: _Seen
    after: _Seen

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras of the prefix; a view that one frame lacks abstains wherever that frame is asked about."""
        return tuple(sorted({*self.initial.names, *self.before.names, *self.after.names}))


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    hops: Float[np.ndarray, "3 members"]
    success: float
    init_to_goal: float | None


def packaged_checkpoint() -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(files("grm.models").joinpath("pretrained")))
