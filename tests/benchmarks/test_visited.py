import sys

import pytest

from benchmarks import visited
from policies.log import arm_folder
from policies.one_shot import OneShotSettings


def test_success_is_reported_by_block(tmp_path):
    own = arm_folder(tmp_path, "grm")
    own.mkdir(parents=True)
    rows = [f"{number},{number > 20}" for number in range(1, 31)]
    (own / "rollouts.csv").write_text("\n".join(["number,success", *rows]) + "\n")
    assert visited.success_blocks(tmp_path) == [0.2, 1.0]
    assert visited.success_blocks(tmp_path / "nothing") == []


@pytest.mark.slow
def test_tasks_run_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    from ..tiny import tiny_grm

    tiny_grm().save_pretrained(tmp_path / "grm")
    command = ["visited.py", "--model", str(tmp_path / "grm"), "--data", str(tmp_path / "data"), "--tasks", "reach"]
    monkeypatch.setattr(sys, "argv", [*command, "--rollouts", "2", "--every", "1", "--label-every", "50"])
    monkeypatch.setattr(visited, "OneShotSettings", lambda **known: OneShotSettings(**known, adaptation_steps=1))
    visited.main()
    assert (tmp_path / "data" / "reach-v3" / "meta" / "info.json").exists()
    assert "reach-v3               success per 25 rollouts: " in capsys.readouterr().out
