"""Tests of `policies.answers`, and of a run in which a person is asked."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from grm.data.lerobot import read_episodes
from policies import one_shot
from policies.answers import SCHEDULE, answered, due, keep_answer, read_answers
from policies.arms import arm_named
from policies.gold import PATIENCE, JudgedSuccess, StableSuccess
from policies.log import CLOCK, arm_folder, read_rollouts
from policies.one_shot import run_arm, world_of

from .conftest import SETTINGS
from .watched import sure, watched

ASKED = dataclasses.replace(arm_named("grm_only_asked"), answers=5, replays=1)


def what_happened(folder):
    path = arm_folder(folder, ASKED.name) / "rollouts.csv"
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in read_rollouts(path)]


def test_the_grm_learns_at_some_of_the_answers():
    assert [due(count) for count in (0, 1, 2, 3, 5, 19, 20, 40)] == [0, 0, 0, 0, 4, 10, 20, 20]
    assert arm_named("grm_only_asked").answers == SCHEDULE[-1], "the last answer is not given for nothing"


def test_an_answered_rollout_is_seen_again_as_it_was(begun, tmp_path):
    [demonstration] = read_episodes(begun / "demonstration", [0])
    env = world_of(demonstration, ASKED)
    drawn = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    first, _ = env.reset(seed=5)
    for action in drawn:
        last, *_ = env.step(action)
    for number, answer in ((3, 0), (12, 2)):
        keep_answer(tmp_path / "answers", number, seed=5, actions=drawn, answer=answer)
    assert answered(tmp_path / "nowhere", 20) == []
    assert [path.stem for path in answered(tmp_path / "answers", 11)] == ["0003"]
    no, yes = read_answers(answered(tmp_path / "answers", 12), env, demonstration)
    env.close()
    assert (no.success.any(), yes.success.tolist()) == (False, [False] * 5 + [True] * 2)
    assert (no.behaviour, len(no), no.seed) == ("learner", 7, 5)
    assert np.isnan(no.progress).all()
    for view in demonstration.views:
        np.testing.assert_array_equal(no.views[view][0], first[f"pixels.{view}"])
        np.testing.assert_array_equal(no.views[view][-1], last[f"pixels.{view}"])


def test_who_was_asked_learned_from_it_and_a_killed_run_goes_on_the_same(begun, tmp_path, monkeypatch):
    always = functools.partial(JudgedSuccess, stable=StableSuccess(0.0, 3))
    monkeypatch.setattr(one_shot, "JudgedSuccess", always)
    adapted = []
    adapt = one_shot.adapt

    def counted(*given, rollouts, **named):
        adapted.append([rollout.behaviour for rollout in rollouts])
        return adapt(*given, rollouts=rollouts, **named)

    monkeypatch.setattr(one_shot, "adapt", counted)
    settings = dataclasses.replace(SETTINGS, model=str(begun / "grm"), adaptation_steps=1, rollouts=6)
    whole, cut = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "cut"))
    assert run_arm(settings, ASKED, whole)
    assert adapted == [["replay"], ["replay", *["learner"] * 4]], "before the first rollout, and at four answers"
    rows = what_happened(whole)
    assert [row["answer"] for row in rows] == [*["0"] * 5, ""], "the sixth time nobody was asked"
    assert [row["success"] for row in rows] == [*["False"] * 5, "True"], "and the head was believed"
    assert {row["true_success"] for row in rows} == {"False"}
    assert [row["length"] for row in rows] == ["3"] * 6, "a refuted claim ends the rollout"
    own = arm_folder(whole, ASKED.name)
    card = json.loads((own / "grm-answers4" / "config.json").read_text())["card"]
    assert card["answers"] == [False] * 4
    assert len(card["replays"]) == 1

    for number in range(1, 6):
        assert not run_arm(settings, ASKED, cut, on_rollout=lambda rollout: False), number
        shutil.rmtree(arm_folder(cut, ASKED.name) / "grm-answers4", ignore_errors=True)  # killed while it adapted
    assert run_arm(settings, ASKED, cut)
    assert what_happened(cut) == rows


@pytest.mark.parametrize(("successes", "paid"), [((2,), 1.0), ((), 0.0)])
def test_an_answer_is_paid_instead_of_the_claim(successes, paid):
    env = JudgedSuccess(watched(*sure(0, 1, 1, 1, 1), successes=successes), StableSuccess(0.5, 2), answers=1)
    for answer in ({"answer": int(paid)}, {}):
        env.reset(seed=0)
        env.step(np.zeros(1, np.float32))
        _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert {key: info[key] for key in ("answer",) if key in info} == answer
        expected = paid if answer else 1.0
        assert (reward, terminated, truncated, info["success"]) == (expected, bool(expected), not expected, expected)


def test_who_stands_by_says_that_it_is_done_where_the_head_does_not_see_it():
    env = JudgedSuccess(
        watched(*sure(*[0] * 12), successes=tuple(range(2, 12)), horizon=11), StableSuccess(0.5, 2), answers=1
    )
    ends = []
    for _ in range(2):
        env.reset(seed=0)
        for step in range(1, 12):
            _, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
            if terminated or truncated:
                ends.append((step, reward, terminated, info.get("answer")))
                break
    assert ends == [(1 + PATIENCE, 1.0, True, PATIENCE), (11, 0.0, False, None)], "once, and then the head is alone"
