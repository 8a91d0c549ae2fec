"""What the robot's process decides and says; how it drives is tested in whole sessions, `test_session.py`."""

from pathlib import Path

import numpy as np
import pytest

from robot_io.actor import SAYABLE
from robot_io.link import Message
from robot_io.messages import fingerprint, retold
from robot_io.operator import KEYS, OperatorState, Phase
from robot_io.plan import RobotSide, next_purpose, scene_seed
from robot_io.sim import SimRobotConfig

from .test_learner import attempt


def side(**changes) -> RobotSide:
    settings = {"rollouts": 4, "evaluate_every": 2, "evaluations": 2}
    return RobotSide(
        out=Path("out"), robot=SimRobotConfig(), limits=Path("limits"), instruction="x", **{**settings, **changes}
    )


def lines(text: str) -> list[dict]:
    names = {"r": "rollout", "e": "evaluation", "d": "demonstration"}
    return [{"behaviour": names[letter]} for letter in text]


@pytest.mark.parametrize(
    ("done", "then"),
    [
        ("", "rollout"), ("rr", "evaluation"), ("rre", "evaluation"), ("rree", "rollout"), ("rreerr", "evaluation"),
        ("rreerree", None), ("rrrr", "evaluation"),
    ],
)  # fmt: skip
def test_what_comes_next_follows_from_what_is_recorded(done, then):
    assert next_purpose(lines(done), side()) == then


def test_without_an_end_and_without_evaluations_it_goes_on():
    assert next_purpose(lines("r" * 500), side(rollouts=None, evaluate_every=0)) == "rollout"


def test_so_many_demonstrations_as_were_asked_for():
    asked = side(demonstrate=True, rollouts=2)
    assert [next_purpose(lines("d" * k), asked) for k in range(3)] == ["demonstration", "demonstration", None]


def test_all_evaluations_meet_the_same_scenes_which_no_rollout_meets():
    tested = [scene_seed(side(), lines("rr" + "e" * k), "evaluation") for k in range(4)]
    assert tested[:2] == tested[2:]
    assert tested[0] != tested[1]
    tried = [scene_seed(side(), lines("r" * k + "e" * k), "rollout") for k in range(20)]
    assert len({*tried, *tested}) == 22
    assert scene_seed(side(seed=1), [], "rollout") not in tried


def test_what_is_told_again_is_what_was_told():
    one = attempt(3)
    said = [message if isinstance(message, Message) else message() for message in retold(one)]
    assert [message.kind for message in said] == ["begin", *["tick"] * 6, "end"]
    assert said[0].fields == {
        "episode": 3,
        "purpose": "rollout",
        "time": 0.0,
        "cloned": None,
        "recorded": True,
    }
    assert [message.fields["index"] for message in said[1:-1]] == list(range(6))
    np.testing.assert_array_equal(np.stack([m.arrays["action"] for m in said[1:-1]]), one.actions)
    np.testing.assert_array_equal(np.stack([m.arrays["state"] for m in said[:-1]]), one.state)
    assert said[-1].fields == {"episode": 3, "ticks": 6, "success": True, "terminated": True, "kept": True}


def test_a_fingerprint_is_of_what_matters(tmp_path):
    for name in ("config.json", "model.safetensors", "replay.npz"):
        (tmp_path / name).write_text(name)
    before = fingerprint(tmp_path)
    (tmp_path / "replay.npz").write_text("other")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("other")
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path / "config.json") != before


def test_every_key_of_the_page_means_something_to_the_operator():
    heard = {*KEYS, "space"}
    assert {{"escape": "esc"}.get(key, key) for key in SAYABLE} == heard
    enabled = {key for key, (_, allowed) in SAYABLE.items() if allowed(OperatorState(phase=Phase.WAITING))}
    assert enabled == {"enter", "q", "escape"}
