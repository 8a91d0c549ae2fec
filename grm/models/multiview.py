"""The compact multi-view GRM: task text, goal picture and any number of named cameras in, progress out.

Every view passes one shared encoder and is tagged with its camera's name; several gated means over the views that are
there make the frame's feature. From the features of four moments (initial, goal, before, after) and the task text, an
ensemble of hop heads answers how much of the remaining way lies between before and after, each as a distribution over
41 bins (resolution 0.05). A second ensemble answers how far along after is, seen without a before, and beside it a
head whether after shows the task done. Two more heads answer whether instruction and pictures belong together, which
scales the potential of an adapted network, and whether a picture shows anything at all. A frame is encoded once; the
four perspectives of `grm.fusion` are further questions to the small heads. Their disagreement, and that of the members,
is the spread, calibrated on validation episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import CheckpointError, TraceError
from ..fusion import Fuser, LeastFusion, is_cyclic
from ..reward import BLACK, Frame, PerspectiveJudgement, ProcessReward, Task
from .backbone import HashedText, build_backbone
from .checkpoint import load_weights, locate, read_config, save_checkpoint
from .folded import FoldedHeads

KIND = "multiview-grm"
FEATURE_SCALE = 0.15
"""Of the features that policies act on. Over many scenes one varies by about .2, in one demonstration often by much
less, and a learner that divides by what it saw in one demonstration would see the next scene ten deviations away.
Scaled so, what varies by less than .2 meets the floor of such divisions, .03 (`policies.bc`), as centimetres do."""
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
    pools: int = 3
    """Gated means over a frame's views, side by side."""
    members: int = 5
    """Hop heads of the ensemble; each learns from its own share of the episodes."""


class MultiViewNetwork(nn.Module):
    """The trainable part. Shapes: B batch, V views, D features of a view, P = pools * D of a frame, M members, K bins.

    A new one takes every picture for usable.
    """

    centres: Tensor
    calibration: Tensor
    gated: Tensor
    """1 once adapted to a task: only then does what the fits head says scale the potential (docs/decisions/0006)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        frame = self.frame_features = a.pools * a.features
        self.encoder = build_backbone(a.backbone, a.features)
        self.names = HashedText(512, 32)
        self.token = nn.Sequential(nn.LayerNorm(a.features), nn.SiLU())
        self.name_shift = nn.Linear(32, a.features)
        self.usable = nn.Linear(a.features, 1)
        self.gate = nn.Linear(a.features, a.pools)
        self.text = HashedText(a.text_buckets, a.text_features)
        self.no_goal = nn.Parameter(torch.zeros(frame))
        self.hop = nn.Sequential(nn.Linear(6 * frame + a.text_features, 256), nn.LayerNorm(256), nn.SiLU())
        self.members = nn.ModuleList(
            nn.Sequential(nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, a.bins)) for _ in range(a.members)
        )
        self.standing = nn.Sequential(nn.Linear(4 * frame + a.text_features, 256), nn.LayerNorm(256), nn.SiLU())
        self.absolute = nn.Sequential(nn.Linear(256, 128), nn.SiLU(), nn.Linear(128, a.members * a.bins))
        self.done = nn.Linear(256, 1)
        self.fits = nn.Sequential(
            nn.Linear(3 * frame + a.text_features, 128), nn.LayerNorm(128), nn.SiLU(), nn.Linear(128, 1)
        )
        nn.init.zeros_(self.usable.weight)
        nn.init.constant_(self.usable.bias, 2.0)
        self.register_buffer("centres", torch.linspace(-1, 1, a.bins), persistent=False)
        self.register_buffer("calibration", torch.tensor([0.0, 1.0]))
        self.register_buffer("gated", torch.tensor(0.0))

    def encode(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Images (B, V, 3, h, w) in [0, 1] of the V named cameras to tokens (B, V, D)."""
        return self.tokens(images, self.shift(names))

    def shift(self, names: Sequence[str]) -> Tensor:
        """What the names of V cameras add to the features of what they show (V, D)."""
        return self.name_shift(self.names(list(names)))

    def tokens(self, images: Tensor, shift: Tensor) -> Tensor:
        """`encode`, given the names' `shift` (V, D)."""
        size = self.architecture.image_size
        batch, views = images.shape[:2]
        flat = images.flatten(0, 1)
        if flat.shape[-2:] != (size, size):
            flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
        features = self.encoder(flat).unflatten(0, (batch, views))
        return self.token(features + shift)

    def pool(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens (…, V, D) to (…, P): gated means over the views that are `present` (…, V); 0 where none is."""
        weights = self.gate(tokens).masked_fill(~present[..., None], -torch.inf).softmax(-2).nan_to_num(0.0)
        return (weights.transpose(-1, -2) @ tokens).flatten(-2)

    def usable_logit(self, tokens: Tensor) -> Tensor:
        """Logit (…) of a token (…, D) being of a picture that shows something, not of a black or broken one."""
        return self.usable(tokens).squeeze(-1)

    def hop_logits(self, text: Tensor, init: Tensor, goal: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Logits (…, M, K) of the hop from before to after; every feature (…, P), text (…, E); shapes broadcast.

        The first layer is linear in its inputs (init, goal, before, after, after - before, goal - after, text), so
        that each of them is multiplied once, and not once per question that it is part of.
        """
        first, width = cast(nn.Linear, self.hop[0]), init.shape[-1]
        i, g, b, a, change, rest, t = first.weight.split([width] * 6 + [text.shape[-1]], 1)
        shared = F.linear(after, a + change - rest) + F.linear(before, b - change)
        shared = shared + F.linear(init, i) + F.linear(goal, g + rest) + F.linear(text, t, first.bias)
        shared = self.hop[1:](shared)
        return torch.stack([member(shared) for member in self.members], -2)

    def absolute_logits(self, text: Tensor, init: Tensor, goal: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of after's absolute progress (…, M, K) and of the task being done in it (…); shapes as above.

        The progress bins are evenly spaced over [0, 1].
        """
        shared = self.stand(text, init, goal, after)
        return self.absolute(shared).unflatten(-1, (-1, len(self.centres))), self.done(shared).squeeze(-1)

    def stand(self, text: Tensor, init: Tensor, goal: Tensor, after: Tensor) -> Tensor:
        """What both heads of `absolute_logits` read (…, 256); shapes as there."""
        first, width = cast(nn.Linear, self.standing[0]), init.shape[-1]
        i, g, a, rest, t = first.weight.split([width] * 4 + [text.shape[-1]], 1)
        shared = F.linear(after, a - rest) + F.linear(init, i) + F.linear(goal, g + rest)
        return self.standing[1:](shared + F.linear(text, t, first.bias))

    def fits_logit(self, text: Tensor, init: Tensor, goal: Tensor) -> Tensor:
        """Logit (…) of instruction, initial frame and goal picture being of one and the same task."""
        return self.fits(torch.cat([init, goal, goal - init, text], -1)).squeeze(-1)

    def expected_hop(self, logits: Tensor) -> Tensor:
        """Mean (…) of the distribution, in [-1, 1]."""
        return (logits.softmax(-1) * self.centres).sum(-1).clamp(-1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame after the encoder: the cameras that showed something, and the feature of what they showed."""

    names: tuple[str, ...]
    feature: Float[np.ndarray, " p"]
    moment: Float[np.ndarray, " both+hidden"]
    """What it is to a question as after and as before, see `FoldedHeads.moment`."""

    def __post_init__(self) -> None:
        self.feature.setflags(write=False)
        self.moment.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """What the GRM remembers of a prefix: its task, three frames' features and the last potential."""

    task: Task
    goal: _Seen | None
    initial: _Seen | None = None
    anchor: Float[np.ndarray, " both"] = field(default_factory=lambda: np.zeros(0, np.float32))
    """What instruction, goal and initial frame are to every question, see `FoldedHeads.anchor`; empty until then."""
    previous: _Seen | None = None
    potential: float = 0.0
    cyclic: bool = False
    fit: float = 1.0


class GRM(ProcessReward[Frame, Carry]):
    """The General Reward Model. `GRM.from_pretrained()` loads the packaged one.

    Args:
        network: the trained network; it is put in evaluation mode.
        fuser: how the perspectives become one potential; `LeastFusion()` if None.
    """

    def __init__(self, network: MultiViewNetwork, *, fuser: Fuser | None = None) -> None:
        self.network = network.eval()
        self.fuser = fuser or LeastFusion()
        self._folded: FoldedHeads | None = None

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
                f"`architecture` with the fields {', '.join(f.name for f in fields(Architecture))}"
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
        [goal] = self._see([task.goal])
        return Carry(task, goal if goal.names else None)

    def extend(
        self, carries: Sequence[Carry], steps: Sequence[Sequence[Frame]]
    ) -> tuple[list[Carry], list[PerspectiveJudgement]]:
        """Encode the new frames of all prefixes together, ask all questions together, then fuse step by step."""
        if len(carries) != len(steps):
            raise TraceError(f"{len(carries)} carries for {len(steps)} sequences of steps; expected one each")
        seen = iter(self._see([frame for prefix in steps for frame in prefix]))
        prefixes = [[next(seen) for _ in prefix] for prefix in steps]
        carries = [self._begin(carry, frames) for carry, frames in zip(carries, prefixes, strict=True)]
        questions: list[_Question] = []
        for carry, frames in zip(carries, prefixes, strict=True):
            previous = carry.previous
            for frame in frames:
                if frame.names:
                    questions.append(_Question(carry, previous or frame, frame))
                    previous = frame
        return self._fuse(carries, prefixes, *self._answer(questions))

    def judge(self, task: Task, steps: Sequence[Frame]) -> PerspectiveJudgement:
        """See `ProcessReward`; one pass of the encoder over all frames."""
        _, [judgement] = self.extend([self.start(task)], [steps])
        return judgement

    def features(self, carry: Carry) -> Float[np.ndarray, " p"]:
        """What the frozen encoder saw in the newest frame that showed something, all views in one vector; read-only.

        For policies that act on what the reward is judged from: the frame is encoded once for both. Zeros before the
        first frame. Its length is `network.frame_features`, whatever the number of views, and its scale that of
        positions in metres (`FEATURE_SCALE`).
        """
        if carry.previous is None:
            return np.zeros(self.network.frame_features, np.float32)
        seen = carry.previous.feature * np.float32(FEATURE_SCALE)
        seen.setflags(write=False)
        return seen

    @torch.inference_mode()
    def standing(self, task: Task, frames: Sequence[Frame]) -> Float[np.ndarray, "n h"]:
        """What the success head's logit is linear in, of each frame of one prefix; NaN where a frame shows nothing."""
        network, seen = self.network, self._see(frames)
        carry = self._begin(self.start(task), seen)
        found = np.full((len(frames), network.done.in_features), np.nan)
        if carry.initial is None:
            return found
        device = network.no_goal.device
        goal = network.no_goal if carry.goal is None else torch.tensor(carry.goal.feature, device=device)
        shown = [t for t, frame in enumerate(seen) if frame.names]
        after = torch.from_numpy(np.stack([seen[t].feature for t in shown])).to(device)
        initial = torch.tensor(carry.initial.feature, device=device)
        found[shown] = network.stand(network.text([task.instruction])[0], initial, goal, after).double().cpu().numpy()
        return found

    @torch.inference_mode()
    def success(self, standing: Float[np.ndarray, "n h"]) -> Float[np.ndarray, " n"]:
        """P(done) in [0, 1] of what `standing` gave."""
        done = self.network.done
        return done(torch.as_tensor(standing).to(done.weight)).squeeze(-1).sigmoid().double().cpu().numpy()

    def hops(
        self, task: Task, initial: Frame, before: Sequence[Frame], after: Sequence[Frame]
    ) -> Float[np.ndarray, " n"]:
        """The bare question, n times: the hop in [-1, 1] from each before to its after; NaN where one shows nothing."""
        if len(before) != len(after):
            raise TraceError(f"{len(before)} befores for {len(after)} afters; expected one each")
        [first, *seen] = self._see([initial, *before, *after])
        begun = self._begin(self.start(task), [first])
        pairs = list(zip(seen[: len(before)], seen[len(before) :], strict=True))
        able = np.array([bool(first.names and b.names and a.names) for b, a in pairs], bool)
        hops = np.full(len(pairs), np.nan)
        answers, _ = self._answer([_Question(begun, *pair) for pair, asked in zip(pairs, able, strict=True) if asked])
        hops[able] = answers[0, 0]
        return hops

    def _fuse(
        self,
        carries: Sequence[Carry],
        prefixes: Sequence[Sequence[_Seen]],
        every: Float[np.ndarray, "4 members n"],
        every_success: Float[np.ndarray, " n"],
    ) -> tuple[list[Carry], list[PerspectiveJudgement]]:
        """Step after step, all prefixes at once: NumPy costs as much for eight environments as for one."""
        floor, scale = self.network.calibration.tolist()
        previous = [carry.previous for carry in carries]
        potential, fit = np.array([carry.potential for carry in carries]), np.array([carry.fit for carry in carries])
        cyclic = np.array([carry.cyclic for carry in carries], bool)
        begins = np.cumsum([0, *(len(frames) for frames in prefixes)]).tolist()
        turns: list[list[tuple[int, int, int]]] = [[] for _ in range(max(map(len, prefixes), default=0))]
        asked = 0
        for row, frames in enumerate(prefixes):
            for t, frame in enumerate(frames):
                if frame.names:  # else nothing seen: abstain, remember everything as it was
                    turns[t].append((row, begins[row] + t, asked))
                    asked += 1
        columns = np.full((7, begins[-1]), np.nan)
        for t, turn in enumerate(turns):
            if not turn:
                continue
            rows, places, numbers = np.array(turn).T
            new = np.array([previous[row] is None for row in rows])
            answers, before = every[:, :, numbers], potential[rows]
            usable = answers.copy()
            usable[1:, :, cyclic[rows]] = np.nan
            now, spread = self.fuser(before, *usable)
            hop = answers[0, 0]
            incremental = before + hop * np.where(hop >= 0, 1 - before, before)
            if new.any():
                others = np.concatenate([np.clip(1 + answers[2], 0, 1), answers[3]])
                doubt = np.nanstd(np.concatenate([np.zeros((2, len(rows))), others]), axis=0)
                now, spread, incremental = np.where(
                    new, [np.zeros(len(rows)), doubt, np.zeros(len(rows))], [now, spread, incremental]
                )
            spread = floor + scale * spread
            potential[rows] = now
            for row in rows:
                previous[row] = prefixes[row][t]
            shown = fit[rows] * np.array([now, spread, incremental])
            columns[:, places] = [*shown, answers[1, 0], 1 + answers[2, 0], answers[3, 0], every_success[numbers]]
        ends = [
            Carry(c.task, c.goal, c.initial, c.anchor, previous[row], float(potential[row]), c.cyclic, c.fit)
            for row, c in enumerate(carries)
        ]
        names = ("potential", "spread", "incremental", "forward", "backward", "absolute", "success")
        judgements = []
        for begin, end in pairwise(begins):
            part = dict(zip(names, columns[:, begin:end].copy(), strict=True))
            judgements.append(PerspectiveJudgement(**part, judged=~np.isnan(part["potential"])))
        return ends, judgements

    @torch.inference_mode()
    def _begin(self, carry: Carry, frames: Sequence[_Seen]) -> Carry:
        """The carry with the first of `frames` that shows something as its initial one, unless it has one.

        Asked once per prefix: whether the goal looks like the beginning, and, of a network that was adapted to a task,
        whether it all fits, in [0, 1]. Doubt counts as fitting.
        """
        first = next((frame for frame in frames if frame.names), None)
        if carry.initial is not None or first is None:
            return carry
        network, device = self.network, self.network.no_goal.device
        begun = torch.tensor(first.feature, device=device)
        done = network.no_goal if carry.goal is None else torch.tensor(carry.goal.feature, device=device)
        text = network.text([carry.task.instruction])[0]
        anchor = self._heads.anchor(text, begun, done).cpu().numpy()
        anchor.setflags(write=False)
        fit = float((3 * (network.fits_logit(text, begun, done) + 1)).sigmoid()) if network.gated else 1.0
        hop = network.expected_hop(network.hop_logits(text, begun, done, begun, done)).mean()
        cyclic = carry.goal is not None and bool(is_cyclic(float(hop)))
        return Carry(carry.task, carry.goal, first, anchor, None, carry.potential, cyclic, fit)

    @torch.inference_mode()
    def _see(self, frames: Sequence[Frame]) -> list[_Seen]:
        """Encode frames, those with the same cameras and sizes in one batch."""
        groups: dict[tuple, list[int]] = {}
        for index, frame in enumerate(frames):
            names = tuple(sorted(frame.views))
            groups.setdefault((names, *(frame.views[n].shape for n in names)), []).append(index)
        heads = self._heads
        nothing = _Seen((), np.zeros(self.network.frame_features, np.float32), np.zeros(0, np.float32))
        seen = [nothing] * len(frames)
        device = self.network.no_goal.device
        for (names, *_), indices in groups.items():
            if not names:
                continue
            shift = heads.shift(names)
            for begin in range(0, len(indices), _CHUNK):
                chunk = indices[begin : begin + _CHUNK]
                images = self._images([frames[i] for i in chunk], names, device)
                tokens = self.network.tokens(images, shift)
                lit = images[..., ::4, ::4].amax((-3, -2, -1)) > (BLACK + 0.5) / 255  # a sixteenth of the pixels tells
                usable = (self.network.usable_logit(tokens) > 0) & lit
                pooled = self.network.pool(tokens, usable)
                features, moments = pooled.cpu().numpy(), heads.moment(pooled).cpu().numpy()
                for index, feature, moment, shows in zip(chunk, features, moments, usable.tolist(), strict=True):
                    kept = tuple(name for name, good in zip(names, shows, strict=True) if good)
                    seen[index] = _Seen(kept, feature.copy(), moment.copy()) if kept else nothing
        return seen

    def _images(self, frames: Sequence[Frame], names: Sequence[str], device: torch.device) -> Tensor:
        """(B, V, 3, size, size) in [0, 1]."""
        size = self.network.architecture.image_size

        def load(pictures: list[np.ndarray]) -> Tensor:
            stack = torch.from_numpy(np.concatenate(pictures)).to(device).unflatten(0, (len(pictures), -1))
            # Channels stay last: convolutions are faster so. A product takes half the time of a quotient.
            return stack.permute(0, 3, 1, 2).float().mul_(1 / 255)

        if all(frames[0].views[name].shape == (size, size, 3) for name in names):
            return load([frame.views[name] for frame in frames for name in names]).unflatten(0, (-1, len(names)))
        per_view = []  # large pictures are made small one view at a time
        for name in names:
            images = load([frame.views[name] for frame in frames])
            if images.shape[-2:] != (size, size):
                images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
            per_view.append(images)
        return torch.stack(per_view, 1)

    @torch.inference_mode()
    def _answer(
        self, questions: Sequence["_Question"]
    ) -> tuple[Float[np.ndarray, "4 members n"], Float[np.ndarray, " n"]]:
        """Hops from before, from the initial frame and from the goal, absolute progress, and P(done), of n questions.

        One pass of the heads per chunk; member 0 is the mean over the others.
        """
        chunks = [self._ask(questions[begin : begin + _CHUNK]) for begin in range(0, len(questions), _CHUNK)]
        if not chunks:
            return np.empty((4, 1, 0)), np.empty(0)
        answers, success = zip(*chunks, strict=True)
        return np.concatenate(answers, -1), np.concatenate(success)

    def _ask(
        self, questions: Sequence["_Question"]
    ) -> tuple[Float[np.ndarray, "4 members n"], Float[np.ndarray, " n"]]:
        heads, device = self._heads, self.network.no_goal.device
        known = np.array([q.carry.goal is not None for q in questions])
        anchors = torch.from_numpy(np.stack([q.carry.anchor for q in questions])).to(device)
        moments = [(q.after, q.before, q.carry.initial, q.carry.goal or q.carry.initial) for q in questions]
        seen = torch.from_numpy(np.concatenate([m.moment for column in zip(*moments, strict=True) for m in column]))
        seen = seen.to(device).view(4, len(questions), -1)
        asked, befores = anchors + seen[0, :, : heads.both], seen[1:, :, heads.both :]  # before, initial, goal
        hops = heads.hops((asked[:, : heads.hidden] + befores).flatten(0, 1)).unflatten(0, (3, -1))
        absolute, success = heads.standing(asked[:, heads.hidden :])
        answers = torch.cat([hops, absolute[None]])
        answers = torch.cat([answers.mean(-1, keepdim=True), answers], -1).transpose(1, 2).double().cpu().numpy()
        answers[2, :, ~known] = np.nan
        return answers, success.double().cpu().numpy()

    @property
    def _heads(self) -> FoldedHeads:
        """Folded anew when the network was trained, loaded or moved meanwhile."""
        network = self.network
        if self._folded is None or not self._folded.fresh:
            n = network
            self._folded = FoldedHeads(
                n.hop, n.members, n.standing, n.absolute, n.done, n.centres, names=n.names, name_shift=n.name_shift
            )
        return self._folded


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    carry: Carry
    before: _Seen
    after: _Seen


def packaged_checkpoint() -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(files("grm.models").joinpath("pretrained")))
