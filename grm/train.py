"""One readable loop that trains a GRM, from scratch on many tasks or on one demonstration of a new one.

A step draws a few tasks, a few episodes of each and a few hop-balanced frames of every episode, and asks the hop heads
about *all* ordered pairs among them and about both anchors: every frame is encoded once and used in many questions,
also as another episode's initial frame or goal. References are swapped only within a task: the initial frame may come
from another episode, the goal comes from another one whenever there is one, so the model learns that a goal is an
example of done and never this clip's own end. Reversed and shuffled clips are among all ordered pairs, stretches in
which nothing moves are in the data (`envs.experts`: stall, give-up); with another task's goal or instruction an episode
makes no progress, and does not fit. The schedule is a function of (seed,
step) alone, so a resumed run draws what an uninterrupted one would have.
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
from jaxtyping import Float
from torch import Tensor, nn

from .data.augment import Augmentation, augment, broken_pictures
from .data.episodes import Episode
from .data.pairs import BalancedPairs, hops_of_pairs
from .errors import CheckpointError, DivergedError, TraceError
from .labels import from_time, from_time_to_go
from .models.multiview import GRM, MultiViewNetwork

LIGHT = Augmentation(
    shift=2,
    zoom=0.0,
    turn=0.0,
    gain=0.1,
    bias=0.04,
    contrast=0.1,
    hue=0.02,
    noise=0.1,
    noise_scale=0.04,
    blur=0.03,
    compression=0.03,
    occlusion=0.05,
    lost=0.1,
    dropped=0.02,
    black=0.0,  # black and broken pictures are the usable head's own lesson
    static=0.0,
    blind=0.0,
    frozen=0.01,
    swapped=0.01,
)
"""About half of `Augmentation`'s defaults: a network this small, trained this briefly, pays for more with precision."""

MANY_TASKS = replace(LIGHT, shift=4, zoom=0.15, turn=0.02)
"""For many tasks, cameras are nudged too: with one seed, a network trained so judged unseen episodes as well or better,
though it had learned less of its own by heart (docs/log.md). Not tried on one demonstration."""

CERTAIN = 0.93
"""Progress below which a frame surely does not show the task done: just before success it looks like success."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything the loop depends on besides data, network and augmentation."""

    steps: int = 3000
    """Gradient steps."""
    tasks_per_step: int = 6
    episodes_per_task: int = 3
    """Drawn for each task of a step; the first of them is a success wherever the task has one."""
    frames_per_episode: int = 8
    """Drawn from each, the first and the last among them; every ordered pair of them is a training pair."""
    learning_rate: float = 1e-3
    """Peak, after a short warm-up; it falls to zero by a cosine."""
    weight_decay: float = 0.05
    seed: int = 0
    goal_dropout: float = 0.1
    """Chance that an episode of a batch has no goal."""
    swap_initial: float = 0.5
    """Chance that the initial frame is another episode's of the same task."""
    mismatch: float = 0.15
    """Chance that an episode is asked about with another task's goal, instruction or both: it makes no progress."""
    word_dropout: float = 0.15
    """Chance that a word of the instruction is left out."""
    ranking: float = 0.2
    """Weight of ranking frames of different episodes of a task by how far along they are."""
    privileged: float = 0.5
    """Weight of naming the simulator's state, where episodes have one: it tells the encoder what to look at."""
    bootstrap: float = 0.3
    """Share of the episodes that a member of the ensemble never learns from."""
    train_encoder: bool = True
    bfloat16: bool = False
    """Run the encoder in bfloat16: a step took 0.6 of the time on a CPU with AMX; slower on CPUs without."""
    focus: float = 0.0
    """Share of a step's tasks that are the first episode's: the demonstration's, when adapting with replay."""


FEW_SHOT = TrainSettings(
    learning_rate=3e-4, tasks_per_step=4, episodes_per_task=2, mismatch=0.3, privileged=0.0, bootstrap=0.0
)
"""What adapting and refitting have in common."""


@dataclass(frozen=True, slots=True, eq=False)
class _Trace:
    """An episode as the loop needs it: images by view (t, h, w, 3), of the views it has; labels, pairs."""

    task: str
    instruction: str
    views: dict[str, np.ndarray]
    potential: np.ndarray
    success: np.ndarray
    state: np.ndarray
    pairs: BalancedPairs
    members: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """One step's draw: E episodes of K frames of V views, those of one task side by side."""

    images: np.ndarray  # (E, K, V, h, w, 3); black where an episode has no such view
    there: np.ndarray  # (E, V) which views each episode has
    potential: np.ndarray  # (E, K)
    success: np.ndarray  # (E, K)
    state: np.ndarray  # (E, K, S), standardised; NaN where there is none
    initial: np.ndarray  # (E,) which of the E * K frames is the initial one
    goal: np.ndarray  # (E,) which of them is the goal; -1 for none
    members: np.ndarray  # (E, M) which heads learn from the episode
    task: np.ndarray  # (E,) number of the task
    instructions: list[str]
    names: tuple[str, ...]


class Trainer:
    """Trains a network on labelled episodes; `run` may be interrupted, saved and resumed at any step.

    Episodes may have different cameras: to each, the others' are absent. Of `outcomes` nobody knows how far along they
    are, only whether a frame shows the task done: they teach the success head alone. Raises `TraceError` if there are
    no episodes, or one of them has no view or unknown labels.
    """

    def __init__(
        self,
        network: MultiViewNetwork,
        episodes: Iterable[Episode],
        settings: TrainSettings,
        augmentation: Augmentation | None = None,
        *,
        outcomes: Iterable[Episode] = (),
    ) -> None:
        self.network, self.settings = network, settings
        self.augmentation = augmentation or LIGHT
        size, members = network.architecture.image_size, network.architecture.members
        self.traces: list[_Trace] = []
        for index, episode in enumerate(episodes):
            learns = np.random.default_rng([settings.seed, index]).random(members) >= settings.bootstrap
            progress = episode.progress.astype(np.float64)
            self.traces.append(_trace(episode, progress, learns if learns.any() else ~learns, size))
        nobody = np.zeros(members, bool)
        self.traces += [_trace(episode, np.zeros(len(episode)), nobody, size) for episode in outcomes]
        if not any(trace.members.any() for trace in self.traces):
            raise TraceError("there are no episodes to train on; expected at least one (see `grm collect`)")
        blank = [trace.task for trace in self.traces if not trace.views]
        if blank:
            raise TraceError(f"an episode of {blank[0]!r} has no view; expected at least one camera")
        self.views = tuple(sorted({name for trace in self.traces for name in trace.views}))
        """All cameras of all episodes."""
        self.tasks: dict[str, list[int]] = {}
        for index, trace in enumerate(self.traces):
            self.tasks.setdefault(trace.task, []).append(index)
        self.goals = {task: [i for i in members if self.traces[i].success[-1]] for task, members in self.tasks.items()}
        self._state_mean, self._state_deviation = self._state_scale()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            width, states = network.frame_features + network.architecture.text_features, len(self._state_mean)
            self.privileged = nn.Sequential(
                *([nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, states)] if states else [])
            )
        network.encoder.requires_grad_(settings.train_encoder)
        parameters = [p for p in (*network.parameters(), *self.privileged.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
        )
        self.step = 0
        self.history: list[dict[str, float]] = []

    def _state_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the states' numbers, where all episodes that have a state have the same ones."""
        states = [trace.state for trace in self.traces if trace.state.any()]
        sizes = {state.shape[1] for state in states}
        if len(sizes) != 1 or self.settings.privileged == 0:
            return np.zeros(0), np.ones(0)
        every = np.concatenate(states)
        return every.mean(0), every.std(0) + 1e-3

    def run(self, *, after_step: Callable[["Trainer"], None] = lambda trainer: None) -> None:
        """Train to the end; `after_step` is called after every step, to draw progress or save."""
        self.network.train()
        self.network.encoder.train(self.settings.train_encoder)  # a frozen one's running statistics stay too
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
        tensors |= {f"privileged.{name}": tensor.contiguous() for name, tensor in self.privileged.state_dict().items()}
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
        privileged = {key: tensors.pop(key) for key in list(tensors) if key.startswith("privileged.")}
        try:
            self.privileged.load_state_dict({k.removeprefix("privileged."): value for k, value in privileged.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{folder} was trained on episodes of other states; resume with the same") from error
        for key, value in tensors.items():
            group, index, name = key.split(".")
            parameter = self.optimizer.param_groups[int(group)]["params"][int(index)]
            self.optimizer.state[parameter][name] = value
        self.step, self.history = state["step"], state["history"]

    def _train_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _schedule(self.step, self.settings.steps)
        generator = np.random.default_rng([self.settings.seed, self.step])
        losses = self._losses(self._draw(generator), generator)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise DivergedError(
                f"the loss is {total.item()} at step {self.step}; expected a finite number: lower "
                f"the learning rate ({self.settings.learning_rate}) and start again"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return {f"{name}_loss": loss.item() for name, loss in losses.items()}

    def _draw(self, generator: np.random.Generator) -> _Batch:
        s = self.settings
        tasks = list(self.tasks)
        count, kept = s.tasks_per_step * s.episodes_per_task, s.frames_per_episode
        chosen: list[_Trace] = []
        for _ in range(s.tasks_per_step):
            task = tasks[0] if generator.random() < s.focus else tasks[generator.integers(len(tasks))]
            first = self.traces[generator.choice(self.goals[task] or self.tasks[task])]
            others = generator.choice(self.tasks[task], s.episodes_per_task - 1)
            chosen += [first, *(self.traces[i] for i in others)]
        picks = [_pick(trace, kept, generator) for trace in chosen]
        initial, goal = np.zeros(count, int), np.full(count, -1)
        for e in range(count):
            mates = np.arange(e - e % s.episodes_per_task, e - e % s.episodes_per_task + s.episodes_per_task)
            initial[e] = kept * (generator.choice(mates) if generator.random() < s.swap_initial else e)
            done = [m for m in mates if chosen[m].success[-1]]
            donors = [m for m in done if chosen[m] is not chosen[e]] or done
            if donors and generator.random() >= s.goal_dropout:
                goal[e] = kept * generator.choice(donors) + kept - 1
        instructions = [_drop_words(trace.instruction, s.word_dropout, generator) for trace in chosen]
        potential = np.stack([trace.potential[pick] for trace, pick in zip(chosen, picks, strict=True)])
        success = np.stack([trace.success[pick] for trace, pick in zip(chosen, picks, strict=True)])
        return _Batch(
            np.stack([self._pictures(trace, pick) for trace, pick in zip(chosen, picks, strict=True)]),
            np.array([[name in trace.views for name in self.views] for trace in chosen]),
            potential,
            success,
            np.stack([self._state(trace, pick) for trace, pick in zip(chosen, picks, strict=True)]),
            initial,
            goal,
            np.stack([trace.members for trace in chosen]),
            np.array([tasks.index(trace.task) for trace in chosen]),
            instructions,
            self.views,
        )

    def _pictures(self, trace: _Trace, pick: np.ndarray) -> np.ndarray:
        """(K, V, h, w, 3) of the picked frames."""
        size = self.network.architecture.image_size
        black = np.zeros((len(pick), size, size, 3), np.uint8)
        return np.stack([trace.views[n][pick] if n in trace.views else black for n in self.views], axis=1)

    def _state(self, trace: _Trace, pick: np.ndarray) -> np.ndarray:
        """Standardised states (K, S) of the picked frames; NaN where the episode has none."""
        if not len(self._state_mean) or not trace.state.any():
            return np.full((len(pick), len(self._state_mean)), np.nan)
        return (trace.state[pick] - self._state_mean) / self._state_deviation

    def _losses(self, batch: _Batch, generator: np.random.Generator) -> dict[str, Tensor]:
        s, network = self.settings, self.network
        count, kept = batch.potential.shape
        seen = augment(batch.images, self.augmentation, generator, there=batch.there)
        broken = broken_pictures(seen.images, count, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16), torch.set_grad_enabled(s.train_encoder):
            tokens = network.encode(seen.images.flatten(0, 1), batch.names).float()
            no_view = network.encode(broken[:, None], [generator.choice(batch.names)]).float()[:, 0]
        present = torch.from_numpy(seen.present).flatten(0, 1)
        frames = network.pool(tokens, present)  # (E * K, P)
        init = frames[batch.initial]
        known = torch.from_numpy(batch.goal >= 0)
        goal = torch.where(known[:, None], frames[batch.goal], network.no_goal)
        frames = frames.unflatten(0, (count, kept))
        text = network.text(batch.instructions)
        valid = seen.valid & seen.valid.ravel()[batch.initial][:, None]
        goal_valid = (batch.goal >= 0) & seen.valid.ravel()[batch.goal]
        fits = _fits_loss(network, batch.task, text, init, goal, known, generator)
        named = self.privileged(torch.cat([frames, text[:, None].expand(count, kept, -1)], -1))

        told, shown = _mismatches(batch, s.mismatch, generator)
        matched = ((told == np.arange(count)) & (shown == np.arange(count)))[:, None]
        text, goal, goal_valid = text[told], goal[shown], goal_valid[shown]
        batch = replace(batch, potential=batch.potential * matched, success=batch.success & matched)

        # Befores: the drawn frames, then the initial frame (potential 0), then the goal (potential 1).
        befores = torch.cat([frames, init[:, None], goal[:, None]], 1)
        before_potential = np.concatenate([batch.potential, np.zeros((count, 1)), np.ones((count, 1))], 1)
        size = (count, kept + 2, kept)
        hops = hops_of_pairs(
            np.broadcast_to(before_potential[:, :, None], size), np.broadcast_to(batch.potential[:, None], size)
        )
        usable = np.concatenate([valid, np.ones((count, 1), bool), goal_valid[:, None]], 1)
        asked = usable[:, :, None] & valid[:, None]
        asked[:, np.arange(kept), np.arange(kept)] = False

        logits = network.hop_logits(
            text[:, None, None], init[:, None, None], goal[:, None, None], befores[:, :, None], frames[:, None]
        )  # (E, K + 2, K, M, bins)
        targets = torch.from_numpy(two_hot(hops, network.architecture.bins))
        weights = torch.from_numpy(_balance(hops, asked))[..., None] * torch.from_numpy(batch.members)[:, None, None]
        errors = -(targets[..., None, :] * logits.log_softmax(-1)).sum(-1)
        losses = {"hop": (errors * weights).sum() / weights.sum().clamp(min=1e-6)}

        along, logit = network.absolute_logits(text[:, None], init[:, None], goal[:, None], frames)
        targets = torch.from_numpy(two_hot(2 * batch.potential - 1, network.architecture.bins))
        share = torch.from_numpy(valid[..., None] & batch.members[:, None]).float()  # (E, K, M)
        errors = -(targets[..., None, :] * along.log_softmax(-1)).sum(-1)
        losses["absolute"] = (errors * share).sum() / share.sum().clamp(min=1)

        done = torch.from_numpy(batch.success.astype(np.float32))
        certain = torch.from_numpy((valid & (batch.success | (batch.potential < CERTAIN))).astype(np.float32))
        losses["success"] = 0.5 * F.binary_cross_entropy_with_logits(logit, done, certain)

        shown = np.flatnonzero(seen.shows)  # an absent view is black, and must not be called clear
        drawn = generator.choice(shown, len(no_view)) if len(shown) else shown
        clear = tokens.flatten(0, 1)[torch.from_numpy(drawn)]
        usable_logit = torch.cat([network.usable_logit(clear), network.usable_logit(no_view)])
        shows = torch.cat([torch.ones(len(clear)), torch.zeros(len(no_view))])
        losses["usable"] = 0.1 * F.binary_cross_entropy_with_logits(usable_logit, shows)

        if fits is not None:
            losses["fits"] = 0.2 * fits

        if s.ranking > 0:
            learns, hop = torch.from_numpy(batch.members)[:, None], network.expected_hop(logits[:, kept])
            forward = torch.where(learns, hop, hop.detach()).mean(-1)  # (E, K)
            ranked = valid & np.any(batch.members, axis=1, keepdims=True)
            losses["ranking"] = s.ranking * _ranking_loss(forward, batch, ranked)
        if len(self._state_mean):
            state = torch.from_numpy(batch.state.astype(np.float32))
            there = ~state.isnan() & torch.from_numpy(valid)[..., None]
            errors = F.smooth_l1_loss(named, state.nan_to_num(0.0), reduction="none") * there
            losses["state"] = s.privileged * errors.sum() / there.sum().clamp(min=1)
        return losses


def adapt(
    model: GRM,
    demonstration: Episode,
    replay: Sequence[Episode] = (),
    *,
    rollouts: Sequence[Episode] = (),
    steps: int = 200,
    seed: int = 0,
    train_encoder: bool = True,
    share: float = 0.9,
    after_step: Callable[[Trainer], None] = lambda trainer: None,
) -> GRM:
    """A new GRM that knows the demonstration's task too; the old one stays as it was.

    Needs no keyframes: without labels of its own the demonstration's progress is its time until it is done, and 1 from
    there on. One that goes on for a second tells the success head what done looks like beside its first picture: the
    last frame before it and the first after it hardly differ. Half of every batch is the demonstration, half is
    `replay` of the tasks the model was trained on, against forgetting. The new weights are `share` of the way from the
    old ones to the trained ones (Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models"). What keeps them from
    following the demonstration's clock everywhere is that they are asked about the same frames for other tasks too,
    where these are no progress.

    One demonstration does not tell what the arm did from what came of it. `rollouts` do of which it is known how they
    ended, above all failures that move as the demonstration did; they teach what they teach in `refit`, and failures
    whose progress is labelled that, too.

    Raises `TraceError` for a demonstration that does not end in success or is done from its first frame on, or rollouts
    of another task.
    """
    settings = replace(FEW_SHOT, steps=steps, seed=seed, focus=0.5 if replay else 0.0, train_encoder=train_encoder)
    return _few_shot(model, demonstration, rollouts, replay, settings, share, after_step)


def refit(
    model: GRM,
    demonstration: Episode,
    rollouts: Sequence[Episode],
    replay: Sequence[Episode] = (),
    *,
    steps: int = 100,
    seed: int = 0,
    share: float = 0.9,
    after_step: Callable[[Trainer], None] = lambda trainer: None,
) -> GRM:
    """A new GRM that has also seen what became of a learner's rollouts; the old one stays as it was.

    The `model` is adapted to the demonstration already. Of a rollout that succeeded the time to go is known: its frames
    are labelled by it, in units of the demonstration's length (`from_time_to_go`). Of one that failed it is only known
    that no frame shows the task done, which the success head learns (as in VICE: Fu et al. 2018, "Variational Inverse
    Control with Events"). The encoder stays as it is, and so does what policies see of it.

    Raises `TraceError` for a demonstration that does not end in success, or rollouts of another task.
    """
    settings = replace(FEW_SHOT, steps=steps, seed=seed, focus=0.75 if replay else 0.0, train_encoder=False)
    return _few_shot(model, demonstration, rollouts, replay, settings, share, after_step)


def _few_shot(
    model: GRM,
    demonstration: Episode,
    rollouts: Sequence[Episode],
    replay: Sequence[Episode],
    settings: TrainSettings,
    share: float,
    after_step: Callable[[Trainer], None],
) -> GRM:
    if not demonstration.succeeded:
        raise TraceError(
            f"the demonstration of {demonstration.task!r} does not end in success; expected one that shows the task "
            f"done in its last frame: choose another episode"
        )
    if _done_from(demonstration) == 0:
        raise TraceError(
            f"the demonstration of {demonstration.task!r} shows the task done in every one of its {len(demonstration)} "
            f"frames; expected one that begins before it is done: choose another episode, or mark fewer frames as done"
        )
    foreign = [rollout.task for rollout in rollouts if rollout.task != demonstration.task]
    if foreign:
        raise TraceError(
            f"a rollout of {foreign[0]!r}; expected rollouts of the demonstration's {demonstration.task!r}"
        )
    network = MultiViewNetwork(model.network.architecture)
    network.load_state_dict(model.network.state_dict())
    horizon = _done_from(demonstration)
    usable = [
        replace(e, views={name: e.views[name] for name in demonstration.views if name in e.views})
        for e in replay
        if e.task != demonstration.task and not demonstration.views.keys().isdisjoint(e.views)
    ]
    if np.isnan(demonstration.progress).all():
        after = np.ones(len(demonstration) - horizon - 1)
        progress = np.concatenate([from_time(horizon + 1), after]).astype(np.float32)
        demonstration = replace(demonstration, progress=progress)
    known = [demonstration]
    for rollout in rollouts:
        if rollout.succeeded:
            togo = np.maximum(_done_from(rollout) - np.arange(len(rollout)), 0)
            progress = from_time_to_go(togo, horizon).astype(np.float32)
            known.append(replace(rollout, progress=progress))
    failed = [rollout for rollout in rollouts if not rollout.succeeded]
    known += [rollout for rollout in failed if np.isfinite(rollout.progress).all()]
    failed = [rollout for rollout in failed if not np.isfinite(rollout.progress).all()]
    trainer = Trainer(network, itertools.chain(known, usable), settings, outcomes=failed)
    trainer.run(after_step=after_step)
    network.load_state_dict(
        {
            name: torch.lerp(old, new, share) if new.is_floating_point() else new
            for (name, old), new in zip(model.network.state_dict().items(), network.state_dict().values(), strict=True)
        }
    )
    if usable:  # else no other task's words and pictures were there to tell this one's from
        network.gated.fill_(1.0)
    return GRM(network, fuser=model.fuser)


def _done_from(episode: Episode) -> int:
    """The first frame of those at its end that all show the task done."""
    return len(episode) - int(episode.success[::-1].cumprod().sum())


def calibrate(
    network: MultiViewNetwork,
    potential: Float[np.ndarray, " n"],
    truth: Float[np.ndarray, " n"],
    spread: Float[np.ndarray, " n"],
) -> None:
    """Make the spread one standard deviation of the error: floor + scale * spread, most likely on validation frames.

    Maximum likelihood of Gaussian errors, by grid search; Kuleshov et al. 2018, "Accurate Uncertainties for Deep
    Learning Using Calibrated Regression", recalibrate as well after training. NaN is an abstention and left out.
    Composes with what the network had before.
    """
    error = np.abs(potential - truth)
    known = np.isfinite(error) & np.isfinite(spread)
    if not known.any():
        raise TraceError("no judged and labelled frame to calibrate on; expected validation episodes with progress")
    floors, scales = np.linspace(0.005, 0.25, 50), np.linspace(0.1, 4, 40)
    deviations = (floor + scales[:, None] * spread[known] for floor in floors)  # one floor at a time bounds the memory
    likelihood = np.stack([(-0.5 * (error[known] / d) ** 2 - np.log(d)).mean(-1) for d in deviations])
    best_floor, best_scale = np.unravel_index(likelihood.argmax(), likelihood.shape)
    floor, scale = network.calibration.tolist()
    network.calibration.copy_(
        torch.tensor([floors[best_floor] + scales[best_scale] * floor, scales[best_scale] * scale])
    )


def _trace(episode: Episode, progress: np.ndarray, learns: np.ndarray, size: int) -> _Trace:
    views = {name: _resize(images, size) for name, images in sorted(episode.views.items())}
    pairs = BalancedPairs(progress)
    return _Trace(episode.task, episode.instruction, views, progress, episode.success, episode.state, pairs, learns)


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


def _pick(trace: _Trace, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` frames of an episode in any order: the first comes first, the last last, hop-balanced ones between."""
    pairs = trace.pairs.draw((count - 1) // 2, generator).ravel()
    return np.concatenate([[0], np.resize(pairs, count - 2), [len(trace.potential) - 1]])


def _drop_words(instruction: str, chance: float, generator: np.random.Generator) -> str:
    """The instruction without some of its words, so that no single wording carries it; at least one word stays."""
    words = instruction.split()
    kept = [word for word in words if generator.random() >= chance]
    return " ".join(kept or words)


def _mismatches(batch: _Batch, chance: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Whose instruction (E,) and whose goal (E,) each episode is asked about with: its own, or another task's.

    An episode without a goal lends none: that a picture is missing contradicts no instruction.
    """
    own = np.arange(len(batch.task))
    told, shown = own.copy(), own.copy()
    for e in own[generator.random(len(own)) < chance]:
        strangers = np.flatnonzero((batch.task != batch.task[e]) & (batch.goal >= 0))
        if len(strangers):
            stranger, kind = generator.choice(strangers), generator.integers(3)
            if kind < 2:
                told[e] = stranger
            if kind > 0:
                shown[e] = stranger
    return told, shown


def _fits_loss(
    network: MultiViewNetwork,
    task: np.ndarray,
    text: Tensor,
    init: Tensor,
    goal: Tensor,
    known: Tensor,
    generator: np.random.Generator,
) -> Tensor | None:
    """Tell each episode's own instruction and goal from those of another task in the batch; None if there is no other.

    Mismatched instructions among the negatives, as Robometer and RynnValue have them. An episode without a goal (not
    `known`, (E,)) lends none to another: that a picture is missing contradicts no instruction.
    """
    strangers = [np.flatnonzero(task != own) for own in task]
    if not all(map(len, strangers)):
        return None
    other = torch.from_numpy(np.array([generator.choice(s) for s in strangers]))
    third = torch.from_numpy(np.array([generator.choice(s) for s in strangers]))
    own = network.fits_logit(text, init, goal)
    wrong = torch.cat(
        [
            network.fits_logit(text[other], init, goal),
            network.fits_logit(text[third], init, goal),
            network.fits_logit(text, init, goal[other])[known[other]],
        ]
    )
    return F.softplus(-own).mean() + F.softplus(wrong).mean()


def _ranking_loss(forward: Tensor, batch: _Batch, valid: np.ndarray, margin: float = 0.05) -> Tensor:
    """Logistic loss of ordering frames of one task, across episodes, by how far along they are (Bradley & Terry 1952).

    `forward` (E, K) is the potential from the initial frame. Pairs whose truths differ by `margin` or less are equal.
    """
    potential = torch.from_numpy(batch.potential.ravel().astype(np.float32))
    task = torch.from_numpy(batch.task)[:, None].expand(forward.shape).flatten()
    usable = torch.from_numpy(valid.ravel())
    ahead = (potential[:, None] > potential[None] + margin) & (task[:, None] == task[None])
    ahead &= usable[:, None] & usable[None]
    phi = forward.flatten()
    return F.softplus(-(phi[:, None] - phi[None])[ahead] / 0.1).sum() / ahead.sum().clamp(min=1)


def two_hot(hops: np.ndarray, bins: int) -> np.ndarray:
    """Targets (…, bins) whose mean is the hop: all mass on its two neighbouring bin centres."""
    position = (hops + 1) / 2 * (bins - 1)
    low = np.clip(np.floor(position).astype(int), 0, bins - 2)
    high_share = position - low
    target = np.zeros((*hops.shape, bins), np.float32)
    np.put_along_axis(target, low[..., None], (1 - high_share)[..., None], -1)
    np.put_along_axis(target, low[..., None] + 1, high_share[..., None], -1)
    return target


def _balance(hops: np.ndarray, valid: np.ndarray, bins: int = 21) -> np.ndarray:
    """Weights as one over the square root of how often a hop's bin occurs in the batch; anchors count four times."""
    which = np.minimum(((hops + 1) / 2 * bins).astype(int), bins - 1)
    counts = np.bincount(which[valid], minlength=bins)
    weights = np.where(valid, 1 / np.sqrt(np.maximum(counts[which], 1)), 0.0)
    weights[:, -2:] *= 4
    return weights.astype(np.float32)
