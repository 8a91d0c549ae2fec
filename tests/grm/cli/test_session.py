from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grm.cli.mind import ActingOnFeatures, GrmMind, MakeMind
from grm.cli.session import Session, _summary
from grm.data.episodes import Episode
from grm.data.lerobot import EpisodeWriter
from grm.errors import CheckpointError, OutputError, TraceError
from grm.reward import Task
from robot_io.plan import RobotSide
from robot_io.replay import Attempt

from ...tiny import tiny_grm

ROBOT = ("type=grm_sim", "id=sim")


def attempt(number: int = 0, steps: int = 8, *, success: bool = True) -> Attempt:
    generator = np.random.default_rng(number)
    return Attempt(
        number=number,
        views={"top": generator.integers(0, 255, (steps + 1, 32, 32, 3), dtype=np.uint8)},
        state=generator.normal(size=(steps + 1, 3)).astype(np.float32),
        time=np.arange(steps + 1) / 20,
        actions=generator.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=np.eye(steps, dtype=np.float32)[-1] * success,
        interventions=np.arange(steps) < 2,
        terminated=success,
        success=success,
    )


@pytest.fixture
def made(tmp_path) -> MakeMind:
    model = tiny_grm()
    model.save_pretrained(tmp_path / "grm", {})
    return MakeMind(
        out=tmp_path, demo=tmp_path, episode=0, instruction="move", model="", grm=tmp_path / "grm", steps=1, gamma=0.9,
        guidance=1.0, updates_per_step=1, seed=0, threads=1,
    )  # fmt: skip


def mind_of(made: MakeMind, checkpoint: Path | None = None) -> GrmMind:
    model, shown = tiny_grm(), attempt(99)
    task = Task(instruction="move", goal=shown.frames[-1])
    assert made.grm is not None
    return GrmMind(made, model, task, made.grm, shown, checkpoint)


def learn(mind: GrmMind, one: Attempt) -> int:
    """As the learner's process does; how often it could judge meanwhile."""
    carry, seen, pauses = mind.model.start(mind.task), [], 0
    for state, frame in zip(one.state, one.frames, strict=True):
        [carry], _ = mind.model.extend([carry], [[frame]])
        seen.append(mind.observe(state, carry))

    def between() -> None:
        nonlocal pauses
        pauses += 1

    mind.learn(one, np.stack(seen), mind.model.judge(mind.task, one.frames), between)
    return pauses


def test_a_mind_learns_in_slices_and_goes_on_from_its_checkpoint(made, tmp_path):
    mind = mind_of(made)
    pauses = learn(mind, attempt(0))
    assert pauses >= 8 + 4 + 200, "critics, actor, and the cloned policy after a success"
    assert mind.updates() == 8
    mind.save(tmp_path / "checkpoint")
    learn(mind, attempt(1, success=False))
    again = mind_of(made, tmp_path / "checkpoint")
    assert again.updates() == 8
    learn(again, attempt(1, success=False))
    assert mind.policy() == again.policy(), "bit for bit"


def demonstrated(folder: Path) -> None:
    """A demonstration, as a session records it."""
    shown = attempt(99, steps=12)
    episode = Episode(
        task="move-v0", instruction="move", views=shown.views, rate_hz=20.0, state=shown.state,
        actions=np.zeros((13, 2), np.float32), rewards=np.zeros(13, np.float32), success=np.arange(13) == 12,
        progress=np.full(13, np.nan, np.float32),
    )  # fmt: skip
    EpisodeWriter(folder).append(episode)


def test_a_grm_refitted_on_the_session_says_something_else_and_shows_policies_the_same(made, tmp_path, monkeypatch):
    demonstrated(tmp_path / "demo")
    monkeypatch.setattr("grm.cli.mind.REFIT_STEPS", 3)
    monkeypatch.setattr("robot_io.replay.read_attempt", lambda *_: attempt(99))
    made = replace(made, demo=tmp_path / "demo", model=str(made.grm), refit_every=2)
    mind = mind_of(made)
    old, [first, second] = mind.model, [attempt(0), attempt(1, success=False)]
    learn(mind, first)
    assert mind.model is old
    pauses = learn(mind, second)
    assert mind.model is not old
    assert pauses >= 8 + 4 + 3 + 2, "also between the steps of refitting, and between rollouts judged anew"
    for one in (first, second):
        said = mind.model.judge(mind.task, one.frames).potential
        assert (said != old.judge(mind.task, one.frames).potential).any()
        rows = mind._learner.replay_buffer.episode[:16] == one.number + 1
        np.testing.assert_allclose(mind._learner.replay_buffer.phi[:16][rows], said[:-1], atol=1e-6)
    seen = [
        model.features(model.extend([model.start(mind.task)], [second.frames])[0][0]) for model in (old, mind.model)
    ]
    np.testing.assert_array_equal(*seen)
    for checkpoint in (tmp_path / "one", tmp_path / "two"):
        mind.save(checkpoint)
        again = made(checkpoint, lambda doing: None)
        np.testing.assert_allclose(
            again.model.judge(mind.task, second.frames).potential,
            mind.model.judge(mind.task, second.frames).potential,
            atol=1e-6,
        )
        mind = again


def test_what_acts_sees_what_the_learner_sees(made):
    mind = mind_of(made)
    acting = ActingOnFeatures(tiny_grm(), "move")
    acting.load(mind.policy())
    acting.begin()
    one = attempt(3)
    carry = mind.model.start(mind.task)
    for t, frame in enumerate(one.frames):
        [carry], _ = mind.model.extend([carry], [[frame]])
        expected = mind._learner.policy.cloned.predict(mind.observe(one.state[t], carry)[None])[0][0]
        observation = {"state": one.state[t], "pixels.top": frame.views["top"]}
        np.testing.assert_allclose(acting.act(observation, explore=False), expected, atol=1e-5)


def test_a_new_policy_in_a_rollout_keeps_its_noise(made):
    mind = mind_of(made)
    acting = ActingOnFeatures(tiny_grm(), "move")
    acting.load(mind.policy())
    acting.begin()
    observation = {"state": np.zeros(3, np.float32), "pixels.top": np.full((32, 32, 3), 90, np.uint8)}
    acting.act(observation, explore=True)
    noise, level = acting._policy._noise, acting._policy._level
    acting.load(mind.policy())
    assert acting._policy._noise is noise
    assert acting._policy._level is level
    acting.begin()
    assert acting._policy._noise is None


def test_who_acts_does_not_change_within_a_rollout(made):
    """A policy that comes meanwhile brings its weights; that the cloned one is to act alone holds from the next on."""
    mind = mind_of(made)
    acting = ActingOnFeatures(tiny_grm(), "move")
    acting.load(mind.policy())
    assert acting.begin() is True
    mind._learner.cloned_rollouts = 0
    acting.load(mind.policy())
    assert acting._policy.cloned_only
    assert acting.begin() is False
    assert not acting._policy.cloned_only


@pytest.fixture
def command(tmp_path) -> Session:
    return Session(
        out=tmp_path / "out",
        robot=ROBOT,
        teleop=("type=grm_sim_expert", "robot_id=sim"),
        instruction="unlock the door",
        demonstrate=1,
        success="environment",
    )


def test_what_a_demonstration_is_told(command):
    robot, learner = command.sides()
    assert learner is None
    assert isinstance(robot, RobotSide)
    assert (robot.demonstrate, robot.rollouts, robot.learner, robot.horizon) == (True, 1, None, 400)
    assert robot.limits.name == "sim_limits.toml"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"robot": ()}, OutputError, "no robot was named"),
        ({"instruction": ""}, OutputError, "no instruction"),
        ({"teleop": ()}, OutputError, "without --teleop"),
        ({"demonstrate": 0}, OutputError, "no demonstration"),
        ({"learner": "10.0.0.1:8780", "demonstrate": 0}, OutputError, "there is no token"),
        ({"listen": "0.0.0.0:8780"}, OutputError, "there is no token"),
        ({"listen": "8780", "token_file": Path("token")}, OutputError, "expected host:port"),
        ({"robot": ("type=so101_follower", "port=/dev/null")}, OutputError, "no limits for so10"),
        ({"demonstrate": 0, "demo": Path("nowhere")}, TraceError, "nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_error(command, change, error, said):
    refused = replace(command, **change)
    with pytest.raises(error, match=said):
        refused.run()
    assert not list(refused.out.glob("*")), "the next command may have the same folder"


def test_a_session_goes_on_with_the_settings_it_was_begun_with(command):
    command.out.mkdir()
    command._write_config()
    command._write_config()
    with pytest.raises(CheckpointError, match=r"was begun with control delta, gamma 0\.98; expected the same"):
        replace(command, control="absolute", gamma=0.9)._write_config()


def test_the_line_in_the_terminal():
    state = {
        "phase": "running",
        "waits_for": None,
        "rollouts": {"done": 2, "success": [True, False, True], "evaluation": [False, False, True]},
        "episode": {"phi": [0.1, 0.25, None]},
    }
    assert _summary(state) == "running: 2 rollouts, 1 of the last 2 succeeded, Φ 0.25"
    demonstrated = {"done": 0, "success": [True, True], "evaluation": [False, False]}
    assert _summary({"phase": "ended", "waits_for": None, "rollouts": demonstrated}) == (
        "ended: 2 demonstrations, 2 of the last 2 succeeded"
    )
    demonstrated["done"] = 1
    assert "ended: 1 demonstration, 1 rollouts, " in _summary({"phase": "ended", "rollouts": demonstrated})
    assert _summary({"phase": "starting", "waits_for": "x"}) == "starting: 0 rollouts; waiting for x"
