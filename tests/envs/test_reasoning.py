import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.reasoning import make_chain
from grm.errors import TraceError
from grm.testing import check_process_reward
from grm.text.arithmetic import ArithmeticJudge

seeds = st.integers(0, 2**32)


@given(seeds, st.integers(1, 3), st.integers(1, 9), st.integers(2, 97), st.data())
def test_the_judge_finds_exactly_the_chosen_error(seed, given_values, operations, modulus, data):
    length = given_values + operations
    first_error = data.draw(st.one_of(st.none(), st.integers(given_values, length - 1)))
    chain = make_chain(
        np.random.default_rng(seed), length=length, given=given_values, modulus=modulus, first_error=first_error
    )
    assert len(chain.steps) == length
    judgement = ArithmeticJudge().judge(chain.task, chain.steps)
    assert judgement.judged.all()
    np.testing.assert_array_equal(judgement.potential, chain.potential)
    # The error is one step's: what follows from it follows correctly.
    expected = np.ones(length)
    if first_error is not None:
        expected[first_error] = 0
    np.testing.assert_array_equal(judgement.score, expected)
    assert f" = {chain.claimed}" in chain.steps[-1].text
    assert 0 <= chain.correct < modulus
    if first_error is None:
        assert chain.claimed == chain.correct
    if first_error == length - 1:
        assert chain.claimed != chain.correct


def test_the_correct_result_is_that_of_the_chain_without_the_error():
    right, wrong = (make_chain(np.random.default_rng(5), first_error=e) for e in (None, 4))
    assert wrong.correct == right.claimed == right.correct
    assert wrong.steps[4].text != right.steps[4].text
    assert wrong.task.instruction == right.task.instruction
    assert [s.text for s in wrong.steps[:4]] == [s.text for s in right.steps[:4]]


def test_truth_by_hand():
    np.testing.assert_array_equal(
        make_chain(np.random.default_rng(0), length=5, first_error=3).potential, [1, 1, 1, 0, 0]
    )
    np.testing.assert_array_equal(make_chain(np.random.default_rng(0), length=3).potential, [1, 1, 1])


def test_seeded():
    one, two, other = ([step.text for step in make_chain(np.random.default_rng(seed)).steps] for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_parents_are_the_operands():
    chain = make_chain(np.random.default_rng(3), length=12)
    for i, step in enumerate(chain.steps[2:], start=2):
        assert i - 1 in step.parents
        assert {f"x{p}" for p in step.parents} == set(
            step.text.split("(")[1].split(")")[0].replace("+", " ").replace("*", " ").replace("-", " ").split()
        )


@pytest.mark.parametrize("first_error", [None, 2, 5])
def test_laws(first_error):
    chain = make_chain(np.random.default_rng(4), first_error=first_error)
    check_process_reward(ArithmeticJudge(), chain.task, chain.steps)


@pytest.mark.parametrize(
    "wrong",
    [{"first_error": 1}, {"first_error": 8}, {"length": 2}, {"given": 0}, {"modulus": 1}],
)
def test_malformed(wrong):
    with pytest.raises(TraceError, match="expected"):
        make_chain(np.random.default_rng(0), **wrong)
