import json
import re

import numpy as np
import pytest
import torch

from grm import success
from grm.models.multiview import GRM

from ...tiny import square
from ..data.test_recordings import film
from .conftest import grm, write_dataset


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    """Four that got all the way and four that did not. Read-only."""
    episodes = [square(k, behaviour="expert" if k % 2 else "undo") for k in range(10, 18)]
    return write_dataset(tmp_path_factory.mktemp("data") / "rollouts", episodes)


def agreement(said: str) -> dict[str, list[int]]:
    """By outcome, how many there are and how many the three heads agree with."""
    return {
        name: [int(number) for number in re.findall(r"\d+", line)]
        for name in ("succeeded", "failed")
        for line in said.splitlines()
        if f" {name} " in line
    }


@pytest.mark.parametrize("ours", [True, False])
def test_a_head_that_is_told_agrees_and_nothing_else_changes(
    rollouts, dataset, tiny, tmp_path, capsys, ours, monkeypatch
):
    if not ours:  # as somebody else's LeRobotDataset
        monkeypatch.setattr("grm.data.lerobot.has_progress", lambda root: False)
    told, teach = [], success.teach_success
    monkeypatch.setattr(
        success, "teach_success", lambda m, standing, done: told.append(standing) or teach(m, standing, done)
    )
    out = tmp_path / "out"
    given = ("--model", tiny, "--demo", dataset, "--data", rollouts, "--rate-hz", 10)
    assert grm("teach", *given, "--out", out) == 0
    counts = agreement(capsys.readouterr().out)
    assert [row[0] for row in counts.values()] == [4, 4]
    before, after, left_out = (sum(row[k] for row in counts.values()) for k in (1, 2, 3))
    assert 4 == before < after, "an untrained head says the same of all"
    assert left_out <= after
    everything, folds = told[0], told[1:]
    assert len(everything) == 9, "the demonstration and eight rollouts"
    assert sorted(9 - len(fold) for fold in folds) == [1, 1, 2, 2, 2], "each is left out once"
    assert all(np.array_equal(fold[0], everything[0]) for fold in folds), "and the demonstration never"
    old, new = (GRM.from_pretrained(folder).network.state_dict() for folder in (tiny, out))
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"done.weight", "done.bias"}
    card = json.loads((out / "config.json").read_text())["card"]
    assert card["verdicts"] == [False, True] * 4
    assert "grm teach" in card["command"]


def test_the_demonstration_may_be_among_the_rollouts(dataset, tiny, tmp_path, capsys):
    assert grm("teach", "--model", tiny, "--demo", dataset, "--data", dataset, "--out", tmp_path / "out") == 0
    assert [row[0] for row in agreement(capsys.readouterr().out).values()] == [1, 1], "it is not told twice"


def test_rollouts_that_teach_nothing_are_refused(dataset, tiny, tmp_path, refused):
    film(tmp_path / "alone" / "cam_top.mp4", np.linspace(0, 200, 12))
    alone = write_dataset(tmp_path / "one", [square(3)])
    left = write_dataset(tmp_path / "left", [square(3, task="left-v3")])
    side = write_dataset(tmp_path / "side", [square(3, views=("side",))])
    given = ("teach", "--model", tiny, "--out", tmp_path / "out")
    unsaid = ("--data", tmp_path / "alone", "--instruction", "brighten up")
    assert "nobody said how" in refused(*given, "--demo", dataset, *unsaid)
    assert "holds no rollout beside the demonstration" in refused(*given, "--demo", alone, "--data", alone)
    assert "has no camera 'top'" in refused(*given, "--demo", dataset, "--data", side)
    assert "a rollout of 'left-v3' in" in refused(*given, "--demo", dataset, "--data", left)
    failed = ("--demo", dataset, "--episode", 1, "--data", dataset)
    assert "does not end in success; expected a demonstration" in refused(*given, *failed)
    assert not any((tmp_path / "out").iterdir())
