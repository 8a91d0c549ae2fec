"""A judge's answers against the truth, episode by episode: the same path for training reports and benchmarks."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .data.episodes import Episode
from .errors import TraceError
from .metrics import Interval, expected_interval, mean_absolute_error, spearman, value_order_correlation, voc_pair
from .models.multiview import GRM
from .reward import Frame, Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """One judged episode: T frames of potential beside the truth."""

    episode: Episode
    potential: Float[np.ndarray, " T"]
    spread: Float[np.ndarray, " T"]
    truth: Float[np.ndarray, " T"]
    success: Float[np.ndarray, " T"]
    """P(done) of the success head."""
    voc_minus: float
    """VOC- of the bare incremental hops; NaN without all of them, and for what is no successful demonstration."""

    @property
    def demonstration(self) -> bool:
        """Whether this is an expert's success: what one perspective alone is usually measured on."""
        return self.episode.behaviour == "expert" and self.episode.succeeded


def score(model: GRM, episode: Episode, goal: Frame | None, *, stride: int = 1) -> Scored:
    """Judge every `stride`-th frame and the last. The goal picture must be another episode's."""
    indices = sorted({*range(0, len(episode), stride), len(episode) - 1})
    frames = [episode.frames[i] for i in indices]
    task = Task(instruction=episode.instruction, goal=goal)
    judgement = model.judge(task, frames)
    voc_minus = float("nan")
    if episode.behaviour == "expert" and episode.succeeded:
        forward = model.hops(task, frames[0], frames[:-1], frames[1:])
        backward = model.hops(task, frames[0], frames[1:], frames[:-1])
        if np.isfinite(forward).all() and np.isfinite(backward).all():
            voc_minus = voc_pair(forward, backward).minus
    return Scored(
        episode=episode,
        potential=judgement.potential,
        spread=judgement.spread,
        truth=episode.progress[indices].astype(np.float64),
        success=judgement.success,
        voc_minus=voc_minus,
    )


def score_all(
    model: GRM,
    episodes: Sequence[Episode],
    goals: dict[str, Frame],
    *,
    stride: int = 1,
    after_each: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Judge episodes against the goal picture of their task (`goals`, by task name)."""
    scored = []
    for episode in episodes:
        if episode.task not in goals:
            raise TraceError(
                f"no goal picture for {episode.task!r}; expected one for each task, there are some for "
                f"{', '.join(sorted(goals)) or 'none'}: give the last frame of another episode that succeeded"
            )
        scored.append(score(model, episode, goals[episode.task], stride=stride))
        after_each()
    return scored


METRICS = ("voc_plus", "voc_minus", "mae_demo", "spearman_demo", "mae_off_demo", "spearman_off_demo", "success_auc")


def by_task(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Metrics of each task; a metric without data is absent, never a number, and abstentions are left out.

    `voc_plus` is the mean over demonstrations of the fused potential's rank correlation with time, `voc_minus` that of
    the swapped incremental hops. `spearman_*` and `mae_*` pool all frames of the task's demonstrations, or of its other
    episodes, against the prover's truth. `success_auc` is the success head's ROC-AUC over last frames.
    """
    tasks: dict[str, list[Scored]] = defaultdict(list)
    for item in scored:
        tasks[item.episode.task].append(item)
    return {task: _metrics(items) for task, items in tasks.items()}


def summarize(tasks: dict[str, dict[str, float]], *, seed: int = 0) -> dict[str, Interval]:
    """Mean over tasks of every metric, with a bootstrap interval over tasks."""
    rng = np.random.default_rng(seed)
    values = {name: [metrics[name] for metrics in tasks.values() if name in metrics] for name in METRICS}
    return {name: expected_interval(v, rng) for name, v in values.items() if v}


def _metrics(items: Sequence[Scored]) -> dict[str, float]:
    demonstrations = [item for item in items if item.demonstration]
    others = [item for item in items if not item.demonstration]
    metrics: dict[str, float] = {}
    ordered = [item for item in demonstrations if np.isfinite(item.potential).sum() >= 2]
    if ordered:
        metrics["voc_plus"] = float(np.mean([value_order_correlation(item.potential) for item in ordered]))
    swapped = [item.voc_minus for item in demonstrations if np.isfinite(item.voc_minus)]
    if swapped:
        metrics["voc_minus"] = float(np.mean(swapped))
    for name, group in (("demo", demonstrations), ("off_demo", others)):
        potential = np.concatenate([item.potential for item in group]) if group else np.zeros(0)
        truth = np.concatenate([item.truth for item in group]) if group else np.zeros(0)
        known = np.isfinite(potential) & np.isfinite(truth)
        if known.any():
            metrics[f"mae_{name}"] = mean_absolute_error(potential, truth)
        correlation = spearman(potential, truth) if known.sum() >= 2 else np.nan
        if np.isfinite(correlation):
            metrics[f"spearman_{name}"] = correlation
    judged = [item for item in items if np.isfinite(item.success[-1])]
    done = np.array([item.success[-1] for item in judged if item.episode.succeeded])
    failed = np.array([item.success[-1] for item in judged if not item.episode.succeeded])
    if len(done) and len(failed):
        wins = (done[:, None] > failed[None]).mean() + 0.5 * (done[:, None] == failed[None]).mean()
        metrics["success_auc"] = float(wins)
    return metrics
