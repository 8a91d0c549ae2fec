"""Tests of `benchmarks.on_policy`."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from benchmarks import on_policy, results
from benchmarks.on_policy import GAMMA, OnPolicy, densely_shaped, main, world
from grm.errors import TaskError, TraceError


@pytest.fixture
def written(tmp_path, monkeypatch):
    for module in (on_policy, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "this_commit", lambda: "0000000")
    return tmp_path


def test_the_dense_potential_telescopes():
    horizon, shaped, plain = 12, densely_shaped("reach-v3", 12, 2), world("reach-v3", 12, count=2)
    for venv in (shaped, plain):
        venv.seed(5)
        venv.reset()
    rng, total, phi = np.random.default_rng(0), np.zeros(2), []
    for t in range(horizon):
        action = rng.uniform(-1, 1, (2, 4)).astype(np.float32)
        _, reward, ended, infos = shaped.step(action)
        _, task_reward, *_ = plain.step(action)
        total += GAMMA**t * (reward - task_reward)
        phi.append([info["dense_reward"] for info in infos])
    assert ended.all()
    assert np.ptp(phi) > 0.01, "a potential that says one thing proves nothing"
    # A truncation is no end of the task: its potential stays.
    np.testing.assert_allclose(total, GAMMA**horizon * np.clip(phi[-1], 0, 1), atol=1e-5)


def test_rows_of_a_results_file_are_kept_and_those_of_other_settings_refused(written, monkeypatch):
    options = OnPolicy(tasks=("reach",), seeds=(0,), arms=("sparse",), decisions=64, environments=2, out=written)
    monkeypatch.setattr(
        on_policy,
        "run",
        lambda task, seed, arm, _: {"task": task, "seed": seed, "arm": arm, "success": 0.5, "seconds": 1},
    )
    main(options)
    (written / "on_policy.csv").rename(written / "kept.csv")
    (written / "on_policy.json").rename(written / "kept.json")
    main(dataclasses.replace(options, merge=True))  # nothing is there to be kept
    assert (written / "on_policy.csv").read_text() == (written / "kept.csv").read_text()
    main(
        OnPolicy(tasks=("reach",), seeds=(0, 1), arms=("dense",), merge=True, decisions=64, environments=2, out=written)
    )
    with (written / "on_policy.csv").open() as file:
        assert [(row["seed"], row["arm"]) for row in csv.DictReader(file)] == [
            ("0", "sparse"),
            ("0", "dense"),
            ("1", "dense"),
        ]
    found = json.loads((written / "on_policy.json").read_text())
    assert found["seeds"] == [0, 1]
    assert set(found["summary"]) == {"reach-v3.sparse", "reach-v3.dense"}
    with pytest.raises(TraceError, match="merge what was run alike"):
        main(OnPolicy(tasks=("reach",), seeds=(0,), arms=("dense",), merge=True, decisions=65, environments=2))


def test_tasks_and_arms_are_checked_before_anything_runs():
    with pytest.raises(TaskError, match="expected a training task"):
        main(OnPolicy(tasks=("assembly",)))
    with pytest.raises(TaskError, match="unknown arm 'denser'"):
        main(OnPolicy(arms=("sparse", "denser")))
