import sys

import numpy as np
import pytest

from benchmarks.text import outcome_or_process as benchmark


def test_best_of_n_shares_a_tie():
    scores, right = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[True, False], [True, False]])
    assert benchmark.best_of_n(scores, right) == 0.25


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_solutions_are_of_their_kind(kind):
    rng = np.random.default_rng(0)
    for _ in range(30):
        problem = benchmark.WORLD.draw(rng, length=4)
        wrong = benchmark.write(problem, kind, rng, right=False)
        assert not wrong.answer_right
        assert not all(wrong.local)
        if kind == "local":
            assert sum(wrong.local) == len(wrong.local) - 1, "one error"
    right = [benchmark.write(benchmark.WORLD.draw(rng, length=4), kind, rng, right=True) for _ in range(100)]
    assert all(s.answer_right for s in right)
    if kind == "forgiven":
        drawn = [benchmark.write(benchmark.WORLD.draw(rng, length=4), kind, rng, right=False) for _ in range(100)]
        corrected = [np.mean([any(t.startswith("wait") for t in s.steps) for s in some]) for some in (right, drawn)]
        assert min(corrected) > 0.1, "a correction would give the right ones away"
    flawed = np.mean([not all(s.local) for s in right])
    assert (0.35 < flawed < 0.65) if kind == "forgiven" else flawed == 0


def test_theory_holds_where_it_is_built_in():
    """Local errors: products decay with length, outcomes do not; errors that go on do not make a product decay."""
    found = {
        (kind, length): benchmark.simulate(kind, length, 16, np.random.default_rng(0))
        for kind in benchmark.KINDS
        for length in (2, 32)
    }
    decay = {
        kind: {name: found[kind, 2][name][0] - found[kind, 32][name][0] for name in found[kind, 2]}
        for kind in benchmark.KINDS
    }
    assert decay["local"]["steps.product"] > 0.2
    assert abs(decay["local"]["outcome.last"]) < 0.05
    assert decay["spread"]["steps.product"] < 0.05
    assert found["forgiven", 2]["steps.product"][1] < found["local", 2]["steps.product"][1] - 0.1


def test_it_runs(monkeypatch):
    written = {}
    monkeypatch.setattr(sys, "argv", ["benchmarks/text/outcome_or_process.py", "--quick"])
    monkeypatch.setattr(
        benchmark, "write_result", lambda name, summary, **about: written.update({name: (summary, about)})
    )
    benchmark.main(["--quick"])
    summary, about = written["text_outcome_or_process"]
    assert about["seeds"] == [0, 1]
    assert summary["trained.local.accuracy.bound_gold_steps.T2"] == summary["trained.local.accuracy.bound_any.T2"]
    assert summary["trained.forwards_per_solution.steps"] == summary["trained.forwards_per_solution.outcome"] == 1
    assert "trained.spread.decay.auc.steps.minimum" in summary
    assert "simulated.forgiven.outcome_ahead.auc.steps.product.T4" in summary
