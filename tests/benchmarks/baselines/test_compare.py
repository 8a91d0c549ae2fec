import numpy as np
import pytest
import torch

from benchmarks.baselines.compare import Corpus, Settings, adapt, arms, run, trained
from benchmarks.baselines.run import summarize

from .test_arms import SMALL, clip

SETTINGS = Settings("", (), "", "", (), "", "", steps=2, adapt=1)


@pytest.fixture
def corpus():
    training = [clip(s, task=t, behaviour=b) for t in "ab" for s, b in ((0, "expert"), (1, "expert"), (2, "stall"))]
    held_out = {
        task: [clip(s, task=task, behaviour=b) for s, b in ((0, "expert"), (1, "expert"), (2, "stall"), (3, "learner"))]
        for task in "cd"
    }
    texts = {f"move the square: {task}": torch.full((2,), float(n)) for n, task in enumerate("abcd")}
    return Corpus(SMALL, texts, training, training, held_out)


def test_every_arm_is_measured_on_every_held_out_task(corpus):
    for name in arms(corpus.views):
        rows = run(name, 0, SETTINGS, corpus)
        labels = [name, *(f"{p}_only" for p in arms(corpus.views)[name].perspectives)]
        assert sorted((row["arm"], row["task"]) for row in rows) == sorted((x, task) for x in labels for task in "cd")
        for row in rows:
            assert {"voc_plus", "spearman_demo", "mae_off_demo", "spearman_visited", "kendall_tau"} <= set(row), name
            assert ("success_auc" in row) == (name not in ("absolute", "vip", "rewind"))
            assert ("aurc" in row) == (name not in ("vip", "rewind", "classifier"))


def test_a_task_s_adaptation_does_not_reach_the_next(corpus):
    arm = arms(corpus.views)["ours"]
    head = trained(arm, 0, 2, corpus)
    before = [p.clone() for p in head.parameters()]
    new = adapt(head, arm, corpus.held_out["c"][0], corpus.training, corpus, steps=1, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, new.parameters(), strict=True))


def test_differences_are_paired_and_single_views_summed_up():
    found = {"ours": (0.9, 0.5), "vip": (0.6, 0.3), "single_view_top": (0.2, 0.4), "single_view_side": (0.6, 0.8)}
    rows = [
        {"arm": arm, "seed": 0, "task": task, "spearman_off_demo": value}
        for arm, values in found.items()
        for task, value in zip("cd", values, strict=True)
    ]
    summary = {name: interval.value for name, interval in summarize(rows).items()}
    assert summary["ours.spearman_off_demo"] == pytest.approx(0.7)
    assert summary["vip.spearman_off_demo.minus_ours"] == pytest.approx(np.mean([-0.3, -0.2]))
    assert summary["single_view_best.spearman_off_demo"] == pytest.approx(0.7)
    assert summary["single_view_mean.spearman_off_demo"] == pytest.approx(0.5)
    assert "ours.spearman_off_demo.minus_ours" not in summary
