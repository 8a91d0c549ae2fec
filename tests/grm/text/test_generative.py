import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm import aggregate
from grm.errors import AbstainedError, TraceError
from grm.reward import ScoreKind, Task, Thought
from grm.testing import check_judgement, check_process_reward
from grm.text.generative import (
    WHOLE,
    Criticised,
    Decisions,
    GenORM,
    GenPRM,
    ThinkPRM,
    VerificationChain,
    VerifierFormat,
    agrees_on_outcome,
    agrees_on_process,
    parse_decisions,
    parse_verdict,
    recovered,
    select_chains,
    split_critiques,
    training_text,
)
from grm.text.huggingface import HuggingFaceModel
from grm.text.tiny import make_model, make_tokenizer

from .models import Scripted

TASK = Task(instruction="2 + 2 * 3?")
STEPS = [Thought(text="2 * 3 = 6"), Thought(text="2 + 6 = 9"), Thought(text="The answer is: 9")]
FORMAT = VerifierFormat()


def chain(*right: bool | None, start: int = 1) -> str:
    """A critique with these decisions; None where the critic forgets to decide."""
    lines = []
    for i, decision in enumerate(right, start):
        word = "" if decision is None else rf"The step is \boxed{{{'correct' if decision else 'incorrect'}}}"
        lines.append(f"Step {i}: I looked at it. {word}")
    return "\n".join(lines)


# Reading


@pytest.mark.parametrize(
    ("text", "decisions"),
    [
        (chain(True, True, True), (True, True, True)),
        (chain(True, False), (True, False)),
        (chain(True, False, True), (True, False)),
        (chain(False), (False,)),
        (chain(True, True), None),
        (chain(True, None, True), None),
        (chain(None, False), None),
        (chain(True, True, start=2), None),
        ("", None),
        ("all fine", None),
        (r"Step 1: \boxed{maybe} Step", None),
        (chain(True) + "\n**Step 2:** hm\nThe step is $\\boxed{\\text{Incorrect}}$.", (True, False)),
        ("### Step 1: \\boxed{incorrect}? No: \\boxed{correct}\n" + chain(True, False, start=2), (True, True, False)),
        (chain(True, False) + "\nWait.\n" + chain(True, start=2) + "\n" + chain(True, start=3), (True, True, True)),
        (r"\boxed{correct}, \boxed{correct}, \boxed{correct}", (True, True, True)),
        (r"\boxed{correct}, \boxed{incorrect}", (True, False)),
        (r"\boxed{correct}", None),
        (r"\boxed{correct}" * 4, None),
    ],
)
def test_parse_decisions(text, decisions):
    found = parse_decisions(text, 3)
    assert (None if found is None else found.right) == decisions


def test_critiques_of_steps_that_do_not_exist_are_left_out_and_counted():
    assert parse_decisions(chain(True, True, True, False, True), 3) == Decisions((True, True, True), 2)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_every_chain_is_read_up_to_its_first_error(right):
    found = parse_decisions(chain(*right), len(right))
    first = right.index(False) + 1 if False in right else len(right)
    assert found == Decisions(tuple(right[:first]), 0)


def test_parse_verdict():
    assert parse_verdict("… Is the solution correct? Yes") is True
    assert parse_verdict("Is the solution correct? Yes. Is the solution correct?\n**no**") is False
    assert parse_verdict("Is the solution correct? Perhaps") is None
    assert parse_verdict("Yes") is None


def test_split_critiques():
    assert split_critiques("So.\nStep 1: a\nb\nStep 2: c") == {1: "a\nb", 2: "c"}


def test_the_prompt_numbers_the_steps_one_to_a_line():
    prompt = FORMAT.prompt(TASK, ["Step 1: a\n  b", "see\nStep 9: c"])
    assert "Step 1: a b\nStep 2: see Step 9: c\n" in prompt
    assert TASK.instruction in prompt
    with pytest.raises(TraceError, match="step 1 is blank"):
        FORMAT.prompt(TASK, ["a", " \n"])


# ThinkPRM


def test_think_one_chain():
    model = Scripted(lambda prompt, k: chain(True, False) + "\nStep 4: and \\boxed{correct}")
    judgement = ThinkPRM(model).judge(TASK, STEPS)
    check_judgement(judgement, 3)
    np.testing.assert_array_equal(judgement.potential, [1, 0, 0])
    np.testing.assert_array_equal(judgement.score, [1, 0, np.nan])
    assert judgement.judged.all()
    assert (judgement.kind, judgement.n_samples, judgement.n_invalid) == (ScoreKind.VERDICT, 1, 0)
    assert judgement.outcome == pytest.approx(0.9)
    assert judgement.critiques == (chain(True, False) + "\n",)
    assert judgement.last() == 0
    [call] = model.calls
    assert call["stop"] == ("Step 4:", "</think>", "Is the solution correct?")
    assert call["temperature"] == 0
    [ending] = model.endings
    assert ending.endswith("\n</think>\nIs the solution correct?")
    assert ending.startswith(FORMAT.prompt(TASK, [s.text for s in STEPS]) + "<think>\nStep 1:")


def test_think_chains_are_averaged_and_the_invalid_are_counted_never_zero():
    texts = [chain(True, True, True), chain(True, False), "hm", chain(False), chain(True, True)]
    weights = {chain(True, True, True): 0.8, chain(True, False): 0.3, chain(False): 0.1}

    def weigh(prompt):
        written = prompt.partition("<think>\n")[2].partition("\n</think>")[0]
        return weights[written]

    judgement = ThinkPRM(Scripted(lambda prompt, k: texts[k], weigh), samples=5).judge(TASK, STEPS)
    np.testing.assert_allclose(judgement.potential, [2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(judgement.score, [2 / 3, 1 / 2, 1])
    np.testing.assert_allclose(judgement.spread, [math.sqrt(2 / 9 / 3)] * 3)
    assert (judgement.n_samples, judgement.n_invalid, judgement.outcome) == (5, 2, pytest.approx(0.4))
    assert len(judgement.critiques) == 5
    assert aggregate.minimum(judgement) == pytest.approx(1 / 2)


def test_think_without_a_decision_abstains():
    model = Scripted(lambda prompt, k: "I cannot tell.")
    judgement = ThinkPRM(model, samples=3).judge(TASK, STEPS)
    check_judgement(judgement, 3)
    assert not judgement.judged.any()
    assert math.isnan(judgement.outcome)
    assert judgement.n_invalid == 3
    assert model.endings == [], "no yes or no is asked after an invalid chain"
    with pytest.raises(AbstainedError):
        judgement.last()


def test_think_a_chain_that_was_cut_off_is_invalid():
    judgement = ThinkPRM(Scripted(lambda prompt, k: chain(True, True, True)), max_tokens=12).judge(TASK, STEPS)
    assert judgement.n_invalid == 1
    assert not judgement.judged.any()


def test_think_an_unweighed_verdict_is_no_number():
    judgement = ThinkPRM(Scripted(lambda prompt, k: chain(False), lambda prompt: math.nan)).judge(TASK, STEPS)
    assert math.isnan(judgement.outcome)
    assert judgement.judged.all(), "the steps were decided on"


def test_think_rounds_begin_with_different_phrases_and_the_last_decision_counts():
    def says(prompt, k):
        if "double check" not in prompt:
            return chain(True, True, True)
        return chain(True, False) if "verify again" not in prompt else "Nothing to add."

    model = Scripted(says)
    judgement = ThinkPRM(model, rounds=3).judge(TASK, STEPS)
    np.testing.assert_array_equal(judgement.potential, [1, 0, 0])
    assert len(model.prompts) == 3
    [text] = judgement.critiques
    assert text.index("Let me double check.") < text.index("Let's verify again.") < text.index("Nothing to add.")
    assert model.endings[0].count("double check") == 1
    with pytest.raises(TraceError, match="1 to 4 rounds"):
        ThinkPRM(model, rounds=5)


def test_think_a_chain_that_was_cut_off_does_not_go_on():
    model = Scripted(lambda prompt, k: chain(False) + " and" * 50)
    judgement = ThinkPRM(model, rounds=2, max_tokens=20).judge(TASK, STEPS)
    assert len(model.prompts) == 1
    assert judgement.n_invalid == 0, "what it had decided stands"


def test_think_a_batch_of_several_lengths_with_rounds():
    def says(prompt, k):
        length = (
            prompt.count("\nStep ") - prompt.count("<think>\nStep") - prompt.partition("<think>")[2].count("\nStep ")
        )
        return chain(*[True] * (length - 1), k == 0)

    model = Scripted(says)
    solutions = [(TASK, STEPS), (TASK, STEPS[:1]), (TASK, []), (TASK, STEPS[:2])]
    together = ThinkPRM(model, samples=2, rounds=2).judge_all(solutions)
    assert [len(j) for j in together] == [3, 1, 0, 2]
    for (task, steps), judgement in zip(solutions, together, strict=True):
        np.testing.assert_array_equal(
            judgement.potential, ThinkPRM(Scripted(says), samples=2, rounds=2).judge(task, steps).potential
        )
    assert together[2].n_samples == 0
    np.testing.assert_array_equal(together[0].potential[:2], [1, 1])


def test_think_a_solution_longer_than_the_context_is_not_asked():
    model = Scripted(lambda prompt, k: chain(True, True, True))
    judge = ThinkPRM(model, fits=lambda prompt: "2 + 6" not in prompt)
    long, short = judge.judge_all([(TASK, STEPS), (TASK, [STEPS[0]] * 3)])
    assert (long.judged.any(), long.n_invalid, long.critiques) == (False, 1, ())
    assert short.judged.all()
    assert len(model.prompts) == 1


def test_a_chain_that_outgrew_the_context_goes_no_further():
    model = Scripted(lambda prompt, k: chain(True, False))
    room = len(FORMAT.prompt(TASK, [s.text for s in STEPS])) + 20
    judgement = ThinkPRM(model, rounds=2, fits=lambda prompt: len(prompt) < room).judge(TASK, STEPS)
    assert len(model.prompts) == 1
    assert model.endings == []
    np.testing.assert_array_equal(judgement.potential, [1, 0, 0])
    assert math.isnan(judgement.outcome)
    orm = GenORM(model, fits=lambda prompt: FORMAT.question not in prompt).judge(TASK, STEPS)
    assert (orm.n_invalid, orm.judged.any()) == (1, False)


def test_over_a_network():
    """A tiny untrained model: whatever it says, the laws hold, and what it does not say is no number."""
    own = VerifierFormat(step="Step {i} :", box=("[ ", " ]"), begin="", end="\n")
    texts = [own.prompt(TASK, [s.text for s in STEPS]), chain(True), "[ correct incorrect ] Yes No 4 :"]
    tokenizer = make_tokenizer([*texts, own.question, own.decision])
    model = HuggingFaceModel(make_model(tokenizer, width=32, seed=1), tokenizer)
    check_process_reward(GenPRM(model, max_tokens=0, format=own), TASK, STEPS)
    judgement = GenPRM(model, max_tokens=0, format=own).judge(TASK, STEPS)
    assert judgement.judged.all()
    assert judgement.n_invalid == 0
    think = ThinkPRM(model, samples=2, max_tokens=5, format=own).judge(TASK, STEPS)
    check_judgement(think, 3)
    assert think.n_invalid == 2
    assert 0 < GenORM(model, max_tokens=0, format=own).judge(TASK, STEPS).outcome < 1

    def fits(prompt):
        return len(tokenizer(prompt)["input_ids"]) < model.context

    long = [Thought(text="2 " * 300)]
    with pytest.raises(TraceError, match="context of 256"):
        GenPRM(model, max_tokens=0, format=own).judge(TASK, long)
    assert not GenPRM(model, max_tokens=0, format=own, fits=fits).judge(TASK, long).judged.any()


@pytest.mark.parametrize("judge", [ThinkPRM, GenORM, GenPRM])
def test_an_empty_step_is_an_error(judge):
    with pytest.raises(TraceError, match="step 1 is blank"):
        judge(Scripted(lambda prompt, k: "")).judge(TASK, [STEPS[0], Thought(text="  ")])


@pytest.mark.parametrize("judge", [ThinkPRM, GenORM, GenPRM])
def test_no_steps_no_questions(judge):
    model = Scripted(lambda prompt, k: "")
    judgement = judge(model).judge(TASK, [])
    check_judgement(judgement, 0)
    assert judgement.n_samples == judgement.n_invalid == 0
    assert model.calls == []


# GenORM


def test_orm_judges_the_last_step_as_a_value():
    model = Scripted(lambda prompt, k: f"critique {k}", lambda prompt: 0.2 if "critique 0" in prompt else 0.6)
    judgement = GenORM(model, samples=2).judge(TASK, STEPS)
    check_judgement(judgement, 3)
    np.testing.assert_array_equal(judgement.judged, [False, False, True])
    assert judgement.kind is ScoreKind.VALUE
    assert aggregate.last(judgement) == pytest.approx(0.4)
    assert judgement.spread[-1] == pytest.approx(0.2 / math.sqrt(2))
    assert judgement.critiques == ("critique 0", "critique 1")
    assert model.calls[0]["temperature"] == 0.6


def test_orm_a_critique_that_was_cut_off_is_left_out():
    model = Scripted(lambda prompt, k: "x " * 9 if k == 0 else "x", lambda prompt: 0.7)
    judgement = GenORM(model, samples=2, max_tokens=5).judge(TASK, STEPS)
    assert (judgement.n_invalid, judgement.outcome) == (1, 0.7)
    judgement = GenORM(Scripted(lambda prompt, k: "x " * 9), max_tokens=5).judge(TASK, STEPS)
    assert (judgement.n_invalid, judgement.judged.any()) == (1, False)


def test_orm_without_a_critique_asks_once():
    model = Scripted(lambda prompt, k: pytest.fail("nothing is to be written"))
    assert GenORM(model, max_tokens=0).judge(TASK, STEPS).outcome == 0.9
    assert len(model.endings) == 1


# GenPRM


def weigh_step(prompt):
    """P(correct) by the last step of the solution."""
    return {"2 * 3 = 6": 0.9, "2 + 6 = 9": 0.2}.get(prompt.partition("<think>")[0].strip().rpartition(": ")[2], 0.5)


def test_prm_judges_each_step_given_those_before():
    model = Scripted(lambda prompt, k: r" seems so. The step is \boxed{whatever}", weigh_step)
    judgement = GenPRM(model).judge(TASK, STEPS)
    np.testing.assert_allclose(judgement.score, [0.9, 0.2, 0.5])
    np.testing.assert_allclose(judgement.potential, [0.9, 0.18, 0.09])
    assert judgement.kind is ScoreKind.CORRECTNESS
    assert aggregate.product(judgement) == pytest.approx(judgement.last())
    assert model.endings[0].endswith("<think>\nStep 1: seems so. The step is \\boxed{")
    assert "2 + 6" not in model.endings[0]
    assert "2 + 6" in model.endings[1]
    assert judgement.critiques[0].startswith("Step 1: seems so.")


def test_prm_obeys_the_laws():
    check_process_reward(GenPRM(Scripted(lambda prompt, k: " so", weigh_step)), TASK, STEPS)


def test_prm_asks_of_each_step_once():
    model = Scripted(lambda prompt, k: " so", weigh_step)
    reward = GenPRM(model)
    [carry], _ = reward.extend([reward.start(TASK)], [STEPS[:2]])
    [left, right], _ = reward.extend([carry, carry], [STEPS[2:], [Thought(text="x")]])
    assert len(model.endings) == 4
    assert left.steps != right.steps
    assert carry.steps == ("2 * 3 = 6", "2 + 6 = 9")


def test_prm_abstains_from_the_first_step_it_cannot_judge():
    def says(prompt, k):
        return "x " * 9 if prompt.endswith("Step 2:") else "x"

    judgement = GenPRM(Scripted(says, weigh_step), max_tokens=5).judge(TASK, STEPS)
    check_judgement(judgement, 3)
    np.testing.assert_array_equal(judgement.judged, [True, False, False])
    assert judgement.score[2] == 0.5, "the step itself was judged"
    assert (judgement.n_samples, judgement.n_invalid) == (3, 1)
    check_process_reward(GenPRM(Scripted(says, weigh_step), max_tokens=5), TASK, STEPS)


def test_prm_spread_of_a_product_by_hand():
    values = {0: [0.8, 0.4], 1: [0.5, 0.3]}

    def weigh(prompt):
        return values["2 + 6" in prompt][int(prompt.rpartition("sample ")[2][0])]

    judgement = GenPRM(Scripted(lambda prompt, k: f"sample {k}", weigh), samples=2).judge(TASK, STEPS[:2])
    np.testing.assert_allclose(judgement.potential, [0.6, 0.24])
    # standard errors .2 / sqrt 2 and .1 / sqrt 2: variance .4^2 * .02 + .6^2 * .005 = .005
    np.testing.assert_allclose(judgement.spread, [math.sqrt(0.02), math.sqrt(0.005)])


def test_prm_starts_without_knowing_anything():
    assert GenPRM(Scripted(lambda prompt, k: "")).start(TASK) == Criticised(TASK)


# Training texts


def known(labels, *right, text=None, steps=("a", "b", "c")):
    return VerificationChain(task=TASK, steps=steps, labels=labels, text=text or chain(*right))


@pytest.mark.parametrize(
    ("labels", "right", "process", "outcome"),
    [
        ((1, 1, 1), (True, True, True), True, True),
        ((1, 0, None), (True, False), True, True),
        ((1, 0, None), (False,), False, True),
        ((1, 0, None), (True, True, False), False, True),
        ((1, 0, None), (True, True, True), False, False),
        ((1, 1, 1), (True, False), False, False),
        ((1, 1, 1), (True, True), False, False),
        ((1, None, 1), (True, True, True), False, True),
        ((1, 0, 1), (True, False), True, False),
    ],
)
def test_filters(labels, right, process, outcome):
    assert agrees_on_process(known(labels, *right)) is process
    assert agrees_on_outcome(known(labels, *right)) is outcome


def test_a_chain_about_steps_that_do_not_exist_is_not_kept():
    assert not agrees_on_process(known((1, 1, 1), True, True, True, True))
    assert not agrees_on_outcome(known((1, 1, 1), True, True, True, True))


def test_recovered():
    assert recovered([1, 0, 1, 0, None]) == (1, 1, 1, 0, None)
    assert recovered([0, 0]) == (0, 0)


def test_selection_balances_and_caps():
    right = [known((1, 1, 1), True, True, True, steps=(f"{i}", "b", "c")) for i in range(4) for _ in range(3)]
    wrong = [known((1, 0, None), True, False, steps=(f"{i}", "x", "c")) for i in range(2)]
    bad = [known((1, 0, None), True, True, True)]
    rng = partial(np.random.default_rng, 0)
    kept = select_chains([*bad, *right, *wrong], agrees_on_process, rng())
    assert len(kept) == 4
    assert sum(one.labels[1] == 0 for one in kept) == 2
    kept = select_chains([*bad, *right, *wrong], agrees_on_process, rng(), balanced=False, per_solution=2)
    assert len(kept) == 4 * 2 + 2
    assert len(select_chains(right, agrees_on_process, rng(), balanced=False, per_solution=9)) == 12
    assert select_chains(right, agrees_on_process, rng(), balanced=False, longest=10) == []
    assert select_chains(wrong, agrees_on_process, rng()) == [], "nothing to balance them with"


def test_training_text_is_what_the_verifier_is_asked_to_write():
    one = known((1, 0, None), text="Step 1: ok \\boxed{\\text{Correct}}\nStep 2: no \\boxed{incorrect}. Also, blah.")
    prompt, answer = training_text(one)
    assert prompt == FORMAT.prompt(TASK, one.steps)
    assert answer == (
        "<think>\nStep 1: ok \\boxed{correct}\nStep 2: no \\boxed{incorrect}\n</think>\nIs the solution correct? No"
    )
    assert parse_decisions(answer, 3) == Decisions((True, False), 0)
    assert parse_verdict(answer) is False
    assert training_text(known((1, 1, 1), True, True, True))[1].endswith(" Yes")
    with pytest.raises(TraceError, match="without any label"):
        training_text(known((None, None, None), True))


def test_a_verifier_that_learned_its_training_text_by_heart_is_read_as_it_was_labelled():
    prompt, answer = training_text(known((1, 0, None), True, False, steps=tuple(s.text for s in STEPS)))
    model = Scripted(lambda asked, k: (prompt + answer).removeprefix(asked), lambda asked: 0.0)
    judgement = ThinkPRM(model).judge(TASK, STEPS)
    np.testing.assert_array_equal(judgement.potential, [1, 0, 0])
    assert model.endings == [(prompt + answer).removesuffix(" No")]


def test_a_format_of_ones_own():
    own = VerifierFormat(step="S{i}", box=("[", "]"), right="ok", wrong="not ok", begin="", end="|", question="?")
    assert parse_decisions("S1 fine [ok]\nS2 [not ok]", 3, own) == Decisions((True, False), 0)
    assert WHOLE.question == VerifierFormat().question
