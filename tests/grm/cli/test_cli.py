import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from grm import cli
from grm import train as grm_train
from grm.cli import collect, output, train
from grm.cli.datasets import datasets
from grm.cli.output import check_output, command_line
from grm.data.lerobot import count_episodes, read_episodes
from grm.data.replay import FILE, read_replay, write_replay
from grm.errors import OutputError
from grm.models.multiview import GRM
from grm.train import MANY_TASKS, Trainer, TrainSettings

from ...tiny import square, tiny_grm, tiny_network
from ..data.test_recordings import film
from .conftest import contents, grm, write_dataset

ROOT = Path(__file__).resolve().parents[3]
COLLECT = ("collect", "--task", "reach", "--views", "corner", "--size", "32", "--horizon", "50")


# --- what is wrong with the input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [("collect",), ("demo",)])
def test_unknown_task(refused, tmp_path, verb):
    message = refused(*verb, "--task", "fold-laundry", "--out", tmp_path / "out")
    assert "unknown task 'fold-laundry'; expected one of assembly-v3, " in message
    assert not (tmp_path / "out").exists()


def test_unknown_camera(refused, tmp_path):
    message = refused("collect", "--task", "reach", "--views", "corner", "wrist", "--out", tmp_path / "out")
    assert "unknown camera 'wrist'" in message
    assert "gripperPOV" in message
    assert not (tmp_path / "out").exists()


def test_collecting_into_what_is_no_data_set(refused, tmp_path, dataset):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    assert "is not a LeRobotDataset" in refused(*COLLECT, "--out", tmp_path / "file")
    assert "is not a LeRobotDataset" in refused(*COLLECT, "--out", tmp_path / "folder")
    assert "is not writable" in refused(*COLLECT, "--out", tmp_path / "file" / "inside")
    assert "holds episodes of 'right-v3'" in refused(*COLLECT, "--out", dataset)


@pytest.mark.parametrize("verb", ["train", "adapt", "demo"])
def test_outputs_that_cannot_be(refused, tmp_path, dataset, tiny, verb):
    given = {
        "train": ("--steps", 1, "--data", dataset),
        "adapt": ("--steps", 1, "--data", dataset, "--model", tiny),
        "demo": ("--task", "reach", "--model", tiny),
    }[verb]
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert "exists already" in refused(verb, *given, "--out", tmp_path / "file")
    assert "exists already" in refused(verb, *given, "--out", tmp_path / "full")
    assert "cannot be made (Not a directory)" in refused(verb, *given, "--out", tmp_path / "file" / "inside")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_no_space_or_no_right_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 49_000_000))
    with pytest.raises(OutputError, match="has 49 MB left"):
        check_output(tmp_path / "out")
    monkeypatch.setattr(output.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_output(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    check_output(tmp_path)
    check_output(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("verb", ["train", "adapt"])
def test_data_that_are_none(refused, tmp_path, tiny, verb):
    model = ("--model", tiny) if verb == "adapt" else ()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "file"):
        message = refused(verb, "--data", tmp_path / name, "--out", tmp_path / "out", *model)
        assert re.search(rf"/{name} (is not|holds no|does not|is no) .*(LeRobotDataset|video)", message)


def test_a_data_set_being_made_is_not_read(tmp_path, dataset):
    shutil.copytree(dataset, tmp_path / "right")
    shutil.copytree(dataset, tmp_path / ".left.first")
    assert datasets([tmp_path]) == [tmp_path / "right"]
    assert datasets([tmp_path / "right", tmp_path]) == [tmp_path / "right", tmp_path / "right"]


@pytest.mark.parametrize("share", [-0.1, 1.0, 5.0])
def test_a_validation_share_that_is_none(refused, tmp_path, dataset, share):
    message = refused("train", "--data", dataset, "--out", tmp_path / "out", "--validation", share)
    assert f"validation is {share}; expected a share" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "adapt"])
def test_a_truncated_video(refused, tmp_path, dataset, tiny, verb):
    copy = shutil.copytree(dataset, tmp_path / "cut")
    for video in copy.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    model = ("--model", tiny) if verb == "adapt" else ()
    message = refused(verb, "--data", copy, "--out", tmp_path / "out", "--steps", 1, *model)
    assert "it may be truncated" in message
    assert ".mp4" in message


@pytest.mark.parametrize(("episode", "expected"), [(1, "does not end in success"), (3, "has no episode 3; it has 3")])
def test_demonstrations_that_are_none(refused, tmp_path, dataset, tiny, episode, expected):
    given = ("--data", dataset, "--episode", episode, "--model", tiny, "--out", tmp_path / "out", "--steps", 1)
    assert expected in refused("adapt", *given)
    assert not (tmp_path / "out" / "config.json").exists()


def test_failures_are_learned_from_and_are_not_what_the_table_is_of(monkeypatch, refused, tmp_path, dataset, tiny):
    compared = []
    monkeypatch.setattr(
        "grm.cli.adapt.before_after", lambda old, new, shown, others, goals: compared.extend(others) or ""
    )
    given = ("adapt", "--data", dataset, "--model", tiny, "--steps", 1)
    assert grm(*given, "--failures", 1, "--out", tmp_path / "out") == 0
    card = json.loads((tmp_path / "out" / "config.json").read_text())["card"]
    assert (card["failures"], len(compared)) == (1, 1)
    plain = tmp_path / "plain"
    assert grm(*given, "--out", plain) == 0
    assert len(compared) == 3
    told, untold = (GRM.from_pretrained(folder).network.state_dict() for folder in (tmp_path / "out", plain))
    assert any(not torch.equal(told[name], untold[name]) for name in told)
    assert "episode 2 of" in refused(*given, "--failures", 1, 2, "--out", tmp_path / "none")
    assert "episode 0 is the demonstration" in refused(*given, "--failures", 0, "--out", tmp_path / "none")
    assert "has no episode 7; it has 3" in refused(*given, "--failures", 7, "--out", tmp_path / "none")


def test_adapting_to_videos(refused, tmp_path, tiny):
    levels = np.linspace(0, 200, 12)
    for name in ("episode_001", "episode_002"):
        film(tmp_path / "raw" / name / "cam_top.mp4", levels)
        parts = [{"start_frame_id": 0, "end_frame_id": 11}]
        (tmp_path / "raw" / name / "annotated_keyframes.json").write_text(json.dumps(parts))
    given = ("--data", tmp_path / "raw", "--steps", 2, "--model", tiny, "--instruction", "brighten up")
    assert grm("adapt", *given, "--episode", 1, "--out", tmp_path / "out") == 0
    card = json.loads((tmp_path / "out" / "config.json").read_text())["card"]
    assert "--instruction 'brighten up'" in card["command"]
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert grm("adapt", *given, "--episode", 2, "--failures", 1, "--out", tmp_path / "told") == 0
    assert json.loads((tmp_path / "told" / "config.json").read_text())["card"]["failures"] == 1
    assert "has no episode 0; it has 2: 1 to 2" in refused("adapt", *given, "--out", tmp_path / "none")
    film(tmp_path / "alone.mp4", levels)
    given = ("--data", tmp_path / "alone.mp4", "--steps", 2, "--model", tiny)
    assert "instruction" in refused("adapt", *given, "--out", tmp_path / "none")


def damaged(tiny: Path, where: Path) -> dict[str, Path]:
    folders = {}
    for name in ("schema", "kind", "weightless", "cut", "other"):
        folders[name] = shutil.copytree(tiny, where / name)
    for name, key, value in (("schema", "schema", 99), ("kind", "kind", "another")):
        config = json.loads((folders[name] / "config.json").read_text())
        (folders[name] / "config.json").write_text(json.dumps(config | {key: value}))
    (folders["weightless"] / "model.safetensors").unlink()
    weights = folders["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    config = json.loads((folders["other"] / "config.json").read_text())
    config["architecture"]["features"] = 8
    (folders["other"] / "config.json").write_text(json.dumps(config))
    folders["missing"] = where / "nowhere"
    return folders


@pytest.mark.parametrize("verb", ["adapt", "demo"])
def test_checkpoints_that_are_none(refused, tmp_path, dataset, tiny, verb):
    given = ("--data", dataset) if verb == "adapt" else ("--task", "reach")
    expected = {
        "schema": "schema 99; expected 'multiview-grm' and 1",
        "kind": "kind 'another'",
        "weightless": "holds no model.safetensors",
        "cut": "cannot be read",
        "other": "of another shape ['",  # brackets of the message are not taken for markup
        "missing": "no checkpoint folder at",
    }
    for name, folder in damaged(tiny, tmp_path / "models").items():
        assert expected[name] in refused(verb, *given, "--model", folder, "--out", tmp_path / "out")
    if verb == "demo":
        assert not (tmp_path / "out").exists(), "known before anything is made"


def test_nothing_to_resume(refused, tmp_path, tiny, dataset):
    nowhere = tmp_path / "nowhere"
    assert "no run to resume" in refused("demo", "--task", "reach", "--model", tiny, "--out", nowhere, "--resume")
    assert "no run to resume" in refused("train", "--data", dataset, "--out", nowhere, "--resume")
    assert not nowhere.exists()
    (tmp_path / "empty").mkdir()
    given = ("--task", "reach", "--model", tiny, "--out", tmp_path / "empty", "--resume")
    assert "holds no config.json" in refused("demo", *given)


def test_demo_resumed_with_other_settings(refused, tmp_path, tiny):
    from policies.one_shot import OneShotSettings, write_config

    write_config(tmp_path, OneShotSettings(task="reach-v3", rollouts=7, model=str(tiny)), {}, resume=False)
    given = ("demo", "--task", "reach", "--model", tiny, "--out", tmp_path, "--resume")
    assert "begun with other rollouts;" in refused(*given)
    assert "begun with other seed, rollouts, evaluation_episodes;" in refused(
        *given, "--seed", 1, "--evaluation-episodes", 3
    )


def test_a_stranger_of_our_name_is_one_clear_error(refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "robot_io", None)
    assert "'robot_io' resolves to nothing" in refused("collect", "--task", "reach", "--out", tmp_path / "out")


def test_unknown_options_are_explained(capsys):
    assert grm("collect", "--out", "x", "--episods", 3) == 2
    assert "--episods" in capsys.readouterr().err
    assert grm("--help") == 0
    for verb in ("collect", "train", "adapt", "evaluate", "rl", "demo", "doctor"):
        assert verb in capsys.readouterr().out or grm(verb, "--help") == 0


# --- collect ----------------------------------------------------------------------------------------------------------


def test_collect_goes_on_where_it_was(tmp_path, capsys):
    out = tmp_path / "reach"
    settings = cli.Collect(
        out=out,
        task=("reach",),
        episodes=1,
        off_demonstration=1,
        views=("corner",),
        size=32,
        horizon=50,
        label_every=25,
    )
    steps = collect._collect(settings, "reach-v3", out)
    next(steps)
    steps.close()  # killed after the first of two
    assert count_episodes(out) == 1
    [first] = read_episodes(out)
    assert (first.task, first.behaviour, first.succeeded, list(first.views)) == ("reach-v3", "expert", True, ["corner"])

    more = (*COLLECT, "--label-every", 25, "--out", out, "--off-demonstration", 1)
    assert grm(*more, "--episodes", 1) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "wrote 1 episodes of 1 task(s)" in said
    assert "which now has 2 episodes" in said
    assert grm(*more, "--episodes", 2) == 0
    episodes = list(read_episodes(out))
    assert [e.behaviour for e in episodes] == ["expert", "noisy", "expert"]
    assert [e.seed for e in episodes[::2]] == [first.seed, first.seed + 1], "not the same instance again"
    np.testing.assert_array_equal(episodes[0].views["corner"], first.views["corner"])
    np.testing.assert_array_equal(episodes[0].actions, first.actions)

    before = contents(out)
    assert grm(*more, "--episodes", 2) == 0
    assert contents(out) == before, "nothing is missing, so nothing is written"


def test_collect_in_looks_and_with_provers_of_ones_own(tmp_path, monkeypatch):
    from envs.metaworld import MetaWorldEnv

    asked, original = set(), MetaWorldEnv.true_progress

    def spy(self, *, provers=3):
        asked.add(provers)
        return original(self, provers=provers)

    monkeypatch.setattr(MetaWorldEnv, "true_progress", spy)
    given = (*COLLECT, "--episodes", 2, "--off-demonstration", 1, "--label-every", 25, "--provers", 1)
    assert grm(*given, "--out", tmp_path / "plain") == 0
    assert grm(*given, "--out", tmp_path / "looks", "--appearance", 1.0) == 0
    assert asked == {1}
    for one, other in zip(read_episodes(tmp_path / "plain"), read_episodes(tmp_path / "looks"), strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert np.abs(one.views["corner"].astype(int) - other.views["corner"]).mean() > 3


def test_tasks_do_not_share_looks(tmp_path, monkeypatch):
    """The same instances of two tasks: what one looks like tells nothing of the other."""
    from envs.appearance import Appearance

    drawn, draw = [], Appearance.draw

    def spy(generator):
        look = draw(generator)
        drawn.append(look.seed)
        return look

    monkeypatch.setattr(Appearance, "draw", spy)
    given = ("collect", "--views", "corner", "--size", "32", "--horizon", "50", "--episodes", 0, "--provers", 0)
    for name in ("once", "again"):
        where = ("--out", tmp_path / name)
        assert grm(*given, *where, "--task", "reach", "push", "--off-demonstration", 1, "--appearance", 1.0) == 0
    reach, push, *again = drawn
    assert reach != push
    assert again == [reach, push]


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("episodes", -1),
        ("size", 0),
        ("horizon", 0),
        ("action-repeat", 0),
        ("label-every", 0),
        ("provers", -1),
        ("seed", -5),
        ("jobs", 0),
        ("appearance", 1.5),
    ],
)
def test_collect_refuses_numbers_that_make_no_episode(refused, tmp_path, option, given):
    message = refused("collect", "--task", "reach", "--out", tmp_path / "out", f"--{option}", given)
    assert f"--{option} is {given}; expected" in message
    assert not (tmp_path / "out").exists()


def test_collect_says_how_many_there_are(tmp_path, capsys):
    assert "no episodes were asked for" in _said(capsys, 2, *COLLECT, "--episodes", 0, "--out", tmp_path / "reach")
    assert "now has 2 episodes" in _said(capsys, 0, *COLLECT, "--episodes", 2, "--out", tmp_path / "reach")
    assert "now has 2 episodes" in _said(capsys, 0, *COLLECT, "--episodes", 1, "--out", tmp_path / "reach")


def _said(capsys, status, *arguments):
    assert grm(*arguments) == status
    said = capsys.readouterr()
    return said.out + said.err


@pytest.mark.parametrize("given", [("--steps", 0), ("--learning-rate", -1.0)])
def test_train_refuses_to_learn_nothing(refused, tmp_path, dataset, given):
    assert "at least 1 step and a positive rate" in refused("train", "--data", dataset, *given, "--out", tmp_path / "o")


def test_collect_clones(tmp_path, monkeypatch):
    """Two cloned policies, the second for the third episode; experts and failures are counted apart."""
    monkeypatch.setattr(collect, "_LESSONS", 2)
    given = (*COLLECT, "--episodes", 1, "--off-demonstration", 1, "--provers", 0, "--out", tmp_path / "reach")
    assert grm(*given, "--clones", 2) == 0
    assert grm(*given, "--clones", 3) == 0
    episodes = list(read_episodes(tmp_path / "reach"))
    assert [e.behaviour for e in episodes] == ["expert", "noisy", "cloned", "cloned", "cloned"]
    assert [e.seed for e in episodes[2:]] == [2_000_000, 2_000_001, 2_000_002]
    assert grm(*given, "--clones", 3) == 0
    assert count_episodes(tmp_path / "reach") == 5


# --- train ------------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


def die_in_step(monkeypatch, number: int) -> None:
    step = Trainer._train_step

    def dying(self):
        if self.step + 1 == number:
            raise Interrupted
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", dying)


def test_train_writes_a_checkpoint_with_its_report(tmp_path, dataset):
    out = tmp_path / "out"
    assert grm("train", "--data", dataset, "--out", out, "--steps", 3, "--validation", 0.34, "--seed", 4) == 0
    model = GRM.from_pretrained(out)
    card = json.loads((out / "config.json").read_text())["card"]
    assert (card["seed"], card["steps"], card["episodes"], card["frames"]) == (4, 3, 2, 16)
    assert card["tasks"] == ["right-v3"]
    expected = f"grm train --data {dataset} --out {out} --steps 3 --seed 4 --validation 0.34"
    assert card["command"] == expected, "the command is in the card, however it was called"
    assert {"voc_plus", "voc_minus", "mae_demo"} <= set(card["validation"])
    assert all(np.isfinite(value) for value in card["validation"].values())
    expected = Trainer(
        tiny_network(4), list(read_episodes(dataset, [0, 1])), TrainSettings(steps=3, seed=4), MANY_TASKS
    )
    expected.run()
    for name, tensor in expected.network.state_dict().items():
        if name != "calibration":
            torch.testing.assert_close(model.network.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert model.network.calibration[0] >= 0.005, "calibrated on the validation episodes"
    np.testing.assert_array_equal(expected.network.calibration, [0, 1])
    assert [(e.task, e.behaviour, len(e)) for e in read_replay(out)] == [
        ("right-v3", "expert", 8),
        ("right-v3", "undo", 8),
    ]


def test_train_without_validation_is_not_calibrated(tmp_path, dataset):
    assert grm("train", "--data", dataset, "--out", tmp_path / "out", "--steps", 1, "--validation", 0) == 0
    np.testing.assert_array_equal(GRM.from_pretrained(tmp_path / "out").network.calibration, [0, 1])
    assert "validation" not in json.loads((tmp_path / "out" / "config.json").read_text())["card"]


def test_train_from_decoded_pictures_is_the_same(tmp_path, dataset, monkeypatch):
    given = ("train", "--data", dataset, "--steps", 2, "--validation", 0.34)
    assert grm(*given, "--out", tmp_path / "plain") == 0
    assert grm(*given, "--out", tmp_path / "first", "--cache", tmp_path / "cache") == 0
    monkeypatch.setattr("grm.data.decoded.read_episodes", lambda root: pytest.fail("decoded again"))
    assert grm(*given, "--out", tmp_path / "second", "--cache", tmp_path / "cache") == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "first", "second")]
    assert weights[0] == weights[1] == weights[2]


def test_train_goes_on_from_a_checkpoint(tmp_path, dataset, tiny):
    out = tmp_path / "out"
    given = ("--data", dataset, "--out", out, "--model", tiny, "--steps", 1, "--validation", 0)
    assert grm("train", *given, "--learning-rate", 1e-6, "--seed", 7) == 0
    old, new = GRM.from_pretrained(tiny).network, GRM.from_pretrained(out).network
    assert (new.hop[0].weight != old.hop[0].weight).any()
    torch.testing.assert_close(new.hop[0].weight, old.hop[0].weight, rtol=0, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["card"]["from"] == {}


def test_data_sets_of_different_cameras_make_one_model(tmp_path, dataset):
    """One is seen by `top`, the other by two cameras; the demonstration to adapt to by one of each."""
    left = [square(seed, task="left-v3", views=("side", "wrist")) for seed in (5, 6, 7)]
    other = write_dataset(tmp_path / "left", left)
    demonstration = write_dataset(tmp_path / "up", [square(8, task="up-v3", views=("top", "wrist"))])
    out, adapted, table = tmp_path / "out", tmp_path / "adapted", tmp_path / "table"
    assert grm("train", "--data", dataset, other, "--out", out, "--steps", 2, "--validation", 0.34) == 0
    assert {"voc_plus", "mae_demo"} <= set(json.loads((out / "config.json").read_text())["card"]["validation"])
    assert {tuple(episode.views) for episode in read_replay(out)} == {("top",), ("side", "wrist")}
    assert grm("adapt", "--data", demonstration, "--model", out, "--out", adapted, "--steps", 1) == 0
    assert GRM.from_pretrained(adapted).network.gated, "both data sets were there to tell the new task's words from"
    assert grm("evaluate", "--data", dataset, other, "--model", adapted, "--out", table) == 0
    tasks = json.loads((table / "evaluation.json").read_text())["tasks"]
    assert set(tasks) == {"left-v3", "right-v3"}
    assert all(metrics["abstained"] == 0 for metrics in tasks.values())


def test_the_replay_sample_is_of_all_tasks_and_of_behaviours_that_differ():
    def named(task, *behaviours):
        return [square(seed, task=task, behaviour=behaviour) for seed, behaviour in enumerate(behaviours)]

    episodes = [
        *named("right-v3", "noisy", "expert", "noisy", "undo", "expert", "expert", "drop", "random"),
        *named("left-v3", "undo"),
    ]
    sample = [(e.task, e.behaviour, e.seed) for e in train._replay_sample(episodes)]
    assert sample == [
        ("left-v3", "undo", 0),
        ("right-v3", "noisy", 0),
        ("right-v3", "expert", 1),
        ("right-v3", "undo", 3),
        ("right-v3", "expert", 4),
        ("right-v3", "drop", 6),
    ]


def test_train_resumed_is_as_uninterrupted(tmp_path, dataset, monkeypatch):
    given = ("train", "--data", dataset, "--steps", 4, "--validation", 0.34)
    assert grm(*given, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", 2)
        die_in_step(patch, 4)
        with pytest.raises(Interrupted):
            grm(*given, "--out", tmp_path / "torn")
    assert not (tmp_path / "torn" / FILE).exists()
    assert json.loads((tmp_path / "torn" / "training.json").read_text())["step"] == 2
    assert grm(*given, "--out", tmp_path / "torn", "--resume") == 0
    whole, torn = contents(tmp_path / "whole"), contents(tmp_path / "torn")
    assert whole.keys() == torn.keys()
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert whole[name] == torn[name], name
    reports = [json.loads(files["config.json"])["card"]["validation"] for files in (whole, torn)]
    assert reports[0] == reports[1]


def test_train_resumed_with_other_settings_or_without_state(refused, tmp_path, dataset):
    out = tmp_path / "out"
    given = ("train", "--data", dataset, "--out", out, "--validation", 0)
    assert grm(*given, "--steps", 1) == 0
    assert "was trained with other steps; resume with the same" in refused(*given, "--steps", 2, "--resume")
    (out / "training.json").unlink()
    assert "holds no training.json" in refused(*given, "--steps", 1, "--resume")
    assert "exists already" in refused(*given, "--steps", 1)


@pytest.mark.parametrize("saved", [True, False])
def test_train_interrupted_says_how_to_go_on(tmp_path, dataset, monkeypatch, capsys, saved):
    monkeypatch.setattr(Trainer, "run", lambda self, after_step: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "out"
    if saved:
        out.mkdir()
        tiny_grm().save_pretrained(out, {"trained_steps": 0})
        Trainer(tiny_network(), list(read_episodes(dataset)), TrainSettings(steps=2)).save_state(out)
    given = ("train", "--data", dataset, "--out", out, "--steps", 2, "--validation", 0)
    assert grm(*given, *(["--resume"] if saved else [])) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert ("with --resume added" if saved else "nothing was saved yet") in said


# --- adapt ------------------------------------------------------------------------------------------------------------


def test_adapt_leaves_the_old_weights_alone(tmp_path, dataset, tiny, capsys):
    source = shutil.copytree(tiny, tmp_path / "source")
    write_replay(source, [square(9, task="left-v3"), square(10, task="left-v3", behaviour="undo")])
    before = contents(source)
    out = tmp_path / "out"
    assert grm("adapt", "--data", dataset, "--episode", 2, "--model", source, "--out", out, "--steps", 2) == 0
    assert contents(source) == before
    said = capsys.readouterr().out
    for words in ("metric", "before", "after", "mae_demo", "mae_off_demo", "other episodes"):
        assert words in said, words
    new, old = GRM.from_pretrained(out), GRM.from_pretrained(source)
    assert (new.network.hop[0].weight != old.network.hop[0].weight).any()
    card = json.loads((out / "config.json").read_text())["card"]
    assert (card["from"], card["steps"]) == (str(source), 2)
    assert [e.task for e in read_replay(out)] == ["left-v3", "left-v3"], "it can be adapted again"


def test_adapt_needs_no_labels_and_no_other_episodes(tmp_path, tiny, capsys):
    """A recording of a real robot: nobody knows its progress, so the table has its order in time only."""
    data = write_dataset(tmp_path / "data", [square(0, known=False)])
    assert grm("adapt", "--data", data, "--model", tiny, "--out", tmp_path / "out", "--steps", 1) == 0
    said = capsys.readouterr().out
    assert "the demonstration itself" in said
    assert "voc_plus" in said
    assert "mae_demo" not in said
    GRM.from_pretrained(tmp_path / "out")


def test_a_demonstration_can_go_on_once_it_is_done(tmp_path, tiny, dataset, refused, monkeypatch):
    shown = []
    adapt = grm_train.adapt
    monkeypatch.setattr(grm_train, "adapt", lambda *given, **named: shown.append(given[1]) or adapt(*given, **named))
    given = ("adapt", "--data", dataset, "--model", tiny, "--steps", 1)
    episode = square(0)
    length, seconds = len(episode), (len(episode) - 1) / episode.rate_hz
    for number, done in enumerate((0.0, 2 / episode.rate_hz)):
        assert grm(*given, "--out", tmp_path / str(number), "--done-for", done) == 0
    assert [one.success.tolist() for one in shown] == [[False] * (length - count) + [True] * count for count in (1, 3)]
    for wrong in (seconds, -1.0):
        assert f"done-for is {wrong:g} s; expected at least 0, and less than the demonstration's {seconds:g} s" in (
            refused(*given, "--out", tmp_path / "none", "--done-for", wrong)
        )


# --- demo -------------------------------------------------------------------------------------------------------------


def test_the_hint_is_the_whole_command(tmp_path):
    out = Path("runs/x y")
    demo = cli.Demo(task="reach", seed=3, rollouts=9, model="a folder/with spaces", out=out, resume=True)
    assert command_line(demo) == (
        "grm demo --task reach --out 'runs/x y' --seed 3 --rollouts 9 --model 'a folder/with spaces' --resume"
    )
    assert command_line(cli.Demo()) == "grm demo --task hand-insert"
    several = cli.Collect(out=Path("set"), task=("reach", "push"), jobs=2)
    assert command_line(several) == "grm collect --out set --task reach push --jobs 2"


DEMO = ("demo", "--task", "reach", "--evaluation-episodes", 1)


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, tiny, monkeypatch, capsys):
    adapt = grm_train.adapt
    monkeypatch.setattr(grm_train, "adapt", lambda *given, **named: adapt(*given, **named | {"steps": 3}))
    out = tmp_path / "run"
    assert grm(*DEMO, "--rollouts", 2, "--model", tiny, "--out", out) == 0
    rows = (out / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2
    assert [row.split(",")[2:4] for row in rows[1:]] == [
        ["sparse", "1"],
        ["sparse", "2"],
        ["grm", "1"],
        ["grm", "2"],
    ]
    page = (out / "index.html").read_text()
    assert "Here, on one seed, the GRM" in page
    minutes = json.loads((out / "minutes.json").read_text())["minutes"]
    assert 0 < minutes < 20
    said = capsys.readouterr().out
    for words in ("one expert demonstration of", "before", "after", "sparse", "grm", f"open {out}/index.html"):
        assert words in said, words
    GRM.from_pretrained(out / "grm")
    trained = contents(out / "arms" / "grm")
    assert grm(*DEMO, "--rollouts", 2, "--model", tiny, "--out", out, "--resume") == 0
    assert contents(out / "arms" / "grm") == trained, "a finished run is only reported again"


@pytest.mark.slow
def test_demo_interrupted_by_ctrl_c(tmp_path, tiny):
    from policies.one_shot import OneShotSettings, record_demonstration, write_config

    out = tmp_path / "run"
    out.mkdir()
    settings = OneShotSettings(task="reach-v3", rollouts=200, evaluation_episodes=1, model=str(tiny))
    write_config(out, settings, {"command": "grm demo", "commit": ""}, resume=False)
    record_demonstration(settings, out / "demonstration")
    shutil.copytree(tiny, out / "grm")
    command = [*DEMO, "--rollouts", 200, "--model", tiny, "--out", out, "--resume"]
    process = subprocess.Popen(
        [sys.executable, "-m", "grm", *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        begun = [out / "arms" / arm / "rollouts.csv" for arm in ("sparse", "grm")]
        deadline = time.monotonic() + 300
        while process.poll() is None and not all(p.exists() and len(p.read_text().splitlines()) > 1 for p in begun):
            assert time.monotonic() < deadline, "no rollout in five minutes"
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody of the group is told
        said, complained = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, complained
    assert "Traceback" not in said + complained
    assert f"--out {out} --rollouts 200 --evaluation-episodes 1 --model {tiny} --resume" in said
    assert (out / "index.html").exists()
    assert not (out / "arms" / "grm" / "evaluation.json").exists()
    for arm in ("sparse", "grm"):
        rollouts = json.loads((out / "arms" / arm / "policy" / "config.json").read_text())["rollouts"]
        assert len((out / "arms" / arm / "rollouts.csv").read_text().splitlines()) == rollouts + 1 > 1


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_that_is_none_is_refused(tmp_path, dataset, refused, share):
    assert f"share is {float(share)}" in refused("adapt", "--data", dataset, "--out", tmp_path / "a", "--share", share)
