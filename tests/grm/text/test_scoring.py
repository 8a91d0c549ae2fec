import json
import math

import numpy as np
import pytest

from grm.data.stepwise import LabelledSolution
from grm.errors import TraceError
from grm.reward import Judgement, ScoredJudgement, ScoreKind
from grm.text.arithmetic import ArithmeticJudge
from grm.text.conventions import TRL
from grm.text.discriminative import DisORM
from grm.text.generative import GenORM, GenPRM, ThinkPRM
from grm.text.scoring import from_entry, judge_all, score, score_solutions, sum_up, summary, to_entry, to_record

from .models import Scripted
from .tiny_judges import QUESTION, STEPS, judge

RIGHT = ("x0 = 3", "x1 = 5", "x2 = (x0 * x1) mod 7 = 1")
WRONG = ("x0 = 3", "x1 = 5", "x2 = (x0 * x1) mod 7 = 2", "x3 = x2 + 1 = 3")
UNREAD = ("well", "x0 = 3")


def labelled(steps, first_error):
    right = len(steps) if first_error < 0 else first_error
    labels = [1.0 if i < right else 0.0 if i == right else None for i in range(len(steps))]
    return LabelledSolution(prompt="p", steps=steps, labels=tuple(labels), first_error=first_error)


def judged(scores, kind=ScoreKind.CORRECTNESS):
    values = np.array(scores, float)
    potential = np.clip(values, 0, 1)
    return ScoredJudgement(potential=potential, spread=potential * 0, judged=~np.isnan(values), score=values, kind=kind)


def test_every_judge_is_asked_in_its_own_way():
    network = judge(TRL)
    steps = STEPS[:2]
    [alone] = judge_all(network, [(QUESTION, steps)])
    assert alone.kind is ScoreKind.CORRECTNESS
    many = judge_all(network, [(QUESTION, steps), (QUESTION, STEPS[:1])])
    np.testing.assert_allclose(many[0].score, alone.score, atol=1e-6)
    [last] = judge_all(DisORM(network), [(QUESTION, steps)])
    assert last.judged.tolist() == [False, True]
    model = Scripted(lambda prompt, k: r"Step 1: \boxed{correct} Step 2: \boxed{correct}")
    for verifier in (ThinkPRM(model), GenORM(model), GenPRM(model)):
        [judgement] = judge_all(verifier, [(QUESTION, steps)])
        assert len(judgement) == 2


def test_scores_are_by_question_candidate_and_step():
    found = score(ArithmeticJudge(), ["p", "q"], [[RIGHT, WRONG], [UNREAD]])
    assert found == [[[1, 1, 1], [1, 1, 0, 1]], [[None, None]]]
    with pytest.raises(TraceError, match="2 questions and 1 lists"):
        score(ArithmeticJudge(), ["p", "q"], [[RIGHT]])


def test_a_judge_without_a_kind_is_refused():
    class Plain:
        def judge(self, task, steps):
            return Judgement(potential=np.ones(1), spread=np.zeros(1), judged=np.ones(1, bool))

    with pytest.raises(TraceError, match="of which kind they are"):
        judge_all(Plain(), [("p", ["a"])])


def test_the_summary_by_hand():
    solutions = [labelled(RIGHT, -1), labelled(WRONG, 2), labelled(WRONG, 1), labelled(UNREAD, -1)]
    scored = score_solutions(ArithmeticJudge(), solutions)
    assert [one.aggregate for one in scored[:3]] == [1, 0, 0]
    assert math.isnan(scored[3].aggregate)
    assert [one.first_error for one in scored] == [-1, 2, 2, None]
    assert [one.disagrees for one in scored] == [False, False, True, True]
    found = summary(scored)
    assert (found["solutions"], found["steps"], found["steps_abstained"]) == (4, 13, 2)
    assert found["solutions_without_aggregate"] == 1
    assert (found["accuracy_on_wrong"], found["accuracy_on_right"], found["solutions_unread"]) == (0.5, 0.5, 1)
    assert found["first_error_f1"] == 0.5
    assert found["whole_solution_f1"] == pytest.approx(2 / 3)


def test_an_aggregator_that_is_wrong_for_the_kind_is_refused():
    with pytest.raises(TraceError, match="product of scores of kind value"):
        sum_up(labelled(RIGHT, -1), judged([0.1, 0.2, 0.3], ScoreKind.VALUE), aggregator="product")
    assert sum_up(labelled(RIGHT, -1), judged([0.1, 0.2, 0.3], ScoreKind.VALUE)).aggregate == 0.3


def test_steps_that_a_chain_never_reached_are_no_abstentions():
    chain = ThinkPRM(Scripted(lambda prompt, k: "Step 1: \\boxed{correct}\nStep 2: \\boxed{incorrect}"))
    [one] = score_solutions(chain, [labelled(WRONG, 1)])
    assert (one.first_error, one.aggregate, one.n_abstained) == (1, 0.0, 0)
    unread = ThinkPRM(Scripted(lambda prompt, k: "hm"))
    [other] = score_solutions(unread, [labelled(WRONG, 1)])
    assert (other.first_error, other.n_abstained) == (None, 4)
    assert math.isnan(other.aggregate)
    assert summary([one, other])["critiques_invalid"] == 1


def test_whole_solutions_of_a_judge_that_only_knows_those():
    yes = GenORM(Scripted(lambda prompt, k: "fine", weighs=lambda prompt: 0.9))
    found = summary(score_solutions(yes, [labelled(RIGHT, -1), labelled(WRONG, 1)]))
    assert "first_error_f1" not in found
    assert found["whole_solution_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("verifier", [ThinkPRM, GenORM, GenPRM])
def test_entries_are_read_back_and_records_hold_no_nan(verifier):
    model = Scripted(lambda prompt, k: "Step 1: \\boxed{correct}\nStep 2: \\boxed{incorrect}")
    [one] = score_solutions(verifier(model), [labelled(WRONG, 1)])
    again = from_entry(json.loads(json.dumps(to_entry(one.judgement), allow_nan=False)))
    for name in ("potential", "spread", "score", "judged"):
        np.testing.assert_allclose(getattr(again, name), getattr(one.judgement, name), atol=1e-6)
    assert (again.kind, again.critiques) == (one.judgement.kind, one.judgement.critiques)
    record = json.loads(json.dumps(to_record(one), allow_nan=False))
    assert (record["steps"], record["label"], record["kind"]) == (list(WRONG), 1, one.judgement.kind.value)
    with pytest.raises(TraceError, match="without a whole judgement"):
        from_entry({"kind": "verdict"})
