import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from envs.metaworld import MetaWorldEnv
from grm.data.lerobot import read_episodes
from grm.errors import CheckpointError, GrmError, OutputError
from grm.models.multiview import GRM
from policies import one_shot
from policies.collecting import Rollout
from policies.one_shot import (
    ARMS,
    ActionLog,
    add_seconds,
    expert_clip,
    horizon_of,
    make_env,
    make_learner_env,
    play_back,
    potential_of,
    read_curve,
    read_evaluation,
    read_rollouts,
    record_demonstration,
    run_arm,
    run_arms,
    transitions,
    write_config,
    write_metrics,
)

from .conftest import SETTINGS


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


@pytest.fixture(scope="module")
def model(begun):
    return GRM.from_pretrained(begun / "grm")


def what_happened(path):
    """Everything of a rollouts.csv but the clock."""
    return [{key: value for key, value in row.items() if key != "elapsed_s"} for row in read_rollouts(path)]


@pytest.fixture(scope="module")
def uninterrupted(begun, tmp_path_factory):
    folder = shutil.copytree(begun, tmp_path_factory.mktemp("runs") / "uninterrupted")
    assert run_arm(SETTINGS, "shaped", folder)
    return folder


def test_the_demonstration_is_recorded_once(begun, demonstration):
    before = {path: path.stat().st_mtime_ns for path in (begun / "demonstration").rglob("*")}
    again = record_demonstration(SETTINGS, begun / "demonstration")
    assert {path: path.stat().st_mtime_ns for path in (begun / "demonstration").rglob("*")} == before
    np.testing.assert_array_equal(again.actions, demonstration.actions)
    assert demonstration.succeeded
    assert demonstration.behaviour == "expert"
    assert demonstration.seed is not None
    assert demonstration.seed >= 10_000


def test_horizon_is_twice_the_demonstration_and_at_least_fifty(demonstration):
    def of_length(length):
        rows = {name: getattr(demonstration, name)[:1].repeat(length, 0) for name in ("state", "actions", "rewards")}
        rows |= {name: getattr(demonstration, name)[:1].repeat(length) for name in ("success", "progress")}
        return dataclasses.replace(demonstration, views={}, **rows)

    assert [horizon_of(of_length(length)) for length in (2, 25, 26, 100)] == [50, 50, 52, 200]


def test_sparse_transitions_are_paid_by_the_task_alone(demonstration):
    shown = transitions(demonstration, SETTINGS, None)
    assert len(shown) == len(demonstration) - 1
    np.testing.assert_array_equal(shown.rewards, demonstration.rewards[:-1])
    assert shown.rewards.sum() == 1.0
    assert shown.terminated.tolist() == [False] * (len(shown) - 1) + [True]
    np.testing.assert_array_equal(shown.observations[1:], shown.next_observations[:-1])


@pytest.mark.parametrize(("weight", "pessimism"), [(1.0, 1.0), (2.5, 0.0)])
def test_shaped_transitions_telescope(demonstration, model, weight, pessimism):
    settings = dataclasses.replace(SETTINGS, shaping_weight=weight, pessimism=pessimism, gamma=0.9)
    shaped, sparse = transitions(demonstration, settings, model), transitions(demonstration, settings, None)
    judgement = model.judge(demonstration.as_goal(), demonstration.frames)
    phi = np.maximum(0, judgement.potential - pessimism * judgement.spread)
    assert np.ptp(phi) > 0, "else there is nothing to add up"
    discount = 0.9 ** np.arange(len(shaped))
    difference = (discount * (shaped.rewards - sparse.rewards)).sum()
    assert difference == pytest.approx(0.9 ** len(shaped) * 0.0 - weight * phi[0], abs=1e-5)
    # And not only in the sum: a step in the middle, then the last, whose next potential is zero.
    assert shaped.rewards[3] - sparse.rewards[3] == pytest.approx(weight * (0.9 * phi[4] - phi[3]), abs=1e-5)
    assert shaped.rewards[-1] == pytest.approx(1.0 - weight * phi[-2], abs=1e-5)


def test_an_abstention_shapes_nothing_of_the_demonstration(demonstration, model, monkeypatch):
    potential = potential_of(model, demonstration, SETTINGS.pessimism)
    honest = transitions(demonstration, SETTINGS, model)

    def silent_at_five(indices, observations, *, count=[0]):  # noqa: B006 (a counter)
        count[0] += 1
        judgement = type(potential).advance(potential, indices, observations)
        nan = np.full(1, np.nan)
        return judgement if count[0] != 5 else type(judgement)(potential=nan, spread=nan, judged=np.zeros(1, bool))

    potential.advance = silent_at_five
    monkeypatch.setattr(one_shot, "potential_of", lambda *arguments: potential)
    shown = transitions(demonstration, SETTINGS, model)
    np.testing.assert_array_equal(shown.rewards[4:6], demonstration.rewards[4:6])
    np.testing.assert_array_equal(np.delete(shown.rewards, [4, 5]), np.delete(honest.rewards, [4, 5]))


def test_action_log_remembers_the_last_finished_episode():
    log = ActionLog(make_env("reach", 3))
    log.reset(seed=7)
    action = np.zeros(4, np.float32)
    for step in range(3):
        assert log.finished is None
        action[:] = 0.1 * step  # reused by the caller, so it must have been copied
        log.step(action)
    seed, actions = log.finished
    assert seed == 7
    np.testing.assert_allclose(actions, 0.1 * np.arange(3)[:, None] * np.ones(4))
    log.reset(seed=8)
    log.step(action)
    assert log.finished[0] == 7, "an unfinished episode changes nothing"
    log.close()


def test_learner_environments_differ_in_the_reward_only(demonstration, model):
    observations, rewards = [], []
    for judge in (None, model):
        venv, log = make_learner_env(SETTINGS, demonstration, judge)
        venv.seed(3)
        first = venv.reset()
        second, reward, _, [info] = venv.step(np.full((1, 4), 0.5, np.float32))
        observations.append(np.concatenate([first, second]))
        rewards.append((float(reward[0]), info.get("task_reward", float(reward[0]))))
        assert log.unwrapped.horizon == horizon_of(demonstration)
        venv.close()
    np.testing.assert_array_equal(observations[0], observations[1])
    assert rewards[0] == (0.0, 0.0)
    assert rewards[1][1] == 0.0
    assert rewards[1][0] != 0.0


def test_an_arm_writes_everything(uninterrupted):
    own = uninterrupted / "shaped"
    rows = what_happened(own / "rollouts.csv")
    assert [row["number"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == [name for name in Rollout.__dataclass_fields__ if name != "elapsed_s"]
    assert all(0 < float(row["mean_phi"]) <= 1 for row in rows)
    for name in ("before", "evaluation"):
        content = json.loads((own / f"{name}.json").read_text())
        assert len(content["success"]) == len(content["length"]) == 2
        assert read_evaluation(uninterrupted, "shaped", name) == np.mean(content["success"])
    assert (own / "policy" / "config.json").exists()
    assert list(own.glob("*partial*")) == []
    curve = read_curve(uninterrupted, "shaped")
    assert curve.rollout.tolist() == [1, 2, 3]
    assert curve.success.tolist() == [float(row["success"] == "True") for row in rows]


def test_a_finished_arm_is_not_run_again(uninterrupted):
    before = (uninterrupted / "shaped" / "rollouts.csv").read_bytes()
    assert run_arm(SETTINGS, "shaped", uninterrupted, on_rollout=lambda rollout: pytest.fail("it ran"))
    assert (uninterrupted / "shaped" / "rollouts.csv").read_bytes() == before


def test_an_arm_that_stopped_goes_on_as_if_it_had_not(begun_copy, uninterrupted):
    assert not run_arm(SETTINGS, "shaped", begun_copy, on_rollout=lambda rollout: False)
    assert len(what_happened(begun_copy / "shaped" / "rollouts.csv")) == 1
    assert read_evaluation(begun_copy, "shaped", "evaluation") is None

    class Killed(BaseException):
        pass

    def die(rollout):  # after rollout 3 was written, before a checkpoint tells of it
        if rollout.number == 3:
            raise Killed

    with pytest.raises(Killed):
        run_arm(SETTINGS, "shaped", begun_copy, on_rollout=die)
    assert len(what_happened(begun_copy / "shaped" / "rollouts.csv")) == 3
    seen = []
    assert run_arm(SETTINGS, "shaped", begun_copy, on_rollout=lambda rollout: seen.append(rollout.number))
    assert seen == [3], "the rollout that no checkpoint knew of is run again, the others are not"
    expected = what_happened(uninterrupted / "shaped" / "rollouts.csv")
    assert what_happened(begun_copy / "shaped" / "rollouts.csv") == expected
    for name in ("before.json", "evaluation.json"):
        assert (begun_copy / "shaped" / name).read_text() == (uninterrupted / "shaped" / name).read_text()


def test_recordings_play_back_exactly(uninterrupted, demonstration, model, monkeypatch):
    monkeypatch.setattr(MetaWorldEnv, "true_progress", lambda env: float(env.succeeded))  # the prover is slow
    own = uninterrupted / "shaped"
    rows = {int(row["number"]): row for row in read_rollouts(own / "rollouts.csv")}
    recordings = sorted(own.glob("last_*.npz"))
    assert recordings
    for recording in recordings:
        clip = play_back(model, demonstration, SETTINGS.task, recording, "A rollout", size=16)
        with np.load(recording) as data:
            number, length = int(data["number"]), len(data["actions"])
        assert clip.title == f"A rollout (number {number})"
        assert clip.outcome == (recording.stem == "last_success")
        assert str(clip.outcome) == rows[number]["success"]
        assert len(clip.potential) == length + 1 == int(rows[number]["length"]) + 1
        assert (clip.truth[-1] == 1.0) == clip.outcome
        assert {images.shape for images in clip.views.values()} == {(length + 1, 16, 16, 3)}
        # What the GRM said while learning is what it says now: the same frames, to the bit.
        phi = np.maximum(0, clip.potential - SETTINGS.pessimism * clip.spread)
        assert phi[1:].mean() == pytest.approx(float(rows[number]["mean_phi"]), abs=1e-5)


def test_the_expert_on_another_instance(demonstration, model):
    clip = expert_clip(model, demonstration, SETTINGS.task, seed=30_000, size=16)
    assert clip.outcome
    assert clip.truth[0] == 0.0
    assert clip.truth[-1] == 1.0
    assert clip.rate_hz == 40.0
    assert clip.judged.all()


def test_write_config_refuses_other_settings(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        write_config(tmp_path, SETTINGS, {}, resume=True)
    write_config(tmp_path, SETTINGS, {"command": "x"}, resume=False)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content == {"settings": dataclasses.asdict(SETTINGS), "command": "x"}
    write_config(tmp_path, SETTINGS, {"command": "y"}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == content, "resuming writes nothing"
    with pytest.raises(CheckpointError, match="other seed, gamma;"):
        write_config(tmp_path, dataclasses.replace(SETTINGS, seed=1, gamma=0.5), {}, resume=True)
    for damaged in ("", "[]", "{}"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            write_config(tmp_path, SETTINGS, {}, resume=True)


def test_write_config_says_what_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        write_config(tmp_path / "file", SETTINGS, {}, resume=False)


def test_minutes_add_up_over_sessions(tmp_path):
    assert add_seconds(tmp_path, 90.0) == 90.0
    assert add_seconds(tmp_path, 30.0) == pytest.approx(120.0)
    assert json.loads((tmp_path / "minutes.json").read_text())["minutes"] == pytest.approx(2.0)


def test_metrics_hold_both_arms(tmp_path):
    header = ",".join(Rollout.__dataclass_fields__)
    write_metrics(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == f"arm,{header}\n", "no arm has begun"
    (tmp_path / "shaped").mkdir()
    (tmp_path / "shaped" / "rollouts.csv").write_text(f"{header}\n1,True,9,1.0,1.0,0.5,2.0\n2,False,9,0.0,0.0,,3.0\n")
    write_metrics(tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["number"], row["success"], row["mean_phi"]) for row in rows] == [
        ("shaped", "1", "True", "0.5"),
        ("shaped", "2", "False", ""),
    ]
    assert read_curve(tmp_path, "sparse") is None
    assert read_curve(tmp_path, "shaped").success.tolist() == [1.0, 0.0]


@pytest.mark.slow
def test_both_arms_at_once_and_an_arm_that_fails(begun_copy, uninterrupted):
    seen = []
    run_arms(SETTINGS, begun_copy, on_rollout=lambda arm, rollout: seen.append((arm, rollout.number)))
    assert sorted(seen) == sorted((arm, number) for arm in ARMS for number in (1, 2, 3))
    rows = [what_happened(folder / "shaped" / "rollouts.csv") for folder in (begun_copy, uninterrupted)]
    assert rows[0] == rows[1], "a process of its own changes nothing"
    (begun_copy / "shaped" / "evaluation.json").unlink()
    (begun_copy / "grm" / "model.safetensors").unlink()
    with pytest.raises(GrmError, match=r"the shaped arm did not finish: .* holds no model\.safetensors"):
        run_arms(SETTINGS, begun_copy, on_rollout=lambda arm, rollout: None)
