import json
import sys

import numpy as np
import pytest

from benchmarks.text import bidirectional
from envs.reasoning import LabelledSolution


def solution(steps, local):
    first = next((i for i, valid in enumerate(local) if not valid), -1)
    prefix = tuple(all(local[: i + 1]) for i in range(len(local)))
    return LabelledSolution(
        question="q",
        steps=(*steps, "answer 1"),
        local=(*local, True),
        prefix=(*prefix, all(local)),
        first_error=first,
        answer="1",
        answer_right=True,
        domain="two-sided",
    )


def test_auc_is_of_the_steps_of_a_kind():
    solutions = [
        solution(("claim a 1", "check a 2", "derived b 3"), (False, True, True)),
        solution(("claim a 1", "check a 1", "derived b 3"), (True, True, False)),
    ]
    scores = [np.array([0.1, 0.9, 0.5]), np.array([0.2, 0.9, 0.5])]
    assert bidirectional.auc_by_kind(scores, solutions) == pytest.approx({"all": 0.8125, "claim": 1.0, "derived": 0.5})


def test_solutions_are_wrong_where_they_may_be():
    drawn = bidirectional.draw("two_sided", 60, 3, right=False)
    wrong = [s.steps[i].split()[0] for s in drawn for i, valid in enumerate(s.local) if not valid]
    assert {*wrong} == {"derived", "claim"}
    assert all(all(s.local) for s in bidirectional.draw("one_sided", 30, 3, right=True))


def test_it_runs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/text/bidirectional.py", "--quick"])
    written = {}
    monkeypatch.setattr(
        bidirectional, "write_result", lambda name, summary, **about: written.update({name: (summary, about)})
    )
    bidirectional.main(["--quick", "--worlds", "two_sided"])
    summary, about = written["text_bidirectional_two_sided"]
    assert about["seeds"] == [0, 1]
    json.dumps(summary)
    forwards = {arm: summary[f"two_sided.forwards_per_solution.{arm}"] for arm in ("l2r", "r2l", "gate", "l2r_twice")}
    assert forwards == {"l2r": 1, "r2l": 1, "gate": 2, "l2r_twice": 2}
    assert summary["two_sided.tokens_per_solution.gate"] == summary["two_sided.tokens_per_solution.l2r_twice"]
    assert "two_sided.gain_of_gate.claim.over_l2r_twice" in summary
    assert not any("another" in key for key in summary)
