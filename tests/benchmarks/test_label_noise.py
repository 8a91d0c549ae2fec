import json
import sys

import numpy as np
import pytest

from benchmarks import label_noise
from benchmarks.label_noise import jitter, labels_of, measure, moments, prover_time
from envs.metaworld import MetaWorldEnv

INF = float("inf")


def test_a_label_is_the_median_in_units_of_the_start():
    times = np.array([[0, 0, 0], [10, 30, 20], [INF, 10, 20], [INF, INF, 0], [60, 50, 70]])
    found = labels_of(times, np.array([40, 20, INF]), horizon=200)
    assert found.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0]
    assert labels_of(times, np.full(3, INF), horizon=200).tolist() == [1.0, 0.9, 0.9, 0.0, 0.7]


def test_jitter_forgives_steady_progress():
    assert jitter(np.linspace(0.2, 0.8, 7)) == pytest.approx(0, abs=1e-12)
    assert jitter(np.array([0.5, 0.0, 0.5])) == 1.0


def test_provers_are_the_ones_that_label():
    env, prover = MetaWorldEnv("hand-insert-v3", action_repeat=4, horizon=50), MetaWorldEnv("hand-insert-v3")
    prover.action_repeat, prover.horizon = 1, 1_000_000
    kept = moments(env, "noisy", 5, [0.0, 0.1])
    prover.reset(seed=5)
    for state in kept.states:
        env.restore(state)
        expected = env.time_to_go(limit=100)
        found = [prover_time(prover, state, number, 100) / 4 for number in range(3)]
        asked = np.isfinite(expected)  # the last is not asked once the median is known
        if state is kept.start:
            assert asked.all()
        np.testing.assert_array_equal(np.array(found)[asked], expected[asked])
    env.close()
    prover.close()


def test_a_task_where_nothing_is_in_doubt():
    row = measure("reach-v3", episodes=1, states=4, frames=3, first=0)
    assert row["states"] == 4
    assert row["mae"] < 0.05
    assert row["spearman"] > 0.9


def test_the_table_is_written(tmp_path, monkeypatch):
    def row(task, **options):
        rho = float("nan") if task == "door-lock-v3" else 0.81
        return {"task": task, "states": 3, "mae": 0.1, "spearman": rho}

    monkeypatch.setattr(label_noise, "measure", row)
    monkeypatch.setattr(label_noise, "write_result", lambda *a, **k: json.dumps(found.append((a, k)) or [a, k]))
    monkeypatch.setattr(sys, "argv", ["label_noise.py", "--tasks", "door-lock-v3", "reach-v3"])
    found = []
    label_noise.main()
    [((name, summary), about)] = found
    assert name == "label_noise"
    assert summary["spearman"].value == summary["training_spearman"].value == 0.81
    assert "held_out_spearman" not in summary, "its labels were all equal: nothing was measured"
    assert summary["held_out_mae"].value == 0.1
    assert summary["spearman_ceiling"] == pytest.approx(0.9)
    assert about["tasks_ordered"] == 1
    assert [entry["spearman"] for entry in about["rows"]] == ["", 0.81]
