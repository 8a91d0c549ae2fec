import json

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate", reason="the extra `lerobot` is not installed")

from grm.errors import CheckpointError, TraceError
from grm.reward import Frame, Task
from grm.testing import check_process_reward
from robot_io.lerobot_judge import LeRobotScorer, load_lerobot_judge
from robot_io.reward_model import GRMConfig, GRMRewardModel

from ..grm.cli.conftest import grm, write_dataset
from ..tiny import TINY, square

TASK = Task(instruction="move the square")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A reward model as lerobot-train leaves it."""
    folder = tmp_path_factory.mktemp("lerobot") / "model"
    torch.manual_seed(1)  # its hops are not all backward
    GRMRewardModel(GRMConfig(device="cpu", architecture=TINY, step_back=2)).save_pretrained(folder)
    return folder


def test_it_obeys_the_laws(saved):
    frames = square(3, views=("top", "side")).frames
    judge = load_lerobot_judge(str(saved))
    check_process_reward(judge, TASK, frames)
    assert np.ptp(judge.judge(TASK, frames).potential) > 0


def test_a_frame_is_shown_with_those_that_the_config_asks_for():
    class Spy:
        config = GRMConfig(device="cpu", architecture=TINY, step_back=2)

        def eval(self):
            return self

        def compute_reward(self, batch):
            self.batch = batch
            return torch.tensor([0.5])

    spy = Spy()
    scorer = LeRobotScorer(spy)
    frames = [Frame(views={"top": np.full((4, 4, 3), 10 * t, np.uint8)}) for t in range(6)]
    assert scorer(TASK, frames[:5]) == 0.5
    film = spy.batch["observation.images.top"]
    assert film.shape == (1, 4, 3, 4, 4)
    np.testing.assert_allclose(film[0, :, 0, 0, 0] * 255, [0, 20, 40, 40], atol=1e-4)  # first, two back, now, no later
    assert spy.batch["task"] == ["move the square"]
    spy.config = type("Single", (), {"observation_delta_indices": None})()
    scorer(TASK, frames[:3])
    assert spy.batch["observation.images.top"].shape == (1, 3, 4, 4)
    assert np.isnan(scorer(TASK, [*frames, Frame(views={})]))


def test_a_camera_that_is_not_there_is_named():
    class Fixed:
        config = GRMConfig(device="cpu", architecture=TINY)

        def eval(self):
            return self

        def compute_reward(self, batch):
            return batch["observation.images.wrist"]

    with pytest.raises(TraceError, match=r"asks for 'observation.images.wrist', and is shown the cameras top"):
        LeRobotScorer(Fixed())(TASK, square(0).frames)


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no folder and no Hub id"):
        load_lerobot_judge("nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(CheckpointError, match="no reward model that LeRobot can load"):
        load_lerobot_judge(str(tmp_path))


def halfway(task, frames):
    """A judge by a function of this module."""
    return min(1.0, len(frames) / 16)


def test_the_command_line_takes_either(tmp_path, saved, capsys):
    root = write_dataset(tmp_path / "set", [square(k, views=("top", "side")) for k in range(2)])
    for name, judge in (("lerobot", f"lerobot:{saved}"), ("function", f"{__name__}:halfway")):
        assert grm("inspect", root, "--out", tmp_path / name, "--judge", judge, "--every", 1) == 0
        content = json.loads((tmp_path / name / "inspection.json").read_text())
        assert content["model"] == judge
        assert len(content["episodes"]) == 2
        out = tmp_path / f"evaluate-{name}"
        assert grm("evaluate", "--data", root, "--out", out, "--judge", judge) == 0
        summary = json.loads((out / "evaluation.json").read_text())["summary"]
        assert "spearman_demo" in summary
    by_function = json.loads((tmp_path / "function" / "inspection.json").read_text())
    assert [row["final"] for row in by_function["episodes"]] == [0.5, 0.5]
    capsys.readouterr()
    for arguments, said in (
        (("--judge", "no.such:thing"), "cannot be imported"),
        (("--judge", f"{__name__}:nothing"), "cannot be imported"),
        (("--judge", f"{__name__}:halfway", "--model", saved), "expected one of them"),
    ):
        assert grm("inspect", root, "--out", tmp_path / "no", *arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert grm("evaluate", "--data", root, "--out", tmp_path / "no2", "--judge", "x:y", "--adapt", 3) == 2
