import numpy as np
import pytest

from grm.errors import MissingExtraError
from policies import log
from policies.log import COLUMNS, RolloutLog, arm_folder, read_curve, read_rollouts

ROW = dict.fromkeys(COLUMNS, 0.0)


def write(folder, finished, numbers):
    one = RolloutLog(folder, finished)
    for number in numbers:
        one.write(ROW | {"number": number, "success": False, "true_success": number % 2 == 0, "mean_phi": None})
    one.close()


def test_rows_no_checkpoint_knows_of_are_cut_when_a_run_resumes(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, 2, [3, 4])
    rows = list(read_rollouts(tmp_path / "rollouts.csv"))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["mean_phi"] == ""
    assert list(tmp_path.glob("*partial*")) == []


def test_a_row_is_on_disk_at_once(tmp_path):
    one = RolloutLog(tmp_path, 0)
    one.write(ROW | {"number": 1})
    assert len(list(read_rollouts(tmp_path / "rollouts.csv"))) == 1
    one.close()


def test_the_curve_is_what_the_simulator_saw(tmp_path):
    assert read_curve(tmp_path, "grm_only") is None
    arm_folder(tmp_path, "grm_only").mkdir(parents=True)
    write(arm_folder(tmp_path, "grm_only"), 0, [1, 2, 3, 4])
    curve = read_curve(tmp_path, "grm_only")
    assert curve.arm == "grm_only"
    np.testing.assert_array_equal(curve.rollout, [1, 2, 3, 4])
    np.testing.assert_array_equal(curve.success, [0, 1, 0, 1])


def test_tensorboard_is_told_everything_but_what_is_unknown(tmp_path, monkeypatch):
    class Board:
        def __init__(self):
            self.told, self.flushed, self.closed = [], 0, False

        def add_scalar(self, name, value, step):
            self.told.append((name, value, step))

        def flush(self):
            self.flushed += 1

        def close(self):
            self.closed = True

    board, opened = Board(), []
    monkeypatch.setattr(log, "_open_board", lambda folder, finished: opened.append((folder, finished)) or board)
    one = RolloutLog(tmp_path, 7, tensorboard=True)
    one.write(ROW | {"number": 8, "success": True, "mean_phi": None})
    assert board.flushed == 1
    one.close()
    assert opened == [(tmp_path / "tensorboard", 7)]
    assert board.closed
    assert ("rollout/success", 1.0, 8) in board.told
    assert len(board.told) == len(COLUMNS) - 2, "all but the number itself and the unknown mean"


def test_tensorboard_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(MissingExtraError, match=r"grm-robotics\[viz\]"):
        RolloutLog(tmp_path, 0, tensorboard=True)
