import csv
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import phi_entry, results
from benchmarks.distilled import Asked, agreement, ask, distill
from benchmarks.phi_entry import PhiEntry, main
from envs.metaworld import MetaWorldEnv
from grm.errors import TaskError, TraceError


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "this_commit", lambda: "0000000")
    monkeypatch.setattr(phi_entry, "this_commit", lambda: "0000000")
    return tmp_path


def test_held_out_tasks_and_unknown_ways_are_refused():
    with pytest.raises(TaskError, match="held out"):
        main(PhiEntry(tasks=("hand-insert",)))
    with pytest.raises(TaskError, match="unknown way 'louder'; expected some of sparse; dense, paid"):
        main(PhiEntry(ways=("louder",)))


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


def test_ways_are_run_once_and_told_what_they_were_told(written, monkeypatch):
    """Two rollouts each: paid at its weight, guided and paid nothing, told by whom the way names."""
    monkeypatch.setattr(phi_entry, "BLOCK", 1)
    options = PhiEntry(
        tasks=("reach",),
        seeds=(3,),
        ways=("dense, paid, 0.5", "misled, guided"),
        rollouts=2,
        evaluation_episodes=1,
        out=written / "runs",
    )
    monkeypatch.setattr(phi_entry, "distilled", lambda *_: pytest.fail("no way here asks a prover"))
    main(options)
    folder = written / "runs" / "reach-v3" / "3"
    with (written / "results" / "phi_entry.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["sparse", "dense, paid, 0.5", "misled, guided"]
    assert {row["commit"] for row in rows} == {"0000000"}
    told = {}
    for name in ("sparse", "dense, paid, 0.5", "misled, guided"):
        with (folder / "arms" / name / "rollouts.csv").open() as file:
            told[name] = list(csv.DictReader(file))
    assert not any(row["mean_phi"] for row in told["sparse"])
    assert all(row["mean_phi"] for name in ("dense, paid, 0.5", "misled, guided") for row in told[name])
    assert all(row["reward"] == row["task_reward"] for name in ("sparse", "misled, guided") for row in told[name])
    assert any(row["reward"] != row["task_reward"] for row in told["dense, paid, 0.5"])
    seeds, actions = zip(*phi_entry.rollouts_of(folder / "arms" / "sparse" / "policy", 3), strict=True)
    assert len(set(seeds)) == 2
    assert [len(taken) for taken in actions] == [int(row["length"]) for row in told["sparse"]]
    with np.load(folder / "arms" / "sparse" / "last_failure.npz") as last:  # played back, it is the same rollout
        played = seeds.index(int(last["seed"]))
        np.testing.assert_allclose(actions[played], last["actions"], atol=1e-6)

    monkeypatch.setattr(phi_entry, "run_arm", lambda *_, **__: pytest.fail("it was run before"))
    main(options)
    with pytest.raises(TraceError, match=r"is of 2 rollouts.*expected 3 and 1: choose another --out"):
        main(replace(options, rollouts=3))


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
