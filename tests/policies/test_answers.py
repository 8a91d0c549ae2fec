"""Tests of `policies.answers`, and of a run in which a person answers."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch

from grm.data.lerobot import read_episodes
from grm.models.multiview import GRM
from policies import one_shot
from policies.answers import FIRST, Lessons, Witness, attends, keep_rollout, kept, read_rollouts
from policies.arms import arm_named
from policies.gold import PATIENCE, Answer, JudgedSuccess, StableSuccess
from policies.log import CLOCK, arm_folder
from policies.log import read_rollouts as read_log
from policies.offpolicy import DemonstrationSAC
from policies.one_shot import run_arm, world_of
from policies.onlookers import ModelOnlooker

from .conftest import SETTINGS
from .watched import sure, watched

ASKED = dataclasses.replace(arm_named("grm_only_asked"), answers=5, replays=1)
NO, YES = Answer(done_for=0, claimed=True), Answer(done_for=2, claimed=True)
UNASKED = Answer(done_for=8, claimed=False)


def what_happened(folder):
    path = arm_folder(folder, ASKED.name) / "rollouts.csv"
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in read_log(path)]


def test_somebody_is_always_there_at_first_and_then_now_and_then():
    def there(given, number=30, seeds=range(2000)):
        return np.mean([attends(number, 150, given=given, answers=20, seed=seed) for seed in seeds])

    assert there(FIRST - 1) == 1
    assert there(FIRST) == pytest.approx((20 - FIRST) / 121, abs=0.02), "as often as the answers last"
    assert there(20) == 0
    assert there(FIRST, number=150 - (20 - FIRST) + 1) == 1, "no answer is left over if there is something to say"
    assert attends(3, 150, given=2, answers=2, seed=0) is False, "fewer than the first"
    again = [attends(number, 150, given=FIRST, answers=20, seed=1) for number in range(150)]
    assert again == [attends(number, 150, given=FIRST, answers=20, seed=1) for number in range(150)]
    assert 0 < sum(again) < 150


def test_the_head_is_wrong_if_it_is_refuted_or_sees_nothing():
    assert [answer.right for answer in (NO, YES, UNASKED)] == [False, True, False]


def test_a_kept_rollout_is_seen_again_as_it_was(begun, tmp_path):
    [demonstration] = read_episodes(begun / "demonstration", [0])
    env = world_of(demonstration, ASKED)
    drawn = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    first, _ = env.reset(seed=5)
    for action in drawn:
        last, *_ = env.step(action)
    for number, answer in ((3, NO), (7, None), (12, YES)):
        keep_rollout(tmp_path / "answers", number, seed=5, actions=drawn, answer=answer)
    assert kept(tmp_path / "nowhere", 20) == []
    assert [path.stem for path in kept(tmp_path / "answers", 11)] == ["0003", "0007"]
    no, unsaid, yes = read_rollouts(kept(tmp_path / "answers", 12), env, demonstration)
    env.close()
    assert (no.success.any(), unsaid.success.any(), yes.success.tolist()) == (False, False, [False] * 5 + [True] * 2)
    assert (no.behaviour, len(no), no.seed) == ("learner", 7, 5)
    assert np.isnan(no.progress).all()
    for view in demonstration.views:
        np.testing.assert_array_equal(no.views[view][0], first[f"pixels.{view}"])
        np.testing.assert_array_equal(no.views[view][-1], last[f"pixels.{view}"])


def test_who_was_asked_learned_from_it_and_a_killed_run_goes_on_the_same(begun, tmp_path, monkeypatch):
    """Somebody is there at rollouts 1, 2 and 5; the head is believed whatever it says, until it is looked at again."""
    monkeypatch.setattr(Witness, "attends", lambda self, number: number in (1, 2, 5))
    always = functools.partial(JudgedSuccess, stable=StableSuccess(0.0, 3))
    monkeypatch.setattr(one_shot, "JudgedSuccess", lambda env, stable: always(env))
    taught, retracted = [], []
    retract, teach = DemonstrationSAC.retract, Lessons.taught
    monkeypatch.setattr(DemonstrationSAC, "retract", lambda self, them: retracted.append(them) or retract(self, them))
    monkeypatch.setattr(Lessons, "taught", lambda self: taught.append([d.any() for d in self._done]) or teach(self))
    settings = dataclasses.replace(SETTINGS, model=str(begun / "grm"), adaptation_steps=1, rollouts=6)
    arm = dataclasses.replace(ASKED, rule=(1.1, 3))  # nothing is believed that is looked at again
    whole, cut = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "cut"))
    assert run_arm(settings, arm, whole)
    assert taught == [[True, False] + [False] * count for count in (1, 2, 3)], "a demonstration, a replay, answers"
    assert retracted == [[], [], [], [], [3, 4], []], "what was believed since the answer before"
    rows = what_happened(whole)
    assert [row["answer"] for row in rows] == ["0", "0", "", "", "0", ""]
    assert [row["attended"] for row in rows] == ["True", "True", "False", "False", "True", "False"]
    assert [row["success"] for row in rows] == ["False", "False", "True", "True", "False", "True"]
    assert [row["retracted"] for row in rows] == ["0", "0", "0", "0", "2", "0"]
    assert {row["true_success"] for row in rows} == {"False"}
    assert [row["length"] for row in rows] == ["3"] * 6, "a refuted claim ends the rollout"

    for number in range(1, 6):
        assert not run_arm(settings, arm, cut, on_rollout=lambda rollout: False), number
    assert run_arm(settings, arm, cut)
    assert what_happened(cut) == rows
    heads = [GRM.from_pretrained(arm_folder(folder, arm.name) / "grm").network.done.weight for folder in (whole, cut)]
    assert torch.equal(*heads), "with the same head in the end"
    assert not torch.equal(heads[0], GRM.from_pretrained(whole / arm.grm).network.done.weight)


def test_what_the_head_still_believes_stays_paid(begun, tmp_path):
    [demonstration] = read_episodes(begun / "demonstration", [0])
    for number in (2, 4, 6):
        keep_rollout(tmp_path / "believed", number, seed=number, actions=np.zeros((4, 4), np.float32), answer=None)
    keep_rollout(tmp_path / "answers", 3, seed=3, actions=np.zeros((4, 4), np.float32), answer=NO)
    for threshold, found in ((0.0, []), (1.1, [4])):
        model, task = GRM.from_pretrained(begun / "grm"), demonstration.as_goal()
        witness = Witness(
            ModelOnlooker(model, task),
            tmp_path,
            world_of(demonstration, ASKED),
            demonstration,
            Lessons(model, task, [demonstration]),
            StableSuccess(threshold, 3),
            answers=5,
            rollouts=6,
            finished=4,
            seed=0,
        )
        said = {"seed": 5, "actions": np.zeros((4, 4), np.float32)}
        assert witness.after(5, **said, success=False, answer=NO) == found, "between rollouts 3 and 5"
        assert witness.after(5, **said, success=True, answer=YES) == [], "it was right"
        witness.close()


@pytest.mark.parametrize(("successes", "paid"), [((2,), 1.0), ((), 0.0)])
def test_an_answer_is_paid_instead_of_the_claim(successes, paid):
    env = JudgedSuccess(watched(*sure(0, 1, 1, 1, 1), successes=successes), StableSuccess(0.5, 2))
    for env.attended in (True, False):
        env.reset(seed=0)
        env.step(np.zeros(1, np.float32))
        _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert info.get("answer") == (Answer(done_for=int(paid), claimed=True) if env.attended else None)
        expected = paid if env.attended else 1.0
        assert (reward, terminated, truncated, info["success"]) == (expected, bool(expected), not expected, expected)


def test_who_stands_by_says_that_it_is_done_where_the_head_does_not_see_it():
    horizon = PATIENCE + 6
    env = JudgedSuccess(
        watched(*sure(*[0] * 30), successes=tuple(range(2, 30)), horizon=horizon), StableSuccess(0.5, 2)
    )
    ends = []
    for env.attended in (True, False):
        env.reset(seed=0)
        for step in range(1, horizon + 1):
            _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
            if terminated or truncated:
                ends.append((step, reward, terminated, info.get("answer")))
                break
    unasked = Answer(done_for=PATIENCE, claimed=False)
    assert ends == [(1 + PATIENCE, 1.0, True, unasked), (horizon, 0.0, False, None)], "alone, the head sees nothing"
