"""One readable loop that trains a GRM, from scratch on many tasks or on one demonstration of a new one.

A step draws episodes, a few hop-balanced frames of each, and asks the hop head about *all* ordered pairs among them and
about both anchors: every frame is encoded once and used in many questions. References are swapped only within a task:
the initial frame may come from another episode, the goal comes from another one whenever there is one, so the model
learns that a goal is an example of done and never this clip's own end. The schedule is a function of (seed, step)
alone, so a resumed run draws what an uninterrupted one would have.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.episodes import Episode
from .data.pairs import BalancedPairs, hops_of_pairs
from .errors import CheckpointError, DivergedError, TraceError
from .labels import from_time
from .models.multiview import GRM, MultiViewNetwork


@dataclass(frozen=True)
class TrainSettings:
    """Everything the loop depends on besides data and network."""

    steps: int = 3000
    """Gradient steps."""
    episodes_per_step: int = 16
    frames_per_episode: int = 8
    """Frames drawn from each; every ordered pair among them is a training pair."""
    learning_rate: float = 1e-3
    """Peak, after a short warm-up; it falls to zero by a cosine."""
    weight_decay: float = 0.05
    seed: int = 0
    view_dropout: float = 0.15
    """Chance that an episode of a batch loses a view; at least one stays."""
    goal_dropout: float = 0.1
    """Chance that an episode of a batch has no goal."""
    swap_initial: float = 0.5
    """Chance that the initial frame is another episode's of the same task."""
    shift: int = 3
    """Largest random shift of a view in pixels, one per episode and view."""
    bfloat16: bool = False
    """Run the encoder in bfloat16: a step took 0.6 of the time on a CPU with AMX; slower on CPUs without."""
    focus: float = 0.0
    """Share of each batch drawn from the first task alone: the demonstration's, when adapting with replay."""


@dataclass(frozen=True, slots=True, eq=False)
class _Trace:
    """An episode as the loop needs it: images (t, v, h, w, 3), labels, pairs."""

    task: str
    instruction: str
    names: tuple[str, ...]
    images: np.ndarray
    potential: np.ndarray
    success: np.ndarray
    pairs: BalancedPairs


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """One step's draw: E episodes of K frames, after them E initial and E goal frames, of V views."""

    images: Tensor  # (E, K + 2, V, 3, h, w) in [0, 1]
    present: Tensor  # (E, K + 2, V)
    potential: np.ndarray  # (E, K)
    success: np.ndarray  # (E, K)
    has_goal: np.ndarray  # (E,)
    instructions: list[str]
    names: tuple[str, ...]


class Trainer:
    """Trains a network on labelled episodes; `run` may be interrupted, saved and resumed at any step.

    Raises `TraceError` if there are no episodes, they share no view, or one of them has unknown labels.
    """

    def __init__(self, network: MultiViewNetwork, episodes: Iterable[Episode], settings: TrainSettings) -> None:
        self.network, self.settings = network, settings
        self.traces: list[_Trace] = []
        for episode in episodes:
            names = tuple(sorted(episode.views))
            size = network.architecture.image_size
            images = np.stack([_resize(episode.views[name], size) for name in names], axis=1)
            pairs = BalancedPairs(episode.progress.astype(np.float64))
            self.traces.append(
                _Trace(
                    episode.task,
                    episode.instruction,
                    names,
                    images,
                    episode.progress.astype(np.float64),
                    episode.success,
                    pairs,
                )
            )
        if not self.traces:
            raise TraceError("there are no episodes to train on; expected at least one (see `grm collect`)")
        if len({trace.names for trace in self.traces}) > 1:
            found = sorted({", ".join(trace.names) or "none" for trace in self.traces})
            raise TraceError(f"episodes with different views: {'; '.join(found[:3])}; expected one set for all")
        self.tasks: dict[str, list[int]] = {}
        for index, trace in enumerate(self.traces):
            self.tasks.setdefault(trace.task, []).append(index)
        self.goals = {task: [i for i in members if self.traces[i].success[-1]] for task, members in self.tasks.items()}
        decayed = [p for p in network.parameters() if p.ndim > 1]
        other = [p for p in network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": other, "weight_decay": 0.0}],
            lr=settings.learning_rate,
        )
        self.step = 0
        self.history: list[dict[str, float]] = []

    def run(self, *, after_step: Callable[["Trainer"], None] = lambda trainer: None) -> None:
        """Train to the end; `after_step` is called after every step, to draw progress or save."""
        self.network.train()
        try:
            while self.step < self.settings.steps:
                began = time.perf_counter()
                losses = self._train_step()
                self.step += 1
                self.history.append({"step": self.step, **losses, "seconds": time.perf_counter() - began})
                after_step(self)
        finally:
            self.network.eval()

    def save_state(self, folder: Path) -> None:
        """Everything `resume` needs, beside the checkpoint: optimiser state (safetensors), step and history (JSON)."""
        tensors = {}
        for group, parameters in enumerate(self.optimizer.param_groups):
            for index, parameter in enumerate(parameters["params"]):
                for name, value in self.optimizer.state.get(parameter, {}).items():
                    tensors[f"{group}.{index}.{name}"] = value.detach().clone().contiguous()
        state = {"step": self.step, "settings": asdict(self.settings), "history": self.history}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that an old state is only replaced by a whole one
            safetensors.torch.save_file(tensors, Path(scratch) / "optimizer.safetensors")
            (Path(scratch) / "training.json").write_text(json.dumps(state) + "\n")
            for name in ("optimizer.safetensors", "training.json"):
                (Path(scratch) / name).replace(Path(folder) / name)

    def resume(self, folder: Path) -> None:
        """Go on from a saved state; the network must hold the weights that were saved with it.

        Raises `CheckpointError` if there is none, it cannot be read, or it is of other settings.
        """
        path = Path(folder) / "training.json"
        if not path.exists():
            raise CheckpointError(f"{folder} holds no training.json; expected a folder an interrupted `grm train` left")
        state = json.loads(path.read_text())
        if state["settings"] != asdict(self.settings):
            changed = [k for k, v in asdict(self.settings).items() if state["settings"].get(k) != v]
            raise CheckpointError(
                f"{folder} was trained with other {', '.join(changed)}; resume with the same settings"
            )
        try:
            tensors = safetensors.torch.load_file(Path(folder) / "optimizer.safetensors")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{folder}/optimizer.safetensors cannot be read ({error}); start again in a new folder"
            ) from error
        for key, value in tensors.items():
            group, index, name = key.split(".")
            parameter = self.optimizer.param_groups[int(group)]["params"][int(index)]
            self.optimizer.state[parameter][name] = value
        self.step, self.history = state["step"], state["history"]

    def _train_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(self.step, self.settings.steps)
        batch = self._draw(np.random.default_rng([self.settings.seed, self.step]))
        hop_loss, success_loss = self._losses(batch)
        if not torch.isfinite(hop_loss + success_loss):
            raise DivergedError(
                f"the loss is {(hop_loss + success_loss).item()} at step {self.step}; expected a finite number: lower "
                f"the learning rate ({self.settings.learning_rate}) and start again"
            )
        self.optimizer.zero_grad(set_to_none=True)
        (hop_loss + 0.5 * success_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return {"hop_loss": hop_loss.item(), "success_loss": success_loss.item()}

    def _draw(self, generator: np.random.Generator) -> _Batch:
        s = self.settings
        names = self.traces[0].names
        tasks = list(self.tasks)
        frames, potentials, successes, has_goal, chosen = [], [], [], [], []
        for _ in range(s.episodes_per_step):
            task = tasks[0] if generator.random() < s.focus else tasks[generator.integers(len(tasks))]
            trace = self.traces[generator.choice(self.tasks[task])]
            pairs = trace.pairs.draw(s.frames_per_episode // 2, generator)
            picked = pairs.ravel()
            picked[0] = len(trace.potential) - 1  # how it ended is what the success head learns from
            # The first frame and the goal picture: another episode's of this task, where there is one.
            other = self.traces[generator.choice(self.tasks[task])] if generator.random() < s.swap_initial else trace
            donors = [i for i in self.goals[task] if self.traces[i] is not trace] or self.goals[task]
            donor = self.traces[generator.choice(donors)] if donors else None
            goal_known = donor is not None and generator.random() >= s.goal_dropout
            goal = donor.images[-1] if donor is not None else trace.images[-1]
            frames.append(np.concatenate([trace.images[picked], other.images[:1], goal[None]]))
            potentials.append(trace.potential[picked])
            successes.append(trace.success[picked])
            has_goal.append(goal_known)
            chosen.append(trace)
        images = np.stack(frames)  # (E, K + 2, V, h, w, 3)
        count, moments, views = images.shape[:3]
        images = _augment(images, s.shift, generator)
        keep = generator.random((count, views)) >= s.view_dropout
        keep[np.arange(count), generator.integers(views, size=count)] = True
        present = np.repeat(keep[:, None], moments, 1)
        return _Batch(
            images,
            torch.from_numpy(present),
            np.stack(potentials),
            np.stack(successes),
            np.array(has_goal),
            [trace.instruction for trace in chosen],
            names,
        )

    def _losses(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        network = self.network
        count, moments = batch.images.shape[:2]
        kept = moments - 2
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bfloat16):
            tokens = network.encode(batch.images.flatten(0, 1), batch.names).float()
        pooled = network.pool(tokens, batch.present.flatten(0, 1)).unflatten(0, (count, moments))
        frames, init, goal = pooled[:, :kept], pooled[:, kept], pooled[:, kept + 1]
        known = torch.from_numpy(batch.has_goal)
        goal = torch.where(known[:, None], goal, network.no_goal)
        text = network.text(batch.instructions)

        # Befores: the drawn frames, then the initial frame (potential 0), then the goal (potential 1).
        befores = torch.cat([frames, init[:, None], goal[:, None]], 1)
        before_potential = np.concatenate([batch.potential, np.zeros((count, 1)), np.ones((count, 1))], 1)
        hops = hops_of_pairs(
            np.repeat(before_potential[:, :, None], kept, 2), np.repeat(batch.potential[:, None], moments, 1)
        )
        valid = np.ones((count, moments, kept), bool)
        valid[:, np.arange(kept), np.arange(kept)] = False
        valid[:, kept + 1] = batch.has_goal[:, None]

        def spread_over(feature: Tensor, size: tuple[int, int, int]) -> Tensor:
            return feature.expand(*size, feature.shape[-1])

        size = (count, moments, kept)
        logits = network.hop_logits(
            spread_over(text[:, None, None], size),
            spread_over(init[:, None, None], size),
            spread_over(goal[:, None, None], size),
            spread_over(befores[:, :, None], size),
            spread_over(frames[:, None], size),
        )
        targets = torch.from_numpy(_two_hot(hops, network.architecture.bins))
        weights = torch.from_numpy(_balance(hops, valid))
        losses = -(targets * logits.log_softmax(-1)).sum(-1)
        hop_loss = (losses * weights).sum() / weights.sum()

        done = torch.from_numpy(batch.success.astype(np.float32))
        expand = (count, kept, init.shape[-1])
        logit = network.success_logit(
            text[:, None].expand(count, kept, -1), init[:, None].expand(expand), goal[:, None].expand(expand), frames
        )
        return hop_loss, F.binary_cross_entropy_with_logits(logit, done)


def adapt(
    model: GRM,
    demonstration: Episode,
    replay: Sequence[Episode] = (),
    *,
    steps: int = 200,
    seed: int = 0,
    after_step: Callable[[Trainer], None] = lambda trainer: None,
) -> GRM:
    """A new GRM that knows the demonstration's task too; the old one stays as it was.

    Needs no keyframes: without labels of its own the demonstration's progress is its time (`from_time`). Half of every
    batch is the demonstration, half is `replay` of the tasks the model was trained on, against forgetting.
    Raises `TraceError` for a demonstration that does not end in success.
    """
    if not demonstration.succeeded:
        raise TraceError(
            f"the demonstration of {demonstration.task!r} does not end in success; expected one that shows the task "
            f"done in its last frame: choose another episode"
        )
    network = MultiViewNetwork(model.network.architecture)
    network.load_state_dict(model.network.state_dict())
    settings = TrainSettings(
        steps=steps, learning_rate=3e-4, episodes_per_step=8, seed=seed, focus=0.5 if replay else 0.0, view_dropout=0.1
    )
    views = demonstration.views
    usable = [
        replace(e, views={name: e.views[name] for name in views})
        for e in replay
        if e.task != demonstration.task and set(e.views) >= set(views)
    ]
    if np.isnan(demonstration.progress).all():
        demonstration = replace(demonstration, progress=from_time(len(demonstration)).astype(np.float32))
    trainer = Trainer(network, itertools.chain([demonstration], usable), settings)
    trainer.run(after_step=after_step)
    return GRM(network, fuser=model.fuser)


def _schedule(step: int, steps: int) -> float:
    warm = min(100, max(1, steps // 10))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    """(t, h, w, 3) bytes of any size as the network sees them, frame by frame: (t, size, size, 3)."""
    if images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, 3), np.uint8)
    for t, image in enumerate(images):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        smaller = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        resized[t] = smaller[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return resized


def _augment(images: np.ndarray, shift: int, generator: np.random.Generator) -> Tensor:
    """Shift and relight each view of each episode alike in all its frames: (E, M, V, h, w, 3) to (E, M, V, 3, h, w)."""
    count, moments, views, height, width, _ = images.shape
    result = torch.empty((count, moments, views, 3, height, width))
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    for e in range(count):
        for v in range(views):
            y, x = generator.integers(2 * shift + 1, size=2)
            crop = torch.from_numpy(padded[e, :, v, y : y + height, x : x + width]).permute(0, 3, 1, 2).float()
            gain, bias = generator.uniform(0.85, 1.15, 3), generator.uniform(-0.06, 0.06)
            gain_t = torch.from_numpy(gain.astype(np.float32))[:, None, None]
            result[e, :, v] = (crop / 255 * gain_t + float(bias)).clamp_(0, 1)
    return result


def _two_hot(hops: np.ndarray, bins: int) -> np.ndarray:
    """Targets (…, bins) whose mean is the hop: all mass on its two neighbouring bin centres."""
    position = (hops + 1) / 2 * (bins - 1)
    low = np.clip(np.floor(position).astype(int), 0, bins - 2)
    high_share = position - low
    target = np.zeros((*hops.shape, bins), np.float32)
    np.put_along_axis(target, low[..., None], (1 - high_share)[..., None], -1)
    np.put_along_axis(target, low[..., None] + 1, high_share[..., None], -1)
    return target


def _balance(hops: np.ndarray, valid: np.ndarray, bins: int = 21) -> np.ndarray:
    """Weights going as one over the square root of how often a hop's bin occurs in the batch; anchors count double."""
    which = np.minimum(((hops + 1) / 2 * bins).astype(int), bins - 1)
    counts = np.bincount(which[valid], minlength=bins)
    weights = np.where(valid, 1 / np.sqrt(np.maximum(counts[which], 1)), 0.0)
    weights[:, -2:] *= 2
    return weights.astype(np.float32)
