import csv
import json

import numpy as np
import pandas as pd
import pytest

from grm.data.recordings import find_recordings
from grm.inspection import every_frame, inspect
from grm.models.multiview import GRM

from ...tiny import square
from .conftest import contents, grm, write_dataset

LENGTH = 13


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two successes and a failure, thirteen frames each. Read-only."""
    root = tmp_path_factory.mktemp("inspect") / "set"
    behaviours = ("expert", "undo", "expert")
    write_dataset(root, [square(k, behaviour=b, length=LENGTH) for k, b in enumerate(behaviours)])
    return root


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_data_set_becomes_a_page_and_numbers(tmp_path, dataset, tiny, capsys):
    out = tmp_path / "out"
    assert grm("inspect", dataset, "--out", out, "--model", tiny, "--every", 3) == 0
    assert "worst first" in capsys.readouterr().out
    written = {"config.json", "episodes.csv", "frames.csv", "grm_progress.parquet", "index.html", "inspection.json"}
    assert {name for name in contents(out) if not str(name).startswith("episodes/")} == written

    # The same by hand: each is shown the last frame of another success, the first success that of the third.
    model, (recordings, _) = GRM.from_pretrained(tiny), find_recordings([dataset])
    givers = [2, 0, 0]
    expected = [
        inspect(model, recording, recordings[giver].last_frame(), stride=3)
        for recording, giver in zip(recordings, givers, strict=True)
    ]
    frames = rows(out / "frames.csv")
    assert [int(row["frame"]) for row in frames] == 3 * [0, 3, 6, 9, 12]
    np.testing.assert_allclose(
        [float(row["potential"]) for row in frames], np.concatenate([one.potential for one in expected]), atol=1e-4
    )
    episodes = rows(out / "episodes.csv")
    assert [row["name"] for row in episodes] == ["episode 0", "episode 1", "episode 2"]
    assert [row["recorded_success"] for row in episodes] == ["True", "False", "True"]
    content = json.loads((out / "inspection.json").read_text())
    assert sorted(content["triage"]) == ["episode 0", "episode 1", "episode 2"]
    assert (content["broken"], content["goal"]) == ({}, "auto")
    assert content["command"] == f"grm inspect {dataset} --out {out} --model {tiny} --every 3"

    table = pd.read_parquet(out / "grm_progress.parquet")
    assert list(table.columns) == ["index", "episode_index", "frame_index", "progress_sparse"]
    np.testing.assert_array_equal(table["index"], np.arange(3 * LENGTH))
    np.testing.assert_allclose(
        table["progress_sparse"], np.concatenate([every_frame(one, LENGTH) for one in expected]), atol=1e-6
    )
    page = (out / "index.html").read_text()
    assert "3 episodes inspected" in page
    assert "WARNING" not in page


def test_an_own_last_frame_as_goal_is_warned_of(tmp_path, dataset, tiny):
    out = tmp_path / "out"
    assert grm("inspect", dataset, "--out", out, "--model", tiny, "--goal", "own-last-frame") == 0
    assert "WARNING: every episode was shown its own last frame" in (out / "index.html").read_text()


@pytest.mark.parametrize("goal", ["none", "0", "picture"])
def test_other_goals(tmp_path, dataset, tiny, goal):
    import cv2

    picture = tmp_path / "done.png"
    cv2.imwrite(str(picture), np.full((32, 32, 3), 200, np.uint8))
    out = tmp_path / "out"
    asked = str(picture) if goal == "picture" else goal
    assert grm("inspect", dataset, "--out", out, "--model", tiny, "--goal", asked) == 0
    silent = [bool(not row["backward"]) for row in rows(out / "frames.csv") if row["name"] == "episode 0"]
    assert all(silent) == (goal in ("none", "0")), "the one that lends its end has nobody to show it one"
    if goal == "0":
        some = tmp_path / "some"
        assert grm("inspect", dataset, "--episodes", 1, 2, "--out", some, "--model", tiny, "--goal", 2) == 0
        assert {bool(row["backward"]) for row in rows(some / "frames.csv") if row["name"] == "episode 1"} == {True}
        assert not any(not row["backward"] for row in rows(out / "frames.csv") if row["name"] == "episode 1")


def test_an_episode_that_breaks_is_reported_and_the_rest_is_done(tmp_path, tiny, dataset, capsys):
    root = tmp_path / "recorded"
    for number in (1, 2):
        (root / f"episode_{number}" / "top").mkdir(parents=True)
    import cv2

    for k in range(8):
        picture = np.full((32, 32, 3), 20 * k, np.uint8)
        for number in (1, 2):
            cv2.imwrite(str(root / f"episode_{number}" / "top" / f"{k}.png"), picture)
    (root / "episode_1" / "top" / "5.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    command = ("inspect", root, "--out", out, "--model", tiny, "--instruction", "push it", "--every", 1)
    assert grm(*command) == 1
    assert "5.png" in capsys.readouterr().err
    content = json.loads((out / "inspection.json").read_text())
    assert [row["name"] for row in content["episodes"]] == ["episode_2"]
    assert list(content["broken"]) == ["episode_1"]
    assert not (out / "grm_progress.parquet").exists(), "not a LeRobotDataset"

    # Mended, it goes on with what is left.
    whole = (out / "episodes" / "1.npz").stat().st_mtime_ns
    cv2.imwrite(str(root / "episode_1" / "top" / "5.png"), picture)
    assert grm(*command, "--resume") == 0
    assert (out / "episodes" / "1.npz").stat().st_mtime_ns == whole
    assert len(json.loads((out / "inspection.json").read_text())["episodes"]) == 2
    assert grm(*command, "--resume", "--goal", "own-last-frame") == 2
    assert "was inspected with other goal" in capsys.readouterr().err


def test_bad_input_is_one_sentence(tmp_path, dataset, tiny, capsys):
    for arguments, said in (
        ((tmp_path / "nowhere",), "does not exist"),
        ((dataset, "--episodes", 9), "has no episode 9; it has 3: 0 to 2"),
        ((dataset, "--goal", "7"), "--goal 7 is none of the episodes to inspect; expected one of 0, 1, 2"),
        ((dataset, "--goal", tmp_path / "no.png"), "cannot be read"),
    ):
        assert grm("inspect", *arguments, "--out", tmp_path / "out", "--model", tiny) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert grm("inspect", dataset, "--cameras", "front", "--out", tmp_path / "out", "--model", tiny) == 1
    assert "has no camera 'front'; it has top" in " ".join(capsys.readouterr().err.split())


def test_films_and_rerun_recordings_on_request(tmp_path, dataset, tiny):
    out = tmp_path / "out"
    asked = ("inspect", dataset, "--out", out, "--model", tiny, "--every", 3, "--overlay", "--rerun")
    assert grm(*asked) == 0
    for folder, suffix in (("overlays", "mp4"), ("rerun", "rrd")):
        assert sorted(path.name for path in (out / folder).iterdir()) == [f"{k}.{suffix}" for k in range(3)]
        assert all(path.stat().st_size > 500 for path in (out / folder).iterdir())


def test_only_the_worst_keep_their_films(tmp_path, dataset, tiny, monkeypatch):
    monkeypatch.setattr("grm.cli.inspect.EPISODES", 1)
    monkeypatch.setattr("grm.report.inspection.EPISODES", 1)
    out = tmp_path / "out"
    assert grm("inspect", dataset, "--out", out, "--model", tiny) == 0
    worst = json.loads((out / "inspection.json").read_text())["triage"][0]
    assert [path.name for path in (out / "episodes").glob("*-film.npz")] == [f"{worst.split()[-1]}-film.npz"]
    page = (out / "index.html").read_text()
    assert page.count('"potential":[') == 1
    assert "Films are of the 1 worst episodes" in page
