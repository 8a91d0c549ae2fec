import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.reasoning import Habits, TwoSided, make_solutions
from grm.aggregate import last, minimum
from grm.data.stepwise import LabelledSolution
from grm.errors import CheckpointError, TraceError
from grm.metrics import roc_auc
from grm.reward import Judge, ProcessReward, ScoreKind, Task, Thought
from grm.testing import check_judgement
from grm.text.bidirectional import (
    COMBINATIONS,
    LOSSES,
    BidirectionalJudge,
    bidirectional_fit,
    fit_bidirectional,
    ranking_loss,
)
from grm.text.conventions import QWEN, RLHFLOW, SKYWORK, TRL
from grm.text.scoring import judge_all, score
from grm.text.tiny import FitSettings, make_model, make_tokenizer

from .tiny_judges import QUESTION, STEPS, judge

TASK = Task(instruction=QUESTION)
THOUGHTS = [Thought(text=step) for step in STEPS]
CHAT = replace(RLHFLOW, kind=ScoreKind.CORRECTNESS)
SCALAR = replace(SKYWORK, kind=ScoreKind.CORRECTNESS)
every_layout = pytest.mark.parametrize("convention", [TRL, QWEN, CHAT, SCALAR], ids=lambda one: one.name)


def both(combination="gate", convention=TRL, **settings):
    return BidirectionalJudge(judge(convention, **settings), combination)


def log_odds(scores):
    return np.log(scores / (1 - scores))


def as_judge(model: Judge[Thought]) -> Judge[Thought]:
    return model


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_judgement_and_no_process_reward(combination):
    model = as_judge(both(combination))
    judgement = model.judge(TASK, THOUGHTS)
    check_judgement(judgement, len(STEPS))
    assert judgement.kind is ScoreKind.CORRECTNESS
    np.testing.assert_allclose(judgement.potential, np.cumprod(judgement.score))
    assert minimum(judgement) == judgement.score.min()
    with pytest.raises(TraceError, match="last of scores of kind correctness"):
        last(judgement)
    assert not isinstance(model, ProcessReward)
    assert not hasattr(model, "start")
    assert not hasattr(model, "extend")


@every_layout
def test_scores_stand_at_their_steps(convention):
    """Forwards as a left-to-right judge says; backwards as one says of the steps in reversed order."""
    alone = judge(convention)
    np.testing.assert_allclose(
        both("forward", convention).judge(TASK, THOUGHTS).score, alone.judge(TASK, THOUGHTS).score, atol=1e-6
    )
    reversed_scores = alone.judge(TASK, THOUGHTS[::-1]).score
    np.testing.assert_allclose(
        both("backward", convention).judge(TASK, THOUGHTS).score, reversed_scores[::-1], atol=1e-6
    )
    assert np.ptp(reversed_scores) > 1e-3, "all steps alike: nothing was tested"


def test_each_reading_sees_its_own_side():
    changed = [*THOUGHTS[:2], Thought(text="0 - 1 = 5"), *THOUGHTS[3:]]
    for combination, unmoved in {"forward": slice(0, 2), "backward": slice(3, 5)}.items():
        before, after = (both(combination).judge(TASK, steps).score for steps in (THOUGHTS, changed))
        moved = ~np.isclose(before, after, atol=1e-6)
        assert not moved[unmoved].any()
        assert moved.sum() == 3
    moved = ~np.isclose(both().judge(TASK, THOUGHTS).score, both().judge(TASK, changed).score, atol=1e-6)
    assert moved.all(), "each step has evidence on one side or the other"


def test_the_average_is_that_of_log_odds():
    forward, backward = (both(name).judge(TASK, THOUGHTS).score for name in ("forward", "backward"))
    expected = (log_odds(forward) + log_odds(backward)) / 2
    np.testing.assert_allclose(log_odds(both("average").judge(TASK, THOUGHTS).score), expected, atol=1e-4)
    np.testing.assert_allclose(log_odds(both("gate").judge(TASK, THOUGHTS).score), expected, atol=1e-4)  # untrained


@pytest.mark.parametrize(("bias", "side"), [(1e3, "forward"), (-1e3, "backward")])
def test_a_gate_wide_open_is_one_reading(bias, side):
    model = both()
    torch.nn.init.constant_(model.gate[2].bias, bias)
    np.testing.assert_allclose(model.judge(TASK, THOUGHTS).score, both(side).judge(TASK, THOUGHTS).score, atol=1e-6)


def test_a_gate_chooses_step_by_step():
    model = both()
    torch.nn.init.normal_(model.gate[2].weight, std=5.0, generator=torch.Generator().manual_seed(0))
    found = log_odds(model.judge(TASK, THOUGHTS).score)
    forward, backward = (log_odds(both(name).judge(TASK, THOUGHTS).score) for name in ("forward", "backward"))
    share = (found - backward) / (forward - backward)
    assert ((share > -1e-3) & (share < 1 + 1e-3)).all()
    assert np.ptp(share) > 0.05


def test_a_score_of_exactly_zero_is_a_score():
    model = both(convention=SCALAR)
    torch.nn.init.constant_(model.network.head.bias, -1e4)
    assert score(model, [QUESTION], [[STEPS]]) == [[[0.0] * len(STEPS)]]
    assert model.judge(TASK, THOUGHTS).judged.all()


def test_two_readings_are_one_pass():
    model = both()
    passes = []
    model.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    model.judge(TASK, THOUGHTS)
    assert len(passes) == 1
    assert model.network.usage.calls == 2
    assert model.network.usage.prompt_tokens == 2 * len(model.network.asker.ask(QUESTION, STEPS).tokens)


def test_many_at_once_are_as_each_alone():
    solutions = [(QUESTION, STEPS), ("mod 7 : 3", STEPS[:2]), (QUESTION, []), (QUESTION, STEPS[2:])]
    model = both()
    for together, (question, steps) in zip(judge_all(model, solutions), solutions, strict=True):
        alone = model.judge(Task(instruction=question), [Thought(text=step) for step in steps])
        np.testing.assert_allclose(together.score, alone.score, atol=1e-5)
    model.network.batch_tokens = 1
    np.testing.assert_allclose(judge_all(model, solutions)[0].score, both().judge(TASK, THOUGHTS).score, atol=1e-5)
    assert score(model, [QUESTION], [["\n".join(STEPS)]])[0][0] == pytest.approx(
        score(model, [QUESTION], [[STEPS]])[0][0]
    )


def test_too_long_a_solution_is_not_judged_at_all():
    model = both(context=judge(TRL).asker.ask(QUESTION, STEPS).reads[-1])
    short, long = judge_all(model, [(QUESTION, STEPS[:-1]), (QUESTION, STEPS)])
    assert short.judged.all()
    assert not long.judged.any()
    check_judgement(long, len(STEPS))
    assert model.network.dropped == len(STEPS)
    assert score(model, [QUESTION], [[STEPS]]) == [[[None] * len(STEPS)]]


def test_what_it_cannot_be_made_of():
    with pytest.raises(TraceError, match="is of kind value; expected correctness"):
        BidirectionalJudge(judge(SKYWORK))
    with pytest.raises(TraceError, match="no combination 'both'; expected one of gate"):
        both("both")
    with pytest.raises(TraceError, match="empty"):
        both().judge(TASK, [Thought(text=" ")])


@pytest.mark.parametrize("combination", ["gate", "average"])
def test_saved_and_loaded(combination, tmp_path):
    model = both(combination, seed=5)
    if model.gate is not None:
        torch.nn.init.normal_(model.gate[2].weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    loaded = BidirectionalJudge.from_pretrained(tmp_path)
    assert loaded.combination == combination
    np.testing.assert_allclose(loaded.judge(TASK, THOUGHTS).score, model.judge(TASK, THOUGHTS).score, atol=1e-6)
    (tmp_path / "bidirectional.json").unlink()
    with pytest.raises(CheckpointError, match="no bidirectional judge"):
        BidirectionalJudge.from_pretrained(tmp_path)


# Training.

SOFT = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=(0.75, None, 0.0, 1.0, 0.3))
HARD = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=(1.0, None, 0.0, 1.0, 1.0))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_losses_are_of_all_labels_at_their_steps(combination):
    """Cross-entropy of log-odds, and of soft labels; also of those after the first error."""
    scores, at = both(combination).judge(TASK, THOUGHTS).score, [0, 2, 3, 4]
    wanted = np.array([SOFT.labels[i] for i in at])
    loss = {
        "cross-entropy": -(wanted * np.log(scores[at]) + (1 - wanted) * np.log(1 - scores[at])).mean(),
        "squared": ((scores[at] - wanted) ** 2).mean(),
    }
    for name, expected in loss.items():
        fit = bidirectional_fit(both(combination), [SOFT], FitSettings(steps=1, batch=1), loss=name)
        assert fit.run() == pytest.approx(expected, abs=1e-5)


def test_ranking_by_hand():
    r, labels = np.array([0.5, 3.0, -1.0, 2.0]), (1.0, None, 0.0, 1.0)
    wrong = math.exp(-1 + 4)
    first = math.exp(0.5) / (math.exp(0.5) + wrong)
    second = math.exp(2) / (math.exp(0.5) + math.exp(2) + wrong)
    expected = -(math.log(first) + math.log(second)) / 2
    assert float(ranking_loss(torch.tensor(r), labels)) == pytest.approx(expected)
    assert float(ranking_loss(torch.tensor(r[:1]), (1.0,))) == pytest.approx(0.0)
    with pytest.raises(TraceError, match="none of the steps is right"):
        ranking_loss(torch.tensor(r), (0.0, None, 0.0, 0.0))
    fit = bidirectional_fit(both(), [HARD], FitSettings(steps=1, batch=1), loss="ranking")
    logits = torch.tensor(log_odds(both().judge(TASK, THOUGHTS).score))
    assert fit.run() == pytest.approx(float(ranking_loss(logits, HARD.labels)), abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_teaches(loss):
    model = both()
    fit_bidirectional(model, [HARD], FitSettings(steps=40, batch=1, learning_rate=5e-3), loss=loss)
    score = model.judge(TASK, THOUGHTS).score
    assert log_odds(score)[2] < log_odds(score[[0, 3, 4]]).min() - 2
    assert not model.network.network.training
    assert not model.gate.training


def test_the_gate_does_not_shape_the_readings():
    """Where the readings agree the gate learns nothing, and what it looks at learns nothing from it."""
    model = both()
    torch.nn.init.normal_(model.gate[2].weight, generator=torch.Generator().manual_seed(0))
    for parameter in model.network.head.parameters():
        parameter.requires_grad_(False)
        parameter.zero_()  # log-odds are 0 whatever is read: only the gate's inputs could carry a gradient
    readings = model._readings(QUESTION, STEPS)
    model._log_odds([readings]).sum().backward()
    gradients = [p.grad for p in model.network.backbone.parameters() if p.grad is not None]
    assert all((g == 0).all() for g in gradients)


def test_what_cannot_be_learned_from():
    with pytest.raises(TraceError, match="expected 0 and 1"):
        bidirectional_fit(both(), [SOFT], loss="ranking")
    with pytest.raises(TraceError, match="no loss 'hinge'"):
        bidirectional_fit(both(), [HARD], loss="hinge")
    unlabelled = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=(None,) * 5)
    with pytest.raises(TraceError, match="none of 1 examples"):
        bidirectional_fit(both(), [unlabelled])
    all_wrong = LabelledSolution(prompt=QUESTION, steps=tuple(STEPS), labels=(0.0,) * 5)
    with pytest.raises(TraceError, match="none of 2 examples"):
        bidirectional_fit(both(), [unlabelled, all_wrong], loss="ranking")
    cramped = both(context=judge(TRL).asker.ask(QUESTION, STEPS).reads[-1])
    with pytest.raises(TraceError, match="none of 1 examples"):
        bidirectional_fit(cramped, [HARD])


def test_it_learns_what_left_to_right_cannot():
    """Two events, one variable, three values: `claim a 1` is right if `check a 1` follows."""
    world, habits = TwoSided(3, claims=1.0), Habits(error_rate=0.5, later_error_rate=0.5)
    solutions = make_solutions([world], np.random.default_rng(0), 60, lengths=(2, 2), habits=habits, erroneous=0.0)
    examples = [LabelledSolution(prompt=s.question, steps=s.steps[:2], labels=s.local[:2]) for s in solutions]
    tokenizer = make_tokenizer([s.question + "\n" + "\n".join(s.steps) for s in solutions])
    language = make_model(tokenizer, width=32, heads=2, context=32)
    auc = {}
    for combination in ("forward", "gate"):
        model = BidirectionalJudge.on_top_of(language, tokenizer, TRL, combination)
        fit_bidirectional(model, examples, FitSettings(steps=150, batch=32, learning_rate=5e-3))
        claims = [j.score[0] for j in judge_all(model, [(s.question, s.steps[:2]) for s in solutions])]
        right = np.array([s.local[0] for s in solutions])
        auc[combination] = roc_auc(np.array(claims)[right], np.array(claims)[~right])
    assert auc["gate"] > 0.95, auc
    assert auc["forward"] < 0.75, auc
