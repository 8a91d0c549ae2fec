import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm.errors import TraceError
from grm.text.steps import (
    canonical_answer,
    extract_answer,
    join_tagged,
    same_answer,
    split_numbered,
    split_paragraphs,
    split_tagged,
)


def test_paragraphs():
    assert split_paragraphs("\n\na\nb\n \t\nc\n\n\n\nd \n") == ["a\nb", "c", "d"]
    assert split_paragraphs(" \n\n ") == []


def test_numbered():
    assert split_numbered("So.\nStep 1: a\nb\n**Step 2:** see Step 1: a\nStep 9: c\nStep 3. d") == [
        "So.",
        "Step 1: a\nb",
        "**Step 2:** see Step 1: a\nStep 9: c",
        "Step 3. d",
    ]
    assert split_numbered("no numbers") == ["no numbers"]
    assert split_numbered("") == []


def test_tagged():
    assert split_tagged("a ки\nb ки", "ки") == ["a", "b"]
    assert split_tagged("a<s>b", "<s>") == ["a", "b"]
    with pytest.raises(TraceError, match="step 1 is blank"):
        split_tagged("a<s> <s>b", "<s>")
    with pytest.raises(TraceError, match="step 0 contains the separator"):
        join_tagged(["a<s>"], "<s>")
    with pytest.raises(TraceError, match="step 1 is blank"):
        join_tagged(["a", ""], "<s>")


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() == t and "<s>" not in t + t), min_size=1))
def test_tagged_there_and_back(steps):
    if all("<" not in step and ">" not in step for step in steps):
        assert split_tagged(join_tagged(steps, "<s>"), "<s>") == steps


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("The answer is: 12", "12"),
        ("the final answer is 7.\nThanks", "7"),
        ("The answer is 3. Wait. The answer is: 4.", "4"),
        ("9 * 2\n#### 18", "18"),
        (r"The answer is: 3 so \boxed{4}", "4"),
        (r"cut \boxed{\frac{1}{2}", None),
        (r"\boxed{ }", None),
        ("I give up", None),
        ("The answer is:", None),
        ("x0 = 3\nanswer 6", "6"),
        ("answer 3\nwait answer 6 \nso", "6"),
        ("Final answer: one half.", "one half"),
        ("Answer the question first\nmy answer 6", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "same",
    [
        ["1/2", "0.5", r"\frac{1}{2}", r"\dfrac12", "$.50$", "2/4", "+0.5"],
        ["-3", "−3", "-3.0", r"\frac{-6}{2}", r"-\frac{6}{2}", "x = -3", "$-3$."],
        ["1000", "1,000", r"\$1000", "1000.00"],
        ["90", r"90^\circ", r"90^{\circ}", "90°", r"90\%"],
        ["east", r"\text{East}", "East."],
        ["(1, 2)", "(1,2)", r"\left( 1, 2 \right)"],
        ["x+1", "x + 1"],
    ],
)
def test_spellings_of_one_answer(same):
    assert len({canonical_answer(answer) for answer in same}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,2", "12"),
        ("A", "a"),
        ("1/0", "0"),
        ("3", "-3"),
        ("x+1", "x-1"),
        ("0.3333", "1/3"),
        ("2^3", "23"),
        ("1,00", "100"),
    ],
)
def test_different_answers_stay_different(one, other):
    assert not same_answer(one, other)


@given(st.text())
def test_the_canonical_form_is_its_own(text):
    assert isinstance(canonical_answer(text), str)


@given(st.fractions())
def test_a_fraction_is_itself(value):
    assert canonical_answer(f"{value.numerator}/{value.denominator}") == str(value)
