import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grm.errors import GrmError
from policies import grid
from policies.arms import CLONED, GRM_ONLY, GRM_SHAPED, SPARSE
from policies.grid import Cell, run_cells
from policies.log import CLOCK, arm_folder, read_rollouts
from policies.one_shot import OneShotSettings

from .conftest import SETTINGS


def cell(arm, folder, seed=0):
    return Cell(settings=OneShotSettings(task="reach-v3", seed=seed), arm=arm, folder=folder)


def test_cells_that_would_make_the_same_thing_wait_for_it(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    waiting = dict(enumerate([cell(SPARSE, one), cell(GRM_SHAPED, one), cell(SPARSE, other)]))
    assert grid._next(waiting, []) == 0
    del waiting[0]
    assert grid._next(waiting, [cell(SPARSE, one)]) == 2, "the other run's cell goes before"
    (one / "demonstration" / "meta").mkdir(parents=True)
    (one / "demonstration" / "meta" / "info.json").touch()
    assert grid._next(waiting, [cell(SPARSE, one)]) == 1, "now there is nothing that both would make"
    assert grid._next({5: cell(GRM_ONLY, one)}, [cell(GRM_SHAPED, one)]) is None
    (one / "grm").mkdir()
    (one / "grm" / "config.json").touch()
    assert grid._next({5: cell(GRM_ONLY, one)}, [cell(GRM_SHAPED, one)]) == 5


def test_a_finished_cell_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(grid._Pool, "begin", lambda *given: pytest.fail("it ran"))
    done = cell(CLONED, tmp_path)
    assert not done.finished
    arm_folder(tmp_path, "cloned").mkdir(parents=True)
    (arm_folder(tmp_path, "cloned") / "evaluation.json").touch()
    assert done.finished
    run_cells([done], jobs=2)


@pytest.mark.slow
def test_several_at_once_and_one_that_fails(begun, tmp_path):
    good, bad = (shutil.copytree(begun, tmp_path / name) for name in ("good", "bad"))
    (bad / "grm" / "model.safetensors").unlink()
    cells = [Cell(settings=SETTINGS, arm=a, folder=f) for f in (bad, good) for a in (GRM_SHAPED, SPARSE, CLONED)]
    seen, ends = [], []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(GrmError, match=r"the arm reach-v3 0 grm did not finish: .* holds no model\.safetensors"):
        run_cells(cells, jobs=3, on_rollout=lambda c, r: seen.append((c, r.number)), on_end=ends.append)
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(map(cells.index, ends)) == list(range(6))
    assert [c.finished for c in cells] == [False, True, True, True, True, True]
    assert sorted((cells.index(c), n) for c, n in seen) == [(i, n) for i in (1, 3, 4) for n in (1, 2, 3)]


@pytest.mark.slow
def test_a_killed_process_is_told_of_and_the_run_goes_on_to_the_same_end(begun, tmp_path, monkeypatch):
    def what_happened(folder):
        rows = read_rollouts(arm_folder(folder, "sparse") / "rollouts.csv")
        return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]

    whole, killed = (shutil.copytree(begun, tmp_path / name) for name in ("whole", "killed"))
    run_cells([Cell(settings=SETTINGS, arm=SPARSE, folder=whole)], jobs=1)
    one, begin, processes = Cell(settings=SETTINGS, arm=SPARSE, folder=killed), grid._Pool.begin, []

    def remember(pool, number, cell):
        begin(pool, number, cell)
        processes.append(pool.running[number].process)

    monkeypatch.setattr(grid._Pool, "begin", remember)
    with pytest.raises(GrmError, match="did not finish: it died with exit status -9"):
        run_cells([one], jobs=1, on_rollout=lambda cell, rollout: processes[0].kill() if rollout.number == 2 else None)
    assert not one.finished
    seen = []
    run_cells([one], jobs=1, on_rollout=lambda cell, rollout: seen.append(rollout.number))
    assert seen in ([2, 3], [3]), "at most the rollout under way is made again"
    assert what_happened(killed) == what_happened(whole)
    for name in ("rollouts.csv", "evaluation.json"):
        assert (arm_folder(killed, "sparse") / name).exists()
    evaluations = [(arm_folder(folder, "sparse") / "evaluation.json").read_text() for folder in (whole, killed)]
    assert evaluations[0] == evaluations[1]


RUN = """
import sys
from pathlib import Path
from policies import grid
from policies.arms import SPARSE
from policies.grid import Cell, run_cells
from tests.policies.conftest import SETTINGS
import dataclasses

begin = grid._Pool.begin
def tell(pool, number, cell):
    begin(pool, number, cell)
    print(pool.running[number].process.pid, flush=True)
grid._Pool.begin = tell
if __name__ == "__main__":
    settings = dataclasses.replace(SETTINGS, rollouts=1000)
    cell = Cell(settings=settings, arm=SPARSE, folder=Path(sys.argv[1]))
    run_cells([cell], jobs=1, on_rollout=lambda cell, rollout: print("rollout", flush=True))
"""


@pytest.mark.slow
def test_who_is_killed_leaves_nobody_behind_who_writes(begun_copy, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    home = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, script, begun_copy],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "rollout\n"
    os.kill(child, 0)  # it is there
    parent.kill()
    try:
        parent.communicate(timeout=20)  # the worker inherited the pipe: it ends when both are gone
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        parent.communicate()
        pytest.fail("the worker outlived its parent by 20 seconds")
