import json
import sys

import numpy as np
import pytest

from benchmarks.text import lessons
from benchmarks.text.lessons import ROLLOUTS, WORLD, SlippingJudge, answer_in, labelled_from, make_models
from envs.reasoning import make_solutions
from grm.reward import Task, Thought
from grm.text.huggingface import HuggingFaceModel
from grm.text.language import Completion


class Programmed(HuggingFaceModel):
    """Has a network that knows nothing, and writes by a program that knows every problem that was drawn."""

    def __init__(self, policy, problems):
        super().__init__(policy.model, policy.tokenizer)
        self.problems, self.rng = problems, np.random.default_rng(0)

    def generate(self, prompts, *, samples=1, **settings):
        return [[self.complete(prompt) for _ in range(samples)] for prompt in prompts]

    def complete(self, prompt):
        question, *steps = prompt.strip().split("\n")
        solved = WORLD.solve(self.problems[question], self.rng, lessons.HABITS, prefix=steps)
        return Completion(text="\n" + "\n".join(solved.steps[len(steps) :]), tokens=1, finish="stop")


@pytest.fixture
def models(monkeypatch):
    problems = {}
    drawn = lessons.draw_problems

    def draw_problems(rng, count):
        found = drawn(rng, count)
        problems.update({one.question: one for one in found})
        return found

    monkeypatch.setattr(lessons, "draw_problems", draw_problems)
    base, policy = make_models(solutions=300, steps=2, policy_steps=1)
    return base, Programmed(policy, problems)


def test_an_answer_is_read_from_the_last_line():
    assert answer_in("3 + 4 = 0\nanswer 0\n") == "0"
    assert answer_in("answer 1\nwait answer 3") == "3"
    assert answer_in("answer 0\n3 + 4 = 0") is None


def test_the_judge_slips_as_often_as_it_says():
    truths = make_solutions([WORLD], np.random.default_rng(0), 600)
    judge = SlippingJudge(truths, 0.3, 0.05, np.random.default_rng(1))
    said = [judge.judge(Task(instruction=t.question), [Thought(text=s) for s in t.steps]).score for t in truths]
    right = np.concatenate([t.local for t in truths])
    assert np.concatenate(said)[right].mean() == pytest.approx(0.95, abs=0.02)
    assert np.concatenate(said)[~right].mean() == pytest.approx(0.3, abs=0.06)


def test_labels_of_a_place():
    solution = lessons.LabelledSolution(prompt="?", steps=("a", "b", "c"), labels=(None,) * 3)
    assert labelled_from(solution, 1).labels == (1.0, 0.0, None)
    assert labelled_from(solution, -1).labels == (1.0, 1.0, 1.0)


def test_a_small_run(models, monkeypatch):
    found = []
    monkeypatch.setattr(lessons, "make_models", lambda steps: models)
    monkeypatch.setattr(lessons, "write_result", lambda *a, **k: json.dumps(found.append((a, k)) or [k["seeds"]]))
    monkeypatch.setattr(
        sys, "argv", ["lessons.py", "--solutions", "80", "--exam", "160", "--fit-steps", "2", "--seeds", "1"]
    )
    lessons.main()
    [((name, summary), about)] = found
    assert name == "text_lessons_trained"
    assert about["rollouts"] == ROLLOUTS
    assert [row["labels"] for row in about["rows"]] == ["gold", "consensus", "rollouts", "judge", "gold_few", "random"]
    assert summary["location_accuracy_gold"].value == summary["location_f1_gold"].value == 1
    for other in ("rollouts", "judge", "random"):
        assert summary["location_accuracy_consensus"].value > summary[f"location_accuracy_{other}"].value
    assert 0 < summary["keep_rate"].value < 1
    assert summary["class_shift"].value < 0, "agreement comes easier on right solutions"
    assert "f1.consensus_minus_judge" in summary
