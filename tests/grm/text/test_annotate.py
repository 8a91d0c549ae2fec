import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.data.stepwise import LabelledSolution, harden
from grm.errors import TraceError
from grm.reward import Judgement, ScoredJudgement, ScoreKind
from grm.text.annotate import (
    annotate,
    completer,
    consensus,
    judge_labels,
    label_by_grades,
    monte_carlo_labels,
    parse_grades,
    reference_solution,
    spare_labels,
    spare_prompt,
)
from grm.text.arithmetic import ArithmeticJudge
from grm.text.language import Usage

from .models import Scripted

SOLUTION = LabelledSolution(prompt="2 + 2 * 3?", steps=("a", "b", "c"), labels=(None,) * 3, answer="8")


def labelled(*labels, steps=("a", "b", "c"), **known):
    return LabelledSolution(prompt="p", steps=steps, labels=labels, **known)


# Rollouts


def test_monte_carlo_labels_by_hand():
    answers = [["8", "8.0", "9", None], ["7", None, None, "$8$"], [None] * 4]
    asked = []

    def complete(prefixes, samples):
        asked.append((prefixes, samples))
        return answers

    labels = monte_carlo_labels(SOLUTION, complete, rollouts=4)
    assert labels.labels == (0.5, 0.25, None)
    assert labels.first_error is None
    assert asked == [([(SOLUTION.prompt, ("a", "b", "c")[:n]) for n in (1, 2, 3)], 4)]
    assert harden(labels, 0).labels == (1, 1, None)


def test_monte_carlo_needs_the_answer():
    with pytest.raises(TraceError, match="answer is not known"):
        monte_carlo_labels(labelled(None, None, None), lambda prefixes, samples: [])


def test_a_completer_reads_prefix_and_completion_and_drops_what_was_cut():
    def says(prompt, k):
        if prompt.endswith("c"):
            return ""
        return "so The answer is: 8" if k else "The answer is: 8 " + "and " * 20

    model = Scripted(says)
    complete = completer(model, lambda problem, steps: f"{problem} {' '.join(steps)}", max_tokens=10)
    prefixes = [("p", ("a",)), ("p", ("The answer is: 9", "c"))]
    assert complete(prefixes, 2) == [[None, "8"], ["9", "9"]]
    assert model.calls[0]["temperature"] == 1


def test_monte_carlo_recovers_the_success_rate():
    rng = np.random.default_rng(0)
    rates = [0.9, 0.3, 0.0]

    def complete(prefixes, samples):
        return [["8" if rng.random() < rates[len(steps) - 1] else "7" for _ in range(samples)] for _, steps in prefixes]

    labels = monte_carlo_labels(SOLUTION, complete, rollouts=2000).labels
    assert labels == pytest.approx(rates, abs=0.04)


# Judges


class Fixed:
    def __init__(self, score, kind=ScoreKind.CORRECTNESS):
        self.score, self.kind = np.array(score, float), kind

    def judge(self, task, steps):
        judged = ~np.isnan(self.score)
        return ScoredJudgement(
            potential=self.score, spread=self.score * 0, judged=judged, score=self.score, kind=self.kind
        )


@pytest.mark.parametrize(
    ("score", "labels", "first"),
    [
        ([0.9, 0.6, 0.5], (1, 1, 1), -1),
        ([0.9, 0.49, 0.9], (1, 0, None), 1),
        ([0.9, math.nan, 0.1], (1, None, None), None),
        ([math.nan] * 3, (None,) * 3, None),
    ],
)
def test_judge_labels(score, labels, first):
    found = judge_labels(SOLUTION, Fixed(score))
    assert (found.labels, found.first_error) == (labels, first)


def test_values_are_no_labels_of_steps():
    for kind in (ScoreKind.VALUE, ScoreKind.ADVANTAGE):
        with pytest.raises(TraceError, match=kind.value):
            judge_labels(SOLUTION, Fixed([1, 1, 1], kind))

    class Plain:
        def judge(self, task, steps):
            return Judgement(potential=np.ones(3), spread=np.zeros(3), judged=np.ones(3, bool))

    with pytest.raises(TraceError, match="no score"):
        judge_labels(SOLUTION, Plain())


def test_a_true_judge_labels_truly():
    steps = ("x0 = 3", "x1 = (x0 * 2) mod 5 = 2", "x2 = (x1 + 1) mod 5 = 3")
    found = judge_labels(labelled(None, None, None, steps=steps), ArithmeticJudge())
    assert (found.labels, found.first_error) == ((1, 0, None), 1)


# Consensus


def test_consensus_keeps_what_agrees_on_the_place():
    found = consensus(
        [
            (labelled(1, 1, 1), labelled(1, 1, 1)),
            (labelled(1, 0, 1), labelled(1, 0, None)),
            (labelled(1, 0, 0), labelled(1, 1, 0)),
            (labelled(0, 0, 0), labelled(1, 1, 1)),
            (labelled(1, None, 0), labelled(1, 1, 0)),
        ]
    )
    assert [one.labels for one in found.kept] == [(1, 1, 1), (1, 0)]
    assert (found.n_compared, found.n_unknown, found.keep_rate) == (5, 1, 0.4)
    assert (found.wrong_share, found.wrong_share_kept) == (0.75, 0.5)


def test_consensus_of_other_or_soft_labels_is_refused():
    with pytest.raises(TraceError, match="two solutions"):
        consensus([(labelled(1, 1, 1), labelled(1, 1, 1, steps=("a", "b", "d")))])
    with pytest.raises(TraceError, match="harden"):
        consensus([(labelled(1, 0.5, 1), labelled(1, 1, 1))])
    assert math.isnan(consensus([]).keep_rate)


def test_consensus_beats_either_labeller():
    """Errors in 12 % of steps; rollouts mend some; the judge misses 30 % and raises 5 % false alarms."""
    rng = np.random.default_rng(0)
    steps = tuple("abcdef")
    pairs, truth = [], []
    for i in range(3000):
        wrong = rng.random(6) < 0.12
        first = int(wrong.argmax()) if wrong.any() else -1
        values = []
        for t in range(6):
            arrives = 0.8 if first < 0 or t < first else 0.2 if rng.random() < 0.35 else 0.0
            values.append(rng.binomial(8, arrives) / 8)
        says = [rng.random() > (0.7 if wrong[t] and t == first else 0.05) for t in range(6)]
        mc = harden(labelled(*values, steps=(str(i), *steps[1:])), 0)
        pairs.append((mc, labelled(*map(float, says), steps=mc.steps)))
        truth.append(first)
    found = consensus(pairs)
    places = {one.steps[0]: one.first_error for one in found.kept}
    right = np.mean([truth[int(name)] == first for name, first in places.items()])
    alone = [
        np.mean(
            [
                pair[k].labels.index(0) == e if 0 in pair[k].labels else e == -1
                for pair, e in zip(pairs, truth, strict=True)
            ]
        )
        for k in (0, 1)
    ]
    assert right > max(alone) + 0.1
    assert found.wrong_share_kept < found.wrong_share, "agreement comes easier on right solutions"


# SPARE

GRADES = [
    {"student_step": 1, "explanation": "ok", "reference_steps": [1, 2], "context": [1], "label": "CORRECT"},
    {"student_step": 2, "related_steps": [1], "errors": ["numeric"], "label": "incorrect"},
    {"student_step": 3, "label": "CORRECT"},
]


def test_grades_are_read_with_their_alignment():
    grading = parse_grades(json.dumps(GRADES), 3)
    assert [grading.grades[i].right for i in range(3)] == [True, False, True]
    assert grading.grades[0].reference == (0, 1)
    assert grading.grades[0].context == (0,)
    assert grading.grades[1].related == (0,)
    assert grading.grades[1].errors == ("numeric",)
    assert grading.n_ignored == 0


@pytest.mark.parametrize(
    ("text", "steps", "ignored"),
    [
        ("Sure!\n```json\n" + json.dumps(GRADES) + "\n```", {0, 1, 2}, 0),
        (json.dumps(GRADES)[:-40], {0, 1}, 0),
        (json.dumps(GRADES).replace('"}', '",}'), {0, 1, 2}, 0),
        (json.dumps([*GRADES, {"student_step": 4, "label": "CORRECT"}]), {0, 1, 2}, 1),
        (json.dumps([{"student_step": 0, "label": "CORRECT"}]), set(), 1),
        (json.dumps([{"student_step": "1", "label": "CORRECT"}, {"student_step": True, "label": "CORRECT"}]), set(), 2),
        (json.dumps([{"student_step": 1, "label": "FINE"}, {"student_step": 2, "label": None}]), set(), 2),
        ("{" * 50, set(), 0),
        ("I cannot.", set(), 0),
    ],
)
def test_grades_that_are_broken_are_read_as_far_as_they_go(text, steps, ignored):
    grading = parse_grades(text, 3)
    assert (set(grading.grades), grading.n_ignored) == (steps, ignored)


@given(st.text(alphabet='{}[]",:student_step1 labelCORRECT'))
def test_whatever_a_grader_writes_is_read(text):
    assert set(parse_grades(text, 3).grades) <= {0, 1, 2}


def test_labels_from_grades_by_policy():
    grading = parse_grades(json.dumps(GRADES[:2]), 3)
    known = LabelledSolution(prompt="p", steps=("a", "b", "c"), labels=(None,) * 3, final_answer_correct=True)
    assert label_by_grades(known, grading).labels == (1, 0, None)
    assert label_by_grades(known, grading).first_error == 1
    assert label_by_grades(known, grading, ungraded="wrong").labels == (1, 0, 0)
    assert label_by_grades(known, grading, ungraded="outcome").labels == (1, 0, 1)
    assert label_by_grades(known, grading, last_is_outcome=True).labels == (1, 0, 1)
    for options in ({"ungraded": "outcome"}, {"last_is_outcome": True}):
        with pytest.raises(TraceError, match="not known"):
            label_by_grades(SOLUTION, grading, **options)


def test_spare_is_one_pass():
    model = Scripted(lambda prompt, k: json.dumps(GRADES))
    found = spare_labels(SOLUTION, model, ["first\nof all", "then"], context=["it rained"])
    assert found.labels == (1, 0, 1)
    assert model.usage.calls == 1
    [prompt] = model.prompts
    for line in (
        "Context:\n[1] it rained",
        "Reference solution:\n[1] first of all\n[2] then",
        "[3] c",
        SOLUTION.prompt,
    ):
        assert line in prompt
    assert spare_labels(SOLUTION, Scripted(lambda prompt, k: "no"), ["r"]).labels == (None,) * 3
    with pytest.raises(TraceError, match="step 1 is blank"):
        spare_prompt("p", ["a"], ["r", " "])


def test_a_reference_is_all_right():
    assert reference_solution("p", ["a", "b"], "4").labels == (1, 1)


# Many


def test_annotation_goes_on_where_it_was_interrupted(tmp_path):
    solutions = [labelled(None, None, None, steps=(f"{i}", "b", "c")) for i in range(5)]
    usage, seen = Usage(), []

    def label(solution, broken_at=3):
        if solution.steps[0] == str(broken_at):
            raise ConnectionError("down")
        seen.append(solution.steps[0])
        usage.calls += 2
        usage.completion_tokens += 10
        return judge_labels(solution, Fixed([0.9, 0.1, 0.9]))

    path = tmp_path / "labels.jsonl"
    settings = {"method": "judge", "journal": path, "usage": usage}
    with pytest.raises(ConnectionError):
        list(annotate(solutions, label, **settings))
    assert seen == ["0", "1", "2"]
    done = list(annotate(solutions, lambda s: label(s, broken_at=-1), **settings))
    assert seen == ["0", "1", "2", "3", "4"]
    assert [one.resumed for one in done] == [True, True, True, False, False]
    assert all(one.solution.labels == (1, 0, None) and one.solution.first_error == 1 for one in done)
    assert [one.cost for one in done] == [Usage(calls=2, completion_tokens=10)] * 5
    assert [one.solution.steps[0] for one in done] == ["0", "1", "2", "3", "4"]
    list(annotate(solutions[:1], lambda s: label(s, broken_at=-1), **(settings | {"method": "other"})))
    assert len(seen) == 6, "another method asks again"


def test_annotation_streams():
    def forever():
        while True:
            yield SOLUTION

    first = next(annotate(forever(), lambda s: s, method="none"))
    assert not first.resumed
