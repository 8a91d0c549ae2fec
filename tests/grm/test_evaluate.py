import dataclasses

import numpy as np
import pytest

from grm.data.episodes import Episode
from grm.data.stepwise import LabelledSolution
from grm.errors import TraceError
from grm.evaluate import (
    METRICS,
    HopModel,
    Scored,
    by_task,
    pooled,
    score,
    score_all,
    score_reasoning,
    summarize,
)
from grm.hops import hops_between
from grm.models.oracle import Oracle, progress_by_time
from grm.reward import Judgement, PerspectiveJudgement, ScoredJudgement, ScoreKind
from grm.text.arithmetic import ArithmeticJudge

from ..tiny import square, tiny_grm


class Truthful:
    """Answers with the frame's own time in tenths of a second over `length`, as an oracle that can be bent would."""

    def __init__(self, length: int, *, bend=lambda phi: phi, missing=()) -> None:
        self.length, self.bend, self.missing = length, bend, missing
        self.tasks = []

    def phi(self, frames):
        times = [round(frame.time * 10) for frame in frames]
        return np.array([np.nan if t in self.missing else self.bend(t / (self.length - 1)) for t in times])

    def judge(self, task, steps):
        self.tasks.append(task)
        phi = self.phi(steps)
        nothing = np.where(np.isnan(phi), np.nan, 0.0)
        columns = dict.fromkeys(("spread", "incremental", "forward", "backward", "absolute"), nothing)
        return PerspectiveJudgement(potential=phi, success=phi, judged=~np.isnan(phi), **columns)

    def hops(self, task, initial, before, after):
        pairs = zip(self.phi(before), self.phi(after), strict=True)
        return np.array([hops_between([b, a])[-1] if np.isfinite([b, a]).all() else np.nan for b, a in pairs])


def scored(
    potential, truth, success=0.5, *, behaviour="expert", voc_minus=np.nan, task="right-v3", spread=0.0, **probes
) -> Scored:
    episode = square(0, task=task, behaviour=behaviour, length=len(truth))
    episode = dataclasses.replace(episode, progress=np.array(truth, np.float32))
    return Scored(
        episode=episode,
        potential=np.array(potential, float),
        spread=np.full(len(truth), float(spread)),
        truth=np.array(truth, float),
        success=np.full(len(truth), float(success)),
        voc_minus=voc_minus,
        **probes,
    )


def test_every_nth_frame_and_always_the_last():
    model = Truthful(8)
    result = score(model, square(0), None, stride=3)
    np.testing.assert_allclose(result.potential, np.array([0, 3, 6, 7]) / 7)
    np.testing.assert_allclose(result.truth, np.array([0, 3, 6, 7]) / 7, atol=1e-6)
    assert result.voc_minus == pytest.approx(1.0)
    assert result.demonstration


def test_the_goal_is_the_one_given_and_never_the_episodes_own():
    model, other = Truthful(8), square(5).frames[-1]
    score_all(model, [square(0), square(1)], {"right-v3": other})
    assert [task.goal for task in model.tasks] == [other, other]


def test_what_always_says_further_has_no_order_backwards():
    model = Truthful(8)
    model.hops = lambda task, initial, before, after: np.full(len(before), 0.01)
    result = score(model, square(0), None)
    assert result.voc_minus == 0.0
    assert by_task([result])["right-v3"]["voc_both"] == 0.0
    model.hops = lambda task, initial, before, after: (
        np.sign(after[0].time - before[0].time) * np.full(len(before), 0.2)
    )
    assert by_task([score(model, square(0), None)])["right-v3"]["voc_both"] == pytest.approx(1.0)


def test_no_order_backwards_where_a_hop_is_missing_or_nobody_demonstrates():
    assert np.isnan(score(Truthful(8, missing=(3,)), square(0), None).voc_minus)
    failure = score(Truthful(8), square(0, behaviour="undo"), None)
    assert np.isnan(failure.voc_minus)
    assert np.isnan(score(Truthful(8, missing=(3,)), square(0), None).voc_both)
    assert not failure.demonstration


def test_a_task_without_a_goal_picture_is_refused():
    frame = square(0).frames[-1]
    with pytest.raises(TraceError, match=r"no goal picture for 'left-v3'; .* right-v3"):
        score_all(Truthful(8), [square(0, task="left-v3")], {"right-v3": frame})
    with pytest.raises(TraceError, match="there are some for none"):
        score_all(Truthful(8), [square(0)], {})


def test_after_each_is_called_once_per_episode():
    count = []
    score_all(
        Truthful(8), [square(0), square(1)], {"right-v3": square(2).frames[-1]}, after_each=lambda: count.append(1)
    )
    assert len(count) == 2


def test_metrics_by_hand():
    metrics = by_task(
        [
            scored([0.0, 0.25, 1.0], [0.0, 0.5, 1.0], 0.9, voc_minus=0.8),
            scored([0.0, 1.0, 0.5], [0.0, 0.5, 1.0], 0.4, voc_minus=0.2),
            scored([0.1, 0.3, 0.3], [0.0, 0.4, 0.2], 0.4, behaviour="undo"),
        ]
    )["right-v3"]
    assert set(metrics) < set(METRICS)
    assert metrics["voc_plus"] == pytest.approx((1.0 + 0.5) / 2)
    assert metrics["voc_minus"] == pytest.approx(0.5)
    assert metrics["mae_demo"] == pytest.approx((0.25 + 0.5 + 0.5) / 6)
    # Pooled over both: potentials rank 1.5 3 5.5 1.5 5.5 4, truths 1.5 3.5 5.5 1.5 3.5 5.5.
    ranks = np.corrcoef([1.5, 3, 5.5, 1.5, 5.5, 4], [1.5, 3.5, 5.5, 1.5, 3.5, 5.5])[0, 1]
    assert metrics["spearman_demo"] == pytest.approx(ranks)
    assert metrics["mae_off_demo"] == pytest.approx(0.1)
    assert metrics["spearman_off_demo"] == pytest.approx(np.sqrt(3) / 2)
    assert metrics["success_auc"] == pytest.approx(0.75), "one of two wins, the other ties"


def test_tasks_are_kept_apart():
    tasks = by_task([scored([0.0, 1.0], [0.0, 1.0]), scored([1.0, 0.0], [0.0, 1.0], task="left-v3")])
    assert tasks["right-v3"]["voc_plus"] == pytest.approx(1.0)
    assert tasks["left-v3"]["voc_plus"] == pytest.approx(-1.0)


def test_a_metric_without_data_is_absent():
    always = {"mae_off_demo", "completion_accuracy", "calibration_error", "aurc", "abstained"}
    found = by_task([scored([0.1, 0.2], [0.0, 0.4], behaviour="undo")])["right-v3"]
    assert set(found) == always | {"spearman_off_demo"}
    assert list(found) == [name for name in METRICS if name in found], "in one order"
    constant = by_task([scored([0.3, 0.3], [0.0, 0.4], behaviour="undo")])["right-v3"]
    assert set(constant) == always, "a correlation with a constant is undefined"


def test_unknown_truth_leaves_order_in_time_only():
    nan = [np.nan, np.nan, np.nan]
    metrics = by_task([scored([0.0, 0.4, 0.9], nan, voc_minus=1.0)])["right-v3"]
    expected = {"voc_plus": 1.0, "voc_minus": 1.0, "completion_accuracy": 1.0, "abstained": 0.0}
    assert metrics == pytest.approx(expected), "an outcome is known without labels"


def test_an_abstention_never_counts_as_a_number():
    nan = [np.nan, np.nan]
    silent = [scored(nan, [0.0, 1.0], np.nan), scored(nan, [0.0, 0.2], np.nan, behaviour="undo")]
    assert by_task(silent) == {"right-v3": {"abstained": 1.0}}
    spoken = [scored([0.0, 1.0], [0.0, 1.0], 0.9), scored([0.0, 0.1], [0.0, 0.2], 0.1, behaviour="undo")]
    alone, beside = (by_task(items)["right-v3"] for items in (spoken, silent + spoken))
    assert alone["abstained"] == 0
    assert alone["tpr_at_fpr0"] == 1
    assert beside == alone | {"abstained": 0.5, "tpr_at_fpr0": 0.5, "tpr_at_fpr1": 0.5}, (
        "a success passed over is missed"
    )


def test_summary_is_the_mean_over_tasks_that_have_the_metric():
    summary = summarize({"a": {"voc_plus": 1.0, "mae_demo": 0.1}, "b": {"voc_plus": 0.5}})
    assert set(summary) == {"voc_plus", "mae_demo"}
    assert summary["voc_plus"].value == pytest.approx(0.75)
    assert 0.5 <= summary["voc_plus"].low <= summary["voc_plus"].high <= 1.0
    assert summary["mae_demo"] == pytest.approx((0.1, 0.1, 0.1))
    assert summarize({}) == {}


def test_a_real_network_passes_the_same_door():
    episodes: list[Episode] = [square(0), square(1, behaviour="undo")]
    results = score_all(tiny_grm(), episodes, {"right-v3": square(2).frames[-1]}, stride=2)
    assert [len(result.potential) for result in results] == [5, 5]
    assert np.isfinite(results[0].voc_minus)
    assert np.isnan(results[1].voc_minus)
    metrics = by_task(results)["right-v3"]
    assert {"mae_demo", "mae_off_demo", "success_auc"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())


def test_an_episode_no_camera_saw_is_abstained_from():
    blind = dataclasses.replace(square(0), views={})
    [result] = score_all(tiny_grm(), [blind], {"right-v3": square(2).frames[-1]})
    assert np.isnan(result.potential).all()
    assert by_task([result]) == {"right-v3": {"abstained": 1.0}}


# --- any judge --------------------------------------------------------------------------------------------------------


class Deaf:
    """Sees the truth, hears nothing: its potential is the frame's time, scaled by how well goal and words fit."""

    def __init__(self, goal_share: float, word_share: float) -> None:
        self.goal_share, self.word_share = goal_share, word_share

    def judge(self, task, steps):
        phi = np.array([frame.time / 0.7 for frame in steps])
        if task.goal is steps[-1]:
            phi = phi * 0.25
        if task.goal.time > 1:  # the other task's, below
            phi = phi * self.goal_share
        if "left" in task.instruction:
            phi = phi * self.word_share
        return Judgement(potential=phi, spread=np.zeros_like(phi), judged=np.ones(len(phi), bool))


def test_an_oracle_is_perfect():
    experts = [square(0), square(1)]
    others = [square(2, behaviour="undo"), square(3, behaviour="learner"), square(4, behaviour="stall")]
    oracle = Oracle(lambda frame: float(np.clip(frame.time / 0.7, 0, 1)))
    assert not isinstance(oracle, HopModel)
    results = score_all(oracle, experts, {"right-v3": square(9).frames[-1]})
    half = Oracle(progress_by_time(np.arange(8) / 10, np.linspace(0, 0.5, 8)))
    results += score_all(half, others, {"right-v3": square(9).frames[-1]})
    assert [r.visited for r in results] == [False, False, False, True, False]
    metrics = by_task(results)["right-v3"]
    perfect = {"voc_plus", "voc_minus", "spearman_demo", "spearman_off_demo", "spearman_visited", "kendall_tau"}
    perfect |= {"completion_accuracy", "rising_f1"}
    for name in perfect:
        assert metrics[name] == pytest.approx(1), name
    for name in ("mae_demo", "mae_off_demo", "mae_visited", "aurc", "abstained"):
        assert metrics[name] == pytest.approx(0, abs=1e-6), name
    assert not {"success_auc", "tpr_at_fpr0", "falling_f1", "wrong_goal_ratio"} & set(metrics), "nothing to measure"
    assert pooled(results) == metrics, "of one task"


def test_a_judge_without_hops_is_played_backwards():
    class Further:
        def judge(self, task, steps):
            phi = np.linspace(0, 0.1, len(steps))
            return Judgement(potential=phi, spread=0 * phi, judged=np.ones(len(phi), bool))

    result = score(Further(), square(0), None)
    assert by_task([result])["right-v3"]["voc_plus"] == pytest.approx(1)
    assert result.voc_minus == pytest.approx(-1), "it goes further backwards too"


def test_a_stride_that_is_none():
    with pytest.raises(TraceError, match="stride is 0"):
        score(Truthful(8), square(0), None, stride=0)


def test_probes_ask_for_another_task_and_for_the_own_end():
    goals = {"right-v3": square(8).frames[-1], "left-v3": square(9, task="left-v3", length=20).frames[-1]}
    words = {"right-v3": "move the square: right-v3", "left-v3": "to the left"}
    episodes = [square(0), square(1, behaviour="undo")]
    asked = score_all(Deaf(0.5, 0.2), episodes, goals, instructions=words, rng=np.random.default_rng(0))
    assert (asked[0].wrong_goal, asked[0].wrong_instruction, asked[0].own_goal) == pytest.approx((0.5, 0.2, 0.25))
    assert np.isnan([asked[1].wrong_goal, asked[1].wrong_instruction, asked[1].own_goal]).all()
    metrics = by_task(asked)["right-v3"]
    assert metrics["wrong_goal_ratio"] == pytest.approx(0.5)
    assert metrics["wrong_instruction_ratio"] == pytest.approx(0.2)
    assert metrics["own_goal_leak"] == pytest.approx(0.75)
    [silent] = score_all(Deaf(0.5, 0.2), episodes[:1], goals, instructions=words)
    assert np.isnan(silent.own_goal), "only asked with a generator"
    # A task that is called the same, or that nobody names, is no wrong one.
    alike = score_all(Deaf(0.5, 0.2), episodes[:1], goals, rng=np.random.default_rng(0))
    assert np.isnan(alike[0].wrong_goal)
    assert alike[0].own_goal == pytest.approx(0.25)


def test_a_wrong_instruction_is_a_share_of_means():
    items = [
        scored([0.0, 0.9], [0, 1], wrong_instruction=0.3, wrong_goal=0.0, own_goal=1.0),
        scored([0.0, 0.1], [0, 1], wrong_instruction=0.2, wrong_goal=0.5, own_goal=0.0),
        scored([0.0, np.nan], [0, 1], wrong_instruction=0.9, wrong_goal=0.9, own_goal=0.9),
    ]
    metrics = by_task(items)["right-v3"]
    assert metrics["wrong_instruction_ratio"] == pytest.approx(0.5)
    assert metrics["wrong_goal_ratio"] == pytest.approx(0.5)
    assert metrics["own_goal_leak"] == pytest.approx(0.1)


# --- ranking, detection and changes over episodes ---------------------------------------------------------------------


def test_trajectories_are_ranked_by_their_last_potential():
    items = [
        scored([0.9, 0.6], [0.0, 1.0], np.nan),  # success
        scored([0.0, 0.7], [0.6, 0.2], np.nan, behaviour="undo"),  # partial: it was at 0.6
        scored([0.0, 0.3], [0.0, 0.4], np.nan, behaviour="learner"),  # fail
        scored([0.0, np.nan], [0.0, 0.4], np.nan, behaviour="undo"),  # not judged
        scored([0.0, 0.9], [np.nan, np.nan], np.nan, behaviour="undo"),  # nobody knows
    ]
    metrics = by_task(items)["right-v3"]
    assert metrics["kendall_tau"] == pytest.approx((2 - 1) / 3)
    assert metrics["completion_accuracy"] == pytest.approx(2 / 3), "0.6 at the end is partial without a success head"


def test_one_threshold_for_all_tasks():
    items = [
        scored([0, 1], [0, 1], 0.9),
        scored([0, 0], [0, 0], 0.3, behaviour="learner"),
        scored([0, 1], [0, 1], 0.6, task="left-v3"),
        scored([0, 0], [0, 0], 0.5, behaviour="undo", task="left-v3"),
        scored([0, 1], [0, 1], 0.2, task="up-v3"),
        scored([0, 0], [0, 0], 0.1, behaviour="undo", task="up-v3"),
    ]
    tasks = by_task(items)
    assert [m["tpr_at_fpr0"] for m in tasks.values()] == [1, 1, 1]
    assert pooled(items)["tpr_at_fpr0"] == pytest.approx(2 / 3)
    summary = summarize(tasks, items)
    assert summary["tpr_at_fpr0"].value == pytest.approx(2 / 3)
    assert summary["tpr_at_fpr0"].low <= 2 / 3 <= summary["tpr_at_fpr0"].high <= 1
    assert summarize(tasks)["tpr_at_fpr0"].value == 1, "the mean over tasks, without the episodes"
    assert list(summary) == [name for name in METRICS if name in summary]


def test_changes_are_looked_for_off_the_demonstration_only():
    up, flat, down = [0.0] * 5 + [0.5], [0.5] * 6, [0.5] * 5 + [0.0]
    items = [
        scored(up, up, behaviour="undo"),
        scored(up, flat, behaviour="learner"),
        scored(down, down, behaviour="learner"),
        scored(down, up),  # a demonstration
        scored(flat, [1.0] * 6, behaviour="undo"),  # done: standing still is no stall
    ]
    metrics = by_task(items)["right-v3"]
    assert metrics["rising_f1"] == pytest.approx(2 / 3)
    assert metrics["falling_f1"] == 1
    assert metrics["stall_f1"] == 0


def test_the_spread_is_measured_on_all_frames():
    items = [
        scored([0.1, 0.2], [0.0, 0.0], spread=0.1, behaviour="undo"),
        scored([0.6, 0.6], [0.3, 0.3], spread=0.2),
    ]
    metrics = by_task(items)["right-v3"]
    # Errors .1 .2 .3 .3 by spread: risks .15 .15 .2 .225 with the tied ones averaged.
    assert metrics["aurc"] == pytest.approx((0.15 + 0.15 + 0.2 + 0.225) / 4)
    assert 0 < metrics["calibration_error"] < 0.5


# --- reasoning steps, measured by the same functions ------------------------------------------------------------------


def chain(*steps, first_error, correct=None):
    right = len(steps) if first_error < 0 else first_error
    labels = tuple(1.0 if i < right else 0.0 if i == right else None for i in range(len(steps)))
    return LabelledSolution(
        prompt="p", steps=steps, labels=labels, first_error=first_error, final_answer_correct=correct
    )


SOUND = chain("x0 = 3", *(f"x{i} = x{i - 1} + 1 = {3 + i}" for i in range(1, 8)), first_error=-1)
FAULTY = chain("x0 = 3", "x1 = x0 + 1 = 5", *(f"x{i} = x{i - 1} + 1 = {4 + i}" for i in range(2, 8)), first_error=1)
UNREAD = chain("well", "x0 = 3", first_error=-1)


def test_a_text_verifier_and_a_robot_grm_stand_in_one_table():
    """One path: what differs is where potential and truth come from, and nothing after that."""
    episodes = [square(0), square(1, behaviour="undo")]
    robot = score_all(tiny_grm(), episodes, {"right-v3": square(2).frames[-1]})
    text = score_reasoning(ArithmeticJudge(), [SOUND, FAULTY], task="chains")
    table = by_task([*robot, *text])
    assert set(table) == {"right-v3", "chains"}
    shared = {"mae_off_demo", "completion_accuracy", "kendall_tau", "success_auc", "tpr_at_fpr0", "abstained"}
    assert shared <= set(table["right-v3"]) & set(table["chains"])
    truth = {"mae_off_demo": 0, "completion_accuracy": 1, "kendall_tau": 1, "success_auc": 1, "spearman_off_demo": 1}
    assert {name: table["chains"][name] for name in truth} == pytest.approx(truth), "this judge knows the truth"
    assert "voc_plus" not in table["chains"], "a right solution stands still at 1"
    assert summarize(table)["mae_off_demo"].value > 0


def test_reasoning_that_is_not_judged_is_no_number():
    found = by_task(score_reasoning(ArithmeticJudge(), [UNREAD, FAULTY], task="chains"))["chains"]
    assert found["abstained"] == pytest.approx(2 / 10)
    assert found["tpr_at_fpr0"] == 0, "a right solution that is not recognised is missed"


def test_the_truth_of_values_is_their_labels():
    class Values:
        def judge(self, task, steps):
            values = np.array([0.5, 0.25])
            none = np.zeros(2)
            return ScoredJudgement(potential=values, spread=none, judged=none == 0, score=values, kind=ScoreKind.VALUE)

    soft = LabelledSolution(prompt="p", steps=("a", "b"), labels=(0.5, None), final_answer_correct=False)
    [one] = score_reasoning(Values(), [soft], task="t")
    np.testing.assert_array_equal(one.truth, [0.5, np.nan])
    assert not one.episode.succeeded
    with pytest.raises(TraceError, match="nothing says whether the solution of 'p' is right"):
        score_reasoning(Values(), [dataclasses.replace(soft, final_answer_correct=None)], task="t")
