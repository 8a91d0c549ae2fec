import json
import sys

import numpy as np
import pytest

from benchmarks import phi_entry
from benchmarks.distilled import Asked, agreement, ask, distill
from envs.metaworld import MetaWorldEnv
from grm.errors import TaskError


def test_held_out_tasks_are_not_tuned_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["phi_entry", "--tasks", "hand-insert"])
    with pytest.raises(TaskError, match="held out"):
        phi_entry.main()


def test_arms_are_compared_with_the_sparse_one_of_the_same_task_and_seed():
    rows = [
        {"task": task, "seed": seed, "arm": arm, "mean": base + gain, "last": 0.5, "fresh": 1.0}
        for task, seed, base in (("a", 0, 0.1), ("a", 1, 0.5), ("b", 0, 0.2))
        for arm, gain in (("sparse", 0.0), ("guided", 0.3))
        if (task, arm) != ("b", "guided")
    ]
    summary = phi_entry.summarise(rows)
    assert summary["guided minus sparse: mean"].value == pytest.approx(0.3)
    assert summary["guided: mean"].value == pytest.approx(0.6)
    assert (summary["guided: runs"], summary["sparse: runs"]) == (2, 3)
    assert "sparse minus sparse: mean" not in summary


def test_a_run_is_not_repeated(tmp_path):
    options = type("Options", (), {"out": tmp_path, "seeds": [3], "rollouts": 1})
    (tmp_path / "push-v3" / "3").mkdir(parents=True)
    (tmp_path / "push-v3" / "3" / "sparse.json").write_text(json.dumps({"arm": "sparse"}))
    assert phi_entry.run("push-v3", 3, "sparse", phi_entry.ARMS["sparse"], options) == {"arm": "sparse"}


def test_provers_label_where_the_learner_was_and_what_they_pass():
    env = MetaWorldEnv("reach", horizon=500)
    env.reset(seed=5)
    actions = []
    while not env.succeeded:
        actions.append(env.expert_action())
        env.step(actions[-1])
    asked = ask(env, [(5, np.array(actions))], per_rollout=40, gamma=0.9, seed=0)
    visited = np.flatnonzero(asked.visited)
    assert len(visited) > len(actions) / 2, "forty draws with replacement should find most moments"
    assert (np.diff(asked.linear[visited]) > -0.15).all(), "an expert comes nearer"
    assert asked.linear[visited[0]] < 0.2 < 0.7 < asked.linear[visited[-1]]
    assert asked.value[visited[-1]] == pytest.approx(1.0, abs=0.11)  # one decision to go, for one prover perhaps two
    passed = ~asked.visited
    togo = np.log(asked.value[passed]) / np.log(0.9) + 1
    np.testing.assert_allclose(togo, np.round(togo), atol=1e-3)
    assert togo.min() >= 1
    env.close()


def test_what_is_distilled_agrees_with_what_was_asked():
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (400, 3)).astype(np.float32)
    linear = (0.5 + 0.4 * states[:, 0]).astype(np.float32)
    asked = Asked(states=states, linear=linear, value=linear**2, visited=np.arange(400) % 2 == 0)
    model = distill(asked, seed=0, steps=600)
    found = agreement(model, asked)
    assert found["spearman"] > 0.98
    assert max(found["error_linear"], found["error_value"]) < 0.03
    untrained = agreement(distill(asked, seed=0, steps=0), asked)
    assert untrained["error_linear"] > 0.1
