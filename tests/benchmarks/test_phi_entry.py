import json
import sys

import numpy as np
import pytest

from benchmarks import phi_entry
from benchmarks.distilled import Asked, agreement, ask, distill
from envs.metaworld import MetaWorldEnv
from grm.errors import TaskError
from shaping import ModelPotential, StatePotential
from tests.shaping.test_potential import TASK, Brightness, seen


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


def test_the_value_scale_by_hand():
    """Half done of four decisions at gamma .9: two to go, .81; nothing done .9 to the fourth; done 1."""
    answers = iter([0.5, 0.0, 1.0])
    scaled = phi_entry.ValueScale(StatePotential[None](lambda _: next(answers)), gamma=0.9, horizon=4)
    judgement = scaled.reset([0, 1, 2], [None] * 3)
    np.testing.assert_allclose(judgement.potential, [0.81, 0.9**4, 1.0])
    assert judgement.judged.all()


def test_the_value_scale_keeps_abstentions_and_carries_the_spread():
    potential = phi_entry.ValueScale(ModelPotential(Brightness(spread=0.01), TASK), gamma=0.98, horizon=50)
    first = potential.reset([0, 1], [seen(51), seen(0)])
    assert first.judged.tolist() == [True, False]
    assert np.isnan([first.potential[1], first.spread[1]]).all()
    above, below = (0.98 ** ((1 - phi) * 50) for phi in (0.21, 0.19))
    assert first.spread[0] == pytest.approx((above - below) / 2, rel=1e-3)
    assert potential.advance([0], [seen(102)]).potential[0] == pytest.approx(0.98 ** (0.7 * 50))
