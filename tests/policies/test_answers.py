"""Tests of `policies.answers`, and of a run in which a person answers."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from grm.data.lerobot import read_episodes
from policies import one_shot
from policies.answers import FIRST, Answer, attends, keep_rollout, kept, known, read_answer, read_rollouts
from policies.arms import arm_named
from policies.gold import PATIENCE, JudgedSuccess, StableSuccess
from policies.log import CLOCK, arm_folder
from policies.log import read_rollouts as read_log
from policies.offpolicy import DemonstrationSAC
from policies.one_shot import disbelieved, run_arm, world_of

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


def test_the_grm_learns_from_what_contradicts_it(tmp_path):
    assert [answer.right for answer in (NO, YES, UNASKED)] == [False, True, False]
    for number, answer in enumerate((YES, NO, YES, UNASKED, YES, YES), 1):
        keep_rollout(tmp_path, 10 * number, seed=0, actions=np.zeros((1, 4)), answer=answer)
    found = kept(tmp_path, 60)
    assert [read_answer(path) for path in found] == [YES, NO, YES, UNASKED, YES, YES]
    assert [len(known(found[:count])) for count in range(7)] == [0, 0, 2, 2, 4, 4, 4]


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
    """Somebody is there at rollouts 1, 2 and 5; the head believes everything, until it has learned from the fifth."""
    monkeypatch.setattr(one_shot, "attends", lambda number, *_, **__: number in (1, 2, 5))
    always = functools.partial(JudgedSuccess, stable=StableSuccess(0.0, 3))
    monkeypatch.setattr(one_shot, "JudgedSuccess", lambda env, stable: always(env))
    adapted, retracted = [], []
    adapt, retract = one_shot.adapt, DemonstrationSAC.retract

    def counted(*given, rollouts, train_encoder=True, **named):
        adapted.append(([rollout.behaviour for rollout in rollouts], train_encoder))
        return adapt(*given, rollouts=rollouts, train_encoder=train_encoder, **named)

    monkeypatch.setattr(one_shot, "adapt", counted)
    monkeypatch.setattr(
        DemonstrationSAC, "retract", lambda self, numbers: retracted.append(numbers) or retract(self, numbers)
    )
    settings = dataclasses.replace(SETTINGS, model=str(begun / "grm"), adaptation_steps=2, rollouts=6)
    arm = dataclasses.replace(ASKED, rule=(1.1, 3))  # nothing is believed that is looked at again
    whole, cut = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "cut"))
    assert run_arm(settings, arm, whole)
    told = [["replay", *["learner"] * count] for count in range(4)]
    assert adapted == [(told[0], True), *((one, False) for one in told[1:])], "the heads, at every refuted claim"
    assert retracted == [[], [], [3, 4]], "what was believed since the answer before"
    rows = what_happened(whole)
    assert [row["answer"] for row in rows] == ["0", "0", "", "", "0", ""]
    assert [row["attended"] for row in rows] == ["True", "True", "False", "False", "True", "False"]
    assert [row["success"] for row in rows] == ["False", "False", "True", "True", "False", "True"]
    assert [row["retracted"] for row in rows] == ["0", "0", "0", "0", "2", "0"]
    assert {row["true_success"] for row in rows} == {"False"}
    assert [row["length"] for row in rows] == ["3"] * 6, "a refuted claim ends the rollout"
    own = arm_folder(whole, ASKED.name)
    assert [path.name for path in own.glob("grm-answers*")] == ["grm-answers3"]
    assert json.loads((own / "grm-answers3" / "config.json").read_text())["card"]["answers"] == [False] * 3

    for number in range(1, 6):
        assert not run_arm(settings, arm, cut, on_rollout=lambda rollout: False), number
        for path in arm_folder(cut, ASKED.name).glob("grm-answers*"):  # killed while it adapted
            shutil.rmtree(path)
    assert run_arm(settings, arm, cut)
    assert what_happened(cut) == rows


def test_what_the_head_still_believes_stays_paid(begun, tmp_path):
    [demonstration] = read_episodes(begun / "demonstration", [0])
    folder = shutil.copytree(begun, tmp_path / "run")
    own, settings = arm_folder(folder, ASKED.name), dataclasses.replace(SETTINGS, model=str(begun / "grm"))
    for number in (2, 4, 6):
        keep_rollout(own / "believed", number, seed=number, actions=np.zeros((4, 4), np.float32), answer=None)
    keep_rollout(own / "answers", 3, seed=3, actions=np.zeros((4, 4), np.float32), answer=NO)
    keep_rollout(own / "answers", 5, seed=5, actions=np.zeros((4, 4), np.float32), answer=NO)
    onlooker = one_shot.onlooker_of(dataclasses.replace(ASKED, replays=0, aftermath=0), settings, demonstration, folder)
    for threshold, found in ((0.0, []), (1.1, [4])):
        arm = dataclasses.replace(ASKED, rule=(threshold, 3))
        assert disbelieved(arm, folder, demonstration, onlooker, 5) == found, "between rollouts 3 and 5"


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
