"""The programs a newcomer copies run as they are, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tiny import tiny_grm

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", str(ROOT / "examples" / name), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_none_is_left_out():
    names = ["annotate.py", "best_of_n.py", "judge_episode.py", "live_reward.py", "shape_an_env.py"]
    assert [path.name for path in EXAMPLES] == names


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_says_how_it_is_run(path):
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]


def test_judge_episode(tmp_path):
    tiny_grm().save_pretrained(tmp_path)
    lines = run("judge_episode.py", tmp_path)
    assert [line.split()[0] for line in lines] == [f"{t / 10:.1f}" for t in range(8)]
    assert all(0 <= float(line.split("phi")[1].split()[0]) <= 1 for line in lines)
    assert lines[0].startswith("0.0 s  phi 0.00"), "nothing is done of what has just begun"


def test_shape_an_env():
    lines = run("shape_an_env.py")
    ends = [line.split() for line in lines if line.startswith("  return")]
    assert [end[1] for end in ends] == [f"{0.98**5:.3f}", "0.000"], "a sparse return of the goal, and of the hole"
    assert all(end[3] == end[5] for end in ends), "shaped, and what the proof says"
    assert any("shaped +" in line and "task 0" in line for line in lines), "a reward before the goal is reached"


def test_live_reward():
    *lines, refused = run("live_reward.py")
    phi = [float(line.split("phi")[1].split()[0]) for line in lines]
    assert len(phi) == 20
    assert max(phi[:4]) < 0.1
    assert min(phi[-3:]) > 0.9
    assert refused.startswith("refused: the newest potential is 0.")


def test_best_of_n():
    lines = run("best_of_n.py")
    assert lines[:2] == ["answer 6:  1.0 1.0 0.0 1.0"] * 2
    assert lines[5] == "answer 5:  abstained abstained"
    assert lines[6] == "best of 6: candidate 2, answer 5; 1 abstained"
    assert lines[7] == "majority vote: 6, weighted vote: 5", "the judge outvotes the many"
    assert lines[8].startswith("refused: no score for any of 1 candidates")


def test_annotate():
    lines = run("annotate.py")
    assert [line.split()[-1] for line in lines[:4]] == ["-1", "1", "2", "2"]
    assert lines[4:6] == ["both agree on 3 of 4", "written for training: 3"]
    assert lines[6] == "labelled again: 0 rollouts more than the 256 of before"
