import csv
import json
from pathlib import Path

import pytest

from grm import cli
from grm.cli.output import command_line
from grm.cli.rl import add_seconds, minutes, outcome

from .conftest import contents, grm


def test_cells_go_seed_by_seed_then_arm_by_arm_then_task_by_task():
    rl = cli.Rl(out=Path("runs"), task=("reach", "push-v3"), arms=("grm", "sparse"), seeds=(0, 1, 1), rollouts=9)
    cells = rl.cells()
    assert [cell.name for cell in cells] == [
        f"{task} {seed} {arm}" for seed in (0, 1) for arm in ("grm", "sparse") for task in ("reach-v3", "push-v3")
    ]
    assert {cell.settings.rollouts for cell in cells} == {9}
    assert cells[-1].folder == Path("runs/push-v3-1")
    assert command_line(rl) == "grm rl --out runs --task reach push-v3 --arms grm sparse --seeds 0 1 1 --rollouts 9"


def test_what_cannot_be_run_is_one_clear_error(refused, tmp_path, tiny):
    out = ("--out", tmp_path / "out")
    assert "unknown task 'fold'; expected one of" in refused("rl", *out, "--task", "fold")
    assert "unknown arm 'spares'; expected one of cloned, sparse, grm" in refused("rl", *out, "--arms", "spares")
    assert "named for 2 tasks; expected one" in refused("rl", *out, "--task", "reach", "push", "--demo", "x")
    assert "0 jobs" in refused("rl", *out, "--jobs", 0)
    assert "no run to resume" in refused("rl", *out, "--arms", "sparse", "--resume")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    assert "exists already" in refused("rl", *out, "--arms", "sparse")


def test_a_run_of_other_settings_is_not_gone_on_with(refused, tmp_path):
    folder = tmp_path / "out" / "reach-v3-0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": {}}))
    assert "begun with other task, seed" in refused(
        "rl", "--task", "reach", "--arms", "sparse", "--out", tmp_path / "out", "--resume"
    )


def test_minutes_add_up_over_sessions(tmp_path):
    assert minutes(tmp_path) == 0.0
    add_seconds(tmp_path, 90.0)
    add_seconds(tmp_path, 30.0)
    assert minutes(tmp_path) == pytest.approx(2.0)


def test_the_table_says_what_is_not_finished(tmp_path):
    cells = cli.Rl(out=tmp_path, task=("reach",), arms=("cloned", "sparse"), seeds=(0, 1)).cells()
    own = tmp_path / "reach-v3-1" / "arms" / "sparse"
    own.mkdir(parents=True)
    (own / "evaluation.json").write_text(json.dumps({"success_rate": 0.4}))
    table = outcome(cells)
    assert [list(column.cells) for column in table.columns] == [
        ["cloned", "sparse"],
        ["not finished", "0.40 (1/2)"],
    ]


@pytest.mark.slow
def test_a_grid_goes_on_with_more_arms(tmp_path, tiny, capsys):
    out = tmp_path / "out"
    given = ("rl", "--task", "reach", "--rollouts", 2, "--evaluation-episodes", 1, "--model", tiny, "--out", out)
    assert grm(*given, "--arms", "cloned", "sparse", "--seeds", 0, 1, "--jobs", 2) == 0
    sparse = contents(out / "reach-v3-0" / "arms" / "sparse")
    assert grm(*given, "--arms", "cloned", "sparse", "dense", "--seeds", 0, "--resume") == 0
    assert contents(out / "reach-v3-0" / "arms" / "sparse") == sparse, "what is finished stays"
    with (out / "metrics.csv").open(newline="") as file:
        assert [(r["arm"], r["number"]) for r in csv.DictReader(file)] == [
            (arm, number) for arm in ("sparse", "dense") for number in ("1", "2")
        ]
    assert "3 of 3 cells finished" in (out / "index.html").read_text()
    said = " ".join(capsys.readouterr().out.split())  # a narrow terminal breaks the title into lines
    assert "success on 1 fresh instances" in said
    config = json.loads((out / "reach-v3-0" / "config.json").read_text())
    assert config["command"].startswith("grm rl --out")
