"""A judge's answers against the truth, episode by episode: the same path for training reports and benchmarks.

And for a robot's frames and a chain of thought: `score_all` and `score_reasoning` differ in where the truth comes from;
from there on both are potentials beside truths, and every metric is the same function.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from .data.episodes import Episode
from .data.stepwise import LabelledSolution
from .errors import TraceError
from .metrics import (
    CHANGE_WINDOW,
    SUCCESS_FROM,
    Completion,
    Interval,
    ValueOrder,
    area_under_risk_coverage,
    calibration_error,
    change_f1,
    changes,
    completion_accuracy,
    completion_class,
    expected_interval,
    kendall_tau,
    mean_absolute_error,
    roc_auc,
    spearman,
    tpr_at_fpr,
    value_order_correlation,
    voc_pair,
)
from .reward import Frame, Judge, PerspectiveJudgement, ScoredJudgement, ScoreKind, Task, Thought

LEARNER = "learner"
"""Behaviour of episodes that a policy in training made."""


@runtime_checkable
class HopModel(Protocol):
    """A judge that also answers the bare question, without any memory: the hop from a before to an after."""

    def hops(
        self, task: Task, initial: Frame, before: Sequence[Frame], after: Sequence[Frame]
    ) -> Float[np.ndarray, " n"]:
        """One hop in [-1, 1] per pair; NaN where it abstains."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    """What is known of a reasoned solution, as of an episode."""

    task: str
    """What it counts under: a data set."""
    progress: Float[np.ndarray, " T"]
    """The true potential after each of T steps; NaN where nobody knows."""
    succeeded: bool
    """Whether the solution is right."""
    behaviour: str = "reasoning"

    def __len__(self) -> int:
        return len(self.progress)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """One judged episode: T frames of potential beside the truth."""

    episode: Episode | Solved
    potential: Float[np.ndarray, " T"]
    spread: Float[np.ndarray, " T"]
    truth: Float[np.ndarray, " T"]
    success: Float[np.ndarray, " T"]
    """P(done) of the success head; NaN throughout for a judge without one. Of reasoning it is the potential itself."""
    voc_minus: float
    """VOC-; NaN where it is unknown, and for what is no successful demonstration."""
    voc_both: float = float("nan")
    """The worse of VOC+ and VOC- of the bare hops between neighbours; NaN for a judge without hops, too."""
    wrong_goal: float = float("nan")
    """Φ at the end with the goal picture of another task; NaN where this was not asked, like the next two."""
    wrong_instruction: float = float("nan")
    """Φ at the end with the instruction of another task."""
    own_goal: float = float("nan")
    """Φ at the end with the episode's own last frame as the goal picture."""

    @property
    def demonstration(self) -> bool:
        """Whether this is an expert's success: what one perspective alone is usually measured on."""
        return self.episode.behaviour == "expert" and self.episode.succeeded

    @property
    def visited(self) -> bool:
        """Whether a learner made it: the states a policy in training visits."""
        return self.episode.behaviour == LEARNER

    @property
    def completion(self) -> Completion | None:
        """How it truly ended (`completion_class` of the truth); None for a failure nobody labelled."""
        if not self.episode.succeeded and np.isnan(self.episode.progress).all():
            return None
        progress = np.nan_to_num(self.episode.progress, nan=0.0)
        return completion_class(progress, float(self.episode.succeeded))

    @property
    def judged_completion(self) -> Completion | None:
        """How it ended in the judge's eyes; None where it abstained on the end."""
        if np.isnan(self.potential[-1]):
            return None
        return completion_class(self.potential, float(self.success[-1]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stranger:
    """Another task's instruction and goal picture, to ask a judge the wrong question with."""

    instruction: str
    goal: Frame


def score(
    model: Judge[Frame],
    episode: Episode,
    goal: Frame | None,
    *,
    stride: int = 1,
    stranger: Stranger | None = None,
    probe: bool = False,
) -> Scored:
    """Judge every `stride`-th frame and the last. The goal picture must be another episode's.

    VOC- of a successful demonstration is that of the swapped bare hops where the judge is a `HopModel`; of any other
    judge it is the order of the potentials of the clip played backwards, read from its end, which punishes a judge
    that takes the first frame of any clip for a start.

    With `probe`, a successful demonstration is judged again with its own last frame as the goal picture, and with the
    goal picture and with the instruction of a `stranger`. Raises `TraceError` if `stride` is below 1.
    """
    if stride < 1:
        raise TraceError(f"stride is {stride}; expected 1 to judge every frame, or more")
    indices = sorted({*range(0, len(episode), stride), len(episode) - 1})
    frames = [episode.frames[i] for i in indices]
    task = Task(instruction=episode.instruction, goal=goal)
    judgement = model.judge(task, frames)
    nothing = np.full(len(frames), np.nan)
    scored = Scored(
        episode=episode,
        potential=judgement.potential,
        spread=judgement.spread,
        truth=episode.progress[indices].astype(np.float64),
        success=judgement.success if isinstance(judgement, PerspectiveJudgement) else nothing,
        voc_minus=float("nan"),
    )
    if not scored.demonstration:
        return scored
    order = _value_order(model, task, frames)
    scored = replace(scored, voc_minus=order.minus, voc_both=order.both)
    if probe:
        own = Task(instruction=episode.instruction, goal=frames[-1])
        scored = replace(scored, own_goal=_end(model, own, frames))
    if probe and stranger is not None:
        astray = Task(instruction=episode.instruction, goal=stranger.goal)
        misled = Task(instruction=stranger.instruction, goal=goal)
        scored = replace(scored, wrong_goal=_end(model, astray, frames), wrong_instruction=_end(model, misled, frames))
    return scored


def score_all(
    model: Judge[Frame],
    episodes: Sequence[Episode],
    goals: Mapping[str, Frame],
    *,
    stride: int = 1,
    instructions: Mapping[str, str] | None = None,
    rng: np.random.Generator | None = None,
    after_each: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Judge episodes against the goal picture of their task (`goals`, by task name).

    With a generator the probes are asked too, three more judgements per demonstration, each with a task drawn from
    the others in `goals`. What those tasks are called comes from `instructions`, or else from the episodes; a task
    whose words or picture are unknown, or that is called the same, is never drawn. Raises `TraceError` for a task
    without a goal picture.
    """
    spoken = {episode.task: episode.instruction for episode in reversed(episodes)} | dict(instructions or {})
    scored = []
    for episode in episodes:
        if episode.task not in goals:
            raise TraceError(
                f"no goal picture for {episode.task!r}; expected one for each task, there are some for "
                f"{', '.join(sorted(goals)) or 'none'}: give the last frame of another episode that succeeded"
            )
        others = sorted(t for t in goals if t in spoken and t != episode.task and spoken[t] != episode.instruction)
        stranger = None
        if rng is not None and others:
            other = others[rng.integers(len(others))]
            stranger = Stranger(instruction=spoken[other], goal=goals[other])
        scored.append(
            score(model, episode, goals[episode.task], stride=stride, stranger=stranger, probe=rng is not None)
        )
        after_each()
    return scored


def score_reasoning(
    judge: Judge[Thought],
    solutions: Sequence[LabelledSolution],
    *,
    task: str,
    after_each: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Judge labelled solutions, to be measured as a robot's episodes are.

    What is true depends on what the judge's numbers mean: the labels themselves for values; for all others whether no
    error was made so far, 1 before the first error and 0 from it on. A solution is none of demonstrations, whose order
    in time says nothing here: a right one stands still at 1. Raises `TraceError` where nothing says if one is right.
    """
    scored = []
    for one in solutions:
        judgement = judge.judge(Task(instruction=one.prompt), [Thought(text=step) for step in one.steps])
        value = isinstance(judgement, ScoredJudgement) and judgement.kind is ScoreKind.VALUE
        scored.append(
            Scored(
                episode=_solved(one, task, value=value),
                potential=judgement.potential,
                spread=judgement.spread,
                truth=_true_potential(one, value=value),
                success=judgement.potential,
                voc_minus=float("nan"),
            )
        )
        after_each()
    return scored


METRICS = (
    "voc_plus",
    "voc_minus",
    "voc_both",
    "mae_demo",
    "spearman_demo",
    "mae_off_demo",
    "spearman_off_demo",
    "mae_visited",
    "spearman_visited",
    "kendall_tau",
    "completion_accuracy",
    "success_auc",
    "tpr_at_fpr0",
    "tpr_at_fpr1",
    "rising_f1",
    "falling_f1",
    "stall_f1",
    "calibration_error",
    "aurc",
    "wrong_goal_ratio",
    "wrong_instruction_ratio",
    "own_goal_leak",
    "abstained",
)

FALSE_POSITIVE_RATES = {"tpr_at_fpr0": 0.0, "tpr_at_fpr1": 0.01}


def by_task(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Metrics of each task; a metric without data is absent, never a number, and abstentions are left out.

    Episodes are demonstrations (an expert's successes), visited (a learner's), or off the demonstration (all others).

    - `voc_plus` is the mean over demonstrations of the potential's rank correlation with time, `voc_minus` that of
      the swapped hops (see `score`). `voc_both` is the worse of both where both are of the bare hops between
      neighbours, as the reference has them: a model that always says "+1 %" scores 0 there.
    - `mae_*` and `spearman_*` pool all frames of one group against the truth.
    - `kendall_tau` ranks episodes by their last potential, against how they ended: success, partial (the true progress
      reached 0.5), or fail. `completion_accuracy` is that of `completion_class`, which knows the same three.
    - `success_auc`, `tpr_at_fpr0` and `tpr_at_fpr1` (false positive rate 0 and 1 %) are the success head's over last
      frames; absent for a judge without one. One that abstains on a success has missed it.
    - `rising_f1`, `falling_f1` and `stall_f1` are of visited frames and those off the demonstration, over `changes`;
      a stall ends where the task is done, true progress 0.95: standing still there is no fault.
    - `calibration_error` and `aurc` are of the spread, over all frames.
    - `wrong_goal_ratio` and `wrong_instruction_ratio` are of demonstrations: Φ at the end with another task's goal
      picture, or its instruction, as a share of Φ with the right one (a ratio of means: one small Φ decides nothing).
      `own_goal_leak` is the mean change of Φ at the end where the goal picture is the episode's own last frame.
    - `abstained` is the share of frames without a potential: read it before any of the others.
    """
    tasks: dict[str, list[Scored]] = defaultdict(list)
    for item in scored:
        tasks[item.episode.task].append(item)
    return {task: _metrics(items) for task, items in tasks.items()}


def pooled(scored: Sequence[Scored]) -> dict[str, float]:
    """The metrics of `by_task` over the episodes of all tasks together: one threshold, one ranking, one scale."""
    return _metrics(scored)


def summarize(
    tasks: Mapping[str, Mapping[str, float]], scored: Sequence[Scored] = (), *, seed: int = 0
) -> dict[str, Interval]:
    """Mean over tasks of every metric, with a bootstrap interval over tasks.

    Given the episodes too, `tpr_at_fpr0` and `tpr_at_fpr1` are pooled instead: one threshold for all tasks, as a user
    has it, with an interval over resampled tasks. A resample holds fewer different failures, so its threshold is
    never above the pooled one: these intervals lean upwards.
    """
    rng = np.random.default_rng(seed)
    values = {name: [metrics[name] for metrics in tasks.values() if name in metrics] for name in METRICS}
    summary = {name: expected_interval(v, rng) for name, v in values.items() if v}
    if scored:
        for name, fpr in FALSE_POSITIVE_RATES.items():
            summary.pop(name, None)
            interval = _pooled_tpr(scored, fpr, rng)
            if interval is not None:
                summary[name] = interval
    return {name: summary[name] for name in METRICS if name in summary}


def pool(items: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Potentials, truths and spreads (N) of all frames of these episodes, one after the other."""
    columns = [(item.potential, item.truth, item.spread) for item in items] or [(np.zeros(0),) * 3]
    potential, truth, spread = (np.concatenate(column) for column in zip(*columns, strict=True))
    return potential, truth, spread


def _true_potential(solution: LabelledSolution, *, value: bool) -> Float[np.ndarray, " T"]:
    labels = np.array([np.nan if label is None else label for label in solution.labels], np.float64)
    if value or solution.first_error is None:
        return labels if value else np.full(len(labels), np.nan)
    end = len(labels) if solution.first_error < 0 else solution.first_error
    return (np.arange(len(labels)) < end).astype(np.float64)


def _solved(solution: LabelledSolution, task: str, *, value: bool) -> Solved:
    right = solution.final_answer_correct if value else None
    if right is None and solution.first_error is not None:
        right = solution.first_error < 0
    if right is None:
        right = solution.final_answer_correct
    if right is None:
        raise TraceError(
            f"nothing says whether the solution of {solution.prompt[:40]!r} is right; expected a first error, labels "
            f"up to one, or final_answer_correct"
        )
    return Solved(task=task, progress=_true_potential(solution, value=value), succeeded=right)


def _value_order(model: Judge[Frame], task: Task, frames: Sequence[Frame]) -> ValueOrder:
    """Of the bare hops where there are any; else VOC- alone, of the frames in reverse. NaN where it is unknown."""
    unknown = float("nan")
    if isinstance(model, HopModel):
        forward = model.hops(task, frames[0], frames[:-1], frames[1:])
        backward = model.hops(task, frames[0], frames[1:], frames[:-1])
        if np.isfinite(forward).all() and np.isfinite(backward).all():
            return voc_pair(forward, backward)
        return ValueOrder(unknown, unknown)
    potential = model.judge(task, frames[::-1]).potential[::-1]
    judged = np.isfinite(potential).sum() >= 2
    return ValueOrder(unknown, value_order_correlation(potential) if judged else unknown)


def _end(model: Judge[Frame], task: Task, frames: Sequence[Frame]) -> float:
    return float(model.judge(task, frames).potential[-1])


def _metrics(items: Sequence[Scored]) -> dict[str, float]:
    demonstrations = [item for item in items if item.demonstration]
    visited = [item for item in items if item.visited]
    others = [item for item in items if not item.demonstration and not item.visited]
    found = (
        _order(demonstrations)
        | _agreement("demo", demonstrations)
        | _agreement("off_demo", others)
        | _agreement("visited", visited)
        | _ranking(items)
        | _detection(items)
        | _changes([*others, *visited])
        | _uncertainty(items)
        | _probes(demonstrations)
    )
    return {name: found[name] for name in METRICS if name in found and np.isfinite(found[name])}


def _order(demonstrations: Sequence[Scored]) -> dict[str, float]:
    plus = [value_order_correlation(d.potential) for d in demonstrations if np.isfinite(d.potential).sum() >= 2]
    minus = [d.voc_minus for d in demonstrations if np.isfinite(d.voc_minus)]
    both = [d.voc_both for d in demonstrations if np.isfinite(d.voc_both)]
    return {name: float(np.mean(v)) for name, v in (("voc_plus", plus), ("voc_minus", minus), ("voc_both", both)) if v}


def _agreement(group: str, items: Sequence[Scored]) -> dict[str, float]:
    potential, truth, _ = pool(items)
    known = np.count_nonzero(np.isfinite(potential) & np.isfinite(truth))
    found = {f"mae_{group}": mean_absolute_error(potential, truth)} if known else {}
    return found | ({f"spearman_{group}": spearman(potential, truth)} if known >= 2 else {})


def _ranking(items: Sequence[Scored]) -> dict[str, float]:
    ended = [
        (item, true, said)
        for item in items
        if (true := item.completion) is not None and (said := item.judged_completion) is not None
    ]
    if not ended:
        return {}
    classes = [true for _, true, _ in ended]
    found = {"completion_accuracy": completion_accuracy([said for _, _, said in ended], classes)}
    if len(set(classes)) > 1:
        found["kendall_tau"] = kendall_tau([item.potential[-1] for item, _, _ in ended], classes)
    return found


def _detection(items: Sequence[Scored]) -> dict[str, float]:
    done, failed = _last_frames(items)
    if not np.isfinite(failed).any() or len(done) == 0:
        return {}
    found = {name: tpr_at_fpr(done, failed, fpr) for name, fpr in FALSE_POSITIVE_RATES.items()}
    return found | ({"success_auc": roc_auc(done, failed)} if np.isfinite(done).any() else {})


def _last_frames(items: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """P(done) on the last frame of what succeeded, and of what failed."""
    done = np.array([item.success[-1] for item in items if item.episode.succeeded])
    return done, np.array([item.success[-1] for item in items if not item.episode.succeeded])


def _pooled_tpr(scored: Sequence[Scored], fpr: float, rng: np.random.Generator) -> Interval | None:
    tasks: dict[str, list[Scored]] = defaultdict(list)
    for item in scored:
        tasks[item.episode.task].append(item)
    frames = [_last_frames(items) for items in tasks.values()]

    def rate(chosen: Sequence[int]) -> float:
        done, failed = (np.concatenate([frames[i][part] for i in chosen]) for part in (0, 1))
        return tpr_at_fpr(done, failed, fpr) if len(done) and np.isfinite(failed).any() else float("nan")

    value = rate(range(len(frames)))
    if np.isnan(value):
        return None
    rates = [rate(rng.integers(len(frames), size=len(frames)).tolist()) for _ in range(500)]
    low, high = np.nanquantile(rates, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _changes(items: Sequence[Scored]) -> dict[str, float]:
    if not items:
        return {}
    judged = np.concatenate([changes(item.potential) for item in items])
    true = np.concatenate([changes(item.truth) for item in items])
    begun = np.concatenate([item.truth[:-CHANGE_WINDOW] for item in items])
    if not (np.isfinite(judged) & np.isfinite(true)).any():
        return {}
    found = {"rising_f1": change_f1(judged, true, 1), "falling_f1": change_f1(judged, true, -1)}
    standing = np.where(begun >= SUCCESS_FROM, np.nan, true)
    if (np.isfinite(judged) & np.isfinite(standing)).any():
        found["stall_f1"] = change_f1(judged, standing, 0)
    return found


def _uncertainty(items: Sequence[Scored]) -> dict[str, float]:
    potential, truth, spread = pool(items)
    found = {"abstained": float(np.isnan(potential).mean())}
    if not (np.isfinite(potential) & np.isfinite(truth) & np.isfinite(spread)).any():
        return found
    return found | {
        "calibration_error": calibration_error(potential, truth, spread),
        "aurc": area_under_risk_coverage(potential, truth, spread),
    }


def _probes(demonstrations: Sequence[Scored]) -> dict[str, float]:
    found = {}
    right = np.array([item.potential[-1] for item in demonstrations])
    for name in ("wrong_goal", "wrong_instruction", "own_goal"):
        asked = np.array([getattr(item, name) for item in demonstrations])
        known = np.isfinite(asked) & np.isfinite(right)
        if name == "own_goal" and known.any():
            found["own_goal_leak"] = float(np.abs(asked - right)[known].mean())
        elif known.any() and right[known].mean() > 0:
            found[f"{name}_ratio"] = float(asked[known].mean() / right[known].mean())
    return found
