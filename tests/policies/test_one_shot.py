import dataclasses
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest

from grm.data.lerobot import EpisodeWriter, read_episodes
from grm.errors import CheckpointError, OutputError, TraceError
from grm.fusion import LeastFusion, OnePerspective
from grm.models.multiview import GRM
from policies import one_shot
from policies.arms import ARMS, CLASSIFIER, CLONED, DENSE, GRM_ONLY, GRM_SHAPED, SPARSE, arm_named
from policies.log import CLOCK, COLUMNS, arm_folder, read_curve, read_rollouts
from policies.one_shot import (
    ActionLog,
    horizon_of,
    make_env,
    make_learner,
    make_learner_env,
    missing,
    onlooker_of,
    prepare,
    read_evaluation,
    record_demonstration,
    run_arm,
    seen_by,
    transitions,
    write_config,
)
from policies.onlookers import ModelOnlooker, Opinion, look_at
from policies.stopwatch import Stopwatch

from .conftest import SETTINGS
from .watched import Script


@pytest.fixture(scope="module")
def demonstration(begun):
    [episode] = read_episodes(begun / "demonstration", [0])
    return episode


@pytest.fixture(scope="module")
def model(begun):
    return GRM.from_pretrained(begun / "grm")


def what_happened(path):
    """Everything of a rollouts.csv but the clock."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in read_rollouts(path)]


@pytest.fixture(scope="module")
def uninterrupted(begun, tmp_path_factory):
    folder = shutil.copytree(begun, tmp_path_factory.mktemp("runs") / "uninterrupted")
    assert run_arm(SETTINGS, GRM_SHAPED, folder)
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
    assert (log.true_success, log.abstained) == (False, 0)
    log.reset(seed=8)
    log.step(action)
    assert log.finished[0] == 7, "an unfinished episode changes nothing"
    log.close()


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


# --- what a learner is paid -------------------------------------------------------------------------------------------


def test_sparse_transitions_are_paid_by_the_task_alone(demonstration):
    shown = transitions(SPARSE, SETTINGS, demonstration, None)
    assert len(shown) == len(demonstration) - 1
    np.testing.assert_array_equal(shown.rewards, demonstration.rewards[:-1])
    assert shown.rewards.sum() == 1.0
    assert shown.terminated.tolist() == [False] * (len(shown) - 1) + [True]
    np.testing.assert_array_equal(shown.observations[1:], shown.next_observations[:-1])


@pytest.mark.parametrize(("weight", "pessimism"), [(1.0, 1.0), (2.5, 0.0)])
def test_shaped_transitions_telescope(begun, demonstration, model, weight, pessimism):
    settings = dataclasses.replace(SETTINGS, shaping_weight=weight, pessimism=pessimism, gamma=0.9)
    onlooker = onlooker_of(GRM_SHAPED, settings, demonstration, begun)
    shaped = transitions(GRM_SHAPED, settings, demonstration, onlooker)
    sparse = transitions(SPARSE, settings, demonstration, None)
    judgement = model.judge(demonstration.as_goal(), demonstration.frames)
    phi = np.maximum(0, judgement.potential - pessimism * judgement.spread)
    assert np.ptp(phi) > 0, "else there is nothing to add up"
    discount = 0.9 ** np.arange(len(shaped))
    difference = (discount * (shaped.rewards - sparse.rewards)).sum()
    assert difference == pytest.approx(0.9 ** len(shaped) * 0.0 - weight * phi[0], abs=1e-5)
    # And not only in the sum: a step in the middle, then the last, whose next potential is zero.
    assert shaped.rewards[3] - sparse.rewards[3] == pytest.approx(weight * (0.9 * phi[4] - phi[3]), abs=1e-5)
    assert shaped.rewards[-1] == pytest.approx(1.0 - weight * phi[-2], abs=1e-5)


def test_a_guided_learner_is_told_and_not_paid(begun, demonstration):
    settings = dataclasses.replace(SETTINGS, guidance=1.0, gamma=0.98)
    guide_arm = arm_named("grm_guided")
    opinions = [Opinion(phi=float(value)) for value in np.linspace(0, 1, len(demonstration))]
    for arm, guided in ((SPARSE, False), (guide_arm, True), (arm_named("self_guided"), True)):
        onlooker = Script(*opinions) if arm == guide_arm else None
        venv, _ = make_learner_env(arm, settings, demonstration, onlooker, Stopwatch())
        learner = make_learner(arm, settings, demonstration, onlooker, venv)
        assert (learner.guide is not None) == guided, arm.name
        venv.seed(3)
        venv.reset()
        _, [reward], _, [info] = venv.step(np.zeros((1, 4), np.float32))
        assert reward == 0.0
        assert info.get("phi") == (opinions[1].phi if arm == guide_arm else None)
        venv.close()


@pytest.mark.parametrize(("name", "elite"), [("grm", 5), ("grm_paid", 0)])
def test_an_arm_that_guides_nobody_is_paid_among_guided_ones(demonstration, name, elite):
    settings = dataclasses.replace(SETTINGS, guidance=1.0, gamma=0.98)
    arm = arm_named(name)
    opinions = [Opinion(phi=float(value)) for value in np.linspace(0, 1, len(demonstration))]
    venv, _ = make_learner_env(arm, settings, demonstration, Script(*opinions), Stopwatch())
    learner = make_learner(arm, settings, demonstration, Script(*opinions), venv)
    assert learner.guide is None
    assert learner.elite == elite
    assert learner.demonstration.rewards[3] == pytest.approx(0.1 * (0.98 * opinions[4].phi - opinions[3].phi), abs=1e-6)
    venv.seed(3)
    venv.reset()
    _, [reward], _, _ = venv.step(np.zeros((1, 4), np.float32))
    assert reward == pytest.approx(0.1 * 0.98 * opinions[1].phi, abs=1e-6)
    venv.close()


def test_an_abstention_shapes_nothing_of_the_demonstration(demonstration):
    phi = np.linspace(0.1, 0.9, len(demonstration))
    opinions = [Opinion(phi=float(value)) for value in phi]
    honest = transitions(GRM_SHAPED, SETTINGS, demonstration, Script(*opinions))
    opinions[5] = Opinion()
    shown = transitions(GRM_SHAPED, SETTINGS, demonstration, Script(*opinions))
    np.testing.assert_array_equal(shown.rewards[4:6], demonstration.rewards[4:6])
    np.testing.assert_array_equal(np.delete(shown.rewards, [4, 5]), np.delete(honest.rewards, [4, 5]))


def test_the_demonstration_ends_in_a_paid_success_in_every_arm(begun, demonstration):
    for arm in (SPARSE, DENSE, GRM_ONLY):
        shown = transitions(arm, SETTINGS, demonstration, onlooker_of(arm, SETTINGS, demonstration, begun))
        assert shown.terminated[-1]
        assert shown.rewards[-1] > 0.5, arm.name


def few_steps(arm, folder, demonstration):
    """Four observations, three rewards, the last info; the first state's Φ is 0 by definition, so one step is few."""
    venv, log = make_learner_env(
        arm, SETTINGS, demonstration, onlooker_of(arm, SETTINGS, demonstration, folder), Stopwatch()
    )
    venv.seed(3)
    observations, rewards, info = [venv.reset()], [], {}
    for _ in range(3):
        observation, [reward], _, [info] = venv.step(np.full((1, 4), 0.5, np.float32))
        observations.append(observation)
        rewards.append(float(reward))
    assert log.unwrapped.horizon == horizon_of(demonstration)
    venv.close()
    return np.concatenate(observations), rewards, info


def test_learner_environments_differ_in_the_reward_only(begun, demonstration):
    names = ("sparse", "dense", "grm", "grm_only", "classifier", "grm_difference", "grm_added")
    seen = {name: few_steps(arm_named(name), begun, demonstration) for name in names}
    for name, (observations, _, info) in seen.items():
        np.testing.assert_array_equal(observations, seen["sparse"][0], err_msg=name)
        assert info.get("task_reward", 0.0) == 0.0
    rewards = {name: tuple(reward) for name, (_, reward, _) in seen.items()}
    assert rewards["sparse"] == (0.0, 0.0, 0.0)
    assert rewards["grm"] == rewards["grm_only"]
    assert len({rewards[name] for name in ("sparse", "dense", "grm", "grm_difference", "grm_added")}) == 5
    assert "phi" not in seen["classifier"][2], "a classifier knows nothing of progress"


def test_perspectives_and_views_are_what_the_arm_says(begun_copy, demonstration):
    shutil.copytree(begun_copy / "grm", begun_copy / "grm-corner")

    def asked(name):
        onlooker = onlooker_of(arm_named(name), SETTINGS, demonstration, begun_copy)
        assert isinstance(onlooker, ModelOnlooker)
        return onlooker

    for perspective in ("incremental", "forward", "backward"):
        assert asked(f"grm_{perspective}").model.fuser == OnePerspective(perspective)
    assert asked("grm").model.fuser == LeastFusion()
    assert asked("grm").views == ()
    assert asked("grm_single_view").views == ("corner",)
    assert list(seen_by(arm_named("grm_single_view"), demonstration).views) == ["corner"]
    blind = dataclasses.replace(demonstration, views={"top": demonstration.views["corner"]})
    with pytest.raises(TraceError, match="has no view 'corner', which the arm 'grm_single_view' looks through"):
        seen_by(arm_named("grm_single_view"), blind)


def test_a_policy_that_sees_what_a_robot_sees(begun, demonstration, model):
    arm = arm_named("grm_features")
    onlooker = onlooker_of(arm, SETTINGS, demonstration, begun)
    shown = transitions(arm, SETTINGS, demonstration, onlooker)
    observations, _, _ = few_steps(arm, begun, demonstration)
    size = 7 + model.network.frame_features
    assert shown.observations.shape == (len(demonstration) - 1, size)
    assert observations.shape == (4, size)
    opinions = look_at(ModelOnlooker(model, demonstration.as_goal()), demonstration)
    # Played back with actions in single precision, which moves a picture by a shade here and there.
    np.testing.assert_allclose(shown.observations[4, 7:], opinions[4].features, atol=0.02)
    onlooker = onlooker_of(GRM_SHAPED, SETTINGS, demonstration, begun)
    by_state = transitions(GRM_SHAPED, SETTINGS, demonstration, onlooker)
    np.testing.assert_allclose(shown.rewards, by_state.rewards, atol=2e-3)


# --- what an arm does -------------------------------------------------------------------------------------------------


def test_an_arm_writes_everything(uninterrupted):
    own = arm_folder(uninterrupted, "grm")
    rows = what_happened(own / "rollouts.csv")
    assert [row["number"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == [name for name in COLUMNS if name not in CLOCK]
    assert all(0 < float(row["mean_phi"]) <= 1 for row in rows)
    assert all(row["success"] == row["true_success"] and row["abstained"] == "0" for row in rows)
    spent = next(read_rollouts(own / "rollouts.csv"))
    assert all(float(spent[f"{part}_s"]) > 0 for part in ("simulate", "render", "judge", "learn"))
    content = json.loads((own / "evaluation.json").read_text())
    assert len(content["success"]) == len(content["length"]) == 2
    assert read_evaluation(uninterrupted, "grm") == np.mean(content["success"])
    assert (own / "policy" / "config.json").exists()
    assert list(own.glob("*partial*")) == []
    curve = read_curve(uninterrupted, "grm")
    assert curve.rollout.tolist() == [1, 2, 3]
    assert curve.success.tolist() == [float(row["success"] == "True") for row in rows]


def test_a_finished_arm_is_not_run_again(uninterrupted):
    before = (arm_folder(uninterrupted, "grm") / "rollouts.csv").read_bytes()
    assert run_arm(SETTINGS, GRM_SHAPED, uninterrupted, on_rollout=lambda rollout: pytest.fail("it ran"))
    assert (arm_folder(uninterrupted, "grm") / "rollouts.csv").read_bytes() == before


def test_the_cloned_policy_is_evaluated_and_nothing_else(begun_copy):
    assert run_arm(SETTINGS, CLONED, begun_copy, on_rollout=lambda rollout: pytest.fail("it learned"))
    assert [path.name for path in arm_folder(begun_copy, "cloned").iterdir()] == ["evaluation.json"]
    assert read_evaluation(begun_copy, "cloned") is not None


def test_an_arm_that_stopped_goes_on_as_if_it_had_not(begun_copy, uninterrupted):
    own, whole = arm_folder(begun_copy, "grm"), arm_folder(uninterrupted, "grm")
    assert not run_arm(SETTINGS, GRM_SHAPED, begun_copy, on_rollout=lambda rollout: False)
    assert len(what_happened(own / "rollouts.csv")) == 1
    assert read_evaluation(begun_copy, "grm") is None
    shutil.copytree(own / "policy", begun_copy / "saved")

    class Killed(BaseException):
        pass

    def die(rollout):
        raise Killed

    with pytest.raises(Killed):
        run_arm(SETTINGS, GRM_SHAPED, begun_copy, on_rollout=die)
    assert len(what_happened(own / "rollouts.csv")) == 2
    shutil.rmtree(own / "policy")
    (begun_copy / "saved").rename(own / "policy")  # killed after rollout 2 was written, before a checkpoint told of it
    seen = []
    assert run_arm(SETTINGS, GRM_SHAPED, begun_copy, on_rollout=lambda rollout: seen.append(rollout.number))
    assert seen == [2, 3], "the rollout that no checkpoint knew of is run again, the others are not"
    assert what_happened(own / "rollouts.csv") == what_happened(whole / "rollouts.csv")
    assert (own / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


def test_what_is_prepared_is_not_prepared_again(begun_copy, monkeypatch):
    assert missing(GRM_SHAPED, begun_copy) == set()
    assert missing(arm_named("grm_single_view"), begun_copy) == {"grm-corner"}
    assert missing(SPARSE, begun_copy / "nowhere") == {"demonstration"}
    monkeypatch.setattr(one_shot, "adapt", lambda *given, **named: pytest.fail("it adapted"))
    prepare(SETTINGS, GRM_SHAPED, begun_copy)


def test_a_grm_is_adapted_to_what_the_arm_may_see(begun_copy):
    settings = dataclasses.replace(SETTINGS, model=str(begun_copy / "grm"), adaptation_steps=1)
    prepare(settings, arm_named("grm_single_view"), begun_copy)
    card = json.loads((begun_copy / "grm-corner" / "config.json").read_text())["card"]
    assert (card["views"], card["replays"]) == (["corner"], [])
    GRM.from_pretrained(begun_copy / "grm-corner")


def test_a_grm_is_told_how_the_replays_of_its_arm_ended(begun_copy, monkeypatch):
    given, shown = [], []

    def adapt(model, demonstration, *args, rollouts, **named):
        given.extend(rollouts)
        shown.append(demonstration)
        return one_shot_adapt(model, demonstration, *args, rollouts=rollouts, **named)

    one_shot_adapt = one_shot.adapt
    monkeypatch.setattr(one_shot, "adapt", adapt)
    settings = dataclasses.replace(SETTINGS, model=str(begun_copy / "grm"), adaptation_steps=1)
    prepare(settings, arm_named("grm_only_asked"), begun_copy)
    card = json.loads((begun_copy / "grm-after40-replays5" / "config.json").read_text())["card"]
    [longer] = shown
    assert card["done"] == longer.success.sum() > 1
    assert card["replays"] == [replay.succeeded for replay in given]
    assert [replay.behaviour for replay in given] == ["replay"] * 5


def test_every_arm_of_the_benchmark_has_an_onlooker_or_needs_none(begun, demonstration, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    for name in {arm.grm for arm in ARMS} - {None, "grm"}:
        shutil.copytree(folder / "grm", folder / name)
    settings = dataclasses.replace(SETTINGS, model=str(folder / "grm"))
    for arm in ARMS:
        onlooker = onlooker_of(arm, settings, demonstration, folder)
        assert (onlooker is None) == (not arm.judged and arm.potential == "none"), arm.name


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "alone"), [("grm", "sparse"), ("grm_guided", "self_guided")])
def test_a_potential_that_abstains_everywhere_is_an_arm_without_one_and_says_so(begun_copy, monkeypatch, name, alone):
    settings = dataclasses.replace(SETTINGS, guidance=1.0)
    assert run_arm(settings, arm_named(alone), begun_copy)
    monkeypatch.setattr(one_shot, "onlooker_of", lambda *given: Script(Opinion()))
    assert run_arm(settings, arm_named(name), begun_copy)
    without, silent = (what_happened(arm_folder(begun_copy, arm) / "rollouts.csv") for arm in (alone, name))
    assert [row["abstained"] for row in silent] == [row["length"] for row in silent]
    for row in (*without, *silent):
        del row["abstained"]
    assert silent == without, "nothing was paid for what nobody knew"


def test_a_guided_arm_that_was_killed_goes_on_as_if_it_had_not(begun, tmp_path):
    settings = dataclasses.replace(SETTINGS, guidance=1.0)
    whole, killed = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "killed"))
    assert run_arm(settings, arm_named("grm_guided"), whole)

    def die(rollout):
        raise KeyboardInterrupt

    for _ in range(2):  # each session makes one rollout
        with pytest.raises(KeyboardInterrupt):
            run_arm(settings, arm_named("grm_guided"), killed, on_rollout=die)
    assert run_arm(settings, arm_named("grm_guided"), killed)
    rows = [what_happened(arm_folder(folder, "grm_guided") / "rollouts.csv") for folder in (whole, killed)]
    assert len(rows[0]) == 3
    assert rows[0] == rows[1]


@pytest.mark.parametrize("phi", [float("nan"), 1.2, -0.1])
def test_a_potential_that_is_none_stops_the_arm(begun_copy, monkeypatch, phi):
    monkeypatch.setattr(one_shot, "onlooker_of", lambda *given: Script(Opinion(phi=0.5), Opinion(phi=phi)))
    with pytest.raises(TraceError, match=r"the potential is .*on the demonstration; expected a number in \[0, 1\]"):
        run_arm(SETTINGS, GRM_SHAPED, begun_copy)
    assert read_evaluation(begun_copy, "grm") is None
    monkeypatch.setattr(one_shot, "transitions", lambda arm, *given: transitions(SPARSE, *given))
    with pytest.raises(TraceError, match=r"the potential is .*; expected a number in \[0, 1\]"):
        run_arm(SETTINGS, GRM_SHAPED, begun_copy)
    assert read_evaluation(begun_copy, "grm") is None


@pytest.mark.parametrize("arm", [SPARSE, DENSE, GRM_SHAPED, arm_named("grm_only")], ids=lambda arm: arm.name)
def test_episodes_that_are_over_at_once_teach_little_and_break_nothing(begun_copy, monkeypatch, arm):
    demonstration = prepare(SETTINGS, arm, begun_copy)

    class Over(gym.Wrapper):
        """Done at its first decision, whatever that is."""

        def step(self, action):
            observation, _, _, _, info = self.env.step(action)
            return observation, 1.0, True, False, {**info, "success": True}

    monkeypatch.setattr(one_shot, "ActionLog", lambda env: ActionLog(Over(env)))
    assert run_arm(SETTINGS, arm, begun_copy)
    rows = what_happened(arm_folder(begun_copy, arm.name) / "rollouts.csv")
    assert [(row["length"], row["success"]) for row in rows] == [("1", "True")] * SETTINGS.rollouts
    assert len(demonstration) > 2, "the demonstration was a real one"


def written(episode, folder):
    EpisodeWriter(folder).append(episode)
    return str(folder)


def test_a_demonstration_of_ones_own(begun, demonstration, tmp_path):
    settings = dataclasses.replace(SETTINGS, demo=str(begun / "demonstration"), episode=0)
    found = record_demonstration(settings, tmp_path / "demonstration")
    np.testing.assert_array_equal(found.actions, demonstration.actions)
    np.testing.assert_array_equal(found.views["corner"], demonstration.views["corner"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"success": "never"}, "episode 0 of .* does not end in success"),
        ({"task": "push-v3"}, "shows 'push-v3'; expected 'reach-v3'"),
        ({"rate_hz": 200.0}, "states of 30 numbers at 200 Hz"),
    ],
)
def test_a_demonstration_that_cannot_start_anything_is_refused(demonstration, tmp_path, change, complaint):
    if change.get("success") == "never":
        change = {"success": np.zeros(len(demonstration), bool)}
    source = written(dataclasses.replace(demonstration, **change), tmp_path / "source")
    settings = dataclasses.replace(SETTINGS, demo=source)
    with pytest.raises(TraceError, match=complaint):
        record_demonstration(settings, tmp_path / "demonstration")
    assert not (tmp_path / "demonstration").exists()


def test_a_data_set_that_is_none_is_refused(tmp_path):
    settings = dataclasses.replace(SETTINGS, demo=str(tmp_path))
    with pytest.raises(TraceError, match=r"holds no meta/info\.json"):
        record_demonstration(settings, tmp_path / "demonstration")


def test_a_classifier_learns_from_the_demonstration_alone(begun, demonstration):
    settings = dataclasses.replace(SETTINGS, model=str(begun / "grm"))
    said = [o.success for o in look_at(onlooker_of(CLASSIFIER, settings, demonstration, begun), demonstration)]
    assert said[-1] > 0.5 > np.median(said)
