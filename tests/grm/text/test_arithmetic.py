import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm import aggregate
from grm.errors import AbstainedError, TraceError
from grm.reward import ScoredJudgement, ScoreKind, Task, Thought
from grm.testing import check_judgement, check_process_reward
from grm.text.arithmetic import ArithmeticJudge

TASK = Task(instruction="compute")
NAN = np.nan


def judge(*steps):
    """Steps are texts, or (text, parents)."""
    thoughts = [Thought(text=s) if isinstance(s, str) else Thought(text=s[0], parents=s[1]) for s in steps]
    judgement = ArithmeticJudge().judge(TASK, thoughts)
    check_judgement(judgement, len(steps))
    return judgement


@pytest.mark.parametrize(
    "text",
    [
        "(3 * 4) mod 7 = 5",
        "3 * 4 mod 7 = 5",
        "3 + 4 mod 7 = 0",  # the remainder of everything to the left
        "5 = 5 = 2 + 3",
        "x1 = 3",
        "x1 = (3 * 4) mod 7 = 5.",
        "x1 = (3 * 4) mod 7",
        "-3 mod 7 = 4",
        "2 - -3 = 5",
        "2 + 3 * 4 = 14",
        "10 - 3 - 2 = 5",
        "((2))*(1+1)=4",
    ],
)
def test_right(text):
    assert judge(text).potential == [1.0]


@pytest.mark.parametrize("text", ["(3 * 4) mod 7 = 4", "2 + 2 = 5", "x1 = 2 * 3 = 5", "1 = 2 = 1"])
def test_wrong(text):
    judgement = judge(text)
    assert judgement.potential == [0.0]
    assert judgement.score == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Let us begin.",
        "42",
        "x1",
        "= 3",
        "3 =",
        "6 / 2 = 3",
        "2 ** 3 = 8",
        "2(3) = 6",
        "(2 + 3 = 5",
        "2 + = 2",
        "3x = 3",
        "y + 1 = 3",  # a name from nowhere
        "12 = 5 mod 7",  # remainder or congruence?
        "3 mod 0 = 0",
        "9 mod 7 mod 2 = 0",
        "(9 mod 7) * 2 = 4",
        "mod = 3",
        "x1 == 3",
        "３ = 3",
        "(" * 150 + "1" + ")" * 150 + "=1",
        "9" * 5000 + " = 1",
        "1 = 1\x00",
    ],
)
def test_unread_is_not_wrong(text):
    judgement = judge(text)
    assert not judgement.judged[0]
    assert np.isnan(judgement.score[0])


def test_nesting_up_to_the_longest_step_is_read():
    assert judge("(" * 90 + "1" + ")" * 90 + " = 1").potential == [1.0]


def test_a_chain_by_hand():
    judgement = judge("a = 3", "b = (a * 4) mod 7 = 5", "c = (b + a) mod 7 = 2", "d = (c * c) mod 7 = 4", "d = 4")
    # 3 * 4 = 12 = 5; 5 + 3 = 8 = 1, not 2; 2 * 2 = 4 follows from what was claimed.
    np.testing.assert_array_equal(judgement.score, [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(judgement.potential, [1, 1, 0, 0, 0])
    assert judgement.kind is ScoreKind.VERDICT
    assert aggregate.product(judgement) == 0
    assert aggregate.mean(judgement) == pytest.approx(0.8)


def test_a_name_keeps_its_value():
    np.testing.assert_array_equal(judge("a = 3", "a = 3", "a = 4").potential, [1, 1, 0])


def test_parents_decide_what_a_step_sees():
    np.testing.assert_array_equal(judge(("a = 3", ()), ("b = 4", ()), ("a + b = 7", (0, 1))).potential, [1, 1, 1])
    # Without b among the steps it rests on, the last step speaks of a name from nowhere.
    np.testing.assert_array_equal(judge(("a = 3", ()), ("b = 4", ()), ("a + b = 7", (0,))).potential, [1, 1, NAN])
    # What parents rest on is seen too; other branches may use the name otherwise.
    branches = judge(("a = 3", ()), ("b = a + 1 = 4", (0,)), ("a = 5", ()), ("b * a = 12", (1,)))
    np.testing.assert_array_equal(branches.potential, [1, 1, 1, 1])
    # By default a step rests on the one before, hence on all.
    np.testing.assert_array_equal(judge("a = 3", "b = 4", "a + b = 7").potential, [1, 1, 1])


@pytest.mark.parametrize("parents", [(1,), (-1,), (0, 5)])
def test_a_step_rests_on_earlier_ones(parents):
    with pytest.raises(TraceError, match=r"step 1 rests on step .*0 to 0"):
        judge("a = 1", ("a = 1", parents))


def test_after_an_unread_step_only_an_error_is_certain():
    judgement = judge("a = 3", "Now something clever.", "a + 1 = 4", "a + 1 = 5", "a = 3", "More prose.")
    np.testing.assert_array_equal(judgement.potential, [1, NAN, NAN, 0, 0, NAN])
    np.testing.assert_array_equal(judgement.score, [1, NAN, NAN, 0, 1, NAN])
    with pytest.raises(AbstainedError):
        aggregate.minimum(judgement)


def test_laws():
    steps = [
        Thought(text="a = 3"),
        Thought(text="b = (a * 4) mod 7 = 5", parents=(0,)),
        Thought(text="prose"),
        Thought(text="a + b = 9", parents=(0, 1)),
        Thought(text="a + b = 8", parents=(0, 1)),
    ]
    check_process_reward(ArithmeticJudge(), TASK, steps)
    check_process_reward(ArithmeticJudge(), TASK, steps[:2])


def test_extend_answers_scored_judgements():
    model = ArithmeticJudge()
    carries, judgements = model.extend([model.start(TASK)] * 2, [[Thought(text="a = 1")], []])
    assert all(isinstance(judgement, ScoredJudgement) for judgement in judgements)
    assert carries[1] == model.start(TASK)
    assert carries[0] != carries[1]


@given(st.text(alphabet="x01+-*()= mod", max_size=40))
def test_reads_anything_without_falling_over(text):
    check_judgement(ArithmeticJudge().judge(TASK, [Thought(text=text)]), 1)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 30), st.sampled_from("+-*"), st.integers(-3, 3))
def test_agrees_with_python(left, right, modulus, operator, off):
    truth = {"+": left + right, "-": left - right, "*": left * right}[operator] % modulus
    judgement = judge(f"({left} {operator} {right}) mod {modulus} = {truth + off}")
    assert judgement.potential == [float(off == 0)]
