import json
import sys

import pytest

from benchmarks.text import spare
from benchmarks.text.spare import bisect, grade, run

REFERENCE = ["3 + 4 = 0", "0 - 2 = 5", "5 * 3 = 1", "answer 1"]
QUESTION = "mod 7 : 3 + 4 - 2 * 3"


def said(steps, *, strict=False):
    return [right for right, _ in grade(QUESTION, steps, REFERENCE, strict=strict)]


def test_the_grader_aligns_with_the_reference():
    assert said(REFERENCE, strict=True) == [True] * 4
    assert grade(QUESTION, ["3 + 4 - 2 = 5", "5 * 3 = 1", "answer 1"], REFERENCE, strict=True) == [
        (True, [0, 1]),
        (True, [2]),
        (True, [3]),
    ]
    assert said(["3 + 4 = 1", "1 - 2 = 6"], strict=True) == [False, False]


def test_another_valid_way_is_an_error_to_a_strict_grader_only():
    other = ["3 - 2 = 1", "1 + 4 = 5", "5 * 3 = 1", "answer 1"]
    assert said(other, strict=True)[0] is False
    assert said(other) == [True] * 4


def test_who_takes_any_calculation_that_holds_misses_the_wrong_one():
    assert said(["3 + 5 = 1"]) == [True]
    assert said(["3 + 5 = 1"], strict=True) == [False]


def test_labels_of_a_small_set():
    rows = {row["labels"]: row for row in run("hops", 0.5, 0, 40)}
    assert rows["spare_strict"]["other_way_taken_for_wrong"] > 0.9 > rows["spare"]["other_way_taken_for_wrong"]
    assert rows["tree"]["error_precision"] > 0.8, "of eight rollouts from a right step one nearly always arrives"
    assert rows["spare"]["calls"] == 1.0 < rows["bisection"]["calls"] < rows["tree"]["calls"]
    assert rows["agreement"]["location_accuracy"] > max(rows[one]["location_accuracy"] for one in ("tree", "spare"))
    assert rows["spare_cut_unlabelled"]["unread"] > 0 == rows["spare_cut_wrong"]["unread"]


def test_bisection_finds_where_rollouts_stop_to_arrive():
    from grm.data.stepwise import LabelledSolution

    steps = tuple(f"step {i}" for i in range(7))
    solution = LabelledSolution(prompt="?", steps=steps, labels=(None,) * 7, answer="1")
    for place in (0, 3, 6, -1):

        def complete(prefixes, samples, place=place):
            return [["1" if place < 0 or len(prefix) <= place else "2"] * samples for _, prefix in prefixes]

        assert bisect(solution, complete) == place


def test_the_table_is_written(monkeypatch):
    found = []
    monkeypatch.setattr(spare, "write_result", lambda *a, **k: json.dumps(found.append((a, k)) or [k["seeds"]]))
    monkeypatch.setattr(spare, "seconds_per_word", lambda: (0.001, 0.01))
    monkeypatch.setattr(sys, "argv", ["spare.py", "--solutions", "25", "--seeds", "1"])
    spare.main()
    [((name, summary), about)] = found
    assert name == "text_spare"
    assert about["seeds"] == [0]
    ratio = summary["calls_of_tree_to_spare.arithmetic.detours0.0"]
    assert ratio == pytest.approx(summary["calls.arithmetic.detours0.0.tree"].value)
    assert ratio > 1
