import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.reasoning import (
    Arithmetic,
    Habits,
    Hops,
    LabelledSolution,
    Linear,
    Mistake,
    Plant,
    Planted,
    TwoSided,
    make_chain,
    make_solutions,
)
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


WORLDS = (
    Arithmetic(7),
    Arithmetic(11),
    Linear(7),
    Linear(13),
    Hops(1),
    Hops(3),
    TwoSided(5),
    TwoSided(5, claims=0),
    Planted(6, slack=0),
    Planted(6, slack=3, hidden=True),
)
worlds = st.sampled_from(WORLDS)
lengths = st.sampled_from((2, 4, 8))
rates = st.sampled_from((0.0, 0.3, 1.0))
all_habits = st.builds(
    Habits,
    error_rate=rates,
    later_error_rate=rates,
    correction_rate=rates,
    luck_rate=rates,
    filler_rate=st.sampled_from((0.0, 0.3)),
    detour_rate=rates,
)


@given(worlds, seeds, lengths)
def test_references_are_right_and_end_in_the_only_answer(world, seed, length):
    problem = world.draw(np.random.default_rng(seed), length=length)
    solution = world.label(problem, problem.reference)
    assert all(solution.local)
    assert all(solution.prefix)
    assert solution.first_error == -1
    assert solution.answer_right
    assert solution.answer == problem.answer
    assert len(problem.reference) == length + (problem.domain != "planted")
    assert world.complete(problem, problem.reference)
    assert not world.complete(problem, problem.reference[:-1])
    routes = world.routes(problem, limit=6)
    assert routes[0] == problem.reference
    assert len(set(routes)) == len(routes)
    for route in routes:
        other = world.label(problem, route)
        assert all(other.local), "an alternative route has a wrong step"
        assert other.answer == problem.answer, "two right solutions, two answers"


@given(worlds, seeds, lengths, st.data())
def test_an_error_is_found_where_it_was_put(world, seed, length, data):
    rng = np.random.default_rng(seed)
    problem = world.draw(rng, length=length)
    erring = data.draw(st.integers(0, len(problem.reference) - 1))
    try:
        solution = world.solve(problem, rng, first_error=erring)
    except TraceError:  # what is given cannot be wrong, nor a step that has room to be
        assert problem.domain == "two-sided" or (problem.domain == "planted" and world.slack > 0)
        return
    assert solution.first_error == erring
    assert solution.steps[:erring] == problem.reference[:erring]
    assert solution.steps[erring] != problem.reference[erring]
    assert solution.local == tuple(i != erring for i in range(len(solution.steps))), "what follows carries on correctly"
    assert solution.prefix == tuple(i < erring for i in range(len(solution.steps)))


@given(worlds, seeds, lengths, all_habits)
def test_every_habit_leaves_a_solution_whose_labels_the_checker_repeats(world, seed, length, habits):
    rng = np.random.default_rng(seed)
    problem = world.draw(rng, length=length)
    solution = world.solve(problem, rng, habits)
    for i, step in enumerate(solution.steps):
        assert world.check(problem, solution.steps[:i], step) is solution.local[i]
    assert solution.answer_right is (world.answer(problem, solution.steps) == problem.answer)
    if habits.error_rate == 0:
        assert solution.answer_right
        assert all(solution.local)
    again = np.random.default_rng(seed)
    assert world.solve(world.draw(again, length=length), again, habits) == solution, "same seed, another solution"


@given(seeds, lengths)
def test_arithmetic_agrees_with_arithmetic(seed, length):
    """The labels against a second opinion that shares no code with the world."""
    world, rng = Arithmetic(11), np.random.default_rng(seed)
    problem = world.draw(rng, length=length)
    solution = world.solve(problem, rng, Habits(error_rate=0.3, mistakes=(Mistake.SLIP, Mistake.REPORT)))
    _, _, _, first, *rest = problem.question.split()
    truth = int(first)
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        truth = {"+": truth + int(operand), "-": truth - int(operand), "*": truth * int(operand)}[operator] % 11
    assert problem.answer == str(truth)
    value = int(first)
    for step, local in zip(solution.steps, solution.local, strict=True):
        if step.startswith("answer"):
            assert local is (int(step.split()[1]) == value)
            continue
        left, operator, right, _, result = step.split()
        assert int(left) == value
        right_result = {"+": value + int(right), "-": value - int(right), "*": value * int(right)}[operator] % 11
        assert local is (int(result) == right_result)
        value = int(result)


@given(seeds, lengths)
def test_equations_have_the_answer_as_their_only_solution(seed, length):
    world = Linear(7)
    problem = world.draw(np.random.default_rng(seed), length=length)
    for route in (*world.routes(problem, limit=4), (problem.question.removeprefix("mod 7 : "),)):
        for line in route:
            if line.startswith("answer"):
                continue
            words = line.split()
            solutions = []
            for x in range(7):
                value = x
                for operator, operand in zip(words[1:-2:2], words[2:-2:2], strict=True):
                    value = {"+": value + int(operand), "-": value - int(operand), "*": value * int(operand)}[operator]
                if value % 7 == int(words[-1]):
                    solutions.append(str(x))
            assert solutions == [problem.answer]


@pytest.mark.parametrize(
    ("prefix", "step", "right"),
    [
        ([], "3 + 4 = 0", True),
        ([], "3 + 4 = 1", False),
        ([], "3 + 4 * 2 = 0", True),  # two at once
        ([], "3 * 2 = 6", False),  # one left out
        ([], "3 + 4 - 1 = 6", False),  # the product comes before
        (["3 + 4 = 1"], "1 * 2 = 2", True),  # carried on correctly
        (["3 + 4 = 1"], "0 * 2 = 0", False),  # right value, but not what was left
        (["3 + 4 = 1"], "wait 3 + 4 = 0", True),
        (["3 + 4 = 1", "wait 3 + 4 = 0"], "0 * 2 = 0", True),
        (["3 + 4 = 1", "so far so good"], "wait 3 + 4 = 0", True),
        ([], "wait 3 + 4 = 0", False),  # nothing to take back
        ([], "so far so good", True),
        ([], "answer 6", False),  # the right answer, too early
        (["3 + 4 * 2 = 0", "0 - 1 = 6"], "answer 6", True),
        (["3 + 4 * 2 = 0", "0 - 1 = 6"], "answer 5", False),
        (["3 + 4 * 2 = 0", "0 - 1 = 6", "answer 6"], "answer 6", False),
        ([], "three plus four is zero", False),
        ([], "3 + 99999999 = 0", False),
        ([], "", False),
    ],
)
def test_arithmetic_by_hand(prefix, step, right):
    world = Arithmetic(7)
    problem = world._problem("mod 7 : 3 + 4 * 2 - 1", (3, (("+", 4), ("*", 2), ("-", 1))))
    assert problem.reference == ("3 + 4 = 0", "0 * 2 = 0", "0 - 1 = 6", "answer 6")
    assert world.check(problem, prefix, step) is right


def test_luck_and_correction_by_hand():
    world = Arithmetic(7)
    problem = world._problem("mod 7 : 3 + 4 * 2 - 1", (3, (("+", 4), ("*", 2), ("-", 1))))
    lucky = world.label(problem, ["3 + 4 = 1", "1 * 2 = 0", "0 - 1 = 6", "answer 6"])
    assert (lucky.local, lucky.first_error, lucky.answer_right) == ((False, False, True, True), 0, True)
    corrected = world.label(problem, ["3 + 4 = 1", "wait 3 + 4 = 0", "0 * 2 = 0", "0 - 1 = 6", "answer 6"])
    assert corrected.local == (False, True, True, True, True)
    assert not any(corrected.prefix)
    assert corrected.answer_right
    assert world.label(problem, ["3 + 4 = 0"]).answer is None
    assert world.label(problem, ["3 + 4 = 0", "answer 6", "wait 0 * 2 = 0"]).answer is None


@pytest.mark.parametrize("world", [Arithmetic(7), Linear(7), Hops(3), TwoSided(5)], ids=lambda world: world.domain)
def test_the_habits_show(world):
    """Each habit does what it says, and only where there was an error."""

    def right_answers(**rates):
        rng, outcomes = np.random.default_rng(1), []
        for _ in range(60):
            problem = world.draw(rng, length=6)
            solution = world.solve(problem, rng, Habits(error_rate=0.3, mistakes=(Mistake.SLIP,), **rates))
            if solution.first_error >= 0:
                outcomes.append(solution.answer_right)
        assert len(outcomes) > 30
        return np.mean(outcomes)

    careless = right_answers()
    assert careless < 0.4
    assert right_answers(luck_rate=1.0) > careless + 0.2
    assert right_answers(correction_rate=1.0) > careless + 0.5
    assert right_answers(later_error_rate=1.0) < 0.5


def test_a_rollout_goes_on_from_its_prefix():
    world, rng = Arithmetic(7), np.random.default_rng(0)
    problem = world.draw(rng, length=5)
    wrong = world.solve(problem, rng, first_error=1)
    rolled = world.solve(problem, rng, Habits(detour_rate=0.5), prefix=wrong.steps[:3])
    assert rolled.steps[:3] == wrong.steps[:3]
    assert rolled.first_error == 1
    with pytest.raises(TraceError, match="after a prefix without errors"):
        world.solve(problem, rng, prefix=wrong.steps[:3], first_error=4)


def test_two_sided_claims_cannot_be_told_from_the_steps_before():
    """The same words before a right and a wrong claim; the check after it tells them apart."""
    world, rng = TwoSided(5, claims=1.0), np.random.default_rng(0)
    problem = world.draw(rng, length=2)
    [value] = problem.facts.values
    assert problem.question == "mod 5 : sum of a"
    wrong = world.label(problem, [f"claim a {(value + 1) % 5}", f"check a {value}", f"answer {(value + 1) % 5}"])
    assert wrong.local == (False, True, True)
    assert not wrong.answer_right


def test_planted_goes_wrong_where_success_becomes_impossible():
    world = Planted(5, slack=1)
    problem = world._problem("contain 1 2 within 3", Plant((1, 2), 3))
    assert world.label(problem, ["put 0", "put 1", "put 2"]).first_error == -1
    lost = world.label(problem, ["put 0", "put 1", "put 1"])
    assert (lost.first_error, lost.answer) == (2, "missed")
    assert world.label(problem, ["put 1", "put 2"]).answer_right


@given(seeds, st.sampled_from((0.0, 0.5, 1.0)))
def test_make_solutions(seed, erroneous):
    mix = [Arithmetic(7), Linear(7), Hops(), TwoSided(), Planted(slack=2)]
    made, again = (
        make_solutions(mix, np.random.default_rng(seed), 10, lengths=(4, 4), erroneous=erroneous) for _ in range(2)
    )
    assert made == again
    assert [s.domain for s in made] == 2 * ["arithmetic", "linear", "hops", "two-sided", "planted"]
    if erroneous == 1.0:
        assert all(s.first_error >= 0 for s in made)
    if erroneous == 0.0:
        assert all(s.first_error == -1 and s.answer_right for s in made)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Arithmetic, {"modulus": 1}),
        (Linear, {"modulus": 9}),
        (Hops, {"width": 0}),
        (TwoSided, {"claims": 1.5}),
        (Planted, {"slack": -1}),
        (Habits, {"error_rate": -0.1}),
        (Habits, {"luck_rate": float("nan")}),
        (Habits, {"mistakes": ()}),
    ],
)
def test_malformed_worlds(make, wrong):
    with pytest.raises(TraceError, match="expected"):
        make(**wrong)


def test_malformed_requests():
    rng = np.random.default_rng(0)
    for world, length in ((Arithmetic(), 0), (Hops(), 65), (TwoSided(), 3)):
        with pytest.raises(TraceError, match="expected"):
            world.draw(rng, length=length)
    with pytest.raises(TraceError, match="expected at least one world"):
        make_solutions([], rng, 1)
    with pytest.raises(TraceError, match="ordered lengths"):
        make_solutions([Hops()], rng, 1, lengths=(3, 2))
    with pytest.raises(TraceError, match="no mistake"):
        make_solutions([TwoSided()], rng, 1, habits=Habits(mistakes=(Mistake.SKIP,)), erroneous=1.0)
    problem = Hops().draw(rng, length=3)
    with pytest.raises(TraceError, match="0 to 3"):
        Hops().solve(problem, rng, first_error=4)


@pytest.mark.parametrize(
    "wrong", [{"first_error": 0}, {"prefix": (True, True)}, {"local": (True,)}, {"first_error": -1}]
)
def test_labels_that_contradict_one_another(wrong):
    labels = {"local": (True, False), "prefix": (True, False), "first_error": 1}
    rest = {"question": "q", "steps": ("a", "b"), "answer": None, "answer_right": False, "domain": "d"}
    LabelledSolution(**rest, **labels)
    with pytest.raises(TraceError, match="expected"):
        LabelledSolution(**rest, **(labels | wrong))
