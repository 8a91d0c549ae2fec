import json
import sys

import numpy as np
import pytest

from benchmarks import label_noise
from benchmarks.label_noise import RULES, fallings, jitter, label_twice, measure, moments, prover_time, shares_of
from envs.metaworld import MetaWorldEnv

INF = float("inf")


def test_a_share_is_in_units_of_the_start():
    times = np.array([[0, 10, INF], [60, 30, 20]])
    assert shares_of(times, np.array([40, 20, INF]), horizon=200).tolist() == [[1.0, 0.75, 0.0], [0.0, 0.25, 0.5]]
    assert shares_of(times, np.full(3, INF), horizon=200).tolist() == [[1.0, 0.95, 0.0], [0.7, 0.85, 0.9]]


def test_rules_share_the_same_runs(monkeypatch):
    at_reset = {0: 40, 1: 20, 2: INF, 5: 100, 6: 80, 7: 120}  # units 40 and 100
    here = {0: 10, 1: 30, 2: INF, 3: 20, 4: 20, 5: 50, 6: INF, 7: INF, 8: 0, 9: 0}
    asked = []

    def time(env, state, prover, limit):
        asked.append((state, prover, limit))
        return (at_reset if state == "start" else here)[prover]

    class Env:
        def reset(self, *, seed):
            assert seed == 7

    monkeypatch.setattr(label_noise, "prover_time", time)
    found = label_twice(Env(), label_noise.Moments(7, "start", ["here"]), horizon=200)
    assert {rule: labels[:, 0].tolist() for rule, labels in found.items()} == {
        "median3": [0.25, 0.0],
        "mean3": pytest.approx([1 / 3, 0.5 / 3]),
        "mean5": pytest.approx([0.4, 0.5]),
    }
    assert len(asked) == len(set(asked)) == 3 + 5 + 3 + 5, "no run is made twice"
    assert {limit for state, _, limit in asked if state == "here"} == {40, 100}


def test_jitter_forgives_steady_progress():
    assert jitter(np.linspace(0.2, 0.8, 7)) == pytest.approx(0, abs=1e-12)
    assert jitter(np.array([0.5, 0.0, 0.5])) == 1.0


def test_what_falls_is_looked_for_in_windows():
    ours, others = [0.5, 0.3, 0.5, 0.46, 0.4, 0.3, 0.2, 0.4], [0.5, 0.4, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4]
    found = fallings(np.array([ours, others]))
    assert found == {"falling": 0.5, "falling_f1": 0.5}, "windows 1 and 3 fall; found were 1 and 2"
    assert np.isnan(fallings(np.array([[0.1, 0.2], [0.2, 0.1]]))["falling_f1"])


def test_windows_begin_in_the_episode():
    env = MetaWorldEnv("reach-v3", action_repeat=4, horizon=50)
    every = moments(env, "noisy", 5, np.linspace(0, 1, 1000).tolist()).states
    kept = moments(env, "noisy", 5, [0.0, 0.5, 1.0], window=5)
    env.close()
    last = len(every) - 1
    half = round(0.5 * last)
    expected = [every[half - 5], every[half], every[last - 5], every[last]] if half >= 5 else [every[-6], every[-1]]
    assert len(kept.states) == len(expected)
    for one, other in zip(kept.states, expected, strict=True):
        np.testing.assert_array_equal(one.physics, other.physics)


def test_labels_are_the_ones_made_everywhere():
    env = MetaWorldEnv("hand-insert-v3", action_repeat=4, horizon=50)
    prover = MetaWorldEnv("hand-insert-v3", action_repeat=1, horizon=1_000_000)
    kept = moments(env, "noisy", 5, [0.0, 0.4])
    found = label_twice(prover, kept, horizon=200)
    env.reset(seed=5)
    for index, state in enumerate(kept.states):
        env.restore(state)
        for count in (3, 5):
            assert found[f"mean{count}"][0, index] == pytest.approx(env.true_progress(provers=count))
    env.restore(kept.states[1])
    prover.reset(seed=5)
    expected = env.time_to_go(limit=100) * 4
    assert [prover_time(prover, kept.states[1], number, 100) for number in range(3)] == expected.tolist()
    env.close()
    prover.close()


def test_a_task_where_nothing_is_in_doubt():
    row = measure("reach-v3", episodes=1, states=4, windows=2, frames=3, first=0)
    assert row["states"] == 4
    for rule in RULES:
        assert row[f"mae_{rule}"] < 0.05
        assert row[f"spearman_{rule}"] > 0.9


def test_the_table_is_written(tmp_path, monkeypatch):
    def row(task, **options):
        rho = float("nan") if task == "door-lock-v3" else 0.81
        known = {f"mae_{rule}": 0.1 for rule in RULES} | {f"spearman_{rule}": 0.64 for rule in RULES}
        return {"task": task, "states": 3} | known | {"spearman_median3": rho}

    monkeypatch.setattr(label_noise, "measure", row)
    monkeypatch.setattr(label_noise, "write_result", lambda *a, **k: json.dumps(found.append((a, k)) or [a, k]))
    monkeypatch.setattr(sys, "argv", ["label_noise.py", "--tasks", "door-lock-v3", "reach-v3"])
    found = []
    label_noise.main()
    [((name, summary), about)] = found
    assert name == "label_noise"
    assert summary["spearman_median3"].value == summary["training_spearman_median3"].value == 0.81
    assert "held_out_spearman_median3" not in summary, "its labels were all equal: nothing was measured"
    assert "held_out_spearman_ceiling_median3" not in summary
    assert summary["held_out_mae_median3"].value == summary["held_out_mae_mean5"].value == 0.1
    assert summary["spearman_ceiling_median3"] == pytest.approx(0.9)
    assert summary["held_out_spearman_ceiling_mean5"] == pytest.approx(0.8)
    assert (about["tasks_ordered_median3"], about["tasks_ordered_mean5"]) == (1, 2)
    assert [entry["spearman_median3"] for entry in about["rows"]] == ["", 0.81]
