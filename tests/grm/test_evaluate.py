import dataclasses

import numpy as np
import pytest

from grm.data.episodes import Episode
from grm.errors import TraceError
from grm.evaluate import METRICS, Scored, by_task, score, score_all, summarize
from grm.hops import hops_between
from grm.reward import PerspectiveJudgement

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
        columns = dict.fromkeys(("spread", "incremental", "forward", "backward"), nothing)
        return PerspectiveJudgement(potential=phi, success=phi, judged=~np.isnan(phi), **columns)

    def hops(self, task, initial, before, after):
        pairs = zip(self.phi(before), self.phi(after), strict=True)
        return np.array([hops_between([b, a])[-1] if np.isfinite([b, a]).all() else np.nan for b, a in pairs])


def scored(potential, truth, success=0.5, *, behaviour="expert", voc_minus=np.nan, task="right-v3") -> Scored:
    episode = square(0, task=task, behaviour=behaviour, length=len(truth))
    return Scored(
        episode=episode,
        potential=np.array(potential, float),
        spread=np.zeros(len(truth)),
        truth=np.array(truth, float),
        success=np.full(len(truth), float(success)),
        voc_minus=voc_minus,
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


def test_no_order_backwards_where_a_hop_is_missing_or_nobody_demonstrates():
    assert np.isnan(score(Truthful(8, missing=(3,)), square(0), None).voc_minus)
    failure = score(Truthful(8), square(0, behaviour="undo"), None)
    assert np.isnan(failure.voc_minus)
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
    assert sorted(metrics) == sorted(METRICS)
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
    assert set(by_task([scored([0.1, 0.2], [0.0, 0.4], behaviour="undo")])["right-v3"]) == {
        "mae_off_demo",
        "spearman_off_demo",
    }
    constant = by_task([scored([0.3, 0.3], [0.0, 0.4], behaviour="undo")])["right-v3"]
    assert set(constant) == {"mae_off_demo"}, "a correlation with a constant is undefined"


def test_unknown_truth_leaves_order_in_time_only():
    nan = [np.nan, np.nan, np.nan]
    metrics = by_task([scored([0.0, 0.4, 0.9], nan, voc_minus=1.0)])["right-v3"]
    assert metrics == pytest.approx({"voc_plus": 1.0, "voc_minus": 1.0})


def test_an_abstention_never_counts_as_a_number():
    nan = [np.nan, np.nan]
    silent = [scored(nan, [0.0, 1.0], np.nan), scored(nan, [0.0, 0.2], np.nan, behaviour="undo")]
    assert by_task(silent) == {"right-v3": {}}
    spoken = [scored([0.0, 1.0], [0.0, 1.0], 0.9), scored([0.0, 0.1], [0.0, 0.2], 0.1, behaviour="undo")]
    assert by_task(silent + spoken) == by_task(spoken)


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
    assert by_task([result]) == {"right-v3": {}}
