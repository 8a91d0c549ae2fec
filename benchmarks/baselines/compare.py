"""One arm, one seed: train its head, adapt it to one demonstration of each held-out task, measure it there."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from grm.errors import TraceError
from grm.evaluate import METRICS, Scored, by_task
from grm.models.checkpoint import locate, read_config
from grm.models.multiview import KIND, Architecture, packaged_checkpoint
from grm.train import _schedule

from .absolute import AbsoluteHead
from .classifier import ClassifierHead
from .clips import FRAMES, LAG, Clip, Look, Pool
from .features import encoder_digest, read_clips, text_features
from .head import FeatureJudgement, Head, Shown, fit_calibration
from .hop import PERSPECTIVES, HopHead
from .rewind import WINDOW, RewindHead
from .vip import VipHead


@dataclass(frozen=True)
class Arm:
    """How a head is made, and what it learns from."""

    head: Callable[[Architecture, int, Look], Head]
    """Of the checkpoint's architecture, the features of a frame, and the look."""
    look: Look = field(default_factory=Look)
    demonstrations_only: bool = False
    mismatch: float = 0.15
    perspectives: tuple[str, ...] = ()
    """Of one and the same trained head, measured beside it."""


def arms(views: Sequence[str]) -> dict[str, Arm]:
    """All arms by name; `views` are the cameras, each of them alone in an arm of its own."""
    return {
        "ours": Arm(HopHead, perspectives=PERSPECTIVES[1:]),
        **{f"single_view_{view}": Arm(HopHead, Look(view)) for view in views},
        "no_off_demonstration": Arm(HopHead, demonstrations_only=True),
        "no_ensemble": Arm(lambda *shape: HopHead(*shape, members=1)),
        "absolute": Arm(lambda a, features, look: AbsoluteHead(features, a.text_features, look)),
        "vip": Arm(lambda a, features, look: VipHead(features, look), demonstrations_only=True),
        "rewind": Arm(
            lambda a, features, look: RewindHead(features, a.text_features, look),
            Look(window=WINDOW),
            demonstrations_only=True,
        ),
        "classifier": Arm(lambda a, features, look: ClassifierHead(features, a.text_features, look)),
        "no_ranking": Arm(lambda *shape: HopHead(*shape, ranking=0.0)),
        "no_mismatch": Arm(HopHead, mismatch=0.0),
        "history": Arm(HopHead, Look(window=2)),
        "demonstration": Arm(lambda *shape: HopHead(*shape, demonstration=True)),
    }


@dataclass(frozen=True)
class Settings:
    """The same for every arm."""

    model: str
    data: tuple[str, ...]
    held_out: str
    visited: str
    tasks: tuple[str, ...]
    cache: str
    features: str
    steps: int = 1500
    adapt: int = 100

    @property
    def training(self) -> list[Path]:
        return sorted(path.parent.parent for root in self.data for path in Path(root).glob("*/meta/info.json"))

    @property
    def evaluation(self) -> list[Path]:
        visited = [Path(self.visited) / task for task in self.tasks]
        there = [path for path in visited if (path / "meta" / "info.json").exists()]
        return [*(Path(self.held_out) / task for task in self.tasks), *there]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Every clip and text that any arm needs."""

    architecture: Architecture
    texts: Mapping[str, torch.Tensor]
    training: Sequence[Clip]
    validation: Sequence[Clip]
    held_out: Mapping[str, Sequence[Clip]]

    @classmethod
    def read(cls, settings: Settings) -> "Corpus":
        """Training clips at every `LAG`-th frame, every twelfth of them for validation; held-out ones whole."""
        where = (Path(settings.cache), Path(settings.features), encoder_digest(settings.model))
        seen = [clip for root in settings.training for clip in read_clips(root, *where, LAG)]
        seen = [clip for clip in seen if np.isfinite(clip.potential).all()]
        held_out: dict[str, list[Clip]] = {}
        for root in settings.evaluation:
            for clip in read_clips(root, *where, 1):
                held_out.setdefault(clip.task, []).append(clip)
        instructions = [c.episode.instruction for c in (*seen, *(c for clips in held_out.values() for c in clips))]
        config = read_config(locate(settings.model, packaged_checkpoint()), KIND)
        return cls(
            Architecture(**config["architecture"]),
            text_features(settings.model, instructions),
            [clip for i, clip in enumerate(seen) if i % 12],
            seen[::12],
            held_out,
        )

    @property
    def views(self) -> tuple[str, ...]:
        return self.training[0].views


def run(name: str, seed: int, settings: Settings, corpus: Corpus) -> list[dict[str, object]]:
    """One row per judge (the arm, and its perspectives) and held-out task."""
    arm = arms(corpus.views)[name]
    head = trained(arm, seed, settings.steps, corpus)
    judges = {name: copy.deepcopy(head)} | {f"{p}_only": with_perspective(head, p) for p in arm.perspectives}
    pool = training_pool(arm, corpus)
    for one in judges.values():
        calibrated(one, arm, pool, corpus)
    replay = [clip for clips in pool.tasks.values() for clip in sample(clips, 4, seed)]
    shown = {task: demonstration_of(clips, seed) for task, clips in corpus.held_out.items()}
    rows: list[dict[str, object]] = []
    for number, (task, clips) in enumerate(corpus.held_out.items()):
        adapted = adapt(head, arm, shown[task], replay, corpus, steps=settings.adapt, seed=seed)
        stranger = shown[list(shown)[(number + 1) % len(shown)]]
        others = [clip for clip in clips if clip is not shown[task]]
        for label, one in judges.items():
            weights = {k: v for k, v in adapted.state_dict().items() if k != "calibration"}
            one.load_state_dict(weights, strict=False)  # and keep its own calibration
            scored = [score(one, clip, shown[task], stranger, corpus.texts) for clip in others]
            metrics = by_task(scored)[task]
            rows.append({"arm": label, "seed": seed, "task": task, **{m: metrics[m] for m in METRICS if m in metrics}})
    return rows


def trained(arm: Arm, seed: int, steps: int, corpus: Corpus) -> Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = arm.head(corpus.architecture, arm.look.features(corpus.training[0]), arm.look)
    fit(head, training_pool(arm, corpus), steps=steps, tasks=8, episodes=3, learning_rate=1e-3, seed=seed)
    return head


def adapt(
    head: Head, arm: Arm, demonstration: Clip, replay: Sequence[Clip], corpus: Corpus, *, steps: int, seed: int
) -> Head:
    """A copy that knows the demonstration too: half of every batch is that, half is replay, as in `grm.train.adapt`."""
    new = copy.deepcopy(head)
    clips = [demonstration.every(LAG), *replay]
    pool = Pool(clips, corpus.texts, mismatch=0.25 if arm.mismatch else 0.0, bootstrap=0.0, focus=0.5)
    fit(new, pool, steps=steps, tasks=4, episodes=2, learning_rate=3e-4, seed=seed)
    return new


def fit(
    head: Head, pool: Pool, *, steps: int, tasks: int, episodes: int, learning_rate: float, seed: int
) -> list[float]:
    """Train as `grm.train` does: AdamW, warm-up and cosine, clipped gradients; the losses."""
    decayed = [p for p in head.parameters() if p.ndim > 1]
    rest = [p for p in head.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    losses = []
    head.train()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        loss = head.loss(pool.draw(tasks, episodes, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    head.eval()
    return losses


def training_pool(arm: Arm, corpus: Corpus) -> Pool:
    clips = [clip for clip in corpus.training if clip.demonstration or not arm.demonstrations_only]
    return Pool(clips, corpus.texts, mismatch=arm.mismatch)


def sample(clips: Sequence[Clip], count: int, seed: int) -> list[Clip]:
    """`count` clips, the first of them a success."""
    rng = np.random.default_rng(seed)
    done = [clip for clip in clips if clip.episode.succeeded]
    return [done[rng.integers(len(done))], *(clips[i] for i in rng.integers(len(clips), size=count - 1))]


def calibrated(head: Head, arm: Arm, pool: Pool, corpus: Corpus) -> None:
    """Fit the spread on episodes of the training tasks that were not trained on, of the kind that the arm knows."""
    clips = [clip for clip in corpus.validation if clip.demonstration or not arm.demonstrations_only]
    clips = [clip for clip in clips if clip.task in pool.tasks][:120]
    goals = {task: next(c for c in known if c.episode.succeeded) for task, known in pool.tasks.items()}
    judgements = [judge(head, clip, goals[clip.task], corpus.texts[clip.episode.instruction]) for clip in clips]
    fit_calibration(head, judgements, [clip.potential for clip in clips])


def with_perspective(head: Head, name: str) -> Head:
    new = copy.deepcopy(head)
    assert isinstance(new, HopHead)
    new.perspective = name
    return new


def demonstration_of(clips: Sequence[Clip], seed: int) -> Clip:
    """Another one for every seed, as far as there are any; it gives the goal picture and is never evaluated."""
    found = [clip for clip in clips if clip.demonstration]
    if len(found) < 2:
        raise TraceError(
            f"{len(found)} demonstration(s) of {clips[0].task!r}; expected one to adapt to and one to judge"
        )
    return found[seed % len(found)]


def judge(head: Head, clip: Clip, demonstration: Clip, text: torch.Tensor) -> FeatureJudgement:
    look = head.look
    spaced = np.linspace(0, len(demonstration) - 1, FRAMES).round().astype(int)
    goal = look(demonstration, np.array([len(demonstration) - 1]))[0]
    return head.judge_features(Shown(text, goal, look(demonstration, spaced)), look(clip))


def score(head: Head, clip: Clip, demonstration: Clip, stranger: Clip, texts: Mapping[str, torch.Tensor]) -> Scored:
    """As `grm.evaluate.score`, of features; VOC- is not asked, since most arms have no hops."""
    text, wrong = texts[clip.episode.instruction], texts[stranger.episode.instruction]
    found = judge(head, clip, demonstration, text)
    scored = Scored(
        episode=clip.episode,
        potential=found.potential,
        spread=found.spread,
        truth=clip.episode.progress[clip.numbers].astype(np.float64),
        success=found.success,
        voc_minus=float("nan"),
    )
    if not scored.demonstration:
        return scored
    return replace(
        scored,
        wrong_goal=float(judge(head, clip, stranger, text).potential[-1]),
        wrong_instruction=float(judge(head, clip, demonstration, wrong).potential[-1]),
    )


def run_or_read(name: str, seed: int, settings: Settings, corpus: Corpus, out: Path) -> list[dict[str, object]]:
    """`run`, or what an earlier one of the same settings and data found."""
    key = json.dumps([vars_of(settings), encoder_digest(settings.model), len(corpus.training), sizes(corpus)])
    path = out / f"{name}-{seed}.json"
    if path.exists() and (known := json.loads(path.read_text()))["key"] == key:
        return known["rows"]
    rows = run(name, seed, settings, corpus)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "rows": rows}) + "\n")
    return rows


def vars_of(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in ("data", "held_out", "visited", "tasks", "steps", "adapt")}


def sizes(corpus: Corpus) -> dict[str, int]:
    return {task: len(clips) for task, clips in corpus.held_out.items()}
