"""What happened in every rollout of a learner, written as it happens and cut back when a run resumes."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grm.errors import MissingExtraError
from grm.report import Curve

from .collecting import Rollout
from .stopwatch import PARTS

SECONDS = tuple(f"{part}_s" for part in PARTS)
"""Columns of where the time of a rollout and its updates went."""
ANSWERS = ("attended", "answer", "retracted")
"""Where a person answers: whether one stood by, for how many decisions it had been done if one spoke, and of how many
earlier successes the head that learned from it thinks otherwise."""
COLUMNS = (*Rollout.__dataclass_fields__, "true_success", *ANSWERS, "abstained", *SECONDS)
"""Of rollouts.csv: a `Rollout`, whether the simulator saw a success, answers, transitions Φ abstained on, seconds by
part."""
CLOCK = ("elapsed_s", *SECONDS)
"""The columns in which two runs with one seed differ."""


def arm_folder(folder: Path, arm: str) -> Path:
    """Where the run in `folder` keeps what one arm did."""
    return folder / "arms" / arm


class RolloutLog:
    """rollouts.csv of one arm, and TensorBoard's file of the same beside it if asked for.

    Args:
        folder: of the arm.
        finished: rollouts the learner knows of; rows of later ones, of a session that was killed before it saved, go.
        tensorboard: raises `MissingExtraError` where that is not installed.
    """

    def __init__(self, folder: Path, finished: int, *, tensorboard: bool = False) -> None:
        path = folder / "rollouts.csv"
        rows = list(read_rollouts(path))[:finished]
        partial = path.with_suffix(".csv.partial")  # so that the rows of a resumed run are there whenever it is killed
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
        self._board: Any = _open_board(folder / "tensorboard", finished) if tensorboard else None
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one rollout's row."""
        self._writer.writerow(row)
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "number" and value is not None:
                    self._board.add_scalar(f"rollout/{name}", float(value), row["number"])
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path, finished: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "TensorBoard is not installed; expected it for --tensorboard: pip install 'grm-robotics[viz]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=finished + 1)


def read_rollouts(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a rollouts.csv; none if there is no such file yet."""
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def read_curve(folder: Path, arm: str) -> Curve | None:
    """The arm's learning curve so far, by what the simulator saw; None before its first rollout."""
    rows = list(read_rollouts(arm_folder(folder, arm) / "rollouts.csv"))
    if not rows:
        return None
    return Curve(
        arm=arm,
        rollout=np.array([int(row["number"]) for row in rows]),
        success=np.array([float(row["true_success"] == "True") for row in rows]),
    )
